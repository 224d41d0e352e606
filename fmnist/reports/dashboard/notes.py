"""The notes of optuna-dashboard, in Markdown: of a running study, its results and its best trials.

The dashboard shows images of its own server only, so notes link to artifacts. It renders neither
raw HTML nor data URIs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from fmnist.config.results import TrialResult
from fmnist.config.study import StudyConfig
from fmnist.reports import markdown, scores, words
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
    trials = counted(study.size, "trial")
    return joined(
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
    known = [f"{metric_name(study)} {decimals(scores.score(study, result))}"]
    if not study.validation_is_test and math.isfinite(result.test_accuracy):
        known.append(f"test accuracy {decimals(result.test_accuracy)}")
    files = ", ".join(f"[{kind}]({links[kind]})" for kind in links if kind != "curves")
    return joined(
        f"**{title}**: {escape(', '.join(known))}.",
        protocol_note(study, WARNING),
        f"![learning curves]({links['curves']})" if "curves" in links else "",
        f"Files: {files}" if files else "",
    )


def results(findings: Findings, figures: Mapping[str, str], page: str) -> str:
    """The note of a finished study.

    Args:
        findings: what the study found.
        figures: name of a figure -> address of its artifact.
        page: the address of the study in the dashboard.
    """
    study, number = findings.config, len(findings.results)
    best = scores.ranked(study, findings.results)[:MOST_ROWS]
    header, link = markdown.short_header(study), f"[{{}}]({page}/trials?numbers={{}})"
    return joined(
        f"# Study {escape(study.name)}",
        protocol_note(study, WARNING),
        escape(words.winner_sentence(study, findings.winner)),
        "## Results",
        f"The best {MOST_ROWS} of {number} trials." if number > MOST_ROWS else "",
        # The dashboard has the other metrics on other pages.
        markdown.trials(study, best, findings.winner, header, link, GAP),
        *(
            markdown.picture(name.replace("_", " "), address, study)
            for name, address in figures.items()
        ),
        *_what_was_run(study, findings.provenance, "What was run"),
    )


def _what_was_run(study: StudyConfig, provenance: Mapping[str, str], title: str) -> list[str]:
    return [
        f"## {title}",
        escape(words.protocol_sentences(study)),
        markdown.fenced(study.to_toml(), "toml"),
        markdown.facts(provenance, GAP),
    ]
