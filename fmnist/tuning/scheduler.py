"""Trains the grid: groups the trials, runs each group as lanes, and tells Optuna of each lane.

:func:`run` is a generator of events. What looks at a study (terminal, TensorBoard) acts on an
event before the generator goes on, so everything is written before Optuna is told: a trial
that Optuna calls finished has left all its traces.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import optuna
import torch

from fmnist.config.results import EpochMetrics, TrialResult, label
from fmnist.config.study import StudyConfig, TrialConfig
from fmnist.engine import trainer
from fmnist.engine.evaluation import evaluate
from fmnist.functional import vmap
from fmnist.functional.types import Metrics, Split
from fmnist.tuning import grid
from fmnist.tuning.events import (
    EpochFinished,
    Event,
    GroupStarted,
    LanesHalved,
    TrialFinished,
)
from fmnist.tuning.progress import Checkpointer, GroupProgress, lanes_of, program_of
from fmnist.utils import memory
from fmnist.utils.errors import UserError
from fmnist.utils.signals import Stop

T = TypeVar("T")

MOST_LANES = 128
"""However much memory there is: a kill loses the epochs of all of them."""


class Splits(NamedTuple):
    """The examples of a study, on the device that trains."""

    training: Split
    validation: Split
    test: Split


def chunks(items: Iterable[T], key: Callable[[T], object], most: int) -> list[list[T]]:
    """Items of equal key together, at most ``most`` in a list, in the order they came."""
    together: dict[object, list[T]] = {}
    for item in items:
        together.setdefault(key(item), []).append(item)
    return [
        group[start : start + most]
        for group in together.values()
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
    """Train every trial of the grid that is not finished, and tell Optuna of each.

    Args:
        study, config, splits: what to train, and on what.
        max_lanes: at once, at most; by default as many as memory allows.
        checkpointer: keeps where the groups are, and knows where they were.
        stop: looked at after every step; once requested, the step is kept and its error raised.
        retry_failed: try again the points whose trial diverged.

    Yields:
        Events, each before its consequence is told to Optuna.
    """
    trials = grid.pending(study, config, retry_failed=retry_failed)
    device = splits.training.images.device
    groups = checkpointer.restore(trials, device) if checkpointer else []
    known = {trial.number for progress in groups for trial in progress.trials}
    fresh = [trial for trial in trials if trial.number not in known]
    most = max_lanes or lanes_that_fit([trial.config for trial in fresh], device)
    groups += [
        GroupProgress(some) for some in chunks(fresh, lambda trial: trial.config.static, most)
    ]
    waiting = deque(groups)
    index = 0
    while waiting:
        left = sum(len(some.trials) * (config.epochs - some.epoch) for some in waiting)
        progress = waiting.popleft()
        total = index + 1 + len(waiting)
        configs = [trial.config for trial in progress.trials]
        how = _variant_name(configs, splits.training)
        yield GroupStarted(
            index=index,
            total=total,
            trials=progress.trials,
            epochs=config.epochs,
            epochs_left=left,
            images=len(splits.training.labels),
            histories=progress.histories,
            variant=how,
        )
        halves = yield from _train(study, config, progress, splits, checkpointer, stop or Stop())
        waiting.extendleft(reversed(halves))
        index += not halves


def _variant_name(configs: Sequence[TrialConfig], training: Split) -> str:
    """The variant that these lanes will train with; empty where memory runs out already here."""
    try:
        return trainer.variant(program_of(configs[0]), lanes_of(configs), training)[0]
    except (RuntimeError, MemoryError) as error:
        if not memory.ran_out(error):
            raise
        memory.release()  # training will find out, and halve the lanes
        return ""


def _train(
    study: optuna.Study,
    config: StudyConfig,
    progress: GroupProgress,
    splits: Splits,
    checkpointer: Checkpointer | None,
    stop: Stop,
) -> Generator[Event, None, list[GroupProgress]]:
    """Train one group to its end and tell each of its lanes as its own trial.

    Returns:
        When memory runs out, the lanes in two halves, each where it was; else nothing is left.
    """
    try:
        yield from _epochs(config, progress, splits, checkpointer, stop)
        results = _finish(progress, splits.test)
    except (RuntimeError, MemoryError, OSError) as error:
        if not memory.ran_out(error):
            raise
        if len(progress.trials) == 1:
            what = label(progress.trials[0].point)
            raise UserError(f"there is not enough memory to train {what} even alone") from error
    else:
        assert progress.at is not None
        trained = progress.at.train_state
        for lane, (trial, result) in enumerate(zip(progress.trials, results, strict=True)):
            own = vmap.take((trained.params, trained.state), torch.tensor(lane))
            yield TrialFinished(result, *own)
            grid.tell(study, trial, result, config)
        if checkpointer:
            checkpointer.forget(progress)
        return []
    memory.release()
    yield LanesHalved(len(progress.trials), progress.epoch)
    halves = progress.halves()
    if checkpointer:
        for half in halves:
            checkpointer.save(half)
        checkpointer.forget(progress)
    return halves


def _epochs(
    config: StudyConfig,
    progress: GroupProgress,
    splits: Splits,
    checkpointer: Checkpointer | None,
    stop: Stop,
) -> Iterator[Event]:
    """Train the epochs that are left, keeping ``progress`` up to date."""
    began, before = time.perf_counter(), progress.seconds
    configs = [trial.config for trial in progress.trials]
    for event in trainer.train_lanes(
        program_of(configs[0]),
        lanes_of(configs),
        splits.training,
        splits.validation,
        epochs=config.epochs,
        resume=progress.at,
    ):
        inside = isinstance(event, trainer.TrainerState)
        if inside and not (stop.requested or (checkpointer and checkpointer.overdue())):
            continue
        progress.seconds = before + time.perf_counter() - began
        if isinstance(event, trainer.TrainerState):
            progress.at = event
        else:
            sound = _measured(config, progress, event)
            progress.at = trainer.TrainerState(event.epoch, event.train_state)
            yield EpochFinished(event.epoch, sound, progress.seconds)
        done = len(progress.failed) == len(progress.trials) or progress.epoch == config.epochs
        if checkpointer and (inside or done or stop.requested or checkpointer.due()):
            checkpointer.save(progress)
        stop.check()
        if done:
            break


def _measured(
    config: StudyConfig, progress: GroupProgress, epoch: trainer.EpochResult
) -> dict[int, EpochMetrics]:
    """Every sound lane's metrics of an epoch, reported to Optuna; the others have failed."""
    sound: dict[int, EpochMetrics] = {}
    measured = epoch_metrics(epoch.train, epoch.validation)
    for trial, metrics in zip(progress.trials, measured, strict=True):
        if trial.number in progress.failed:
            continue
        if not all(map(math.isfinite, metrics)):
            progress.failed[trial.number] = f"the loss was not finite in epoch {epoch.epoch}"
            continue
        progress.histories.setdefault(trial.number, []).append(metrics)
        sound[trial.number] = metrics
        grid.report(trial, getattr(metrics, config.metric), epoch.epoch)
    return sound


