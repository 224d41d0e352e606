"""What is to be predicted: pictures, those of folders, and images of the test set."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fmnist.inference.judging import Item
from fmnist.rundir import found
from fmnist.utils.errors import UserError

if TYPE_CHECKING:
    from fmnist.inference.pictures import Invert

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".bmp", ".webp")
"""Which files of a folder are pictures; the name of a file that is named does not matter."""


class Failures(list[dict[str, str]]):
    """The inputs that cannot be used, as the JSON document lists them."""

    def add(self, kind: str, what: str, reason: str) -> None:
        """Add a failure and print its line on stderr.

        Args:
            kind: ``"image"`` or ``"test"``.
            what: the argument.
            reason: a line that names the argument and says what is wrong with it.
        """
        print(f"error: {reason}", file=sys.stderr, flush=True)
        self.append({kind: what, "error": reason})


def refuse_runs(paths: Iterable[Path]) -> None:
    """Refuse a run in the place of an image, also a mistyped one.

    Raises:
        UserError: A path is a run, or may be meant as one: it does not exist, and has no ending of
            a picture. Nothing is predicted then, as it would be with another run.
    """
    for path in paths:
        if any(os.path.exists(path / name) for name in ("study.toml", "best/config.json")):  # noqa: PTH110
            raise UserError(f"{path}: is a run and no picture: say --run {shlex.quote(str(path))}")
        if path.suffix.lower() in SUFFIXES or os.path.lexists(path):
            continue
        close = [shlex.quote(str(run)) for run in found.alike(path, found.FINISHED)]
        if close or not path.suffix:
            one = (
                f"did you mean --run {' or '.join(close)}?" if close else "name a run by --run RUN"
            )
            raise UserError(f"{path}: there is no such picture or folder; {one}")


def _files(paths: Iterable[Path], failures: Failures) -> Iterator[Path]:
    """Yield the files, and those of the folders; a folder without pictures is a failure."""
    for path in paths:
        if not os.path.isdir(path):  # noqa: PTH112  # Path.is_dir refuses long names
            yield path
            continue
        try:
            known = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in SUFFIXES)
        except OSError as error:
            failures.add("image", str(path), one_line(f"{path}: cannot be read ({error.strerror})"))
            continue
        # The Mac's Finder leaves hidden files named after pictures.
        visible = [entry for entry in known if not entry.name.startswith(".")]
        yield from visible
        if not visible:
            failures.add("image", str(path), one_line(f"{path}: is a folder without pictures"))


def pictures(
    paths: Sequence[Path], invert: Invert, failures: Failures, shown: int
) -> Iterable[Item]:
    """Read the pictures, and of the first ones also the originals, so many as are shown.

    One that cannot be read is added to the failures.
    """
    import torch

    from fmnist.inference.reader import Reader

    with Reader() if paths else contextlib.nullcontext() as reader:
        for path in _files(paths, failures):
            assert reader is not None
            try:
                picture = reader.read(path, invert, thumbnail=shown > 0)
            except UserError as error:
                failures.add("image", str(path), one_line(str(error)))
            else:
                about = {"image": str(path), "inverted": picture.inverted, "cut": picture.cut}
                views, name = torch.from_numpy(picture.views), one_line(str(path))
                yield Item(name, about, views, picture.thumbnail, picture.box)
                shown -= 1


def images_of_test_set(
    words: Sequence[str], folder: Path | None, failures: Failures
) -> Iterable[Item]:
    """Find these images of the test set; a word that is no valid number is a failure."""
    from fmnist.data import fashion_mnist

    if not words:
        return
    try:
        test = fashion_mnist.load(folder).test
    except UserError as error:
        failures.add("test", ",".join(words), str(error))
        return
    for word in words:
        number = int(word) if word.isascii() and word.isdigit() and len(word) < 10 else -1
        if 0 <= number < len(test.labels):
            about = {"test": number, "label": int(test.labels[number])}
            pixels = test.images[number, 0]
            yield Item(f"test image {number}", about, pixels[None, None], pixels.numpy())
        else:
            reason = f"must be a whole number from 0 to {len(test.labels) - 1}"
            failures.add("test", word, f"--test {one_line(repr(word))}: {reason}")


def one_line(text: str) -> str:
    """The text on one line, without control characters, cut to 500."""
    from fmnist.config.errors import clipped

    return clipped(text, 500)
