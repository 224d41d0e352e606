"""Turns errors of a disk, a folder or a storage into messages of one line."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError

from fmnist.rundir import lock
from fmnist.utils.errors import UserError, system_error
from fmnist.utils.passwords import reason_of, starred

_LOST = {errno.ENOENT, errno.ENOTDIR}
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
        cause = error.__cause__ or error
        if not isinstance(cause, DBAPIError) or isinstance(cause, DataError | IntegrityError):
            raise
        raise UserError(f"{describe(error, storage)}; {_REMEDY}") from error


def describe(error: Exception, storage: str) -> str:
    """Describe the error of a storage in a line without passwords."""
    return f"storage {starred(storage)} cannot be used: {reason_of(error, storage)}"
