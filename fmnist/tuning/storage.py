"""Creates a study in Optuna's storage, or opens it and checks it for damage."""

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
from optuna.storages._rdb.models import BaseModel
from optuna.trial import FrozenTrial
from sqlalchemy.exc import SQLAlchemyError

from fmnist.config.errors import clipped
from fmnist.config.loading import differences
from fmnist.config.study import StudyConfig
from fmnist.tuning import storage_errors
from fmnist.tuning.patient_storage import PatientStorage
from fmnist.utils import passwords
from fmnist.utils.errors import UserError
from fmnist.utils.patience import repeated

CONFIG = "fmnist:config"

DAMAGED = (
    "the study in the storage is damaged: restore it, or begin another with --out and --set name="
)


class StudyMismatchError(UserError):
    """The storage has another study of this name. The message lists the differences."""


def open_study(config: StudyConfig, storage: str, *, begun: Path | None = None) -> optuna.Study:
    """Create a study in a storage, or load it if it exists.

    Args:
        config: the study.
        storage: the URL of the Optuna storage.
        begun: a file of an earlier run of the study. If given, the study must exist.

    Raises:
        UserError: The storage cannot be used, is damaged, or does not have the study.
        StudyMismatchError: A study of this name has another configuration.
    """
    url = _parse(storage)

    def locked(error: Exception) -> str:
        # A server that does not answer at the beginning may not be one.
        is_file = url.get_backend_name() == "sqlite"
        return storage_errors.passing(error, storage) if is_file else ""

    try:
        url.get_dialect()
        with sound(storage):
            study = repeated(lambda: _opened(config, storage, url, begun), locked)
            known = trials(study)
            _check_attributes(study._storage.get_study_system_attrs(study._study_id))
            for trial in known:
                _check_attributes(trial.system_attrs)
            directions = [direction.name.lower() for direction in study.directions]
            stored = study.user_attrs.get(CONFIG)
    # RuntimeError: another version of Optuna made the tables.
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
            f"study {config.name!r} is already there and differs: {'; '.join(changes)}; "
            "give this one another name (--set name=...) and --out"
        )
    if directions != [config.direction]:
        raise UserError(f"{DAMAGED} (its direction is {', '.join(directions)})")
    return study


def _opened(
    config: StudyConfig, storage: str, url: sqlalchemy.URL, begun: Path | None
) -> optuna.Study:
    """Create a study, or load it if it exists.

    Raises:
        UserError: The database is damaged, or does not have the study although it has begun.
    """
    if begun and config.name not in (names := _names(storage, url)):
        shown = ", ".join(f"{clipped(name, 60)!r}" for name in names[:3])
        but = f", but {shown}; give a renamed study its name back" if names else ""
        raise UserError(
            f"{begun} is of a study, but storage {passwords.starred(storage)} holds none "
            f"of the name {config.name!r}{but}; restore it, give --storage as before, "
            "or choose another --out"
        )
    _check_sqlite(url)
    backend = optuna.storages.RDBStorage(storage, engine_kwargs=_engine_options(url))
    # SQLite creates each table and index by itself, and a kill may come between them. Optuna then
    # never creates the index, without which it stores a second study of the same name.
    for table in BaseModel.metadata.sorted_tables:
        for index in table.indexes:
            index.create(backend.engine, checkfirst=True)
    return optuna.create_study(
        study_name=config.name,
        storage=PatientStorage(backend),
        # The seed permutes the ids of the points, and nothing else.
        sampler=optuna.samplers.GridSampler(
            {key: list(values) for key, values in config.grid.items()}, seed=config.seed
        ),
        direction=config.direction,
        load_if_exists=True,
    )


def _check_attributes(attrs: Mapping[str, Any]) -> None:
    """Check the notes and artifacts of a study or trial, which optuna-dashboard shows.

    Raises:
        ValueError, TypeError, LookupError: A note or an artifact has the wrong form.
    """
    for key, value in attrs.items():
        if key.startswith("dashboard:") and ":note_" in key:
            if not isinstance(value, int if key.endswith(":note_ver") else str):
                raise ValueError(f"{key} is no part of a note")
        elif key.startswith("artifacts:"):
            about = json.loads(value)
            if about is None:  # deleted in optuna-dashboard
                continue
            name, file = about["filename"], about["artifact_id"]
            if not isinstance(name, str) or Path(file).name != file:
                raise ValueError(f"{key} is of no artifact")


def _parse(storage: str) -> sqlalchemy.URL:
    """Parse the URL of a storage.

    Raises:
        UserError: The text is not the URL of a database. The message does not quote it.
    """
    try:
        storage.format(SCHEMA_VERSION=0)  # as Optuna does
        return sqlalchemy.make_url(storage)
    except (SQLAlchemyError, ValueError, LookupError):  # their text may quote a password
        reason = "is no URL of a database, such as postgresql://user:password@host:5432/name"
        hint = "in a user's name or password %, /, :, ?, @, { and } are written as %25, %2F and so"
        raise UserError(f"--storage {reason}; {hint} on") from None


def _engine_options(url: sqlalchemy.URL) -> dict[str, Any]:
    """Return the options that keep a connection alive during an epoch, or make a new one."""
    if url.get_backend_name() == "sqlite":
        # SQLite's own wait for a lock cannot be interrupted; PatientStorage waits after it.
        return {} if "timeout" in url.query else {"connect_args": {"timeout": 1.0}}
    options: dict[str, Any] = {"pool_pre_ping": True}
    if url.get_driver_name() in ("psycopg", "psycopg2"):  # options of libpq
        keepalives = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
        options["connect_args"] = {k: v for k, v in keepalives.items() if k not in url.query}
    return options


@contextlib.contextmanager
def sound(storage: str = "") -> Iterator[None]:
    """Report values that the block cannot read as damage of the storage.

    Raises:
        UserError: The block raised a ValueError, TypeError or LookupError.
    """
    try:
        yield
    except (ValueError, TypeError, LookupError) as error:
        raise UserError(f"{DAMAGED} ({passwords.hide(str(error), storage)})") from error


def _names(storage: str, url: sqlalchemy.URL) -> list[str]:
    """Return the names of the studies in a storage. A missing SQLite file is not created."""
    path = Path(url.database or "")
    if url.get_backend_name() == "sqlite" and not str(path).startswith("file:"):
        if not (path.is_file() and path.stat().st_size):
            return []
        _check_sqlite(url)
    return optuna.get_all_study_names(storage)


def _check_sqlite(url: sqlalchemy.URL) -> None:
    """Check that a SQLite database is a file, and check it for damage.

    Raises:
        UserError: The database is in memory or temporary, or is damaged.
    """
    if url.get_backend_name() != "sqlite":
        return
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        result = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
        main = "SELECT file FROM pragma_database_list WHERE name = 'main'"
        file = connection.exec_driver_sql(main).scalar()
    if not file or not Path(file).exists():  # whatever the URL looks like
        raise UserError(
            "--storage is a database that is lost when the command ends; "
            "name a file, as in sqlite:///study.db, or leave out --storage"
        )
    if result != "ok":
        raise UserError(f"{DAMAGED} ({result})")


def trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return all trials, by number.

    Raises:
        ValueError: A trial is missing, or its state does not fit its time of completion.
    """
    known = study.get_trials(deepcopy=False)
    if [trial.number for trial in known] != [*range(len(known))]:
        raise ValueError("a trial is missing")
    for trial in known:
        if trial.state.is_finished() != (trial.datetime_complete is not None):
            raise ValueError(f"trial {trial.number} is {trial.state.name}, which it was not")
    return known
