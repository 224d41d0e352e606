"""Minibatches and noise, which depend on the seed, the epoch and the sizes only.

Each call makes a new generator, whose seed is derived from the purpose, the trial's seed and the
epoch. The order of trials, a resumed run and the other lanes therefore do not change the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fmnist.functional.types import Batch, Split

_ORDER, _NOISE = 0, 1
_CHANGES = {"flip": 2, "shift": 3, "erasing": 4}
_PIECE = 1 << 16


def _generator(*key: int) -> torch.Generator:
    """Return a generator seeded by ``key``.

    ``SeedSequence`` mixes the whole key into 32 bits, because torch uses no more of a seed.
    """
    mixed = np.random.SeedSequence(key).generate_state(1)[0]
    return torch.Generator("cpu").manual_seed(int(mixed))


def permutation(seed: int, epoch: int, examples: int) -> Int[Tensor, " examples"]:
    """Return the order of the examples in an epoch.

    Args:
        seed: the trial's seed.
        epoch: the epoch, counted from 1.
        examples: number of examples.

    Returns:
        int64 ``[examples]``, each index from 0 to ``examples - 1`` once, on the CPU.
    """
    generator = _generator(_ORDER, seed, epoch)
    return torch.randperm(examples, generator=generator, dtype=torch.int64, device="cpu")


def steps(examples: int, batch_size: int) -> int:
    """Return the number of minibatches in an epoch. The last one may be smaller."""
    return -(-examples // batch_size)


def uniform_noise(
    seed: int, epoch: int, examples: int, widths: Sequence[int]
) -> tuple[Float[Tensor, "examples width"], ...]:
    """Draw uniform numbers in [0, 1) for every example of an epoch, in training order.

    Args:
        seed: the trial's seed.
        epoch: the epoch, counted from 1.
        examples: number of examples in the epoch.
        widths: for each random layer, how many numbers an example needs.

    Returns:
        For each random layer, float32 ``[examples, width]`` on the CPU.
    """
    generator = _generator(_NOISE, seed, epoch)
    kind: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    return tuple(torch.rand(examples, width, generator=generator, **kind) for width in widths)


def noise_generators(
    seed: int, epoch: int, examples: int, widths: Sequence[int], position: int = 0
) -> tuple[torch.Generator, ...]:
    """Return a generator for each random layer, with which the noise can be drawn in stretches.

    Args:
        seed, epoch, examples, widths: as for :func:`uniform_noise`.
        position: number of examples whose noise is skipped.

    Returns:
        Generators; ``torch.rand(some, width, generator=...)`` with each are the next rows of that
        layer in the result of :func:`uniform_noise`.
    """
    generator = _generator(_NOISE, seed, epoch)
    of_layers = []
    for layer, width in enumerate(widths):
        own = generator.clone_state()
        _skip(own, position * width)
        of_layers.append(own)
        if layer + 1 < len(widths):
            _skip(generator, examples * width)
    return tuple(of_layers)


def change_generator(
    change: str, seed: int, epoch: int, width: int, position: int = 0
) -> torch.Generator:
    """Return a generator for a random change of the images, independent of all other noise.

    Args:
        change: ``"flip"``, ``"shift"`` or ``"erasing"``.
        seed: the trial's seed.
        epoch: the epoch, counted from 1.
        width: how many numbers an example needs.
        position: number of examples whose noise is skipped.
    """
    generator = _generator(_CHANGES[change], seed, epoch)
    _skip(generator, position * width)
    return generator


def flip_numbers(seed: int, examples: int, epoch: int) -> Float[Tensor, " examples"]:
    """Return the number of each example for alternating flip, in [0, 1).

    The numbers are uniform. Those of the next epoch differ by a half, so an example that is
    mirrored, as its number is below a half, is not mirrored in the next epoch.

    Args:
        seed: the trial's seed.
        examples: number of examples.
        epoch: the epoch, counted from 1.

    Returns:
        float32 ``[examples]`` on the CPU, in the order of the training set.
    """
    generator = _generator(_CHANGES["flip"], seed)
    first = torch.rand(examples, generator=generator, dtype=torch.float32, device="cpu")
    return torch.where(first < 0.5, first + 0.5, first - 0.5) if epoch % 2 else first


def _skip(generator: torch.Generator, numbers: int) -> None:
    """Draw numbers and forget them, as the generator cannot jump."""
    for start in range(0, numbers, _PIECE):
        torch.rand(
            min(_PIECE, numbers - start), generator=generator, dtype=torch.float32, device="cpu"
        )


def gather(
    split: Split, indices: Int[Tensor, "*lanes batch"], dtype: torch.dtype = torch.float32
) -> Batch:
    """Select the examples at ``indices`` and scale their pixels from 0-255 to [0, 1].

    Args:
        split: images uint8 ``[examples, 1, 28, 28]`` and their labels.
        indices: positions in the split, ``[batch]`` or ``[lanes, batch]``.
        dtype: dtype of the returned images.

    Returns:
        A batch without noise. Its leaves have the leading axes of ``indices``.
    """
    flat = indices.reshape(-1)  # index_select copies whole images, unlike an index
    images, labels = (part.index_select(0, flat) for part in (split.images, split.labels))
    if indices.dim() != 1:
        images, labels = (part.unflatten(0, indices.shape) for part in (images, labels))
    return Batch(images.to(dtype) / 255, labels)
