"""The layers of the network, each a function of its parameters and its input."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from fmnist.functional.kernels import conv, product
from fmnist.functional.kernels import norm_relu_pool as kernels

MOMENTUM = 0.1


def linear(
    params: dict[str, Tensor], x: Float[Tensor, "batch inputs"], compute: torch.dtype | None = None
) -> Float[Tensor, "batch outputs"]:
    """``x W' + b`` with ``weight [outputs, inputs]`` and ``bias [outputs]``.

    ``compute`` is the precision of the product, by default that of ``x``.
    """
    return _in_precision(_linear, params, x, compute)


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return product.linear(x, weight) + bias


def conv2d(
    params: dict[str, Tensor],
    x: Float[Tensor, "batch inputs height width"],
    compute: torch.dtype | None = None,
    *,
    train: bool,
    backend: str = "grouped",
) -> Float[Tensor, "batch outputs height2 width2"]:
    """Cross-correlation with ``weight [outputs, inputs, k, k]``, stride 1, no padding.

    It goes into batch norm, which in training takes any bias away again; so then the bias has no
    gradient, and none is computed. ``compute`` is the precision of the products, by default
    that of ``x``; ``backend`` is that of :func:`fmnist.functional.kernels.conv.conv2d`.
    """
    if train:
        params = params | {"bias": params["bias"].detach()}
    return _in_precision(partial(conv.conv2d, backend=backend), params, x, compute)


def _in_precision(
    function: Callable[[Tensor, Tensor, Tensor], Tensor],
    params: dict[str, Tensor],
    x: Tensor,
    compute: torch.dtype | None,
) -> Tensor:
    """In another precision, and back."""
    weight, bias = params["weight"], params["bias"]
    if compute is None or compute == x.dtype:
        return function(x, weight, bias)
    return function(x.to(compute), weight.to(compute), bias.to(compute)).to(x.dtype)


def norm_relu_pool(
    params: dict[str, Tensor],
    state: dict[str, Tensor],
    x: Float[Tensor, "batch channels height width"],
    *,
    train: bool,
) -> tuple[Float[Tensor, "batch channels height//2 width//2"], dict[str, Tensor]]:
    """Batch norm, ReLU and 2x2 max pooling; an odd last row or column is left out.

    Batch norm normalises each channel, scales by ``weight`` and shifts by ``bias``, both
    ``[channels]``. Training normalises by the batch's mean and *biased* variance and moves the
    running ones towards the mean and the *unbiased* variance by 0.1, as torch.nn.BatchNorm2d.
    Evaluation normalises by the running statistics and returns them unchanged.

    Source: Ioffe and Szegedy, Batch Normalization (2015), algorithms 1 and 2.

    Returns:
        The pooled activations, and the new ``{"running_mean", "running_var"}``.
    """
    if not train:
        statistics = (state["running_mean"], state["running_var"])
        return kernels.norm_relu_pool_given(x, params["weight"], params["bias"], *statistics), state
    pooled, mean, var = kernels.norm_relu_pool(x, params["weight"], params["bias"])
    return pooled, update_running_stats(state, mean, var, x.numel() // x.shape[1])


def update_running_stats(
    state: dict[str, Tensor],
    mean: Float[Tensor, " channels"],
    var: Float[Tensor, " channels"],
    count: int,
) -> dict[str, Tensor]:
    """The running statistics after a batch with this mean and *biased* variance of ``count``."""
    unbiased = var.detach() * (count / max(count - 1, 1))
    return {
        "running_mean": torch.lerp(state["running_mean"], mean.detach(), MOMENTUM),
        "running_var": torch.lerp(state["running_var"], unbiased, MOMENTUM),
    }


def dropout(
    x: Float[Tensor, "batch width"], noise: Float[Tensor, "batch width"], rate: float
) -> Float[Tensor, "batch width"]:
    """Zero where ``noise`` (uniform in [0, 1)) is below ``rate``, the rest over ``1 - rate``."""
    return torch.where(noise < rate, 0.0, x / (1.0 - rate))
