"""Shared by the figures: style, titles, montages of images, compact PNG files."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fmnist.reports.drawing  # noqa: F401

# isort: split
import numpy as np
import seaborn as sns
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray
from PIL import Image

from fmnist.reports.words import short
from fmnist.rundir.files import replacing

DPI = 110
INK, PALE, ACCENT = "#26323d", "#b9c3cc", "#c8452d"

_STYLE = {
    # Matplotlib ships this font, and not seaborn's first choice.
    "font.family": "DejaVu Sans",
    "figure.facecolor": "white",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#c4ccd3",
    "grid.color": "#e8ecef",
    "hatch.color": "#d5dbe0",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    # A "$" in a study's name is a dollar sign.
    "text.parse_math": False,
}

_LOCK = threading.Lock()  # matplotlib's settings are those of the process


@contextmanager
def sheet(path: Path, size: tuple[float, float], title: str, note: str = "") -> Iterator[Figure]:
    """Yield a figure with a title, and write it to ``path`` when the block succeeds.

    The figure depends on matplotlib's own settings and on ours, not on the user's.

    Args:
        path: the PNG file, written atomically.
        size: width and height in inches.
        title: the title; cut where it is longer than the figure is wide.
        note: a warning under the title.
    """
    settings: Any = ["default", sns.axes_style("whitegrid"), _STYLE]
    with _LOCK, style.context(settings), warnings.catch_warnings():
        # Names may be in a script that the font lacks; boxes are drawn for its letters.
        warnings.filterwarnings("ignore", r"Glyph \d+", UserWarning)
        layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
        figure = Figure(figsize=size, dpi=DPI, layout=layout)
        FigureCanvasAgg(figure)
        width, height = size
        letters = int(width * 11)
        # The empty second line of the title reserves the space of the note.
        heading = short(title, letters) + ("\n" if note else "")
        figure.suptitle(heading, x=0.1 / width, ha="left", weight="bold", size=12)
        if note:
            place = (0.1 / width, 1 - 0.33 / height)
            figure.text(*place, short(note, letters), color=ACCENT, size=9.5, va="top")
        yield figure
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", metadata={"Software": None})
    with Image.open(drawn) as picture, replacing(Path(path)) as scratch:
        # 256 colours suffice for a diagram and make the file a third of the size.
        small = picture.convert("RGB").quantize(
            256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
        )
        small.save(scratch, format="png", optimize=True)


def show(axes: Axes, picture: NDArray[np.float64]) -> None:
    """Draw grey values ``[height, width]``, 0 white and 255 black, without a frame."""
    axes.imshow(picture, cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
    axes.set_axis_off()


def montage(
    images: Any, chosen: NDArray[np.intp], places: int, vertical: bool = False
) -> NDArray[np.float64]:
    """Put images side by side, or on top of each other, with gaps.

    Args:
        images: uint8 ``[N, 1, 28, 28]``, numpy or CPU tensor.
        chosen: the indices of the images to show.
        places: how many images there is space for; unused places stay blank.
        vertical: whether the images are on top of each other.

    Returns:
        Grey values ``[height, width]``.
    """
    pixels = np.asarray(images[chosen])
    height, width = pixels.shape[-2:]
    gap = max(height // 9, 1)
    tiles = np.zeros((places, height + gap, width + gap))
    tiles[: len(chosen), :height, :width] = pixels.reshape(-1, height, width)
    whole = np.vstack([*tiles]) if vertical else np.hstack([*tiles])
    return whole[:-gap, :-gap]
