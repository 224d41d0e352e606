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
from fmnist.reports.words import counted, decimals, duration, one_line
from fmnist.tuning import events
from fmnist.utils import command_line, runtime

MOST_ROWS = 12
SPARK = 12
"""Characters of a lane's sparkline, at most."""

NARROW = 72
"""A terminal of fewer columns shows no sparklines."""

OTHER_LINES = 7
"""Lines of the live display that show no lane: headings, bar, "more" and margins."""


class Progress(AbstractContextManager["Progress"]):
    """Receives the events of a run. This class shows nothing; its subclasses show them."""

    _variant = ""

    def __call__(self, event: events.Event) -> None:
        """Show what a study that trains has come to."""
        match event:
            case events.GroupStarted():
                self.group(event)
                self._tell_variant(event.variant)
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
        if name == "blocks" and not self._variant and not runtime.kernels_are_compiled():
            self.message("compiling the kernels, once: about half a minute")
        self._variant = name

    def group(self, event: events.GroupStarted) -> None:
        """A group starts to train."""

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
        self.rate = self.fraction = 0.0
        self.left = math.nan
        self._images = self._seen = 0
        self._todo = self._all = 0
        self._seconds, self._past_seconds, self._past_epochs = 0.0, 0.0, 0

    def group(self, event: events.GroupStarted) -> None:
        # The time of earlier groups helps to estimate that of later ones.
        self._past_seconds += self._seconds
        self._past_epochs += self._seen * len(self.labels)
        self.place = f"group {event.index + 1}/{event.total}"
        # The display is drawn in another thread, so mappings are replaced and never changed.
        self.labels = {trial.number: one_line(label(trial.point)) for trial in event.trials}
        self.accuracy, self.curves = {}, {}
        self.epochs, self.done, self.rate = event.epochs, 0, 0.0
        self._images, self._seen, self._seconds = event.images * len(self.labels), 0, 0.0
        self._todo = event.epochs_left
        self._all = max(self._all, self._todo)
        self.fraction = 1 - self._todo / max(self._all, 1)

    def epoch(self, event: events.EpochFinished) -> None:
        seconds, lanes = event.seconds, len(self.labels)
        self.accuracy = {number: m.validation_accuracy for number, m in event.metrics.items()}
        self.curves = {
            number: (*self.curves.get(number, ()), value)[-SPARK:]
            for number, value in self.accuracy.items()
        }
        self.done, self._seen, self._seconds = event.epoch, self._seen + 1, seconds
        self.rate = self._images * self._seen / max(seconds, 1e-9)
        todo = max(self._todo - self._seen * lanes, 0)
        own = min((self.epochs - self.done) * lanes, todo)
        pace = seconds / (self._seen * max(lanes, 1))
        overall = (seconds + self._past_seconds) / (self._seen * max(lanes, 1) + self._past_epochs)
        self.left = own * pace + (todo - own) * overall
        self.fraction = 1 - todo / max(self._all, 1)

    def pace(self) -> str:
        """The speed and the time left."""
        return f"{self.rate:,.0f} images/s, {duration(self.left)} left" if self.rate else ""


class PlainProgress(_Live):
    """Prints a line for each event and flushes it, for log files and pipes."""

    def group(self, event: events.GroupStarted) -> None:
        """Print how many trials begin."""
        super().group(event)
        self.message(f"{self.place}: {counted(len(self.labels), 'trial')}, {self.epochs} epochs")

    def epoch(self, event: events.EpochFinished) -> None:
        """Print the accuracy of the lanes, the speed and the time left."""
        super().epoch(event)
        words = [f"{self.place} epoch {self.done}/{self.epochs}:"]
        if self.accuracy:
            best = max(self.accuracy, key=lambda number: self.accuracy[number])
            low = min(self.accuracy.values())
            span = f"{decimals(low)} to " if len(self.accuracy) > 1 else ""
            top = f"{decimals(self.accuracy[best])} ({self.labels[best]})"
            words.append(f"validation accuracy {span}{top},")
        if failed := len(self.labels) - len(self.accuracy):
            words.append(f"{failed} failed,")
        self.message(" ".join([*words, self.pace()]))

    def trial(self, result: TrialResult) -> None:
        """Print how a trial ended."""
        self.message(outcome(result))

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

    def epoch(self, event: events.EpochFinished) -> None:
        """Show the new numbers at the next redraw."""
        super().epoch(event)
        self._since = time.monotonic()

    def trial(self, result: TrialResult) -> None:
        """Print how a trial ended, above the display."""
        # Of a large group only failures are printed; the table at the end has every trial.
        if result.state != "COMPLETE" or len(self.labels) <= MOST_ROWS:
            self.message(outcome(result))

    def message(self, text: str) -> None:
        """Print a text above the display."""
        self.console.print(Text(one_line(text)), soft_wrap=True)

    def pace(self) -> str:
        """The speed at the last epoch, and the time left, less the seconds since that epoch."""
        if not self.rate:
            return "starting"
        left = max(self.left - (time.monotonic() - self._since), 0)
        return f"{self.rate:,.0f} images/s, {duration(left)} left"

    def render(self) -> RenderableType:
        """Make the display of the present state."""
        if not self.labels:
            return Text("starting", style="dim")
        head = Text(f"{self.place}, epoch {self.done}/{self.epochs}, {self.pace()}", style="bold")
        bar = Table.grid(expand=True)
        bar.add_row(ProgressBar(total=1.0, completed=self.fraction))
        rows = max(min(MOST_ROWS, self.console.height - OTHER_LINES), 1)
        shown, accuracy = sorted(self.labels), self.accuracy
        if len(shown) > rows:  # the best are shown
            shown = sorted(shown, key=lambda number: (-accuracy.get(number, -1.0), number))[:rows]
        table = Table(box=None, pad_edge=False, expand=False)
        table.add_column("trial", justify="right", no_wrap=True)
        table.add_column("configuration", no_wrap=True, overflow="ellipsis", ratio=1)
        table.add_column("validation accuracy", justify="right", min_width=8, overflow="fold")
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


def outcome(result: TrialResult) -> str:
    """A line that says how a trial ended."""
    name = f"trial {result.number} {result.label}:"
    if result.state != "COMPLETE":
        return f"{name} failed, {result.reason}"
    return (
        f"{name} validation accuracy {decimals(result.last.validation_accuracy)}, "
        f"test accuracy {decimals(result.test_accuracy)}, {duration(result.seconds)}"
    )
