"""Passwords in storage URLs: starred wherever such a text is shown or kept."""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote, quote_plus, unquote

_KEY = r"[\w-]*(?:pass\w*|pwd)"


def _places(character: str) -> tuple[re.Pattern[str], ...]:
    """Where passwords stand, each the second group; ``character`` is what one may be made of."""
    flags = re.ASCII | re.IGNORECASE | re.DOTALL
    return (
        # Before the host. A user's name may hold an @, as a mail address does.
        re.compile(rf"(://[^:/?#\s]*:)({character}*)(@)", flags),
        # In the query.
        re.compile(rf"([?&]{_KEY}=)((?:(?![&'\"]){character})*)()", flags),
        # In ODBC's own string within the query, where = and ; are written in hexadecimal.
        re.compile(
            rf"((?:odbc_connect=|%3B|;)(?:\+|%20| )*{_KEY}(?:=|%3D))"
            rf"(%7B.*?%7D|\{{.*?\}}|(?:(?!%3B)(?![;&'\"]){character})*)()",
            flags,
        ),
    )


_WHOLE, _WITHIN = _places("."), _places(r"\S")


def starred(url: str) -> str:
    """A URL, or an argument that is or holds one, with its passwords starred."""
    for place in _WHOLE:
        url = place.sub(r"\1***\3", url)
    return url


def starred_text(text: str) -> str:
    """A text with the passwords of its URLs starred, as far as they hold no blank."""
    for place in _WITHIN:
        text = place.sub(r"\1***\3", text)
    return text


def hide(text: str, *urls: str) -> str:
    """The text without the secrets of these URLs, and without the URLs."""
    for url in urls:
        for secret in sorted(_secrets(url), key=len, reverse=True):
            text = text.replace(secret, "***")
    return text


def of_arguments(arguments: Iterable[str]) -> list[str]:
    """What in a command line may be the URL of a storage."""
    found = (re.search(r"[\w+.-]+://.*", argument, re.DOTALL) for argument in arguments)
    return [match[0] for match in found if match]


def _secrets(url: str) -> set[str]:
    """The URL and what is secret in it, as it may be written."""
    found = {url}
    for place in _WHOLE:
        # With an @ in it, a driver takes the end of the password for the host's name.
        found |= {part for match in place.finditer(url) for part in match[2].split("@")}
    found |= {unquote(secret) for secret in found}
    found |= {secret.strip("{}") for secret in found}  # of ODBC
    found |= {write(secret) for secret in found for write in (_quoted, quote_plus)}
    return found - {""}


def _quoted(text: str) -> str:
    return quote(text, safe="")


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
            for place in _WHOLE:
                for found in place.finditer(text):
                    at = start + argument.start() + found.start(2)
                    ctypes.memset(at, ord("*"), found.end(2) - found.start(2))
