"""What optuna-dashboard is given to show: notes in Markdown, and a plot of the metric over seconds.

The dashboard shows images of its own server only, so notes link to artifacts. It renders neither
raw HTML nor data URIs.
"""

from __future__ import annotations

import html
import json
import math
import textwrap
from collections.abc import Mapping
from typing import Any

from fmnist.config.results import TrialResult, rank, ranked
from fmnist.config.study import StudyConfig
from fmnist.reports import markdown, rows, scores, words
from fmnist.reports.colours import HUES, hues
from fmnist.reports.findings import Findings
from fmnist.reports.markdown import MARK as WARNING
from fmnist.reports.markdown import escape, joined
from fmnist.reports.words import counted, decimals, metric_name, protocol_note

MOST_ROWS = 20
"""Trials in the table of a note, at most: the best ones."""

GAP = "\N{EM SPACE}"
"""Ends each cell of a table, as the dashboard puts no space between columns."""

MARK = "[//]: # (fmnist writes what is below this line, and keeps what is above it)"
"""Begins our part of a note. It is an unused link definition, which Markdown does not show."""

INK, FAINT, CLEAR = "#7b8994", "rgba(128,128,128,0.25)", "rgba(0,0,0,0)"
HOVER = "%{y:.4f} after %{x:.1f} s"

ALSO = "The dashboard's plots of importance and contours do not tell chance from effect."

MOST_LINES = len(HUES)
"""Trials that are drawn as lines, at most; of the others the last epoch is a point."""


def with_kept(known: str, text: str) -> str:
    """Replace our part of a note; the part that a person wrote above it stays.

    Args:
        known: the note as it is.
        text: our new part.

    Returns:
        The new note.
    """
    kept = known.partition(MARK)[0].rstrip()
    return f"{kept}\n\n{MARK}\n\n{text}".lstrip("\n")


def running(study: StudyConfig, provenance: Mapping[str, str]) -> str:
    """The note of a running study.

    Args:
        study: the study.
        provenance: name -> value.
    """
    trials = counted(study.size, "trial")
    return joined(
        f"# Study {escape(study.name)}",
        f"**It is running.** What its {trials} found will stand here at the end.",
        *_what_was_run(study, provenance, "What is run"),
    )


def trial(
    study: StudyConfig, result: TrialResult, page: str, winner: Mapping[str, str] | None = None
) -> str:
    """The note of a trial that ended.

    Args:
        study: the study.
        result: the trial's result.
        page: the address of the study's pages in the dashboard.
        winner: kind -> address of the artifacts that are of the winner; None for another trial.
    """
    epochs = counted(len(result.history), "epoch")
    if result.state == "COMPLETE":
        known = [f"{metric_name(study)} {decimals(scores.score(study, result))}"]
        if not study.validation_is_test and math.isfinite(result.test_accuracy):
            known.append(f"test accuracy {decimals(result.test_accuracy)}")
        outcome = f"Complete after {epochs}: {escape(', '.join(known))}."
    else:
        outcome = f"**Failed**: {escape(result.reason)}. It had completed {epochs}."
    first = "Its network is in best/" if study.validation_is_trained else "The winner of the study"
    links = winner or {}
    files = ", ".join(f"[{kind}]({links[kind]})" for kind in links if kind != "curves")
    time = words.duration(result.seconds)
    return joined(
        f"**{first}.**" if winner is not None else "",
        outcome,
        protocol_note(study, WARNING),
        f"![learning curves]({links['curves']})" if "curves" in links else "",
        markdown.facts({key: str(value) for key, value in result.point.items()}, GAP),
        f"Files: {files}." if files else "",
        f"It took {time}, as its share of the time of the trials that were trained together. The "
        "dashboard's duration is the time of all of them, since the last interruption.",
        f"Its parameters are `parameters/{result.number}.safetensors` in the folder of the run. "
        f"[The note of the study]({page}/note) compares all trials.",
    )


def results(findings: Findings, figures: Mapping[str, str], page: str) -> str:
    """The note of a finished study.

    Args:
        findings: what the study found.
        figures: name of a figure -> address of its artifact.
        page: the address of the study in the dashboard.
    """
    study, number, comparison = findings.config, len(findings.results), findings.comparison
    tested = len(findings.dataset.test.labels)
    best = ranked(findings.results, study.metric)[:MOST_ROWS]
    header, link = rows.short_header(study), f"[{{}}]({page}/trials?numbers={{}})"
    return joined(
        f"# Study {escape(study.name)}",
        protocol_note(study, WARNING),
        escape(words.winner_sentence(study, findings.winner, comparison, tested)),
        _best_of_optuna(findings),
        f"{escape(said)} {ALSO}" if (said := words.noise_sentence(study, comparison)) else "",
        "## Results",
        f"The best {MOST_ROWS} of {number} trials." if number > MOST_ROWS else "",
        # The dashboard has the other metrics on other pages.
        markdown.trials(study, best, findings.winner, comparison, header, link, GAP),
        *(
            markdown.picture(name.replace("_", " "), address, study)
            for name, address in figures.items()
        ),
        *_what_was_run(study, findings.provenance, "What was run"),
    )


