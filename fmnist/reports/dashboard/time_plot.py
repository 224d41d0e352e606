"""A plot for optuna-dashboard: the metric over seconds, where its own plots have epochs."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fmnist.config.results import winner
from fmnist.reports import scores, words

if TYPE_CHECKING:
    from fmnist.config.results import TrialResult
    from fmnist.config.study import StudyConfig

INK, FAINT, CLEAR = "#7b8994", "rgba(128,128,128,0.25)", "rgba(0,0,0,0)"
HOVER = "%{y:.4f} after %{x:.1f} s"

MOST_LINES = 12
"""Trials that are drawn as lines, at most; of the others the last epoch is a point."""


class TimePlot:
    """The selecting metric over time, as the JSON of a Plotly figure.

    Optuna-dashboard draws it with its own plotly.js, so that Python needs no plotly. A trial's time
    is its share of its group's, spread evenly over its epochs.
    """

    def __init__(self, study: StudyConfig, results: Sequence[TrialResult]) -> None:
        self._study = study
        ranked = scores.ranked(study, [r for r in results if r.state == "COMPLETE"])
        # The legend is in the order of the numbers.
        self._lines = sorted(ranked[:MOST_LINES], key=lambda r: r.number)
        self._points = ranked[MOST_LINES:]
        self._best = winner(results, study.metric)

    def to_json(self) -> str:
        """The figure: ``{"data": [...], "layout": {...}}``."""
        traces = [self._line(result) for result in self._lines]
        if self._points:
            traces.insert(0, self._other_trials())
        return json.dumps({"data": traces, "layout": self._layout()}, allow_nan=False)

    def _line(self, result: TrialResult) -> dict[str, Any]:
        epochs, won = len(result.history), result is self._best
        return {
            "type": "scatter",
            "mode": "lines" if epochs > 8 else "lines+markers",
            "name": _name(result) + (" (winner)" if won else ""),
            "x": [_rounded(result.seconds * epoch / epochs) for epoch in range(1, epochs + 1)],
            "y": [_rounded(getattr(metrics, self._study.metric)) for metrics in result.history],
            "line": {"width": 3.5 if won else 1.5},
            "hovertemplate": HOVER,
        }

    def _other_trials(self) -> dict[str, Any]:
        return {
            "type": "scatter",
            "mode": "markers",
            "name": f"the other {len(self._points)}, last epoch",
            "x": [_rounded(result.seconds) for result in self._points],
            "y": [_rounded(scores.score(self._study, result)) for result in self._points],
            "text": [_name(result) for result in self._points],
            "marker": {"size": 5, "color": "#9aa7b2"},
            "hovertemplate": HOVER + "<br>%{text}<extra></extra>",
        }

    def _layout(self) -> dict[str, Any]:
        name = words.metric_name(self._study)
        seen = words.protocol_note(self._study, "<br><sub>{}</sub>")
        title = {"text": f"{name.capitalize()} against time{seen}", "x": 0.02, "y": 0.97}
        axis = {"gridcolor": FAINT, "linecolor": FAINT, "zeroline": False}
        # The corner that the curves leave free at their end.
        up = self._study.direction == "maximize"
        corner = {"y": 0.02, "yanchor": "bottom"} if up else {"y": 0.98, "yanchor": "top"}
        small = {"bgcolor": CLEAR, "font": {"size": 10}}
        # The colours are readable in the dashboard's light and dark themes.
        return {
            "title": {**title, "font": {"size": 16}},
            "xaxis": {"title": {"text": "seconds (a trial's share of its group's time)"}, **axis},
            "yaxis": {"title": {"text": name}, **axis},
            "font": {"color": INK},
            "paper_bgcolor": CLEAR,
            "plot_bgcolor": CLEAR,
            "hovermode": "closest",
            "modebar": {"bgcolor": CLEAR},
            "legend": {"x": 0.99, "xanchor": "right", **corner, **small},
            "margin": {"l": 60, "r": 20, "t": 60, "b": 50},
        }


def _name(result: TrialResult) -> str:
    """A trial's name, escaped: Plotly's text may have some tags of HTML."""
    return html.escape(f"{result.number}: {words.short(result.label, 60)}")


def _rounded(value: float) -> float | None:
    """Round a number to five digits, to store thousands of them; None for NaN."""
    return float(f"{value:.5g}") if math.isfinite(value) else None
