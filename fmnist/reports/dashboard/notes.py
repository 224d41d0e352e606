"""The notes of optuna-dashboard, in Markdown: of a running study, its results and its best trials.

The dashboard shows images of its own server only, so notes link to artifacts. It renders neither
raw HTML nor data URIs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fmnist.reports.markdown import caption, escape, table_header, table_row
from fmnist.reports.sentences import protocol_sentences, winner_sentence
from fmnist.reports.words import TEST_WAS_SEEN, decimals, metric_name, score
from fmnist.utils.passwords import starred_text

if TYPE_CHECKING:
    from fmnist.config.results import TrialResult
    from fmnist.config.study import StudyConfig
    from fmnist.reports.findings import Findings

MOST_ROWS = 20
"""Trials in the table of a note, at most: the best ones."""

GAP = "\N{EM SPACE}"

MARK = "[//]: # (fmnist writes what is below this line, and keeps what is above it)"
"""Begins our part of a note. It is an unused link definition, which Markdown does not show."""


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
        provenance: name -> value; the wall time is left out.
    """
    known = {name: value for name, value in provenance.items() if name != "Wall time"}
    trials = f"{study.size} trial" + ("s" if study.size != 1 else "")
    return _joined(
        f"# Study {escape(study.name)}",
        f"**It is running.** What its {trials} found will stand here at the end.",
        *_what_was_run(study, known, "What is run"),
    )


def best(
    study: StudyConfig,
    result: TrialResult,
    links: Mapping[str, str],
    of: int | None = None,
) -> str:
    """The note of a trial that was the best when it ended.

    Args:
        study: the study.
        result: the trial's result.
        links: kind -> address of its artifacts.
        of: how many trials had ended by then; None for the winner of a finished study.
    """
    if of is None:
        title = "The winner of the study"
    elif of == 1:
        title = "The first trial that ended"
    else:
        title = f"The best of the {of} trials that had ended when it did"
    known = [f"{metric_name(study)} {decimals(score(study, result))}"]
    if not study.validation_is_test and math.isfinite(result.test_accuracy):
        known.append(f"test accuracy {decimals(result.test_accuracy)}")
    files = {kind: address for kind, address in links.items() if kind != "curves"}
    return _joined(
        f"**{title}**: {escape(', '.join(known))}.",
        _mark(study),
        f"![learning curves]({links['curves']})" if "curves" in links else "",
        "Files: " + ", ".join(f"[{kind}]({address})" for kind, address in files.items())
        if files
        else "",
    )


def results(findings: Findings, figures: Mapping[str, str], page: str) -> str:
    """The note of a finished study.

    Args:
        findings: what the study found.
        figures: name of a figure -> address of its artifact.
        page: the address of the study in the dashboard.
    """
    study = findings.config
    shown = [
        f"![{escape(name.replace('_', ' '))}]({address})\n\n*{escape(caption(name, study))}*"
        for name, address in figures.items()
    ]
    return _joined(
        f"# Study {escape(study.name)}",
        _mark(study),
        escape(winner_sentence(study, findings.winner)),
        "## Results",
        _table(findings, page),
        *shown,
        *_what_was_run(study, findings.provenance, "What was run"),
    )


def _table(findings: Findings, page: str) -> str:
    """The best trials, the best first, each with a link to its page."""
    study, results, winner = findings.config, findings.results, findings.winner
    sign = -1 if study.direction == "maximize" else 1

    def rank(result: TrialResult) -> tuple[bool, float, int]:
        failed = result.state != "COMPLETE"
        return failed, 0.0 if failed else sign * score(study, result), result.number

    header = table_header(study)
    # The dashboard has the other metrics on other pages.
    wanted = ["trial", *study.grid, metric_name(study), "test accuracy", "epochs", "time", "state"]
    shown = [name for name in dict.fromkeys(wanted) if name in header]
    lines = []
    for result in sorted(results, key=rank)[:MOST_ROWS]:
        won = winner is not None and result.number == winner.number
        row = dict(zip(header, map(escape, table_row(study, result, won)), strict=True))
        row["trial"] = f"[{row['trial']}]({page}/trials?numbers={result.number})"
        cells = [row[name] for name in shown]
        lines.append([f"**{cell}**" if won and cell else cell for cell in cells])
    right = {name for name in shown if name not in (*study.grid, "state")}
    table = _markdown({escape(name): "---:" if name in right else "---" for name in shown}, lines)
    if len(results) <= MOST_ROWS:
        return table
    return f"The best {MOST_ROWS} of {len(results)} trials.\n\n{table}"


def _markdown(columns: Mapping[str, str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose cells end in a space, as the dashboard puts none between columns.

    Args:
        columns: name -> alignment in Markdown.
        rows: cells, escaped.
    """
    lines = [[cell + GAP for cell in columns], list(columns.values())]
    lines += [[cell + GAP for cell in cells] for cells in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _what_was_run(study: StudyConfig, provenance: Mapping[str, str], title: str) -> list[str]:
    facts = [
        [escape(name), escape(starred_text(value))] for name, value in provenance.items() if value
    ]
    text = study.to_toml().rstrip()
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return [
        f"## {title}",
        escape(protocol_sentences(study)),
        f"{fence}toml\n{text}\n{fence}",
        _markdown({"from": "---", "": "---"}, facts) if facts else "",
    ]


def _mark(study: StudyConfig) -> str:
    return f"> **{TEST_WAS_SEEN}.**" if study.validation_is_test else ""


def _joined(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"
