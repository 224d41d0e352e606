"""The step that training repeats, and its inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import optree
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fmnist.engine.lanes import Lanes
from fmnist.functional import batching, train, vmap
from fmnist.functional.recipe import PLAIN, Recipe
from fmnist.functional.types import Metrics, Model, Numbers, Split, TrainState


@dataclass(frozen=True)
class Program:
    """The settings that all lanes share.

    Attributes:
        model: the model.
        optimizer: a function from numbers, given by name, to a gradient transformation.
        batch_size: number of examples in a step; the last step of an epoch may have fewer.
        dtype: dtype of parameters and images.
        recipe: what a step does besides.
    """

    model: Model
    optimizer: train.Optimizer
    batch_size: int
    dtype: torch.dtype = torch.float32
    recipe: Recipe = PLAIN

    @property
    def noise_widths(self) -> tuple[int, ...]:
        """How many uniform numbers an example needs, for each random layer and change of images."""
        return *self.model.noise_widths, *self.recipe.changes.values()


class Carry(NamedTuple):
    """The values that a step passes to the next."""

    train_state: TrainState
    total: Metrics  # [lanes], of the epoch so far
    position: Int[Tensor, ""]  # examples of the epoch that are done


class StepInputs(NamedTuple):
    """The inputs of some steps of an epoch. The axis ``lanes`` is absent if lanes share a seed."""

    split: Split
    order: Int[Tensor, "*lanes examples"]
    numbers: Numbers
    noise: tuple[Float[Tensor, "*lanes some width"], ...]
    first: Int[Tensor, ""]  # the example of the epoch that the noise begins with


def step_function(
    program: Program, model: Model, shared: bool, size: int, recipe: Recipe
) -> Callable[[Carry, StepInputs], Carry]:
    """Return a step, which gathers the next examples of each lane and trains on them.

    Args:
        program: the settings that all lanes share.
        model: the model, or a variant of it.
        shared: whether all lanes use the same examples and noise.
        size: number of examples.
        recipe: the recipe of the program, with the length of the training and the longest move.
    """

    def step(carry: Carry, inputs: StepInputs) -> Carry:
        chosen = carry.position + torch.arange(size, device=carry.position.device)
        batch = batching.gather(inputs.split, inputs.order.index_select(-1, chosen), program.dtype)
        drawn = chosen - inputs.first
        batch = batch._replace(noise=tuple(n[..., drawn, :] for n in inputs.noise))
        train_state, metrics = vmap.train_step(
            carry.train_state,
            batch,
            inputs.numbers,
            shared=shared,
            model=model,
            optimizer=program.optimizer,
            recipe=recipe,
        )
        total = optree.tree_map(torch.add, carry.total, metrics)
        return Carry(train_state, total, carry.position + size)

    return step


def zero_metrics(lanes: int, device: torch.device) -> Metrics:
    """Return metrics ``[lanes]`` that are all zero."""
    zero = torch.zeros(lanes, dtype=torch.int64, device=device)
    return Metrics(zero.double(), zero, zero.clone())


def example_order(
    lanes: Lanes, epoch: int, examples: int, device: torch.device
) -> Int[Tensor, "*lanes examples"]:
    """Return the order of the examples of each lane in an epoch."""
    if lanes.shared:
        return batching.permutation(lanes.seeds[0], epoch, examples).to(device)
    order = torch.empty(len(lanes.seeds), examples, dtype=torch.int64)
    for row, seed in zip(order, lanes.seeds, strict=True):
        row.copy_(batching.permutation(seed, epoch, examples))
    return order.to(device)


class EpochNoise:
    """The noise of an epoch, drawn a stretch at a time: that of a whole epoch takes much memory.

    First comes the noise of the model, with the numbers of
    :func:`fmnist.functional.batching.uniform_noise`, then that of the changes of images. For
    alternating flip, the numbers belong to an example and move by a half from epoch to epoch.

    Args:
        program: the settings that all lanes share.
        lanes: the lanes.
        epoch: the epoch, counted from 1.
        order: the order of the examples, as :func:`example_order` returns it.
        position: number of examples whose noise is skipped.
    """

    def __init__(
        self,
        program: Program,
        lanes: Lanes,
        epoch: int,
        order: Int[Tensor, "*lanes examples"],
        position: int,
    ) -> None:
        seeds, examples = lanes.seeds[:1] if lanes.shared else lanes.seeds, order.shape[-1]
        self._axis = () if lanes.shared else (len(seeds),)
        self._widths, self._order, self._position = program.noise_widths, order, position
        self._generators = [
            (
                *batching.noise_generators(
                    seed, epoch, examples, program.model.noise_widths, position
                ),
                *(
                    batching.change_generator(name, seed, epoch, width, position)
                    for name, width in program.recipe.changes.items()
                ),
            )
            for seed in seeds
        ]
        self._alternating: Tensor | None = None
        if program.recipe.flip == "alternating":
            drawn = torch.stack([batching.flip_numbers(seed, examples, epoch) for seed in seeds])
            self._alternating = drawn.view(*self._axis, examples).to(order.device)
            self._flip = len(program.model.noise_widths)

    def draw(
        self, examples: int, length: int, device: torch.device, dtype: torch.dtype
    ) -> tuple[Float[Tensor, "*lanes length width"], ...]:
        """Draw the noise of the next examples.

        Args:
            examples: number of examples.
            length: length of the axis of examples; zeros follow the noise.
            device: the device of the result.
            dtype: the dtype of the result.
        """
        layers = []
        for layer, width in enumerate(self._widths):
            noise = torch.zeros(*self._axis, length, width, dtype=torch.float32)
            rows = noise.view(-1, length, width)
            for row, generators in zip(rows, self._generators, strict=True):
                torch.rand(examples, width, generator=generators[layer], out=row[:examples])
            layers.append(noise.to(device, dtype))
        if self._alternating is not None:
            chosen = self._order[..., self._position : self._position + examples]
            layers[self._flip][..., :examples, 0] = self._alternating.gather(-1, chosen).to(dtype)
        self._position += examples
        return tuple(layers)
