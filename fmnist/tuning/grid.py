"""The grid as Optuna knows it: asking for trials, reporting, telling, and reading them back."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from fmnist.config.results import EpochMetrics, Point, TrialResult, Value
from fmnist.config.study import StudyConfig, TrialConfig
from fmnist.tuning.storage import DAMAGED, sound, trials
from fmnist.utils.errors import UserError

HISTORY = "fmnist:history"
REASON = "fmnist:reason"
CHECK = "fmnist:sha256"
PARAMETERS = "fmnist:parameters_sha256"


class Trial(NamedTuple):
    """A grid point that Optuna gave us to train."""

    number: int
    point: Point
    config: TrialConfig
    handle: optuna.Trial
    reported: Mapping[int, float]  # what Optuna has of each epoch


def distribution(values: Sequence[Value]) -> BaseDistribution:
    """How an axis is described to Optuna: numbers stay numbers, so its plots have true scales."""
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < len(values):
        return CategoricalDistribution(list(values))
    low, high = min(numbers), max(numbers)
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high)
    return FloatDistribution(low, high, log=low > 0 and high / low >= 10)


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


def _requeue_lost(study: optuna.Study, diverged: bool) -> None:
    """Queue again what failed without diverging: something outside ended it.

    What diverged is queued again only when that is asked for; it will do so again, unless what
    made it diverge is gone.

    GridSampler counts a failed point as visited, so the new trial carries its grid id, as
    optuna.storages.RetryHeartbeatStaleTrialCallback does.
    """
    by_point: dict[object, list[FrozenTrial]] = {}
    for trial in study.get_trials(deepcopy=False):
        by_point.setdefault(trial.system_attrs.get("grid_id"), []).append(trial)
    for tries in by_point.values():
        last = tries[-1]
        if last.state == TrialState.FAIL and (diverged or REASON not in last.user_attrs):
            study.add_trial(
                optuna.create_trial(
                    state=TrialState.WAITING,
                    params=last.params,
                    distributions=last.distributions,
                    system_attrs=last.system_attrs,
                )
            )


def pending(study: optuna.Study, config: StudyConfig, *, retry_failed: bool = False) -> list[Trial]:
    """The trials still to train: those a killed run left, then the rest of the grid.

    Points whose trial diverged are tried again, as new trials, if ``retry_failed``.

    A trial that is RUNNING when nobody else works on the study was interrupted; it is taken up
    under its own number, from its beginning, as if it had not been interrupted.
    """
    _requeue_lost(study, retry_failed)
    for trial in study.get_trials(deepcopy=False):
        if trial.state == TrialState.RUNNING and "grid_id" not in trial.system_attrs:
            study.sampler.before_trial(study, trial)  # killed before it was given its point
    known = study.get_trials(deepcopy=False)
    handles = [
        optuna.Trial(study, trial._trial_id) for trial in known if trial.state == TrialState.RUNNING
    ]
    waiting = sum(trial.state == TrialState.WAITING for trial in known)
    visited = {trial.system_attrs.get("grid_id") for trial in known} - {None}
    handles += [study.ask() for _ in range(waiting + config.size - len(visited))]
    reported = {trial.number: trial.intermediate_values for trial in known}
    trials = []
    for handle in sorted(handles, key=lambda handle: handle.number):
        point = suggest(handle, config.grid)
        before = reported.get(handle.number, {})
        trials.append(Trial(handle.number, point, config.trial(point), handle, before))
    return trials


def unfinished(study: optuna.Study) -> bool:
    """Whether a trial waits or was interrupted."""
    return any(not trial.state.is_finished() for trial in study.get_trials(deepcopy=False))


def report(trial: Trial, value: float, step: int) -> None:
    """Report an epoch's value, once.

    An interrupted trial that is taken up again has reported its first epochs; Optuna keeps the
    first report of a step and warns about a second. The values are the same, but for rounding
    where another device or number of threads goes on: then the last one counts.
    """
    if step not in trial.reported:
        trial.handle.report(value, step)
    elif trial.reported[step] != value:
        storage = trial.handle.study._storage
        storage.set_trial_intermediate_value(trial.handle._trial_id, step, value)


def tell(study: optuna.Study, trial: Trial, result: TrialResult, config: StudyConfig) -> None:
    """Store the result and finish the trial; after this Optuna refuses attributes."""
    # Not a user attribute: those are shown, and this one is longer than any page is wide.
    history = [list(metrics) for metrics in result.history]
    storage, key = study._storage, trial.handle._trial_id
    # As stored: the digest is of what Optuna shows, were there steps of an interrupted training
    # that got further before it was done again with other roundings.
    told = storage.get_trial(key)
    digest = _digest(result, told.system_attrs, told.intermediate_values)
    storage.set_trial_system_attr(key, HISTORY, history)
    storage.set_trial_system_attr(key, CHECK, digest)
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


def note_parameters(study: optuna.Study, number: int, sha256: str) -> None:
    """Store what the file of a trial's parameters must be, before the trial is told."""
    key = study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
    study._storage.set_trial_system_attr(key, PARAMETERS, sha256)


