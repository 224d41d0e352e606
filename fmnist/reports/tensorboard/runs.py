"""The folders of the trials in TensorBoard, whose names are the names of the runs.

A name begins with the number of the trial, as TensorBoard cuts long names. The number has leading
zeros, so that the names have the order of the numbers. TensorBoard sorts digits before the run of
the winner, and letters after it, so the number is not the first word.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from fmnist.config.results import Point, TrialResult, label
from fmnist.config.study import StudyConfig

NAME_BYTES = 200
"""Bytes of the name of a configuration, at most; file systems allow 255 in all."""

WINNER, FAILED = "(winner) ", "(failed) "
"""What may follow the number, as in ``trial 03 (winner) learning_rate=0.01,batch_size=100``."""

MARKS = ("", WINNER, FAILED)


def run_name(study: StudyConfig, number: int, point: Point, mark: str = "") -> str:
    """Return the name of a trial's folder.

    Args:
        study: the study.
        number: the trial's number.
        point: its configuration.
        mark: one of :data:`MARKS`.
    """
    return f"trial {number:0{len(str(study.size - 1))}} {mark}{point_name(point)}"


def point_name(point: Point) -> str:
    """Return the part of a folder's name that says the configuration.

    It is the label of the configuration. When a file system might refuse that, letters are
    replaced, the end is cut and a hash of the label is appended.
    """
    full = label(point)
    safe = "".join(c if c.isprintable() and c not in '/\\:*?"<>|' else "_" for c in full)
    safe = safe.strip(". ")
    if safe == full and len(safe.encode()) < NAME_BYTES:
        return safe
    tail = "-" + hashlib.sha256(full.encode()).hexdigest()[:12]
    return safe.encode()[: NAME_BYTES - len(tail) - 1].decode(errors="ignore") + tail


def folders(root: Path) -> dict[str, list[Path]]:
    """Return the folders of all trials by the name of their configuration.

    A configuration may have several: of a trial that failed, or of an earlier version, which gave
    the folders no number.
    """
    before = re.compile(rf"(trial \d+ ({'|'.join(map(re.escape, MARKS[1:]))})?)?")
    found: dict[str, list[Path]] = defaultdict(list)
    for path in root.iterdir():
        if path.is_dir():
            found[before.sub("", path.name, count=1)].append(path)
    return found


def mark(
    root: Path, study: StudyConfig, results: Sequence[TrialResult], winner: TrialResult | None
) -> list[Path]:
    """Mark the winner and failed trials in the names of their folders.

    Args:
        root: the folder of the runs.
        study: the study.
        results: the result of every trial.
        winner: the winner.

    Returns:
        The folders of the trials that have one.
    """
    marked = []
    winner = None if study.validation_is_trained else winner  # nothing wins then
    for result in results:
        kind = FAILED if result.state == "FAIL" else WINNER if result is winner else ""
        names = {kind: run_name(study, result.number, result.point, kind) for kind in MARKS}
        folder = root / names[kind]
        for other in MARKS:
            if (root / names[other]).is_dir() and not folder.exists():
                (root / names[other]).rename(folder)
        if folder.is_dir():
            marked.append(folder)
    return marked
