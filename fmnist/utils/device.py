"""Where to train: the device that a command line names, and how it may round."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fmnist.utils.errors import UserError

if TYPE_CHECKING:
    import torch


def find_device(name: str) -> torch.device:
    """The device of this name; ``auto`` is the first GPU where there is one.

    Raises:
        UserError: when there is no such device.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind != "cuda" or (":" in name and not (index.isascii() and index.isdigit())):
        raise UserError(f"--device {name!r}: allowed are auto, cpu, cuda and cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= count:
        raise UserError(f"--device {name!r}: this machine has {count} CUDA devices that torch sees")
    return torch.device(name)


@contextlib.contextmanager
def tf32(wanted: bool) -> Iterator[None]:
    """Whether NVIDIA's tensor cores may round float32; put back afterwards.

    torch has no other switch than this one of the whole process, and by itself it lets cuDNN's
    convolutions do so.
    """
    import torch

    switches: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = wanted
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value
