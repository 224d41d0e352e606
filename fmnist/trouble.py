"""What a full disk, a lost folder or a storage that went away raises, told in one clear line."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator
from pathlib import Path

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    ProgrammingError,
    SQLAlchemyError,
)

from fmnist import lock
from fmnist.errors import UserError
from fmnist.passwords import hide, starred

_OF_THE_SYSTEM = {
    getattr(errno, name)
    for name in (
        "ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "EMFILE", "ENFILE",
        "ENOTCONN", "ENXIO", "ENODEV", "ESTALE", "EREMOTEIO", "ETIMEDOUT",
    )
    if hasattr(errno, name)
}  # fmt: skip
"""What no program can help."""

_LOST = {errno.ENOENT, errno.ENOTDIR}
_GO_ON = "when that is mended, give the same command again"


@contextlib.contextmanager
def told(out: Path, storage: str = "") -> Iterator[None]:
    """Tell of what goes wrong outside of the program while the block works in ``out``.

    Raises:
        UserError: of that; what is the program's own fault is raised as it is.
    """
    try:
        yield
    except OSError as error:
        where = error.filename or out
        if error.errno in _LOST and not (Path(out) / lock.NAME).exists():
            raise UserError(f"--out {out} is gone; {_GO_ON}") from error
        if error.errno in _OF_THE_SYSTEM:
            raise UserError(f"{where}: {error.strerror}; {_GO_ON}") from error
        raise
    except (SQLAlchemyError, StorageInternalError) as error:
        if not isinstance(_cause(error), DBAPIError) or isinstance(
            _cause(error), DataError | IntegrityError | ProgrammingError
        ):
            raise
        raise UserError(f"{words(error, storage)}; {_GO_ON}") from error


def words(error: Exception, storage: str) -> str:
    """What a storage says, without what is secret."""
    reason = " ".join(str(_cause(error)).split())
    reason = re.split(r" \[SQL| \(Background on", reason)[0]
    return f"storage {starred(storage)} cannot be used: {hide(reason, storage)[:300]}"


def _cause(error: Exception) -> BaseException:
    # Optuna says no more than that something went wrong.
    return error.__cause__ or error
