"""A plot for optuna-dashboard: the metric over seconds, where its own plots have epochs."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from typing import Any

from fmnist.config.results import TrialResult, winner
from fmnist.config.study import StudyConfig
from fmnist.reports import scores, words

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
        self._study, self._results = study, results

    def to_json(self) -> str:
        """The figure: ``{"data": [...], "layout": {...}}``."""
        study, best = self._study, winner(self._results, self._study.metric)
        ranked = scores.ranked(study, [r for r in self._results if r.state == "COMPLETE"])
        points = ranked[MOST_LINES:]
        others = {
            "type": "scatter",
            "mode": "markers",
            "name": f"the other {len(points)}, last epoch",
            "x": [_rounded(result.seconds) for result in points],
            "y": [_rounded(scores.score(study, result)) for result in points],
            "text": [_name(result) for result in points],
            "marker": {"size": 5, "color": "#9aa7b2"},
            "hovertemplate": HOVER + "<br>%{text}<extra></extra>",
        }
        lines = [
            {
                "type": "scatter",
                "mode": "lines" if len(result.history) > 8 else "lines+markers",
                "name": _name(result) + (" (winner)" if result is best else ""),
                "x": [
                    _rounded(result.seconds * epoch / len(result.history))
                    for epoch, _ in enumerate(result.history, 1)
                ],
                "y": [_rounded(value) for value in scores.series(result, study.metric)],
                "line": {"width": 3.5 if result is best else 1.5},
                "hovertemplate": HOVER,
            }
            # The legend is in the order of the numbers.
            for result in sorted(ranked[:MOST_LINES], key=lambda r: r.number)
        ]
        data = [others, *lines] if points else lines
        return json.dumps({"data": data, "layout": _layout(study)}, allow_nan=False)


def _layout(study: StudyConfig) -> dict[str, Any]:
    name, seen = words.metric_name(study), words.protocol_note(study, "<br><sub>{}</sub>")
    title = {"text": f"{name.capitalize()} against time{seen}", "x": 0.02, "y": 0.97}
    axis = {"gridcolor": FAINT, "linecolor": FAINT, "zeroline": False}
    # The corner that the curves leave free at their end.
    up = study.direction == "maximize"
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
