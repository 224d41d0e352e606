"""Loads Fashion-MNIST as tensors and verifies its content.

:func:`load` uses the folder that the user names. Without one it tries the user's cache, Debian's
package, the official mirror and Debian's archive, in this order. From any source, the decompressed
files must have the SHA-256 sums below. They are then cached.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import logging
import math
import os
import shutil
import struct
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from fmnist.data import sources
from fmnist.data.sources import AbsentError
from fmnist.data.sources import DataError as DataError
from fmnist.functional.types import Split as Split
from fmnist.utils import runtime

CLASS_NAMES: tuple[str, ...] = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
"""The name of each label."""

_HOLDOUT_SEED = 20170825  # every trial of every study holds out the same images
_MAX_MEMBERS = 10_000  # members of a .gz file; most files have one

_log = logging.getLogger("fmnist")


class _File(NamedTuple):
    name: str
    shape: tuple[int, ...]
    sha256: str

    @property
    def size(self) -> int:
        """Bytes of the IDX file: 4, 4 more for each dimension, and one for each element."""
        return 4 + 4 * len(self.shape) + math.prod(self.shape)


_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
_SHAPES = ((60_000, 28, 28), (60_000,), (10_000, 28, 28), (10_000,))
_FILES = tuple(map(_File, _SHA256, _SHAPES, _SHA256.values()))


class Dataset(NamedTuple):
    """A data set of 28x28 images in ten classes.

    Attributes:
        train, test: the two splits.
        source: where they are from, as the reports show it.
        classes: the name of each label.
    """

    train: Split
    test: Split
    source: str = "given in Python"
    classes: tuple[str, ...] = CLASS_NAMES

    def holdout(self, images: int = 5000) -> tuple[Split, Split]:
        """Training and validation images: see :func:`holdout_split`."""
        return holdout_split(self.train, images)


def load(root: str | Path | None = None) -> Dataset:
    """Load Fashion-MNIST from the first source that works, and cache it.

    Args:
        root: a folder with the four IDX files, plain or .gz, or the root of torchvision's
            ``FashionMNIST``; by default ``$FMNIST_DATA``. When either is given, no other source is
            tried.

    Returns:
        60,000 training and 10,000 test examples on the CPU: images uint8 ``[n, 1, 28, 28]``,
        labels int64 ``[n]``.

    Raises:
        DataError: No source works, or the named folder lacks a file or has a damaged one.
    """
    folder = root if root is not None else os.environ.get("FMNIST_DATA") or None
    reasons = []
    for name, source in sources.in_order(folder):
        _log.info("data: trying %s", name)
        try:
            with source() as opened:
                contents = {file.name: _read(opened, file) for file in _FILES}
            dataset = _to_tensors(contents, name)
            _write_cache(contents)
            _log.info("data: using %s", name)
            return dataset
        except (DataError, OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())  # on one line
            if folder is not None:
                advice = "correct that, or leave out --data and FMNIST_DATA to have it fetched"
                raise DataError(f"{reason}; {advice}") from error
            reasons.append(f"  {name}: {reason}")
            level = logging.INFO if isinstance(error, AbsentError) else logging.WARNING
            _log.log(level, "data: %s: %s; trying the next source", name, reason)
    first = "Fashion-MNIST could not be had from any source:"
    last = "Put the four IDX files into a folder and name it with --data or FMNIST_DATA."
    raise sources.NowhereError(first, *reasons, last)


def holdout_split(train: Split, holdout: int) -> tuple[Split, Split]:
    """Split validation images from the training set: the same in every call, stratified by class.

    The number of each class is its exact share of ``holdout``, rounded down or up so that the
    total is right (largest remainders first). Both parts keep the order of ``train``.

    Args:
        train: the training set.
        holdout: how many images to hold out.

    Returns:
        The part to train on, and the validation part, which is empty when ``holdout`` is 0.

    Raises:
        ValueError: ``holdout`` is negative, or no training image would be left.
    """
    total = len(train.labels)
    if not 0 <= holdout < total:
        raise ValueError(f"holdout must be from 0 to {total - 1}, not {holdout}")
    labels = train.labels.cpu()
    counts = torch.bincount(labels, minlength=len(CLASS_NAMES))
    quota = counts * holdout // total
    remainder = counts * holdout % total
    quota[remainder.argsort(descending=True, stable=True)[: holdout - int(quota.sum())]] += 1

    order = torch.randperm(total, generator=torch.Generator().manual_seed(_HOLDOUT_SEED))
    shuffled = labels[order]
    held = torch.zeros(total, dtype=torch.bool)
    for label, count in enumerate(quota.tolist()):
        held[order[shuffled == label][:count]] = True
    held = held.to(train.labels.device)
    training, validation = (Split(train.images[mask], train.labels[mask]) for mask in (~held, held))
    return training, validation


def _read(folder: Path, file: _File) -> bytes:
    """Read a file of the folder or of torchvision's folder in it, plain or .gz, and decompress it.

    Raises:
        AbsentError: The folder has no such file.
        DataError: The file is damaged, or holds other data.
    """
    candidates = [folder / file.name, folder / f"{file.name}.gz", *_named_otherwise(folder, file)]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        for other in candidates:
            # Another process may have written it just now.
            if other.exists() and not other.is_file():
                raise DataError(f"{other} is not a regular file")
        lack = f"has neither {file.name} nor {file.name}.gz" if folder.is_dir() else "is no folder"
        raise AbsentError(f"{folder} {lack}")
    limit = max(known.size for known in _FILES)  # bytes to decompress, at most
    packed = path.suffix.lower() == ".gz"
    with path.open("rb") as stream:  # gzip can make a file larger by a little
        content = stream.read(limit + packed * (limit // 100 + 1000) + 1)
    try:
        if packed:
            # Even an empty member takes microseconds to read, and a file can hold millions.
            if content.count(b"\x1f\x8b\x08") > _MAX_MEMBERS:
                raise DataError(f"{path} is damaged: it has more than {_MAX_MEMBERS:,} parts")
            with gzip.open(io.BytesIO(content)) as unpacked:
                content = unpacked.read(limit + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is truncated or damaged: {error}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest == file.sha256:
        return content
    for known in _FILES:
        if digest == known.sha256:
            raise DataError(f"{path} holds {known.name}: the files are swapped")
    if len(content) != file.size:
        wrong = "truncated" if len(content) < file.size else "too long"
        raise DataError(f"{path} is {wrong}: it should have {file.size:,} bytes of data")
    sums = f"SHA-256 {digest[:12]}..., not {file.sha256[:12]}..."
    raise DataError(f"{path} is damaged or of another data set: {sums}")


def _named_otherwise(folder: Path, file: _File) -> Iterator[Path]:
    """Yield the paths of a file in other spellings, such as ``TRAIN-IMAGES.IDX3-UBYTE.GZ``."""
    for place in (folder, folder / "raw", folder / "FashionMNIST" / "raw"):
        with contextlib.suppress(OSError, ValueError):  # ValueError: a NUL in the path
            for path in sorted(place.iterdir()):
                name = path.name.lower().removesuffix(".gz").replace(".idx", "-idx")
                if name == file.name:
                    yield path


def _write_cache(contents: dict[str, bytes]) -> None:
    """Write missing files to the cache. A failure is only a warning in the log."""
    try:
        cache = runtime.cache_folder()
        cache.mkdir(parents=True, exist_ok=True)
        for folder in cache.glob(".new-*"):  # of a running process, or of one that was killed
            with contextlib.suppress(FileNotFoundError):  # its process may just have removed it
                if time.time() - folder.stat().st_mtime > 3600:
                    shutil.rmtree(folder)
        for name, content in contents.items():
            path = cache / name
            if not path.is_file() or path.read_bytes() != content:
                _write(path, content)
    except (OSError, RuntimeError) as error:  # RuntimeError: Path.home() finds no home folder
        _log.warning("data: not cached: %s", error)


def _write(path: Path, content: bytes) -> None:
    """Write a file atomically: it is whole, or it does not exist."""
    with tempfile.TemporaryDirectory(prefix=".new-", dir=path.parent) as new:
        temporary = Path(new) / path.name
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)


def _to_tensors(contents: dict[str, bytes], source: str) -> Dataset:
    """Convert the files to tensors, and check shapes and labels.

    Only the header needs parsing, as the sums have verified the content. Importing torchvision
    for this would take two seconds.

    Raises:
        DataError: A file has another shape or length, or a label above 9.
    """
    tensors = []
    for file in _FILES:
        content, header = contents[file.name], 4 + 4 * len(file.shape)
        begin = content[:header].ljust(header, b"\0")
        kind, *shape = struct.unpack(f">{1 + len(file.shape)}I", begin)
        if (kind, *shape) != (0x800 + len(file.shape), *file.shape):  # 8: bytes
            raise DataError(f"{file.name} has the shape {tuple(shape)}, not {file.shape}")
        if len(content) != file.size:
            raise DataError(f"{file.name} has {len(content):,} bytes, not {file.size:,}")
        flat = torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header)
        tensor = flat.view(file.shape)
        if len(file.shape) == 1 and int(tensor.max()) >= len(CLASS_NAMES):
            raise DataError(f"{file.name} has a label {int(tensor.max())}; they go from 0 to 9")
        tensors.append(tensor)
    images, labels, test_images, test_labels = tensors
    train = Split(images[:, None], labels.long())
    return Dataset(train, Split(test_images[:, None], test_labels.long()), source)
