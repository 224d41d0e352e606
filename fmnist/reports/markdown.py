"""Writes ``report.md``, and prints the outcome of a study on the terminal."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fmnist.config.results import winner as pick_winner
from fmnist.reports.sentences import confusion_sentences, protocol_sentences, winner_sentence
from fmnist.reports.words import (
    TEST_WAS_SEEN,
    decimals,
    duration,
    held_out,
    metric_name,
    one_line,
    protocol_note,
)
from fmnist.rundir.files import write_text
from fmnist.tuning import storage_url
from fmnist.utils.passwords import starred, starred_text

if TYPE_CHECKING:
    from fmnist.config.results import TrialResult
    from fmnist.config.study import StudyConfig
    from fmnist.reports.findings import Findings


def write_report(out: Path, findings: Findings, figures: Mapping[str, str]) -> Path:
    """Write ``out/report.md`` atomically: when that fails, the old file stays.

    Args:
        out: the run's folder.
        findings: what the study found.
        figures: name -> file, relative to ``out``. A known name gets a caption.

    Returns:
        The path of the file.
    """
    study, matrix = findings.config, findings.confusion
    mark = [f"> **{TEST_WAS_SEEN}.**"] if study.validation_is_test else []
    pictures = [_picture(name, file, study) for name, file in figures.items()]
    commands = view_commands(out, findings.storage)
    parts = [
        f"# Study {escape(study.name)}",
        *mark,
        escape(winner_sentence(study, findings.winner)),
        "## What was run",
        _fenced(study.to_toml(), "toml"),
        _facts(findings.provenance),
        escape(protocol_sentences(study)),
        "## Results",
        *mark,
        _markdown_table(findings),
        "## Figures" if pictures else "",
        *pictures,
        "## What is confused" if matrix is not None else "",
        escape(confusion_sentences(matrix, findings.classes)) if matrix is not None else "",
        "## How to look at it" if commands else "",
        _fenced("\n".join(commands), "sh") if commands else "",
    ]
    path = Path(out) / "report.md"
    write_text(path, "\n\n".join(part for part in parts if part) + "\n")
    return path


def results_table(
    study: StudyConfig, results: Sequence[TrialResult], winner: TrialResult | None = None
) -> Table:
    """The table of results for a terminal, by trial number, with the winner marked.

    Args:
        study: the study.
        results: the result of every trial.
        winner: the winner; by default the best of the results.
    """
    best = winner or pick_winner(results, study.metric)
    note = protocol_note(study)
    table = Table(
        title=Text(f"Study {one_line(study.name)}"),
        caption=Text(note) if note else None,
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    # A terminal is narrow; report.md and results.csv have the other columns.
    shown = ["trial", *study.grid, metric_name(study), "test accuracy", "time", "state"]
    header = table_header(study)
    shown = [name for name in dict.fromkeys(shown) if name in header]
    for name in shown:
        axis = name in study.grid
        # On a narrow terminal the names of the axes wrap, and the numbers do not.
        table.add_column(
            Text(name if axis else name.replace(" ", "\n")),
            justify="left" if axis or name == "state" else "right",
            no_wrap=not axis,
            min_width=max((len(str(value)) for value in study.grid.get(name, ())), default=None),
            overflow="fold",
        )
    for result in sorted(results, key=lambda r: r.number):
        won = best is not None and result.number == best.number
        style = "bold green" if won else ("red" if result.state == "FAIL" else None)
        cells = dict(zip(header, table_row(study, result, won), strict=True))
        # The reasons of failures are in the report.
        cells["state"] = cells["state"].partition(":")[0].replace("complete", "done")
        table.add_row(*(Text(cells[name]) for name in shown), style=style)
    return table


def print_outcome(
    study: StudyConfig,
    results: Sequence[TrialResult],
    out: Path,
    storage: str | None,
    console: Console | None = None,
) -> None:
    """Print the outcome of a run: the table, the winner, and the commands that open its views.

    Args:
        study: the study.
        results: the result of every trial.
        out: the run's folder.
        storage: Optuna's storage URL; None for the database in the run's folder.
        console: where to print; standard output by default.
    """
    console = console or Console()
    if not console.is_terminal:
        # A log file has no right edge, and in 80 columns the table would wrap.
        console.width = max(console.width, 200)
    best = pick_winner(results, study.metric)
    console.print(results_table(study, results, best))
    lines = [winner_sentence(study, best), *view_commands(out, storage)]
    if (Path(out) / "report.md").exists():
        lines.insert(1, f"Report: {Path(out) / 'report.html'}")
    for line in lines:
        console.print(Text(one_line(line)), soft_wrap=True)


def view_commands(out: Path, storage: str | None = None) -> list[str]:
    """The commands that open the views of a run: both servers together, and each by itself.

    Args:
        out: the run's folder; a view that it lacks has no command.
        storage: Optuna's storage URL; None for the database in the run's folder.

    Returns:
        Command lines, quoted for a shell and without passwords.
    """
    commands: list[list[str]] = []
    out = Path(out)
    folder = (
        f"./{out}" if str(out).startswith("-") else str(out)
    )  # a path that begins with - would be read as an option
    board, artifacts, database = out / "tensorboard", out / "artifacts", out / "study.db"
    where = [] if storage is None else ["--storage", starred(storage)]
    url = storage_url.of_run(out) if storage is None and database.exists() else storage
    if board.is_dir():
        if url is not None:
            commands.append(["python", "-m", "fmnist.view", folder, *where])
        commands.append(["tensorboard", "--logdir", f"{folder}/tensorboard"])
    if url is not None:
        served = ["--artifact-dir", f"{folder}/artifacts"] if artifacts.is_dir() else []
        commands.append(["optuna-dashboard", starred(url) if storage else url, *served])
    return [shlex.join(command) for command in commands]


def escape(text: object) -> str:
    """Put a text on one line and escape it for Markdown, also inside a table."""
    literal = re.sub(r"([\\`*\[\]<>|~$&])", r"\\\1", one_line(text))
    # Only an underscore at the edge of a word is emphasis.
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", literal)


def _picture(name: str, file: str, study: StudyConfig) -> str:
    link = quote(file.replace(os.sep, "/"))
    return f"![{escape(name)}]({link})\n\n*{escape(caption(name, study))}*"


def caption(name: str, study: StudyConfig) -> str:
    """The caption of a figure; its name when no caption is known."""
    note = f" ({TEST_WAS_SEEN})" if study.validation_is_test else ""
    captions = {
        "samples": "The first training images of each class.",
        "curves": f"Loss and accuracy of every trial: training dashed, {held_out(study)} solid. "
        f"Training is measured while the epoch trains.{note}",
        "heatmap": f"The grid, coloured by {metric_name(study)}; the winner is framed.{note}",
        "confusion": "The winner on the test set: a row is a true class, a column a predicted "
        f"one. Percentages are of the row.{note}",
        "confused pairs": f"The winner's most frequent mistakes on the test set.{note}",
    }
    return captions.get(name.replace("_", " "), name)


def table_header(study: StudyConfig) -> list[str]:
    """The columns of the results table: trial, axes of the grid, metrics, time and state."""
    metrics = ["training loss", "training accuracy", "test loss", "test accuracy"]
    if not study.validation_is_test:
        metrics[2:2] = ["validation loss", "validation accuracy"]
    return ["trial", *study.grid, *metrics, "epochs", "time", "state"]


def table_row(study: StudyConfig, result: TrialResult, won: bool) -> list[str]:
    """A row of the results table.

    Args:
        study: the study.
        result: the trial's result.
        won: whether the trial is the winner.

    Returns:
        The cells in the order of :func:`table_header`, not escaped.
    """
    last = result.last
    # The last finite epoch of a failed trial says nothing about its configuration.
    metrics = [*last, result.test_loss, result.test_accuracy]
    if result.state != "COMPLETE":
        metrics = [float("nan")] * len(metrics)
    if study.validation_is_test:
        del metrics[2:4]
    state = "winner" if won else "complete"
    if result.state != "COMPLETE":
        state = f"failed: {result.reason}" if result.reason else "failed"
    values = (one_line(result.point.get(key, "-")) for key in study.grid)
    shown = (decimals(value) for value in metrics)
    spent = (str(len(result.history)), duration(result.seconds))
    return [str(result.number), *values, *shown, *spent, one_line(state)]


def _markdown_table(findings: Findings) -> str:
    study, winner = findings.config, findings.winner
    header = table_header(study)
    lines = [[escape(name) for name in header]]
    lines.append(["---" if name in (*study.grid, "state") else "---:" for name in header])
    for result in sorted(findings.results, key=lambda r: r.number):
        won = winner is not None and result.number == winner.number
        cells = [escape(cell) for cell in table_row(study, result, won)]
        lines.append([f"**{cell}**" if won and cell else cell for cell in cells])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _facts(provenance: Mapping[str, str]) -> str:
    rows = [
        f"| {escape(name)} | {escape(starred_text(value))} |"
        for name, value in provenance.items()
        if value
    ]
    return "\n".join(["| | |", "|---|---|", *rows]) if rows else ""


def _fenced(text: str, language: str) -> str:
    """A code block whose fence is longer than any run of backticks in the text."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
