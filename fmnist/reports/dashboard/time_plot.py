"""A plot for optuna-dashboard: the metric over seconds, where its own plots have epochs."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fmnist.config.results import winner
from fmnist.reports.words import TEST_WAS_SEEN, metric_name, one_line, score

if TYPE_CHECKING:
    from fmnist.config.results import TrialResult
    from fmnist.config.study import StudyConfig

INK, FAINT, CLEAR = "#7b8994", "rgba(128,128,128,0.25)", "rgba(0,0,0,0)"

MOST_LINES = 12
"""Trials that are drawn as lines, at most; of the others the last epoch is a point."""


class TimePlot:
    """The selecting metric over time, as the JSON of a Plotly figure.

    Optuna-dashboard draws it with its own plotly.js, so that Python needs no plotly. A trial's time
    is its share of its group's, spread evenly over its epochs.
    """

    def __init__(self, study: StudyConfig, results: Sequence[TrialResult]) -> None:
        self._study = study
        sign = -1 if study.direction == "maximize" else 1
        complete = [r for r in results if r.state == "COMPLETE"]
        ranked = sorted(complete, key=lambda r: (sign * score(study, r), r.number))
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
        epochs = len(result.history)
        won = self._best is not None and result.number == self._best.number
        return {
            "type": "scatter",
            "mode": "lines" if epochs > 8 else "lines+markers",
            "name": _name(result) + (" (winner)" if won else ""),
            "x": [_rounded(result.seconds * epoch / epochs) for epoch in range(1, epochs + 1)],
            "y": [_rounded(getattr(metrics, self._study.metric)) for metrics in result.history],
            "line": {"width": 3.5 if won else 1.5},
            "hovertemplate": "%{y:.4f} after %{x:.1f} s",
        }

    def _other_trials(self) -> dict[str, Any]:
        return {
            "type": "scatter",
            "mode": "markers",
            "name": f"the other {len(self._points)}, last epoch",
            "x": [_rounded(result.seconds) for result in self._points],
            "y": [_rounded(score(self._study, result)) for result in self._points],
            "text": [_name(result) for result in self._points],
            "marker": {"size": 5, "color": "#9aa7b2"},
            "hovertemplate": "%{y:.4f} after %{x:.1f} s<br>%{text}<extra></extra>",
        }

    def _layout(self) -> dict[str, Any]:
        name = metric_name(self._study)
        seen = f"<br><sub>{TEST_WAS_SEEN}</sub>" if self._study.validation_is_test else ""
        up = self._study.direction == "maximize"
        axis = {"gridcolor": FAINT, "linecolor": FAINT, "zeroline": False}
        # The colours are readable in the dashboard's light and dark themes.
        return {
            "title": {
                "text": f"{name.capitalize()} against time{seen}",
                "x": 0.02,
                "y": 0.97,
                "font": {"size": 16},
            },
            "xaxis": {"title": {"text": "seconds (a trial's share of its group's time)"}, **axis},
            "yaxis": {"title": {"text": name}, **axis},
            "font": {"color": INK},
            "paper_bgcolor": CLEAR,
            "plot_bgcolor": CLEAR,
            "hovermode": "closest",
            "modebar": {"bgcolor": CLEAR},
            # The corner that the curves leave free at their end.
            "legend": {
                "x": 0.99,
                "xanchor": "right",
                "y": 0.02 if up else 0.98,
                "yanchor": "bottom" if up else "top",
                "bgcolor": CLEAR,
                "font": {"size": 10},
            },
            "margin": {"l": 60, "r": 20, "t": 60, "b": 50},
        }


def _name(result: TrialResult) -> str:
    """A trial's name, escaped: Plotly's text may have some tags of HTML."""
    label = one_line(result.label)
    return html.escape(f"{result.number}: {label if len(label) < 60 else label[:59] + '…'}")


def _rounded(value: float) -> float | None:
    """Round a number to five digits, to store thousands of them; None for NaN."""
    return float(f"{value:.5g}") if math.isfinite(value) else None
