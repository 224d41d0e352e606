"""The wording that every view shares: names, numbers, and sentences about a study."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fmnist.config.results import TrialResult, label
from fmnist.config.study import StudyConfig
from fmnist.reports.comparison import Comparison, Interval, Standing, wilson
from fmnist.reports.confusion import most_confused
from fmnist.reports.scores import score

UNSEEN = "The test set was not looked at."
TEST_WAS_SEEN = "holdout = 0: the test set was looked at every epoch"
"""The note on every table and figure of a study without a validation set."""


def printable(text: str) -> str:
    """Replace control characters; some of them reverse the reading direction."""
    bad = {c for c in text if not c.isprintable() and c != "\n"}
    marks = {ord(c): " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in bad}
    return text.translate(marks)


def one_line(text: object) -> str:
    """Put a text on one line and replace control characters, for a terminal or a table."""
    return printable(" ".join(str(text).split()))


def short(text: object, width: int) -> str:
    """The text on one line, cut to ``width`` characters."""
    line = one_line(text)
    return line if len(line) <= width else line[: width - 1] + "…"


def protocol_note(study: StudyConfig, form: str = "{}") -> str:
    """:data:`TEST_WAS_SEEN`, put into ``form``, when the test set selects; otherwise empty."""
    return form.format(TEST_WAS_SEEN) if study.validation_is_test else ""


def held_out(study: StudyConfig) -> str:
    """What the ``validation_*`` metrics are of: ``"validation"``, ``"test"`` or ``"sample"``."""
    if study.validation_is_trained:
        return "sample"
    return "test" if study.validation_is_test else "validation"


def when(study: StudyConfig) -> str:
    """Which epochs of a trial count, such as ``"after the last epoch"``."""
    if study.keep == "best":
        return "at its best epoch"
    if min(study.metric_window, study.epochs) > 1:
        return f"over the last {min(study.metric_window, study.epochs)} epochs"
    return "after the last epoch"


def metric_name(study: StudyConfig) -> str:
    """The name of the selecting metric, such as ``"validation accuracy"``."""
    return f"{held_out(study)} {study.metric.removeprefix('validation_')}"


def counted(number: int, thing: str) -> str:
    """A number of things, such as ``"1 trial"`` or ``"1,000 trials"``."""
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def won(study: StudyConfig) -> str:
    """The state of the trial whose network is in ``best/``: nothing wins if nothing is held out."""
    return "in best/" if study.validation_is_trained else "winner"


def named(
    study: StudyConfig, result: TrialResult, best: TrialResult | None, width: int = 10_000
) -> str:
    """A trial's number and configuration, cut to ``width``, and whether it won or failed."""
    failed = "" if result.state == "COMPLETE" else " (failed)"
    state = f" ({won(study)})" if result is best else failed
    return f"{result.number}: {short(result.label, width)}{state}"


def part(count: int, total: int) -> str:
    """A part of a whole, such as ``"30 of 120, 25.0%"``."""
    return f"{count:,} of {total:,}, {count / total:.1%}"


def decimals(value: float, digits: int = 4) -> str:
    """Write a metric with ``digits`` decimals; a dash when it is not finite."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def duration(seconds: float) -> str:
    """Write seconds in one or two units, such as ``"3 min 20 s"``; a dash when not finite."""
    if not math.isfinite(seconds):
        return "-"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def interval(found: Interval) -> str:
    """Write an interval such as ``"0.8938 to 0.9104"``; a dash when it is not known."""
    low, high = map(decimals, found)
    return f"{low} to {high}" if low != "-" else "-"


def margin(found: Interval) -> str:
    """Write half the width of an interval, such as ``"0.0083"``."""
    return decimals((found[1] - found[0]) / 2)


def winner_sentence(
    study: StudyConfig, winner: TrialResult | None, comparison: Comparison, tested: int
) -> str:
    """Say which configuration won, by which metric, and how its trial does on the test set.

    Args:
        study: the study.
        winner: the trial that stands for it; None when no trial is complete.
        comparison: the configurations, compared with the best one.
        tested: the number of test images.
    """
    if winner is None:
        return "No trial was completed, so there is no winner."
    best, metric = comparison.standings[0], metric_name(study)
    if study.validation_is_trained:
        return _tested_sentence(best, tested, len(comparison.standings))
    within = "" if math.isnan(best.interval[0]) else f" (95% interval {interval(best.interval)})"
    seeded = len(best.trials) > 1 and "seed" in winner.point
    if seeded:
        text = (
            f"The winner is {one_line(label(best.point))}, with the best mean {metric} over its "
            f"{counted(len(best.complete), 'seed')} {when(study)}, {decimals(best.score)}"
            f"{within}. Trial {winner.number} (seed {winner.point['seed']}), the median of its "
            f"seeds with {decimals(score(study, winner))}, stands for it."
        )
    else:
        text = (
            f"The winner is trial {winner.number} ({one_line(winner.label)}), with the best "
            f"{metric} {when(study)}, {decimals(best.score)}{within}."
        )
    if study.validation_is_test:
        return f"{text} The test set itself chose it, so this figure is optimistic."
    if not study.test:
        return f"{text} {UNSEEN}"
    accuracy, whose = winner.test_accuracy, "that trial's" if seeded else "its"
    known = math.isfinite(accuracy) and tested
    within = f" (95% interval {interval(wilson(accuracy, tested))})" if known else ""
    return (
        f"{text} On the test set, which had no part in the choice, {whose} accuracy is "
        f"{decimals(accuracy)}{within} and its loss {decimals(winner.test_loss)}."
    )


def _tested_sentence(best: Standing, tested: int, configurations: int) -> str:
    """Say how a configuration does on the test set, by which nothing was chosen."""
    found, mean = test_accuracies(best), mean_tested(best)
    spread = f" (standard deviation {decimals(statistics.stdev(found))})" if found[1:] else ""
    within = f" (95% interval {interval(wilson(mean, tested))})" if found and tested else ""
    begin = "Nothing was held out, and nothing was chosen here."
    if configurations > 1:
        begin = (
            f"Nothing was held out: of {configurations:,} configurations, this one is the best on "
            "a sample of the training images, by which nothing should be chosen."
        )
    name = f"{one_line(label(best.point))}: the" if best.point else "The"
    if not found:
        return f"{begin} {UNSEEN}"
    return (
        f"{begin} {name} mean accuracy on the test set over "
        f"{counted(len(found), 'trial')} is {decimals(mean)}{spread or within}."
    )


def test_accuracies(best: Standing) -> list[float]:
    """The known accuracies of a configuration's trials on the test set."""
    return [r.test_accuracy for r in best.complete if math.isfinite(r.test_accuracy)]


