"""What several test modules build from: small splits, numbers and hypothesis strategies."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import optree
import torch
from hypothesis import strategies as st

from fmnist.config.study import StudyConfig
from fmnist.data.fashion_mnist import Dataset
from fmnist.engine import step, trainer
from fmnist.engine.lanes import Lanes, optimizer_numbers
from fmnist.functional import cnn
from fmnist.functional.train import Optimizer
from fmnist.functional.types import ModelConfig, Numbers, Split
from fmnist.tuning.progress import OPTIMIZERS

NUMBERS = {
    "learning_rate": 0.01,
    "beta1": 0.9,
    "beta2": 0.999,
    "eps": 1e-8,
    "weight_decay": 0.0,
    "momentum": 0.0,
}
"""PyTorch's defaults, but for the learning rate."""

SMALL = ModelConfig(channels=(3, 4), hidden=(7,))
"""A network that is quick in float64."""


def optimizer_of(algorithm: str, *, nesterov: bool = False) -> Optimizer:
    return OPTIMIZERS[algorithm + " with nesterov" * nesterov]


def hyperparams(algorithm: str, **numbers: float) -> Numbers:
    """One lane's numbers that this algorithm reads; those not given are :data:`NUMBERS`."""
    merged = NUMBERS | numbers
    known = optimizer_numbers(OPTIMIZERS[algorithm])
    return {name: torch.tensor(merged[name], dtype=torch.float64) for name in known}


class Group(NamedTuple):
    """A program and its lanes."""

    program: step.Program
    lanes: Lanes


def make_group(
    config: ModelConfig,
    algorithm: str,
    nesterov: bool,
    batch_size: int,
    lanes: Sequence[tuple[int, dict[str, float]]],
    convolution: str = "auto",
) -> Group:
    """The built-in network of this configuration, and lanes of seeds and numbers."""
    optimizer = optimizer_of(algorithm, nesterov=nesterov)
    program = step.Program(cnn.build(config, convolution), optimizer, batch_size)
    known = optimizer_numbers(optimizer)
    numbers = {name: tuple(own[name] for _, own in lanes) for name in known}
    return Group(program, Lanes(tuple(seed for seed, _ in lanes), numbers))


def run_group(
    group: Group,
    training: Split,
    validation: Split,
    *,
    epochs: int,
    resume: trainer.TrainerState | None = None,
    dtype: torch.dtype = torch.float32,
) -> Iterator[trainer.EpochResult]:
    """The epochs of a group."""
    program = dataclasses.replace(group.program, dtype=dtype)
    events = trainer.train_lanes(
        program, group.lanes, training, validation, epochs=epochs, resume=resume
    )
    return (event for event in events if isinstance(event, trainer.EpochResult))


def random_split(examples: int, seed: int = 0) -> Split:
    """Noise with labels; learnable only by heart."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (examples, 1, 28, 28), generator=generator, dtype=torch.uint8)
    return Split(images, torch.randint(0, 10, (examples,), generator=generator))


def tiny_study(name: str, *, epochs: int = 1, holdout: int = 0, seeds: int = 2) -> StudyConfig:
    """A study of two narrow blocks that trains in a second on :func:`tiny_data`."""
    model = ModelConfig(channels=(2, 2), hidden=(4,))
    grid = {"seed": tuple(range(seeds))}
    return StudyConfig(name=name, epochs=epochs, holdout=holdout, model=model, grid=grid)


def tiny_data(seed: int = 0) -> Dataset:
    """Noise: 60 images for training and 30 for testing."""
    return Dataset(random_split(60, seed), random_split(30, 1), "noise")


def normal(*shape: int, seed: int = 0, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    """Draws from a normal distribution of this deviation and mean."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale + shift


learning_rates = st.floats(1e-5, 0.1)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def optimizers(draw: st.DrawFn) -> tuple[str, dict[str, float], bool]:
    """An algorithm, the numbers it reads, and whether it is Nesterov's."""
    algorithm = draw(st.sampled_from(["adam", "adamw", "sgd"]))
    numbers = NUMBERS | {
        "learning_rate": draw(learning_rates),
        "weight_decay": draw(st.sampled_from([0.0, 0.01, 0.1])),
    }
    if algorithm == "sgd":
        numbers["momentum"] = draw(st.sampled_from([0.0, 0.5, 0.9]))
        return algorithm, numbers, numbers["momentum"] > 0 and draw(st.booleans())
    numbers["beta1"] = draw(st.sampled_from([0.0, 0.9, 0.95]))
    numbers["beta2"] = draw(st.sampled_from([0.9, 0.999]))
    return algorithm, numbers, False


@st.composite
def layouts(draw: st.DrawFn) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that returns an equal tensor with other strides and another offset."""
    seed, step, offset = draw(seeds), draw(st.integers(1, 3)), draw(st.integers(0, 2))

    def other(x: torch.Tensor) -> torch.Tensor:
        if not x.dim():
            return x
        order = torch.randperm(x.dim(), generator=torch.Generator().manual_seed(seed)).tolist()
        shape = [x.shape[i] for i in order]
        large = torch.full((*shape[:-1], shape[-1] * step + offset), 99, dtype=x.dtype)
        view = large[..., offset::step].permute([order.index(i) for i in range(x.dim())])
        view.copy_(x)
        return view

    return other


def assert_close(actual: object, expected: object, rtol: float = 1e-9) -> None:
    """Two trees are equal to ``rtol``, but for what batch norm makes undetermined.

    A bias before batch norm has no gradient in exact arithmetic; what is left is rounding, and
    Adam divides it by its own size. So that bias wanders by about learning_rate * 1e-17 / eps a
    step, and the running mean with it; everything else must be equal.
    """

    def compare(path: tuple[object, ...], a: torch.Tensor, b: torch.Tensor) -> None:
        wanders = "running_mean" in path or (
            str(path[-2:-1]).startswith("('conv") and path[-1] == "bias"
        )
        atol = 1e-6 if wanders else rtol * 1e-2
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol, msg=lambda m: f"{path}: {m}")

    optree.tree_map_with_path(compare, actual, expected)
