"""Training of the lanes of a program over epochs. The functions compute and yield events."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import NamedTuple

import optree
import torch

from fmnist.engine import autotune, compilation
from fmnist.engine.cuda_graph import repeater
from fmnist.engine.evaluation import evaluate_steps
from fmnist.engine.lanes import (
    Lanes,
    common_numbers,
    make_lanes,
    optimizer_numbers,
    stacked_numbers,
)
from fmnist.engine.neighbours import FreeCores
from fmnist.engine.step import (
    Carry,
    EpochNoise,
    Program,
    StepInputs,
    example_order,
    step_function,
    zero_metrics,
)
from fmnist.functional import batching, train, vmap
from fmnist.functional.recipe import NUMBERS, Recipe, check
from fmnist.functional.trace import traced
from fmnist.functional.types import Metrics, Model, Split, TrainState
from fmnist.utils.device import cuda_arithmetic
from fmnist.utils.isolation import isolated, torch_defaults
from fmnist.utils.runtime import refuse_forked, warn_of_products


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
    flip: str = "none",
    schedule: str = "constant",
) -> Iterator[EpochResult]:
    """Train one model per lane, all at once, on the device of the data.

    Args:
        model: the model, such as :func:`fmnist.cnn` returns.
        optimizer: a function of numbers, such as :func:`fmnist.adam`. Set arguments that are not
            numbers with :func:`functools.partial`.
        training: examples to train on.
        validation: examples to evaluate on after each epoch, on the same device.
        lanes: for each number of the optimizer and for ``seed``, a list with one value for each
            lane, or one value for all lanes: ``{"learning_rate": [0.01, 0.001], "seed": [0, 1]}``;
            so, too, for the numbers of a recipe, :data:`fmnist.functional.recipe.NUMBERS`.
        batch_size: number of examples in a step.
        epochs: total number of epochs, including those before ``resume``.
        resume: the state to resume from; by default training starts from the lanes' seeds. A
            schedule continues only if ``epochs`` and ``batch_size`` are as before.
        dtype: dtype of parameters and images.
        flip: whether images are mirrored: ``"none"``, ``"random"`` or ``"alternating"``.
        schedule: of the learning rate, one of :data:`fmnist.functional.schedules.SCHEDULES`.

    Yields:
        The metrics and the state of all lanes after each epoch.

    Raises:
        ValueError: ``lanes`` does not fit the optimizer (see
            :func:`fmnist.engine.lanes.make_lanes`), the recipe is wrong (see
            :func:`fmnist.functional.recipe.check`), or the optimizer has no ``learning_rate`` to
            schedule. On the first iteration: ``batch_size``
            is below 1, or ``resume`` has another number of lanes.
        UserError: On the first iteration: this process was forked from one that has trained.
    """
    own = make_lanes(optimizer, lanes)
    others = {*own.numbers} - {*optimizer_numbers(optimizer)}
    recipe = Recipe(flip, schedule, tuple(name for name in NUMBERS if name in others))
    check(recipe, own.numbers)
    if recipe.scheduled and "learning_rate" not in own.numbers:
        raise ValueError("a schedule needs an optimizer with a learning_rate")
    program = Program(model, optimizer, batch_size, dtype, recipe)
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
        UserError: On the first iteration: this process was forked from one that has trained.
    """
    return isolated(_train_lanes(program, lanes, training, validation, epochs, resume))


def _train_lanes(
    program: Program,
    lanes: Lanes,
    training: Split,
    validation: Split,
    epochs: int,
    resume: TrainerState | None,
) -> Generator[TrainerState | EpochResult, None, None]:
    refuse_forked()
    if training.images.device.type == "cpu":
        warn_of_products()
    if program.batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {program.batch_size}")
    device, examples = training.images.device, len(training.labels)
    if resume is not None and vmap.size(resume.train_state.params) != len(lanes.seeds):
        there = vmap.size(resume.train_state.params)
        raise ValueError(f"the state is of {there} lanes, not of {len(lanes.seeds)}")
    numbers = common_numbers(lanes, stacked_numbers(lanes, device))
    recipe = dataclasses.replace(
        program.recipe,
        steps=epochs * batching.steps(examples, program.batch_size),
        reach=int(max(lanes.numbers.get("shift", (0,)))),
    )
    done, train_state, total, position = resume or TrainerState(0, start(program, lanes, device))
    # Before tracing, as the variants may be timed.
    name, model = variant(program, lanes, training)
    if device.type == "cpu":
        compilation.compile_kernels(name)
    # The bits of other models may depend on the number of threads.
    free = FreeCores(torch.get_num_threads() if name == "blocks" else 1)
    runs = {
        size: repeater(traced(step_function(program, model, lanes.shared, size, recipe)), device)
        for size in {min(program.batch_size, examples), examples % program.batch_size} - {0}
    }
    for epoch in range(done + 1, epochs + 1):
        order = example_order(lanes, epoch, examples, device)
        noise = EpochNoise(program, lanes, epoch, order, position)
        at = torch.tensor(position, dtype=torch.int64, device=device)
        carry = Carry(train_state, total or zero_metrics(len(lanes.seeds), device), at)
        while position < examples:
            size = min(program.batch_size, examples - position)
            most = min(examples // size, _steps_per_event(program, lanes, device))
            times = min((examples - position) // size, most)
            drawn = noise.draw(size * times, size * most, device, program.dtype)
            inputs = StepInputs(training, order, numbers, drawn, carry.position)
            with cuda_arithmetic(tf32=model.tf32), free.used():
                carry = runs[size](carry, inputs, times)
            position += size * times
            yield TrainerState(epoch - 1, carry.train_state, carry.total, position)
        train_state = carry.train_state
        here = TrainerState(epoch - 1, train_state, carry.total, position)
        # Not the variant: it was chosen for training and may need too much memory here.
        steps = evaluate_steps(
            program.model, *train_state.evaluated, validation, dtype=program.dtype
        )
        seen = yield from _yield_between(steps, here, free)
        yield EpochResult(epoch, carry.total, seen, train_state)
        total, position = None, 0


def _yield_between(
    steps: Generator[None, None, Metrics], here: TrainerState, free: FreeCores
) -> Generator[TrainerState, None, Metrics]:
    """Yield the state of training after each step of evaluation. Return the metrics."""
    while True:
        try:
            with free.used():
                next(steps)
        except StopIteration as end:
            metrics: Metrics = end.value
            return metrics
        yield here


@torch_defaults()
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


@torch_defaults()
def start(program: Program, lanes: Lanes, device: torch.device) -> TrainState:
    """Return the stacked state of the lanes before their first step, on the device."""
    numbers = stacked_numbers(lanes, torch.device("cpu"))
    solo = [
        train.start(
            seed,
            {name: values[lane] for name, values in numbers.items()},
            model=program.model,
            optimizer=program.optimizer,
            recipe=program.recipe,
            dtype=program.dtype,
        )
        for lane, seed in enumerate(lanes.seeds)
    ]
    return optree.tree_map(lambda leaf: leaf.to(device), vmap.stack(solo))


def _steps_per_event(program: Program, lanes: Lanes, device: torch.device) -> int:
    """Return the steps between two events. On a GPU they are many, as an event copies the state."""
    if device.type == "cpu":
        return 1
    return max(400_000 // (program.batch_size * len(lanes.seeds)), 1)
