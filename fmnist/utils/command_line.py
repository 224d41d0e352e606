"""Shared by the commands: their options, and how an error becomes a line and an exit status.

The module imports nothing heavy, so that ``--help`` answers before torch is loaded.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import io
import os
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast

from fmnist.utils import interpreter, memory, passwords, runtime
from fmnist.utils.errors import UserError, system_error
from fmnist.utils.signals import SIGNALS, Terminated

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
"""The exit status after Ctrl-C, and after SIGTERM."""

BUG = """
This is a mistake in fmnist, not yours; what was trained is kept. Please report it, with these
lines, your command and the study file."""


def positive(text: str) -> int:
    """Parse a whole number above 0, for argparse.

    Raises:
        ArgumentTypeError: The text is not a whole number above 0.
    """
    if not text.isascii() or not text.isdigit() or int(text[:12]) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text[:12])


def path(text: str) -> Path:
    """Parse a path, for argparse. A shell does not expand the ``~`` in ``--out=~/runs``.

    Raises:
        ArgumentTypeError: The path begins with a ``~``, and there is no such home folder.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: there is no such home folder") from error


class Parser(argparse.ArgumentParser):
    """An argument parser whose error messages hide passwords."""

    def error(self, message: str) -> NoReturn:
        if "unrecognized arguments" in message and "--set" in self._option_string_actions:
            message += "; settings are given as --set KEY=VALUE"
        super().error(passwords.hide_arguments(message, sys.argv))


def called(prog: str) -> str:
    """Return how a command was called, for its help: ``fmnist study`` or ``python -m ...``.

    Args:
        prog: the module that ``python -m`` runs.
    """
    name = sys.argv[0]
    return name if name.endswith(f"fmnist {prog.removeprefix('fmnist.')}") else f"python -m {prog}"


def study_parser(prog: str, description: str) -> Parser:
    """Make the parser of a command that runs a study file.

    Args:
        prog: the module that ``python -m`` runs.
        description: the first paragraph of ``--help``.

    Returns:
        A parser with the options that all such commands have.
    """
    parser = Parser(prog=called(prog), description=description)
    parser.add_argument(
        "study", nargs="?", metavar="STUDY.toml", help="the study file (default: the baseline)"
    )
    parser.add_argument("--epochs", type=positive, metavar="N", help="train this many epochs")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=V1[,V2...]",
        help="a setting, or with several values an axis of the grid; may be repeated. "
        "hidden=120,60 is two networks of one hidden layer each, hidden=120-60 is one network of "
        "two; the same holds for channels",
    )
    parser.add_argument(
        "--out",
        type=path,
        metavar="DIR",
        help="where results go (default: runs/NAME, with a number if that is of another study)",
    )
    parser.add_argument("--data", type=path, metavar="DIR", help="a folder with the four IDX files")
    parser.add_argument(
        "--device", default="auto", metavar="auto|cpu|cuda|cuda:N", help="where to train"
    )
    parser.add_argument("--quiet", action="store_true", help="print errors and warnings only")
    return parser


def command(prog: str, argv: Iterable[str]) -> str:
    """Quote a command line so that a shell reads it as the same arguments.

    Args:
        prog: the module that ``python -m`` runs.
        argv: its arguments.
    """
    return shlex.join(["python", "-m", prog, *argv])


def run(
    main: Callable[[Sequence[str]], int],
    *,
    stopped: str = "stopped",
    patience: float | None = None,
) -> None:
    """Run a command with this process's arguments, and exit with its status.

    A :class:`UserError` is one line on stderr and status 2. Ctrl-C is status 130, SIGTERM 143.
    Any other error is a bug: a traceback and status 70 (EX_SOFTWARE in sysexits.h).

    Args:
        main: takes the arguments and returns the exit status.
        stopped: the line to print after Ctrl-C or SIGTERM.
        patience: seconds after such a signal until ``main`` is interrupted, and the same again
            until the process is ended; by default only ``main`` decides.
    """
    passwords.cover_arguments()
    runtime.hide_library_warnings()
    _occupy_closed_streams()
    if patience is not None:
        _end_in_time(patience, stopped)
    text = ""
    if isinstance(sys.stdout, io.TextIOWrapper):  # its encoding may lack a letter of a path
        sys.stdout.reconfigure(errors="backslashreplace")
    output = _Output(sys.stdout)
    sys.stdout = cast(TextIO, output)
    try:
        status = main(sys.argv[1:])
    except BaseException as error:
        name = main.__module__.split(".")[-2:][0]  # as in fmnist.study.command
        status, text = _status_and_text(error, stopped, name)
    unwritten = output.finish()
    if unwritten is not None and not text:
        status, text = _status_and_text(unwritten, stopped, "")
    print_error(text)
    if output.lost and status == 0:
        status = 2
    if status in (INTERRUPTED, TERMINATED):
        # Tearing down the interpreter and its libraries would take a second or two.
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        atexit._run_exitfuncs()
        os._exit(status)
    sys.exit(status)


