"""Which configurations of a study can be told apart from the best one, and which cannot.

The winner is the best of several, so a difference that would be remarkable between two is not
among many. The comparison is Hsu's with the best (1984, Constrained simultaneous confidence
intervals for multiple comparisons with the best), with Bonferroni's bound: each configuration that
is *tied* may be the best, and with 95 % confidence the true best is the winner or one of the tied.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np

from fmnist.config.results import (
    Point,
    TrialResult,
    Value,
    by_configuration,
    configuration,
    rank,
)
from fmnist.config.study import StudyConfig

CONFIDENCE = 0.95
UNSTEADY = 3.0
"""A configuration of this many times the typical spread over seeds has a standard error of its own.

Simulated studies of 2 to 60 configurations and 2 to 10 seeds called the best one worse in 3 to 8 %
of the cases; with 60 configurations and two seeds in 12 %; where a third of the configurations
varied ten times as much, in 4 to 25 %.
"""

SCALE = 8.0
"""Standard errors behind the best at which bars and colours end."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class Standing:
    """How a configuration stands among those of its study.

    Attributes:
        point: the values of the grid's axes, without the seed.
        trials: its trials, by number.
        score: the mean of the selecting metric over the completed seeds; NaN without one.
        interval: the 95 % interval of the score on new images and with new seeds; NaN when the
            noise is not known.
        behind: the distance to the best score, in standard errors of the difference; NaN when the
            noise is not known, infinite for a configuration of which a seed failed.
        tied: whether it cannot be told apart from the best. The best one is not tied.
    """

    point: Point
    trials: Sequence[TrialResult]
    score: float
    interval: Interval
    behind: float
    tied: bool

    @property
    def complete(self) -> list[TrialResult]:
        """Its completed trials."""
        return [result for result in self.trials if result.state == "COMPLETE"]


@dataclass(frozen=True)
class Comparison:
    """The configurations of a study, compared with the best one.

    Attributes:
        standings: each configuration, the best first.
        images: how many images the selecting metric is a mean over.
        seeds: how many seeds the best configuration was completed with.
        critical: the distance in standard errors up to which a configuration is tied; NaN when the
            noise is not known.
    """

    standings: Sequence[Standing]
    images: int
    seeds: int
    critical: float

    @property
    def known(self) -> bool:
        """Whether the noise is known."""
        return math.isfinite(self.critical)

    @cached_property
    def of(self) -> Mapping[int, Standing]:
        """Number of a trial -> the standing of its configuration."""
        return {r.number: standing for standing in self.standings for r in standing.trials}

    def closeness(self, standing: Standing) -> float:
        """How close to the best: 1 for the best, 0 for :data:`SCALE` standard errors behind it.

        Without known noise it is the place between the worst and the best score; NaN without one.
        """
        if math.isnan(standing.score):
            return math.nan
        if self.known:
            return 1 - min(standing.behind, SCALE) / SCALE
        found = [s.score for s in self.standings if not math.isnan(s.score)]
        gap, most = abs(standing.score - found[0]), max(abs(s - found[0]) for s in found)
        return 1 - gap / most if most else 1.0

    def cells(
        self, study: StudyConfig, keys: Sequence[str]
    ) -> dict[tuple[Value, ...], list[Standing]]:
        """Group the configurations by some axes of the grid, as the grid lists their values.

        Returns:
            Values of the axes -> the configurations, the best first; none where none was run.
        """
        groups: dict[tuple[Value, ...], list[Standing]] = {
            point: [] for point in product(*(study.grid[key] for key in keys))
        }
        for standing in self.standings:
            groups[tuple(standing.point[key] for key in keys)].append(standing)
        return groups


def compare(study: StudyConfig, results: Sequence[TrialResult], images: int) -> Comparison:
    """Compare the configurations of a study with the best one.

    With one seed, the noise is that of a share of ``images``, without that of training. With
    several seeds it is the spread of the differences from the best, seed by seed, on the same
    images: one for all configurations but those of :data:`UNSTEADY` times the typical one. Images
    that were trained on tell nothing apart.

    Args:
        study: the study.
        results: its results.
        images: how many images the selecting metric is a mean over; 0 when that is not known.
    """
    metric = study.metric
    groups = sorted(by_configuration(results), key=lambda trials: rank(trials, metric))
    scores = [_scores(trials, metric) for trials in groups]
    if not scores or not scores[0] or study.validation_is_trained:
        nan, which = math.nan, zip(groups, scores, strict=True)
        rows = [
            Standing(configuration(trials[0].point), trials, _mean(own), (nan, nan), nan, False)
            for trials, own in which
        ]
        return Comparison(rows, 0, len(scores[0]) if scores else 0, nan)
    best, share = scores[0], metric == "validation_accuracy" and images > 0
    whole = [len(s) == len(g) > 0 for s, g in zip(scores, groups, strict=True)]
    if not any(whole):  # every configuration failed with some seed
        whole = [bool(s) for s in scores]
    rivals = sum(whole) - 1
    seeded = len(best) > 1
    errors, degrees = (
        _paired(scores, whole) if seeded else ([_binomial(s, best, images) for s in scores], 0)
    )
    known = rivals < 1 or seeded or share
    critical = quantile(1 - (1 - CONFIDENCE) / max(rivals, 1), degrees) if known else math.nan
    typical = _typical([s.values() for s in scores if len(s) > 1])
    standings = []
    for place, (trials, found, error) in enumerate(zip(groups, scores, errors, strict=True)):
        score = _mean(found)
        gap, behind = abs(score - _mean(best)), math.nan
        if not whole[place]:
            behind = math.inf
        elif known:
            behind = gap / error if error else (math.inf if gap else 0.0)
        standings.append(
            Standing(
                configuration(trials[0].point),
                trials,
                score,
                _interval(found, images, typical, share),
                behind,
                place > 0 and behind <= critical,
            )
        )
    return Comparison(standings, images, len(best), critical)


