"""The device of a command line, and the precision of the libraries of CUDA."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fmnist.utils.errors import UserError

if TYPE_CHECKING:
    import torch


def find_device(name: str) -> torch.device:
    """Find a device by its name.

    Args:
        name: ``"cpu"``, ``"cuda"``, ``"cuda:N"``, or ``"auto"`` for the first GPU, or the CPU
            without one.

    Raises:
        UserError: The name is none of these, or torch sees no such GPU.
    """
    import torch

    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if name == "cpu":
        return torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind != "cuda" or (":" in name and not (index.isascii() and index.isdigit())):
        raise UserError(f"--device {name!r}: allowed are auto, cpu, cuda and cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= count:
        raise UserError(f"--device {name!r}: this machine has {count} CUDA devices that torch sees")
    return torch.device("cuda", int(index or 0))


@contextlib.contextmanager
def cuda_arithmetic(*, tf32: bool) -> Iterator[None]:
    """Make CUDA's libraries compute deterministically within the block, in float32 or TF32.

    The switches are torch's and hold for the whole process; the block's end restores them. By
    default torch lets cuDNN round convolutions to TF32 and add in an order that varies.

    Args:
        tf32: whether convolutions and matrix products may round their inputs to TF32.
    """
    import torch

    wanted: tuple[tuple[Any, str, bool], ...] = (
        (torch.backends.cuda.matmul, "allow_tf32", tf32),
        (torch.backends.cudnn, "allow_tf32", tf32),
        (torch.backends.cudnn, "deterministic", True),
    )
    with contextlib.ExitStack() as stack:
        for module, name, value in wanted:
            stack.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, value)
        yield
