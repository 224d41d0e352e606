"""The grid as Optuna knows it: asking for trials, reporting, telling, and reading them back."""

from __future__ import annotations

import contextlib
import hashlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import optuna
import sqlalchemy
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from fmnist import passwords, trouble
from fmnist.config import StudyConfig, TrialConfig, differences
from fmnist.errors import UserError
from fmnist.results import EpochMetrics, Point, TrialResult, Value

CONFIG = "fmnist:config"
HISTORY = "fmnist:history"
REASON = "fmnist:reason"
CHECK = "fmnist:sha256"
PARAMETERS = "fmnist:parameters_sha256"

_DAMAGED = (
    "the study in the storage is damaged: restore it, or move it away and the study begins again"
)


class StudyMismatchError(UserError):
    """The storage holds another study under this name; says what differs."""


class Trial(NamedTuple):
    """A grid point that Optuna gave us to train."""

    number: int
    point: Point
    config: TrialConfig
    handle: optuna.Trial
    reported: frozenset[int]  # epochs whose value Optuna has


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
    url = _parsed(storage)
    try:
        url.get_dialect()
        with _sound(storage):
            _check_sqlite(url)
            study = optuna.create_study(
                study_name=config.name,
                storage=storage,
                sampler=sampler,
                direction=config.direction,
                load_if_exists=True,
            )
            stored = study.user_attrs.get(CONFIG)
    # RuntimeError: tables of another version of Optuna.
    except (SQLAlchemyError, ImportError, RuntimeError, StorageInternalError) as error:
        raise UserError(trouble.words(error, storage)) from error
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


def _parsed(storage: str) -> sqlalchemy.URL:
    try:
        storage.format(SCHEMA_VERSION=0)  # as Optuna does
        return sqlalchemy.make_url(storage)
    except (SQLAlchemyError, ValueError, LookupError):  # which may quote a password
        what = "is no URL of a database, such as postgresql://user:password@host:5432/name"
        hint = "in a user's name or password %, /, :, ?, @, { and } are written as %25, %2F and so"
        raise UserError(f"--storage {what}; {hint} on") from None


@contextlib.contextmanager
def _sound(storage: str = "") -> Iterator[None]:
    """Reading what the storage holds; what cannot be understood was damaged."""
    try:
        yield
    except (ValueError, TypeError, LookupError) as error:
        raise UserError(f"{_DAMAGED} ({passwords.hide(str(error), storage)})") from error


def _check_sqlite(url: sqlalchemy.URL) -> None:
    """Have SQLite look for damage, which it otherwise tells when it comes across it."""
    if url.get_backend_name() != "sqlite":
        return
    engine = sqlalchemy.create_engine(url)
    try:
        with engine.connect() as connection:
            said = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
    finally:
        engine.dispose()
    if said != "ok":
        raise UserError(f"{_DAMAGED} ({said})")


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
    for trials in by_point.values():
        last = trials[-1]
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
    reported = {trial.number: frozenset(trial.intermediate_values) for trial in known}
    trials = []
    for handle in sorted(handles, key=lambda handle: handle.number):
        point = suggest(handle, config.grid)
        before = reported.get(handle.number, frozenset())
        trials.append(Trial(handle.number, point, config.trial(point), handle, before))
    return trials


def unfinished(study: optuna.Study) -> bool:
    """Whether a trial waits or was interrupted."""
    return any(not trial.state.is_finished() for trial in study.get_trials(deepcopy=False))


def report(trial: Trial, value: float, step: int) -> None:
    """Report an epoch's value, once.

    An interrupted trial that is taken up again has reported its first epochs; Optuna keeps the
    first report of a step and warns about a second. The values are the same.
    """
    if step not in trial.reported:
        trial.handle.report(value, step)


def tell(study: optuna.Study, trial: Trial, result: TrialResult, config: StudyConfig) -> None:
    """Store the result and finish the trial; after this Optuna refuses attributes."""
    # Not a user attribute: those are shown, and this one is longer than any page is wide.
    history = [list(metrics) for metrics in result.history]
    storage, key = study._storage, trial.handle._trial_id
    digest = _digest(result, storage.get_trial_system_attrs(key).get(PARAMETERS))
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


def parameter_sums(study: optuna.Study) -> dict[int, str]:
    """The SHA-256 of every finished trial's file of parameters, by trial number."""
    return {
        trial.number: trial.system_attrs[PARAMETERS]
        for trial in study.get_trials(deepcopy=False)
        if trial.state.is_finished() and PARAMETERS in trial.system_attrs
    }


def results(study: optuna.Study, config: StudyConfig) -> list[TrialResult]:
    """Every finished grid point, by number; of a point tried twice, the last.

    Raises:
        UserError: when one is not as it was told.
    """
    by_point: dict[str, TrialResult] = {}
    with _sound():
        for trial in study.get_trials(deepcopy=False):
            if trial.state.is_finished() and not _was_lost(trial):
                result = _result(trial, config)
                by_point[repr(result.point)] = result
    return sorted(by_point.values(), key=lambda result: result.number)


def _was_lost(trial: FrozenTrial) -> bool:
    """Whether something outside ended the trial: it failed without being told how it went."""
    told = {HISTORY, CHECK, REASON} & (trial.system_attrs.keys() | trial.user_attrs.keys())
    return trial.state == TrialState.FAIL and not told


def _result(trial: FrozenTrial, config: StudyConfig) -> TrialResult:
    """How a trial ended.

    Raises:
        ValueError: when that is not what was told.
    """
    attrs, more = trial.user_attrs, trial.system_attrs
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
    if more[CHECK] != _digest(result, more.get(PARAMETERS)):
        raise ValueError(f"trial {trial.number} is not as it was written")
    return result


def _digest(result: TrialResult, parameters: str | None) -> str:
    told = (
        result.number,
        sorted(result.point.items()),
        result.state,
        [tuple(metrics) for metrics in result.history],
        (result.test_loss, result.test_accuracy, result.seconds, result.reason),
        parameters,
    )
    # By repr: floats as they are, NaN included, and any text.
    return hashlib.sha256(repr(told).encode("utf-8", "surrogatepass")).hexdigest()
