"""The command line ``python -m fmnist.view``: serves TensorBoard and optuna-dashboard."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from fmnist.rundir import found
from fmnist.tuning import storage_url
from fmnist.utils import command_line, interpreter
from fmnist.utils.errors import UserError

PROG = "fmnist.view"
ENDING_SECONDS = 5.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(argv: Sequence[str]) -> int:
    """Serve runs until a signal comes or a server ends.

    Args:
        argv: the arguments of the command line.

    Returns:
        The exit status: 1 when a server ends by itself.

    Raises:
        SystemExit: A signal came; the status is 128 and its number.
        UserError: A folder holds no run, no server is installed, or one does not start.
    """
    args = _parser().parse_args(argv)
    board, dashboard = map(_installed, ("tensorboard", "optuna_dashboard"))
    runs = distinct(args.runs or [found.latest(found.BOARD)])
    for folder in runs.values():
        if not (folder / "tensorboard").is_dir():
            hint = found.hint(folder, found.BOARD)
            raise UserError(f"{folder}: there is no run (it has no folder tensorboard); {hint}")
    orders: dict[str, dict[str, object]] = {}
    if board:
        folders = {name: str((path / "tensorboard").resolve()) for name, path in runs.items()}
        orders["TensorBoard"] = {"folders": folders, "port": args.port_tensorboard}
    if dashboard:
        orders |= _dashboards(runs, args.storage, args.port_dashboard)
    if not orders:
        raise UserError("nothing can be shown")
    for number in SIGNALS:
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(serving(name, order)) for name, order in orders.items()]
        kinds = " and ".join(dict.fromkeys(name.partition(" of ")[0] for name in orders))
        shown = ", ".join(map(str, runs.values()))
        print(f"starting {kinds} for {shown}", flush=True)
        addresses = [server.address() for server in servers]
        width = max(16, *map(len, orders))
        for server, address in zip(servers, addresses, strict=True):
            print(f"{server.name:<{width}}  {address}", flush=True)
        print(f"Ctrl-C ends {('it', 'both', 'all')[min(len(servers), 3) - 1]}.", flush=True)
        rest = ("", "; the other one is ended, too", "; the others are ended, too")
        while True:
            for server in servers:
                if (reason := server.death()) is not None:
                    print(f"error: {reason}{rest[min(len(servers), 3) - 1]}", file=sys.stderr)
                    return 1
            time.sleep(0.2)


def _parser() -> command_line.Parser:
    parser = command_line.Parser(
        prog=command_line.called(PROG),
        description="Start TensorBoard and optuna-dashboard for runs, on this machine only. "
        "TensorBoard shows several runs together; each gets an optuna-dashboard of its own, "
        "as that shows one storage.",
    )
    parser.add_argument(
        "runs",
        nargs="*",
        type=command_line.path,
        metavar="RUN",
        help="the folder of a run (default: the latest in runs/)",
    )
    parser.add_argument(
        "--storage", metavar="URL", help="Optuna's storage of all RUNs (default: RUN/study.db)"
    )
    for name, more in (("tensorboard", ""), ("dashboard", "; further ones have the next ports")):
        parser.add_argument(
            f"--port-{name}",
            type=command_line.positive,
            default=0,
            metavar="N",
            help=f"default: a free one{more}",
        )
    return parser


def distinct(folders: Iterable[Path]) -> dict[str, Path]:
    """Name each folder once: by its last part, and a number where that is of several."""
    given: dict[str, Path] = {}
    for folder in folders:
        given.setdefault(os.path.realpath(folder), folder)
    named: dict[str, Path] = {}
    for real, folder in given.items():
        plain = os.path.basename(real) or "run"  # noqa: PTH119
        names = itertools.chain([plain], (f"{plain} ({n})" for n in itertools.count(2)))
        named[next(name for name in names if name not in named)] = folder
    return named


def _installed(library: str) -> bool:
    """Whether a server is installed; if not, it is said what to type.

    Raises:
        UserError: TensorBoard and optuna-dashboard are not installed.
    """
    if find_spec(library) is not None:
        return True
    if find_spec("tensorboard") is find_spec("optuna_dashboard") is None:
        raise UserError(interpreter.lacks("tensorboard", "view"))
    command_line.print_error(f"{interpreter.lacks(library, 'view')}\n")
    return False


def _dashboards(
    runs: Mapping[str, Path], storage: str | None, port: int
) -> dict[str, dict[str, object]]:
    """What the dashboards serve, by the name of the server: one for each storage."""
    stored = {} if storage is None else {"": storage}
    for name, folder in runs.items():
        if storage is None and (folder / "study.db").is_file():
            stored[name] = storage_url.of_run(folder)
        elif storage is None:
            reason = "has no study.db, so optuna-dashboard does not show it"
            command_line.print_error(
                f"{folder}: {reason}; if it was run with --storage, say that\n"
            )
    orders: dict[str, dict[str, object]] = {}
    for place, (name, url) in enumerate(stored.items()):
        folders = [runs[name]] if name else runs.values()
        for folder in folders:
            (folder / "artifacts").mkdir(exist_ok=True)  # the dashboard writes uploads there
        server = f"optuna-dashboard of {name}" if len(stored) > 1 else "optuna-dashboard"
        orders[server] = {
            "storage": url,
            "artifacts": [str(folder / "artifacts") for folder in folders],
            "port": port + place if port else 0,
        }
    return orders


class Server:
    """A process of :mod:`fmnist.view.servers`.

    Args:
        name: the server's name, for messages.
        process: the process.
        stderr: the file of its stderr.
    """

    def __init__(self, name: str, process: subprocess.Popen[bytes], stderr: IO[bytes]) -> None:
        self.name, self._process, self._stderr = name, process, stderr

    def address(self) -> str:
        """Wait until the server listens, and return its address.

        Raises:
            UserError: The process ended.
        """
        assert self._process.stdout is not None
        address = self._process.stdout.readline().decode().strip()
        if not address:
            self._process.wait()
            raise UserError(self.death() or f"{self.name} ended")
        return address

    def death(self) -> str | None:
        """Return a line on how the process ended; None while it runs."""
        status = self._process.poll()
        if status is None:
            return None
        if status < 0:
            return f"{self.name} was ended by signal {-status}"
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return f"{self.name}: {lines[-1]}" if lines else f"{self.name} ended with status {status}"


@contextlib.contextmanager
def serving(name: str, orders: dict[str, object]) -> Iterator[Server]:
    """Start a server, and end it with the block.

    Args:
        name: the server's name, for messages.
        orders: what to serve, as :mod:`fmnist.view.servers` reads it.
    """
    with (
        tempfile.TemporaryFile() as stderr,
        subprocess.Popen(
            [sys.executable, "-m", "fmnist.view.servers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,  # the terminal's Ctrl-C must reach this process alone
        ) as process,
    ):
        assert process.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(orders).encode() + b"\n")
                process.stdin.flush()
            yield Server(name, process, stderr)
        finally:
            for number in SIGNALS:  # a second signal must not interrupt the ending
                signal.signal(number, signal.SIG_IGN)
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            try:
                process.wait(ENDING_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
