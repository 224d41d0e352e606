"""Tells how many lanes fit in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fmnist.config.results import label
from fmnist.config.trial import TrialConfig
from fmnist.engine import footprint
from fmnist.tuning import grid
from fmnist.tuning.progress import lanes_of, program_of, user_errors
from fmnist.utils import memory
from fmnist.utils.errors import UserError

MOST_LANES = 128
"""Maximum number of lanes of a group. A kill loses the unsaved work of all of them."""

TOO_HIGH = 0.7
"""Memory that a trial takes over its estimate, at least."""


def lanes_that_fit(
    configs: Sequence[TrialConfig], device: torch.device, examples: int, shape: tuple[int, ...]
) -> int:
    """Return how many of these configurations fit in half of the memory that is free now.

    Args:
        configs: configurations with equal static settings, at least one.
        device: the device of the training.
        examples: number of training examples.
        shape: shape of an example.

    Returns:
        A number from 1 to :data:`MOST_LANES`.
    """
    # Half, because the estimate is rough. If memory still runs out, the lanes are halved.
    count = min(len(configs), MOST_LANES)
    budget, needed = free_memory(device) // 2, lanes_bytes(configs[:count], examples, shape)
    if needed > budget:
        memory.release()  # what earlier groups took
        budget = free_memory(device) // 2
    while count > 1 and needed > budget:
        count = max(1, min(count - 1, count * budget // needed))
        needed = lanes_bytes(configs[:count], examples, shape)
    return count


def refuse_too_large(trial: grid.Trial, examples: int, shape: tuple[int, ...]) -> None:
    """Raise an error for a trial for which the system would kill this process.

    Raises:
        UserError: The trial needs more memory than there is, even if the estimate is too high.
    """
    needed, free = lanes_bytes([trial.config], examples, shape), memory.available()
    if needed * TOO_HIGH > free:
        memory.release()  # what earlier groups took
        free = memory.available()
    if needed * TOO_HIGH > free:
        name = label(trial.point)
        raise UserError(
            f"there is not enough memory to train {name} even alone: it takes about "
            f"{needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free"
        )


def free_memory(device: torch.device) -> int:
    """Return the bytes that this process can still allocate on the device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else memory.available()


def lanes_bytes(configs: Sequence[TrialConfig], examples: int, shape: tuple[int, ...]) -> int:
    """Estimate the memory in bytes of these configurations as lanes."""
    with user_errors(configs[0]):
        return footprint.lanes_bytes(program_of(configs[0]), lanes_of(configs), examples, shape)
