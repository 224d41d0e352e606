"""What a training step does besides the model and the optimizer. Every feature is off by default.

What changes the operations of a step is a field of :class:`Recipe`. What is only a number is one of
:data:`NUMBERS`, which lanes may have with different values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import optree
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fmnist.functional import augment, schedules
from fmnist.functional.types import Batch, Numbers, Params, State

FLIPS = ("none", "random", "alternating")

CHANGES = {"flip": 1, "shift": 2, "erasing": 5}
"""The random changes of images, and how many uniform numbers an example needs for each."""

NUMBERS = ("shift", "erasing", "label_smoothing", "clip_norm", "ema_decay", "warmup", "floor")
"""The numbers of a recipe by name; 0 turns each off.

``shift`` and ``erasing`` are those of :mod:`fmnist.functional.augment`, ``warmup`` and ``floor``
those of :func:`fmnist.functional.schedules.factor`, ``label_smoothing`` that of
:func:`fmnist.functional.losses.smooth`, ``clip_norm`` that of :func:`clip`, and ``ema_decay`` that
of :func:`advance`.
"""


ROW = 1024
"""How many numbers are summed at once for a norm."""


@dataclass(frozen=True)
class Recipe:
    """The features of a step.

    Attributes:
        flip: ``"none"``, ``"random"``, or ``"alternating"``: every example in every other epoch.
        schedule: one of :data:`fmnist.functional.schedules.SCHEDULES`.
        on: the numbers that are not zero in some lane, in the order of :data:`NUMBERS`.
        steps: number of steps of the whole training; the engine fills it in.
        reach: the largest shift of all lanes; the engine fills it in.
    """

    flip: str = "none"
    schedule: str = "constant"
    on: tuple[str, ...] = ()
    steps: int = 1
    reach: int = 0

    @property
    def changes(self) -> dict[str, int]:
        """The :data:`CHANGES` that are on."""
        wanted = ("flip", *self.on) if self.flip != "none" else self.on
        return {name: width for name, width in CHANGES.items() if name in wanted}

    @property
    def scheduled(self) -> bool:
        """Whether the learning rate depends on the step."""
        return self.schedule != "constant" or "warmup" in self.on


PLAIN = Recipe()
"""A step without any of the features."""


class Extras(NamedTuple):
    """What a training state has for a recipe.

    Attributes:
        step: number of steps so far, int64.
        average: ``(params, state)``, averaged over the steps; empty without ``ema_decay``.
    """

    step: Int[Tensor, ""]
    average: Any


def check(recipe: Recipe, numbers: Mapping[str, Sequence[float]]) -> None:
    """Check the words of a recipe and the numbers of all lanes.

    Args:
        recipe: the recipe.
        numbers: the values of each number that is on.

    Raises:
        ValueError: A word is unknown, a number is out of its range, or ``"one-cycle"`` has no
            warm-up.
    """
    words = (("flip", recipe.flip, FLIPS), ("schedule", recipe.schedule, schedules.SCHEDULES))
    for name, word, known in words:
        if word not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, not {word!r}")
    for name in recipe.on:
        for value in numbers[name]:
            largest = {"shift": math.inf, "clip_norm": math.inf}.get(name, 1.0)
            below = name in ("label_smoothing", "ema_decay", "warmup")
            if not 0 <= value <= largest or (below and value == 1):
                raise ValueError(f"{name} is out of range: {value}")
            if name == "shift" and value != int(value):
                raise ValueError(f"shift must be a whole number of pixels, not {value}")
    if recipe.schedule == "one-cycle" and not all(numbers.get("warmup", [0])):
        raise ValueError("one-cycle needs a warmup above 0, such as 0.3")


def start(recipe: Recipe, params: Params, state: State) -> Extras | tuple[()]:
    """Return what a training state has for a recipe before the first step; empty for most.

    Args:
        recipe: the features.
        params: the initial parameters.
        state: the initial state.
    """
    if not recipe.scheduled and "ema_decay" not in recipe.on:
        return ()
    device = optree.tree_leaves(params)[0].device
    step = torch.zeros((), dtype=torch.int64, device=device)
    averaged = "ema_decay" in recipe.on
    return Extras(step, optree.tree_map(torch.clone, (params, state)) if averaged else ())


def change_images(recipe: Recipe, batch: Batch, numbers: Numbers) -> Batch:
    """Change the images of a batch at random.

    Args:
        recipe: the features.
        batch: the examples; the last of its noise is for the changes of the images.
        numbers: the numbers of the recipe.

    Returns:
        The batch with changed images and the noise that is left.
    """
    if not recipe.changes:
        return batch
    images, count = batch.images, len(recipe.changes)
    for name, noise in zip(recipe.changes, batch.noise[-count:], strict=True):
        if name == "flip":
            images = augment.flip(images, noise)
        elif name == "shift":
            images = augment.shift(images, noise, numbers[name], recipe.reach)
        else:
            images = augment.erase(images, noise, numbers[name])
    return batch._replace(images=images, noise=batch.noise[:-count])


def rate_factor(
    recipe: Recipe, step: Int[Tensor, ""], numbers: Mapping[str, Tensor]
) -> Float[Tensor, ""]:
    """Return what the learning rate of a step is multiplied by.

    Args:
        recipe: the features.
        step: number of steps before this one.
        numbers: the numbers of the recipe.

    Returns:
        The factor, float64.
    """
    zero = torch.zeros((), dtype=torch.float64, device=step.device)
    own = {name: numbers.get(name, zero) for name in ("warmup", "floor")}
    return schedules.factor(recipe.schedule, step, recipe.steps, **own)


def clip(grads: Params, most: Float[Tensor, ""]) -> Params:
    """Scale the gradients so that the norm of all together is at most ``most``, if that is not 0.

    Source: Pascanu et al., On the difficulty of training recurrent neural networks (2013),
    algorithm 1, as torch.nn.utils.clip_grad_norm_.

    Args:
        grads: the gradients.
        most: the largest norm; 0 for any.

    Returns:
        The scaled gradients.
    """
    vector = torch.cat([leaf.reshape(-1) for leaf in optree.tree_leaves(grads)])
    # In rows, as torch sums a long vector in an order that depends on threads and lanes.
    rows = F.pad(vector, (0, -len(vector) % ROW)).view(-1, ROW)
    norm = rows.square().sum(1).sum().sqrt()
    scale = (most.to(norm.dtype) / (norm + 1e-6)).clamp(max=1)
    scale = torch.where(most > 0, scale, torch.ones_like(scale))
    return optree.tree_map(lambda leaf: leaf * scale, grads)


def advance(
    recipe: Recipe, extras: Extras, params: Params, state: State, numbers: Numbers
) -> Extras:
    """Return the extras after a step: one step more, and the new average.

    The average is ``ema_decay`` times itself plus ``1 - ema_decay`` times the new value, and after
    the first step the new value, as torch.optim.swa_utils.AveragedModel with
    get_ema_multi_avg_fn and ``use_buffers=True``.
    Source: Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging (1992), with
    exponential weights.

    Args:
        recipe: the features.
        extras: those before the step.
        params: the parameters after the step.
        state: the state after the step.
        numbers: the numbers of the recipe.
    """
    average = extras.average
    if "ema_decay" in recipe.on:
        decay = torch.where(extras.step > 0, numbers["ema_decay"], 0.0)

        def averaged(old: Tensor, new: Tensor) -> Tensor:
            return new + (old - new) * decay.to(new.dtype) if new.is_floating_point() else new

        average = optree.tree_map(averaged, average, (params, state))
    return Extras(extras.step + 1, average)
