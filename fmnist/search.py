"""Trains the grid: groups the trials, runs each group as lanes, and tells Optuna of each lane.

:func:`run` is a generator of events. What looks at a study (terminal, TensorBoard) acts on an
event before the generator goes on, so everything is written before Optuna is told: a trial
that Optuna calls finished has left all its traces.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import optuna
import torch

from fmnist import grid, loop, provenance
from fmnist.config import StudyConfig, TrialConfig
from fmnist.errors import UserError
from fmnist.functional import lanes, losses, model
from fmnist.functional.types import Metrics, Params, Split, State, TrainState
from fmnist.grid import Trial
from fmnist.results import EpochMetrics, TrialResult, label

T = TypeVar("T")

MOST_LANES = 128
"""However much memory there is: a kill loses the epochs of all of them."""


class Splits(NamedTuple):
    """The examples of a study, on the device that trains."""

    training: Split
    validation: Split
    test: Split


@dataclass(frozen=True)
class GroupStarted:
    """A group is about to train; ``index`` counts from 0 among ``total``."""

    index: int
    total: int
    trials: Sequence[Trial]
    epochs_left: int  # of all trials of this and the later groups, in trial epochs


@dataclass(frozen=True)
class EpochFinished:
    """Every sound lane's metrics of an epoch, by trial number; ``seconds`` for the whole group."""

    epoch: int
    metrics: dict[int, EpochMetrics]
    seconds: float


@dataclass(frozen=True)
class TrialFinished:
    """A trial ended and Optuna has not been told yet."""

    result: TrialResult
    params: Params
    state: State


@dataclass(frozen=True)
class LanesHalved:
    """Memory ran out: so many lanes go on in two halves from after this epoch."""

    lanes: int
    epoch: int


Event = GroupStarted | EpochFinished | TrialFinished | LanesHalved


@dataclass
class _Progress:
    """What is known of some lanes of a group so far."""

    trials: Sequence[Trial]
    epoch: int = 0
    state: TrainState | None = None  # after that epoch
    histories: dict[int, list[EpochMetrics]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0

    def halves(self) -> list[_Progress]:
        """The same for each half of the lanes, which then go on by themselves."""
        middle = len(self.trials) // 2
        parts = []
        for chosen in (range(middle), range(middle, len(self.trials))):
            state = None
            if self.state is not None:
                state = lanes.take(self.state, torch.tensor(list(chosen)))
            trials = [self.trials[i] for i in chosen]
            share = self.seconds * len(trials) / len(self.trials)
            parts.append(_Progress(trials, self.epoch, state, self.histories, self.failed, share))
        return parts


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
) -> Iterator[Event]:
    """Train every trial of the grid that is not finished, and tell Optuna of each.

    Yields:
        Events, each before its consequence is told to Optuna.
    """
    trials = grid.pending(study, config)
    device = splits.training.images.device
    most = max_lanes or lanes_that_fit([trial.config for trial in trials], device)
    groups = chunks(trials, lambda trial: trial.config.static, most)
    for index, trials in enumerate(groups):
        left = sum(map(len, groups[index:])) * config.epochs
        yield GroupStarted(index, len(groups), trials, left)
        yield from _train(study, config, _Progress(trials), splits)


def _train(
    study: optuna.Study, config: StudyConfig, progress: _Progress, splits: Splits
) -> Iterator[Event]:
    """Train one group to its end and tell each of its lanes as its own trial.

    When memory runs out the lanes go on in two halves from the last whole epoch.
    """
    try:
        yield from _epochs(config, progress, splits)
        results = _finish(progress, splits.test)
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        if len(progress.trials) == 1:
            what = label(progress.trials[0].point)
            raise UserError(f"there is not enough memory to train {what} even alone") from error
    else:
        assert progress.state is not None
        for lane, (trial, result) in enumerate(zip(progress.trials, results, strict=True)):
            own = lanes.take((progress.state.params, progress.state.state), torch.tensor(lane))
            yield TrialFinished(result, *own)
            grid.tell(study, trial, result, config)
        return
    _free_memory()
    yield LanesHalved(len(progress.trials), progress.epoch)
    for half in progress.halves():
        yield from _train(study, config, half, splits)


def _epochs(config: StudyConfig, progress: _Progress, splits: Splits) -> Iterator[Event]:
    """Train the epochs that are left, keeping ``progress`` up to date."""
    resume = None
    if progress.state is not None:
        resume = loop.LoopState(progress.epoch, progress.state)
    began, before = time.perf_counter(), progress.seconds
    group = group_of([trial.config for trial in progress.trials])
    for epoch in loop.fit(
        group, splits.training, splits.validation, epochs=config.epochs, resume=resume
    ):
        sound: dict[int, EpochMetrics] = {}
        measured = epoch_metrics(epoch.train, epoch.validation)
        for trial, metrics in zip(progress.trials, measured, strict=True):
            if trial.number in progress.failed:
                continue
            if not all(map(math.isfinite, metrics)):
                reason = f"the loss was not finite in epoch {epoch.epoch}"
                progress.failed[trial.number] = reason
                continue
            progress.histories.setdefault(trial.number, []).append(metrics)
            sound[trial.number] = metrics
            grid.report(trial, getattr(metrics, config.metric), epoch.epoch)
        progress.epoch, progress.state = epoch.epoch, epoch.train_state
        progress.seconds = before + time.perf_counter() - began
        yield EpochFinished(epoch.epoch, sound, progress.seconds)
        if all(trial.number in progress.failed for trial in progress.trials):
            break


def _finish(progress: _Progress, test: Split) -> list[TrialResult]:
    """Evaluate every lane on the test set, once, and say how its trial ended."""
    assert progress.state is not None
    began = time.perf_counter()
    compute = model.compute_dtype(progress.trials[0].config.model)
    tested = loop.evaluate(progress.state.params, progress.state.state, test, compute=compute)
    test_loss, test_accuracy = losses.mean_loss(tested), losses.accuracy(tested)
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


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, the CPU's allocator or Python itself had no more memory to give."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return "not enough memory" in text or "can't allocate memory" in text


def _free_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def lanes_that_fit(configs: Sequence[TrialConfig], device: torch.device) -> int:
    """How many lanes of the largest of these configurations fit in half of the free memory.

    Half, because the estimate is one: what does not fit all the same is halved when it shows.
    """
    largest = max((loop.lane_bytes(group_of([config])) for config in configs), default=1)
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = provenance.available_memory()
    return max(1, min(MOST_LANES, free // 2 // largest))


def group_of(configs: Sequence[TrialConfig]) -> loop.Group:
    """The program that these configurations, equal in what is static, are lanes of."""
    static = configs[0].static
    return loop.Group(
        static.model,
        static.algorithm,
        static.nesterov,
        static.batch_size,
        tuple(loop.Lane(config.seed, config.hyperparams) for config in configs),
    )


def epoch_metrics(train: Metrics, validation: Metrics) -> list[EpochMetrics]:
    """The lanes' metrics of an epoch as Python numbers."""
    columns = (
        losses.mean_loss(train),
        losses.accuracy(train),
        losses.mean_loss(validation),
        losses.accuracy(validation),
    )
    return [EpochMetrics(*row) for row in torch.stack(columns, dim=1).tolist()]
