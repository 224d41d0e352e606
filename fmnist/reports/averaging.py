"""What the mean of several models of a study gains: a part of its report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from fmnist.config.results import TrialResult, ranked
from fmnist.reports.comparison import wilson
from fmnist.reports.findings import Findings

MOST = 10
"""Members, at most: each is computed for the test set, and for the images held out."""


class Measures(Protocol):
    """Those of :class:`fmnist.functional.ensembles.Measures`."""

    @property
    def accuracy(self) -> float: ...
    @property
    def loss(self) -> float: ...
    @property
    def calibration_error(self) -> float: ...


class Averaged(NamedTuple):
    """An ensemble of trials.

    Attributes:
        trials: the members, in the order in which they are added.
        seeds: whether they are the seeds of the winner's configuration.
        test: the measures on the test set of the first member, of the mean of two, and so on.
        validation: the same on the images that the study held out; empty if there are none.
        singles: the accuracy of each member on the test set.
        disagreement: see :func:`fmnist.functional.ensembles.disagreement`, on the test set.
    """

    trials: Sequence[int]
    seeds: bool
    test: Sequence[Measures]
    validation: Sequence[Measures]
    singles: Sequence[float]
    disagreement: float


def members(findings: Findings) -> tuple[list[TrialResult], bool]:
    """Return the trials to average, and whether they are seeds of one configuration.

    These are the seeds of the winner's configuration, or else the best trials. Without images held
    out nothing may choose the best, so these are the first ones.
    """
    best = findings.winner
    if best is None:
        return [], False
    there = [
        result
        for result in findings.results
        if result.state == "COMPLETE" and result.number not in findings.lost
    ]
    numbers = {result.number for result in findings.comparison.of[best.number].complete}
    seeds = [result for result in there if result.number in numbers]
    if len(seeds) > 1:
        return seeds[:MOST], True
    if findings.config.holdout:
        there = ranked(there, findings.config.metric)
    return there[:MOST], False


def sentence(found: Averaged, tested: int) -> str:
    """Say what the mean gains.

    Args:
        found: the ensemble.
        tested: number of test images.
    """
    count, last = len(found.trials), found.test[-1]
    who = f"the {count} seeds of the winner's configuration" if found.seeds else f"{count} trials"
    low, high = wilson(last.accuracy, tested)
    mean = sum(found.singles) / count
    return (
        f"The mean of the probabilities of {who} has a test accuracy of {last.accuracy:.4f} "
        f"(95% interval {low:.4f} to {high:.4f}); one alone has {mean:.4f} on average, "
        f"{min(found.singles):.4f} to {max(found.singles):.4f}. Two of them differ on "
        f"{found.disagreement:.1%} of the test images."
    )


_HEADER = (
    "members", "trial", "held-out accuracy", "held-out loss", "test accuracy", "test loss",
    "calibration error",
)  # fmt: skip


def rows(found: Averaged) -> tuple[list[str], list[list[str]]]:
    """Return the columns of the table of an ensemble, and a row for each number of members."""
    header = [name for name in _HEADER if found.validation or not name.startswith("held-out")]
    lines = []
    for place, (trial, test) in enumerate(zip(found.trials, found.test, strict=True)):
        line = [str(place + 1), str(trial)]
        if found.validation:
            own = found.validation[place]
            line += [f"{own.accuracy:.4f}", f"{own.loss:.4f}"]
        calibration = f"{test.calibration_error:.4f}"
        lines.append([*line, f"{test.accuracy:.4f}", f"{test.loss:.4f}", calibration])
    return header, lines
