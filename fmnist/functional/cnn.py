"""The built-in network as two pure functions: ``init`` draws parameters, ``apply`` uses them.

The network has convolution blocks (5x5 convolution, batch norm, ReLU, 2x2 max pooling) and then
linear layers with ReLU between them. By default the activations have these shapes
(channels x height x width, then widths):
1x28x28 -> 12x12x12 -> 24x4x4 -> 384 -> 120 -> 60 -> 10.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fmnist.functional import features, layers
from fmnist.functional.kernels import conv
from fmnist.functional.types import Frame, Model, ModelConfig, Params, State

IMAGE_SIZE = 28
"""Height and width of an image in pixels."""

CLASS_COUNT = 10
"""Number of classes."""


def cnn(
    *,
    channels: Sequence[int] = (12, 24),
    hidden: Sequence[int] = (120, 60),
    kernel_size: int = 5,
    padding: int | str = 0,
    dropout: float = 0.0,
    feature_dropout: float = 0.0,
    linear_norm: bool = False,
    flip_average: bool = False,
    precision: str = "float32",
    convolution: str = "auto",
) -> Model:
    """Build the convolutional network for images ``[batch, 1, 28, 28]`` and ten classes.

    Args:
        channels: output channels of each convolution block.
        hidden: widths of the hidden linear layers; may be empty.
        kernel_size: side of the square convolution kernels.
        padding: rows and columns of zeros on each side of the images of a convolution, below
            ``kernel_size``; or ``"same"`` for as many as keep the size of the images.
        dropout: probability of dropping a hidden unit in training, in [0, 1).
        feature_dropout: the same for the inputs of the first linear layer.
        linear_norm: whether batch norm follows each hidden linear layer.
        flip_average: whether evaluation averages the probabilities of an image and its mirror.
        precision: ``"float32"``, ``"tf32"`` or ``"bfloat16"``, as in
            :class:`fmnist.functional.types.ModelConfig`.
        convolution: as in :func:`fmnist.functional.features.features`. With ``"auto"`` the
            engine selects the implementation that is the fastest on the device.

    Returns:
        The model.

    Raises:
        ValueError: ``channels`` is empty, ``padding`` is not below ``kernel_size``, a rate of
            dropout is not in [0, 1), ``precision`` or ``convolution`` is unknown, or the images are
            too small for this kernel size and number of blocks.
    """
    config = ModelConfig(
        tuple(channels), tuple(hidden), kernel_size, padding, dropout, precision,
        feature_dropout, linear_norm, flip_average,
    )  # fmt: skip
    if not config.channels:
        raise ValueError("channels must name at least one convolution block")
    if padding != "same" and not (isinstance(padding, int) and 0 <= padding < kernel_size):
        raise ValueError(f"padding must be 0 to {kernel_size - 1} or 'same', not {padding!r}")
    for name, rate in (("dropout", dropout), ("feature_dropout", feature_dropout)):
        if not 0 <= rate < 1:
            raise ValueError(f"{name} must be from 0 to below 1, not {rate}")
    for name, value, known in (
        ("precision", precision, ("float32", "tf32", "bfloat16")),
        ("convolution", convolution, ("auto", "blocks", *conv.BACKENDS)),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")
    feature_count(config)
    return build(config, convolution)


def build(config: ModelConfig, convolution: str = "auto") -> Model:
    """Return the model of a configuration that is known to be valid.

    The model is cached. Equal arguments give the same object, so it can be the key of other caches.

    Args:
        config: settings of the network.
        convolution: as in :func:`fmnist.functional.features.features`.
    """
    return _build(config, convolution)


@functools.cache
def _build(config: ModelConfig, convolution: str) -> Model:
    return Model(
        init=functools.partial(init, config=config),
        apply=functools.partial(
            apply,
            dropout=config.dropout,
            feature_dropout=config.feature_dropout,
            flip_average=config.flip_average,
            compute=compute_dtype(config),
            convolution=convolution,
            frame=frame(config),
        ),
        noise_widths=noise_widths(config),
        variants=functools.partial(_variants, config) if convolution == "auto" else None,
        tf32=config.precision == "tf32",
    )


def _variants(config: ModelConfig, device: torch.device) -> dict[str, Model]:
    """Return a model for each convolution on a device. On a CPU it is the one that computes."""
    names: Sequence[str] = conv.BACKENDS
    if device.type == "cpu":
        names = ("blocks",) if compute_dtype(config) is None else ("lanes",)
    return {name: build(config, name) for name in names}


def frame(config: ModelConfig) -> Frame:
    """Return the frame of zeros around the images of each convolution.

    Of an even number of rows, ``"same"`` puts one more below the image, as torch.nn.Conv2d does.
    """
    if config.padding == "same":
        before = (config.kernel_size - 1) // 2
        return before, config.kernel_size - 1 - before
    return int(config.padding), int(config.padding)


def feature_count(config: ModelConfig) -> int:
    """Return the number of features that the last convolution block outputs for an image.

    Raises:
        ValueError: The images are too small for this kernel size and number of blocks.
    """
    side = IMAGE_SIZE
    for _ in config.channels:
        side = (side + sum(frame(config)) - config.kernel_size + 1) // 2
        if side < 1:
            raise ValueError(
                f"kernel_size {config.kernel_size} leaves nothing of a {IMAGE_SIZE}x{IMAGE_SIZE} "
                f"image after {len(config.channels)} convolution blocks"
            )
    return config.channels[-1] * side * side


def noise_widths(config: ModelConfig) -> tuple[int, ...]:
    """Return how many random numbers an example needs for each layer of dropout."""
    features = (feature_count(config),) if config.feature_dropout else ()
    return features + (config.hidden if config.dropout else ())


def compute_dtype(config: ModelConfig) -> torch.dtype | None:
    """Return the dtype that ``apply`` computes in, or None for the dtype of the images."""
    return torch.bfloat16 if config.precision == "bfloat16" else None


def init(
    seed: int, config: ModelConfig = ModelConfig(), *, dtype: torch.dtype = torch.float32
) -> tuple[Params, State]:
    """Draw parameters as torch.nn's layers do: uniform in ``+-1/sqrt(fan_in)``.

    The function uses a new generator and draws in the same order as torch.nn. The parameters are
    bit for bit those of ``torch.manual_seed(seed); Network(config)``.

    Args:
        seed: 0 to 2**32 - 1.
        config: settings of the network.
        dtype: dtype of every leaf. The numbers are always drawn in float32 and then converted.

    Returns:
        ``(params, state)`` on the CPU; ``state`` holds the running statistics (mean 0,
        variance 1). For block ``i``, counted from 1, there are ``params[f"conv{i}"]`` with weight
        ``[outputs, inputs, k, k]`` and bias ``[outputs]``, and ``params[f"norm{i}"]`` and
        ``state[f"norm{i}"]`` with leaves ``[outputs]``. For linear layer ``i`` there is
        ``params[f"linear{i}"]`` with weight ``[outputs, inputs]`` and bias ``[outputs]``, and with
        ``linear_norm``, for hidden ones, ``hidden_norm{i}`` in both trees, like ``norm{i}``.

    Raises:
        ValueError: The images are too small for this kernel size and number of blocks.
    """
    cpu = torch.device("cpu")  # whatever the default device is
    generator = torch.Generator(cpu).manual_seed(seed)

    def uniform(shape: tuple[int, ...], bound: float) -> Tensor:
        empty = torch.empty(shape, dtype=torch.float32, device=cpu)
        return empty.uniform_(-bound, bound, generator=generator).to(dtype)

    return _trees(config, uniform, torch.empty(0, dtype=dtype, device=cpu))


def shapes(config: ModelConfig) -> tuple[Params, State]:
    """Return trees like those of :func:`init` on the device ``meta``, which need no memory.

    Args:
        config: the settings; they may describe a network of gigabytes.

    Raises:
        ValueError: As in :func:`init`.
    """
    nothing = torch.empty(0, device="meta")
    return _trees(config, lambda shape, bound: nothing.new_empty(shape), nothing)


def _trees(
    config: ModelConfig, uniform: Callable[[tuple[int, ...], float], Tensor], like: Tensor
) -> tuple[Params, State]:
    """Return parameters and running statistics; those that are not random are like a tensor."""

    def layer(*shape: int) -> dict[str, Tensor]:
        fan_in = math.prod(shape[1:])
        # torch.nn reaches 1/sqrt(fan_in) by way of kaiming_uniform_(a=sqrt(5)); the same
        # arithmetic gives the same last bit.
        gain = math.sqrt(2.0 / (1 + math.sqrt(5.0) ** 2))
        weight = uniform(shape, math.sqrt(3.0) * (gain / math.sqrt(fan_in)))
        return {"weight": weight, "bias": uniform(shape[:1], 1 / math.sqrt(fan_in))}

    def norm(width: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        ones, zeros = like.new_ones(width), like.new_zeros(width)
        statistics = {"running_mean": zeros.clone(), "running_var": ones.clone()}
        return {"weight": ones, "bias": zeros}, statistics

    params: Params = {}
    state: State = {}
    inputs = 1
    for i, outputs in enumerate(config.channels, 1):
        params[f"conv{i}"] = layer(outputs, inputs, config.kernel_size, config.kernel_size)
        params[f"norm{i}"], state[f"norm{i}"] = norm(outputs)
        inputs = outputs
    widths = (feature_count(config), *config.hidden, CLASS_COUNT)
    for i, (width, outputs) in enumerate(itertools.pairwise(widths), 1):
        params[f"linear{i}"] = layer(outputs, width)
        if config.linear_norm and i <= len(config.hidden):
            params[f"hidden_norm{i}"], state[f"hidden_norm{i}"] = norm(outputs)
    return params, state


def apply(
    params: Params,
    state: State,
    images: Float[Tensor, "batch 1 28 28"],
    *,
    train: bool,
    dropout: float = 0.0,
    feature_dropout: float = 0.0,
    flip_average: bool = False,
    noise: tuple[Float[Tensor, "batch width"], ...] = (),
    compute: torch.dtype | None = None,
    convolution: str = "auto",
    frame: Frame = (0, 0),
) -> tuple[Float[Tensor, "batch 10"], State]:
    """Compute the logits of ``images`` and update the running statistics.

    The number of layers and their widths follow from the trees.

    Args:
        params: parameters as from :func:`init`.
        state: running statistics of the batch norms.
        images: pixels in [0, 1].
        train: if true, normalise by the statistics of the batch and apply dropout; else
            normalise by the running statistics.
        dropout: probability of dropping a hidden unit in training.
        feature_dropout: probability of dropping an input of the first linear layer in training.
        flip_average: in evaluation, return the logarithm of the mean probabilities of each image
            and its mirror image.
        noise: uniform numbers in [0, 1), one tensor for the inputs of the first linear layer, if
            they are dropped, and one for each hidden layer, if these are. Required in training.
        compute: dtype of convolutions and matrix products; None for the dtype of the images.
        convolution: as in :func:`fmnist.functional.features.features`.
        frame: as in :func:`fmnist.functional.features.features`.

    Returns:
        ``(logits, state)``. ``state`` is unchanged unless ``train``.

    Raises:
        ValueError: ``train``, and ``noise`` does not have one tensor for each layer of dropout; or
            ``train``, and there are no images.
    """
    if flip_average and not train:
        plain = functools.partial(
            apply, params, state, train=False, compute=compute, convolution=convolution, frame=frame
        )
        first, second = (torch.log_softmax(plain(x)[0], 1) for x in (images, images.flip(3)))
        return torch.logaddexp(first, second) - math.log(2), state
    x, statistics = features.features(
        params, state, images,
        train=train, compute=compute, convolution=convolution, frame=frame,
    )  # fmt: skip
    if train and feature_dropout > 0:
        if not noise:
            raise ValueError("dropout wants noise for the inputs of the first linear layer")
        x, noise = layers.dropout(x, noise[0], feature_dropout), noise[1:]
    x, more = hidden(params, state, x, compute, dropout if train else 0.0, noise, train=train)
    return head(params, x, compute), {**statistics, **more} if train else state


def hidden(
    params: Params,
    state: State,
    x: Float[Tensor, "batch features"],
    compute: torch.dtype | None = None,
    dropout: float = 0.0,
    noise: tuple[Float[Tensor, "batch width"], ...] = (),
    *,
    train: bool = False,
) -> tuple[Float[Tensor, "batch width"], State]:
    """Compute the input of the last linear layer from the features.

    Args:
        params: as in :func:`apply`.
        state: as in :func:`apply`.
        x: the output of :func:`fmnist.functional.features.features`.
        compute: as in :func:`apply`.
        dropout: as in :func:`apply`.
        noise: one tensor for each hidden layer.
        train: as in :func:`apply`.

    Returns:
        The input, and in training the new statistics of the batch norms between linear layers.

    Raises:
        ValueError: ``dropout > 0``, and ``noise`` does not have one tensor for each hidden layer.
    """
    count, statistics = _count(params, "linear") - 1, {}
    if dropout > 0 and len(noise) != count:
        raise ValueError(f"dropout wants noise for {count} hidden layers, got {len(noise)}")
    for i in range(1, count + 1):
        x, name = layers.linear(params[f"linear{i}"], x, compute), f"hidden_norm{i}"
        if name in params:
            x, statistics[name] = layers.batch_norm(params[name], state[name], x, train=train)
        x = torch.relu(x)
        if dropout > 0:
            x = layers.dropout(x, noise[i - 1], dropout)
    return x, statistics


def head(
    params: Params, x: Float[Tensor, "batch width"], compute: torch.dtype | None = None
) -> Float[Tensor, "batch 10"]:
    """Compute the logits by the last linear layer.

    Args:
        params: as in :func:`apply`.
        x: the output of :func:`hidden`.
        compute: as in :func:`apply`.
    """
    return layers.linear(params[f"linear{_count(params, 'linear')}"], x, compute)


def _count(params: Params, kind: str) -> int:
    """Return the number of layers of a kind."""
    return sum(name.startswith(kind) for name in params)
