"""The device of a command line, and the precision of the libraries of CUDA."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from fmnist.utils.errors import UserError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


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
    default torch lets cuDNN round convolutions to TF32 and add in an order that varies. Without
    CUDA, the block changes nothing.

    Args:
        tf32: whether convolutions and matrix products may round their inputs to TF32.
    """
    import torch

    if not torch.cuda.is_initialized():
        yield
        return
    backends: Any = torch.backends
    matmul, cudnn = backends.cuda.matmul, backends.cudnn
    with contextlib.ExitStack() as stack:
        # Torch has each switch twice, and reading one raises an error where the two disagree.
        for part in (matmul, cudnn.conv, cudnn.rnn, backends.mkldnn.matmul):
            stack.callback(setattr, part, "fp32_precision", part.fp32_precision)
        before = _value_or(torch.get_float32_matmul_precision, "highest")
        stack.callback(torch.set_float32_matmul_precision, before)
        rounds = _value_or(lambda: cudnn.allow_tf32, True)
        stack.callback(setattr, cudnn, "allow_tf32", rounds)
        stack.callback(setattr, cudnn, "deterministic", cudnn.deterministic)
        matmul.allow_tf32 = cudnn.allow_tf32 = tf32
        cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = "tf32" if tf32 else "ieee"
        cudnn.deterministic = True
        yield


def _value_or(read: Callable[[], T], default: T) -> T:
    try:
        return read()
    except RuntimeError:
        return default
