"""Measures the seconds per trial and epoch of 60,000 images. The engines take turns in one run.

python benchmarks/engines.py --quick            # the baseline's grid, under 4 minutes on 2 cores
python benchmarks/engines.py --json engines.json --plot engines.png
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import asdict, dataclass

from fmnist.utils import runtime

runtime.prepare()  # before torch, as the commands do it; all engines benefit

import contenders
import processes
import torch
from common import (
    add_network,
    machine,
    median,
    network,
    prepare,
    spread,
    table,
    timed,
    write_json,
)

from fmnist.functional.types import ModelConfig

EPOCH = 60_000
PER_CORE = ("eager on a core each", "eager channels last on a core each")
ONE_PROCESS = ("eager", "eager channels last")

ENGINES = {
    "original style": contenders.DataLoaderStyle,
    "eager": contenders.Eager,
    "eager channels last": contenders.EagerChannelsLast,
    "eager on a core each": processes.EagerPerCore,
    "eager channels last on a core each": processes.EagerChannelsLastPerCore,
    "compiled": contenders.Compiled,
    "compiled on a core each": processes.CompiledPerCore,
    "compiled, CUDA graphs": contenders.CompiledGraphs,
    "straight vmap": contenders.StraightVmap,
    "lanes": contenders.Lanes,
}


@dataclass
class Row:
    """A measured time. Sequential engines have one lane."""

    engine: str
    batch_size: int
    lanes: int
    device: str
    seconds_per_trial_epoch: float
    spread: float
    rounds: int
    loss: float


def main() -> int:
    """Measure, print a table, and write JSON and a plot if requested."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the baseline's grid: 2 lanes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--engines", help="comma-separated; default: all that are there")
    parser.add_argument("--batch-sizes", default="100,500,1000")
    parser.add_argument("--lanes", help="comma-separated lane counts")
    add_network(parser)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--images", type=int, default=0, help="of an epoch; times are scaled")
    parser.add_argument("--rounds", type=int, default=0, help="turns each engine takes")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds a turn may take")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--plot", metavar="FILE")
    args = parser.parse_args()
    device = torch.device(args.device)
    engines = dict(ENGINES)
    try:
        from jax_lanes import Jax

        engines["JAX jit(vmap)"] = Jax
    except ImportError:
        print("JAX is not installed (extra: bench); it is left out", file=sys.stderr)
    model = network(args, precision=args.precision)
    if device.type != "cuda":
        del engines["compiled, CUDA graphs"]
    else:
        for name in [name for name in engines if name.endswith("on a core each")]:
            del engines[name]
    if model != ModelConfig():
        engines.pop("JAX jit(vmap)", None)  # it has this network alone
    if args.quick:
        slow = ("original style", "compiled", "compiled on a core each", "JAX jit(vmap)")
        for name in slow:
            engines.pop(name, None)
    if args.engines:
        wanted = args.engines.split(",")
        if unknown := [name for name in wanted if name not in engines]:
            parser.error(f"no engine {unknown[0]!r}; there are {', '.join(engines)}")
        engines = {name: engines[name] for name in wanted}
    most = (64, 128) if device.type == "cuda" else ()
    lanes = [2] if args.quick else [1, 2, 4, 8, 16, 32, *most]
    if args.lanes:
        lanes = [int(n) for n in args.lanes.split(",")]
    rounds = args.rounds or (5 if args.quick else 3)
    split = prepare(args.images or (6_000 if args.quick else 10_000), device)
    # Numba compiles once on a machine; no engine should be charged for it.
    few = contenders.Split(split.images[:64], split.labels[:64])
    contenders.Lanes(few, 32, 1, model).epoch()
    rows: list[Row] = []
    for batch_size in map(int, args.batch_sizes.split(",")):
        rows += measure(engines, split, batch_size, lanes, rounds, args.budget, model)
    print(table(
        ["engine", "batch size", "lanes", "seconds / trial / epoch", "spread", "loss"],
        [[r.engine, r.batch_size, r.lanes, f"{r.seconds_per_trial_epoch:.2f}",
          f"{r.spread:.0%}", f"{r.loss:.3f}"] for r in rows],
    ))  # fmt: skip
    found = ratios(rows)
    print()
    for name, value in found.items():
        print(f"{name}: {value}")
    write_json(
        args.json,
        {
            "about": machine(device)
            | {
                "images": len(split.labels),
                "channels": args.channels,
                "kernel_size": args.kernel_size,
                "padding": args.padding,
                "precision": args.precision,
            },
            "rows": [asdict(row) for row in rows],
            "ratios": found,
        },
    )
    if args.plot:
        plot(rows, args.plot)
    return 0


