"""The convolution blocks of the built-in network, by fused kernels or layer by layer."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from fmnist.functional import layers
from fmnist.functional.kernels import conv_block
from fmnist.functional.types import Frame, Params, State


def features(
    params: Params,
    state: State,
    images: Float[Tensor, "batch 1 28 28"],
    *,
    train: bool,
    compute: torch.dtype | None,
    convolution: str = "auto",
    frame: Frame = (0, 0),
) -> tuple[Float[Tensor, "batch features"], State]:
    """Apply every block in turn: convolution, batch norm, ReLU, 2x2 max pooling.

    Args:
        params: parameters as in :func:`fmnist.functional.cnn.apply`.
        state: running statistics; ``norm{i}`` for each block.
        images: pixels in [0, 1].
        train: normalise by the statistics of the batch; else by the running statistics.
        compute: dtype of the convolutions; None for the dtype of the images.
        convolution: ``"auto"`` or ``"blocks"`` for the fused CPU kernels where they support the
            images, and otherwise ``"lanes"`` on a CPU and ``"grouped"`` elsewhere; or a back end of
            :func:`fmnist.functional.kernels.conv.conv2d`.
        frame: the zeros around the images of each convolution.

    Returns:
        ``(activations, state)``. The activations are flattened in the order channels, height,
        width. The state is that of the blocks.

    Raises:
        ValueError: ``convolution`` is unknown; or ``train``, and there are no images.
    """
    if train and not len(images):
        raise ValueError("a batch without examples has no statistics to normalise by")
    if convolution in ("auto", "blocks"):
        if conv_block.serves(images, compute):
            return _fused(params, state, images, train, frame)
        convolution = "grouped" if images.device.type == "cuda" else "lanes"
    return _layered(params, state, images, train, compute, convolution, frame)


def _layered(
    params: Params,
    state: State,
    x: Tensor,
    train: bool,
    compute: torch.dtype | None,
    backend: str,
    frame: Frame,
) -> tuple[Tensor, State]:
    new_state, dtype = {}, x.dtype
    for i in _blocks(params):
        x = layers.conv2d(params[f"conv{i}"], x, compute, train=train, backend=backend, frame=frame)
        x, new_state[f"norm{i}"] = layers.norm_relu_pool(
            params[f"norm{i}"], state[f"norm{i}"], x, train=train
        )
    return x.flatten(1).to(dtype), new_state


def _fused(
    params: Params, state: State, images: Tensor, train: bool, frame: Frame
) -> tuple[Tensor, State]:
    x, new_state, side = conv_block.pack(images), {}, images.shape[-1]
    for i in _blocks(params):
        conv, norm, running = params[f"conv{i}"], params[f"norm{i}"], state[f"norm{i}"]
        weights, bias = (conv["weight"], norm["weight"], norm["bias"]), conv["bias"].detach()
        if train:
            side = side + sum(frame) - conv["weight"].shape[-1] + 1
            x, mean, var = conv_block.conv_block(x, *weights, len(images), frame)
            running = layers.update_running_stats(
                running, mean + bias, var, len(images) * side * side
            )
            side //= 2
        else:
            mean = running["running_mean"] - conv["bias"]
            x = conv_block.conv_block_given(x, *weights, mean, running["running_var"], frame)
        new_state[f"norm{i}"] = running
    return conv_block.unpack(x, len(images)).flatten(1), new_state


def _blocks(params: Params) -> range:
    """Return the numbers of the blocks."""
    return range(1, sum(name.startswith("conv") for name in params) + 1)
