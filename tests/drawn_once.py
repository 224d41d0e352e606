"""Figures that are drawn once, or not at all, for tests that look at other things."""

from __future__ import annotations

import functools
import hashlib
import inspect
import io
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fmnist.config.results import TrialResult
from fmnist.reports import figures, heatmap, members
from fmnist.reports.comparison import Comparison
from fmnist.rundir import files

FIGURES = [
    (figures, "samples"),
    (figures, "curves"),
    (heatmap, "draw"),
    (members, "draw"),
    (figures, "confusion"),
    (figures, "confused_pairs"),
    (figures, "mistakes"),
]


class Kept:
    """A mapping from arguments to figures in a folder, for several processes."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.mkdir(exist_ok=True)

    def _path(self, key):
        return self.folder / hashlib.sha256(repr(key).encode()).hexdigest()

    def __contains__(self, key):
        return self._path(key).exists()

    def __getitem__(self, key):
        return self._path(key).read_bytes()

    def __setitem__(self, key, figure):
        part = self._path((key, os.getpid()))
        part.write_bytes(figure)
        part.rename(self._path(key))  # the process may be killed at any time


def content(value):
    """What tells a value from others."""
    if isinstance(value, torch.Tensor | np.ndarray):
        values = np.asarray(value)
        return values.dtype.str, values.shape, values.tobytes()
    if isinstance(value, list) and all(isinstance(result, TrialResult) for result in value):
        return repr([replace(result, seconds=0.0) for result in value])  # no figure shows them
    if isinstance(value, Comparison):
        return value.images, *(content([*standing.trials]) for standing in value.standings)
    return repr(value)


def remembering(draw, drawn):
    """A function that draws to a path; or writes there, as it does, what it drew before.

    The same arguments make the same bytes.
    """
    signature = inspect.signature(draw)

    @functools.wraps(draw)
    def remembered(*args, **kwargs):
        given = signature.bind(*args, **kwargs).arguments
        path = Path(given.pop("path"))
        key = draw.__module__, draw.__name__, *map(content, given.values())
        if key in drawn:
            files.write_bytes(path, drawn[key])
            return path
        found = draw(*args, **kwargs)
        drawn[key] = path.read_bytes()
        return found

    return remembered


def one_pixel(draw):
    """A function that writes a picture of one pixel to the path."""
    content, signature = io.BytesIO(), inspect.signature(draw)
    Image.new("RGB", (1, 1)).save(content, "PNG")

    @functools.wraps(draw)
    def written(*args, **kwargs):
        path = Path(signature.bind(*args, **kwargs).arguments["path"])
        files.write_bytes(path, content.getvalue())
        return path

    return written
