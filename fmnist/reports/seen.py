"""Draws what the network saw of pictures, beside the pictures."""

from __future__ import annotations

import functools
import importlib.util
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from fmnist.rundir.files import write_bytes
from fmnist.utils.errors import UserError, printable

MOST = 48
"""Pictures on a sheet, at most."""

_PIXELS = 28
_FEW, _LARGE, _SMALL = 4, 10 * _PIXELS, 6 * _PIXELS  # the side of a picture if there are few, else
_MARGIN, _GAP, _LINE = 24, 10, 20
_INK, _MUTED, _SLOT, _ACCENT = "#26323d", "#6b7780", "#e8ecef", "#c8452d"
_MARK = "fmnist.predict --show"
_LEGEND = "Left: the picture, with a frame around what was cut out. Right: what the network saw."


class Seen(NamedTuple):
    """A picture and what became of it.

    Attributes:
        name: any text; a long one is cut at its beginning.
        picture: the original, not larger than a thumbnail: grey or RGB.
        box: what was cut out: left, top, right, bottom as shares of width and height.
        pixels: what the network saw.
        answer: any text.
        remark: any text; may be empty.
        is_doubtful: whether the remark is a warning.
    """

    name: str
    picture: UInt8[np.ndarray, "height width"] | UInt8[np.ndarray, "height width 3"]
    box: tuple[float, float, float, float] | None
    pixels: UInt8[np.ndarray, "28 28"]
    answer: str
    remark: str
    is_doubtful: bool


def check(path: Path) -> None:
    """Check that a sheet may be written there.

    Raises:
        UserError: The name does not end in ``.png``, or there is something that is no sheet of
            ours, such as a photograph that was meant to be looked at.
    """
    if path.suffix.lower() != ".png":
        raise UserError(f"--show {path}: is written as a PNG, so the name must end in .png")
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"--show {path}: is a folder or a device")
        if path.is_file():
            with path.open("rb") as file:
                if _MARK.encode() not in file.read(200):
                    raise UserError(
                        f"--show {path}: is there, and was not made by --show; name another file"
                    )
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise _unwritable(path, error) from error


def left_out(shown: int, count: int) -> str:
    """Say that so many of so many pictures are on a sheet."""
    return f"the first {shown} of {count:,} pictures; {count - shown:,} are left out"


def write_seen(path: Path, title: str, seen: Sequence[Seen], count: int) -> None:
    """Write a sheet with a cell for each picture.

    Args:
        path: the PNG file, written atomically.
        title: any text; cut where it is longer than the sheet is wide.
        seen: from one picture to :data:`MOST`.
        count: how many pictures there are in all; the sheet says how many are left out.

    Raises:
        UserError: The file cannot be written.
    """
    side = _LARGE if len(seen) <= _FEW else _SMALL
    cells = [_cell(one, side) for one in seen]
    columns = min(4, math.ceil(math.sqrt(len(cells))))
    wide, high = cells[0].width + _MARGIN, cells[0].height + _MARGIN
    lines = [(title, _font(15, bold=True), _INK), (_LEGEND, _font(12), _MUTED)]
    if count > len(seen):
        lines.append((left_out(len(seen), count), _font(12), _ACCENT))
    head = _MARGIN + len(lines) * (_LINE + 2) + _MARGIN // 2
    size = (_MARGIN + columns * wide, head + math.ceil(len(cells) / columns) * high)
    sheet = Image.new("RGB", size, "white")
    for row, (text, font, colour) in enumerate(lines):
        _write(sheet, (_MARGIN, _MARGIN + row * (_LINE + 2)), text, font, colour, size[0] - _MARGIN)
    for index, cell in enumerate(cells):
        row, column = divmod(index, columns)
        sheet.paste(cell, (_MARGIN + column * wide, head + row * high))
    about = PngImagePlugin.PngInfo()
    about.add_text("Software", _MARK)
    file = io.BytesIO()
    sheet.save(file, "PNG", pnginfo=about)
    try:
        write_bytes(path, file.getvalue())
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or error
    return UserError(f"--show {path}: cannot be written ({reason})")


def _cell(seen: Seen, side: int) -> Image.Image:
    """Draw a picture, what the network saw of it, its name and the answer."""
    width = 2 * side + _GAP
    cell = Image.new("RGB", (width, side + 3 * _LINE + 6), "white")
    _write(cell, (0, 0), seen.name, _font(12), _MUTED, width, is_path=True)
    cell.paste(_original(seen, side), (0, _LINE))
    pixels = Image.fromarray(seen.pixels).resize((side, side), Image.Resampling.NEAREST)
    cell.paste(pixels, (side + _GAP, _LINE))
    below = _LINE + side + 4
    _write(cell, (0, below), seen.answer, _font(14, bold=True), _INK, width)
    colour = _ACCENT if seen.is_doubtful else _MUTED
    _write(cell, (0, below + _LINE), seen.remark, _font(12), colour, width)
    return cell


def _original(seen: Seen, side: int) -> Image.Image:
    """Draw the original in the middle of a square, with its frame."""
    picture = Image.fromarray(seen.picture).convert("RGB")
    times = side // max(picture.size)
    if times > 1:
        size = (picture.width * times, picture.height * times)
        picture = picture.resize(size, Image.Resampling.NEAREST)
    picture.thumbnail((side, side))
    square = Image.new("RGB", (side, side), _SLOT)
    x, y = (side - picture.width) // 2, (side - picture.height) // 2
    square.paste(picture, (x, y))
    if seen.box is not None:
        left, top, right, bottom = seen.box
        frame = (
            x + left * picture.width - 1, y + top * picture.height - 1,
            x + right * picture.width, y + bottom * picture.height,
        )  # fmt: skip
        draw = ImageDraw.Draw(square)
        for colour, grown in (("white", 2), (_ACCENT, 1)):  # it is seen on any ground
            outer = (edge + sign * grown for edge, sign in zip(frame, (-1, -1, 1, 1), strict=True))
            inside = [min(max(round(edge), 0), side - 1) for edge in outer]
            draw.rectangle(inside, outline=colour, width=2)
    return square


@functools.cache
def _font(size: int, bold: bool = False) -> Any:
    """Load the font that matplotlib ships; Pillow's own has few letters."""
    found = importlib.util.find_spec("matplotlib")
    folder = Path(found.origin if found and found.origin else "").parent / "mpl-data/fonts/ttf"
    name = f"DejaVuSans{'-Bold' if bold else ''}.ttf"
    try:
        return ImageFont.truetype(str(folder / name), size, layout_engine=ImageFont.Layout.BASIC)
    except OSError:  # some distributions keep the fonts elsewhere
        return ImageFont.load_default(size)


def _write(
    image: Image.Image,
    place: tuple[int, int],
    text: str,
    font: Any,
    colour: str,
    right: int,
    is_path: bool = False,
) -> None:
    """Write a text on one line, cut to end at ``right``; of a path, the end stays."""
    room, text = right - place[0], printable(text)
    if font.getlength(text) > room:
        letters = range(min(len(text), 300), 0, -1)
        shorter = (f"…{text[-n:]}" if is_path else f"{text[:n].rstrip()}…" for n in letters)
        text = next(line for line in shorter if font.getlength(line) <= room)
    ImageDraw.Draw(image).text(place, text, fill=colour, font=font)
