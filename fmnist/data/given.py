"""Checks data that is given in Python, and tells one data set from another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmnist.data.fashion_mnist import CLASS_NAMES, Dataset
from fmnist.data.sources import DataError
from fmnist.functional.types import Split

Identity = Mapping[str, Any]
"""What tells a data set from others, as JSON can hold it."""

FASHION_MNIST: Identity = {
    "training images": 60_000,
    "test images": 10_000,
    "classes": list(CLASS_NAMES),
    "sha256": "ece172613115fb18b120bec8f6c02271af90b8b8f0a5af5c51cbd5ceed68e619",
}
"""The identity of Fashion-MNIST, which is verified when it is read and needs no digest."""

_SIZE = (1, 28, 28)  # of an image; the built-in network and factories are made for it


def checked(dataset: Dataset, holdout: int) -> Dataset:
    """Check a data set, and convert what has one meaning only.

    Args:
        dataset: images uint8 ``[n, 1, 28, 28]`` and labels int64 ``[n]``. Arrays of other
            libraries, other integers and images ``[n, 28, 28]`` or ``[n, 28, 28, 1]`` are
            converted.
        holdout: how many training images a study holds out.

    Returns:
        The data set on the CPU. Tensors that are as they should be are not copied.

    Raises:
        DataError: Images, labels or class names cannot be used, or no training image is left.
    """
    if not isinstance(dataset, Dataset):
        raise DataError(
            f"dataset must be a fmnist.data.fashion_mnist.Dataset, not {_kind(dataset)}"
        )
    classes = dataset.classes
    names = list(classes) if isinstance(classes, list | tuple) else []
    if not all(isinstance(name, str) and name.strip() and name.isprintable() for name in names):
        names = []
    if len(set(names)) != len(CLASS_NAMES) or len(names) != len(CLASS_NAMES):
        raise DataError(f"dataset.classes must be {len(CLASS_NAMES)} names, each there once")
    train = _split(dataset.train, "dataset.train")
    test = _split(dataset.test, "dataset.test")
    if (count := len(train.labels)) <= holdout:
        reason = f"has {count} images, of which holdout = {holdout} leaves none to train on"
        raise DataError(f"dataset.train {reason}; set a smaller holdout")
    return Dataset(train, test, str(dataset.source), tuple(names))


def identity(dataset: Dataset) -> Identity:
    """Return the identity of a data set that :func:`checked` returned."""
    digest = hashlib.sha256()
    for tensor in (*dataset.train, *dataset.test):
        digest.update(tensor.numpy().data)
    return {
        "training images": len(dataset.train.labels),
        "test images": len(dataset.test.labels),
        "classes": list(dataset.classes),
        "sha256": digest.hexdigest(),
    }


def differences(there: Identity, here: Identity) -> list[str]:
    """Return lines such as ``test images: 600 there, 10000 here``."""
    shown = [(key, there.get(key), here[key]) for key in here if there.get(key) != here[key]]
    if len(shown) > 1:  # other images have another digest, which says no more
        shown = [line for line in shown if line[0] != "sha256"]
    return [f"{key}: {str(a)[:200]} there, {str(b)[:200]} here" for key, a, b in shown]


def _split(split: Split, name: str) -> Split:
    if not (isinstance(split, list | tuple) and len(split) == 2):
        raise DataError(f"{name} must be images and labels, not {_kind(split)}")
    images, labels = _images(split[0], f"{name}.images"), _labels(split[1], f"{name}.labels")
    if len(images) != len(labels):
        raise DataError(f"{name} has {len(images)} images, but {len(labels)} labels")
    return Split(images, labels)


def images(value: object) -> Tensor:
    """Check images for a network, and convert what has one meaning only.

    Args:
        value: integers from 0 to 255 or floats from 0 to 1, light on dark, ``[n, 1, 28, 28]``,
            ``[n, 28, 28]`` or ``[n, 28, 28, 1]``: a tensor, an array, or what NumPy makes one of.

    Returns:
        ``[n, 1, 28, 28]`` on the CPU: uint8 for integers, float32 for floats.

    Raises:
        DataError: They have another type, shape or range.
    """
    allowed = "integers from 0 to 255 or floats from 0 to 1"
    pixels = _in_shape(_array(value, "images", allowed, "iuf"), "images")
    whole = pixels.dtype.kind in "iu"
    low, high = (pixels.min(), pixels.max()) if pixels.size else (0, 0)
    if not (low >= 0 and high <= (255 if whole else 1)):  # also for NaN
        raise DataError(f"images must be {allowed}; these ({_kind(value)}) go from {low} to {high}")
    if whole and high == 1:
        raise DataError("images are integers and have no pixel above 1; white is 255")
    return _tensor(pixels, np.uint8 if whole else np.float32)


def _images(value: object, name: str) -> Tensor:
    how = "for images in [0, 1] give (images * 255).round() as uint8"
    pixels = _array(value, name, f"pixels from 0 to 255 (uint8); {how}", "iu")
    pixels = _in_shape(pixels, name)
    if not len(pixels):
        raise DataError(f"{name} is empty")
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high > 255:
        raise DataError(f"{name} has pixels from {low} to {high}; they must be from 0 to 255")
    if high < 2:
        raise DataError(f"{name} has no pixel above {high}; they go from 0 to 255: {how}")
    return _tensor(pixels, np.uint8)


def _in_shape(pixels: NDArray[Any], name: str) -> NDArray[Any]:
    """Return images as ``[n, 1, 28, 28]``.

    Raises:
        DataError: They have a shape that is not that of images.
    """
    shape = list(pixels.shape)
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.ndim == 4 and pixels.shape[-1] == 1:
        pixels = np.moveaxis(pixels, -1, 1)
    if pixels.shape[1:] != _SIZE:
        raise DataError(f"{name} must be [n, 1, 28, 28] or [n, 28, 28], not {shape}")
    return pixels


def _labels(value: object, name: str) -> Tensor:
    labels = _array(value, name, "whole numbers (int64)", "iu")
    if labels.ndim != 1:
        raise DataError(f"{name} must be [n], not {list(labels.shape)}")
    most = len(CLASS_NAMES) - 1
    low, high = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
    if low < 0 or high > most:
        raise DataError(f"{name} go from {low} to {high}; they must be from 0 to {most}")
    return _tensor(labels, np.int64)


def _array(value: object, name: str, allowed: str, kinds: str) -> NDArray[Any]:
    """Return numbers as an array.

    Args:
        value: the numbers.
        name, allowed: what the error calls them, and what they may be.
        kinds: NumPy's letters of the types that they may have.

    Raises:
        DataError: They have another type, or are no array.
    """
    try:
        if isinstance(value, Tensor):
            tensor = value.detach().cpu().resolve_neg()
            # NumPy has no bfloat16.
            array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        else:
            array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:100]
        raise DataError(f"{name} must be {allowed}, not {_kind(value)} ({reason})") from error
    if array.dtype.kind not in kinds:
        raise DataError(f"{name} must be {allowed}, not {_kind(value)}")
    return array


def _tensor(array: NDArray[Any], dtype: type[np.generic]) -> Tensor:
    """Return the array as a contiguous tensor, without a copy where it is one."""
    return torch.from_numpy(np.require(array, dtype=dtype, requirements=("C", "W")))


def _kind(value: object) -> str:
    """Name the type of a value, and that of its elements."""
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    dtype = getattr(value, "dtype", None)
    return name if dtype is None else f"{name} of {dtype}"
