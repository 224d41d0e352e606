"""Training of the lanes of a program over epochs. The functions compute and yield events."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import optree
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fmnist.engine import autotune
from fmnist.engine.cuda_graph import repeater
from fmnist.engine.evaluation import EVAL_BATCH, evaluate_steps
from fmnist.engine.lanes import Lanes, make_lanes, stacked_numbers
from fmnist.functional import batching, train, vmap
from fmnist.functional.trace import traced
from fmnist.functional.types import Metrics, Model, Numbers, Split, TrainState
from fmnist.utils.device import cuda_arithmetic


@dataclass(frozen=True)
class Program:
    """The settings that all lanes share.

    Attributes:
        model: the model.
        optimizer: a function from numbers, given by name, to a gradient transformation.
        batch_size: number of examples in a step; the last step of an epoch may have fewer.
        dtype: dtype of parameters and images.
    """

    model: Model
    optimizer: train.Optimizer
    batch_size: int
    dtype: torch.dtype = torch.float32


class TrainerState(NamedTuple):
    """The state from which :func:`train_lanes` can resume, as one pytree.

    Attributes:
        epoch: number of complete epochs.
        train_state: stacked state of the models and optimizers.
        total: metrics ``[lanes]`` of the incomplete epoch so far; None at its beginning.
        examples: number of examples of the incomplete epoch that are done.
    """

    epoch: int
    train_state: TrainState
    total: Metrics | None = None
    examples: int = 0


class EpochResult(NamedTuple):
    """The result of an epoch of every lane.

    Attributes:
        epoch: the epoch, counted from 1.
        train: metrics ``[lanes]`` of the training batches, each before its step.
        validation: metrics ``[lanes]`` on the validation split after the epoch.
        train_state: stacked state after the epoch.
    """

    epoch: int
    train: Metrics
    validation: Metrics
    train_state: TrainState


def fit(
    model: Model,
    optimizer: train.Optimizer,
    training: Split,
    validation: Split,
    *,
    lanes: Mapping[str, float | Iterable[float]],
    batch_size: int = 100,
    epochs: int = 1,
    resume: TrainerState | None = None,
    dtype: torch.dtype = torch.float32,
) -> Iterator[EpochResult]:
    """Train one model per lane, all at once, on the device of the data.

    Args:
        model: the model, such as :func:`fmnist.cnn` returns.
        optimizer: a function of numbers, such as :func:`fmnist.adam`. Set arguments that are not
            numbers with :func:`functools.partial`.
        training: examples to train on.
        validation: examples to evaluate on after each epoch, on the same device.
        lanes: for each number of the optimizer and for ``seed``, a list with one value for each
            lane, or one value for all lanes: ``{"learning_rate": [0.01, 0.001], "seed": [0, 1]}``.
        batch_size: number of examples in a step.
        epochs: total number of epochs, including those before ``resume``.
        resume: the state to resume from; by default training starts from the lanes' seeds.
        dtype: dtype of parameters and images.

    Yields:
        The metrics and the state of all lanes after each epoch.

    Raises:
        ValueError: ``lanes`` does not fit the optimizer (see
            :func:`fmnist.engine.lanes.make_lanes`). On the first iteration: ``batch_size`` is
            below 1, or ``resume`` has another number of lanes.
    """
    program = Program(model, optimizer, batch_size, dtype)
    own = make_lanes(optimizer, lanes)
    events = train_lanes(program, own, training, validation, epochs=epochs, resume=resume)
    return (event for event in events if isinstance(event, EpochResult))


def train_lanes(
    program: Program,
    lanes: Lanes,
    training: Split,
    validation: Split,
    *,
    epochs: int,
    resume: TrainerState | None = None,
) -> Iterator[TrainerState | EpochResult]:
    """Train lanes from their seeds, or resume from a state.

    Args:
        program: the settings that all lanes share.
        lanes: the seeds and numbers of the lanes.
        training: examples to train on; their device trains.
        validation: examples to evaluate on after each epoch, on the same device.
        epochs: total number of epochs, including those before ``resume``.
        resume: a state that this function yielded. The results are the same, bit for bit, as
            without the interruption.

    Yields:
        A :class:`TrainerState` every few steps, and an :class:`EpochResult` after each epoch. The
        caller can save a state or stop at each of them.

    Raises:
        ValueError: On the first iteration: the batch size is below 1, or ``resume`` has another
            number of lanes.
    """
    if program.batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {program.batch_size}")
    device, examples = training.images.device, len(training.labels)
    if resume is not None and vmap.size(resume.train_state.params) != len(lanes.seeds):
        there = vmap.size(resume.train_state.params)
        raise ValueError(f"the state is of {there} lanes, not of {len(lanes.seeds)}")
    numbers = stacked_numbers(lanes, device)
    done, train_state, total, position = resume or TrainerState(0, start(program, lanes, device))
    # Before tracing, as the variants may be timed.
    _, model = variant(program, lanes, training)
    runs = {
        size: repeater(_step(program, model, lanes.shared, size), device)
        for size in {min(program.batch_size, examples), examples % program.batch_size} - {0}
    }
    for epoch in range(done + 1, epochs + 1):
        order = _example_order(lanes, epoch, examples, device)
        noise = _epoch_noise(program, lanes, epoch, examples, device)
        inputs = _EpochInputs(training, order, numbers, noise)
        at = torch.tensor(position, dtype=torch.int64, device=device)
        carry = _Carry(train_state, total or zero_metrics(len(lanes.seeds), device), at)
        while position < examples:
            size = min(program.batch_size, examples - position)
            times = min((examples - position) // size, _steps_per_event(program, lanes, device))
            with cuda_arithmetic(tf32=model.tf32):
                carry = runs[size](carry, inputs, times)
            position += size * times
            yield TrainerState(epoch - 1, carry.train_state, carry.total, position)
        train_state = carry.train_state
        here = TrainerState(epoch - 1, train_state, carry.total, position)
        # Not the variant: it was chosen for training and may need too much memory here.
        steps = evaluate_steps(program.model, *train_state[:2], validation, dtype=program.dtype)
        seen = yield from _yield_between(steps, here)
        yield EpochResult(epoch, carry.total, seen, train_state)
        total, position = None, 0


def _yield_between(
    steps: Generator[None, None, Metrics], here: TrainerState
) -> Generator[TrainerState, None, Metrics]:
    """Yield the state of training after each step of evaluation. Return the metrics."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            metrics: Metrics = end.value
            return metrics
        yield here


