"""The grid of a study as a heat map: which configurations are near the best one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fmnist.reports.drawing  # noqa: F401

# isort: split
import numpy as np
import seaborn as sns
from matplotlib.patches import Rectangle

from fmnist.config.results import label
from fmnist.config.study import StudyConfig
from fmnist.reports import scores, words
from fmnist.reports.canvas import ACCENT, sheet
from fmnist.reports.comparison import SCALE, Comparison, Standing
from fmnist.reports.words import short

LONGEST = 40
"""Characters of a value: those of a case's name, so that no two look the same."""


def draw(comparison: Comparison, study: StudyConfig, path: Path) -> Path:
    """Draw the grid over its first two axes of several values, but the seed.

    A cell shows the best configuration of its two values, a mean over seeds. Its colour is how far
    that is behind the best one in standard errors; without known noise, its place in the range.

    Args:
        comparison: the configurations, compared with the best one.
        study: the study.
        path: the PNG file to write.

    Returns:
        The path of the file.
    """
    keys = scores.map_axes(study)
    front, hidden = keys[:2], keys[2:]
    row_key, column_key = ([None, None, *front])[-2:]
    rows = [short(value, LONGEST) for value in study.grid[row_key]] if row_key else [""]
    columns = ["single"]
    if column_key:
        columns = [short(value, LONGEST) for value in study.grid[column_key]]
    if not column_key and comparison.standings:
        columns = [short(label(comparison.standings[0].point), 60)]
    mean = "mean " if len(study.grid.get("seed", ())) > 1 else ""
    over = f", at the best {', '.join(hidden)}" if hidden else ""
    title = f"{study.name}: {mean}{words.metric_name(study)}{over}"
    width, longest = float(np.clip(2.8 + len(columns), 6.4, 13)), max(map(len, columns))
    turned = longest * 0.09 > (width - 2) / len(columns)  # inches
    below = 0.08 * max(0, longest - 16) if turned else 0.0
    size = (width, float(np.clip(1.8 + 0.7 * len(rows), 2.7, 11)) + below)
    cells, shape = [*comparison.cells(study, front).values()], (len(rows), len(columns))
    found = [cell[0].score if cell else math.nan for cell in cells]
    if comparison.known:
        values = np.array([SCALE - SCALE * comparison.closeness(cell[0]) if cell else math.nan
                           for cell in cells])  # fmt: skip
        colours, low, high, named = "crest_r", 0.0, SCALE, "standard errors\nbehind the best"
    else:
        values, named = np.array(found), words.metric_name(study)
        colours = "crest" if study.direction == "maximize" else "crest_r"  # the better, the darker
        low, high = np.nanmin([*found, math.inf]), np.nanmax([*found, -math.inf])
    values, large = values.reshape(shape), len(columns) > 14 or len(rows) > 24
    known = np.isfinite(values)
    if not known.any():
        title += ": no trial was completed"
    elif large and not known.all():
        title += " (hatched: failed)"
    if not low < high:
        low, high = (low - 0.5, low + 0.5) if known.any() else (0.0, 1.0)
    style: Any = {"ha": "center", "va": "center", "size": 10}
    with sheet(path, size, title, words.protocol_note(study)) as figure:
        axes = figure.subplots()
        texts = [_cell(cell) for cell in cells]
        sns.heatmap(values, ax=axes, cmap=colours, vmin=low, vmax=high, fmt="", annot_kws=style,
                    annot=None if large else np.array(texts).reshape(shape), cbar=known.sum() > 1,
                    cbar_kws={"label": named, "fraction": 0.04, "pad": 0.02},
                    linewidths=0 if values.size > 400 else 1, linecolor="white")  # fmt: skip
        for (row, column), cell, text in zip(np.ndindex(shape), cells, texts, strict=True):
            if not known[row, column]:  # seaborn leaves it blank
                patch: Any = {"fc": "#f4f6f7", "ec": "white", "hatch": "////" if cell else None}
                axes.add_patch(Rectangle((column, row), 1, 1, **patch))
                axes.text(column + 0.5, row + 0.5, "" if large else text, **style)
            elif cell[0] is comparison.standings[0]:
                frame: Any = {"fill": False, "ec": ACCENT, "lw": 2.5, "zorder": 5, "clip_on": False}
                axes.add_patch(Rectangle((column, row), 1, 1, **frame))
        bar: Any = axes.collections[0].colorbar
        if bar:
            bar.formatter.set_useOffset(False)
            if comparison.known:
                bar.ax.invert_yaxis()
                bar.ax.axhline(comparison.critical, color="white", lw=1.5)
                bar.set_ticks(
                    [0, comparison.critical, SCALE], labels=["0", "tied", f"{SCALE:.0f}+"]
                )
        axes.set(xlabel=column_key, ylabel=row_key)
        axes.tick_params(length=0)
        axes.set_xticks(np.arange(len(columns)) + 0.5, columns)
        axes.set_yticks(np.arange(len(rows)) + 0.5, rows, rotation=0)
        if turned:
            axes.tick_params(axis="x", rotation=60)
    return path


def _cell(cell: Sequence[Standing]) -> str:
    """The score of a cell of the heat map, whether it is tied, and how many trials failed."""
    if not cell:
        return "not run"
    failed = sum(len(standing.trials) - len(standing.complete) for standing in cell)
    if math.isnan(cell[0].score):
        return "failed"
    remarks = ["tied"] * cell[0].tied + [f"{failed} failed"] * (failed > 0)
    return "\n".join([words.decimals(cell[0].score), ", ".join(remarks)]).strip()
