"""The grid in Optuna: asking for trials, grouping them, training the groups, telling.

:func:`run` is a generator of events. What looks at a study (terminal, TensorBoard) acts on an
event before the generator goes on, so everything is written before Optuna is told: a trial
that Optuna calls finished has left all its traces.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import optuna
import torch
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from fmnist import loop
from fmnist.config import StudyConfig, TrialConfig, differences
from fmnist.errors import UserError
from fmnist.functional import lanes, losses
from fmnist.functional.types import Metrics, Params, Split, State
from fmnist.results import EpochMetrics, Point, TrialResult, Value

CONFIG = "fmnist:config"
HISTORY = "fmnist:history"
REASON = "fmnist:reason"

T = TypeVar("T")


class StudyMismatchError(UserError):
    """The storage holds another study under this name; says what differs."""


class Trial(NamedTuple):
    """A grid point that Optuna gave us to train."""

    number: int
    point: Point
    config: TrialConfig
    handle: optuna.Trial
    reported: frozenset[int]  # epochs whose value Optuna has


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


Event = GroupStarted | EpochFinished | TrialFinished


def distribution(values: Sequence[Value]) -> BaseDistribution:
    """How an axis is described to Optuna: numbers stay numbers, so its plots have true scales."""
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < len(values):
        return CategoricalDistribution(list(values))
    low, high = min(numbers), max(numbers)
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high)
    return FloatDistribution(low, high, log=low > 0 and high / low >= 10)


def open_study(config: StudyConfig, storage: str) -> optuna.Study:
    """Make the study, or load it when the storage has it.

    Raises:
        UserError: when the storage cannot be reached or used.
        StudyMismatchError: when a study of this name was made from another configuration.
            GridSampler would accept it: its seed permutes the grid and is not checked.
    """
    sampler = optuna.samplers.GridSampler(
        {key: list(values) for key, values in config.grid.items()}, seed=config.seed
    )
    try:
        study = optuna.create_study(
            study_name=config.name,
            storage=storage,
            sampler=sampler,
            direction=config.direction,
            load_if_exists=True,
        )
    except (SQLAlchemyError, ImportError, optuna.exceptions.StorageInternalError) as error:
        reason = " ".join(str(error).split()).split(" [SQL")[0][:300]
        raise UserError(f"--storage cannot be used: {reason}") from error
    stored = study.user_attrs.get(CONFIG)
    if stored is None:
        if study.get_trials(deepcopy=False):
            raise StudyMismatchError(f"study {config.name!r} in the storage is not one of fmnist's")
        with warnings.catch_warnings():  # "experimental" since Optuna 3.2
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([config.metric])
        study.set_user_attr(CONFIG, config.to_dict())
    elif changes := differences(StudyConfig.from_dict(stored), config):
        raise StudyMismatchError(
            f"study {config.name!r} is already there and differs: {'; '.join(changes)}"
        )
    return study


def suggest(handle: optuna.Trial, axes: Mapping[str, Sequence[Value]]) -> dict[str, Value]:
    """The point of the grid that Optuna gave this trial."""
    point: dict[str, Value] = {}
    for key, values in axes.items():
        match distribution(values):
            case FloatDistribution(low=low, high=high, log=log):
                point[key] = handle.suggest_float(key, low, high, log=log)
            case IntDistribution(low=low, high=high):
                point[key] = handle.suggest_int(key, low, high)
            case _:
                chosen = handle.suggest_categorical(key, list(values))
                assert chosen is not None  # no axis holds None
                point[key] = chosen
    return point


def _requeue_lost(study: optuna.Study) -> None:
    """Queue again what failed without diverging: something outside ended it.

    GridSampler counts a failed point as visited, so the new trial carries its grid id, as
    optuna.storages.RetryHeartbeatStaleTrialCallback does.
    """
    by_point: dict[object, list[FrozenTrial]] = {}
    for trial in study.get_trials(deepcopy=False):
        by_point.setdefault(trial.system_attrs.get("grid_id"), []).append(trial)
    for trials in by_point.values():
        last = trials[-1]
        if last.state == TrialState.FAIL and REASON not in last.user_attrs:
            study.add_trial(
                optuna.create_trial(
                    state=TrialState.WAITING,
                    params=last.params,
                    distributions=last.distributions,
                    system_attrs=last.system_attrs,
                )
            )


def pending(study: optuna.Study, config: StudyConfig) -> list[Trial]:
    """The trials still to train: those a killed run left, then the rest of the grid.

    A trial that is RUNNING when nobody else works on the study was interrupted; it is taken up
    under its own number, from its beginning, as if it had not been interrupted.
    """
    _requeue_lost(study)
    known = study.get_trials(deepcopy=False)
    handles = [
        optuna.Trial(study, trial._trial_id) for trial in known if trial.state == TrialState.RUNNING
    ]
    waiting = sum(trial.state == TrialState.WAITING for trial in known)
    visited = {trial.system_attrs.get("grid_id") for trial in known} - {None}
    handles += [study.ask() for _ in range(waiting + config.size - len(visited))]
    trials = []
    for handle in sorted(handles, key=lambda handle: handle.number):
        point = suggest(handle, config.grid)
        reported = frozenset(study.trials[handle.number].intermediate_values)
        trials.append(Trial(handle.number, point, config.trial(point), handle, reported))
    return trials


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
    training: Split,
    validation: Split,
    test: Split,
    *,
    max_lanes: int,
) -> Iterator[Event]:
    """Train every trial of the grid that is not finished, and tell Optuna of each.

    Yields:
        Events, each before its consequence is told to Optuna.
    """
    groups = chunks(pending(study, config), lambda trial: trial.config.static, max_lanes)
    for index, trials in enumerate(groups):
        left = sum(map(len, groups[index:])) * config.epochs
        yield GroupStarted(index, len(groups), trials, left)
        yield from _train(study, config, trials, training, validation, test)


def _train(
    study: optuna.Study,
    config: StudyConfig,
    trials: Sequence[Trial],
    training: Split,
    validation: Split,
    test: Split,
) -> Iterator[Event]:
    """Train one group and tell each of its lanes as its own trial."""
    group = group_of(trials)
    histories: dict[int, list[EpochMetrics]] = {trial.number: [] for trial in trials}
    failed: dict[int, str] = {}
    began = time.perf_counter()
    for epoch in loop.fit(group, training, validation, epochs=config.epochs):
        sound: dict[int, EpochMetrics] = {}
        for trial, metrics in zip(
            trials, epoch_metrics(epoch.train, epoch.validation), strict=True
        ):
            if trial.number in failed:
                continue
            if not all(map(math.isfinite, metrics)):
                failed[trial.number] = f"the loss was not finite in epoch {epoch.epoch}"
                continue
            histories[trial.number].append(metrics)
            sound[trial.number] = metrics
            _report(trial, getattr(metrics, config.metric), epoch.epoch)
        yield EpochFinished(epoch.epoch, sound, time.perf_counter() - began)
        if len(failed) == len(trials):
            break
    final = epoch.train_state
    tested = loop.evaluate(final.params, final.state, test)
    test_loss, test_accuracy = losses.mean_loss(tested), losses.accuracy(tested)
    seconds = (time.perf_counter() - began) / len(trials)
    for lane, trial in enumerate(trials):
        bad = trial.number in failed
        result = TrialResult(
            number=trial.number,
            point=trial.point,
            state="FAIL" if bad else "COMPLETE",
            history=tuple(histories[trial.number]),
            test_loss=math.nan if bad else test_loss[lane].item(),
            test_accuracy=math.nan if bad else test_accuracy[lane].item(),
            seconds=seconds,
            reason=failed.get(trial.number, ""),
        )
        own = lanes.take((final.params, final.state), torch.tensor(lane))
        yield TrialFinished(result, *own)
        _tell(study, trial, result, config)


def group_of(trials: Sequence[Trial]) -> loop.Group:
    """The program that these trials, equal in what is static, are lanes of."""
    static = trials[0].config.static
    return loop.Group(
        static.model,
        static.algorithm,
        static.nesterov,
        static.batch_size,
        tuple(loop.Lane(trial.config.seed, trial.config.hyperparams) for trial in trials),
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


def _report(trial: Trial, value: float, step: int) -> None:
    # An interrupted trial that is taken up again has reported its first epochs; Optuna keeps
    # the first report of a step and warns about a second. The values are the same.
    if step not in trial.reported:
        trial.handle.report(value, step)


def _tell(study: optuna.Study, trial: Trial, result: TrialResult, config: StudyConfig) -> None:
    """Store the result and finish the trial; after this Optuna refuses attributes."""
    trial.handle.set_user_attr(HISTORY, [list(metrics) for metrics in result.history])
    trial.handle.set_user_attr("seconds", result.seconds)
    if result.state == "FAIL":
        trial.handle.set_user_attr(REASON, result.reason)
        value, state = None, TrialState.FAIL
    else:
        trial.handle.set_user_attr("test_loss", result.test_loss)
        trial.handle.set_user_attr("test_accuracy", result.test_accuracy)
        value, state = getattr(result.last, config.metric), TrialState.COMPLETE
    try:
        study.tell(trial.handle, value, state=state)
    except RuntimeError as error:
        # GridSampler stops the study with its last point, and outside optimize() there is
        # nothing to stop: optuna/optuna#4121. The trial is stored by then.
        if "Study.stop" not in str(error):
            raise


def results(study: optuna.Study, config: StudyConfig) -> list[TrialResult]:
    """Every finished grid point, by number; of a point tried twice, the last."""
    by_point: dict[object, TrialResult] = {}
    for trial in study.get_trials(deepcopy=False):
        if not trial.state.is_finished() or HISTORY not in trial.user_attrs:
            continue
        attrs = trial.user_attrs
        by_point[trial.system_attrs.get("grid_id")] = TrialResult(
            number=trial.number,
            point={key: trial.params[key] for key in config.grid},
            state="COMPLETE" if trial.state == TrialState.COMPLETE else "FAIL",
            history=tuple(EpochMetrics(*row) for row in attrs[HISTORY]),
            test_loss=attrs.get("test_loss", math.nan),
            test_accuracy=attrs.get("test_accuracy", math.nan),
            seconds=attrs["seconds"],
            reason=attrs.get(REASON, ""),
        )
    return sorted(by_point.values(), key=lambda result: result.number)
