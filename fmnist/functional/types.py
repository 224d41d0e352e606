"""The pytrees that flow through the pure half, and the shapes of their leaves.

Every tree here may carry a leading axis ``lanes`` on each of its leaves: then it
describes many models at once (see :mod:`fmnist.functional.vmap`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Float, Int, UInt8
from torch import Tensor

Params = dict[str, dict[str, Tensor]]
"""Layer name -> {"weight", "bias"}; the names are those of the torch.nn twin's state_dict."""

State = dict[str, dict[str, Tensor]]
"""Norm layer name -> {"running_mean", "running_var"}, each of shape ``[channels]``."""

OptState = Any
"""What ``GradientTransformation.init`` returns: a pytree that only its ``update`` reads."""


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the network. Everything here is static: another value is another program.

    Attributes:
        channels: output channels of each convolution block.
        hidden: widths of the hidden linear layers; may be empty.
        kernel_size: side of every (square) convolution kernel; no padding.
        dropout: probability of dropping a hidden unit while training, in ``[0, 1)``.
        precision: of convolutions and matrix products: ``"float32"``, ``"tf32"`` (on NVIDIA GPUs,
            in training: float32 with 10 bits of mantissa; elsewhere float32) or ``"bfloat16"``.
            Parameters, statistics, losses and the optimizer are float32 whatever it is.
    """

    channels: tuple[int, ...] = (12, 24)
    hidden: tuple[int, ...] = (120, 60)
    kernel_size: int = 5
    dropout: float = 0.0
    precision: str = "float32"


class Split(NamedTuple):
    """Examples as they lie in memory: pixels 0-255 and the classes 0-9 they belong to."""

    images: UInt8[Tensor, "examples 1 28 28"]
    labels: Int[Tensor, " examples"]


class Batch(NamedTuple):
    """A minibatch: images in ``[0, 1]``, labels, and the noise that dropout will use."""

    images: Float[Tensor, "batch 1 28 28"]
    labels: Int[Tensor, " batch"]
    noise: tuple[Float[Tensor, "batch width"], ...] = ()


class Hyperparams(NamedTuple):
    """The numbers of an optimizer, each a scalar tensor (``[lanes]`` when stacked).

    An optimizer reads those it knows and leaves the others alone.
    """

    learning_rate: Float[Tensor, ""]
    beta1: Float[Tensor, ""]
    beta2: Float[Tensor, ""]
    eps: Float[Tensor, ""]
    weight_decay: Float[Tensor, ""]
    momentum: Float[Tensor, ""]


class TrainState(NamedTuple):
    """All that changes while a model trains."""

    params: Params
    state: State
    opt_state: OptState


class Metrics(NamedTuple):
    """Sums over examples, so that the metrics of two batches are added to get those of both."""

    loss_sum: Float[Tensor, ""]
    correct: Int[Tensor, ""]
    examples: Int[Tensor, ""]
