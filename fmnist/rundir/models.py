"""Parameters and running statistics of models, as safetensors files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor

from fmnist.functional.types import Params, State
from fmnist.rundir.files import write_bytes
from fmnist.utils.errors import UserError

Trees = Mapping[str, Mapping[str, Tensor]]


MAX_HEADER = 1_000_000
"""Bytes of a file's header, at most. Parsing a header of a million names takes half a minute."""


class CheckpointError(UserError):
    """A parameter file cannot be read as a model."""


def model_path(out: Path, number: int) -> Path:
    """The file of a trial's final parameters and running statistics in the run's folder."""
    return out / "parameters" / f"{number}.safetensors"


def best_path(out: Path) -> Path:
    """The file of the winner's parameters and running statistics, a copy, in the run's folder."""
    return out / "best" / "params.safetensors"


def save_model(path: Path, params: Params, state: State) -> str:
    """Write one model, under the names of the reference model's ``state_dict``.

    Args:
        path: the file to write.
        params: the parameters.
        state: the running statistics.

    Returns:
        The SHA-256 of the file.
    """
    leaves = {
        f"{layer}.{leaf}": tensor.detach().cpu().contiguous()
        for tree in (params, state)
        for layer, leaves in tree.items()
        for leaf, tensor in leaves.items()
    }
    content = safetensors.torch.save(leaves)
    write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def load_model(path: Path) -> tuple[Params, State]:
    """Read a file that :func:`save_model` wrote.

    Returns:
        The parameters and the running statistics, on the CPU.

    Raises:
        CheckpointError: The file is missing or damaged, or is no safetensors file.
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
