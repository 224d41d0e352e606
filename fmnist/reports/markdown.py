"""Writes ``report.md``, and texts in Markdown for the other views."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from fmnist.config.results import TrialResult, ranked
from fmnist.config.study import StudyConfig
from fmnist.reports import averaging, commands, effects, failures, words
from fmnist.reports.comparison import Comparison
from fmnist.reports.confusion import recognition
from fmnist.reports.findings import Findings
from fmnist.reports.rows import table_header, table_rows
from fmnist.reports.words import best_name, held_out, metric_name, one_line, protocol_note
from fmnist.rundir.files import write_text
from fmnist.utils.passwords import starred_text

MARK = "> **{}.**"
"""The form of a warning in Markdown."""


def write_report(
    out: Path,
    findings: Findings,
    figures: Mapping[str, str],
    averaged: averaging.Averaged | None = None,
) -> Path:
    """Write ``out/report.md`` atomically: when that fails, the old file stays.

    Args:
        out: the run's folder.
        findings: what the study found.
        figures: name -> file, relative to ``out``. A known name gets a caption.
        averaged: what the mean of several models gains, for a section.

    Returns:
        The path of the file.
    """
    study, matrix = findings.config, findings.confusion
    mark = protocol_note(study, MARK)
    comparison = findings.comparison
    results = ranked(findings.results, study.metric)
    tested = len(findings.dataset.test.labels)
    look = commands.of_report(out, findings.storage)
    text = joined(
        f"# Study {escape(study.name)}",
        mark,
        escape(words.winner_sentence(study, findings.winner, comparison, tested)),
        escape(words.noise_sentence(study, comparison)),
        escape(failures.advice(study, results)),
        "## What was run",
        fenced(study.to_toml(), "toml"),
        facts(findings.provenance),
        escape(words.protocol_sentences(study)),
        "## Results",
        mark,
        trials(study, results, findings.winner, comparison, table_header(study)),
        *_effects_section(study, results),
        *_ensemble_section(averaged, mark),
        "## Figures" if figures else "",
        *(picture(name, quote(f.replace(os.sep, "/")), study) for name, f in figures.items()),
        "## What is confused" if matrix is not None else "",
        escape(words.confusion_sentences(matrix, findings.classes, best_name(study)))
        if matrix is not None
        else "",
        classes(matrix, findings.classes) if matrix is not None else "",
        "## How to look at it" if look else "",
        commands.WHERE if look else "",
        fenced("\n".join(look), "sh") if look else "",
    )
    path = Path(out) / "report.md"
    write_text(path, text)
    return path


def _effects_section(study: StudyConfig, results: Sequence[TrialResult]) -> list[str]:
    """The section about what each setting brings; empty where no two pairs say it."""
    found = [effect for effect in effects.effects(study, results) if effect.pairs > 1]
    if not found:
        return []
    columns = dict.fromkeys(("setting", "value", "over"), "---")
    columns |= {f"gain in {metric_name(study)}": "---:", "95% interval": "---", "pairs": "---:"}
    rows = [
        [
            *map(escape, (effect.key, effect.value, effect.reference)),
            f"{effect.gain:+.4f}",
            f"{effect.interval[0]:+.4f} to {effect.interval[1]:+.4f}",
            str(effect.pairs),
            effect.verdict,
        ]
        for effect in found
    ]
    table = _table({**columns, "verdict": "---"}, rows, "")
    mark = protocol_note(study, MARK)
    return ["## What each setting brings", escape(effects.sentence(found)), mark, table]


def _ensemble_section(averaged: averaging.Averaged | None, mark: str) -> list[str]:
    """The section about the mean of several models."""
    if averaged is None:
        return []
    header, rows = averaging.rows(averaged)
    table = _table(dict.fromkeys(header, "---:"), rows, "")
    return ["## Averaged", escape(averaging.sentence(averaged)), mark, table]


def escape(text: object) -> str:
    """Put a text on one line and escape it for Markdown, also inside a table."""
    literal = re.sub(r"([\\`*\[\]<>|~$&])", r"\\\1", one_line(text))
    # Only an underscore at the edge of a word is emphasis.
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", literal)


def joined(*parts: str) -> str:
    """Put the parts that are not empty one under the other."""
    return "\n\n".join(part for part in parts if part) + "\n"


def fenced(text: str, language: str) -> str:
    """A code block whose fence is longer than any run of backticks in the text."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def picture(name: str, address: str, study: StudyConfig) -> str:
    """A figure with its caption."""
    return f"![{escape(name)}]({address})\n\n*{escape(caption(name, study))}*"


def facts(provenance: Mapping[str, str], gap: str = "") -> str:
    """A table of the provenance, without passwords; empty when nothing is known."""
    known = [
        [escape(name), escape(starred_text(value))] for name, value in provenance.items() if value
    ]
    return _table({" ": "---", "": "---"}, known, gap) if known else ""


def trials(
    study: StudyConfig,
    results: Sequence[TrialResult],
    winner: TrialResult | None,
    comparison: Comparison,
    columns: Sequence[str],
    number: str = "{}",
    gap: str = "",
) -> str:
    """A table of results in Markdown, with the winner in bold.

    Args:
        study: the study.
        results: the results, in the order of the rows.
        winner: the winner.
        comparison: the configurations, compared with the best one.
        columns: which columns of :func:`table_header` to show.
        number: the form of a trial's number, such as a link.
        gap: what to put at the end of each cell.
    """
    left = {*study.grid, "state"}
    lines = []
    for _, won, row in table_rows(study, results, winner, comparison):
        cells = {name: escape(row[name]) for name in columns}
        cells["trial"] = number.replace("{}", cells["trial"])
        lines.append([f"**{cell}**" if won and cell else cell for cell in cells.values()])
    return _table({escape(n): "---" if n in left else "---:" for n in columns}, lines, gap)


def classes(matrix: NDArray[np.int64], names: Sequence[str]) -> str:
    """A table of how well each class is recognised."""
    rows = [
        [escape(name), f"{images:,}", *map(words.decimals, shares)]
        for name, images, *shares in recognition(matrix, names)
    ]
    columns = ("class", "images", "precision", "recall", "F1")
    return _table({name: "---" if name == "class" else "---:" for name in columns}, rows, "")


def _table(columns: Mapping[str, str], rows: Sequence[Sequence[str]], gap: str) -> str:
    """A table of escaped cells, with the alignment of each column."""
    lines = [[*columns], *rows]
    lines = [[cell + gap for cell in cells] for cells in lines]
    lines.insert(1, [*columns.values()])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def caption(name: str, study: StudyConfig) -> str:
    """The caption of a figure; its name when no caption is known."""
    note = protocol_note(study, " ({})")
    forms = "small, {} large" if study.epochs == 1 else "dashed, {} solid"
    best = best_name(study)
    captions = {
        "samples": "The first training images of each class.",
        "curves": f"Loss and accuracy of every trial: training {forms.format(held_out(study))}. "
        f"Training is measured while the epoch trains.{note}",
        "heatmap": f"The grid: {metric_name(study)}, coloured by how far it is behind the best, in "
        f"standard errors of the difference; {best} is framed.{note}",
        "confusion": f"{best[0].upper()}{best[1:]} on the test set: a row is a true class, a "
        f"column a predicted one. Percentages are of the row.{note}",
        "members": "The mean of the models against their number, and each model alone (bars); the "
        "band is the 95 % interval of the accuracy.",
        "confused pairs": f"The most frequent mistakes of {best} on the test set.{note}",
    }
    return captions.get(name, name)
