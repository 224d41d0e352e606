"""Parameters and running statistics of models, as safetensors files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optree
import safetensors.torch
import torch
from torch import Tensor
from torch.nn.functional import normalize

from fmnist.config.errors import clipped
from fmnist.config.factory import AnyModelConfig, build_model, look_widths
from fmnist.functional import cnn
from fmnist.functional.cnn import CLASS_COUNT
from fmnist.functional.outliers import PROTOTYPES, Familiar
from fmnist.functional.types import ModelConfig, Params, State
from fmnist.rundir.files import write_bytes
from fmnist.utils.errors import UserError

MAX_HEADER = 1_000_000
"""Bytes of a file's header, at most. Parsing a header of a million names takes half a minute."""

ABOUT = "fmnist"
"""The entry of a file's metadata that describes an ensemble."""

WIDE = 1000
"""Features of a look, from which on half precision would make a large file."""

MAX_CALIBRATION = 10_000
"""Images whose distances :func:`save_features` keeps, at most."""


class CheckpointError(UserError):
    """A parameter file cannot be read as a model."""


def model_path(out: Path, number: int) -> Path:
    """The file of a trial's parameters and running statistics in the run's folder."""
    return out / "parameters" / f"{number}.safetensors"


def best_path(out: Path) -> Path:
    """The file of the winner's parameters and running statistics, a copy, in the run's folder."""
    return out / "best" / "params.safetensors"


def features_path(out: Path) -> Path:
    """The file of what the winner knows, in the run's folder."""
    return out / "best" / "features.safetensors"


def save_model(path: Path, params: Params, state: State) -> str:
    """Write one model.

    Args:
        path: the file to write.
        params: the parameters. Each leaf is named by its path, as in ``conv1.weight``: those of the
            built-in network as in the reference model's ``state_dict``.
        state: the running statistics.

    Returns:
        The SHA-256 of the file.
    """
    names, leaves, _ = named_leaves((params, state), skip=1)
    tensors = {
        name: leaf.detach().cpu().contiguous() for name, leaf in zip(names, leaves, strict=True)
    }
    content = safetensors.torch.save(tensors)
    write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def load_model(
    path: Path, config: AnyModelConfig = ModelConfig(), prefix: str = ""
) -> tuple[Params, State]:
    """Read a file that :func:`save_model` wrote, or a member from one of :func:`save_ensemble`.

    Args:
        path: the file.
        config: the settings of its model.
        prefix: of the names of its tensors.

    Returns:
        The parameters and the running statistics, on the CPU.

    Raises:
        CheckpointError: The file is missing or damaged, is no safetensors file, or holds other
            tensors than such a model has.
    """
    tensors = {
        name.removeprefix(prefix): tensor
        for name, tensor in _read(path, "parameters").items()
        if name.startswith(prefix)
    }
    names, leaves, treespec = named_leaves(_like(config), skip=1)
    expected = {name: _shape(leaf) for name, leaf in zip(names, leaves, strict=True)}
    shapes = {name: _shape(tensor) for name, tensor in tensors.items()}
    wrong = sorted(name for name in shapes | expected if shapes.get(name) != expected.get(name))
    if wrong:
        first = wrong[0]
        difference = f"{shapes.get(first, 'missing')}, not {expected.get(first, 'to be there')}"
        others = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise CheckpointError(
            f"{path}: is not of the model that the run's settings describe: "
            f"{clipped(first, 200)} is {difference}{others}"
        )
    params, state = optree.tree_unflatten(treespec, [tensors[name] for name in names])
    return params, state


def prefix(member: int) -> str:
    """Return the prefix of the names of a member's tensors in the file of an ensemble."""
    return f"member{member}."


def save_ensemble(path: Path, about: str, members: Sequence[tuple[Params, State]]) -> None:
    """Write several models as one file.

    Args:
        path: the file to write.
        about: a description, which :func:`read_about` returns.
        members: the parameters and the running statistics of each.

    Raises:
        CheckpointError: They are so many that the file could not be read.
    """
    tensors = {}
    for place, tree in enumerate(members):
        names, leaves, _ = named_leaves(tree, skip=1)
        for name, leaf in zip(names, leaves, strict=True):
            tensors[prefix(place) + name] = leaf.detach().cpu().contiguous()
    content = safetensors.torch.save(tensors, metadata={ABOUT: about})
    if int.from_bytes(content[:8], "little") > MAX_HEADER:
        raise CheckpointError(f"{path}: {len(members)} members are too many for a file")
    write_bytes(path, content)


