"""Whether what a study left is as it was: parameters, which only training makes, and the rest."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from fmnist.config.results import TrialResult, winner
from fmnist.rundir import files, manifest, models
from fmnist.utils.errors import UserError

_log = logging.getLogger("fmnist")


def lost_parameters(
    out: Path, sums: Mapping[int, str], told: Collection[int] = frozenset()
) -> set[int]:
    """The trials whose parameters are missing or damaged; the winner's come back from ``best/``.

    Args:
        out: the run's folder.
        sums: the SHA-256 of each trial's file of parameters, by trial number.
        told: the trials of which the log says so already.
    """
    lost = set()
    spare = models.best_path(out)
    for number, expected in sums.items():
        path = models.model_path(out, number)
        if manifest.of(path) == expected:
            continue
        if manifest.of(spare) == expected:
            files.write_bytes(path, spare.read_bytes())
            _log.warning("%s was missing or damaged, and is restored from %s", path, spare)
            continue
        lost.add(number)
        if number not in told:
            _log.warning("%s is missing or damaged; only training in another --out makes it", path)
    return lost


def check_winner(
    out: Path, results: Sequence[TrialResult], metric: str, lost: Collection[int]
) -> None:
    """Refuse to go on with a winner whose parameters are lost.

    Raises:
        UserError: they are.
    """
    best = winner(results, metric)
    if best is not None and best.number in lost:
        path = models.model_path(out, best.number)
        raise UserError(
            f"{path} is missing or damaged, and is the winner's so far; choose another --out"
        )


def damaged(out: Path) -> list[str] | None:
    """What else is missing or changed, and can be made anew; None when nothing was noted."""
    parameters = str(models.model_path(out, 0).parent.relative_to(out))
    wrong = manifest.wrong(out)
    return wrong and [name for name in wrong if Path(name).parts[0] != parameters]
