"""A study in Optuna's storage: made, or opened when it is sound."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial
from sqlalchemy.exc import SQLAlchemyError

from fmnist.config.study import StudyConfig, differences
from fmnist.tuning import storage_errors
from fmnist.utils import passwords
from fmnist.utils.errors import UserError

CONFIG = "fmnist:config"

DAMAGED = (
    "the study in the storage is damaged: restore it, or begin another with --out and --set name="
)


class StudyMismatchError(UserError):
    """The storage holds another study under this name; says what differs."""


def open_study(config: StudyConfig, storage: str, *, begun: Path | None = None) -> optuna.Study:
    """Make the study, or load it when the storage has it.

    Args:
        config: the study.
        storage: Optuna's URL of where it is.
        begun: what shows that it was made before, and is not to be made again.

    Raises:
        UserError: The storage cannot be reached or used, or it lost the study.
        StudyMismatchError: A study of this name was made from another configuration.
            GridSampler would accept it: its seed permutes the grid and is not checked.
    """
    sampler = optuna.samplers.GridSampler(
        {key: list(values) for key, values in config.grid.items()}, seed=config.seed
    )
    url = _parse(storage)
    try:
        url.get_dialect()
        with sound(storage):
            if begun and not _holds(storage, url, config.name):
                raise UserError(
                    f"{begun} is of a study, but storage {passwords.starred(storage)} holds none "
                    f"of the name {config.name!r}; restore it, give --storage as before, "
                    "or choose another --out"
                )
            _check_sqlite(url)
            study = optuna.create_study(
                study_name=config.name,
                storage=optuna.storages.RDBStorage(storage, engine_kwargs=_engine_options(url)),
                sampler=sampler,
                direction=config.direction,
                load_if_exists=True,
            )
            known = trials(study)
            _check_shown(study._storage.get_study_system_attrs(study._study_id))
            for trial in known:
                _check_shown(trial.system_attrs)
            directions = [direction.name.lower() for direction in study.directions]
            stored = study.user_attrs.get(CONFIG)
    # RuntimeError: tables of another version of Optuna.
    except (SQLAlchemyError, ImportError, RuntimeError, StorageInternalError) as error:
        raise UserError(storage_errors.describe(error, storage)) from error
    if stored is None:
        if known or directions != [config.direction]:
            raise StudyMismatchError(f"study {config.name!r} in the storage is not one of fmnist's")
        with warnings.catch_warnings():  # "experimental" since Optuna 3.2
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([config.metric])
        study.set_user_attr(CONFIG, config.to_dict())
    elif changes := differences(StudyConfig.from_dict(stored), config):
        raise StudyMismatchError(
            f"study {config.name!r} is already there and differs: {'; '.join(changes)}"
        )
    if directions != [config.direction]:
        raise UserError(f"{DAMAGED} (its direction is {', '.join(directions)})")
    return study


def _check_shown(attrs: Mapping[str, Any]) -> None:
    """See that what optuna-dashboard shows of a study or trial can be read: notes and artifacts.

    Raises:
        ValueError, TypeError, LookupError: An attribute is not a note or an artifact as the
            dashboard writes it.
    """
    for key, value in attrs.items():
        if key.startswith("dashboard:") and ":note_" in key:
            if not isinstance(value, int if key.endswith(":note_ver") else str):
                raise ValueError(f"{key} is no part of a note")
        elif key.startswith("artifacts:"):
            about = json.loads(value)
            if about is None:  # it was deleted in optuna-dashboard
                continue
            name, file = about["filename"], about["artifact_id"]
            if not isinstance(name, str) or Path(file).name != file:
                raise ValueError(f"{key} is of no artifact")


def _parse(storage: str) -> sqlalchemy.URL:
    """The URL of a storage.

    Raises:
        UserError: The text is no URL of a database; the error does not quote it.
    """
    try:
        storage.format(SCHEMA_VERSION=0)  # as Optuna does
        return sqlalchemy.make_url(storage)
    except (SQLAlchemyError, ValueError, LookupError):  # which may quote a password
        what = "is no URL of a database, such as postgresql://user:password@host:5432/name"
        hint = "in a user's name or password %, /, :, ?, @, { and } are written as %25, %2F and so"
        raise UserError(f"--storage {what}; {hint} on") from None


def _engine_options(url: sqlalchemy.URL) -> dict[str, Any]:
    """What keeps connections to a server usable, or has them made again, while an epoch trains."""
    if url.get_backend_name() == "sqlite":
        return {}
    options: dict[str, Any] = {"pool_pre_ping": True}
    if url.get_driver_name() in ("psycopg", "psycopg2"):  # libpq: what is silent for long is dead
        patience = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
        options["connect_args"] = {k: v for k, v in patience.items() if k not in url.query}
    return options


@contextlib.contextmanager
def sound(storage: str = "") -> Iterator[None]:
    """A block that reads what the storage holds; what it cannot understand was damaged.

    Raises:
        UserError: The block met a value that it cannot understand.
    """
    try:
        yield
    except (ValueError, TypeError, LookupError) as error:
        raise UserError(f"{DAMAGED} ({passwords.hide(str(error), storage)})") from error


def _holds(storage: str, url: sqlalchemy.URL, name: str) -> bool:
    """Whether a study of this name is there; a missing or empty SQLite file is not written to."""
    path = Path(url.database or "")
    if url.get_backend_name() == "sqlite" and not str(path).startswith("file:"):
        if not (path.is_file() and path.stat().st_size):
            return False
        _check_sqlite(url)
    return name in optuna.get_all_study_names(storage)


def _check_sqlite(url: sqlalchemy.URL) -> None:
    """Have SQLite look for damage, which it otherwise reports when it comes across it.

    Raises:
        UserError: The database is damaged.
    """
    if url.get_backend_name() != "sqlite":
        return
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
    if found != "ok":
        raise UserError(f"{DAMAGED} ({found})")


def trials(study: optuna.Study) -> list[FrozenTrial]:
    """Every trial, by number.

    Raises:
        ValueError: A trial is missing, or it ended without a time of its end.
    """
    found = study.get_trials(deepcopy=False)
    if [trial.number for trial in found] != [*range(len(found))]:
        raise ValueError("a trial is missing")
    for trial in found:
        if trial.state.is_finished() != (trial.datetime_complete is not None):
            raise ValueError(f"trial {trial.number} is {trial.state.name}, which it was not")
    return found
