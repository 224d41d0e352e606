"""Lanes as channels: how an operation on one image batch becomes one on many lanes'.

Images of many lanes are kept as ``[batch, lanes * channels, height, width]``, channels last in
memory. An operation that treats each channel by itself needs no other vmap rule than this, and
a convolution of many lanes is one grouped convolution, or, where the lanes share their input,
one wide one. Nothing is transposed between operations.
"""

from __future__ import annotations

from torch import Tensor


def fold(x: Tensor, lane_dim: int | None, lanes: int, channel_dim: int) -> Tensor:
    """Merge the lanes of ``x`` into its channels, lane by lane.

    Args:
        x: a tensor with a lane axis, or without one.
        lane_dim: where the lane axis is; None repeats the same ``x`` for each lane.
        lanes: how many there are.
        channel_dim: where the channel axis is, lanes not counted.

    Returns:
        ``x`` without its lane axis and ``lanes`` times the channels.
    """
    if lane_dim is None:
        x = x.unsqueeze(channel_dim)
        x = x.expand(*x.shape[:channel_dim], lanes, *x.shape[channel_dim + 1 :])
    else:
        x = x.movedim(lane_dim, channel_dim)
    return x.flatten(channel_dim, channel_dim + 1)


def unfold(x: Tensor, lanes: int, channel_dim: int) -> Tensor:
    """Undo :func:`fold`; the lane axis of the result is at ``channel_dim``."""
    return x.unflatten(channel_dim, (lanes, -1))
