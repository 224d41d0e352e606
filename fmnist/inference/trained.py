"""Finds the trained models of a run, and predicts with them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fmnist.config import loading
from fmnist.config import study as configs
from fmnist.config.factory import AnyModelConfig, build_model
from fmnist.config.results import label
from fmnist.config.settings import clipped
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
        label: the name of its configuration.
        model: its settings.
        path: the file of its parameters.
    """

    number: int
    label: str
    model: AnyModelConfig
    path: Path


def best_model(run: Path) -> TrainedModel:
    """Read ``best/config.json``, the description of the winner of a run.

    Raises:
        UserError: The folder holds no finished run, or the description is damaged.
    """
    path = run / "best" / "config.json"
    try:
        about = json.loads(_text(path, run, MAX_ABOUT))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not valid JSON ({_line(error)})") from error
    number = about.get("number") if isinstance(about, dict) else None
    if not isinstance(number, int) or isinstance(number, bool):
        raise UserError(f"{path}: does not describe a trial: it has no number")
    point = about.get("point")
    name = label(point) if isinstance(point, dict) else ""
    try:
        model = configs.read_model(about.get("model"))
    except configs.ConfigError as error:
        error.source = str(path)
        raise
    return TrainedModel(number, name, model, models.best_path(run))


def class_names(run: Path) -> tuple[str, ...] | None:
    """Return the names of the classes of a run, each on one line; None if they are not known."""
    try:
        about = json.loads(_text(run / "best" / "config.json", run, MAX_ABOUT))
    except (ValueError, RecursionError, UserError):
        return None
    names = about.get("classes") if isinstance(about, dict) else None
    if isinstance(names, list) and len(names) == CLASS_COUNT:
        return tuple(map(_line, names))
    return None


def complete_models(run: Path) -> list[TrainedModel]:
    """Return the models of the complete trials of a run, by number.

    Raises:
        UserError: The folder holds no finished run, no trial is complete, or results.csv is
            damaged.
    """
    path = run / "results.csv"
    rows = csv.DictReader(io.StringIO(_text(path, run, MAX_TABLE)))
    study = loading.load_study(run / "study.toml")
    trials = []
    try:
        for count, row in enumerate(rows, 1):
            if count > study.size:
                raise UserError(f"there are more trials than the {study.size} of the study")
            if row["state"] == "COMPLETE":
                values = {key: study.settings[key].parse(row[key] or "") for key in study.grid}
                point = {key: study.settings[key].scalar(value) for key, value in values.items()}
                number = int(row["number"])
                model, file = study.trial(point).model, models.model_path(run, number)
                trials.append(TrainedModel(number, label(point), model, file))
    except KeyError as error:
        raise UserError(f"{path}: has no column {error}") from error
    except (ValueError, TypeError, csv.Error, UserError) as error:
        raise UserError(f"{path}, line {rows.line_num}: {_line(error)}") from error
    if not trials:
        raise UserError(f"{path}: no trial is complete")
    return sorted(trials, key=lambda trial: trial.number)


def probabilities(
    trials: Iterable[TrainedModel], images: UInt8[Tensor, "examples 1 28 28"]
) -> Float[Tensor, "examples 10"]:
    """Return the probability of each class, averaged over the models.

    Args:
        trials: the models to average; at least one.
        images: grey values 0-255.

    Returns:
        float64 ``[examples, 10]``.

    Raises:
        UserError: A trial's parameters cannot be read, do not fit its model, or give NaN.
    """
    of_models = []
    for trial in trials:
        params, state = models.load_model(trial.path, trial.model)
        # Compiling the kernels takes half a minute, too long for a few pictures.
        apply = build_model(trial.model, "grouped").apply
        with torch.no_grad():
            logits = [
                apply(params, state, part.float() / 255, train=False)[0]
                for part in images.split(BATCH)
            ]
        of_models.append(torch.cat(logits).double().softmax(dim=1))
        if not of_models[-1].isfinite().all():
            raise UserError(f"{trial.path}: is damaged: it gives no probabilities, but NaN")
    return torch.stack(of_models).mean(dim=0)


def _text(path: Path, run: Path, limit: int) -> str:
    """Read a text file of the run.

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


def _line(text: object) -> str:
    return clipped(str(text), 200)
