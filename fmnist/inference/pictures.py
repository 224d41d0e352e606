"""Reads an image file as the network's input: 28x28 grey pixels, a light object on dark.

The authors of the data set cut a product photo to its object, scaled the longer edge to 28 pixels,
extended it to a square, negated it and made it grey. The same is done here.

Source: Xiao, Rasul and Vollgraf, Fashion-MNIST (2017), section 2.
"""

from __future__ import annotations

import contextlib
import io
import stat
import warnings
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageChops, ImageOps, ImageStat, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from fmnist.inference import objects, thumbnails, views
from fmnist.inference.objects import Box
from fmnist.inference.thumbnails import Thumbnail
from fmnist.inference.views import IMAGE_SIZE
from fmnist.utils.errors import UserError

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP")
"""Pillow reads many more formats, but each parser is a risk with files of unknown origin."""

MAX_BYTES = 100_000_000
MAX_PIXELS = 64_000_000
"""Decoding them needs less than a gigabyte."""

MAX_JPEG_PIXELS = 4 * MAX_PIXELS
"""More than a camera takes. Above :data:`MAX_PIXELS`, a JPEG is decoded at half its size."""

MAX_SIDE = 65_535
"""The limit of JPEG and GIF; scaling a line of millions of pixels would take gigabytes."""

MAX_READS = 1_000_000
"""Pillow reads each chunk by itself, and a file of millions of tiny chunks would take minutes."""

MAX_SCANS = 45
"""Each scan of a progressive JPEG passes over all pixels; most files have ten."""

_LIGHT = 127  # a pixel above this is light
_LIGHT_SHARE = 0.6  # in no image of the data set are so many pixels of the border light
_EIGHT_BITS = np.rint(np.arange(65536) / 257).astype(np.uint8)

Invert = Literal["yes", "no", "auto"]


class PictureError(UserError):
    """The file is no picture, is too large, or is too damaged to be read."""


Cut = Literal["as it is", "object", "whole"]


class Picture(NamedTuple):
    """The network's input for a picture.

    Attributes:
        views: grey values; a light object on dark, if there is one. An object that was cut out is
            turned by each of :data:`fmnist.inference.views.ANGLES`, and then moved by half a pixel
            to the right and to the left; the first is as it is.
        inverted: whether light and dark were exchanged.
        cut: what the pixels show: a picture of 28x28 pixels as it is, the object of a larger one,
            or the whole of one in which no single object was found.
        box: where in the picture the object is.
        thumbnail: the picture in colour, upright and small, if it was asked for.
    """

    views: UInt8[np.ndarray, "angles moves 28 28"]
    inverted: bool
    cut: Cut
    box: Box | None = None
    thumbnail: Thumbnail | None = None

    @property
    def pixels(self) -> UInt8[np.ndarray, "28 28"]:
        """The first view."""
        return self.views[0, 0]


def read(path: Path, invert: Invert = "auto", *, thumbnail: bool = False) -> Picture:
    """Read a picture of any size, mode and transparency; of several frames, the first.

    A decoder may take long or crash. :mod:`fmnist.inference.reader` calls this in another process.

    A grey picture of 28x28 pixels, light on dark as in the data set, is returned bit for bit.

    Args:
        path: a file in one of :data:`FORMATS`; its name does not matter.
        invert: whether to negate the pixels; ``"auto"`` does so for an object that is darker than
            its ground, or when the border is light.
        thumbnail: whether to return the picture, too.

    Returns:
        The pixels and what was done to get them.

    Raises:
        PictureError: The file cannot be read as a picture; the text begins with the path.
    """
    try:
        grey, small = _decode(_read_bytes(path), thumbnail)
        seen, is_light, cut, box = _fit(grey)
    except PictureError as error:
        raise PictureError(f"{path}: {error}") from error.__cause__
    except MemoryError as error:
        raise PictureError(f"{path}: is too large: it needs too much memory") from error
    inverted = is_light if invert == "auto" else invert == "yes"
    return Picture(255 - seen if inverted else seen, inverted, cut, box, small)


