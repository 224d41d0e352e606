"""The estimate of the memory of lanes, and the memory that they take, for random studies.

    python tests/stress/footprint.py [--studies 40] [--seed 0]

Prints both in MiB and the ratio of estimate and measurement.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

MIB = 2**20
EXAMPLES = 1200


def measured(study: dict[str, object]) -> tuple[float, float]:
    """Return estimate and measurement in MiB, from a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--study", json.dumps(study)],
        capture_output=True, text=True, check=True, timeout=600,
    )  # fmt: skip
    estimate, taken = map(float, done.stdout.split())
    return estimate, taken


def train(study: dict[str, object]) -> tuple[float, float]:
    """Train a few steps in this process and evaluate."""
    from fmnist.utils import memory, runtime

    runtime.prepare()
    from strategies import random_split

    import fmnist
    from fmnist.engine import footprint, trainer
    from fmnist.engine.lanes import make_lanes
    from fmnist.engine.step import Program

    def run(model: fmnist.Model, count: int, batch_size: int, algorithm: str, shared: bool) -> int:
        optimizer = getattr(fmnist, algorithm)
        rates = [0.001] * count
        seeds = [0] * count if shared else range(count)
        lanes = make_lanes(optimizer, {"learning_rate": rates, "seed": seeds})
        program = Program(model, optimizer, batch_size)
        estimate = footprint.lanes_bytes(program, lanes, EXAMPLES, (1, 28, 28))
        for event in trainer.train_lanes(program, lanes, training, validation, epochs=1):
            last = event
        assert isinstance(last, trainer.EpochResult)
        return estimate

    training, validation = random_split(EXAMPLES), random_split(600, 1)
    model = study.pop("model")
    assert isinstance(model, dict)
    small = {"channels": [2, 3], "hidden": [5 for _ in model.get("hidden", (1, 1))]}
    run(fmnist.cnn(**model | small), 2, 100, str(study["algorithm"]), False)
    memory.release()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
    estimate = run(fmnist.cnn(**model), **study)  # type: ignore[arg-type]
    return estimate / MIB, (status("VmHWM") - before) / MIB


def status(name: str) -> int:
    """Return a number of bytes of /proc/self/status."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


def random_study(generator: random.Random) -> dict[str, object]:
    """Draw a study whose lanes take 100 MiB to 2 GiB, about."""
    pick = generator.choice
    batch_size = pick([20, 100, 500])
    return {
        "model": {
            "channels": pick([[12, 24], [4, 8], [24, 32], [16], [32, 8]]),
            "hidden": pick([[120, 60], [256, 256], [1000], [], [2000, 30]]),
            "kernel_size": pick([3, 5, 7]),
            "dropout": pick([0.0, 0.3]),
            "precision": pick(["float32", "float32", "bfloat16"]),
        },
        "count": pick([3, 8] if batch_size == 500 else [8, 16, 24]),
        "batch_size": batch_size,
        "algorithm": pick(["adam", "sgd", "adamw"]),
        "shared": pick([True, False, False]),
    }


def main() -> int:
    """The long run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--study", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.study:
        print(*train(json.loads(args.study)))
        return 0
    generator, wrong = random.Random(args.seed), 0
    for _ in range(args.studies):
        study = random_study(generator)
        estimate, taken = measured(study)
        ratio = estimate / taken
        wrong += not 0.7 <= ratio <= 1.3
        print(f"{estimate:8.0f} {taken:8.0f} {ratio:5.2f}  {json.dumps(study)}", flush=True)
    print(f"{wrong} of {args.studies} outside of 0.7 to 1.3")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
