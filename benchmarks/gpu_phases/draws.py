"""Random tensors that are the same on every device, and tensors of other layouts."""

from __future__ import annotations

import torch


def normal(*shape, seed=0, scale=1.0, shift=0.0):
    """Return normal random numbers on the default device, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(shape, generator=generator, device="cpu") * scale + shift
    return drawn.to(torch.get_default_device())


def numbers(*shape, seed=0):
    """Return weights of both signs and zeros, and biases."""
    weight = normal(*shape, seed=seed + 1)
    weight[..., ::3] = 0.0
    return weight, normal(*shape, seed=seed + 2)


def permuted(x):
    """Return an equal tensor whose axes are in memory in the reverse order."""
    order = tuple(reversed(range(x.dim())))
    return x.permute(order).contiguous().permute(order)


def sliced(x):
    """Return an equal tensor that is every second number of another one."""
    return torch.stack([x, torch.full_like(x, 99)], -1)[..., 0]
