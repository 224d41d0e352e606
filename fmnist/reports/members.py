"""The figure of an ensemble: what each further member brings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import fmnist.reports.drawing  # noqa: F401

# isort: split
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fmnist.reports.canvas import ACCENT, INK, PALE, sheet
from fmnist.reports.comparison import wilson
from fmnist.utils.errors import UserError

PANELS = {
    "accuracy": "Accuracy",
    "loss": "Negative log-likelihood (nats)",
    "calibration_error": "Calibration error",
}


class Series(NamedTuple):
    """The measures of one member, of the mean of two, and so on, on some images.

    Attributes:
        accuracy: share of images that are classified rightly.
        loss: mean negative log-likelihood, in nats.
        calibration_error: expected calibration error.
    """

    accuracy: Sequence[float]
    loss: Sequence[float]
    calibration_error: Sequence[float]


def series(test: Sequence[Any], validation: Sequence[Any]) -> dict[str, Series]:
    """Return the measures by split, of those that were measured; ``"test"`` is first."""
    splits = {"test": test, "validation": validation}
    return {name: Series(*zip(*own, strict=True)) for name, own in splits.items() if own}


def check(path: Path) -> None:
    """Check that the figure may be written there.

    Raises:
        UserError: The name does not end in ``.png``, or there is a folder.
    """
    if path.suffix.lower() != ".png":
        raise UserError(f"--plot {path}: is written as a PNG, so the name must end in .png")
    if path.exists() and not path.is_file():
        raise UserError(f"--plot {path}: is a folder or a device")


def draw(
    series: Mapping[str, Series], singles: Sequence[float], images: int, title: str, path: Path
) -> Path:
    """Draw accuracy, loss and calibration error against the number of members.

    Args:
        series: the measures by split, ``"test"`` or ``"validation"`` or both.
        singles: the accuracy of each member on the first split.
        images: number of its images, for the 95 % interval of accuracies.
        title: the title.
        path: the PNG file to write.

    Returns:
        The path of the file.
    """
    first = next(iter(series))
    styles: dict[str, dict[str, Any]] = {
        "test": {"color": ACCENT, "lw": 1.8, "marker": "o", "ms": 4},
        "validation": {"color": INK, "lw": 1.2, "ls": (0, (4, 2)), "marker": "o", "ms": 3},
    }
    with sheet(path, (11, 4.2), title) as figure:
        for axes, (field, name) in zip(figure.subplots(1, 3), PANELS.items(), strict=True):
            for split, own in series.items():
                values = np.array(getattr(own, field))
                counts = np.arange(1, len(values) + 1)
                if split == first and field == "accuracy":
                    low, high = np.array([wilson(value, images) for value in values]).T
                    color = styles[split]["color"]
                    axes.fill_between(counts, low, high, color=color, alpha=0.12, lw=0)
                    axes.plot([1] * len(singles), singles, "_", color=PALE, ms=14, zorder=1)
                axes.plot(counts, values, **styles[split])
            axes.set(title=name, xlabel="members")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.ticklabel_format(axis="y", useOffset=False)
        keys = [Line2D([], [], label=split, **styles[split]) for split in series]
        alone = f"each member, {first}"
        keys.append(Line2D([], [], color=PALE, marker="_", ls="", ms=14, label=alone))
        figure.legend(handles=keys, loc="outside lower center", ncols=3, frameon=False)
    return path
