"""Kills a small real study at many moments, continues it, and compares every bit of the results.

    python tests/stress/crash.py [--kills 200] [--seed 0]

Half of the kills come after a random time. The others come before or after a chosen step: a rename
of a file, a report of an epoch or trial to Optuna, a view. The comparison ignores wall times and
dates (compare_runs.py).
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

for threads in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[threads] = "1"  # a process that is forked must have no others

from fmnist.utils import runtime

runtime.prepare()

import optuna
import torch._dynamo  # noqa: F401  # else every child would load it
from compare_runs import differences, outcome
from drawn_once import FIGURES, Kept, remembering
from slice_study import dataset

from fmnist.config.study import StudyConfig
from fmnist.data.fashion_mnist import Dataset
from fmnist.engine import trainer
from fmnist.functional.types import ModelConfig, Split
from fmnist.reports import figures, markdown, publish
from fmnist.reports.dashboard import mirror as dashboard
from fmnist.reports.html import page as html
from fmnist.reports.tensorboard import mirror as tensorboard
from fmnist.reports.tensorboard import winner as winner_board
from fmnist.rundir import manifest, models, snapshots
from fmnist.study.run import run_study
from fmnist.tuning import grid, progress
from fmnist.utils.errors import UserError

CONFIG = StudyConfig(
    name="crash",
    epochs=3,
    holdout=100,
    model=ModelConfig(channels=(3, 4), hidden=(8,), dropout=0.2),
    grid={"learning_rate": (0.01, 0.001), "batch_size": (50, 100), "seed": (0, 1)},
)

STEPS = [
    (os, "replace"),
    (os, "fsync"),
    (os, "unlink"),
    (snapshots.Generations, "save"),
    (progress.Checkpointer, "forget"),
    (grid, "begin"),
    (grid, "report"),
    (grid, "tell"),
    (optuna.Study, "add_trial"),
    (optuna.Study, "tell"),
    (models, "save_model"),
    (manifest, "write"),
    (tensorboard.TensorBoardMirror, "epoch"),
    (tensorboard.TensorBoardMirror, "finish"),
    (dashboard.DashboardMirror, "finish"),
    (dashboard, "publish"),
    (winner_board, "write_winner"),
    (figures, "curves"),
    (html, "write_html"),
    (markdown, "write_report"),
    (publish, "_write_best"),
]
"""The functions before or after whose n-th call a run can be killed."""

DRAWN: Kept | None = None
"""Figures that are drawn once; None to draw them whenever they are wanted."""

MOST_HITS = 8
"""Maximum number of kills of one study."""


Step = tuple[object, str]


class Kill(NamedTuple):
    """The moment of a kill: after some seconds, or at a step."""

    seconds: float | None
    step: Step | None = None
    call: int = 0
    after: bool = False

    def __str__(self) -> str:
        if self.step is None:
            return f"after {self.seconds:.2f} s"
        return f"{'after' if self.after else 'before'} call {self.call} of {name(self.step)}"


def name(step: Step) -> str:
    """Return a description of a step."""
    return f"{getattr(step[0], '__name__', step[0])}.{step[1]}"


def data() -> Dataset:
    """Return a data set that is so small that an epoch takes no time."""
    whole = dataset()
    return Dataset(
        Split(whole.train.images[:700], whole.train.labels[:700]),
        Split(whole.test.images[:100], whole.test.labels[:100]),
        "a slice",
    )


def start(
    out: Path,
    images: Dataset,
    kill: Kill | None = None,
    log: Path | None = None,
    calls: Path | None = None,
    wait: float = 0.0,
) -> int:
    """Start or resume the study in a child process and return the process id.

    The child is killed at ``kill``. The number of calls of each step is written to ``calls``.
    Figures that ``DRAWN`` has are written and not drawn.
    """
    child = os.fork()
    if child:
        return child
    log = os.open(log or out.with_suffix(".log"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    status = 70
    try:
        progress.Checkpointer.__init__.__kwdefaults__.update(every=0.0, within=0.0)
        trainer._steps_per_event = lambda *_: 3
        if DRAWN is not None:
            for module, named in FIGURES:
                setattr(module, named, remembering(getattr(module, named), DRAWN))
        if kill is not None and kill.step is not None:
            trap(kill)
        taken = [counted(step) for step in STEPS] if calls else []
        results = run_study(CONFIG, out, dataset=images, wait=wait)
        status = int(any(result.state != "COMPLETE" for result in results))
        if calls:
            calls.write_text(json.dumps([len(times) for times in taken]))
    except UserError as error:
        print(f"error: {error}")
        status = 2
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def trap(kill: Kill) -> None:
    """Make this process kill itself at the step."""
    place, called = kill.step
    original = getattr(place, called)
    calls = 0

    @functools.wraps(original)
    def trapped(*args, **kwargs):
        nonlocal calls
        calls += 1
        here = calls == kill.call
        if here and not kill.after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if here:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(place, called, trapped)


def counted(step: Step) -> list[None]:
    """Return a list that grows by one at each call of the step."""
    place, called = step
    original, times = getattr(place, called), []

    @functools.wraps(original)
    def counts(*args, **kwargs):
        times.append(None)
        return original(*args, **kwargs)

    setattr(place, called, counts)
    return times


def end(child: int) -> int:
    """Wait for a process. Return its exit status, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def attempt(out: Path, images: Dataset, kill: Kill) -> int:
    """Run the study until it is killed or done. Return how it ended."""
    child = start(out, images, kill)
    if kill.seconds is not None:
        time.sleep(kill.seconds)
        os.kill(child, signal.SIGKILL)
    return end(child)