def _finish(progress: GroupProgress, test: Split) -> list[TrialResult]:
    """Evaluate every lane on the test set, once, and say how its trial ended."""
    assert progress.at is not None
    began = time.perf_counter()
    trained = progress.at.train_state
    model = program_of(progress.trials[0].config).model
    tested = evaluate(model, trained.params, trained.state, test)
    test_loss, test_accuracy = tested.loss, tested.accuracy
    results = []
    for lane, trial in enumerate(progress.trials):
        bad = trial.number in progress.failed
        results.append(
            TrialResult(
                number=trial.number,
                point=trial.point,
                state="FAIL" if bad else "COMPLETE",
                history=tuple(progress.histories.get(trial.number, ())),
                test_loss=math.nan if bad else test_loss[lane].item(),
                test_accuracy=math.nan if bad else test_accuracy[lane].item(),
                seconds=(progress.seconds + time.perf_counter() - began) / len(progress.trials),
                reason=progress.failed.get(trial.number, ""),
            )
        )
    return results


def lanes_that_fit(configs: Sequence[TrialConfig], device: torch.device) -> int:
    """How many lanes of the largest of these configurations fit in half of the free memory.

    Half, because the estimate is one: what does not fit all the same is halved when it shows.
    """
    largest = max((trainer.lane_bytes(program_of(config)) for config in configs), default=1)
    on_gpu = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if on_gpu else memory.available()
    return max(1, min(MOST_LANES, free // 2 // largest))


def epoch_metrics(train: Metrics, validation: Metrics) -> list[EpochMetrics]:
    """The lanes' metrics of an epoch as Python numbers."""
    columns = (train.loss, train.accuracy, validation.loss, validation.accuracy)
    return [EpochMetrics(*row) for row in torch.stack(columns, dim=1).tolist()]
