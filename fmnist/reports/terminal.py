"""Shows the progress of a study: a live display, plain lines in a log, or nothing."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fmnist.config.results import TrialResult, label
from fmnist.reports.pace import Pace
from fmnist.reports.words import counted, decimals, duration, one_line
from fmnist.tuning import events
from fmnist.utils import command_line

MOST_ROWS = 12
SPARK = 12
"""Characters of a lane's sparkline, at most."""

NARROW = 72
"""A terminal of fewer columns shows no sparklines."""

OTHER_LINES = 7
"""Lines of the live display that show no lane: headings, bar, "more" and margins."""


class Progress(AbstractContextManager["Progress"]):
    """Receives the events of a run. This class shows nothing; its subclasses show them."""

    held_out = "validation"
    """What stands for the validation images; see :func:`fmnist.reports.words.held_out`."""

    _variant = ""

    def __call__(self, event: events.Event) -> None:
        """Show what a study that trains has come to."""
        match event:
            case events.GroupStarted():
                self.group(event)
                self._tell_variant(event.variant)
            case events.BatchesTrained():
                self.batches(event)
            case events.EpochFinished():
                self.epoch(event)
            case events.TrialFinished():
                self.trial(event.result)
            case events.LanesHalved():
                self.message(
                    f"memory ran out: {event.lanes} lanes go on in two halves "
                    f"from epoch {event.epoch}"
                )

    def _tell_variant(self, name: str) -> None:
        if name and name != self._variant:
            self.message(f"variant of the model: {name}")
        self._variant = name

    def group(self, event: events.GroupStarted) -> None:
        """A group starts to train."""

    def batches(self, event: events.BatchesTrained) -> None:
        """The group has come further within an epoch."""

    def epoch(self, event: events.EpochFinished) -> None:
        """The group has trained an epoch; a trial without metrics has failed."""

    def trial(self, result: TrialResult) -> None:
        """A trial has ended."""

    def message(self, text: str) -> None:
        """Show a line of text."""

    def warning(self, text: str) -> None:
        """Show a line of text that is also shown by ``--quiet``."""
        self.message(text)

    def __exit__(self, *raised: object) -> None:
        """Restore the terminal."""


class QuietProgress(Progress):
    """Shows warnings only, on standard error."""

    def warning(self, text: str) -> None:
        """Print a warning on one line."""
        command_line.print_error(f"{one_line(text)}\n")


def make_progress(quiet: bool, console: Console | None = None) -> Progress:
    """Choose how to show progress: live on a terminal, as lines elsewhere.

    Args:
        quiet: whether to show warnings only.
        console: where to show it; standard output by default.
    """
    if quiet:
        return QuietProgress()
    if console is None:
        console = Console()
        # With FORCE_COLOR rich takes a log file for a terminal, but lines cannot be redrawn in it.
        if not sys.stdout.isatty():
            return PlainProgress(console)
    return LiveProgress(console) if console.is_interactive else PlainProgress(console)


