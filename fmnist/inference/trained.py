"""Finds the trained models of a run, and predicts with them."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fmnist.config import loading
from fmnist.config import study as configs
from fmnist.config.errors import ConfigError, clipped, shown
from fmnist.config.factory import AnyModelConfig, build_model, looks_and_logits
from fmnist.config.results import EpochMetrics, Point, configuration, label
from fmnist.config.study import StudyConfig
from fmnist.functional import outliers
from fmnist.functional.cnn import CLASS_COUNT
from fmnist.rundir import found, models
from fmnist.utils.errors import UserError

BATCH = 1000
MAX_ABOUT, MAX_TABLE = 1_000_000, 64_000_000
"""Bytes of config.json and of results.csv, at most; the largest study needs fewer."""


class TrainedModel(NamedTuple):
    """A trained model of a run.

    Attributes:
        number: the trial's number.
        point: the values of the grid's axes; empty when they are not known.
        model: its settings.
        path: the file of its parameters.
        prefix: of the names of its tensors in this file.
        weight: how often it counts in a mean.
    """

    number: int
    point: Point
    model: AnyModelConfig
    path: Path
    prefix: str = ""
    weight: int = 1

    @property
    def label(self) -> str:
        """The name of its configuration."""
        return label(self.point)


def best_model(run: Path) -> TrainedModel:
    """Read ``best/config.json``, the description of the winner of a run.

    Raises:
        UserError: The folder holds no finished run, or the description is damaged.
    """
    path = run / "best" / "config.json"
    try:
        about = json.loads(read_text(path, run, MAX_ABOUT))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not valid JSON ({one_line(error)})") from error
    number = about.get("number") if isinstance(about, dict) else None
    if not isinstance(number, int) or isinstance(number, bool):
        raise UserError(f"{path}: does not describe a trial: it has no number")
    point = about.get("point")
    point = point if isinstance(point, dict) else {}
    try:
        model = configs.read_model(about.get("model"))
    except ConfigError as error:
        error.source = str(path)
        raise
    return TrainedModel(number, point, model, models.best_path(run))


def class_names(run: Path) -> tuple[str, ...] | None:
    """Return the names of the classes of a run, each on one line; None if they are not known."""
    try:
        about = json.loads(read_text(run / "best" / "config.json", run, MAX_ABOUT))
    except (ValueError, RecursionError, UserError):
        return None
    names = about.get("classes") if isinstance(about, dict) else None
    if isinstance(names, list) and len(names) == CLASS_COUNT:
        return tuple(map(one_line, names))
    return None


class Line(NamedTuple):
    """A line of ``results.csv``.

    Attributes:
        point: the trial's point of the grid.
        cells: column -> value. The number and the epochs are integers; metrics and seconds are
            floats, NaN where the cell is empty; the axes have the types of their settings; all
            others are texts.
    """

    point: Point
    cells: dict[str, Any]


def read_results(run: Path) -> tuple[StudyConfig, list[Line]]:
    """Read the study and the results of a run of fmnist.study or fmnist.reference.

    Returns:
        The study, and a line for each of its trials, by number.

    Raises:
        UserError: The folder holds no finished run, or a file is damaged.
    """
    path = run / "results.csv"
    lines = csv.DictReader(io.StringIO(read_text(path, run, MAX_TABLE)))
    reference = run / "reference.toml"
    study = loading.load_study(reference if reference.is_file() else run / "study.toml")
    found = []
    try:
        for count, line in enumerate(lines, 1):
            if count > study.size:
                raise UserError(f"there are more trials than the {study.size} of the study")
            if None in line:
                raise UserError("there are more cells than columns")
            found.append(_line_of(study, {key: text or "" for key, text in line.items()}))
    except KeyError as error:
        raise UserError(f"{path}: has no column {error}") from error
    except (ValueError, TypeError, csv.Error, UserError) as error:
        raise UserError(f"{path}, line {lines.line_num}: {one_line(error)}") from error
    return study, sorted(found, key=lambda line: line.cells["number"])


def _line_of(study: StudyConfig, cells: dict[str, Any]) -> Line:
    point = {}
    for key, axis in study.grid.items():
        setting = study.settings[key]
        cells[key] = setting.read(setting.parse(cells[key]))
        point[key] = setting.scalar(cells[key])
        if point[key] not in axis:
            raise UserError(f"{key} = {shown(point[key])} is not in the grid of the study")
    for key, kind in _KINDS.items():
        if key in cells or key in ("number", "state"):
            cells[key] = kind(cells[key])
    return Line(point, cells)


def _float(text: str) -> float:
    return float(text) if text else math.nan


_FLOATS = (*EpochMetrics._fields, "test_loss", "test_accuracy", "seconds")
_KINDS: Mapping[str, Callable[[str], Any]] = {
    "number": int,
    "state": str,
    "epochs": int,
    **dict.fromkeys(_FLOATS, _float),
}


def complete_models(run: Path) -> list[TrainedModel]:
    """Return the models of the complete trials of a run, by number.

    Raises:
        UserError: The folder holds no finished run, no trial is complete, or results.csv is
            damaged.
    """
    study, lines = read_results(run)
    trials = []
    for point, cells in lines:
        if cells["state"] == "COMPLETE":
            number, model = cells["number"], study.trial(point).model
            trials.append(TrainedModel(number, point, model, models.model_path(run, number)))
    if not trials:
        raise UserError(f"{run / 'results.csv'}: no trial is complete")
    return trials


def has_seeds(run: Path) -> bool:
    """Return whether the complete trials of a run have different seeds."""
    return len({trial.point.get("seed") for trial in complete_models(run)}) > 1


def ensemble(run: Path) -> list[TrainedModel]:
    """Return the models to average: the winner's seeds when the seed is an axis, else all.

    Raises:
        UserError: The folder holds no finished run, or one that is damaged.
    """
    trials = complete_models(run)
    if len({trial.point.get("seed") for trial in trials}) < 2:
        return trials
    best = best_model(run).number
    winner = next((trial for trial in trials if trial.number == best), None)
    if winner is None:
        raise UserError(f"{run / 'results.csv'}: has no complete trial {best}, the winner")
    chosen = configuration(winner.point)
    return [trial for trial in trials if configuration(trial.point) == chosen]


def probabilities(
    trials: Iterable[TrainedModel],
    images: UInt8[Tensor, "examples 1 28 28"] | Float[Tensor, "examples 1 28 28"],
) -> Float[Tensor, "examples 10"]:
    """Return the probability of each class, averaged over the models.

    Args:
        trials: the models to average by their weights; at least one.
        images: grey values, integers from 0 to 255 or floats from 0 to 1.

    Returns:
        float64 ``[examples, 10]``.

    Raises:
        UserError: A trial's parameters cannot be read, do not fit its model, or give NaN.
    """
    of_models, weights = [], []
    for trial in trials:
        weights.append(float(trial.weight))
        params, state = models.load_model(trial.path, trial.model, trial.prefix)
        # Compiling the kernels takes 20 seconds, too long for a few pictures.
        apply = build_model(trial.model, "grouped").apply
        with torch.no_grad():
            logits = [
                apply(params, state, _scaled(part), train=False)[0] for part in images.split(BATCH)
            ]
        of_models.append(torch.cat(logits).double().softmax(dim=1))
        if not of_models[-1].isfinite().all():
            raise UserError(f"{trial.path}: is damaged: it gives no probabilities, but NaN")
    if len(set(weights)) == 1:
        return torch.stack(of_models).mean(dim=0)
    shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    return (torch.stack(of_models) * shares[:, None, None]).sum(dim=0)


class Familiarity(NamedTuple):
    """How near images are to what a winner was trained on.

    Attributes:
        shares: see :func:`fmnist.functional.outliers.shares`.
        remoteness: see :func:`fmnist.functional.outliers.remoteness`.
    """

    shares: Float[Tensor, " examples"]
    remoteness: Float[Tensor, " examples"]


def familiarity(
    run: Path, images: UInt8[Tensor, "examples 1 28 28"] | Float[Tensor, "examples 1 28 28"]
) -> Familiarity | None:
    """Compare images with what the winner was trained on.

    Args:
        run: the folder of the run.
        images: as in :func:`probabilities`.

    Returns:
        None for a run of an earlier version, which does not tell.

    Raises:
        UserError: A file of the winner is damaged.
    """
    model = best_model(run)
    params, state = models.load_model(model.path, model.model)
    known = models.load_features(models.features_path(run), model.model)
    if known is None:
        return None
    with torch.no_grad():
        looks = [
            looks_and_logits(model.model, params, state, _scaled(part), "grouped")[0]
            for part in images.split(BATCH)
        ]
    distances = torch.cat([outliers.distances(known.prototypes, part) for part in looks], dim=1)
    return Familiarity(outliers.shares(known, distances), outliers.remoteness(known, distances))


def _scaled(images: Tensor) -> Tensor:
    return images if images.is_floating_point() else images.float() / 255


def read_text(path: Path, run: Path, limit: int) -> str:
    """Read a text file of a run.

    Args:
        path: the file.
        run: the folder of the run.
        limit: how many bytes it may have.

    Raises:
        UserError: The file is missing, has more than ``limit`` bytes, is not UTF-8, or cannot
            be read.
    """
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise UserError(f"{path}: is too large: at most {limit:,} bytes are read")
        return content.decode("utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"{run}: holds no finished run ({path.relative_to(run)} is missing); "
            f"{found.hint(run, found.FINISHED)}"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason})") from error


def one_line(text: object) -> str:
    """Return a text on one line, cut to 200 characters."""
    return clipped(str(text), 200)