def read_about(path: Path) -> str:
    """Return the description in a file of :func:`save_ensemble`.

    Raises:
        CheckpointError: The file is missing or damaged, or has no description.
    """
    _check_header(path, "an ensemble")
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = (file.metadata() or {}).get(ABOUT)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as an ensemble ({error})") from error
    if about is None:
        raise CheckpointError(f"{path}: is no ensemble")
    return str(about)


def save_features(path: Path, known: Familiar) -> None:
    """Write what a model knows; its prototypes in half precision, wide ones as bytes."""
    tensors = {f"prototypes{i}": _small(look) for i, look in enumerate(known.prototypes)}
    content = safetensors.torch.save({**tensors, "distances": known.distances.contiguous()})
    write_bytes(path, content)


def _small(look: Tensor) -> Tensor:
    """Return directions with a rounding error that is small beside distances between images."""
    if look.shape[1] <= WIDE:
        return look.half()
    largest = look.abs().amax(dim=1, keepdim=True).clamp(min=1e-30)
    return (look / largest * 127).round().to(torch.int8)


def load_features(path: Path, config: AnyModelConfig = ModelConfig()) -> Familiar | None:
    """Read a file that :func:`save_features` wrote.

    Args:
        path: the file.
        config: the settings of its model.

    Returns:
        What the model knows; None if there is no such file, as in runs of earlier versions.

    Raises:
        CheckpointError: The file is damaged, or is not of such a model.
    """
    if not path.exists():
        return None
    widths, prototypes = look_widths(config), PROTOTYPES * CLASS_COUNT
    values = sum(widths) * prototypes + len(widths) * MAX_CALIBRATION
    if path.stat().st_size > 4 * values + MAX_HEADER:
        raise CheckpointError(f"{path}: is too large for the features of its model")
    tensors = _read(path, "features")
    names = [f"prototypes{i}" for i in range(len(widths))]
    distances = tensors.pop("distances", torch.zeros(()))
    count = distances.shape[-1:].numel()
    fits = tensors.keys() == set(names) and all(
        tensors[name].dtype in (torch.int8, torch.float16)
        and tensors[name].shape[1:] == (width,)
        and 0 < len(tensors[name]) <= prototypes
        and bool(tensors[name].isfinite().all())
        for name, width in zip(names, widths, strict=True)
    )
    if (
        not fits
        or distances.dtype != torch.float32
        or distances.shape != (len(widths), count)
        or not 0 < count <= MAX_CALIBRATION
        or not bool(distances.isfinite().all() & (distances.diff() >= 0).all())
    ):
        raise CheckpointError(f"{path}: is damaged")
    # What is kept of a prototype is its direction.
    return Familiar(tuple(normalize(tensors[name].float()) for name in names), distances)


def _read(path: Path, what: str) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        CheckpointError: The file is missing or damaged, or is no such file.
    """
    _check_header(path, what)
    try:
        return safetensors.torch.load_file(path)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path}: cannot be read as {what} ({reason})") from error


def _check_header(path: Path, what: str) -> None:
    try:
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path}: cannot be read as {what} ({reason})") from error
    if header > MAX_HEADER:
        raise CheckpointError(f"{path}: cannot be read as {what} (its header is too long)")


def _like(config: AnyModelConfig) -> tuple[Params, State]:
    """Return trees of the shapes of a model. Those of the built-in network need no memory."""
    return cnn.shapes(config) if isinstance(config, ModelConfig) else build_model(config).init(0)


def named_leaves(tree: Any, *, skip: int = 0) -> tuple[list[str], list[Tensor], optree.PyTreeSpec]:
    """Return the leaves of a tree and their names: the paths, numbered if these are not unique.

    Args:
        tree: a pytree of tensors.
        skip: how many parts the names leave out at the beginning of a path.

    Returns:
        The names, the leaves in the same order, and the structure of the tree.
    """
    paths, leaves, treespec = optree.tree_flatten_with_path(tree)
    names = [".".join(map(str, path[skip:])) for path in paths]
    if len({*names, ""}) <= len(names):
        names = [f"{number:04}.{name}" for number, name in enumerate(names)]
    return names, leaves, treespec


def _shape(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}".removeprefix("torch.")
