"""The errors that are the user's to mend: shown as one clear line, with exit status 2."""

import errno

_OF_THE_SYSTEM = {
    getattr(errno, name)
    for name in (
        "ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "EMFILE", "ENFILE",
        "ENOTCONN", "ENXIO", "ENODEV", "ESTALE", "EREMOTEIO", "ETIMEDOUT",
        "EEXIST", "EISDIR", "ENOTDIR", "ENOTEMPTY", "ELOOP", "ENAMETOOLONG", "ETXTBSY",
    )
    if hasattr(errno, name)
}  # fmt: skip


class UserError(Exception):
    """Something outside the program is wrong; ``str()`` says what, where and what to do.

    It is one line without control characters, whatever a file's name or content put into it.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


def of_the_system(error: OSError, place: object = "") -> str:
    """What no program can help, such as a full disk, in words; empty for anything else.

    Args:
        error: what was raised.
        place: where, if the error does not say it.
    """
    if (error.strerror or "").startswith("No usable temporary directory"):
        return "there is no folder for temporary files; name one in the environment as TMPDIR"
    if error.errno not in _OF_THE_SYSTEM or not error.strerror:
        return ""
    where = error.filename2 or error.filename or place  # the second: what was to be replaced
    return f"{where}: {error.strerror}" if where else error.strerror


def printable(text: str) -> str:
    """The text with everything unprintable escaped."""
    # An allow list: besides newlines this catches terminal escapes, bidi marks and surrogates.
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
