"""Where a study goes that was given no folder: one of its own for each set of settings."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from fmnist.config import loading
from fmnist.config.study import StudyConfig
from fmnist.rundir import folder
from fmnist.rundir.found import RUNS
from fmnist.utils.errors import UserError

_LONGEST, _SHOWN = 64, 3  # characters of a study's name; differences in a line


class Place(NamedTuple):
    """Where a study goes.

    Attributes:
        config: the study, under the name that it has there.
        out: the folder of the run.
        note: why it is not ``runs/NAME``, in a line; empty if it is.
    """

    config: StudyConfig
    out: Path
    note: str


def place(config: StudyConfig, *, reference: bool = False) -> Place:
    """Find the folder of a study below ``runs``: the one that it has, or the first free one.

    These are NAME, NAME-2, NAME-3 and so on. A study in a numbered folder has its name, so that a
    storage that folders share holds both. Nothing is written: the folder is locked, and is
    checked again, when it is opened.

    Args:
        config: the study.
        reference: whether the run is one of the reference model, in ``runs/NAME-reference``.

    Returns:
        The place. When it cannot be told which study a folder holds, it is that folder, which
        refuses to be opened and says why.
    """
    first = _path(config.name, reference)
    others = unclear = ""
    for number in (1, *_numbers(config.name, reference)):
        name = _numbered(config.name, number)
        held = _held(_path(name, reference), reference)
        if isinstance(held, StudyConfig):
            changes = loading.differences(held, config)
            if held.name == name:
                changes = [line for line in changes if not line.startswith("name: ")]
            if not changes:
                return _noted(held, _path(name, reference), first, others)
            if number == 1:
                some = [*changes[:_SHOWN], *["..."] * (len(changes) > _SHOWN)]
                others = f"{first} holds another study ({'; '.join(some)}); "
        elif held == "unclear":
            unclear = unclear or name
        elif held == "other" and number == 1:
            others = f"{first} holds other files; "
    names = (_numbered(config.name, number) for number in itertools.count(1))
    free = (name for name in names if _held(_path(name, reference), reference) == "free")
    name = unclear or next(free)
    return _noted(replace(config, name=name), _path(name, reference), first, others)


def _noted(config: StudyConfig, out: Path, first: Path, others: str) -> Place:
    note = "" if out == first else f"{others}this one is study {config.name}, in {out}"
    return Place(config, out, note)


def _path(name: str, reference: bool) -> Path:
    return RUNS / (f"{name}-reference" if reference else name)


def _numbered(name: str, number: int) -> str:
    end = "" if number == 1 else f"-{number}"
    return f"{name[: _LONGEST - len(end)]}{end}"


def _numbers(name: str, reference: bool) -> list[int]:
    """The numbers of the folders of this name, without the first."""
    form, found = re.compile(r".+-(\d{1,6})" + "-reference" * reference), set[int]()
    with contextlib.suppress(OSError):
        for path in RUNS.iterdir():
            if match := form.fullmatch(path.name):
                found.add(int(match[1]))
    return sorted(n for n in found if n > 1 and _path(_numbered(name, n), reference).exists())


def _held(out: Path, reference: bool) -> StudyConfig | str:
    """The study that a folder holds; or ``"free"``, ``"other"`` files, or ``"unclear"``."""
    taken = folder.is_taken(out)
    file = out / (folder.REFERENCE if reference else folder.STUDY)
    if os.path.lexists(file) and not (reference and taken):
        try:
            return loading.load_study(file)
        except UserError:
            return "unclear"
    if taken:
        return "other" if reference else "unclear"
    return "other" if folder.would_overwrite(out) else "free"
