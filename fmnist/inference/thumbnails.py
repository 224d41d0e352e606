"""Makes a picture small enough to be looked at beside others."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8
from PIL import Image

SIDE = 280
"""Pixels of the longer side, at most."""

Thumbnail = UInt8[np.ndarray, "height width 3"]


def small(image: Image.Image) -> Image.Image:
    """Return a small copy in colour, on white where the picture is transparent.

    Args:
        image: a decoded picture of any mode and size; a small one keeps its pixels.

    Returns:
        A picture of mode RGB.
    """
    if image.mode.startswith("I"):  # 16 bits
        step = max(1, max(image.size) // (2 * SIDE))
        deep = np.asarray(image)[::step, ::step].clip(0, 65535)
        image = Image.fromarray((deep >> 8).astype(np.uint8))
    copy = image.convert("RGBA" if image.has_transparency_data else "RGB")
    copy.thumbnail((SIDE, SIDE))
    if copy.mode == "RGB":
        return copy
    return Image.alpha_composite(Image.new("RGBA", copy.size, "white"), copy).convert("RGB")
