"""A finished run as an object: its tables, its winner, and its models as functions."""

from __future__ import annotations

import functools
import io
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from numpy.typing import ArrayLike
from torch import Tensor

from fmnist.config.errors import clipped
from fmnist.config.factory import build_model
from fmnist.config.results import EpochMetrics, TrialResult, label, ranked, winner
from fmnist.config.study import StudyConfig
from fmnist.data import given
from fmnist.data.fashion_mnist import CLASS_NAMES
from fmnist.functional.types import Model, Params, State
from fmnist.inference import card, export, trained
from fmnist.inference.trained import Line, TrainedModel
from fmnist.reference import as_module
from fmnist.rundir import models
from fmnist.utils.errors import UserError
from fmnist.utils.isolation import torch_defaults

METRICS = (*EpochMetrics._fields, "test_loss", "test_accuracy")
MAX_HISTORY = 1_000_000_000
"""Bytes of history.csv, at most."""


class Winner(NamedTuple):
    """The winner of a run.

    Attributes:
        number: the trial's number.
        configuration: the values of the grid's axes, by name.
        metrics: its metrics, by the names of the columns of ``results``.
    """

    number: int
    configuration: Mapping[str, Any]
    metrics: Mapping[str, float]


def load_run(path: str | Path) -> Run:
    """Load a finished run.

    Args:
        path: the folder that :func:`fmnist.run_study`, ``python -m fmnist.study`` or
            ``python -m fmnist.reference`` wrote.

    Raises:
        UserError: The folder holds no finished run, or ``results.csv`` or the file of the study is
            damaged. Other files are read when they are first used.
    """
    folder = Path(path).expanduser().absolute()  # the program may change its folder
    return Run(folder, *trained.read_results(folder))