def kills(seed: int, seconds: float, calls: Sequence[int]) -> Iterator[Kill]:
    """Yield kills without end: at a random time and at a random step in turn.

    Args:
        seed: the random seed.
        seconds: time of an uninterrupted study.
        calls: number of calls of each step in such a study.
    """
    chance = random.Random(seed)
    while True:
        for step, most in chance.sample([*zip(STEPS, calls, strict=True)], len(STEPS)):
            yield Kill(chance.uniform(0, seconds))
            call = 1 if chance.random() < 0.4 else chance.randint(1, most)
            yield Kill(None, step, call, chance.random() < 0.5)


def survive(folder: Path, count: int, seed: int, say=print) -> dict[str, int]:
    """Run and kill studies until this number of kills has succeeded. Return the counts.

    Raises:
        AssertionError: A study does not end like an uninterrupted one.
    """
    images = data()
    whole = folder / "undisturbed"
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    counts = folder / "calls.json"
    status = end(start(whole, images, calls=counts))
    seconds = time.monotonic() - began
    assert status == 0, whole.with_suffix(".log").read_text(encoding="utf-8")
    expected = outcome(whole)
    tally = collections.Counter(kills=0)
    calls = json.loads(counts.read_text())
    assert min(calls) > 0, f"never taken: {name(STEPS[calls.index(0)])}"
    pending = kills(seed, seconds, calls)
    while tally["kills"] < count:
        out = folder / f"study{tally['studies']:03}"
        hits = 0
        status = 1
        while tally["kills"] < count and hits < MOST_HITS:
            kill = next(pending)
            status = attempt(out, images, kill)
            assert status in (0, -signal.SIGKILL), f"{kill}: ended with {status}, see {out}.log"
            if status == 0:
                tally["missed"] += 1
                break
            hits += 1
            tally["kills"] += 1
            say(f"{tally['kills']} killed {kill}", flush=True)
        if status != 0:
            status = end(start(out, images))
        assert status == 0, out.with_suffix(".log").read_text(encoding="utf-8")
        wrong = differences(outcome(out), expected)
        assert not wrong, f"{out}: differs from the undisturbed study in {wrong}"
        tally["studies"] += 1
        shutil.rmtree(out)
    return dict(tally)


def main() -> int:
    """The long run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--drawn-once", action="store_true")
    args = parser.parse_args()
    global DRAWN
    with tempfile.TemporaryDirectory() as folder:
        DRAWN = Kept(Path(folder) / "drawn") if args.drawn_once else None
        print(survive(Path(folder), args.kills, args.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
