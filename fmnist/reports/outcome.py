"""Prints the outcome of a study on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fmnist.config.results import TrialResult, ranked
from fmnist.config.results import winner as pick_winner
from fmnist.config.study import StudyConfig
from fmnist.data.given import FASHION_MNIST
from fmnist.reports import commands, failures, words
from fmnist.reports.comparison import Comparison, compare
from fmnist.reports.rows import short_header, table_rows
from fmnist.reports.words import one_line, protocol_note

WIDEST = 20
"""Columns of a terminal that the values of an axis may take before they wrap."""

TEST_IMAGES = int(FASHION_MNIST["test images"])


def results_table(
    study: StudyConfig,
    results: Sequence[TrialResult],
    comparison: Comparison,
    reasons: bool = False,
) -> Table:
    """The table of results for a terminal, the best first, with winner and tied trials marked.

    Args:
        study: the study.
        results: the result of every trial.
        comparison: the configurations, compared with the best one.
        reasons: whether a failed trial's state has the reason, which takes much space.
    """
    note = protocol_note(study)
    table = Table(
        title=Text(f"Study {one_line(study.name)}"),
        caption=Text(note) if note else None,
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    # A terminal is narrow; report.md and results.csv have the other columns.
    shown = [name for name in short_header(study) if name != "epochs"]
    for name in shown:
        axis = name in study.grid
        # On a narrow terminal the names of the axes wrap, and the numbers do not.
        table.add_column(
            Text(name if axis else name.replace(" ", "\n")),
            justify="left" if axis or name == "state" else "right",
            no_wrap=not axis,
            min_width=min(WIDEST, max(map(len, map(str, study.grid[name])))) if axis else None,
            overflow="fold",
        )
    best = pick_winner(results, study.metric)
    ordered = ranked(results, study.metric)
    for result, won, cells in table_rows(study, ordered, best, comparison):
        style = "bold green" if won else ("red" if result.state == "FAIL" else None)
        state = cells["state"].replace("complete", "done")
        cells["state"] = state if reasons else state.partition(":")[0]
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
    comparison = compare(study, results, study.validation_images(TEST_IMAGES))
    table, lines = results_table(study, results, comparison, reasons=True), []
    wide = console.options.update(max_width=10_000)
    if table.__rich_measure__(console, wide).maximum > console.width:
        table, lines = results_table(study, results, comparison), failures.reasons(results)
    console.print(table)
    best = pick_winner(results, study.metric)
    lines += [
        words.winner_sentence(study, best, comparison, TEST_IMAGES),
        words.noise_sentence(study, comparison),
        failures.advice(study, results),
    ]
    if (Path(out) / "report.md").exists():
        lines.append(f"Report: {Path(out) / 'report.html'}")
    for line in filter(None, [*lines, *commands.here(out, storage)]):
        console.print(Text(one_line(line)), soft_wrap=True)
