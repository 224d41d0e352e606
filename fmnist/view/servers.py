"""The servers behind ``python -m fmnist.view``, each one in a process of its own.

``python -m fmnist.view.servers`` reads what to serve as a line of JSON from its standard input, so
that a password in a storage URL stands in no command line. It writes its address, and ends when
its standard input does: it never outlives the process that started it, however that one ends.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from fmnist.utils.passwords import hide

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

HOST = "127.0.0.1"


class ServerError(Exception):
    """A server cannot be started; ``str()`` is one line."""


def main() -> int:
    """Serve until standard input ends; 2 and one line when that cannot be."""
    orders = json.loads(sys.stdin.readline())
    starts: dict[str, Callable[..., str]] = {
        "tensorboard": start_tensorboard,
        "dashboard": start_dashboard,
    }
    try:
        address = starts[orders.pop("server")](**orders)
    except ServerError as error:
        print(error, file=sys.stderr)
        return 2
    print(address, flush=True)
    sys.stdin.read()
    return 0


def start_tensorboard(logdir: str, port: int) -> str:
    """Serve the event files below ``logdir`` from a thread and return the address.

    Raises:
        ServerError: when the port is taken.
    """
    from tensorboard import program

    server = program.TensorBoard()
    server.configure(["tensorboard", "--logdir", logdir, "--host", HOST, "--port", str(port)])
    try:
        return server.launch()
    except program.TensorBoardServerException as error:
        raise ServerError(" ".join(str(error).split())) from error


def start_dashboard(storage: str, artifacts: str, port: int) -> str:
    """Serve the studies of an Optuna storage from a thread and return the address.

    Args:
        storage: its URL.
        artifacts: the folder of the artifacts.
        port: 0 for any.

    Raises:
        ServerError: when the storage cannot be read or the port is taken.
    """
    from optuna.artifacts import FileSystemArtifactStore
    from optuna_dashboard import wsgi

    app = wsgi(open_storage(storage), artifact_store=FileSystemArtifactStore(artifacts))
    try:
        server = make_server(HOST, port, app, server_class=_Server, handler_class=_Handler)
    except OSError as error:
        raise ServerError(f"port {port} cannot be used ({error.strerror})") from error
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://{HOST}:{server.server_port}/"


def open_storage(url: str) -> BaseStorage:
    """The storage of this URL, of which something could be read; nothing is made in it.

    Raises:
        ServerError: when it cannot be read. The words hold no password.
    """
    from optuna.exceptions import StorageInternalError
    from optuna.storages import RDBStorage, get_storage
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    storage: BaseStorage
    try:
        if url.startswith("redis"):
            storage = get_storage(url)
        else:
            parsed = make_url(url)
            file = parsed.database or ""
            is_file = parsed.get_backend_name() == "sqlite" and not file.startswith("file:")
            if is_file and not Path(file).is_file():  # SQLite would make it
                raise ServerError(f"the storage cannot be used: there is no file {file!r}")
            storage = RDBStorage(url, skip_compatibility_check=True, skip_table_creation=True)
        storage.get_all_studies()
    except LookupError as error:  # Optuna fills in what is between braces
        reason = "in its URL, { and } are written as %7B and %7D"
        raise ServerError(f"the storage cannot be used: {reason}") from error
    except (SQLAlchemyError, StorageInternalError, ImportError, ValueError) as error:
        # Optuna wraps what the database says.
        reason = " ".join(str(error.__cause__ or error).split()).split(" [SQL")[0]
        raise ServerError(f"the storage cannot be used: {hide(reason, url)[:300]}") from error
    return storage


class _Server(ThreadingMixIn, WSGIServer):
    """The dashboard's own choice of server; requests that hang do not keep it from ending."""

    daemon_threads = True


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a page asks every few seconds."""


if __name__ == "__main__":
    sys.exit(main())
