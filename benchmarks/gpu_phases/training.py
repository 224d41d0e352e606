"""Guarantees of training: lanes against torch.nn, a repetition, solo runs, and a resumed run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple
from unittest.mock import patch

import optree
import torch
import torch.nn.functional as F
from common import NUMBERS

import fmnist
from fmnist.engine import cuda_graph, step, trainer
from fmnist.engine.lanes import Lanes, make_lanes
from fmnist.functional import vmap
from fmnist.functional.kernels import conv
from fmnist.functional.types import ModelConfig, Split
from fmnist.reference import fit_reference, from_module
from gpu_phases.part import Part, SkipError

RATES = (0.003, 0.001, 0.0003)


def run(part: Part) -> None:
    """Run each check. Lanes against solo runs also give a table."""
    checks: dict[str, Callable[[], str | None]] = {
        "float64: lanes equal torch.nn and torch.optim": lambda: parity(part),
        "float32: the same run twice, bit for bit": lambda: twice(part),
        "CUDA graph equals the eager step, bit for bit": lambda: captured(part),
        "buffers of a graph, by a stand-in, bit for bit": lambda: stand_in(part),
        "resumed inside of an epoch, bit for bit": lambda: resumed(part),
        "a model of one's own: its graph equals its step": lambda: captured(part, perceptron()),
        "a model of one's own: resumed inside of an epoch": lambda: resumed(part, perceptron()),
    }
    for name, check in checks.items():
        part.check(name, check)
    rows: list[tuple[object, ...]] = []
    for how in ("blocks", *conv.BACKENDS):
        part.check(f"lanes against solo runs: {how}", lambda how=how: solo(part, how, rows))


class Group(NamedTuple):
    """A program and its lanes."""

    program: step.Program
    lanes: Lanes


def group(count: int, batch_size: int, model: fmnist.Model | None = None) -> Group:
    """Return lanes of the baseline's or another network, with different learning rates."""
    rates = [RATES[i % len(RATES)] for i in range(count)]
    program = step.Program(model or fmnist.cnn(), fmnist.adam, batch_size)
    return Group(program, make_lanes(fmnist.adam, {"learning_rate": rates}))


def perceptron() -> fmnist.Model:
    """Return a model of plain functions with one hidden layer and a norm, without fused kernels."""

    def init(seed: int) -> tuple[Any, Any]:
        generator = torch.Generator().manual_seed(seed)
        sizes = ((64, 784), (10, 64))
        layers = [torch.randn(size, generator=generator) * size[1] ** -0.5 for size in sizes]
        return {"layers": layers, "bias": torch.zeros(10)}, ()

    def apply(params: Any, state: Any, images: Any, *, train: bool, noise: Any = ()) -> Any:
        first, second = params["layers"]
        hidden = F.gelu(F.layer_norm(F.linear(images.flatten(1), first), (64,)))
        return F.linear(hidden, second, params["bias"]), state

    return fmnist.Model(init, apply)


def epochs_of(
    own: Group, split: Split, held_out: Split, resume: trainer.TrainerState | None = None
) -> trainer.EpochResult:
    """Return the result of one epoch."""
    *_, last = trainer.train_lanes(*own, split, held_out, epochs=1, resume=resume)
    assert isinstance(last, trainer.EpochResult)
    return last


def sizes(part: Part) -> tuple[int, int, int]:
    """Return lanes, batch size and steps of the checks in float32."""
    if part.quick:
        return 2, 20, 6
    return (64, 500, 20) if part.cuda else (4, 100, 20)


def parity(part: Part) -> str:
    """Compare two epochs in float64. The last step of each is smaller."""
    # Few steps: Adam divides by values near zero, which magnifies rounding at each step.
    split, batch = part.images(90 if part.quick else 490), 20 if part.quick else 100
    *_, ours = fmnist.fit(
        fmnist.cnn(), fmnist.adam, split, split, lanes={"learning_rate": RATES},
        batch_size=batch, epochs=2, dtype=torch.float64,
    )  # fmt: skip
    worst = 0.0
    for i, rate in enumerate(RATES):
        *_, theirs = fit_reference(
            ModelConfig(), "adam", NUMBERS | {"learning_rate": rate}, split, split,
            batch_size=batch, seed=0, epochs=2, dtype=torch.float64,
        )  # fmt: skip
        for mine, plain in ((ours.train, theirs.train), (ours.validation, theirs.validation)):
            worst = max(worst, abs(mine.loss_sum[i] / plain.loss_sum - 1).item())
            assert mine.correct[i] == plain.correct, "another number of images is right"
        alone = vmap.take(ours.train_state.params, torch.tensor(i, device=part.device))
        expected = from_module(theirs.network)[0]
        for layer in expected:
            for leaf in expected[layer]:
                if not (layer.startswith("conv") and leaf == "bias"):  # has no gradient
                    worst = max(worst, difference(alone[layer][leaf], expected[layer][leaf]))
    assert worst <= 1e-8, f"relative difference {worst:.1e}"
    return f"relative difference {worst:.0e}"


