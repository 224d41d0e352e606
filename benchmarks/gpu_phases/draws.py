"""Random tensors that are the same on every device."""

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
