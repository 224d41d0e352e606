"""Trains the trials of the grid: one group of lanes after the other.

:func:`run` is a generator of events. Observers such as TensorBoard handle an event before the
generator continues. So everything about a trial is written before Optuna has it as finished.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import optuna
import torch

from fmnist.config.results import EpochMetrics, TrialResult, label
from fmnist.config.study import StudyConfig
from fmnist.config.trial import TrialConfig
from fmnist.engine import trainer
from fmnist.engine.evaluation import evaluate
from fmnist.functional import vmap
from fmnist.functional.types import Split
from fmnist.tuning import grid
from fmnist.tuning.capacity import MOST_LANES, lanes_that_fit, refuse_too_large
from fmnist.tuning.events import (
    BatchesTrained,
    EpochFinished,
    Event,
    GroupStarted,
    LanesHalved,
    TrialFinished,
)
from fmnist.tuning.keeping import best_so_far, epoch_metrics
from fmnist.tuning.progress import Checkpointer, GroupProgress, lanes_of, program_of, user_errors
from fmnist.utils import memory
from fmnist.utils.errors import UserError
from fmnist.utils.signals import Stop

T = TypeVar("T")

log = logging.getLogger(__name__)

TOLD_EVERY = 0.5
"""Seconds between two events within an epoch, at least."""


class Splits(NamedTuple):
    """The examples of a study, on the device of the training."""

    training: Split
    validation: Split
    test: Split


def chunks(items: Iterable[T], key: Callable[[T], object], most: int) -> list[list[T]]:
    """Group items with equal keys into lists of at most ``most`` items. The order is kept."""
    groups: dict[object, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return [
        group[start : start + most]
        for group in groups.values()
        for start in range(0, len(group), most)
    ]


def run(
    study: optuna.Study,
    config: StudyConfig,
    splits: Splits,
    *,
    max_lanes: int | None,
    checkpointer: Checkpointer | None = None,
    stop: Stop | None = None,
    retry_failed: bool = False,
) -> Iterator[Event]:
    """Train the trials of the grid that are not finished, and report their results to Optuna.

    Args:
        study: the study in Optuna.
        config: its configuration.
        splits: the examples.
        max_lanes: maximum number of lanes of a group; by default as many as fit in memory.
        checkpointer: writes snapshots of the groups, and provides those of an earlier run.
        stop: checked after every step. If a stop is requested, a snapshot is written and the
            error of the signal is raised.
        retry_failed: whether to train points that diverged again.

    Yields:
        Events, each before the result is reported to Optuna.

    Raises:
        UserError: Memory does not suffice for a single lane.
    """
    trials = grid.pending(study, config, retry_failed=retry_failed)
    device = splits.training.images.device
    killed = checkpointer.note.limit() if checkpointer else 0
    groups = checkpointer.restore(trials, device) if checkpointer else []
    restored = {trial.number for progress in groups for trial in progress.trials}
    new = [trial for trial in trials if trial.number not in restored]
    limit = max_lanes or MOST_LANES
    if killed:
        limit = min(limit, killed)
        log.warning(
            "an earlier run was killed, it seems for lack of memory: at most %d configurations "
            "are trained at once until the study is complete", killed
        )  # fmt: skip
    most = max_lanes or len(trials) or 1  # without a maximum, memory decides when a group begins
    groups += [
        GroupProgress(group) for group in chunks(new, lambda trial: trial.config.static, most)
    ]
    with checkpointer.note.removed_at_end() if checkpointer else contextlib.nullcontext():
        yield from _train_groups(
            study, config, deque(groups), splits, limit, max_lanes is None, checkpointer, stop
        )


def _train_groups(
    study: optuna.Study,
    config: StudyConfig,
    waiting: deque[GroupProgress],
    splits: Splits,
    limit: int,
    by_memory: bool,
    checkpointer: Checkpointer | None,
    stop: Stop | None,
) -> Iterator[Event]:
    """Train the groups one after the other; split those that are too large for the memory now."""
    index, images = 0, splits.training.images
    while waiting:
        left = sum(len(group.trials) * (config.epochs - group.epoch) for group in waiting)
        progress = waiting.popleft()
        configs = [trial.config for trial in progress.trials]
        most = limit
        if by_memory:
            fitting = lanes_that_fit(configs, images.device, len(images), tuple(images.shape[1:]))
            most = min(limit, fitting)
        if len(configs) > most:
            positions = range(len(configs))
            parts = [progress.take(positions[:most]), progress.take(positions[most:])]
            _replace(progress, parts, checkpointer)
            progress, rest = parts
            waiting.appendleft(rest)
            configs = configs[:most]
        if len(configs) == 1 and images.device.type == "cpu":
            refuse_too_large(progress.trials[0], len(images), tuple(images.shape[1:]))
        if checkpointer:
            checkpointer.note.write(len(progress.trials))
        total = index + 1 + sum(-(-len(group.trials) // most) for group in waiting)
        yield GroupStarted(
            index=index,
            total=total,
            trials=progress.trials,
            epochs=config.epochs,
            epochs_left=left,
            images=len(splits.training.labels),
            histories={number: tuple(past) for number, past in progress.histories.items()},
            variant=_variant_name(configs, splits.training),
            epochs_all=config.size * config.epochs,
            epoch=progress.epoch,
            examples=progress.at.examples if progress.at else 0,
            seconds=progress.seconds,
        )
        grid.begin(progress.trials)
        halves = yield from _train(study, config, progress, splits, checkpointer, stop or Stop())
        waiting.extendleft(reversed(halves))
        index += not halves


def _variant_name(configs: Sequence[TrialConfig], training: Split) -> str:
    """Return the name of the variant for these lanes; empty if memory runs out here."""
    try:
        with user_errors(configs[0]):
            return trainer.variant(program_of(configs[0]), lanes_of(configs), training)[0]
    except (RuntimeError, MemoryError) as error:
        if not memory.ran_out(error):
            raise
        memory.release()  # memory runs out in training again, which then halves the lanes
        return ""


def _train(
    study: optuna.Study,
    config: StudyConfig,
    progress: GroupProgress,
    splits: Splits,
    checkpointer: Checkpointer | None,
    stop: Stop,
) -> Generator[Event, None, list[GroupProgress]]:
    """Train a group to its end and report each lane to Optuna.

    Returns:
        The progress of two halves of the lanes if memory ran out, else an empty list.

    Raises:
        UserError: Memory ran out for a single lane.
    """
    try:
        yield from _epochs(config, progress, splits, checkpointer, stop)
        results = _finish(config, progress, splits.test)
    except (RuntimeError, MemoryError, OSError) as error:
        if not memory.ran_out(error):
            raise
        if len(progress.trials) == 1:
            name = label(progress.trials[0].point)
            raise UserError(f"there is not enough memory to train {name} even alone") from error
    else:
        assert progress.at is not None
        trained = progress.kept or progress.at.train_state.evaluated
        for lane, (trial, result) in enumerate(zip(progress.trials, results, strict=True)):
            params, state = vmap.take(trained, torch.tensor(lane))
            yield TrialFinished(result, params, state)
            grid.tell(study, trial, result, config)
        if checkpointer:
            checkpointer.forget(progress)
        return []
    memory.release()
    grid.pause(progress.trials)
    yield LanesHalved(len(progress.trials), progress.epoch)
    halves = progress.halves()
    _replace(progress, halves, checkpointer)
    return halves


def _replace(
    progress: GroupProgress, parts: Sequence[GroupProgress], checkpointer: Checkpointer | None
) -> None:
    """Write the snapshots of the parts of a group in place of its own."""
    if checkpointer and progress.at is not None:
        for part in parts:
            checkpointer.save(part)
        checkpointer.forget(progress)


def _guarded(events: Iterator[T], config: TrialConfig) -> Iterator[T]:
    with user_errors(config):
        yield from events


def _epochs(
    config: StudyConfig,
    progress: GroupProgress,
    splits: Splits,
    checkpointer: Checkpointer | None,
    stop: Stop,
) -> Iterator[Event]:
    """Train the remaining epochs and update ``progress``."""
    began, before, told = time.perf_counter(), progress.seconds, -math.inf
    on_gpu = splits.training.images.device.type == "cuda"
    configs = [trial.config for trial in progress.trials]
    events = trainer.train_lanes(
        program_of(configs[0]),
        lanes_of(configs),
        splits.training,
        splits.validation,
        epochs=config.epochs,
        resume=progress.at,
    )
    for event in _guarded(events, configs[0]):
        within_epoch = isinstance(event, trainer.TrainerState)
        if isinstance(event, trainer.TrainerState) and time.perf_counter() - told >= TOLD_EVERY:
            told = time.perf_counter()
            seconds = math.nan if on_gpu else before + told - began
            yield BatchesTrained(event.epoch, event.examples, seconds)
        if within_epoch and not (stop.requested or (checkpointer and checkpointer.overdue())):
            continue
        progress.seconds = before + time.perf_counter() - began
        if isinstance(event, trainer.TrainerState):
            progress.at = event
        else:
            # First, as memory may run out here, and then the epoch is trained again.
            kept = best_so_far(config, progress, event) if config.keep == "best" else None
            metrics = _record_metrics(config, progress, event)
            progress.kept = kept
            progress.at = trainer.TrainerState(event.epoch, event.train_state)
            yield EpochFinished(event.epoch, metrics, progress.seconds)
        done = len(progress.failed) == len(progress.trials) or progress.epoch == config.epochs
        if checkpointer and (within_epoch or done or stop.requested or checkpointer.due()):
            checkpointer.save(progress)
        stop.check()
        if done:
            break


def _record_metrics(
    config: StudyConfig, progress: GroupProgress, epoch: trainer.EpochResult
) -> dict[int, EpochMetrics]:
    """Add the metrics of an epoch to the progress and report them to Optuna.

    A lane whose metrics are not finite fails.

    Returns:
        The metrics of the lanes that have not failed, by trial number.
    """
    recorded: dict[int, EpochMetrics] = {}
    of_lanes = epoch_metrics(epoch.train, epoch.validation)
    for trial, metrics in zip(progress.trials, of_lanes, strict=True):
        if trial.number in progress.failed:
            continue
        if not all(map(math.isfinite, metrics)):
            progress.failed[trial.number] = f"the loss was not finite in epoch {epoch.epoch}"
            continue
        progress.histories.setdefault(trial.number, []).append(metrics)
        recorded[trial.number] = metrics
        grid.report(trial, getattr(metrics, config.metric), epoch.epoch)
    return recorded


def _finish(config: StudyConfig, progress: GroupProgress, test: Split) -> list[TrialResult]:
    """Return the results of the trials, evaluated on the test set unless it is to stay unseen."""
    assert progress.at is not None
    began = time.perf_counter()
    trained = progress.kept or progress.at.train_state.evaluated
    test_loss = test_accuracy = torch.full((len(progress.trials),), math.nan)
    if config.test:
        model = program_of(progress.trials[0].config).model
        with user_errors(progress.trials[0].config):
            params, state = trained
            tested = evaluate(model, params, state, test)
        test_loss, test_accuracy = tested.loss, tested.accuracy
    results = []
    for lane, trial in enumerate(progress.trials):
        failed = trial.number in progress.failed
        history = tuple(progress.histories.get(trial.number, ()))
        results.append(
            TrialResult(
                number=trial.number,
                point=trial.point,
                state="FAIL" if failed else "COMPLETE",
                history=history,
                test_loss=math.nan if failed else test_loss[lane].item(),
                test_accuracy=math.nan if failed else test_accuracy[lane].item(),
                seconds=(progress.seconds + time.perf_counter() - began) / len(progress.trials),
                reason=progress.failed.get(trial.number, ""),
                **grid.counting(config, history),
            )
        )
    return results
