"""The trials of the grid in Optuna: asked for, reported, finished and read."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from fmnist.config.results import EpochMetrics, Point, TrialResult, Value, best_epoch
from fmnist.config.study import StudyConfig
from fmnist.config.trial import TrialConfig
from fmnist.tuning.origin import CHECK, HISTORY, ORIGIN, REASON, origin, ours, point_attrs
from fmnist.tuning.storage import DAMAGED, sound, trials
from fmnist.utils.errors import UserError

PARAMETERS = "fmnist:parameters_sha256"


class Trial(NamedTuple):
    """A trial of Optuna to train."""

    number: int
    point: Point
    config: TrialConfig
    handle: optuna.Trial
    reported: Mapping[int, float]  # values by epoch that Optuna already has


def distribution(values: Sequence[Value]) -> BaseDistribution:
    """Return the distribution of an axis. Numbers are not categories, so plots have a scale."""
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < len(values):
        return CategoricalDistribution(list(values))
    low, high = min(numbers), max(numbers)
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high)
    return FloatDistribution(low, high, log=low > 0 and high / low >= 10)


def suggest(handle: optuna.Trial, axes: Mapping[str, Sequence[Value]]) -> dict[str, Value]:
    """Return the point of the grid of a trial."""
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


def pending(study: optuna.Study, config: StudyConfig, *, retry_failed: bool = False) -> list[Trial]:
    """Return the trials to train, by number. They wait until :func:`begin`.

    In a new study the trials have the order of the grid: trial k is point k. No other process works
    on the study, so a RUNNING trial was interrupted. It keeps its number. Trials are not asked of
    Optuna, which would take those that others enqueued.

    Args:
        study: the study.
        config: its configuration.
        retry_failed: whether to train points that diverged again, as new trials.

    Raises:
        UserError: Trials of another origin make Optuna refuse an axis.
    """
    last = {trial.system_attrs["grid_id"]: trial for trial in ours(study, config)}
    for grid_id, point in _points(study, config).items():
        known = last.get(grid_id)
        if known is None or (retry_failed and known.state == TrialState.FAIL):
            _add(study, config, grid_id, point)
    trials = []
    for trial in ours(study, config):
        if not trial.state.is_finished():
            handle = optuna.Trial(study, trial._trial_id)
            with _scales_of_others(config):  # an earlier version added trials without a point
                point = suggest(handle, config.grid)
            values = trial.intermediate_values
            trials.append(Trial(handle.number, point, config.trial(point), handle, values))
            if trial.state == TrialState.RUNNING:
                pause(trials[-1:])
    return trials


def _points(study: optuna.Study, config: StudyConfig) -> dict[int, Point]:
    """Return the points of the grid by GridSampler's id, in the order of the grid.

    GridSampler numbers the points in a random order, which is the same each time.
    """
    axes = {key: distribution(values) for key, values in config.grid.items()}
    ids: dict[tuple[Value, ...], int] = {}
    for grid_id in range(config.size):
        attrs = point_attrs(config, grid_id)
        trial = optuna.create_trial(state=TrialState.WAITING, system_attrs=attrs)
        point = (study.sampler.sample_independent(study, trial, *axis) for axis in axes.items())
        ids[tuple(point)] = grid_id
    return {ids[tuple(point.values())]: point for point in config.points()}


def _add(study: optuna.Study, config: StudyConfig, grid_id: int, point: Point) -> None:
    trial = optuna.create_trial(
        state=TrialState.WAITING,
        params=dict(point),
        distributions={key: distribution(values) for key, values in config.grid.items()},
        system_attrs=point_attrs(config, grid_id),
    )
    with _scales_of_others(config):
        study.add_trial(trial)


@contextlib.contextmanager
def _scales_of_others(config: StudyConfig) -> Iterator[None]:
    """Raise Optuna's refusal of an axis as an error of the user."""
    try:
        yield
    except ValueError as error:
        axes = ", ".join(config.grid)
        raise UserError(
            f"trials of another origin in the storage have the axes {axes} on other "
            f"scales ({error}); choose another --out and name (--set name=...)"
        ) from error


def begin(trials: Sequence[Trial]) -> None:
    """Tell Optuna that these trials are trained from now on: their time starts.

    Raises:
        UserError: Another program has ended a trial.
    """
    _set_state(trials, TrialState.RUNNING)


def pause(trials: Sequence[Trial]) -> None:
    """Tell Optuna that these trials wait. Optuna forgets when they started.

    Raises:
        UserError: Another program has ended a trial.
    """
    _set_state(trials, TrialState.WAITING)


def _set_state(trials: Sequence[Trial], state: TrialState) -> None:
    for trial in trials:
        with _not_ended(trial):
            trial.handle.storage.set_trial_state_values(trial.handle._trial_id, state)


@contextlib.contextmanager
def _not_ended(trial: Trial) -> Iterator[None]:
    try:
        yield
    except UpdateFinishedTrialError as error:
        raise UserError(
            f"another program has ended trial {trial.number} in the storage; give the same "
            "command again, which trains its configuration as a new trial"
        ) from error


def unfinished(study: optuna.Study, config: StudyConfig) -> bool:
    """Whether a trial is waiting or was interrupted."""
    return any(not trial.state.is_finished() for trial in ours(study, config))


def report(trial: Trial, value: float, step: int) -> None:
    """Report the value of an epoch, unless Optuna already has it.

    A resumed trial may repeat epochs. Optuna warns about a second report of an epoch and ignores
    it. The values are equal, except on another device or with another number of threads: there
    rounding may differ, and the new value replaces the old one.
    """
    if step not in trial.reported:
        trial.handle.report(value, step)
    elif trial.reported[step] != value:
        storage = trial.handle.study._storage
        storage.set_trial_intermediate_value(trial.handle._trial_id, step, value)


