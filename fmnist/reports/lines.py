"""Draws learning curves: a colour for each of a few trials, or grey lines for many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from numpy.typing import NDArray

from fmnist.reports.canvas import ACCENT

if TYPE_CHECKING:
    from fmnist.config.results import TrialResult

DASHED = (0, (4, 2))
THIN = "#5b7083"


def hues(results: Sequence[TrialResult]) -> list[tuple[float, float, float]]:
    """A colour for each trial; up to ten of them differ for colour-blind readers, too."""
    palette = "colorblind" if len(results) <= 10 else "husl"
    return list(sns.color_palette(palette, max(len(results), 1)))


def named_curves(axes: Axes, results: Sequence[TrialResult], kind: str) -> None:
    """Draw the curves of few trials, each in its colour.

    Args:
        axes: where to draw.
        results: the trials.
        kind: ``"loss"`` or ``"accuracy"``.
    """
    for result, hue in zip(results, hues(results), strict=False):
        for split, style, marker in (("validation", "-", "o"), ("train", DASHED, "X")):
            epochs, values = _series(result, f"{split}_{kind}").T
            marker = marker if marked(results) else ""
            sns.lineplot(x=epochs, y=values, ax=axes, color=hue, lw=1.6, ls=style, marker=marker,
                         alpha=1 if split == "validation" else 0.75)  # fmt: skip


def marked(results: Sequence[TrialResult]) -> bool:
    """Whether epochs need markers: few of them make a short line, and one makes none."""
    return all(len(result.history) < 4 for result in results)


def thin_curves(
    axes: Axes, results: Sequence[TrialResult], best: TrialResult | None, kind: str
) -> None:
    """Draw the held-out metric of all trials in grey, and the best trial on top.

    Args:
        axes: where to draw.
        results: the trials.
        best: the trial on top; None for none.
        kind: ``"loss"`` or ``"accuracy"``.
    """
    lines = [_series(r, f"validation_{kind}") for r in results if r is not best and r.history]
    # Fainter when there are more, so that the densest region stands out.
    alpha = float(np.clip(25 / max(len(lines), 1), 0.08, 0.6))
    axes.add_collection(LineCollection(lines, colors=THIN, linewidths=0.8, alpha=alpha))
    axes.autoscale_view()
    if best:
        for split, style in (("validation", {}), ("train", {"ls": DASHED})):
            epochs, values = _series(best, f"{split}_{kind}").T
            sns.lineplot(x=epochs, y=values, ax=axes, color=ACCENT, lw=2, zorder=4, **style)


def frame(axes: Axes, results: Sequence[TrialResult], kind: str) -> None:
    """Set the y axis to the range of the complete trials, so that one that diverges is cut off.

    Args:
        axes: the axes to set.
        results: the trials.
        kind: ``"loss"`` or ``"accuracy"``.
    """
    shown = [r for r in results if r.state == "COMPLETE"] or results
    fields = (f"train_{kind}", f"validation_{kind}")
    values = np.array([v for r in shown for f in fields for v in _series(r, f)[:, 1]])
    values = values[np.isfinite(values)]
    if not values.size:
        return
    low, high = values.min(), values.max()
    if kind == "loss":
        high = min(high, 4 * np.quantile(values, 0.9))
    else:
        low = max(low, np.quantile(values, 0.1) - 0.25)
    margin = 0.04 * (high - low) or 0.05
    axes.set_ylim(low - margin, high + margin)


def _series(result: TrialResult, field: str) -> NDArray[np.float64]:
    """A metric of each epoch, float64 ``[epochs, 2]``: epoch and value, NaN where not finite."""
    values = np.array([getattr(metrics, field) for metrics in result.history], dtype=float)
    values[~np.isfinite(values)] = math.nan
    return np.column_stack([np.arange(1, len(values) + 1), values])
