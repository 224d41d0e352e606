"""Models as safetensors files."""

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
"""Of a model's file; the names of a million empty tensors would take half a minute."""


class CheckpointError(UserError):
    """A parameter file that is missing, torn, or of something else; one line."""


def model_path(out: Path, number: int) -> Path:
    """Where, in a run's folder, a trial's final parameters and running statistics lie."""
    return out / "parameters" / f"{number}.safetensors"


def best_path(out: Path) -> Path:
    """Where the winner's are once more."""
    return out / "best" / "params.safetensors"


def save_model(path: Path, params: Params, state: State) -> str:
    """Write one model: parameters and running statistics, by the twin's state_dict names.

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