def tell(study: optuna.Study, trial: Trial, result: TrialResult, config: StudyConfig) -> None:
    """Store the result of a trial that has begun, and finish it: it takes no more attributes.

    Raises:
        UserError: Another program has ended the trial.
    """
    # Not a user attribute, as optuna-dashboard shows those and this one is long.
    history = [list(metrics) for metrics in result.history]
    storage, key = study._storage, trial.handle._trial_id
    # From the storage, as it may have epochs of an interrupted training that are not in `trial`.
    stored = storage.get_trial(key)
    digest = _digest(result, stored.system_attrs, stored.intermediate_values)
    with _not_ended(trial):
        storage.set_trial_system_attr(key, HISTORY, history)
    storage.set_trial_system_attr(key, CHECK, digest)
    storage.set_trial_system_attr(key, ORIGIN, origin(study, trial.number))
    trial.handle.set_user_attr("seconds", result.seconds)
    if result.state == "FAIL":
        trial.handle.set_user_attr(REASON, result.reason)
        value, state = None, TrialState.FAIL
    else:
        for name in ("test_loss", "test_accuracy") if config.test else ():
            trial.handle.set_user_attr(name, getattr(result, name))
        value, state = getattr(result.final, config.metric), TrialState.COMPLETE
    try:
        study.tell(trial.handle, value, state=state)
    except RuntimeError as error:
        # GridSampler stops the study after its last point. Outside optimize() this raises an
        # error: optuna/optuna#4121. The trial is already stored.
        if "Study.stop" not in str(error):
            raise


def counting(config: StudyConfig, history: Sequence[EpochMetrics]) -> dict[str, int]:
    """Return which epochs of a trial count: ``kept`` and ``window`` of its result."""
    if config.keep == "best":
        return {"kept": best_epoch(history, config.metric), "window": 1}
    return {"kept": 0, "window": config.metric_window}


def note_parameters(study: optuna.Study, number: int, sha256: str) -> None:
    """Store the SHA-256 of the parameter file of a trial that is not finished yet."""
    key = study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
    study._storage.set_trial_system_attr(key, PARAMETERS, sha256)


def parameter_sums(study: optuna.Study, results: Iterable[TrialResult]) -> dict[int, str]:
    """Return the SHA-256 of the parameter file of each result, by trial number."""
    attrs = [trial.system_attrs for trial in study.get_trials(deepcopy=False)]
    numbers = [result.number for result in results if PARAMETERS in attrs[result.number]]
    return {number: attrs[number][PARAMETERS] for number in numbers}


def results(study: optuna.Study, config: StudyConfig) -> list[TrialResult]:
    """Return the results of the finished points, in the order of the grid.

    The last trial of a point counts.

    Raises:
        UserError: A stored trial differs from what was written when it ended.
    """
    by_point: dict[tuple[Value, ...], TrialResult] = {}
    with sound():
        trials(study)
        for trial in ours(study, config):
            if trial.state.is_finished():
                result = _result(trial, config)
                by_point[tuple(result.point.values())] = result
    points = (tuple(point.values()) for point in config.points())
    return [by_point[point] for point in points if point in by_point]


def check_whole(results: Sequence[TrialResult], config: StudyConfig) -> None:
    """Check that a complete study has a result for each grid point.

    Raises:
        UserError: A grid point has no result.
    """
    if len(results) != config.size:
        raise UserError(f"{DAMAGED} (it has {len(results)} results of {config.size})")


def _result(trial: FrozenTrial, config: StudyConfig) -> TrialResult:
    """Read the result of a finished trial.

    Raises:
        ValueError: The stored trial differs from what was written when it ended.
    """
    attrs, system_attrs = trial.user_attrs, trial.system_attrs
    if trial.state not in (TrialState.COMPLETE, TrialState.FAIL):
        raise ValueError(f"trial {trial.number} is {trial.state.name}")
    for key, name in {HISTORY: "history", CHECK: "checksum"}.items():
        if key not in system_attrs:
            raise ValueError(f"trial {trial.number} has no {name}")
    result = TrialResult(
        number=trial.number,
        point={key: trial.params[key] for key in config.grid},
        state="COMPLETE" if trial.state == TrialState.COMPLETE else "FAIL",
        history=tuple(EpochMetrics(*row) for row in system_attrs[HISTORY]),
        test_loss=attrs.get("test_loss", math.nan),
        test_accuracy=attrs.get("test_accuracy", math.nan),
        seconds=attrs["seconds"],
        reason=attrs.get(REASON, ""),
        **counting(config, [EpochMetrics(*row) for row in system_attrs[HISTORY]]),
    )
    values = [getattr(result.final, config.metric)] if result.state == "COMPLETE" else None
    digest = _digest(result, system_attrs, trial.intermediate_values)
    if trial.values != values or system_attrs[CHECK] != digest:
        raise ValueError(f"trial {trial.number} is not as it was written")
    return result


def _digest(result: TrialResult, attrs: Mapping[str, object], reported: Mapping[int, float]) -> str:
    """Return the SHA-256 of a result, its parameter file, its grid id and its reported values."""
    content = (
        result.number,
        sorted(result.point.items()),
        result.state,
        [tuple(metrics) for metrics in result.history],
        (result.test_loss, result.test_accuracy, result.seconds, result.reason),
        attrs.get(PARAMETERS),
        attrs.get("grid_id"),
        sorted(reported.items()),
    )
    # repr is exact for floats, also for NaN.
    return hashlib.sha256(repr(content).encode("utf-8", "surrogatepass")).hexdigest()
