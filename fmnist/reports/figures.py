"""The figures of a report: PNG files, drawn with seaborn and without pyplot's global state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fmnist.reports.drawing  # noqa: F401

# isort: split
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import PowerNorm
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fmnist.config.results import TrialResult, winner
from fmnist.config.study import StudyConfig
from fmnist.reports import scores, words
from fmnist.reports.canvas import ACCENT, INK, PALE, montage, sheet, show
from fmnist.reports.colours import HUES, hues
from fmnist.reports.confusion import confusion_matrix, integers, most_confused
from fmnist.reports.words import short

DASHED = (0, (4, 2))
THIN = "#5b7083"

MISTAKES = (5, 8)
"""Rows and columns of the figure of mistakes."""

SAMPLES, EXAMPLES = 4, 10
"""Images of each class, and of each confused pair, at most."""


def samples(images: Any, labels: Any, classes: Sequence[str], path: Path) -> Path:
    """Draw the first images of every class, a column a class, under its name.

    Args:
        images: uint8 ``[N, 1, 28, 28]``, numpy or CPU tensor.
        labels: integers ``[N]``.
        classes: the names, in the order of the labels.
        path: the PNG file to write.

    Returns:
        The path of the file.
    """
    true = integers(labels)
    size = (max(1.1 * len(classes), 3), 0.7 + 1.08 * SAMPLES)  # at least as wide as its title
    with sheet(path, size, "A sample of each class") as figure:
        columns = figure.subplots(1, len(classes), squeeze=False)[0]
        for index, (axes, name) in enumerate(zip(columns, classes, strict=True)):
            chosen = np.flatnonzero(true == index)[:SAMPLES]
            show(axes, montage(images, chosen, SAMPLES, vertical=True))
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
    colours, held = hues(study, results), words.held_out(study)
    few = len(results) <= len(HUES)
    title = f"{study.name}: learning curves of {words.counted(len(results), 'trial')}"
    best = winner(results, study.metric)
    results = scores.in_grid_order(study, results)
    tints = [HUES[colours[r.number]] if r.number in colours else THIN for r in results]
    top = tints[next(i for i, r in enumerate(results) if r is best)] if best else INK
    # Few epochs make a short line, and one makes none.
    longest = max((len(result.history) for result in results), default=0)
    single, marked = longest == 1, longest == 1 or (few and longest < 4)
    dot, cross = ("o", "X") if marked else ("", "")
    with sheet(path, (11, 5), title, words.protocol_note(study)) as figure:
        for axes, kind in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
            if few:
                for result, hue, by in zip(results, tints, scores.offsets(results), strict=True):
                    solid, dashed = {"marker": dot}, {"marker": cross, "alpha": 0.75}
                    _line(axes, result, f"validation_{kind}", by, color=hue, lw=1.6, **solid)
                    _line(axes, result, f"train_{kind}", by, color=hue, lw=1.6, ls=DASHED, **dashed)
            else:
                _crowd(axes, results, best, kind, top)
            label = "epoch (trials side by side)" if single and len(results) > 1 else "epoch"
            axes.set(xlabel=label, ylabel=None, title=kind.capitalize())
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.set_xlim(*scores.epoch_limits(results))
            whole = results if few else [best] if best else []
            axes.set_ylim(*scores.limits(whole, kind, () if few else results))
            axes.ticklabel_format(axis="y", useOffset=False)
            middle: Any = {"transform": axes.transAxes, "ha": "center", "va": "center"}
            axes.text(0.5, 0.5, scores.absence(results, kind), **middle)
        colour = INK if few else top
        line: Any = {"ls": "" if single else "-"}
        dash: Any = {"ls": "" if single else DASHED}
        keys = [
            Line2D([], [], color=colour, marker=dot, ms=5, label=held, **line),
            Line2D([], [], color=colour, marker=cross, ms=5, label="training", **dash),
        ]
        if few:
            named = zip(results, tints, strict=True)
            keys = [Line2D([], [], color=hue, lw=4, label=_name(r)) for r, hue in named] + keys
        else:
            keys[0].set_label(f"best: {_name(best)}, {held}" if best else "")
            keys[1].set_label("best, training")
            others = f"the others, {held}" if best else f"every trial, {held}"
            thin = Line2D([], [], color=THIN, alpha=0.6, marker=dot, ms=3, label=others, **line)
            keys = [*(keys if best else []), thin]
        figure.legend(handles=keys, loc="outside lower center", ncols=min(len(keys), 3), fontsize=9,
                      frameon=False)  # fmt: skip
        sns.despine(fig=figure)
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
            style: Any = {"ha": "center", "va": "center", "color": colour}
            weight, rise = "bold" if i == j else "normal", 0.07 if count else 0
            axes.text(j + 0.5, i + 0.5 - rise, f"{count:,}", size=10.5, weight=weight, **style)
            percent = f"{share[i, j]:.1%}" if count else ""
            axes.text(j + 0.5, i + 0.65, percent, size=7.5, **style)
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
) -> Path:
    """Draw the most frequent mistakes, a row for each, with their first examples.

    Args:
        images: uint8 ``[N, 1, 28, 28]``, numpy or CPU tensor.
        labels: true classes, integers ``[N]``.
        predictions: predicted classes, integers ``[N]``.
        classes: the names, in the order of the labels.
        path: the PNG file to write.
        study: the study; a note says so when it selects on the test set.

    Returns:
        The path of the file.
    """
    true, predicted = integers(labels), integers(predictions)
    matrix = confusion_matrix(true, predicted, len(classes))
    worst = most_confused(matrix, 5)
    size = (0.9 * EXAMPLES, 0.7 + 1.15 * max(len(worst), 1))
    note = words.protocol_note(study)
    with sheet(path, size, "The most confused pairs", note) as figure:
        rows = figure.subplots(max(len(worst), 1), 1, squeeze=False)[:, 0]
        if not worst:
            rows[0].set_axis_off()
            rows[0].text(0.5, 0.5, "No image was taken for another class.", ha="center")
            return path
        for axes, (one, other, count) in zip(rows, worst, strict=True):
            chosen = np.flatnonzero((true == one) & (predicted == other))[:EXAMPLES]
            show(axes, montage(images, chosen, EXAMPLES))
            mistake = f"{short(classes[one], 24)} taken for {short(classes[other], 24)}"
            axes.set_title(f"{mistake}  ({words.part(count, matrix[one].sum())})", size=10)
    return path


def mistakes(
    images: Any,
    labels: Any,
    probabilities: Any,
    classes: Sequence[str],
    path: Path,
    study: StudyConfig,
    shape: tuple[int, int] = MISTAKES,
) -> Path:
    """Draw the mistakes of the highest confidence, each with its true and predicted class.

    Args:
        images: uint8 ``[N, 1, 28, 28]``, numpy or CPU tensor.
        labels: integers ``[N]``.
        probabilities: ``[N, classes]``.
        classes: the names, in the order of the labels.
        path: the PNG file to write.
        study: the study; a note says so when it selects on the test set.
        shape: rows and columns, at most.

    Returns:
        The path of the file.
    """
    true, chances = integers(labels), np.asarray(probabilities)
    predicted, sureness = chances.argmax(axis=1), chances.max(axis=1)
    wrong = np.flatnonzero(predicted != true)
    # Of equal confidence, the first.
    worst = wrong[np.argsort(-sureness[wrong], kind="stable")][: shape[0] * shape[1]]
    rows = max(-(-len(worst) // shape[1]), 1)
    size = (1.25 * shape[1], 0.8 + 1.6 * rows)
    among = f"among {words.counted(len(true), 'test image')}"
    shown = f"The {len(worst)} surest of {words.counted(len(wrong), 'mistake')} {among}"
    title = f"{shown}: true class above, predicted below" if len(worst) else f"No mistake {among}"
    with sheet(path, size, title, words.protocol_note(study)) as figure:
        grid = figure.subplots(rows, shape[1], squeeze=False, gridspec_kw={"hspace": 0.08})
        cells = grid.ravel()
        for axes in cells[len(worst) :]:
            axes.set_axis_off()
        for axes, index in zip(cells, worst, strict=False):
            show(axes, np.asarray(images[index]).reshape(images.shape[-2:]))
            axes.set_title(short(classes[true[index]], 16), size=9, loc="center", pad=3)
            answer = f"{short(classes[predicted[index]], 16)}\n{sureness[index]:.1%}"
            axes.text(0.5, -0.05, answer, transform=axes.transAxes, ha="center", va="top",
                      size=8.5, color=ACCENT, linespacing=1.15)  # fmt: skip
    return path


def _line(axes: Axes, result: TrialResult, field: str, by: float, **style: Any) -> None:
    values = scores.series(result, field)
    if scores.is_point(values):
        style["marker"], style["ms"] = ("X", 5) if field.startswith("train") else ("o", 7)
    sns.lineplot(x=np.arange(1, len(values) + 1) + by, y=values, ax=axes, **style)


def _crowd(
    axes: Axes, results: Sequence[TrialResult], best: TrialResult | None, kind: str, hue: str
) -> None:
    """Draw the held-out metric of many trials in grey, and the best trial on top."""
    field = f"validation_{kind}"
    shifts = scores.offsets(results)
    others = [
        np.column_stack([np.arange(1, len(r.history) + 1) + by, scores.series(r, field)])
        for r, by in zip(results, shifts, strict=True)
        if r is not best and r.history
    ]
    alpha = scores.faintness(len(others))
    axes.add_collection(LineCollection(others, colors=THIN, linewidths=0.8, alpha=alpha))
    if points := [line for line in others if scores.is_point(line[:, 1])]:
        axes.plot(*np.concatenate(points).T, "o", ms=3, color=THIN, alpha=0.6)
    if best:
        by = shifts[next(place for place, r in enumerate(results) if r is best)]
        _line(axes, best, field, by, color=hue, lw=2, zorder=4)
        _line(axes, best, f"train_{kind}", by, color=hue, lw=2, zorder=4, ls=DASHED)


def _name(result: TrialResult) -> str:
    return short(result.label, 60) + ("" if result.state == "COMPLETE" else " (failed)")
