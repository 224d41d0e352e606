"""The servers of ``python -m fmnist.view``. Each runs in a separate process.

``python -m fmnist.view.servers`` reads what to serve from standard input, as a line of JSON, so no
command line has the password of a storage URL. It prints its address. It ends when its standard
input ends, and so with the process that started it.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, BinaryIO
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from fmnist.utils.passwords import reason_of

if TYPE_CHECKING:
    from optuna.artifacts import FileSystemArtifactStore
    from optuna.storages import BaseStorage

HOST = "127.0.0.1"


class ServerError(Exception):
    """A server cannot be started; ``str()`` says why, in one line."""


def main() -> int:
    """Serve until standard input ends; 0, or 2 and a line on stderr when no server can start."""
    orders = json.loads(sys.stdin.readline())
    start: Callable[..., str] = start_tensorboard if "folders" in orders else start_dashboard
    with contextlib.ExitStack() as stack:
        if "folders" in orders:
            orders["links"] = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="fmnist-view-")
            )
        try:
            address = start(**orders)
        except ServerError as error:
            print(error, file=sys.stderr)
            return 2
        print(address, flush=True)
        sys.stdin.read()
        return 0


def start_tensorboard(folders: Mapping[str, str], links: str, port: int) -> str:
    """Serve event files in a thread.

    Several runs are linked into one folder, as the projector does not work with ``--logdir_spec``.

    Args:
        folders: the folders of TensorBoard's files, by the names of the runs.
        links: an empty folder.
        port: the port; 0 for a free one.

    Returns:
        The address.

    Raises:
        ServerError: The port is taken.
    """
    from tensorboard import program

    logdir, *more = folders.values()
    if more:
        logdir = links
        for name, folder in folders.items():
            Path(links, name).symlink_to(folder)
    server = program.TensorBoard()
    server.configure(["tensorboard", "--logdir", logdir, "--host", HOST, "--port", str(port)])
    try:
        return server.launch()
    except program.TensorBoardServerException as error:
        raise ServerError(" ".join(str(error).split())) from error


def start_dashboard(storage: str, artifacts: Sequence[str], port: int) -> str:
    """Serve the studies of an Optuna storage in a thread.

    Args:
        storage: the URL of the storage.
        artifacts: the folders of the artifacts; uploads go into the first one.
        port: the port; 0 for a free one.

    Returns:
        The address.

    Raises:
        ServerError: The storage cannot be read, or the port is taken.
    """
    from optuna.artifacts import FileSystemArtifactStore
    from optuna_dashboard import wsgi

    store = _Stores([FileSystemArtifactStore(folder) for folder in artifacts])
    app = wsgi(open_storage(storage), artifact_store=store)
    try:
        server = make_server(HOST, port, app, server_class=_Server, handler_class=_Handler)
    except (OSError, OverflowError) as error:  # OverflowError: it is above 65535
        raise ServerError(f"port {port} cannot be used ({error})") from error
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://{HOST}:{server.server_port}/"


def open_storage(url: str) -> BaseStorage:
    """Open a storage and read its studies; nothing is created.

    Args:
        url: an Optuna storage URL.

    Raises:
        ServerError: The storage cannot be read. The text holds no password.
    """
    from optuna.exceptions import StorageInternalError
    from optuna.storages import RDBStorage
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        parsed = make_url(url)
        file = parsed.database or ""
        is_file = parsed.get_backend_name() == "sqlite" and not file.startswith("file:")
        if is_file and not Path(file).is_file():  # SQLite would create it
            raise ServerError(f"the storage cannot be used: there is no file {file!r}")
        storage = RDBStorage(url, skip_compatibility_check=True, skip_table_creation=True)
        storage.get_all_studies()
    except LookupError as error:  # Optuna formats the URL, which looks up names in braces
        reason = "in its URL, { and } are written as %7B and %7D"
        raise ServerError(f"the storage cannot be used: {reason}") from error
    except (SQLAlchemyError, StorageInternalError, ImportError, ValueError) as error:
        raise ServerError(f"the storage cannot be used: {reason_of(error, url)}") from error
    return storage


class _Stores:
    """Several stores of artifacts as one, in Optuna's protocol of a store."""

    def __init__(self, stores: Sequence[FileSystemArtifactStore]) -> None:
        self._stores = stores

    def open_reader(self, artifact_id: str) -> BinaryIO:
        return self._holding(artifact_id).open_reader(artifact_id)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        self._stores[0].write(artifact_id, content_body)

    def remove(self, artifact_id: str) -> None:
        self._holding(artifact_id).remove(artifact_id)

    def _holding(self, artifact_id: str) -> FileSystemArtifactStore:
        from optuna.artifacts.exceptions import ArtifactNotFound

        for store in self._stores[:-1]:
            with contextlib.suppress(ArtifactNotFound), store.open_reader(artifact_id):
                return store
        return self._stores[-1]


class _Server(ThreadingMixIn, WSGIServer):
    """The server class that optuna-dashboard uses; its threads do not delay the exit."""

    daemon_threads = True


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: an open page sends a request every few seconds."""


if __name__ == "__main__":
    sys.exit(main())
