"""Reads pictures in a process of its own, which has limits of time and memory.

``python -m fmnist.inference.reader SECONDS BYTES`` reads orders from standard input and answers on
standard output, a line of JSON for each. It ends when its standard input ends.
"""

from __future__ import annotations

import base64
import contextlib
import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from fmnist.inference import pictures
from fmnist.inference.pictures import Invert, Picture, PictureError
from fmnist.inference.thumbnails import Thumbnail

SECONDS = 10
"""Processor time for a picture. The largest that are read take two seconds on a server."""

MEMORY = 2**30
"""Bytes for a picture."""


class Reader(contextlib.AbstractContextManager["Reader"]):
    """A process that reads pictures, until the end of the block.

    A picture that it does not read within its limits ends the process; the next picture starts
    another one.

    Args:
        seconds: processor time for a picture.
        memory: bytes for a picture.
    """

    def __init__(self, seconds: float = SECONDS, memory: int = MEMORY) -> None:
        self._limits = [str(seconds), str(memory)]
        self._start()

    def read(self, path: Path, invert: Invert = "auto", *, thumbnail: bool = False) -> Picture:
        """Read a picture as :func:`fmnist.inference.pictures.read` does.

        Args:
            path: the file.
            invert: whether to negate the pixels.
            thumbnail: whether to return the picture, too.

        Raises:
            PictureError: The file cannot be read as a picture, or not within the limits; the text
                begins with the path.
            RuntimeError: The process ended with an error of its own.
        """
        if self._process.returncode is not None:
            self._start()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps([str(path), invert, thumbnail]) + "\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            self._process.wait()
            self._end()
            status = self._process.returncode
            if status == -signal.SIGPROF:
                raise PictureError(f"{path}: takes more than {self._limits[0]} s to decode")
            if status < 0:
                raise PictureError(f"{path}: ended the decoder (signal {-status})")
            raise RuntimeError(f"the process that reads pictures ended with status {status}")
        found = json.loads(answer)
        if isinstance(found, str):
            raise PictureError(found)
        views, inverted, cut, box, small = found
        return Picture(
            np.array(views, dtype=np.uint8),
            inverted,
            cut,
            tuple(box) if box else None,
            _unpacked(*small) if small else None,
        )

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, *self._limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # the terminal's Ctrl-C must reach the parent alone
        )

    def _end(self) -> None:
        with contextlib.suppress(BrokenPipeError), self._process:
            self._process.kill()

    def __exit__(self, *_: object) -> None:
        self._end()


def _packed(pixels: Thumbnail) -> tuple[int, str]:
    """Return the width and the bytes of a thumbnail for a line of JSON."""
    return pixels.shape[1], base64.b64encode(pixels.tobytes()).decode("ascii")


def _unpacked(width: int, content: str) -> Thumbnail:
    return np.frombuffer(base64.b64decode(content), dtype=np.uint8).reshape(-1, width, 3)


def main(seconds: float, memory: int) -> None:
    """Answer orders until standard input ends.

    Args:
        seconds: processor time for a picture; then SIGPROF ends the process.
        memory: bytes of address space beyond those of the libraries.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(FileNotFoundError):  # only Linux tells and limits the address space
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
        limits = [soft, hard, pages * resource.getpagesize() + memory]
        known = [limit for limit in limits if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_AS, (min(known), hard))
    Image.MAX_IMAGE_PIXELS = None  # the limits of pictures.py take the place of Pillow's
    for line in sys.stdin:
        path, invert, thumbnail = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            views, *about, small = pictures.read(Path(path), invert, thumbnail=thumbnail)
        except PictureError as error:
            answer: object = str(error)
        else:
            answer = [views.tolist(), *about, None if small is None else _packed(small)]
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