def _best_of_optuna(findings: Findings) -> str:
    """Say which trial Optuna calls the best, when it is not the winner."""
    complete = [result for result in findings.results if result.state == "COMPLETE"]
    best = min(complete, key=lambda r: rank([r], findings.config.metric), default=None)
    if best is None or best is findings.winner:
        return ""
    return f"The dashboard's *best trial*, {best.number}, is that of the best single value."


def _what_was_run(study: StudyConfig, provenance: Mapping[str, str], title: str) -> list[str]:
    return [
        f"## {title}",
        escape(words.protocol_sentences(study)),
        markdown.fenced(study.to_toml(), "toml"),
        markdown.facts(provenance, GAP),
    ]


class TimePlot:
    """The selecting metric over time, as the JSON of a Plotly figure.

    Optuna-dashboard draws it with its own plotly.js, so that Python needs no plotly. A trial's time
    is its share of its group's, spread evenly over its epochs. The noise is said below the plot.
    """

    def __init__(self, findings: Findings) -> None:
        self._findings = findings

    def to_json(self) -> str:
        """The figure: ``{"data": [...], "layout": {...}}``."""
        study, best = self._findings.config, self._findings.winner
        colours = hues(study, self._findings.results)
        complete = [r for r in self._findings.results if r.state == "COMPLETE"]
        ordered = ranked(complete, study.metric)
        shown = [r for r in scores.in_grid_order(study, ordered) if r.number in colours]
        points = [r for r in ordered if r.number not in colours]
        # Plotly's text may have some tags of HTML.
        others = {
            "type": "scatter",
            "mode": "markers",
            "name": f"the other {len(points)}, {words.when(study)}",
            "x": [_rounded(result.seconds) for result in points],
            "y": [_rounded(scores.score(study, result)) for result in points],
            "text": [html.escape(words.named(study, result, best, 60)) for result in points],
            "marker": {"size": 5, "color": "#9aa7b2"},
            "hovertemplate": HOVER + "<br>%{text}<extra></extra>",
        }
        lines = [
            {
                "type": "scatter",
                "mode": "lines" if len(result.history) > 8 else "lines+markers",
                "name": html.escape(words.named(study, result, best, 60)),
                "x": [
                    _rounded(result.seconds * epoch / len(result.history))
                    for epoch, _ in enumerate(result.history, 1)
                ],
                "y": [_rounded(value) for value in scores.series(result, study.metric)],
                "line": {
                    "width": 3.5 if result is best else 1.5,
                    "color": HUES[colours[result.number]],
                },
                "hovertemplate": HOVER,
            }
            for result in shown
        ]
        data = [others, *lines] if points else lines
        layout = _layout(study, words.noise_sentence(study, self._findings.comparison))
        if not ordered:
            layout["annotations"] = [{"text": "No trial was completed.", "showarrow": False}]
        return json.dumps({"data": data, "layout": layout}, allow_nan=False)


def _layout(study: StudyConfig, said: str) -> dict[str, Any]:
    name, seen = words.metric_name(study), words.protocol_note(study, "<br><sub>{}</sub>")
    title = {"text": f"{name.capitalize()} against time{seen}", "x": 0.02, "y": 0.97}
    axis = {"gridcolor": FAINT, "linecolor": FAINT, "zeroline": False}
    # The corner that the curves leave free at their end.
    up = study.direction == "maximize"
    corner = {"y": 0.02, "yanchor": "bottom"} if up else {"y": 0.98, "yanchor": "top"}
    seconds = "seconds (a trial's share of its group's time)"
    below = "".join(f"<br><sub>{html.escape(line)}</sub>" for line in textwrap.wrap(said, 75))
    small = {"bgcolor": CLEAR, "font": {"size": 10}}
    # The colours are readable in the dashboard's light and dark themes.
    return {
        "title": {**title, "font": {"size": 16}},
        "xaxis": {
            "title": {"text": seconds + below},
            **axis,
        },
        "yaxis": {"title": {"text": name}, **axis},
        "font": {"color": INK},
        "paper_bgcolor": CLEAR,
        "plot_bgcolor": CLEAR,
        "hovermode": "closest",
        "modebar": {"bgcolor": CLEAR},
        "legend": {"x": 0.99, "xanchor": "right", **corner, **small},
        "margin": {"l": 60, "r": 20, "t": 60, "b": 50 + 20 * below.count("<br>")},
    }


def _rounded(value: float) -> float | None:
    """Round a number to five digits, to store thousands of them; None for NaN."""
    return float(f"{value:.5g}") if math.isfinite(value) else None
