"""From an image file to what the network sees: 28x28 grey pixels, a light object on dark.

The data set was made of product photos in this way: cut to the object, scaled so that the longer
edge has 28 pixels, extended to a square, negated, made grey. The same is done here.

Source: Xiao, Rasul and Vollgraf, Fashion-MNIST (2017), section 2.
"""

from __future__ import annotations

import io
import stat
import warnings
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageChops, ImageOps, ImageStat, UnidentifiedImageError

from fmnist.utils.errors import UserError

IMAGE_SIZE = 28
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP")
"""Pillow knows many more; each is a parser of its own to trust with a stranger's file."""

MAX_BYTES = 100_000_000
MAX_PIXELS = 64_000_000
"""More than a telephone's camera has, and less than a gigabyte of memory while it is read."""

MAX_SIDE = 65_535
"""That of JPEG and GIF; scaling a thread of millions of pixels would take gigabytes."""

MAX_READS = 1_000_000
"""A file of millions of tiny pieces, each of which Pillow reads by itself, would take minutes."""

MAX_SCANS = 30
"""Each scan of a progressive JPEG passes over all pixels; the usual are ten."""

_LIGHT = 127  # a pixel above this is light
_LIGHT_SHARE = 0.6  # in no image of the data set are so many pixels of the border light
_TOLERANCE = 13  # so near to the background, a pixel belongs to it: 5 %, as the data set's makers
_EIGHT_BITS = np.rint(np.arange(65536) / 257).astype(np.uint8)

Invert = Literal["yes", "no", "auto"]


class PictureError(UserError):
    """A file that is no picture, or too large or too damaged to be read; one line."""


class Picture(NamedTuple):
    """What the network sees of a picture, and whether it was inverted for that."""

    pixels: UInt8[np.ndarray, "28 28"]
    inverted: bool


def read(path: Path, invert: Invert = "auto") -> Picture:
    """Read a picture of any size, mode and transparency; of several frames, the first.

    A grey picture of 28x28 light on dark, as those of the data set, comes through bit for bit.

    Args:
        path: a file in one of :data:`FORMATS`, whatever its name.
        invert: ``"auto"`` inverts what has a light border.

    Raises:
        PictureError: when it cannot be read; its text begins with the path.
    """
    try:
        grey = _decoded(_content(path))
    except PictureError as error:
        raise PictureError(f"{path}: {error}") from error.__cause__
    fitted, is_light = _fitted(grey)
    inverted = is_light if invert == "auto" else invert == "yes"
    pixels = np.array(fitted, dtype=np.uint8)
    return Picture(255 - pixels if inverted else pixels, inverted)


def _content(path: Path) -> bytes:
    """The bytes of a regular file: a pipe could keep us waiting, a device never end."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise PictureError("is a folder, not a picture")
        if not stat.S_ISREG(mode):
            raise PictureError("is not a regular file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise PictureError(f"cannot be read ({reason})") from error
    if not content:
        raise PictureError("is empty")
    if len(content) > MAX_BYTES:
        raise PictureError(f"is too large: at most {MAX_BYTES:,} bytes are read")
    return content


def _decoded(content: bytes) -> Image.Image:
    """The picture upright, grey (mode L) and without transparency."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's about metadata that is damaged
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # Pillow reads the header here; pixels are decoded in load().
            with Image.open(_Bytes(content), formats=FORMATS) as image:
                _check_cost(image, content)
                image.load()
                grey = _on_ground(*_grey_and_alpha(image))
                return _upright(grey, _orientation(image))
    except PictureError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(MAX_PIXELS) from error
    except UnidentifiedImageError as error:
        formats = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise PictureError(f"is not a picture that can be read ({formats})") from error
    except Exception as error:  # what Pillow raises for damaged files is no closed list
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise PictureError(f"is damaged or cut short ({reason})") from error


