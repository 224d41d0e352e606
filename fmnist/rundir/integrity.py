"""Finds files of a run that are missing or damaged, and restores the winner's parameters."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from fmnist.config.results import TrialResult, winner
from fmnist.rundir import files, manifest, models
from fmnist.utils.errors import UserError

_log = logging.getLogger("fmnist")


def lost_parameters(
    out: Path, sums: Mapping[int, str], warned: Collection[int] = frozenset()
) -> set[int]:
    """Find the trials whose parameter file is missing or damaged, and log a warning for each.

    The winner's file is restored from ``best/`` where that copy is whole.

    Args:
        out: the run's folder.
        sums: the SHA-256 of each trial's parameter file, by trial number.
        warned: the numbers of the trials that have had their warning.

    Returns:
        The numbers of the trials whose parameters are lost.
    """
    lost = set()
    spare = models.best_path(out)
    for number, expected in sums.items():
        path = models.model_path(out, number)
        if manifest.sha256_of(path) == expected:
            continue
        if manifest.sha256_of(spare) == expected:
            files.write_bytes(path, spare.read_bytes())
            _log.warning("%s was missing or damaged, and is restored from %s", path, spare)
            continue
        lost.add(number)
        if number not in warned:
            _log.warning("%s is missing or damaged; only training in another --out makes it", path)
    return lost


def check_winner(
    out: Path, results: Sequence[TrialResult], metric: str, lost: Collection[int]
) -> None:
    """Check that the winner's parameters are there.

    Args:
        out: the run's folder.
        results: the results of the trials that ended.
        metric: the metric that selects the winner.
        lost: the numbers of the trials whose parameters are lost.

    Raises:
        UserError: The winner's parameters are lost.
    """
    best = winner(results, metric)
    if best is not None and best.number in lost:
        path = models.model_path(out, best.number)
        raise UserError(
            f"{path} is missing or damaged, and is the winner's so far; choose another --out"
        )


def damaged(out: Path) -> list[str] | None:
    """Find the files other than parameters that are missing or changed; they can be made again.

    Returns:
        Their names, relative to ``out``; None when there is no readable manifest.
    """
    parameters = str(models.model_path(out, 0).parent.relative_to(out))
    names = manifest.damaged_files(out)
    return names and [name for name in names if Path(name).parts[0] != parameters]
