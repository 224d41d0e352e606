"""Draws two figures into the folder that is the argument; also a script, for a fresh process."""

from __future__ import annotations

import sys
from pathlib import Path

from fake_results import results_of

from fmnist.config.study import StudyConfig
from fmnist.reports import figures, heatmap
from fmnist.reports.comparison import compare

STUDY = StudyConfig(name="views", epochs=2, grid={"learning_rate": (0.01, 0.001)})


def draw(folder):
    """The bytes of the two figures."""
    folder.mkdir(exist_ok=True)
    results = results_of(STUDY)
    drawn = [
        figures.curves(results, STUDY, folder / "curves.png"),
        heatmap.draw(compare(STUDY, results, 5000), STUDY, folder / "heatmap.png"),
    ]
    return [path.read_bytes() for path in drawn]


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