class _Bytes(io.BytesIO):
    """The bytes of a file, to be read in a limited number of pieces."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += 1
        if self._reads > MAX_READS:
            raise PictureError("is damaged: it is in too many pieces")
        return super().read(size)


def _check_cost(image: Image.Image, content: bytes) -> None:
    """Refuse, before they are decoded, pixels that would take too much time or memory."""
    pixels = image.width * image.height
    # Of WebP, Pillow holds several copies while it decodes.
    most = MAX_PIXELS // 2 if image.format == "WEBP" else MAX_PIXELS
    if pixels > most:
        raise _too_large(most)
    if max(image.size) > MAX_SIDE:
        raise PictureError(f"is too long: at most {MAX_SIDE:,} pixels a side are read")
    if image.format == "JPEG" and content.count(b"\xff\xda") * pixels > MAX_SCANS * MAX_PIXELS:
        raise PictureError("is too large: it has too many scans")


def _too_large(most: int) -> PictureError:
    return PictureError(f"is too large: at most {most:,} pixels are read")


def _grey_and_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Its luma, and its opacity where it may have less than all; grey stays what it is."""
    if image.mode.startswith("I"):  # 16 bits, which Pillow's own conversion cuts off at 255
        deep = np.asarray(image).clip(0, 65535)
        grey = Image.fromarray(_EIGHT_BITS[deep])
        clear = image.info.get("transparency")
        if clear is None:
            return grey, None
        return grey, Image.fromarray((deep != clear).astype(np.uint8) * np.uint8(255))
    if image.has_transparency_data:
        grey, alpha = image.convert("RGBA").convert("LA").split()
        return grey, alpha
    return image.convert("RGB").convert("L"), None


def _on_ground(grey: Image.Image, alpha: Image.Image | None) -> Image.Image:
    """A picture with transparency on the ground that it was most plausibly made for.

    Where most of the border can be seen, that goes on behind the picture. Else the object was
    cut out: a light one shows on black, a dark one on white.
    """
    if alpha is None:
        return grey
    opacity = _border(alpha)
    visible = _border(grey)[opacity > _LIGHT]
    seen = ImageStat.Stat(alpha).mean[0]
    if 2 * len(visible) > len(opacity):
        ground = int(np.median(visible))
    elif seen == 0:
        ground = 0
    else:
        mean = 255 * ImageStat.Stat(ImageChops.multiply(grey, alpha)).mean[0] / seen
        ground = 0 if mean > _LIGHT else 255
    composed = Image.new("L", grey.size, ground)
    composed.paste(grey, mask=alpha)
    return composed


def _orientation(image: Image.Image) -> int:
    """How the camera was held, by EXIF; 1, upright, when that cannot be read."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged metadata is no reason to refuse a picture
        return 1
    return value if isinstance(value, int) else 1


def _upright(grey: Image.Image, orientation: int) -> Image.Image:
    """The picture turned and mirrored as EXIF says."""
    grey.info = {}  # other metadata, perhaps damaged, would be written anew by exif_transpose
    grey.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(grey)


def _fitted(grey: Image.Image) -> tuple[Image.Image, bool]:
    """The picture as 28x28, its longer edge filled with the object; and is its ground light?

    One that is 28x28 stays as it is.
    """
    few = grey.resize(
        (min(grey.width, IMAGE_SIZE), min(grey.height, IMAGE_SIZE)), Image.Resampling.BOX
    )
    border = _border(few)
    is_light = bool((border > _LIGHT).mean() > _LIGHT_SHARE)
    if grey.size == (IMAGE_SIZE, IMAGE_SIZE):
        return grey, is_light
    ground = int(np.median(border[(border > _LIGHT) == is_light]))
    near = [abs(value - ground) <= _TOLERANCE for value in range(256)]
    if all(near[value] for value in np.asarray(few)[[0, 0, -1, -1], [0, -1, 0, -1]]):
        grey = grey.crop(grey.point([0 if here else 255 for here in near]).getbbox())
    scale = IMAGE_SIZE / max(grey.size)
    width, height = (max(1, round(length * scale)) for length in grey.size)
    object_ = grey.resize((width, height), Image.Resampling.LANCZOS)
    fitted = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE), ground)
    # In the middle; of an odd margin, the data set has the larger half on the left and on top.
    fitted.paste(object_, ((IMAGE_SIZE - width + 1) // 2, (IMAGE_SIZE - height + 1) // 2))
    return fitted, is_light


def _border(grey: Image.Image) -> UInt8[np.ndarray, " pixels"]:
    """The outermost pixels, each side in turn."""
    a = np.asarray(grey)
    return np.concatenate([a[0], a[-1], a[1:-1, 0], a[1:-1, -1]])