def variant(program: Program, lanes: Lanes, split: Split) -> tuple[str, Model]:
    """Return the name of the fastest variant of the model on the device of the split, and it."""
    return autotune.choose(
        program.model,
        program.batch_size,
        len(lanes.seeds),
        split.images.device,
        shared=lanes.shared,
        shape=tuple(split.images.shape[1:]),
    )


def lane_bytes(program: Program) -> int:
    """Estimate the memory in bytes that one lane of this program needs, also in evaluation."""
    images = max(program.batch_size, EVAL_BATCH)
    if program.model.lane_bytes is not None:
        return program.model.lane_bytes(images)
    params, _ = program.model.init(0)
    # Six copies of the parameters cover gradients and moments. The number of activations per
    # image is a guess from the number of parameters.
    count = sum(leaf.numel() for leaf in optree.tree_leaves(params))
    return 4 * (6 * count + images * max(count // 25, 4096))


def start(program: Program, lanes: Lanes, device: torch.device) -> TrainState:
    """Return the stacked state of the lanes before their first step, on the device."""
    numbers = stacked_numbers(lanes, torch.device("cpu"))
    solo = [
        train.start(
            seed,
            {name: values[lane] for name, values in numbers.items()},
            model=program.model,
            optimizer=program.optimizer,
            dtype=program.dtype,
        )
        for lane, seed in enumerate(lanes.seeds)
    ]
    return optree.tree_map(lambda leaf: leaf.to(device), vmap.stack(solo))


def zero_metrics(lanes: int, device: torch.device) -> Metrics:
    """Return metrics ``[lanes]`` that are all zero."""
    zero = torch.zeros(lanes, dtype=torch.int64, device=device)
    return Metrics(zero.double(), zero, zero.clone())


class _Carry(NamedTuple):
    """The values that a step passes to the next."""

    train_state: TrainState
    total: Metrics  # [lanes], of the epoch so far
    position: Int[Tensor, ""]  # examples of the epoch that are done


class _EpochInputs(NamedTuple):
    """The inputs of the steps of an epoch. The axis ``lanes`` is absent if lanes share a seed."""

    split: Split
    order: Int[Tensor, "*lanes examples"]
    numbers: Numbers
    noise: tuple[Float[Tensor, "*lanes examples width"], ...] = ()


def _step(
    program: Program, model: Model, shared: bool, size: int
) -> Callable[[_Carry, _EpochInputs], _Carry]:
    """Return a traced step, which gathers the next ``size`` examples and trains on them."""

    def step(carry: _Carry, inputs: _EpochInputs) -> _Carry:
        chosen = carry.position + torch.arange(size, device=carry.position.device)
        batch = batching.gather(inputs.split, inputs.order[..., chosen], program.dtype)
        batch = batch._replace(noise=tuple(n[..., chosen, :] for n in inputs.noise))
        train_state, metrics = vmap.train_step(
            carry.train_state,
            batch,
            inputs.numbers,
            shared=shared,
            model=model,
            optimizer=program.optimizer,
        )
        return _Carry(
            train_state, optree.tree_map(torch.add, carry.total, metrics), carry.position + size
        )

    return traced(step)


def _steps_per_event(program: Program, lanes: Lanes, device: torch.device) -> int:
    """Return the steps between two events. On a GPU they are many, as an event copies the state."""
    if device.type == "cpu":
        return 1
    return max(400_000 // (program.batch_size * len(lanes.seeds)), 1)


def _distinct_seeds(lanes: Lanes) -> tuple[int, ...]:
    """Return one seed if all lanes share it, else the seed of each lane."""
    return lanes.seeds[:1] if lanes.shared else lanes.seeds


def _example_order(
    lanes: Lanes, epoch: int, examples: int, device: torch.device
) -> Int[Tensor, "*lanes examples"]:
    orders = [batching.permutation(seed, epoch, examples) for seed in _distinct_seeds(lanes)]
    return (orders[0] if lanes.shared else torch.stack(orders)).to(device)


def _epoch_noise(
    program: Program, lanes: Lanes, epoch: int, examples: int, device: torch.device
) -> tuple[Float[Tensor, "*lanes examples width"], ...]:
    widths = program.model.noise_widths
    if not widths:
        return ()
    drawn = [
        batching.uniform_noise(seed, epoch, examples, widths) for seed in _distinct_seeds(lanes)
    ]
    layers = drawn[0] if lanes.shared else [torch.stack(own) for own in zip(*drawn, strict=True)]
    return tuple(layer.to(device, program.dtype) for layer in layers)
