"""The pytrees that flow through the pure half, and the shapes of their leaves.

Every tree here may carry a leading axis ``lanes`` on each of its leaves: then it
describes many models at once (see :mod:`fmnist.functional.vmap`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

Params = Any
"""A pytree of floating-point tensors: what the optimizer changes."""

State = Any
"""A pytree of tensors that ``apply`` updates while training, such as running statistics."""

OptState = Any
"""What ``GradientTransformation.init`` returns: a pytree that only its ``update`` reads."""

Numbers = Mapping[str, Float[Tensor, ""]]
"""The numbers of a lane's optimizer by name, ``[lanes]`` when stacked."""


class Model(NamedTuple):
    """A classifier as pure functions. Any two functions of these signatures make one.

    Attributes:
        init: ``seed -> (params, state)``: any pytrees, on the CPU, drawn from this seed alone.
        apply: ``(params, state, inputs, *, train, noise) -> (logits, state)`` for a batch
            ``inputs [batch, ...]``; ``logits`` is ``[batch, classes]``. The state is returned
            unchanged when not training. As every traced function it writes into no tensor, also
            not into its own, and uses no tensor but its arguments and what it makes itself:
            constants belong into the state.
        noise_widths: for each random layer, how many uniform numbers in [0, 1) an example needs
            while training; ``apply`` gets one tensor ``[batch, width]`` each as ``noise``.
        lane_bytes: ``batch size -> bytes`` that one lane needs while it trains, about. By default
            it is guessed from the size of the parameters.
        variants: ``device -> {name: model}``: models that compute the same by other means. The
            engine takes the fastest, which it measures where there are several.
        tf32: whether products of float32 may be rounded to TF32 on NVIDIA's GPUs in training.
    """

    init: Callable[[int], tuple[Params, State]]
    apply: Callable[..., tuple[Tensor, State]]
    noise_widths: tuple[int, ...] = ()
    lane_bytes: Callable[[int], int] | None = None
    variants: Callable[[torch.device], Mapping[str, Any]] | None = None
    tf32: bool = False


@dataclass(frozen=True)
class ModelConfig:
    """The settings of the built-in network. All are static: another value is another program.

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


def hashable(model: Model) -> bool:
    """Whether a model can be a key; one that holds a list, say, cannot."""
    try:
        hash(model)
    except TypeError:
        return False
    return True


class Split(NamedTuple):
    """Examples as they lie in memory: pixels 0-255 and the classes 0-9 they belong to."""

    images: UInt8[Tensor, "examples 1 28 28"]
    labels: Int[Tensor, " examples"]


class Batch(NamedTuple):
    """A minibatch: images in ``[0, 1]``, labels, and the noise that random layers use."""

    images: Float[Tensor, "batch 1 28 28"]
    labels: Int[Tensor, " batch"]
    noise: tuple[Float[Tensor, "batch width"], ...] = ()


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

    @property
    def loss(self) -> Float[Tensor, "*lanes"]:
        """Cross entropy an example, in nats."""
        return self.loss_sum / self.examples

    @property
    def accuracy(self) -> Float[Tensor, "*lanes"]:
        """The share of examples whose largest logit is their label's."""
        return self.correct.double() / self.examples
