"""Which examples make a minibatch: a function of (seed, epoch, batch size) and of nothing else.

Random numbers come from generators made on the spot and keyed by what they are for, so the
order of trials, a resume or a neighbour in the next lane cannot change them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fmnist.functional.types import Batch, Split

_ORDER, _NOISE = 0, 1


def _generator(*key: int) -> torch.Generator:
    """A generator for this key. SeedSequence mixes all of it: torch reads only 32 bits."""
    mixed = np.random.SeedSequence(key).generate_state(1)[0]
    return torch.Generator().manual_seed(int(mixed))


def permutation(seed: int, epoch: int, examples: int) -> Int[Tensor, " examples"]:
    """The order of the examples in an epoch: each index once."""
    return torch.randperm(examples, generator=_generator(_ORDER, seed, epoch))


def steps(examples: int, batch_size: int) -> int:
    """How many minibatches an epoch has; the last may be smaller."""
    return -(-examples // batch_size)


def uniform_noise(
    seed: int, epoch: int, examples: int, widths: Sequence[int]
) -> tuple[Float[Tensor, "examples width"], ...]:
    """Uniform numbers in [0, 1) for every example of an epoch, in training order.

    Args:
        seed, epoch: what they are keyed by.
        examples: of the epoch.
        widths: numbers an example, for each random layer.
    """
    generator = _generator(_NOISE, seed, epoch)
    return tuple(torch.rand(examples, width, generator=generator) for width in widths)


def gather(
    split: Split, indices: Int[Tensor, "*lanes batch"], dtype: torch.dtype = torch.float32
) -> Batch:
    """The examples at ``indices``, pixels scaled from 0-255 to [0, 1]."""
    return Batch(split.images[indices].to(dtype) / 255, split.labels[indices])
