"""Schedules of the learning rate: its factor at a step, as a pure function of the step."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

SCHEDULES = ("constant", "linear", "cosine", "one-cycle")

START = 1 / 25
"""The factor that ``"one-cycle"`` begins with, as in torch.optim.lr_scheduler.OneCycleLR."""


def factor(
    schedule: str,
    step: Int[Tensor, ""],
    steps: int,
    warmup: Float[Tensor, ""],
    floor: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Return what the learning rate of a step is multiplied by. The peak is 1.

    Args:
        schedule: ``"constant"`` stays at 1. ``"linear"`` and ``"cosine"`` fall to ``floor`` along a
            line or half a cosine. Before these three, the factor rises along a line in the steps
            of the warm-up. ``"one-cycle"`` rises from :data:`START` and then falls, along half a
            cosine each.
        step: number of steps before this one.
        steps: number of steps of the whole training.
        warmup: the share of the steps in which the factor rises, from 0 to below 1.
        floor: the factor at the end, from 0 to 1.

    Returns:
        The factor, float64.

    Sources: torch.optim.lr_scheduler.LinearLR and CosineAnnealingLR (Loshchilov and Hutter, SGDR,
    2017, equation 5); OneCycleLR without its cycle of momenta (Smith and Topin, Super-Convergence,
    2018).
    """
    step, rising = step.double(), warmup.double() * steps
    if schedule == "one-cycle":
        peak = (rising - 1).clamp(min=0)
        up = (step / peak.clamp(min=1)).clamp(max=1)
        down = ((step - peak) / (steps - 1 - peak).clamp(min=1)).clamp(0, 1)
        return torch.where(step < peak, _cosine(START, 1.0, up), _cosine(1.0, floor, down))
    risen = torch.where(rising > 0, (step + 1) / rising.clamp(min=1), 1.0).clamp(max=1)
    fallen = ((step - rising) / (steps - rising).clamp(min=1)).clamp(0, 1)
    if schedule == "constant":
        return risen
    if schedule == "linear":
        return torch.where(step < rising, risen, 1 - (1 - floor) * fallen)
    return torch.where(step < rising, risen, _cosine(1.0, floor, fallen))


def _cosine(
    start: float, end: float | Float[Tensor, ""], progress: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Return a value from ``start`` to ``end`` along half a cosine."""
    return end + (start - end) * (1 + torch.cos(math.pi * progress)) / 2
