"""What the command lines share: their options, and how errors reach the user.

Imports nothing heavy: ``--help`` answers before torch is loaded.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence

from fmnist.errors import UserError
from fmnist.passwords import starred
from fmnist.signals import Terminated

BUG = """
This is a mistake in fmnist, not yours; what was trained is kept. Please report it, with these
lines, your command and the study file."""


def positive(text: str) -> int:
    """A whole number above zero, for argparse."""
    if not text.isascii() or not text.isdigit() or int(text[:12]) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text[:12])


def positive_or_auto(text: str) -> int | None:
    """A whole number above zero, or None for ``auto``."""
    return None if text == "auto" else positive(text)


def study_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """The options of a command that runs a study file."""
    parser = argparse.ArgumentParser(prog=f"python -m {prog}", description=description)
    parser.add_argument(
        "study", nargs="?", metavar="STUDY.toml", help="the study file (default: the baseline)"
    )
    parser.add_argument("--epochs", type=positive, metavar="N", help="train this many epochs")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=V1[,V2...]",
        help="a setting, or with several values an axis of the grid; may be repeated",
    )
    parser.add_argument(
        "--out", metavar="DIR", help="where results go (default: runs/ and the study's name)"
    )
    parser.add_argument("--data", metavar="DIR", help="a folder with the four IDX files")
    parser.add_argument(
        "--device", default="auto", metavar="auto|cpu|cuda|cuda:N", help="where to train"
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    return parser


def command(prog: str, argv: Sequence[str]) -> str:
    """The command line as it could be typed again."""
    return shlex.join(["python", "-m", prog, *argv])


def run(main: Callable[[Sequence[str]], int]) -> None:
    """Run a command and exit: 2 with one line for a user's error, 130 or 143 when stopped.

    A traceback is shown of our own mistakes alone, with exit status 70 (EX_SOFTWARE, sysexits.h).
    """
    try:
        status = main(sys.argv[1:])
        sys.stdout.flush()  # while what that may raise is still handled
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except (KeyboardInterrupt, Terminated) as stopped:
        print("\nstopped; the same command continues where it was", file=sys.stderr)
        status = 130 if isinstance(stopped, KeyboardInterrupt) else 143
    except BrokenPipeError:  # "| head": nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else it fails again at the exit
        status = 128 + signal.SIGPIPE
    except MemoryError:
        print("error: there is not enough memory", file=sys.stderr)
        status = 2
    except Exception:
        print(starred(traceback.format_exc()), end="", file=sys.stderr)
        print(BUG, file=sys.stderr)
        status = 70
    sys.exit(status)
