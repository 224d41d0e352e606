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
        test: the measures on the test set of the first member, of the mean of two, and so on; empty
            if the study keeps it unseen.
        validation: the same on the images that the study held out; empty if there are none.
        singles: the accuracy of each member on the images of :attr:`split`.
        disagreement: see :func:`fmnist.functional.ensembles.disagreement`, on these.
        images: their number.
    """

    trials: Sequence[int]
    seeds: bool
    test: Sequence[Measures]
    validation: Sequence[Measures]
    singles: Sequence[float]
    disagreement: float
    images: int

    @property
    def split(self) -> str:
        """``"test"``, or ``"validation"`` if the test set is unseen."""
        return "test" if self.test else "validation"


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


def sentence(found: Averaged) -> str:
    """Say what the mean gains."""
    count, last = len(found.trials), (found.test or found.validation)[-1]
    who = f"the {count} seeds of the configuration in best/" if found.seeds else f"{count} trials"
    low, high = wilson(last.accuracy, found.images)
    mean = sum(found.singles) / count
    return (
        f"The mean of the probabilities of {who} has a {found.split} accuracy of "
        f"{last.accuracy:.4f} (95% interval {low:.4f} to {high:.4f}); one alone has {mean:.4f} on "
        f"average, {min(found.singles):.4f} to {max(found.singles):.4f}. Two of them differ on "
        f"{found.disagreement:.1%} of the {found.split} images."
    )


_HEADER = (
    "members", "trial", "held-out accuracy", "held-out loss", "test accuracy", "test loss",
    "calibration error",
)  # fmt: skip


def rows(found: Averaged) -> tuple[list[str], list[list[str]]]:
    """Return the columns of the table of an ensemble, and a row for each number of members."""
    there = {"held-out": found.validation, "test": found.test}
    absent = tuple(name for name, measures in there.items() if not measures)
    lines = []
    for place, trial in enumerate(found.trials):
        own = [measures[place] for measures in there.values() if measures]
        shown = [number for each in own for number in (each.accuracy, each.loss)]
        shown.append(own[-1].calibration_error)
        lines.append([str(place + 1), str(trial), *(f"{number:.4f}" for number in shown)])
    return [name for name in _HEADER if not name.startswith(absent)], lines
