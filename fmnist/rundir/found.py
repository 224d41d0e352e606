"""Finds the runs in the folder ``runs``. It imports nothing heavy: view needs no torch."""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Iterable
from pathlib import Path

from fmnist.utils import interpreter
from fmnist.utils.errors import UserError

RUNS = Path("runs")
"""Where runs go without ``--out``, below the current folder."""

FINISHED, BOARD = "best/config.json", "tensorboard"
"""What a run has that can predict, and one that can be viewed."""

_SHOWN = 3


def runs(has: str) -> list[Path]:
    """Return the runs that have this file or folder, the one where it changed last first."""
    when: dict[Path, int] = {}
    with contextlib.suppress(OSError):
        for path in sorted(RUNS.iterdir()):
            with contextlib.suppress(OSError):
                when[path] = (path / has).stat().st_mtime_ns
    return sorted(when, key=lambda path: -when[path])


def latest(has: str) -> Path:
    """Return the run that was given last, where none is named.

    Raises:
        UserError: There is none.
    """
    if known := runs(has):
        return known[0]
    command = interpreter.module("fmnist.study")
    raise UserError(f"there is no run in the folder {RUNS}; name another, or make one: {command}")


def alike(path: Path, has: str) -> list[Path]:
    """Return the runs whose path or name is like this one, which may be mistyped."""
    known = {str(run): run for run in runs(has)}
    by_name = {run.name: run for run in known.values()}
    close = difflib.get_close_matches(str(path), known, _SHOWN)
    names = difflib.get_close_matches(path.name, by_name, _SHOWN)
    return list(dict.fromkeys([*(known[word] for word in close), *(by_name[n] for n in names)]))


def hint(path: Path, has: str) -> str:
    """Say which run a path that is none may mean, or how to make one."""
    if close := alike(path, has):
        return f"did you mean {_listed(close)}?"
    if known := runs(has):
        return f"there are {_listed(known)}"
    return f"make one: {interpreter.module('fmnist.study')}"


def _listed(paths: Iterable[Path]) -> str:
    words = [os.fspath(path) for path in paths]
    return ", ".join([*words[:_SHOWN], *["..."] * (len(words) > _SHOWN)])