def twice(part: Part) -> None:
    """Check that a repetition gives the same bits."""
    same(train(part), train(part))


def captured(part: Part, model: fmnist.Model | None = None) -> None:
    """Compare steps replayed from a graph with steps called one by one."""
    if not part.cuda:
        raise SkipError("not a CUDA device; a stand-in follows")
    with patch.object(trainer, "repeater", lambda step, device: cuda_graph._Looped(step)):
        eager = train(part, model)
    same(train(part, model), eager)


def stand_in(part: Part) -> None:
    """Compare with a function in place of a graph, to check the copies."""

    def called(
        run: Callable[[], None], device: torch.device, reset: Callable[[], None]
    ) -> Callable[[], None]:
        for _ in range(3):  # as capture_cuda warms up
            reset()
            run()
        return run

    with patch.object(trainer, "repeater", lambda step, device: cuda_graph.Replayed(step, called)):
        replayed = train(part)
    with patch.object(trainer, "repeater", lambda step, device: cuda_graph._Looped(step)):
        same(replayed, train(part))


def resumed(part: Part, model: fmnist.Model | None = None) -> str:
    """Compare a run that is resumed within an epoch with an uninterrupted one."""
    count, batch, steps = sizes(part)
    split = images(part)
    own = group(count, batch, model)
    state = next(iter(trainer.train_lanes(*own, split, split, epochs=1)))
    assert isinstance(state, trainer.TrainerState)
    assert 0 < state.examples < batch * steps, "the first pause is not inside of the epoch"
    same(epochs_of(own, split, split, state).train_state, train(part, model))
    return f"after {state.examples // batch} of {steps} steps"


def solo(part: Part, how: str, rows: list[tuple[object, ...]]) -> str:
    """Compare the first and last of some lanes with solo runs, for one convolution."""
    if how == "blocks" and part.cuda:
        raise SkipError("it is for CPUs")
    count, batch, steps = (2, 20, 6) if part.quick else (8, 100, 200)
    split = part.images(batch * steps)
    program, lanes = group(count, batch, fmnist.cnn(convolution=how))
    probe = Split(split.images[:batch], split.labels[:batch])
    together = epochs_of(Group(program, lanes), split, probe)
    alone = [
        epochs_of(
            Group(program, Lanes((0,), {k: (v[i],) for k, v in lanes.numbers.items()})),
            split,
            probe,
        )
        for i in (0, count - 1)
    ]
    differ = total = 0
    worst = loss = 0.0
    for i, single in zip((0, count - 1), alone, strict=True):
        mine = optree.tree_leaves(optree.tree_map(lambda t, i=i: t[i], together.train_state.params))
        its = optree.tree_leaves(optree.tree_map(lambda t: t[0], single.train_state.params))
        for a, b in zip(mine, its, strict=True):
            differ += int((a != b).sum())
            total += a.numel()
            worst = max(worst, difference(a, b))
        loss = max(loss, abs(together.train.loss_sum[i] / single.train.loss_sum[0] - 1).item())
    rows.append((how, f"{differ} of {total}", f"{worst:.1e}", f"{loss:.1e}"))
    header = ("convolution", "parameters that differ", "largest difference", "of the loss")
    part.table(f"Lanes against solo runs after {steps} steps", header, rows)
    if how == "blocks":
        assert differ == 0, f"{differ} of {total} parameters differ, none may"
    assert loss <= 0.02, f"the losses differ by {loss:.1%}, at most 2 % is rounding"
    return f"{differ} of {total} parameters differ, by at most {worst:.0e}; losses by {loss:.0e}"


def images(part: Part) -> Split:
    """Return the examples of an epoch. Its last step is smaller and has a separate graph."""
    _, batch, steps = sizes(part)
    return part.images(batch * steps + batch // 2)


def train(part: Part, model: fmnist.Model | None = None) -> Any:
    """Return the state of the lanes after one epoch."""
    count, batch, _ = sizes(part)
    split = images(part)
    return epochs_of(group(count, batch, model), split, split).train_state


def same(ours: Any, theirs: Any) -> None:
    """Check that two trees are equal in every bit. The error has their difference."""
    pairs = list(zip(optree.tree_leaves(ours), optree.tree_leaves(theirs), strict=True))
    differ = sum(int((a != b).sum()) for a, b in pairs)
    worst = max(difference(a, b) for a, b in pairs)
    total = sum(a.numel() for a, _ in pairs)
    assert differ == 0, f"{differ} of {total} numbers differ, by at most {worst:.1e}"


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the largest difference relative to the largest number."""
    size = b.double().abs().max().item() or 1.0
    return ((a.double() - b.double()).abs().max() / size).item()