def parameter_sums(study: optuna.Study, results: Iterable[TrialResult]) -> dict[int, str]:
    """The SHA-256 of the file of parameters behind each of these results, by trial number."""
    attrs = [trial.system_attrs for trial in study.get_trials(deepcopy=False)]
    numbers = [result.number for result in results if PARAMETERS in attrs[result.number]]
    return {number: attrs[number][PARAMETERS] for number in numbers}


def results(study: optuna.Study, config: StudyConfig) -> list[TrialResult]:
    """Every finished grid point, by number; of a point tried twice, the last.

    Raises:
        UserError: A stored trial differs from what was written when it ended.
    """
    by_point: dict[str, TrialResult] = {}
    with sound():
        for trial in trials(study):
            if trial.state.is_finished() and not _was_lost(trial):
                result = _result(trial, config)
                by_point[repr(result.point)] = result
    return sorted(by_point.values(), key=lambda result: result.number)


def check_whole(results: Sequence[TrialResult], config: StudyConfig) -> None:
    """See that a study that was trained to its end has a result for each grid point.

    Raises:
        UserError: A grid point has no result.
    """
    if len(results) != config.size:
        raise UserError(f"{DAMAGED} (it has {len(results)} results of {config.size})")


def _was_lost(trial: FrozenTrial) -> bool:
    """Whether something outside ended the trial: it failed without being told how it went."""
    told = {HISTORY, CHECK, REASON} & (trial.system_attrs.keys() | trial.user_attrs.keys())
    return trial.state == TrialState.FAIL and not told


def _result(trial: FrozenTrial, config: StudyConfig) -> TrialResult:
    """How a trial ended.

    Raises:
        ValueError: The stored trial differs from what was written when it ended.
    """
    attrs, more = trial.user_attrs, trial.system_attrs
    if trial.state not in (TrialState.COMPLETE, TrialState.FAIL):
        raise ValueError(f"trial {trial.number} is {trial.state.name}")
    for lost, what in {HISTORY: "history", CHECK: "checksum"}.items():
        if lost not in more:
            raise ValueError(f"trial {trial.number} has no {what}")
    result = TrialResult(
        number=trial.number,
        point={key: trial.params[key] for key in config.grid},
        state="COMPLETE" if trial.state == TrialState.COMPLETE else "FAIL",
        history=tuple(EpochMetrics(*row) for row in more[HISTORY]),
        test_loss=attrs.get("test_loss", math.nan),
        test_accuracy=attrs.get("test_accuracy", math.nan),
        seconds=attrs["seconds"],
        reason=attrs.get(REASON, ""),
    )
    values = [getattr(result.last, config.metric)] if result.state == "COMPLETE" else None
    if trial.values != values or more[CHECK] != _digest(result, more, trial.intermediate_values):
        raise ValueError(f"trial {trial.number} is not as it was written")
    return result


def _digest(result: TrialResult, attrs: Mapping[str, object], reported: Mapping[int, float]) -> str:
    """Of a result, its parameters' file, its place in the grid, and the curve Optuna shows."""
    told = (
        result.number,
        sorted(result.point.items()),
        result.state,
        [tuple(metrics) for metrics in result.history],
        (result.test_loss, result.test_accuracy, result.seconds, result.reason),
        attrs.get(PARAMETERS),
        attrs.get("grid_id"),
        sorted(reported.items()),
    )
    # By repr: floats as they are, NaN included, and any text.
    return hashlib.sha256(repr(told).encode("utf-8", "surrogatepass")).hexdigest()