class Run:
    """A finished run; :func:`load_run` makes one. A notebook shows its best trials as a table.

    Attributes:
        path: the folder of the run.
        config: the study.
    """

    def __init__(self, path: Path, config: StudyConfig, lines: Sequence[Line]) -> None:
        self.path, self.config, self._lines = path, config, lines

    @functools.cached_property
    def results(self) -> pd.DataFrame:
        """The table ``results.csv``: a row for each trial, by number.

        The values are exactly those of the file. An axis of widths, such as ``hidden``, has tuples.
        """
        return pd.DataFrame([line.cells for line in self._lines])

    @functools.cached_property
    def history(self) -> pd.DataFrame:
        """The table ``history.csv``: a row for each epoch of each trial.

        Raises:
            UserError: The file is missing or damaged.
        """
        path = self.path / "history.csv"
        text = trained.read_text(path, self.path, MAX_HISTORY)
        kinds = {"number": "int64", "epoch": "int64"} | dict.fromkeys(EpochMetrics._fields, "float")
        try:
            # Texts become exactly the numbers that were written; the parser of pandas may round.
            table = pd.read_csv(
                io.StringIO(text), usecols=list(kinds), dtype=str, keep_default_na=False
            )
            return table.replace("", "nan").astype(kinds)
        except ValueError as error:  # also those of pandas
            raise UserError(f"{path}: is damaged ({clipped(str(error), 200)})") from error

    @functools.cached_property
    def winner(self) -> Winner | None:
        """The winner, whose model is in ``best/``; None if no trial is complete.

        Raises:
            UserError: ``best/config.json`` is damaged, or names a trial that is not there.
        """
        if (self.path / "best" / "config.json").exists():
            number = trained.best_model(self.path).number
        else:
            found = winner(map(_result, self._lines), self.config.metric)
            if found is None:
                return None
            number = found.number
        cells = self._line(number).cells
        metrics = {name: cells[name] for name in METRICS if name in cells}
        return Winner(number, {key: cells[key] for key in self.config.grid}, metrics)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the columns of :meth:`predict`."""
        return trained.class_names(self.path) or CLASS_NAMES

    @torch_defaults()
    def predict(
        self, images: ArrayLike | Tensor, *, trial: int | None = None, ensemble: bool = False
    ) -> Float64[np.ndarray, "examples 10"]:
        """Compute the probability of each class.

        Args:
            images: arrays or tensors ``[n, 28, 28]`` or ``[n, 1, 28, 28]``, light on dark as in the
                data set: integers from 0 to 255, or floats from 0 to 1.
            trial: the number of the trial whose model predicts; by default the winner.
            ensemble: whether to average the probabilities of all complete trials, or, when the seed
                is an axis of the grid, of the winner's seeds.

        Returns:
            float64 ``[n, 10]``; the columns are :attr:`classes`.

        Raises:
            UserError: The images have another type, shape or range, or a model is missing or
                damaged.
            ValueError: Both ``trial`` and ``ensemble`` are given.
        """
        if ensemble and trial is not None:
            raise ValueError("give trial or ensemble, not both")
        pixels = given.images(images)
        chosen = trained.ensemble(self.path) if ensemble else [self._trained(trial)]
        return trained.probabilities(chosen, pixels).numpy()

    @torch_defaults()
    def model(self, trial: int | None = None) -> tuple[Model, Params, State]:
        """Return a trained model as pure functions: the model, its parameters and its state.

        ``model.apply(params, state, images, train=False)`` returns logits and the state.

        Args:
            trial: the number of the trial; by default the winner.

        Raises:
            UserError: The model is missing or damaged.
        """
        found = self._trained(trial)
        return build_model(found.model), *models.load_model(found.path, found.model)

    @torch_defaults()
    def module(self, trial: int | None = None) -> torch.nn.Module:
        """Return a trained model as a module in evaluation mode, float32.

        It maps images ``[n, 1, 28, 28]``, floats from 0 to 1, to logits ``[n, 10]``. For the
        built-in network it is a :class:`fmnist.reference.Network`, which computes in float32 also
        if the study had another precision.

        Args:
            trial: the number of the trial; by default the winner.

        Raises:
            UserError: The model is missing or damaged.
        """
        found = self._trained(trial)
        params, state = models.load_model(found.path, found.model)
        return as_module(build_model(found.model, "grouped"), params, state, found.model)

    @torch_defaults()
    def to_onnx(self, path: str | Path, *, trial: int | None = None) -> None:
        """Write :meth:`module` as an ONNX file, by torch's exporter.

        The input ``images`` is float32 ``[n, 1, 28, 28]`` from 0 to 1, for any n. The output
        ``logits`` is float32 ``[n, 10]``.

        Args:
            path: the file; one that exists is replaced.
            trial: the number of the trial; by default the winner.

        Raises:
            UserError: The model is missing or damaged, the packages ``onnx`` and ``onnxscript`` are
                missing, or the exporter does not know an operation of a model from a factory.
        """
        export.write_onnx(self.module(trial), Path(path).expanduser())

    def _line(self, number: int) -> Line:
        for line in self._lines:
            if line.cells["number"] == number:
                return line
        known = ", ".join(str(line.cells["number"]) for line in self._lines)
        raise UserError(f"{self.path}: has no trial {number} (trials: {clipped(known, 60)})")

    def _trained(self, trial: int | None) -> TrainedModel:
        """Find the model of a trial; that of the winner is also in ``best/``."""
        has_best = (self.path / "best").exists()
        if trial is not None:
            number = operator.index(trial)
        elif has_best:
            return trained.best_model(self.path)
        elif self.winner is None:
            raise UserError(f"{self.path}: has no winner, as no trial is complete")
        else:
            number = self.winner.number
        point, cells = self._line(number)
        if cells["state"] != "COMPLETE":
            raise UserError(f"{self.path}: trial {number} failed, so it has no model")
        path = models.model_path(self.path, number)
        if has_best and not path.exists() and self.winner and self.winner.number == number:
            return trained.best_model(self.path)
        return TrainedModel(number, point, self.config.trial(point).model, path)

    def _sentence(self) -> str:
        count = len(self._lines)
        trials = f"{count:,} trial{'' if count == 1 else 's'}"
        try:
            won = self.winner
        except UserError as error:
            return f"{trials}; {error}"
        if won is None:
            return f"{trials}, none is complete"
        role = "in best/ is" if self.config.validation_is_trained else "winner"
        metrics = [
            f"{name} {won.metrics.get(name, np.nan):.4f}" for name in card.metrics(self.config)
        ]
        which = f"{role} {won.number} ({label(self._line(won.number).point)})"
        return ", ".join([trials, which, *metrics])

    def __repr__(self) -> str:
        return f"<Run {self.config.name} in {self.path}: {self._sentence()}>"

    def _repr_html_(self) -> str:
        try:
            number = self.winner.number if self.winner else None
        except UserError:  # the sentence says it
            number = None
        order = ranked(map(_result, self._lines), self.config.metric)
        lines = [self._line(result.number) for result in order]
        return card.html(self.config, lines, number, self._sentence())


def _result(line: Line) -> TrialResult:
    """Return a result whose history is its last epoch."""
    point, cells = line
    last = EpochMetrics(*(cells.get(name, np.nan) for name in EpochMetrics._fields))
    return TrialResult(cells["number"], point, cells["state"], (last,))
