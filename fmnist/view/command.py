"""The command line ``python -m fmnist.view``: serves TensorBoard and optuna-dashboard."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from fmnist.tuning import storage_url
from fmnist.utils import command_line
from fmnist.utils.errors import UserError

PROG = "fmnist.view"
ENDING_SECONDS = 5.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(argv: Sequence[str]) -> int:
    """Serve a run until a signal comes or a server ends.

    Args:
        argv: the arguments of the command line.

    Returns:
        The exit status: 1 when a server ends by itself.

    Raises:
        SystemExit: A signal came; the status is 128 and its number.
        UserError: The folder holds no run, optuna-dashboard is not installed, or a server does
            not start.
    """
    parser = command_line.Parser(
        prog=f"python -m {PROG}",
        description="Start TensorBoard and optuna-dashboard for a run, on this machine only.",
    )
    parser.add_argument(
        "run",
        nargs="?",
        type=command_line.path,
        default="runs/baseline",
        metavar="RUN",
        help="the run's folder (default: %(default)s)",
    )
    parser.add_argument(
        "--storage", metavar="URL", help="Optuna's storage (default: sqlite, RUN/study.db)"
    )
    for name in ("tensorboard", "dashboard"):
        parser.add_argument(
            f"--port-{name}",
            type=command_line.positive,
            default=0,
            metavar="N",
            help="default: a free one",
        )
    args = parser.parse_args(argv)
    folder = args.run
    storage = storage_of(folder, args.storage)
    if find_spec("optuna_dashboard") is None:
        raise UserError("optuna-dashboard is not installed: pip install 'fmnist[dashboard]'")
    (folder / "artifacts").mkdir(exist_ok=True)  # the dashboard writes uploads there
    board = {"logdir": str(folder / "tensorboard"), "port": args.port_tensorboard}
    dashboard = {
        "storage": storage,
        "artifacts": str(folder / "artifacts"),
        "port": args.port_dashboard,
    }
    for number in SIGNALS:
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(serving("TensorBoard", board)),
            stack.enter_context(serving("optuna-dashboard", dashboard)),
        ]
        print(f"starting TensorBoard and optuna-dashboard for {folder}", flush=True)
        addresses = [server.address() for server in servers]
        for server, address in zip(servers, addresses, strict=True):
            print(f"{server.name:<16}  {address}", flush=True)
        print("Ctrl-C ends both.", flush=True)
        while True:
            for server in servers:
                if (reason := server.death()) is not None:
                    print(f"error: {reason}; the other one is ended, too", file=sys.stderr)
                    return 1
            time.sleep(0.2)


def storage_of(folder: Path, storage: str | None) -> str:
    """The URL of a run's Optuna storage.

    Args:
        folder: the run's folder.
        storage: the URL that the user gave; None for the database in the folder.

    Raises:
        UserError: The folder holds no run, or has no study.db and no URL was given.
    """
    if not (folder / "tensorboard").is_dir():
        raise UserError(f"{folder}: there is no run (it has no folder tensorboard)")
    file = folder / "study.db"
    if storage is None and not file.is_file():
        raise UserError(f"{folder}: has no study.db; say --storage URL, as when it was run")
    return storage or storage_url.of_run(folder)


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
