"""Writes ``report.md``, and prints the outcome of a study on the terminal."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fmnist.config.results import TrialResult, ranked
from fmnist.config.results import winner as pick_winner
from fmnist.config.study import StudyConfig
from fmnist.data.given import FASHION_MNIST
from fmnist.reports import averaging, commands, effects, failures, scores, words
from fmnist.reports.comparison import Comparison, compare, wilson
from fmnist.reports.confusion import recognition
from fmnist.reports.findings import Findings
from fmnist.reports.words import held_out, metric_name, one_line, protocol_note
from fmnist.rundir.files import write_text
from fmnist.utils.passwords import starred_text

MARK = "> **{}.**"
"""The form of a warning in Markdown."""


def metrics(study: StudyConfig) -> list[str]:
    """The columns of metrics in the table of results, those of ``exact`` among them."""
    splits = ("training", "validation" if study.validation_is_test else held_out(study), "test")
    return [" ".join(parts) for parts in product(splits, ("loss", "accuracy"))]


INTERVAL = "± 95%"
"""The column beside a selecting accuracy: half its 95 % interval, by the number of images."""

WIDEST = 20
"""Columns of a terminal that the values of an axis may take before they wrap."""

TEST_IMAGES = int(FASHION_MNIST["test images"])


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
        *_ensemble_section(averaged, tested),
        "## Figures" if figures else "",
        *(picture(name, quote(f.replace(os.sep, "/")), study) for name, f in figures.items()),
        "## What is confused" if matrix is not None else "",
        escape(words.confusion_sentences(matrix, findings.classes)) if matrix is not None else "",
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
    return ["## What each setting brings", escape(effects.sentence(found)), table]


def _ensemble_section(averaged: averaging.Averaged | None, tested: int) -> list[str]:
    """The section about the mean of several models."""
    if averaged is None:
        return []
    header, rows = averaging.rows(averaged)
    table = _table(dict.fromkeys(header, "---:"), rows, "")
    return ["## Averaged", escape(averaging.sentence(averaged, tested)), table]


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
    captions = {
        "samples": "The first training images of each class.",
        "curves": f"Loss and accuracy of every trial: training {forms.format(held_out(study))}. "
        f"Training is measured while the epoch trains.{note}",
        "heatmap": f"The grid: {metric_name(study)}, coloured by how far it is behind the best, in "
        f"standard errors of the difference; the winner is framed.{note}",
        "confusion": "The winner on the test set: a row is a true class, a column a predicted "
        f"one. Percentages are of the row.{note}",
        "members": "The mean of the models against their number, and each model alone (bars); the "
        "band is the 95 % interval of the accuracy.",
        "confused pairs": f"The winner's most frequent mistakes on the test set.{note}",
    }
    return captions.get(name, name)


def table_header(study: StudyConfig) -> list[str]:
    """The columns of the results table: trial, axes of the grid, metrics, time and state."""
    shown = metrics(study)
    if study.validation_is_test:
        del shown[2:4]
    if study.metric == "validation_accuracy":
        shown.insert(shown.index(metric_name(study)) + 1, INTERVAL)
    return ["trial", *study.grid, *shown, "epochs", "time", "state"]


def short_header(study: StudyConfig) -> list[str]:
    """The columns to show where there is little space: the metric, and accuracy on the test set."""
    left_out = {*metrics(study)} - {metric_name(study), "test accuracy"}
    return [name for name in table_header(study) if name not in left_out]


def exact(study: StudyConfig, result: TrialResult) -> dict[str, float]:
    """Column -> number, of the metrics and the time."""
    known = [*result.final, result.test_loss, result.test_accuracy]
    if result.state != "COMPLETE":
        # The last finite epoch of a failed trial says nothing about its configuration.
        known = [math.nan] * len(known)
    return {**dict(zip(metrics(study), known, strict=True)), "time": result.seconds}


def table_row(
    study: StudyConfig, result: TrialResult, won: bool, comparison: Comparison
) -> list[str]:
    """A row of the results table.

    Args:
        study: the study.
        result: the trial's result.
        won: whether the trial is the winner.
        comparison: the configurations, compared with the best one.

    Returns:
        The cells in the order of :func:`table_header`, not escaped.
    """
    standing = comparison.of[result.number]
    other = "winner's seed" if standing is comparison.standings[0] else "complete"
    state = "winner" if won else "tied" if standing.tied else other
    score = scores.score(study, result)
    known = math.isfinite(score) and study.metric == "validation_accuracy" and comparison.images
    if result.state != "COMPLETE":
        state = f"failed: {result.reason}" if result.reason else "failed"
    cells = {
        **{name: words.decimals(value) for name, value in exact(study, result).items()},
        **{key: one_line(result.point.get(key, "-")) for key in study.grid},
        INTERVAL: words.margin(wilson(score, comparison.images)) if known else "-",
        "trial": str(result.number),
        "epochs": str(result.epochs),
        "time": words.duration(result.seconds),
        "state": one_line(state),
    }
    return [cells[name] for name in table_header(study)]


def table_rows(
    study: StudyConfig,
    results: Sequence[TrialResult],
    winner: TrialResult | None,
    comparison: Comparison,
) -> Iterator[tuple[TrialResult, bool, dict[str, str]]]:
    """Each result, whether it won, and its row: column -> text that is not escaped."""
    header = table_header(study)
    for result in results:
        won = winner is not None and result.number == winner.number
        yield result, won, dict(zip(header, table_row(study, result, won, comparison), strict=True))
