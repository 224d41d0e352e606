"""The sources of Fashion-MNIST: each provides a folder with its files, plain or .gz.

A download must have a known SHA-256 before it is unpacked. The content of the files is verified
by :mod:`fmnist.data.fashion_mnist`.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import shutil
import subprocess
import tarfile
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from fmnist.utils import runtime
from fmnist.utils.errors import UserError, printable

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
_CONNECT_SECONDS = 10.0  # to wait for an answer
_APT_SECONDS = 300.0  # for one apt command

PACKED_SHA256 = {
    "train-images-idx3-ubyte": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}
"""The SHA-256 of each official .gz file, by the name of its content."""
PACKAGE_SHA256 = "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0"
"""The SHA-256 of Debian's dataset-fashion-mnist 0.0~git20200523.55506a9-1, its only version.

A build by another distribution, such as Ubuntu, holds the same data in other bytes and is refused.
A user can install that package instead: its folder is a source, too.
"""

Opened = AbstractContextManager[Path]


class DataError(UserError):
    """The data cannot be loaded; the text names the file or source, the reason and the remedy."""


class NowhereError(DataError):
    """No source works; the text has a line for each."""

    def __str__(self) -> str:
        return "\n".join(map(printable, self.args))


class AbsentError(DataError):
    """A source is not available on this machine, or lacks the file."""


def in_order(folder: str | Path | None) -> list[tuple[str, Callable[[], Opened]]]:
    """Return the sources in the order in which to try them.

    Args:
        folder: the only source to use; None for the usual ones.

    Returns:
        The name of each source, and a function that opens a folder with its files.
    """
    if folder is not None:
        return [(f"folder {folder}", lambda: contextlib.nullcontext(Path(folder).expanduser()))]
    return [
        ("cache", lambda: contextlib.nullcontext(runtime.cache_folder())),
        ("Debian package", lambda: contextlib.nullcontext(DEBIAN_FOLDER)),
        ("official mirror through torchvision", lambda: _filled_folder(_from_mirror)),
        ("Debian archive through apt", lambda: _filled_folder(_from_archive)),
    ]


@contextlib.contextmanager
def _filled_folder(fetch: Callable[[Path], None]) -> Iterator[Path]:
    """Yield a temporary folder that ``fetch`` has put the files into."""
    with tempfile.TemporaryDirectory(prefix="fmnist-") as scratch:
        fetch(Path(scratch))
        yield Path(scratch)


def _from_mirror(scratch: Path) -> None:
    """Download the .gz files from the mirror that torchvision names, without unpacking them."""
    from torchvision.datasets import FashionMNIST

    urls = {f"{name}.gz": f"{FashionMNIST.mirrors[0]}{name}.gz" for name in PACKED_SHA256}
    first = next(iter(urls.values()))
    if not _answers(first):
        raise AbsentError(f"no answer from {first}")
    try:
        for name, url in urls.items():
            reply = urllib.request.urlopen(url, timeout=_CONNECT_SECONDS)
            with reply, (scratch / name).open("wb") as file:
                shutil.copyfileobj(reply, file)
    except (OSError, http.client.HTTPException) as error:
        raise AbsentError(f"download failed: {error}") from error
    for name, sha256 in PACKED_SHA256.items():
        _check_download(scratch / f"{name}.gz", sha256)


def _check_download(path: Path, sha256: str) -> None:
    """Check a download before it is opened.

    Raises:
        DataError: Its SHA-256 is wrong.
    """
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != sha256:
        raise DataError(f"{path.name} came with SHA-256 {digest[:12]}..., not {sha256[:12]}...")


def _answers(url: str) -> bool:
    """Whether a server answers in time. A thread is needed, as the look-up of its name may hang."""
    answered = threading.Event()

    def ask() -> None:
        with contextlib.suppress(Exception):
            urllib.request.urlopen(url, timeout=_CONNECT_SECONDS).close()
            answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_CONNECT_SECONDS)
    return answered.is_set()


def _from_archive(scratch: Path) -> None:
    """Download and unpack Debian's package. The folders of apt are temporary and need no root."""
    (scratch / "lists" / "partial").mkdir(parents=True)
    apt = [
        "apt-get",
        f"-oDir::State::Lists={scratch}/lists",
        f"-oDir::Cache={scratch}/cache",
        "-oAPT::Sandbox::User=root",  # else apt switches to a user without rights here
        "-oAcquire::Languages=none",
        "-oAcquire::Retries=1",
        f"-oAcquire::http::Timeout={_CONNECT_SECONDS:.0f}",  # https takes the same value
    ]
    _, of_update = _run([*apt, "update"], scratch)  # may fail for one of several repositories
    _, of_download = _run([*apt, "download", "dataset-fashion-mnist"], scratch)
    package = next(scratch.glob("*.deb"), None)
    if package is None:
        reasons = filter(None, (of_download, of_update))
        raise AbsentError("; ".join(reasons) or "apt-get downloaded nothing")
    _check_download(package, PACKAGE_SHA256)
    unpack = ["dpkg-deb", "--fsys-tarfile", package.name]
    unpacked, reason = _run(unpack, scratch, scratch / "files.tar")
    if not unpacked:
        raise DataError(f"cannot unpack {package.name}: {reason}")
    wanted = {f"{name}.gz" for name in PACKED_SHA256}
    with tarfile.open(scratch / "files.tar") as archive:
        for member in archive:
            name = Path(member.name).name
            if name in wanted and (stream := archive.extractfile(member)) is not None:
                (scratch / name).write_bytes(stream.read())


def _run(command: list[str], folder: Path, output: Path = Path(os.devnull)) -> tuple[bool, str]:
    """Run a command in a folder, with its standard output in a file or nowhere.

    Returns:
        Whether it succeeded, and the first line of its stderr, which may be a warning.
    """
    try:
        with output.open("wb") as stdout:
            result = subprocess.run(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=subprocess.PIPE,
                timeout=_APT_SECONDS,
            )
    except FileNotFoundError:
        return False, f"this machine has no {command[0]}"
    except subprocess.TimeoutExpired:
        return False, f"{command[0]} took more than {_APT_SECONDS:g} s"
    reason = result.stderr.decode(errors="replace").strip().partition("\n")[0]
    return result.returncode == 0, reason
