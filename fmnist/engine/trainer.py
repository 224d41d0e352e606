"""fit(): drives the lanes of one group over epochs. It computes and yields; it never logs."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import optree
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fmnist.engine import autotune
from fmnist.engine.cuda_graph import repeater
from fmnist.engine.evaluation import EVAL_BATCH, evaluate_unless
from fmnist.functional import batching, cnn, optim, train, vmap
from fmnist.functional.kernels import conv
from fmnist.functional.trace import traced
from fmnist.functional.types import Hyperparams, Metrics, ModelConfig, Split, TrainState
from fmnist.utils.device import cuda_arithmetic


class Lane(NamedTuple):
    """What is a lane's own: its seed, and its numbers by the names of ``Hyperparams``."""

    seed: int
    numbers: Mapping[str, float]


@dataclass(frozen=True)
class Group:
    """Lanes that share one program, and what makes it one program."""

    model: ModelConfig
    algorithm: str
    nesterov: bool
    batch_size: int
    lanes: tuple[Lane, ...]

    def optimizer(self, hyperparams: Hyperparams) -> optim.GradientTransformation:
        """One lane's optimizer, built from its numbers."""
        return optim.fused(self.algorithm, hyperparams, nesterov=self.nesterov)

    @property
    def shared(self) -> bool:
        """Whether all lanes see the same examples: they do when they have one seed."""
        return len({lane.seed for lane in self.lanes}) == 1


class LoopState(NamedTuple):
    """All that :func:`fit` needs to go on, in one pytree.

    Attributes:
        epoch: how many are done.
        train_state: stacked.
        total: metrics ``[lanes]`` of the epoch after these so far; None at its beginning.
        examples: how many of that epoch's examples are done.
    """

    epoch: int
    train_state: TrainState
    total: Metrics | None = None
    examples: int = 0


class Paused(NamedTuple):
    """Inside of an epoch: where :func:`fit` is."""

    state: LoopState


class Watch(NamedTuple):
    """What :func:`fit` asks every few steps.

    Attributes:
        pause: whether to say where it is, and go on.
        stop: whether to say where it is as soon as possible; what was not done is done again.
    """

    pause: Callable[[], bool]
    stop: Callable[[], bool]


class EpochResult(NamedTuple):
    """One epoch of every lane.

    Attributes:
        epoch: counted from 1.
        train: metrics ``[lanes]`` taken while the epoch trained.
        validation: metrics ``[lanes]`` after it.
        train_state: stacked, after the epoch.
    """

    epoch: int
    train: Metrics
    validation: Metrics
    train_state: TrainState


