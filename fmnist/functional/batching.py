"""Which examples make a minibatch: a function of (seed, epoch, batch size) and of nothing else.

Random numbers come from generators made on the spot and keyed by what they are for, so the
order of trials, a resume or a neighbour in the next lane cannot change them.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fmnist.functional.types import Batch, ModelConfig, Split

_ORDER, _DROPOUT = 0, 1


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


def dropout_noise(
    seed: int, epoch: int, examples: int, config: ModelConfig
) -> tuple[Float[Tensor, "examples width"], ...]:
    """Uniform numbers for every hidden layer and every example of an epoch, in training order.

    None where there is no dropout.
    """
    if config.dropout == 0:
        return ()
    generator = _generator(_DROPOUT, seed, epoch)
    return tuple(torch.rand(examples, width, generator=generator) for width in config.hidden)


def gather(
    split: Split, indices: Int[Tensor, "*lanes batch"], dtype: torch.dtype = torch.float32
) -> Batch:
    """The examples at ``indices``, pixels scaled from 0-255 to [0, 1]."""
    return Batch(split.images[indices].to(dtype) / 255, split.labels[indices])
