"""Replaces passwords in storage URLs by asterisks, in every text that is shown or stored."""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote, quote_plus, unquote, unquote_plus

from fmnist.utils import interpreter

_URL = re.compile(r"[\w+.-]{0,40}://.*", re.DOTALL)
_LOGIN = re.compile(r"://[^:/]*:")
_FIELD = re.compile(r"[?&]([^=&?]{1,200})=([^&]*)")
_KEY = re.compile(r"pass(?:word|wd|phrase|code)|pwd|(?:^|[^a-z])pass(?:$|[^a-z])", re.IGNORECASE)
_PAIR = re.compile(r"=\s*(\{(?:[^}]|\}\}){0,300}\}|'[^']{0,300}'|[^;\s&]*)")
_SHORT = 4


def starred(url: str) -> str:
    """Replace the passwords in a URL, or in an argument that contains one, by ``***``."""
    for start, end in reversed(_password_spans(url)):
        url = f"{url[:start]}***{url[end:]}"
    return url


def starred_text(text: str) -> str:
    """Replace the passwords in all URLs of a text by ``***``.

    A URL ends at a blank, except at one after a semicolon.
    """
    return re.sub(r"(?:\S|(?<=;) )+", lambda match: starred(match[0]), text)


def hide(text: str, *urls: str) -> str:
    """Remove these URLs from a text, and their passwords in every spelling."""
    for url in urls:
        for secret in sorted(_secrets(url), key=len, reverse=True):
            if len(secret) >= _SHORT:
                text = text.replace(secret, "***")
            else:  # a password of one letter must not be replaced within words
                text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", text)
    return text


def reason_of(error: Exception, url: str) -> str:
    """Return the message of an error of a storage on one line, without SQL and passwords."""
    cause = error.__cause__ or error  # Optuna's error does not have the reason
    if isinstance(cause, ModuleNotFoundError) and cause.name:  # the driver of the database
        return interpreter.to_install(cause.name)
    reason = re.split(r" \[SQL| \(Background on", " ".join(str(cause).split()))[0]
    return hide(reason, url)[:300]


def hide_arguments(text: str, arguments: Iterable[str]) -> str:
    """Remove the passwords of these arguments from a text, and those of the text's own URLs."""
    return starred_text(hide(text, *of_arguments(arguments)))


def of_arguments(arguments: Iterable[str]) -> list[str]:
    """Return the URLs with passwords in the arguments of a command line."""
    urls = filter(None, map(_URL.search, arguments))
    return [url[0] for url in urls if _password_spans(url[0])]


def _password_spans(url: str) -> list[tuple[int, int]]:
    """The ``(start, end)`` of each password in the URL, in order and without overlap."""
    spans = []
    # Before the host. A user's name or a password may contain an @, as a mail address does.
    login, host = _LOGIN.search(url), url.rfind("@")
    if login and login.end() <= host:
        spans.append((login.end(), host))
    for field in _FIELD.finditer(url):
        if _KEY.search(unquote_plus(field[1])):
            spans.append(field.span(2))
        elif _KEY.search(unquote_plus(field[2])):  # a connection string, such as ODBC's
            spans.append((field.start(2), len(url)))
            break
    apart: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if apart and start <= apart[-1][1]:
            start, end = apart[-1][0], max(end, apart.pop()[1])
        apart.append((start, end))
    return apart


def _secrets(url: str) -> set[str]:
    """The URL and its passwords, in every spelling that a message may quote."""
    secrets = {url}
    for start, end in _password_spans(url):
        secret = url[start:end]
        # If a password contains an @, a driver may quote its end as the name of the host.
        secrets |= {secret, *secret.split("@")}
        if _KEY.search(plain := unquote_plus(secret)):
            for pair in _PAIR.findall(plain):
                inner = pair.removeprefix("{").removesuffix("}").replace("}}", "}")  # as ODBC does
                secrets |= {pair, pair.strip("'"), inner}
    secrets |= {*map(unquote, secrets), *map(unquote_plus, secrets)}
    secrets |= {*(quote(secret, safe="") for secret in secrets), *map(quote_plus, secrets)}
    return secrets - {""}


def cover_arguments() -> None:
    """Overwrite the passwords in this process's command line, which every user can read.

    Linux reads the command line from the process's memory, between the two addresses in fields 48
    and 49 of proc_pid_stat(5).
    """
    with contextlib.suppress(OSError, ValueError, IndexError):  # not Linux
        fields = Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        start, end = int(fields[45]), int(fields[46])
        for argument in re.finditer(rb"[^\0]+", ctypes.string_at(start, end - start)):
            text = argument[0].decode("latin-1")  # one character for each byte
            for first, last in _password_spans(text):
                ctypes.memset(start + argument.start() + first, ord("*"), last - first)