def print_error(text: str) -> None:
    """Print a text on stderr, without the passwords of the command line."""
    try:
        print(passwords.hide_arguments(text, sys.argv), end="", file=sys.stderr, flush=True)
    except OSError:  # such as a full disk
        _discard(sys.stderr)


def _end_in_time(patience: float, stopped: str) -> None:
    """After a signal, interrupt the command after some seconds and end it after as many more.

    A thread waits for the signal, because Python calls a handler only between two operations,
    and one operation may take long.
    """
    arrivals, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end)

    def wait() -> None:
        number = 0
        while number not in SIGNALS:
            number = os.read(arrivals, 1)[0]
        time.sleep(patience)
        sys.unraisablehook = lambda _: None  # else a callback from C prints the error and continues
        os.kill(os.getpid(), number)
        time.sleep(patience)
        print_error(f"\n{stopped}\n")
        os._exit(128 + number)

    threading.Thread(target=wait, daemon=True).start()


def outlive_output(what: str) -> None:
    """Let the command go on when its standard output can no longer be written.

    When the reader has left, as in ``| head``, or the terminal is gone, the exit status is that of
    the command; after another error, such as a full disk, 0 becomes 2.

    Args:
        what: what goes on, for the line on stderr.
    """
    if isinstance(sys.stdout, _Output):
        sys.stdout.outlived_by = what


class _Output:
    """Standard output whose errors name it as their file.

    Attributes:
        outlived_by: what goes on without it; if empty, errors are raised.
        lost: whether text was lost that a reader may miss.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._is_terminal = stream, stream.isatty()
        self.outlived_by, self.lost = "", False

    def write(self, text: str) -> int:
        with self._handle_errors():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._handle_errors():
            self._stream.flush()

    def finish(self) -> OSError | None:
        """Flush the stream for the last time; return the error if that fails."""
        unwritten = None
        try:
            self.flush()
        except OSError as error:
            unwritten = error
        if unwritten or self.lost:
            _discard(sys.stdout)
        return unwritten

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _handle_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            error.filename = "standard output"
            if not self.outlived_by:
                raise
            if isinstance(error, BrokenPipeError) or self._is_terminal:
                _discard(sys.stdout)
                print_error(f"the reader of the output has left; {self.outlived_by} goes on\n")
            elif not self.lost:  # a disk may be full for a short while
                self.lost = True
                print_error(
                    f"error: {error.filename}: {error.strerror}; {self.outlived_by} goes on\n"
                )


def _discard(stream: TextIO) -> None:
    """Redirect a stream to /dev/null; else what is left in its buffer fails again at the exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _occupy_closed_streams() -> None:
    """Open /dev/null in the place of closed standard streams.

    Otherwise the next files to be opened would get their numbers, and what a library prints would
    go into a file of the study.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)


def _status_and_text(error: BaseException, stopped: str, name: str) -> tuple[int, str]:
    """Return the exit status for an error of a command of this name, and the text for stderr."""
    match error:
        case UserError():
            return 2, f"error: {error}\n"
        case SystemExit():  # argparse has printed the reason
            return error.code if isinstance(error.code, int) else 2, ""
        case KeyboardInterrupt() | Terminated():
            status = INTERRUPTED if isinstance(error, KeyboardInterrupt) else TERMINATED
            return status, f"\n{stopped}\n"
        case ModuleNotFoundError() if interpreter.is_missing(error.name):
            return 2, f"error: {interpreter.lacks(str(error.name).partition('.')[0], name)}\n"
        case BrokenPipeError():  # the reader has gone, as in "| head"
            return 128 + signal.SIGPIPE, ""
        case OSError() if reason := system_error(error):
            return 2, f"error: {reason}\n"
    if memory.ran_out(error):
        return 2, "error: there is not enough memory\n"
    lines = "".join(traceback.format_exception(error))
    return 70, f"{lines}{BUG}\n"
