"""Says which values of the grid go with failures: advice for the next study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fmnist.config.results import TrialResult, Value
from fmnist.config.study import StudyConfig
from fmnist.reports.words import one_line

MOST_NUMBERS = 8
"""Trials that a line names by their numbers, at most."""


class Separation(NamedTuple):
    """How the values of an axis go with failures.

    Attributes:
        axis: the name of the axis.
        bad: the values with which every trial failed.
        mixed: the values with which some trials failed, and some did not.
        good: the values with which no trial failed.
        some: the trials with the mixed values.
    """

    axis: str
    bad: list[Value]
    mixed: list[Value]
    good: list[Value]
    some: list[TrialResult]


def advice(study: StudyConfig, results: Sequence[TrialResult]) -> str:
    """Say which trials diverged, in one sentence about the axis that tells most.

    Args:
        study: the study.
        results: the results of its trials, or of some of them.

    Returns:
        A sentence that holds for these results; empty when no trial failed.
    """
    failed = [result for result in results if result.state != "COMPLETE"]
    if not failed:
        return ""
    if len(failed) == len(results):
        return _all_failed(study, results)
    count, axes = f"{len(failed)} of {len(results)} trials diverged", _axes(study)
    found = [separation(study, results, axis) for axis in axes]
    found = [parts for parts in found if parts.bad or parts.good]
    if not found:
        return f"{count}; with every value of every axis some did and some did not."

    axis, bad, mixed, good, some = min(found, key=lambda parts: len(parts.some))
    known = [value for value in study.grid[axis] if value in (*bad, *mixed, *good)]
    if not mixed:
        who = _all(len(failed), "The trial", "Both trials", "All {} trials")
        return (
            f"{who} with {axis} {_at(bad, known)} diverged; those with {_or(good, known)} did not."
        )
    lost = sum(result.state != "COMPLETE" for result in some)
    parts = [f"{lost} of the {len(some)} with {axis} {_at(mixed, known)}"]
    if bad:
        who = _all(len(failed) - lost, "the one", "both", "all {}")
        parts.append(f"{who} with {_or(bad, known)}")
    if good:
        parts.append(f"none with {_or(good, known)}")
    return f"{count}: {', '.join(parts)}."


def reasons(results: Sequence[TrialResult]) -> list[str]:
    """Return a line for each reason of failures, with the trials that failed for it."""
    trials: dict[str, list[str]] = {}
    for result in results:
        if result.state != "COMPLETE":
            trials.setdefault(one_line(result.reason) or "failed", []).append(str(result.number))
    lines = []
    for reason, numbers in trials.items():
        named = ", ".join(numbers[:MOST_NUMBERS] + ["..."] * (len(numbers) > MOST_NUMBERS))
        who = f"Trial {named}" if len(numbers) == 1 else f"{len(numbers)} trials ({named})"
        lines.append(f"{who} failed: {reason}.")
    return lines


def separation(study: StudyConfig, results: Sequence[TrialResult], axis: str) -> Separation:
    """Sort the values of an axis by whether trials with them failed."""
    parts = Separation(axis, [], [], [], [])
    for value in study.grid[axis]:
        trials = [result for result in results if result.point[axis] == value]
        failed = [result.state != "COMPLETE" for result in trials]
        if trials and all(failed):
            parts.bad.append(value)
        elif any(failed):
            parts.mixed.append(value)
            parts.some.extend(trials)
        elif trials:
            parts.good.append(value)
    return parts


def _axes(study: StudyConfig) -> list[str]:
    """The axes that vary: of those that tell equally much, the learning rate is named first."""
    varied = [key for key, values in study.grid.items() if len(values) > 1]
    return sorted(varied, key=lambda key: (key != "learning_rate", key == "seed"))


def _all_failed(study: StudyConfig, results: Sequence[TrialResult]) -> str:
    used = sorted({study.trial(result.point).optimizer.learning_rate for result in results})
    said = f"{used[0]}" if len(used) == 1 else f"from {used[0]} to {used[-1]}"
    who = _all(len(results), "The only trial", "Both trials", "All {} trials")
    return f"{who} diverged, with learning_rate {said}; a lower one may not."


def _all(count: int, one: str, two: str, more: str) -> str:
    return {1: one, 2: two}.get(count, more.format(count))


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _end(values: Sequence[Value], known: Sequence[Value]) -> int:
    """Whether these are the highest of several known numbers, 1, the lowest, -1, or neither, 0."""
    if len(values) < 2 or len(values) == len(known) or not all(map(_is_number, known)):
        return 0
    ordered = sorted(known, key=float)
    if set(ordered[-len(values) :]) == set(values):
        return 1
    return -1 if set(ordered[: len(values)]) == set(values) else 0


def _at(values: Sequence[Value], known: Sequence[Value]) -> str:
    """Values after the name of their axis: ``">= 0.5"`` or ``"adam or sgd"``."""
    end = _end(values, known)
    if end:
        return f">= {min(values, key=float)}" if end > 0 else f"<= {max(values, key=float)}"
    return _or(values, known)


def _or(values: Sequence[Value], known: Sequence[Value]) -> str:
    """Values by themselves: ``"0.1 or less"`` or ``"adam or sgd"``."""
    end = _end(values, known)
    if end:
        return (
            f"{min(values, key=float)} or more" if end > 0 else f"{max(values, key=float)} or less"
        )
    texts = [f'"{value}"' if " " in str(value) else one_line(value) for value in values]
    return " or ".join([", ".join(texts[:-1]), texts[-1]] if texts[1:] else texts)
