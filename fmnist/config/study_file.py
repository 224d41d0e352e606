"""Parses study files and ``--set`` options. The values are not checked here."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmnist.config.errors import ConfigError, clipped, given_twice, nearest, unknown
from fmnist.config.factory import load
from fmnist.config.settings import FACTORY, SETTINGS, TABLES, Setting, axes

MAX_BYTES = 1_000_000
# The time of tomllib grows with the square of the number of parts of a key: 100 KB of a.a.a.a take
# a minute. A part is a word or quoted. For speed, the search starts only where a key can start.
_LONG_KEY = re.compile(
    rb"""(?<![\w."'\\-])(?:(?:[\w-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){8}"""
)


def read(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigError: The file cannot be read, is too large, is invalid, or has too long a key.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or clipped(str(error), 120)
        raise ConfigError(f"cannot be read: {reason}") from None
    if len(content) > MAX_BYTES:
        raise ConfigError(f"is no study file: it has more than {MAX_BYTES} bytes")
    if _LONG_KEY.search(content):
        raise ConfigError("must be valid TOML with keys of at most 8 parts")
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"must be UTF-8 text; byte {error.start} is not") from None
    # Also raised for an integer with too many digits and for brackets nested too deep.
    except (ValueError, RecursionError) as error:
        comma = re.search(rb"=\s*[+-]?\d+,\d", content)
        hint = "; a number is written with a point, as in 0.01" if comma else ""
        raise ConfigError(f"must be valid TOML: {clipped(str(error), 120)}{hint}") from None


def settings_in(data: Mapping[str, Any]) -> Mapping[str, Setting]:
    """Return the settings of a study file. They depend on the factory of its model."""
    model = data.get("model")
    if isinstance(model, Mapping) and FACTORY in model:
        return load(model[FACTORY]).settings
    return SETTINGS


def split(data: object) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Split the tables of a study file into settings, axes of the grid and cases.

    Raises:
        ConfigError: A table or name is unknown, misplaced, or given twice.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"must be tables {', '.join(TABLES)}", value=data)
    settings = settings_in(data)
    given: dict[str, Any] = {}
    grid: dict[str, Any] = {}
    cases: dict[str, Any] = {}
    for table, entries in data.items():
        if table not in TABLES:
            raise unknown(settings, "table", table, entries, TABLES)
        if not isinstance(entries, Mapping):
            raise ConfigError(f"must be a table: [{table}] and lines below it", table, entries)
        if table == "cases":
            cases |= entries
            if not cases:
                raise ConfigError("must have at least one case", table, entries)
            continue
        names = axes(settings) if table == "grid" else _names_in(settings, table)
        for key, value in entries.items():
            if key == "case" and table == "grid":
                reason = "is no axis to list: the table [cases] makes it"
                raise ConfigError(reason, key, value)
            if key not in names:
                raise unknown(settings, f"setting of [{table}]", key, value, names)
            (grid if table == "grid" else given)[key] = value
    for key in given:
        if key in grid:
            raise given_twice(settings[key], given[key])
    return given, grid, cases


def _names_in(settings: Mapping[str, Setting], table: str) -> list[str]:
    """Return the names that a table may have; [model] may always have a factory."""
    names = [key for key, setting in settings.items() if setting.table == table]
    return names if table != "model" or FACTORY in names else [*names, FACTORY]


def override(text: str, settings: Mapping[str, Setting]) -> tuple[str, list[object]]:
    """Parse the text of ``--set KEY=V1,V2`` into the key and the list of values.

    Raises:
        ConfigError: The text has no ``=``, the key is unknown, or it cannot be an axis.
    """
    key, equals, rest = text.partition("=")
    key = key.strip()
    names = dict.fromkeys((*settings, FACTORY))
    if not equals:
        reason = "must be KEY=VALUE or KEY=VALUE,VALUE,..."
        raise ConfigError(reason + nearest(key, names), text, source="--set")
    if key not in settings:
        raise unknown(settings, "setting", key, rest, names, source="--set")
    if settings[key].kind.type in (int, float):
        _check_commas(key, rest, decimal=settings[key].kind.type is float)
    values = [settings[key].parse(word) for word in rest.split(",")]
    if len(values) > 1 and key not in axes(settings):
        reason = "must be one value, it cannot be an axis of the grid"
        raise ConfigError(reason, key, rest, source="--set")
    return key, values


def _check_commas(key: str, text: str, *, decimal: bool) -> None:
    """Check that the commas of a list of numbers are not within a number, as in 0,01 or 10,000.

    Raises:
        ConfigError: They may be. The message says how to write either.
    """
    words = [word.strip() for word in text.split(",")]
    reason = ""
    if decimal and re.fullmatch(r"[+-]?\d{1,20},\d{1,20}(e[+-]?\d{1,3})?", ",".join(words), re.I):
        one, two = ".".join(words), ",".join(str(float(word)) for word in words)
        reason = f"could be one number, {one}, or two, {two}; write one of these"
    elif any(re.match(r"0\d", word) for word in words[1:]):
        reason = "commas separate values; write numbers as in 0.01, 10000 or 0.01,0.001"
    if reason:
        raise ConfigError(reason, key, text, source="--set")


def factory_of(texts: Sequence[str]) -> str | None:
    """Return the factory of a ``--set factory=MODULE:FUNCTION``; None without one."""
    names = [text.partition("=")[2].strip() for text in texts if _FACTORY_KEY.match(text)]
    return names[0] if names else None


_FACTORY_KEY = re.compile(rf"\s*{FACTORY}\s*=")
