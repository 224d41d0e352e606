"""Errors that the user can correct: one line on stderr, and exit status 2."""

import errno

_SYSTEM_ERRNOS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
    errno.EMFILE, errno.ENFILE, errno.ENOTCONN, errno.ENXIO, errno.ENODEV, errno.ESTALE,
    errno.EREMOTEIO, errno.ETIMEDOUT, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY,
    errno.ELOOP, errno.ENAMETOOLONG, errno.ETXTBSY,
}  # fmt: skip


class UserError(Exception):
    """Something outside the program is wrong; the text names the problem, the place and a remedy.

    The text is one line without control characters, also when it quotes a file's name or content.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


def system_error(error: OSError, place: object = "") -> str:
    """Describe an error of the machine or its file system, such as a full disk.

    Args:
        error: what was raised.
        place: the path to name when the error has none.

    Returns:
        A line such as ``"PATH: No space left on device"``; empty for an error of another kind.
    """
    if (error.strerror or "").startswith("No usable temporary directory"):
        return "there is no folder for temporary files; name one in the environment as TMPDIR"
    if error.errno not in _SYSTEM_ERRNOS or not error.strerror:
        return ""
    path = error.filename2 or error.filename or place  # filename2 is the target of a rename
    return f"{path}: {error.strerror}" if path else error.strerror


def printable(text: str) -> str:
    """Escape every unprintable character of a text.

    Those are newlines, terminal escapes, marks of the reading direction and lone surrogates.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
