"""What a study file and ``--set`` say, before it is checked: settings and axes by their names."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmnist.config.settings import (
    AXES,
    SETTINGS,
    TABLES,
    ConfigError,
    clipped,
    given_twice,
    nearest,
    unknown,
)

MAX_BYTES = 1_000_000
# tomllib takes time by the square of a key's parts: a minute for 100 KB of a.a.a.a. A part is
# a word or in quotes. The search begins where a key can begin only, for it to be quick.
_LONG_KEY = re.compile(
    rb"""(?<![\w."'\\-])(?:(?:[\w-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){8}"""
)


def read(path: Path) -> dict[str, Any]:
    """The content of a TOML file, whose size and keys have bounds."""
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
    # Besides TOML's own errors: an integer of too many digits, brackets nested too deep.
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"must be valid TOML: {clipped(str(error), 120)}") from None


def sort(data: object) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tables of a file, flattened to what is set and what is an axis."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"must be tables {', '.join(TABLES)}", value=data)
    given: dict[str, Any] = {}
    axes: dict[str, Any] = {}
    for table, entries in data.items():
        if table not in TABLES:
            raise unknown("table", table, entries, TABLES)
        if not isinstance(entries, Mapping):
            raise ConfigError(f"must be a table: [{table}] and lines below it", table, entries)
        names = AXES if table == "grid" else [k for k in SETTINGS if SETTINGS[k].table == table]
        for key, value in entries.items():
            if key not in names:
                raise unknown(f"setting of [{table}]", key, value, names)
            (axes if table == "grid" else given)[key] = value
    for key in given:
        if key in axes:
            raise given_twice(key, given[key])
    return given, axes


def override(text: str) -> tuple[str, list[object]]:
    """The key and the values of a ``--set key=v1,v2``."""
    key, equals, rest = text.partition("=")
    key = key.strip()
    if not equals:
        reason = "must be KEY=VALUE or KEY=VALUE,VALUE,..."
        raise ConfigError(reason + nearest(key, SETTINGS), text, source="--set")
    if key not in SETTINGS:
        raise unknown("setting", key, rest, SETTINGS, source="--set")
    values = [SETTINGS[key].parse(word) for word in rest.split(",")]
    if len(values) > 1 and key not in AXES:
        reason = "must be one value, it cannot be an axis of the grid"
        raise ConfigError(reason, key, rest, source="--set")
    return key, values
