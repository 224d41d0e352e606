"""Passwords in storage URLs: starred wherever such a text is shown or kept."""

from __future__ import annotations

import contextlib
import ctypes
import re
from pathlib import Path
from urllib.parse import quote, quote_plus

_PLACES = (
    re.compile(r"(://[^:/@\s]*:)(\S*)(@)"),  # before the host
    re.compile(r"(?i)([?&][\w-]*pass\w*=)([^&\s'\"]*)()"),  # in the query
)


def starred(text: str) -> str:
    """The text with the passwords of its URLs starred."""
    for place in _PLACES:
        text = place.sub(r"\1***\3", text)
    return text


def hide(text: str, url: str) -> str:
    """The text without the secrets of the URL, and without the URL."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    secrets = [url]
    try:
        parsed = make_url(url)
    except (SQLAlchemyError, ValueError):
        parsed = None
    if parsed is not None:
        secrets.append(parsed.password or "")
        for key, value in parsed.query.items():
            if "pass" in key.lower():
                secrets += [value] if isinstance(value, str) else value
    for secret in secrets:
        for written in filter(None, {secret, quote(secret, safe=""), quote_plus(secret)}):
            text = text.replace(written, "***")
    return text


def cover_arguments() -> None:
    """Star the passwords in this process's own command line, which all users of a machine can read.

    Linux shows as a command line what lies in the process's memory between two addresses:
    proc_pid_stat(5), fields 48 and 49.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):  # another system
        fields = Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        start, end = int(fields[45]), int(fields[46])
        for argument in re.finditer(rb"[^\0]+", ctypes.string_at(start, end - start)):
            text = argument[0].decode("latin-1")  # a character a byte
            for place in _PLACES:
                for found in place.finditer(text):
                    at = start + argument.start() + found.start(2)
                    ctypes.memset(at, ord("*"), found.end(2) - found.start(2))
