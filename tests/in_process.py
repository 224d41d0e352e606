"""A command run in this process, as ``python -m`` runs it: quick, as the libraries are loaded.

Not for tests of the process itself: signals, closed or full output, limits, the environment, what
others see of it. Those start a real one.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import signal
import sys
from typing import NamedTuple
from unittest import mock

from fmnist.utils import command_line, passwords, runtime

SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


class Done(NamedTuple):
    """How a command ended, named as in :class:`subprocess.CompletedProcess`."""

    returncode: int
    stdout: str
    stderr: str


def call(package: str, *args: object, cwd: object = ".", encoding: str = "utf-8") -> Done:
    """Run ``python -m fmnist.PACKAGE`` with these arguments in the folder ``cwd``.

    Its standard output has this encoding, and ``:`` with a way to handle errors, if any, as
    in PYTHONIOENCODING. The command line of this process is not its own, and is left as it is.
    """
    main = importlib.import_module(f"fmnist.{package}.command").main
    name, _, errors = encoding.partition(":")
    out, err = io.BytesIO(), io.StringIO()
    written = io.TextIOWrapper(out, name, errors or "strict", newline="\n")
    argv = [f"{package}/__main__.py", *map(str, args)]
    status = None
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    with (
        contextlib.chdir(str(cwd)),
        mock.patch.object(sys, "argv", argv),
        mock.patch.object(sys, "stdout", written),
        mock.patch.object(sys, "stderr", err),
        mock.patch.object(passwords, "cover_arguments", return_value=None),
        mock.patch.object(runtime, "hide_library_warnings", return_value=None),
    ):
        try:
            command_line.run(main)
        except SystemExit as end:
            status = end.code
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        written.flush()
    assert isinstance(status, int)
    return Done(status, out.getvalue().decode(name), err.getvalue())