def _read_bytes(path: Path) -> bytes:
    """Read a regular file. Pipes and devices are refused, because they may have no end."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise PictureError("is not a regular file, but a folder, a pipe or a device")
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


def _decode(content: bytes, thumbnail: bool) -> tuple[Image.Image, Thumbnail | None]:
    """Decode the picture: upright, grey (mode L), without transparency; and its thumbnail."""
    fault = "is damaged or cut short"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of damaged metadata
            # This reads the header; load() decodes the pixels.
            with Image.open(_Bytes(content), formats=FORMATS) as image:
                _check_cost(image, content)
                if image.width * image.height > MAX_PIXELS:
                    fault = "is damaged, cut short or too large in its encoding"
                    image.draft(None, (image.width // 2, image.height // 2))
                image.load()
                # Before the grey picture: both need much memory for a short while.
                small = _turn_upright(thumbnails.small(image), image) if thumbnail else None
                grey = _turn_upright(_flatten(*_grey_and_alpha(image)), image)
                return grey, None if small is None else np.asarray(small)
    except (PictureError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(MAX_PIXELS) from error
    except UnidentifiedImageError as error:
        formats = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise PictureError(f"is not a picture that can be read ({formats})") from error
    except Exception as error:  # damaged files make Pillow raise errors of many types
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise PictureError(f"{fault} ({reason})") from error


class _Bytes(io.BytesIO):
    """The bytes of a file, with a limit on the number of reads."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += 1
        if self._reads > MAX_READS:
            raise PictureError("is damaged: it is in too many pieces")
        return super().read(size)


def _check_cost(image: Image.Image, content: bytes) -> None:
    """Check the header before pixels are decoded.

    Raises:
        PictureError: Decoding would take too much time or memory.
    """
    pixels, is_jpeg = image.width * image.height, isinstance(image, JpegImageFile)
    # Pillow holds several copies of a WebP picture while it decodes.
    half = image.format == "WEBP"
    most = MAX_JPEG_PIXELS if is_jpeg else MAX_PIXELS // 2 if half else MAX_PIXELS
    if pixels > most:
        raise _too_large(most)
    if max(image.size) > MAX_SIDE:
        raise PictureError(f"is too long: at most {MAX_SIDE:,} pixels a side are read")
    # Pillow calls a JPEG with an index of further pictures MPO.
    if is_jpeg and content.count(b"\xff\xda") * pixels > MAX_SCANS * MAX_PIXELS:
        raise PictureError("is too large: it has too many scans")


def _too_large(most: int) -> PictureError:
    return PictureError(f"is too large: at most {most:,} pixels are read")


def _grey_and_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Return the luma, and the opacity of a picture with transparency. Grey stays unchanged."""
    if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion clips at 255
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


def _flatten(grey: Image.Image, alpha: Image.Image | None) -> Image.Image:
    """Put a picture with transparency on its most plausible background.

    If most of the border is visible, its median colour is the background. Otherwise the object
    was cut out: a light one gets a black background, a dark one a white one.
    """
    if alpha is None:
        return grey
    opacity = _border(alpha)
    visible = _border(grey)[opacity > _LIGHT]
    opaque = ImageStat.Stat(alpha).mean[0]
    if 2 * len(visible) > len(opacity):
        ground = int(np.median(visible))
    elif opaque == 0:
        ground = 0
    else:
        mean = 255 * ImageStat.Stat(ImageChops.multiply(grey, alpha)).mean[0] / opaque
        ground = 0 if mean > _LIGHT else 255
    return Image.composite(grey, Image.new("L", grey.size, ground), alpha)


def _turn_upright(decoded: Image.Image, image: Image.Image) -> Image.Image:
    """Turn and mirror a picture by the orientation in the file's EXIF data, if it can be read."""
    decoded.info = {}  # exif_transpose writes it again, and may fail if it is damaged
    with contextlib.suppress(Exception):  # damaged metadata is ignored
        orientation = ExifTags.Base.Orientation
        decoded.getexif()[orientation] = image.getexif().get(orientation)
    return ImageOps.exif_transpose(decoded)


def _fit(
    grey: Image.Image,
) -> tuple[UInt8[np.ndarray, "angles moves 28 28"], bool, Cut, Box | None]:
    """Scale the object, or the whole picture, to 28x28 pixels by its longer edge.

    Returns:
        The views, whether their background is light, what they show, and where the object is.
    """
    found = None
    if grey.size != (IMAGE_SIZE, IMAGE_SIZE):
        found = objects.find(grey)
    if found is not None:
        seen = views.of_object(found.values)
        return 255 - seen if found.is_dark else seen, found.is_dark, "object", found.box
    small = grey.resize(
        (min(grey.width, IMAGE_SIZE), min(grey.height, IMAGE_SIZE)), Image.Resampling.BOX
    )
    border = _border(small)
    is_light = bool((border > _LIGHT).mean() > _LIGHT_SHARE)
    if grey.size == (IMAGE_SIZE, IMAGE_SIZE):
        return np.array(grey)[None, None], is_light, "as it is", None
    ground = int(np.median(border[(border > _LIGHT) == is_light]))
    return views.of_whole(grey, ground)[None, None], is_light, "whole", None


def _border(grey: Image.Image) -> UInt8[np.ndarray, " pixels"]:
    """Return the outermost pixels: top, bottom, left, right."""
    a = np.asarray(grey)
    return np.concatenate([a[0], a[-1], a[1:-1, 0], a[1:-1, -1]])