def lane_bytes(group: Group) -> int:
    """About how many bytes one lane of this group needs while it trains.

    The activations of a minibatch count most: each block's convolution output and its gradient,
    and four small tensors after pooling; then the parameters, four times with Adam's moments.
    """
    side, values = cnn.IMAGE_SIZE, 0
    for channels in group.model.channels:
        side = side - group.model.kernel_size + 1
        values += channels * (2 * side**2 + 4 * (side // 2) ** 2)
        side //= 2
    widths = (cnn.feature_count(group.model), *group.model.hidden, cnn.CLASS_COUNT)
    weights = sum(a * b for a, b in itertools.pairwise(widths))
    images = max(group.batch_size, EVAL_BATCH)
    return 4 * (images * (values + 3 * sum(widths)) + 6 * weights)


def convolution(group: Group, device: torch.device) -> str:
    """The back end by which this group's convolutions are computed on this device."""
    with _rounding(group):
        return autotune.convolution(
            group.model, group.batch_size, len(group.lanes), device, group.shared
        )


def _rounding(group: Group) -> contextlib.AbstractContextManager[None]:
    return cuda_arithmetic(tf32=group.model.precision == "tf32")


def hyperparams(group: Group, device: torch.device) -> Hyperparams:
    """The lanes' numbers, stacked ``[lanes]``; float64, so that nothing is rounded early."""
    return Hyperparams(
        *(
            torch.tensor([lane.numbers[name] for lane in group.lanes], dtype=torch.float64).to(
                device
            )
            for name in Hyperparams._fields
        )
    )


def start(group: Group, device: torch.device, dtype: torch.dtype = torch.float32) -> TrainState:
    """The lanes before their first step, stacked."""
    stacked = hyperparams(group, torch.device("cpu"))
    solo = [
        train.start(lane.seed, group.model, own, group.optimizer, dtype=dtype)
        for lane, own in zip(group.lanes, vmap.unstack(stacked), strict=True)
    ]
    return optree.tree_map(lambda leaf: leaf.to(device), vmap.stack(solo))


def fit(
    group: Group,
    training: Split,
    validation: Split,
    *,
    epochs: int,
    resume: LoopState | None = None,
    dtype: torch.dtype = torch.float32,
) -> Iterator[EpochResult]:
    """Train the lanes of ``group``, one epoch at a time, on the device where the data lies.

    Args:
        group: what to train.
        training, validation: examples, as uint8 tensors on the device.
        epochs: train until this many are done.
        resume: go on from here instead of from the lanes' seeds.
        dtype: of parameters and images.
    """
    never = Watch(lambda: False, lambda: False)
    for event in fit_watched(
        group, training, validation, epochs=epochs, watch=never, resume=resume, dtype=dtype
    ):
        assert isinstance(event, EpochResult)
        yield event


def fit_watched(
    group: Group,
    training: Split,
    validation: Split,
    *,
    epochs: int,
    watch: Watch,
    resume: LoopState | None = None,
    dtype: torch.dtype = torch.float32,
) -> Iterator[EpochResult | Paused]:
    """:func:`fit`, which also says where it is inside of an epoch when ``watch`` asks.

    Going on from there changes no bit of what comes.
    """
    device, examples = training.images.device, len(training.labels)
    numbers = hyperparams(group, device)
    done, train_state, total, position = resume or LoopState(0, start(group, device, dtype))
    how = convolution(group, device)  # not while a step is traced: it may have to be timed
    runs = {
        size: repeater(_step(group, size, dtype, how), device)
        for size in {min(group.batch_size, examples), examples % group.batch_size} - {0}
    }
    compute = cnn.compute_dtype(group.model)
    for epoch in range(done + 1, epochs + 1):
        order = _order(group, epoch, examples, device)
        noise = _noise(group, epoch, examples, device, dtype)
        inputs = _EpochInputs(training, order, numbers, noise)
        at = torch.tensor(position, dtype=torch.int64, device=device)
        carry = _Carry(train_state, total or zero_metrics(len(group.lanes), device), at)
        while position < examples:
            size = min(group.batch_size, examples - position)
            times = min((examples - position) // size, _stride(group, device))
            with _rounding(group):
                carry = runs[size](carry, inputs, times)
            position += size * times
            if watch.stop() or watch.pause():
                yield Paused(LoopState(epoch - 1, carry.train_state, carry.total, position))
        train_state = carry.train_state
        seen = None
        while seen is None:
            seen = evaluate_unless(
                watch.stop, *train_state[:2], validation, compute=compute, dtype=dtype
            )
            if seen is None:
                yield Paused(LoopState(epoch - 1, train_state, carry.total, position))
        yield EpochResult(epoch, carry.total, seen, train_state)
        total, position = None, 0


def _stride(group: Group, device: torch.device) -> int:
    """Steps between two questions: on a GPU many, as the state is copied before and after them."""
    if device.type == "cpu":
        return 1
    return max(400_000 // (group.batch_size * len(group.lanes)), 1)


class _Carry(NamedTuple):
    """What a step hands to the next."""

    train_state: TrainState
    total: Metrics  # [lanes], of the epoch so far
    position: Int[Tensor, ""]  # examples of the epoch that are done


class _EpochInputs(NamedTuple):
    """What the steps of an epoch read; ``lanes`` is absent where the lanes share a seed."""

    split: Split
    order: Int[Tensor, "*lanes examples"]
    numbers: Hyperparams
    noise: tuple[Float[Tensor, "*lanes examples width"], ...] = ()


def _step(
    group: Group, size: int, dtype: torch.dtype, how: str
) -> Callable[[_Carry, _EpochInputs], _Carry]:
    """A traced step on the next ``size`` examples, gathering them included.

    ``how`` is the back end of its convolutions.
    """

    def step(carry: _Carry, inputs: _EpochInputs) -> _Carry:
        device = carry.position.device
        chosen = carry.position + torch.arange(size, device=device)
        batch = batching.gather(inputs.split, inputs.order[..., chosen], dtype)
        batch = batch._replace(noise=tuple(n[..., chosen, :] for n in inputs.noise))
        with conv.forced(how):
            train_state, metrics = vmap.train_step(
                carry.train_state,
                batch,
                inputs.numbers,
                shared=group.shared,
                optimizer=group.optimizer,
                dropout=group.model.dropout,
                compute=cnn.compute_dtype(group.model),
            )
        return _Carry(
            train_state, optree.tree_map(torch.add, carry.total, metrics), carry.position + size
        )

    return traced(step)


def _seeds(group: Group) -> list[int]:
    """The seeds that differ: one where all lanes share it, else each lane's."""
    return [lane.seed for lane in group.lanes[: 1 if group.shared else None]]


def _order(
    group: Group, epoch: int, examples: int, device: torch.device
) -> Int[Tensor, "*lanes examples"]:
    orders = [batching.permutation(seed, epoch, examples) for seed in _seeds(group)]
    return (orders[0] if group.shared else torch.stack(orders)).to(device)


def _noise(
    group: Group, epoch: int, examples: int, device: torch.device, dtype: torch.dtype
) -> tuple[Float[Tensor, "*lanes examples width"], ...]:
    if group.model.dropout == 0:
        return ()
    drawn = [batching.dropout_noise(seed, epoch, examples, group.model) for seed in _seeds(group)]
    layers = drawn[0] if group.shared else [torch.stack(own) for own in zip(*drawn, strict=True)]
    return tuple(layer.to(device, dtype) for layer in layers)


def zero_metrics(lanes: int, device: torch.device) -> Metrics:
    """The metrics ``[lanes]`` of no examples."""
    zero = torch.zeros(lanes, dtype=torch.int64, device=device)
    return Metrics(zero.double(), zero, zero.clone())
