"""Lanes as channels: the layout in which operations on images are vmapped.

The images of many lanes are stored as ``[batch, lanes * channels, height, width]``, channels last
in memory. This is a vmap rule for every operation that treats channels independently. A
convolution of many lanes becomes one grouped convolution, or one wide convolution where the lanes
share their input. Nothing is transposed between operations.
"""

from __future__ import annotations

from torch import Tensor


def fold(x: Tensor, lane_dim: int | None, lanes: int, channel_dim: int) -> Tensor:
    """Merge the lanes of ``x`` into its channels; the lane is the slower index.

    Args:
        x: a tensor with or without an axis of lanes.
        lane_dim: position of the axis of lanes; None if all lanes share ``x``.
        lanes: number of lanes.
        channel_dim: position of the channel axis in ``x`` without the axis of lanes.

    Returns:
        ``x`` without the axis of lanes, with ``lanes * channels`` channels.
    """
    if lane_dim is None:
        x = x.unsqueeze(channel_dim)
        x = x.expand(*x.shape[:channel_dim], lanes, *x.shape[channel_dim + 1 :])
    else:
        x = x.movedim(lane_dim, channel_dim)
    return x.flatten(channel_dim, channel_dim + 1)


def unfold(x: Tensor, lanes: int, channel_dim: int) -> Tensor:
    """Split the channels of ``x`` into lanes and channels. This is the inverse of :func:`fold`.

    Args:
        x: a tensor with ``lanes * channels`` entries along ``channel_dim``.
        lanes: number of lanes.
        channel_dim: position of the channel axis.

    Returns:
        ``x`` with the axis of lanes at ``channel_dim`` and the channels after it.
    """
    return x.unflatten(channel_dim, (lanes, -1))
