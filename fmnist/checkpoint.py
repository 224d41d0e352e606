"""Trees of tensors as safetensors files, written so that a file is whole or not there."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor

from fmnist.errors import UserError
from fmnist.functional.types import Params, State

Trees = Mapping[str, Mapping[str, Tensor]]


TEMPORARY = ".part"
MAX_HEADER = 1_000_000
"""Of a model's file; the names of a million empty tensors would take half a minute."""


class CheckpointError(UserError):
    """A parameter file that is missing, torn, or of something else; one line."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well.

    The bytes are on the disk before the name is, so a reader, or a machine that lost power,
    finds the old file or the new one. When the block raises, nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY)
    temporary = Path(name)
    os.close(descriptor)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what a killed process was about to put in place, in this folder and below."""
    for path in folder.rglob(f".*{TEMPORARY}"):
        path.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file, or leave the one that was there."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file, or leave the one that was there."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def model_path(out: Path, number: int) -> Path:
    """Where, in a run's folder, a trial's final parameters and running statistics lie."""
    return out / "parameters" / f"{number}.safetensors"


def save_model(path: Path, params: Params, state: State) -> None:
    """Write one model: parameters and running statistics, by the twin's state_dict names."""
    leaves = {
        f"{layer}.{leaf}": tensor.detach().cpu().contiguous()
        for tree in (params, state)
        for layer, leaves in tree.items()
        for leaf, tensor in leaves.items()
    }
    with replacing(path) as temporary:
        safetensors.torch.save_file(leaves, temporary)


def load_model(path: Path) -> tuple[Params, State]:
    """Read what :func:`save_model` wrote.

    Raises:
        CheckpointError: when it cannot be read as a model.
    """
    try:
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > MAX_HEADER:
            raise CheckpointError(f"{path}: cannot be read as parameters (its header is too long)")
        leaves = safetensors.torch.load_file(path)
    # ValueError: a NUL in the path.
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as parameters ({error})") from error
    params: Params = {}
    state: State = {}
    for name, tensor in leaves.items():
        layer, _, leaf = name.partition(".")
        tree = state if leaf.startswith("running_") else params
        tree.setdefault(layer, {})[leaf] = tensor
    return params, state


def _umask() -> int:
    # The only portable way to read it is to set it.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
