"""The pytrees of models, data and training, with the shapes of their leaves.

A *stacked* tree has a leading axis ``lanes`` on each of its leaves and describes many models at
once (see :mod:`fmnist.functional.vmap`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

Params = Any
"""A pytree of floating-point tensors, which the optimizer updates."""

State = Any
"""A pytree of tensors that ``apply`` updates while training, such as running statistics."""

OptState = Any
"""The state of an optimizer: a pytree that ``GradientTransformation.init`` returns."""

Numbers = Mapping[str, Float[Tensor, ""]]
"""The numbers of an optimizer by name: scalar tensors, ``[lanes]`` when stacked."""


class Model(NamedTuple):
    """A classifier as two pure functions, with optional hints for the engine.

    Attributes:
        init: ``seed -> (params, state)``. Both are pytrees of tensors on the CPU and depend on the
            seed only.
        apply: ``(params, state, inputs, *, train, noise=()) -> (logits, state)`` for ``inputs
            [batch, ...]`` and ``logits [batch, classes]``. It returns the state unchanged unless
            ``train``. As it is traced, it must not write into any tensor, not even into one that
            it created. It must only use tensors that it receives or creates; constants belong
            into the state.
        noise_widths: for each random layer, how many uniform numbers in [0, 1) an example needs
            in training. ``apply`` gets one tensor ``[batch, width]`` for each as ``noise``.
        lane_bytes: ``batch size -> bytes``: an estimate of the memory that one lane needs in
            training. By default the engine adds up the tensors of a step.
        variants: ``device -> {name: model}``: models that compute the same function by different
            implementations. The engine measures them and uses the fastest.
        tf32: whether matrix products and convolutions in training may round float32 to TF32 on
            NVIDIA GPUs.
    """

    init: Callable[[int], tuple[Params, State]]
    apply: Callable[..., tuple[Tensor, State]]
    noise_widths: tuple[int, ...] = ()
    lane_bytes: Callable[[int], int] | None = None
    variants: Callable[[torch.device], Mapping[str, Any]] | None = None
    tf32: bool = False


Frame = tuple[int, int]
"""The rows of zeros above an image and below it, and the columns to its left and to its right."""


@dataclass(frozen=True)
class ModelConfig:
    """The settings of the built-in network. All are static: each value needs its own program.

    Attributes:
        channels: output channels of each convolution block.
        hidden: widths of the hidden linear layers; may be empty.
        kernel_size: side of the square convolution kernels.
        padding: rows and columns of zeros on each side of the images of a convolution, below
            ``kernel_size``; or ``"same"`` for as many as keep the size of the images.
        dropout: probability of dropping a hidden unit in training, in [0, 1).
        feature_dropout: probability of dropping an input of the first linear layer in training.
        linear_norm: whether batch norm follows each hidden linear layer.
        flip_average: whether evaluation averages the probabilities of an image and its mirror.
        precision: of convolutions and matrix products: ``"float32"``, ``"tf32"`` (float32 with 10
            bits of mantissa, in training on NVIDIA GPUs; float32 elsewhere) or ``"bfloat16"``.
            Parameters, statistics, losses and the optimizer are always float32.
    """

    channels: tuple[int, ...] = (12, 24)
    hidden: tuple[int, ...] = (120, 60)
    kernel_size: int = 5
    padding: int | str = 0
    dropout: float = 0.0
    precision: str = "float32"
    feature_dropout: float = 0.0
    linear_norm: bool = False
    flip_average: bool = False


def hashable(model: Model) -> bool:
    """Return whether a model can be a dictionary key. A model that holds a list cannot."""
    try:
        hash(model)
    except TypeError:
        return False
    return True


class Split(NamedTuple):
    """Examples as they are stored: pixels 0-255 and class labels 0-9."""

    images: UInt8[Tensor, "examples 1 28 28"]
    labels: Int[Tensor, " examples"]


class Batch(NamedTuple):
    """A minibatch: images in [0, 1], class labels, and the noise for random layers."""

    images: Float[Tensor, "batch 1 28 28"]
    labels: Int[Tensor, " batch"]
    noise: tuple[Float[Tensor, "batch width"], ...] = ()


class TrainState(NamedTuple):
    """Everything that a training step changes.

    Attributes:
        params: the parameters.
        state: the state of the model.
        opt_state: the state of the optimizer.
        extras: what the recipe needs (:class:`fmnist.functional.recipe.Extras`); mostly empty.
    """

    params: Params
    state: State
    opt_state: OptState
    extras: Any = ()

    @property
    def evaluated(self) -> tuple[Params, State]:
        """The parameters and the state to evaluate: their averages, if the recipe has averages."""
        average = self.extras.average if self.extras else ()
        return average or (self.params, self.state)


class Metrics(NamedTuple):
    """Sums over examples. The metrics of two batches together are the sums of both.

    Attributes:
        loss_sum: summed cross entropy in nats, float64.
        correct: number of examples whose largest logit is that of their label.
        examples: number of examples.
    """

    loss_sum: Float[Tensor, ""]
    correct: Int[Tensor, ""]
    examples: Int[Tensor, ""]

    @property
    def loss(self) -> Float[Tensor, "*lanes"]:
        """Mean cross entropy per example, in nats."""
        return self.loss_sum / self.examples

    @property
    def accuracy(self) -> Float[Tensor, "*lanes"]:
        """Fraction of examples that are classified correctly, float64."""
        return self.correct.double() / self.examples