class _Live(Progress):
    """Computes the numbers that both visible forms show."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.place, self.labels = "", dict[int, str]()
        self.accuracy: dict[int, float] = {}
        self.curves: dict[int, tuple[float, ...]] = {}
        self.done = self.epochs = 0
        self._pace, self._began = Pace(), time.monotonic()

    def group(self, event: events.GroupStarted) -> None:
        self.place = f"group {event.index + 1}/{event.total}"
        # The display is drawn in another thread, so mappings are replaced and never changed.
        self.labels = {trial.number: one_line(label(trial.point)) for trial in event.trials}
        past = {number: event.histories.get(number, ()) for number in self.labels}
        self.curves = {
            number: tuple(metrics.validation_accuracy for metrics in history[-SPARK:])
            for number, history in past.items()
        }
        self.accuracy = {  # a trial of fewer epochs has failed
            number: history[-1].validation_accuracy
            for number, history in past.items()
            if history and len(history) == event.epoch
        }
        self.epochs, self.done = event.epochs, event.epoch
        self._pace.group(event)

    def batches(self, event: events.BatchesTrained) -> None:
        self._pace.batches(event)

    def epoch(self, event: events.EpochFinished) -> None:
        self.accuracy = {number: m.validation_accuracy for number, m in event.metrics.items()}
        self.curves = {
            number: (*self.curves.get(number, ()), value)[-SPARK:]
            for number, value in self.accuracy.items()
        }
        self.done = event.epoch
        self._pace.epoch(event)

    def times(self, since: float = 0.0) -> str:
        """The time that has passed and, if it is known, the time left.

        Args:
            since: seconds since the time left was estimated.
        """
        passed = f"{duration(time.monotonic() - self._began)} passed"
        left = self._pace.left
        return f"{passed}, {duration(max(left - since, 0))} left" if math.isfinite(left) else passed


def begins(event: events.GroupStarted) -> str:
    """Say which trials a group trains, for how many epochs, and where it continues."""
    trials, epochs = counted(len(event.trials), "trial"), counted(event.epochs, "epoch")
    if event.epoch:
        return f"{trials}, continuing after epoch {event.epoch} of {event.epochs}"
    if event.examples:
        return f"{trials}, continuing within epoch 1 of {event.epochs}"
    return f"{trials}, {epochs}"


class PlainProgress(_Live):
    """Prints a line for each event and flushes it, for log files and pipes."""

    def group(self, event: events.GroupStarted) -> None:
        """Print how many trials begin."""
        super().group(event)
        self.message(f"{self.place}: {begins(event)}")

    def epoch(self, event: events.EpochFinished) -> None:
        """Print the accuracy of the lanes, the speed, and the time passed and left."""
        super().epoch(event)
        words = [f"{self.place} epoch {self.done}/{self.epochs}:"]
        if self.accuracy:
            best = max(self.accuracy, key=lambda number: self.accuracy[number])
            low = min(self.accuracy.values())
            span = f"{decimals(low)} to " if len(self.accuracy) > 1 else ""
            top = f"{decimals(self.accuracy[best])} ({self.labels[best]})"
            words.append(f"{self.held_out} accuracy {span}{top},")
        if failed := len(self.labels) - len(self.accuracy):
            words.append(f"{failed} failed,")
        self.message(" ".join([*words, f"{self._pace.rate:,.0f} images/s, {self.times()}"]))

    def trial(self, result: TrialResult) -> None:
        """Print how a trial ended."""
        self.message(outcome(result, self.held_out))

    def message(self, text: str) -> None:
        """Print a text on one line."""
        # A letter that the encoding of the log lacks must not end the study.
        encoding = self.console.encoding
        line = one_line(text).encode(encoding, "backslashreplace").decode(encoding)
        self.console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)
        self.console.file.flush()


class LiveProgress(_Live):
    """Redraws a few lines on the terminal: position, speed, and the lanes."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._since = time.monotonic()
        self._live = Live(
            console=console, get_renderable=self.render, refresh_per_second=2, transient=True
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._live.stop()

    def group(self, event: events.GroupStarted) -> None:
        """Say where a group continues, and show it at the next redraw."""
        super().group(event)
        self._since = time.monotonic()
        if event.epoch or event.examples:
            self.message(f"{self.place}: {begins(event)}")

    def batches(self, event: events.BatchesTrained) -> None:
        """Move the bar at the next redraw."""
        super().batches(event)
        if math.isfinite(event.seconds):
            self._since = time.monotonic()

    def epoch(self, event: events.EpochFinished) -> None:
        """Show the new numbers at the next redraw."""
        super().epoch(event)
        self._since = time.monotonic()

    def trial(self, result: TrialResult) -> None:
        """Print how a trial ended, above the display."""
        # Of a large group only failures are printed; the table at the end has every trial.
        if result.state != "COMPLETE" or len(self.labels) <= MOST_ROWS:
            self.message(outcome(result, self.held_out))

    def message(self, text: str) -> None:
        """Print a text above the display."""
        self.console.print(Text(one_line(text)), soft_wrap=True)

    def render(self) -> RenderableType:
        """Make the display of the present state."""
        if not self.labels:
            return Text("starting", style="dim")
        speed = f"{self._pace.rate:,.0f} images/s" if self._pace.rate else "starting"
        head = Text(f"{self.place}, epoch {self.done}/{self.epochs}, {speed}", style="bold")
        times = self.times(time.monotonic() - self._since)
        bar = Table.grid(expand=True, padding=(0, 1, 0, 0))
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True)
        bar.add_row(ProgressBar(total=1.0, completed=self._pace.fraction), Text(times))
        rows = max(min(MOST_ROWS, self.console.height - OTHER_LINES), 1)
        shown, accuracy = sorted(self.labels), self.accuracy
        if len(shown) > rows:  # the best are shown
            shown = sorted(shown, key=lambda number: (-accuracy.get(number, -1.0), number))[:rows]
        table = Table(box=None, pad_edge=False, expand=False)
        table.add_column("trial", justify="right", no_wrap=True)
        table.add_column("configuration", no_wrap=True, overflow="ellipsis", ratio=1)
        table.add_column(f"{self.held_out} accuracy", justify="right", min_width=8, overflow="fold")
        roomy = self.console.width >= NARROW and not self.console.options.ascii_only
        if roomy:
            table.add_column("", no_wrap=True, min_width=min(self.epochs, SPARK))
        curves = self.curves
        values = [value for curve in curves.values() for value in curve] or [0.0]
        for number in shown:
            drawn = spark(curves.get(number, ()), min(values), max(values))
            cells = [Text(str(number)), Text(self.labels[number]), self._cell(number)]
            table.add_row(*cells, *([Text(drawn, style="cyan")] if roomy else []))
        parts: list[RenderableType] = [head, bar, table]
        if len(self.labels) > len(shown):
            parts.append(Text(f"... and {len(self.labels) - len(shown)} more", style="dim"))
        return Group(*parts)

    def _cell(self, number: int) -> Text:
        accuracy = self.accuracy
        if number in accuracy:
            top = accuracy[number] == max(accuracy.values()) and len(accuracy) > 1
            return Text(decimals(accuracy[number]), style="bold green" if top else "")
        return Text("failed", style="red") if self.done else Text("-", style="dim")


def spark(values: Sequence[float], low: float, high: float) -> str:
    """Draw a sparkline: the lowest block for ``low`` and the highest for ``high``."""
    blocks = "▁▂▃▄▅▆▇█"
    scale = (len(blocks) - 1) / (high - low) if high > low else 0.0
    return "".join(blocks[round((value - low) * scale)] for value in values)


def outcome(result: TrialResult, held_out: str) -> str:
    """A line that says how a trial ended; ``held_out`` is what stands for validation images."""
    name = f"trial {result.number} {result.label}:"
    if result.state != "COMPLETE":
        return f"{name} failed, {result.reason}"
    found = {held_out: result.final.validation_accuracy, "test": result.test_accuracy}
    known = {split: accuracy for split, accuracy in found.items() if math.isfinite(accuracy)}
    said = (f"{split} accuracy {decimals(accuracy)}" for split, accuracy in known.items())
    return f"{name} {', '.join(said)}, {duration(result.seconds)}"