def wilson(share: float, images: float) -> Interval:
    """The 95 % interval of a share of independent images (Wilson, 1927).

    Args:
        share: the share that was found; cut to 0 to 1.
        images: the number of images, more than 0.
    """
    share = min(max(share, 0.0), 1.0)
    z = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    shrunk = 1 + z * z / images
    middle = (share + z * z / (2 * images)) / shrunk
    half = z * math.sqrt(share * (1 - share) / images + z * z / (4 * images**2)) / shrunk
    return max(middle - half, 0.0), min(middle + half, 1.0)


def quantile(probability: float, degrees: int) -> float:
    """The quantile of Student's t distribution.

    Args:
        probability: between 0.5 and 1.
        degrees: degrees of freedom; 0 for the normal distribution.
    """
    if not 0 < degrees < 2000:
        return statistics.NormalDist().inv_cdf(probability)
    # With t = sqrt(degrees) tan(angle) the density is a power of the cosine.
    angle = np.linspace(0, math.pi / 2, 20_001)
    height = np.cos(angle) ** (degrees - 1)
    mass = np.concatenate([[0], np.cumsum(height[1:] + height[:-1])])
    place = np.interp(2 * probability - 1, mass / mass[-1], angle)
    return math.sqrt(degrees) * math.tan(place)


def _scores(trials: Sequence[TrialResult], metric: str) -> dict[object, float]:
    """The score of each completed trial, by seed."""
    return {r.point.get("seed"): getattr(r.final, metric) for r in trials if r.state == "COMPLETE"}


def _mean(scores: dict[object, float]) -> float:
    return math.fsum(scores.values()) / len(scores) if scores else math.nan


def _binomial(own: dict[object, float], best: dict[object, float], images: int) -> float:
    """The standard error of the difference of two shares of ``images``, taken as independent."""
    shares = [min(max(_mean(scores), 0.0), 1.0) for scores in (own, best)]
    return math.sqrt(sum(share * (1 - share) for share in shares) / max(images, 1))


def _paired(
    scores: Sequence[dict[object, float]], whole: Sequence[bool]
) -> tuple[list[float], int]:
    """The standard errors of the differences from the first, and their degrees of freedom."""
    best = scores[0]
    differences = [[own[seed] - best[seed] for seed in best if seed in own] for own in scores]
    rivals = [
        found
        for found, good in zip(differences[1:], whole[1:], strict=True)
        if good and len(found) > 1
    ]
    # One spread for all keeps the order of the scores, and few seeds may agree by chance.
    most = UNSTEADY * _typical(rivals)
    steady = [found for found in rivals if statistics.stdev(found) <= most]
    common = math.sqrt(statistics.fmean(map(statistics.variance, steady))) if steady else 0.0
    errors = []
    for found in differences:
        spread = statistics.stdev(found) if len(found) > 1 else math.nan
        errors.append((spread if spread > most else common) / math.sqrt(max(len(found), 1)))
    return errors, sum(len(found) - 1 for found in steady) or len(best) - 1


def _typical(samples: Sequence[Collection[float]]) -> float:
    """The typical standard deviation of samples of two values or more; 0 without one.

    It is the root of the median variance, over the median of chi-squared by its degrees of freedom
    (Wilson and Hilferty, 1931): samples of few values mostly have too small a variance.
    """
    if not samples:
        return 0.0
    degrees = statistics.median(len(values) - 1 for values in samples)
    variance = statistics.median(map(statistics.variance, samples))
    return math.sqrt(variance / (1 - 2 / (9 * degrees)) ** 3)


def _interval(found: dict[object, float], images: int, typical: float, share: bool) -> Interval:
    """The interval of a mean: the noise of the images, and that of the seeds where it is known."""
    if not found:
        return math.nan, math.nan
    mean, count = _mean(found), len(found)
    of_seeds = max(statistics.stdev(found.values()), typical) ** 2 / count if count > 1 else 0.0
    if not share:  # nobody knows how the loss varies from image to image
        half = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * math.sqrt(of_seeds)
        return (mean - half, mean + half) if count > 1 else (math.nan, math.nan)
    own = max(mean * (1 - mean), 0.0)
    return wilson(mean, own / (own / images + of_seeds) if own else images)
