"""The machine: card, driver, versions, and measured limits."""

from __future__ import annotations

import importlib.util
import platform
import subprocess

import torch
from common import machine

from fmnist.engine.cuda_graph import capture_cuda
from gpu_phases.part import Part, SkipError


def run(part: Part) -> None:
    """Describe the machine and measure its limits."""
    for name, value in machine(part.device).items():
        part.value(name, value)
    part.check("CUDA device", lambda: describe(part))
    part.check("Triton", triton_version)
    part.check("copy bandwidth", lambda: copy(part))
    part.check("matrix products, float32", lambda: products(part, "float32"))
    part.check("matrix products, TF32", lambda: products(part, "tf32"))
    part.check("matrix products, bfloat16", lambda: products(part, "bfloat16"))
    part.check("launching a kernel", lambda: launches(part))
    part.value("data", part.dataset().source)


def describe(part: Part) -> str:
    """Return the card, its driver and libraries."""
    if not part.cuda:
        raise SkipError("not a CUDA device")
    about = torch.cuda.get_device_properties(part.device)
    fields = "driver_version,clocks.sm,clocks.mem,power.limit"
    try:
        asked = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        said = asked.stdout.strip() or asked.stderr.strip()
    except OSError as error:
        said = f"nvidia-smi: {error.strerror}"
    card = (
        f"{about.name}, compute capability {about.major}.{about.minor}, "
        f"{about.multi_processor_count} multiprocessors, {about.total_memory / 2**30:.0f} GiB, "
        f"L2 {about.L2_cache_size / 2**20:.0f} MiB"
    )
    part.value("card", card)
    part.value("driver", f"{fields}: {said}")
    cudnn = torch.backends.cudnn.version()
    part.value("libraries", f"CUDA {torch.version.cuda}, cuDNN {cudnn}")
    return card


def triton_version() -> str:
    """Return the version of Triton, if it is installed."""
    if importlib.util.find_spec("triton") is None:
        raise SkipError("Triton is not installed")
    import triton

    return f"Triton {triton.__version__}, Python {platform.python_version()}"


def copy(part: Part) -> str:
    """Return bytes read and written per second by a copy that is larger than the caches."""
    elements = (1 << 24) if part.quick else (1 << 28 if part.cuda else 1 << 26)
    source = torch.rand(elements, device=part.device)
    target = torch.empty_like(source)
    speed = 2 * 4 * elements / part.median_ms(lambda: target.copy_(source)) / 1e6
    part.value("copy_gb_per_second", speed)
    return f"{speed:.0f} GB/s, read and written"


def products(part: Part, precision: str) -> str:
    """Return floating-point operations per second of a large product of random matrices."""
    if precision == "tf32" and not part.cuda:
        raise SkipError("only NVIDIA's GPUs have it")
    side = 8192 if part.cuda else 512 if part.quick else 2048
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = (torch.randn(side, side, device=part.device).to(dtype) for _ in range(2))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        speed = 2 * side**3 / part.median_ms(lambda: a @ b) / 1e9
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    part.value(f"{precision}_tflops", speed)
    return f"{speed:.3g} TFLOP/s, {side} x {side}"


def launches(part: Part) -> str:
    """Return microseconds of a small operation when called, and within a captured graph."""
    count = 200 if part.quick else 1000
    x = torch.zeros(64, device=part.device)

    def chain() -> None:
        for _ in range(count):
            x.add_(1.0)

    called = part.median_ms(chain) / count * 1e3
    part.value("microseconds_a_call", called)
    if not part.cuda:
        return f"{called:.1f} us called (no graphs on a CPU)"
    replayed = part.median_ms(capture_cuda(chain, part.device)) / count * 1e3
    part.value("microseconds_a_node", replayed)
    return f"{called:.1f} us called, {replayed:.1f} us in a CUDA graph"