def measure(
    engines: dict[str, type[contenders.Contender]],
    split: contenders.Split,
    batch_size: int,
    lanes: list[int],
    rounds: int,
    budget: float,
    model: ModelConfig = ModelConfig(),
) -> list[Row]:
    """Measure one batch size. In each round, every engine and number of lanes has a turn."""
    field: dict[tuple[str, int], contenders.Contender] = {}
    for name, engine in engines.items():
        for count in [1] if engine.sequential else lanes:
            began = time.perf_counter()
            contender = engine(split, batch_size, count, model)
            contender.epoch()  # compiles, traces, fills caches
            took = time.perf_counter() - began
            print(f"{name}, batch size {batch_size}, {count} lanes: {took:.1f} s", file=sys.stderr)
            field[name, count] = contender
            if took > budget:  # more lanes would be even slower
                break
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in field}
    losses: dict[tuple[str, int], float] = {}
    for _ in range(rounds):
        for key, contender in field.items():
            ended: list[float] = []
            took = timed(lambda c=contender, e=ended: e.extend(c.epoch()), split.images.device)
            per_trial = took / (key[1] * contender.trials)
            seconds[key].append(per_trial * EPOCH / len(split.labels))
            losses[key] = ended[0]
    for contender in field.values():
        contender.close()
    # Equal work gives equal losses: the same seed, order, steps and optimizer.
    expected = median(list(losses.values()))
    for key, loss in losses.items():
        assert math.isclose(loss, expected, rel_tol=0.1), f"{key} reports {loss}, not {expected}"
    return [
        Row(name, batch_size, count, str(split.images.device), median(s), spread(s), rounds,
            losses[name, count])
        for (name, count), s in seconds.items()
    ]  # fmt: skip


def ratios(rows: list[Row]) -> dict[str, object]:
    """Return ratios such as the best eager peer over the lanes, for each batch size.

    On a CPU the peers are those with a process a core, in the better layout; else one process.
    """
    at = {(r.engine, r.batch_size, r.lanes): r.seconds_per_trial_epoch for r in rows}
    sizes = sorted({r.batch_size for r in rows})
    found: dict[str, object] = {}

    def best(size: int) -> float | None:
        for names in (PER_CORE, ONE_PROCESS):
            times = [at[name, size, 1] for name in names if (name, size, 1) in at]
            if times:
                return min(times)
        return None

    def over(numerators: dict[int, float | None], engine: str, lanes: int) -> dict[str, float]:
        return {
            str(size): round(n / at[engine, size, lanes], 2)
            for size, n in numerators.items()
            if n is not None and (engine, size, lanes) in at
        }

    references = {size: best(size) for size in sizes}
    found["reference_over_lanes"] = over(references, "lanes", 2)
    found["reference_over_8_lanes"] = over(references, "lanes", 8)
    if all((("lanes", size, 2) in at and references[size]) for size in sizes):
        reference = sum(references[size] or 0 for size in sizes)
        found["baseline_grid"] = round(reference / sum(at["lanes", s, 2] for s in sizes), 2)
    jax = {size: at.get(("JAX jit(vmap)", size, 2)) for size in sizes}
    found["jax_over_lanes"] = over(jax, "lanes", 2)
    found["lanes_8_over_2"] = over({s: at.get(("lanes", s, 8)) for s in sizes}, "lanes", 2)
    for name in ("compiled", "eager"):
        solo = {size: at.get((name, size, 1)) for size in sizes}
        found[f"{name}_over_64_lanes"] = over(solo, "lanes", 64)
    return {name: value for name, value in found.items() if value}


def plot(rows: list[Row], path: str) -> None:
    """Plot time against lanes, a panel for each batch size. Sequential engines are level lines."""
    import seaborn as sns
    from matplotlib.figure import Figure

    sizes = sorted({r.batch_size for r in rows})
    engines = list(dict.fromkeys(r.engine for r in rows))
    colours = dict(zip(engines, sns.color_palette("colorblind", len(engines)), strict=True))
    figure = Figure(figsize=(4 * len(sizes) + 1, 4), layout="constrained")
    for axes, size in zip(
        figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0], sizes, strict=True
    ):
        for engine in engines:
            own = sorted((r.lanes, r.seconds_per_trial_epoch) for r in rows
                         if r.engine == engine and r.batch_size == size)  # fmt: skip
            if ENGINES.get(engine, contenders.Contender).sequential and own:
                axes.axhline(own[0][1], color=colours[engine], linestyle="--", label=engine)
            elif own:
                axes.plot(*zip(*own, strict=True), marker="o", color=colours[engine], label=engine)
        axes.set(title=f"batch size {size}", xlabel="lanes", xscale="log", yscale="log")
        counts = sorted({r.lanes for r in rows})
        axes.set_xticks(counts, [str(c) for c in counts])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("seconds a trial and epoch of 60,000 images")
    ticks = [1, 2, 3, 5, 10, 20, 50, 100]
    figure.axes[0].set_yticks(ticks, [str(t) for t in ticks])
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