def mean_tested(best: Standing) -> float:
    """The mean of :func:`test_accuracies`; NaN without one."""
    found = test_accuracies(best)
    return math.fsum(found) / len(found) if found else math.nan


def noise_sentence(study: StudyConfig, comparison: Comparison) -> str:
    """Say which configurations cannot be told apart from the winner; empty without another one.

    Those of which a trial failed are not counted.
    """
    rivals = [s for s in comparison.standings[1:] if len(s.complete) == len(s.trials)]
    others, tied = len(rivals), sum(standing.tied for standing in rivals)
    if not others or study.validation_is_trained:
        return ""
    metric, seeds = metric_name(study), comparison.seeds
    if not comparison.known:
        return (
            "Each configuration was trained with one seed, which says nothing about the noise of a "
            "loss: make seed an axis of the grid to see which differences are more than noise."
        )
    if seeds > 1:
        basis = (
            f"compared seed by seed over {seeds} seeds, on the same {comparison.images:,} images"
        )
        advice = " More seeds would tell more apart." if tied else ""
    else:
        basis = f"by {counted(comparison.images, 'image')}"
        advice = (
            " How much another seed would change them is not known: make seed an axis of the grid "
            "to measure that."
        )
    if not tied:
        which = "the other configuration" if others == 1 else f"each of the other {others:,}"
        return f"It is better than {which} with 95% confidence, {basis}.{advice}"
    if others == 1:
        many = "The other configuration cannot"
    elif tied == others:
        many = f"None of the other {others:,} configurations can"
    else:
        many = f"{tied:,} of the other {others:,} configurations cannot"
    return (
        f"{many} be told apart from it ({basis}; marked as tied): with 95% confidence the "
        f"configuration that is truly best in {metric} is among these and the winner.{advice}"
    )


def protocol_sentences(study: StudyConfig) -> str:
    """Say which images were trained on, which selected the winner, and which were reported."""
    epochs = counted(study.epochs, "epoch")
    if study.validation_is_test:
        return (
            f"Every trial trains for {epochs} on all training images, unless it fails. Nothing was "
            "held out: what stands where validation would is the test set, looked at every "
            "epoch, and it chose the winner. This is a protocol to compare with others, not an "
            "estimate of how well the winner does on new images."
        )
    if study.validation_is_trained:
        return (
            f"Every trial trains for {epochs} on all training images, unless it fails. What stands "
            "where validation would is a sample of these images, so it says nothing about new "
            "ones, and no configuration should be chosen by it. "
            + ("The test set was evaluated once a trial, at its end." if study.test else UNSEEN)
        )
    tested = (
        "The test set was evaluated once a trial, at its end; it is reported and was never used to "
        "choose."
    )
    return (
        f"Every trial trains for {epochs}, unless it fails. {study.holdout:,} images, the same for "
        f"every trial, were held out from training: the {metric_name(study)} on them "
        f"{when(study)} picks the winner. {tested if study.test else UNSEEN}"
    )


def best_name(study: StudyConfig) -> str:
    """What the network in ``best/`` is called: nothing wins where nothing was held out."""
    return "the network in best/" if study.validation_is_trained else "the winner"


def confusion_sentences(matrix: NDArray[np.int64], classes: Sequence[str], who: str) -> str:
    """Say which classes a network confuses.

    Args:
        matrix: its confusion matrix on the test set, counts ``[true class, predicted class]``.
        classes: the names of the classes.
        who: what it is called (:func:`best_name`).
    """
    who = who[0].upper() + who[1:]
    total, wrong = int(matrix.sum()), int(matrix.sum() - np.trace(matrix))
    if not wrong:
        return f"{who} is right on all {total:,} test images."
    rows = matrix.sum(axis=1)
    pairs = [
        f"{classes[true]} for {classes[predicted]} ({part(count, rows[true])})"
        for true, predicted, count in most_confused(matrix, 3)
    ]
    most = " and ".join([", ".join(pairs[:-1]), pairs[-1]] if pairs[1:] else pairs)
    text = (
        f"{who} is wrong on {wrong:,} of the {total:,} test images ({wrong / total:.1%}). "
        f"Most often it takes {most}."
    )
    right = np.diag(matrix) / np.where(rows, rows, 1)
    present = np.flatnonzero(rows)
    best, worst = present[right[present].argmax()], present[right[present].argmin()]
    if right[best] > right[worst]:
        text += (
            f" It knows {classes[best]} best ({right[best]:.1%} right) and {classes[worst]} "
            f"least ({right[worst]:.1%})."
        )
    return text
