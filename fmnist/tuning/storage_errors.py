"""Turns errors of a disk, a folder or a storage into messages of one line."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    PendingRollbackError,
    SQLAlchemyError,
)

from fmnist.rundir import lock
from fmnist.utils import patience
from fmnist.utils.errors import UserError, system_error
from fmnist.utils.passwords import reason_of, starred

_LOST = {errno.ENOENT, errno.ENOTDIR}
_SQLITE_PASSING = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL}
_DELETED = "Record does not exist"  # optuna.storages._rdb.models.NOT_FOUND_MSG
_REMEDY = "when that is fixed, give the same command again"


@contextlib.contextmanager
def translated(out: Path, storage: str = "") -> Iterator[None]:
    """Turn errors of disks and storages in the block into a :class:`UserError`.

    Args:
        out: the folder of the run.
        storage: the URL of the storage.

    Raises:
        UserError: A disk, folder or storage failed. Every other error is raised as it is.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _LOST and not (out / lock.NAME).exists():
            raise UserError(f"--out {out} is gone; {_REMEDY}") from error
        reason = system_error(error, out)
        if error.errno == errno.ENOENT and out in Path(str(error.filename)).parents:
            reason = f"{error.filename}: is gone"
        if reason:
            raise UserError(f"{reason}; {_REMEDY}") from error
        raise
    except KeyError as error:
        if _DELETED not in str(error):
            raise
        raise UserError(f"the study was deleted from the storage; {_REMEDY}") from error
    except (SQLAlchemyError, StorageInternalError) as error:
        cause = _cause(error)
        if not isinstance(cause, DBAPIError) or isinstance(cause, DataError | IntegrityError):
            raise
        raise UserError(f"{describe(error, storage)}; {_REMEDY}") from error


def passing(error: Exception, storage: str, *, lost: bool = True) -> str:
    """Describe an error of a storage or a disk that may pass; empty for another error.

    Args:
        error: a lock, a full disk, or a server that restarts or has no room, for example.
        storage: the URL of the storage.
        lost: whether a connection that was lost in a transaction counts, too.
    """
    cause = _cause(error)
    if not isinstance(cause, DBAPIError):
        return patience.full_disk(error)
    if isinstance(cause.orig, sqlite3.Error):
        passes = getattr(cause.orig, "sqlite_errorcode", 0) & 0xFF in _SQLITE_PASSING
    elif cause.connection_invalidated:
        passes = lost
    else:  # of a server: what is not under the control of the program, says PEP 249
        passes = isinstance(cause, OperationalError | InterfaceError)
    return describe(error, storage) if passes else ""


def _cause(error: Exception) -> Exception:
    """Return the error of the database behind an error of Optuna or SQLAlchemy."""
    if isinstance(error, SQLAlchemyError):
        return error
    cause: BaseException = error.__cause__ or error
    if isinstance(cause, PendingRollbackError):  # Optuna used the session after the first error
        cause = cause.__context__ or cause
    return cause if isinstance(cause, Exception) else error


def describe(error: Exception, storage: str) -> str:
    """Describe the error of a storage in a line without passwords."""
    return f"storage {starred(storage)} cannot be used: {reason_of(_cause(error), storage)}"
