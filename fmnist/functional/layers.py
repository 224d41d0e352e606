"""The layers of the built-in network as functions of their parameters and input."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from fmnist.functional.kernels import conv, product
from fmnist.functional.kernels import norm_relu_pool as kernels
from fmnist.functional.types import Frame

MOMENTUM = 0.1
"""Weight of the newest batch in the running statistics of batch norm, as in torch.nn."""


def linear(
    params: dict[str, Tensor], x: Float[Tensor, "batch inputs"], compute: torch.dtype | None = None
) -> Float[Tensor, "batch outputs"]:
    """Compute ``x @ weight.T + bias``.

    Args:
        params: ``weight [outputs, inputs]`` and ``bias [outputs]``.
        x: the input.
        compute: dtype of the product; None for that of ``x``. The result has the dtype of ``x``.
    """
    return _in_precision(_linear, params, x, compute, x.dtype)


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return product.linear(x, weight) + bias


def conv2d(
    params: dict[str, Tensor],
    x: Float[Tensor, "batch inputs height width"],
    compute: torch.dtype | None = None,
    *,
    train: bool,
    backend: str = "grouped",
    frame: Frame = (0, 0),
) -> Float[Tensor, "batch outputs height2 width2"]:
    """Compute the cross-correlation that precedes batch norm, with stride 1.

    Args:
        params: ``weight [outputs, inputs, k, k]`` and ``bias [outputs]``.
        x: the input.
        compute: dtype of the products; None for that of ``x``. The result has this dtype if
            :func:`norm_relu_pool` has a kernel for it, and else that of the parameters.
        train: if true, the bias gets no gradient. Batch norm subtracts the mean of the batch, so
            the exact gradient is zero.
        backend: as in :func:`fmnist.functional.kernels.conv.conv2d`.
        frame: the zeros around each image.

    Returns:
        ``[batch, outputs, height + sum(frame) - k + 1, width + sum(frame) - k + 1]``.

    Raises:
        ValueError: ``backend`` is unknown.
    """
    if train:
        params = params | {"bias": params["bias"].detach()}
    function = partial(conv.conv2d, backend=backend, frame=frame)
    result = params["weight"].dtype
    if compute is not None and kernels.reads(compute, params["weight"]):
        result = compute
    return _in_precision(function, params, x, compute, result)


def _in_precision(
    function: Callable[[Tensor, Tensor, Tensor], Tensor],
    params: dict[str, Tensor],
    x: Tensor,
    compute: torch.dtype | None,
    result: torch.dtype,
) -> Tensor:
    """Call ``function`` in the dtype ``compute`` and return its value in the dtype ``result``."""
    inputs = (x, params["weight"], params["bias"])
    if compute is None:
        return function(*inputs)
    return function(*(t.to(compute) for t in inputs)).to(result)


def norm_relu_pool(
    params: dict[str, Tensor],
    state: dict[str, Tensor],
    x: Float[Tensor, "batch channels height width"],
    *,
    train: bool,
) -> tuple[Float[Tensor, "batch channels height//2 width//2"], dict[str, Tensor]]:
    """Apply batch norm, ReLU and 2x2 max pooling. Pooling ignores an odd last row or column.

    In training, batch norm uses the mean and the *biased* variance of the batch. It moves the
    running statistics towards the mean and the *unbiased* variance, as torch.nn.BatchNorm2d does.
    In evaluation, it uses the running statistics and does not change them.

    Source: Ioffe and Szegedy, Batch Normalization (2015), algorithms 1 and 2.

    Args:
        params: scale ``weight [channels]`` and shift ``bias [channels]``.
        state: ``running_mean [channels]`` and ``running_var [channels]``.
        x: the input.
        train: whether to normalise by the statistics of the batch.

    Returns:
        The pooled activations and the new running statistics.
    """
    if not train:
        statistics = (state["running_mean"], state["running_var"])
        return kernels.norm_relu_pool_given(x, params["weight"], params["bias"], *statistics), state
    pooled, mean, var = kernels.norm_relu_pool(x, params["weight"], params["bias"])
    return pooled, update_running_stats(state, mean, var, x.numel() // x.shape[1])


def batch_norm(
    params: dict[str, Tensor],
    state: dict[str, Tensor],
    x: Float[Tensor, "batch width"],
    *,
    train: bool,
) -> tuple[Float[Tensor, "batch width"], dict[str, Tensor]]:
    """Apply batch norm to vectors, as torch.nn.BatchNorm1d, but also to a single one.

    Args:
        params: scale ``weight [width]`` and shift ``bias [width]``.
        state: ``running_mean [width]`` and ``running_var [width]``.
        x: the input.
        train: whether to normalise by the statistics of the batch.

    Returns:
        The normalised input and the new running statistics.
    """
    if train:
        var, mean = torch.var_mean(x, dim=0, correction=0)
    else:
        mean, var = state["running_mean"], state["running_var"]
    scale = params["weight"] * torch.rsqrt(var + kernels.EPS)
    normal = (x - mean) * scale + params["bias"]
    return normal, update_running_stats(state, mean, var, len(x)) if train else state


def update_running_stats(
    state: dict[str, Tensor],
    mean: Float[Tensor, " channels"],
    var: Float[Tensor, " channels"],
    count: int,
) -> dict[str, Tensor]:
    """Update the running statistics of batch norm by those of a batch.

    Args:
        state: ``running_mean [channels]`` and ``running_var [channels]``.
        mean: mean of each channel.
        var: *biased* variance of each channel.
        count: number of values in each channel.

    Returns:
        The new statistics. Gradients do not flow from them to ``mean`` and ``var``.
    """
    unbiased = var.detach() * (count / max(count - 1, 1))
    return {
        "running_mean": torch.lerp(state["running_mean"], mean.detach(), MOMENTUM),
        "running_var": torch.lerp(state["running_var"], unbiased, MOMENTUM),
    }


def dropout(
    x: Float[Tensor, "batch width"], noise: Float[Tensor, "batch width"], rate: float
) -> Float[Tensor, "batch width"]:
    """Set entries to zero with probability ``rate`` and divide the others by ``1 - rate``.

    Source: Srivastava et al., Dropout (2014), section 10, in the inverted form of torch.nn.Dropout.

    Args:
        x: the input.
        noise: uniform numbers in [0, 1). An entry is dropped where its number is below ``rate``.
        rate: probability of dropping an entry, in [0, 1).

    Raises:
        ValueError: ``noise`` has another shape than ``x``.
    """
    if noise.shape != x.shape:
        raise ValueError(f"noise {tuple(noise.shape)} does not go with {tuple(x.shape)}")
    return torch.where(noise < rate, 0.0, x / (1.0 - rate))
