"""The figures of a report: PNG files, drawn with seaborn and without pyplot's global state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fmnist.config.results import winner
from fmnist.reports import words
from fmnist.reports.canvas import ACCENT, INK, PALE, montage, sheet, short, show
from fmnist.reports.confusion import confusion_matrix, integers, most_confused
from fmnist.reports.lines import DASHED, THIN, frame, hues, marked, named_curves, thin_curves

if TYPE_CHECKING:
    from fmnist.config.results import TrialResult, Value
    from fmnist.config.study import StudyConfig

NAMED_TRIALS = 12
"""With more trials than this, curves are drawn thin and only the best one is named."""


def samples(images: Any, labels: Any, classes: Sequence[str], path: Path, each: int = 4) -> Path:
    """Draw the first ``each`` images of every class, a column a class, under its name.

    Args:
        images: uint8 ``[N, 1, 28, 28]``, numpy or CPU tensor.
        labels: integers ``[N]``.
        classes: the names, in the order of the labels.
        path: the PNG file to write.
        each: how many of each class; places of missing images stay blank.

    Returns:
        The path of the file.
    """
    true = integers(labels)
    size = (1.1 * len(classes), 0.7 + 1.08 * each)
    with sheet(path, size, "A sample of each class") as figure:
        columns = figure.subplots(1, len(classes), squeeze=False)[0]
        for index, (axes, name) in enumerate(zip(columns, classes, strict=True)):
            chosen = np.flatnonzero(true == index)[:each]
            show(axes, montage(images, chosen, each, vertical=True))
            axes.set_title(short(name, 14), size=9.5, loc="center")
    return path


def curves(results: Sequence[TrialResult], study: StudyConfig, path: Path) -> Path:
    """Draw loss and accuracy of every trial: training dashed, held-out data solid.

    Args:
        results: the results of the trials.
        study: the study.
        path: the PNG file to write.

    Returns:
        The path of the file.
    """
    few = len(results) <= NAMED_TRIALS
    plural = "" if len(results) == 1 else "s"
    title = f"{study.name}: learning curves of {len(results)} trial{plural}"
    best = winner(results, study.metric)
    # Optuna asks for trials in a random order; the legend is in the order of the grid.
    grid = {key: list(values) for key, values in study.grid.items()}
    results = sorted(results, key=lambda r: [grid[key].index(r.point[key]) for key in grid])
    with sheet(path, (11, 5), title, words.protocol_note(study)) as figure:
        for axes, kind in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
            if few:
                named_curves(axes, results, kind)
            else:
                thin_curves(axes, results, best, kind)
            axes.set(xlabel="epoch", ylabel=None, title=kind.capitalize())
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            last = max([len(r.history) for r in results] or [1])
            margin = 0.02 * last if last > 1 else 0.5
            axes.set_xlim(1 - margin, last + margin)
            frame(axes, results, kind)
        colour = INK if few else ACCENT
        dot, cross = ("o", "X") if few and marked(results) else ("", "")
        keys = [
            Line2D([], [], color=colour, marker=dot, ms=5, label=words.held_out(study)),
            Line2D([], [], color=colour, marker=cross, ms=5, ls=DASHED, label="training"),
        ]
        if few:
            named = zip(results, hues(results), strict=False)
            keys = [Line2D([], [], color=hue, lw=4, label=_name(r)) for r, hue in named] + keys
        else:
            keys[0].set_label(f"best: {_name(best)}, {words.held_out(study)}" if best else "")
            keys[1].set_label("best, training")
            keys.append(
                Line2D([], [], color=THIN, alpha=0.6, label=f"the others, {words.held_out(study)}")
            )
        figure.legend(handles=keys, loc="outside lower center", ncols=min(len(keys), 3), fontsize=9,
                      frameon=False)  # fmt: skip
        sns.despine(fig=figure)
    return path


def heatmap(results: Sequence[TrialResult], study: StudyConfig, path: Path) -> Path:
    """Draw the grid over its first two axes of several values, coloured by the selecting metric.

    A cell is the mean over any further axes, and the title says so.

    Args:
        results: the results of the trials.
        study: the study.
        path: the PNG file to write.

    Returns:
        The path of the file.
    """
    used = [key for key, values in study.grid.items() if len(values) > 1]
    # The longer axis is horizontal, as screens are wide.
    front = sorted(used[:2], key=lambda key: len(study.grid[key]))
    row_key, column_key = ([None, None, *front])[-2:]
    rows = list(study.grid[row_key]) if row_key else [None]
    columns = list(study.grid[column_key]) if column_key else [None]
    mean = f", mean over {', '.join(used[2:])}" if used[2:] else ""
    title = f"{study.name}: {words.metric_name(study)}{mean}"
    size = (np.clip(2.8 + len(columns), 6.4, 13), np.clip(1.8 + 0.7 * len(rows), 2.7, 11))
    best = winner(results, study.metric)
    with sheet(path, size, title, words.protocol_note(study)) as figure:
        axes = figure.subplots()
        values = np.full((len(rows), len(columns)), math.nan)
        members = {
            (i, j): [r for r in results if _at(r, row_key, row) and _at(r, column_key, column)]
            for i, row in enumerate(rows)
            for j, column in enumerate(columns)
        }
        for place, trials in members.items():
            scores = [s for r in trials if math.isfinite(s := words.score(study, r))]
            values[place] = np.mean(scores) if scores else math.nan
        _colour_grid(axes, values, study)
        large = len(columns) > 14 or len(rows) > 24
        for (i, j), trials in members.items():
            _write_cell(axes, (i, j), values[i, j], trials, large)
            if best in trials:
                axes.add_patch(
                    Rectangle((j, i), 1, 1, fill=False, ec=ACCENT, lw=2.5, zorder=5, clip_on=False)
                )
        axes.set(xlabel=column_key, ylabel=row_key)
        axes.tick_params(length=0)
        axes.set_xticks(np.arange(len(columns)) + 0.5, [_axis_value(c) for c in columns])
        axes.set_yticks(np.arange(len(rows)) + 0.5, [_axis_value(r) for r in rows], rotation=0)
        letters = max(len(_axis_value(c)) for c in columns)
        if letters * 0.09 > (size[0] - 2) / len(columns):  # inches
            axes.tick_params(axis="x", rotation=60)
    return path


def confusion(
    matrix: NDArray[np.int64],
    classes: Sequence[str],
    path: Path,
    title: str,
    study: StudyConfig,
) -> Path:
    """Draw the matrix with the count and the row's percentage in each cell.

    Args:
        matrix: rows are true classes, columns predicted ones.
        classes: their names.
        path: the PNG file to write.
        title: the title.
        study: the study; a note says so when it selects on the test set.

    Returns:
        The path of the file.
    """
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    names = [short(name, 14) for name in classes]
    with sheet(path, (9, 8.4), title, words.protocol_note(study)) as figure:
        axes = figure.subplots()
        # Mistakes are a few percent: a power scale makes them differ from zero.
        sns.heatmap(share, ax=axes, cmap="Blues", norm=PowerNorm(0.45, vmin=0, vmax=1), cbar=False,
                    square=True, linewidths=1, linecolor="white", xticklabels=names,
                    yticklabels=names)  # fmt: skip
        for (i, j), count in np.ndenumerate(matrix):
            colour = "white" if share[i, j] > 0.3 else (INK if count else PALE)
            weight = "bold" if i == j else "normal"
            axes.annotate(f"{count:,}", (j + 0.5, i + 0.5), (0, 4 if count else 0),
                          textcoords="offset points", ha="center", va="center", color=colour,
                          size=10.5, weight=weight)  # fmt: skip
            if count:
                axes.annotate(f"{share[i, j]:.1%}", (j + 0.5, i + 0.5), (0, -8),
                              textcoords="offset points", ha="center", va="center",
                              color=colour, size=7.5)  # fmt: skip
        axes.set(xlabel="predicted class", ylabel="true class")
        axes.tick_params(length=0)
        axes.set_yticklabels(names, rotation=0)
        axes.set_xticklabels(names, rotation=35, ha="right", rotation_mode="anchor")
    return path


def confused_pairs(
    images: Any,
    labels: Any,
    predictions: Any,
    classes: Sequence[str],
    path: Path,
    study: StudyConfig,
    pairs: int = 5,
    examples: int = 10,
) -> Path:
    """Draw the most frequent mistakes, a row for each, with their first examples.

    Args:
        images: uint8 ``[N, 1, 28, 28]``, numpy or CPU tensor.
        labels: true classes, integers ``[N]``.
        predictions: predicted classes, integers ``[N]``.
        classes: the names, in the order of the labels.
        path: the PNG file to write.
        study: the study; a note says so when it selects on the test set.
        pairs: how many mistakes to show, at most.
        examples: how many images of each, at most.

    Returns:
        The path of the file.
    """
    true, predicted = integers(labels), integers(predictions)
    matrix = confusion_matrix(true, predicted, len(classes))
    worst = most_confused(matrix, pairs)
    size = (0.9 * examples, 0.7 + 1.15 * max(len(worst), 1))
    note = words.protocol_note(study)
    with sheet(path, size, "The most confused pairs", note) as figure:
        rows = figure.subplots(max(len(worst), 1), 1, squeeze=False)[:, 0]
        if not worst:
            rows[0].set_axis_off()
            rows[0].text(0.5, 0.5, "No image was taken for another class.", ha="center")
            return path
        for axes, (one, other, count) in zip(rows, worst, strict=True):
            chosen = np.flatnonzero((true == one) & (predicted == other))[:examples]
            show(axes, montage(images, chosen, examples))
            total = matrix[one].sum()
            mistake = f"{short(classes[one], 24)} taken for {short(classes[other], 24)}"
            axes.set_title(f"{mistake}  ({count:,} of {total:,}, {count / total:.1%})", size=10)
    return path


def _name(result: TrialResult) -> str:
    return short(result.label, 60) + ("" if result.state == "COMPLETE" else " (failed)")


def _at(result: TrialResult, key: str | None, value: Value | None) -> bool:
    return key is None or result.point.get(key) == value


def _axis_value(value: Value | None) -> str:
    return "" if value is None else short(str(value), 16)


def _colour_grid(axes: Axes, values: NDArray[np.float64], study: StudyConfig) -> None:
    """Draw the cells, the better ones darker. A cell without a value stays blank."""
    known = values[np.isfinite(values)]
    low, high = (known.min(), known.max()) if known.size else (0.0, 1.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    maximize, name = study.direction == "maximize", words.metric_name(study)
    sns.heatmap(values, ax=axes, cmap="crest" if maximize else "crest_r", vmin=low, vmax=high,
                cbar=known.size > 1, cbar_kws={"label": name, "fraction": 0.04, "pad": 0.02},
                linewidths=0 if values.size > 400 else 1, linecolor="white")  # fmt: skip


def _write_cell(
    axes: Axes, place: tuple[int, int], value: float, trials: Sequence[TrialResult], large: bool
) -> None:
    """Write a cell's value and number of failed trials; without a value the cell is hatched."""
    row, column = place
    failed = sum(r.state == "FAIL" for r in trials)
    if not math.isfinite(value):
        hatch = "////" if failed else None
        axes.add_patch(Rectangle((column, row), 1, 1, fc="#f4f6f7", ec="white", hatch=hatch))
        text, colour = ("failed" if failed else "not run"), INK
    else:
        text, colour = words.decimals(value) + (f"\n{failed} failed" if failed else ""), None
    if not large:
        cells = axes.collections[0]
        colour = colour or _readable(cells.to_rgba(np.array([value]))[0])
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=colour, size=10)


def _readable(background: NDArray[np.float64]) -> str:
    """The colour of text that is readable on this RGBA background."""
    return INK if background[:3] @ (0.299, 0.587, 0.114) > 0.5 else "white"
