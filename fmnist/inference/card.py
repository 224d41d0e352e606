"""What a notebook shows of a run: its winner, and its best trials as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jinja2

from fmnist.config.study import StudyConfig
from fmnist.inference.trained import Line

ROWS = 10
"""Trials in the table, at most, and the winner."""

_TEMPLATE = """\
<div>
<p><strong>{{ study.name }}</strong>: {{ sentence }}</p>
<table>
<thead><tr>{% for name in columns %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for line in shown %}
<tr>{% for name in columns %}<td>
{%- if line.cells.number == winner %}<strong>{{ text(line, name) }}</strong>
{%- else %}{{ text(line, name) }}{% endif %}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
{% if more %}
<p>and {{ more }} more in <code>results</code></p>
{% endif %}
{% if study.validation_is_test %}
<p>holdout = 0: the validation images are the test images</p>
{% endif %}
</div>
"""


def metrics(study: StudyConfig) -> list[str]:
    """The metrics that say how good a trial is: none of images that were trained on."""
    own = [] if study.validation_is_trained else [study.metric]
    return [*own, "test_accuracy"] if study.test else own


def html(study: StudyConfig, lines: Sequence[Line], winner: int | None, sentence: str) -> str:
    """Return a piece of HTML without styles, scripts and links.

    Args:
        study: the study.
        lines: its trials, the best first.
        winner: the number of the winner, whose row is bold; None without one.
        sentence: what is said of the run as a whole.
    """
    shown = [*lines[:ROWS], *(line for line in lines[ROWS:] if line.cells["number"] == winner)]
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_TEMPLATE).render(
        study=study,
        sentence=sentence,
        columns=["number", *study.grid, *metrics(study), "state"],
        shown=shown,
        more=len(lines) - len(shown),
        winner=winner,
        text=_text,
    )


def _text(line: Line, column: str) -> str:
    """Return a cell: a value of the grid as it is in a label, a metric with four decimals."""
    value = line.point.get(column, line.cells.get(column, math.nan))
    if column in line.point or not isinstance(value, float):
        return str(value)
    return "-" if math.isnan(value) else f"{value:.4f}"
