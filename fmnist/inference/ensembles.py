"""Averages the models of a run: chooses them, measures what they gain, and keeps them as a file."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from fmnist.config import study as configs
from fmnist.config.errors import ConfigError
from fmnist.config.study import StudyConfig
from fmnist.data.fashion_mnist import Dataset, holdout_split
from fmnist.functional import ensembles
from fmnist.functional.cnn import CLASS_COUNT
from fmnist.functional.ensembles import Measures
from fmnist.functional.types import Split
from fmnist.inference import trained
from fmnist.inference.trained import TrainedModel
from fmnist.rundir import models
from fmnist.utils.errors import UserError

MOST = 1000
"""Members of an ensemble, at most."""

ROUNDING = 0.005
"""How far another machine may change an accuracy, with much to spare."""

FORMS = "all, seeds, best:K or greedy:K"


class Found(NamedTuple):
    """An ensemble and what it gains.

    Attributes:
        order: the members as they are added, the same one perhaps several times.
        test: the measures on the test set of the first member, of the mean of two, and so on; empty
            if the study keeps it unseen.
        validation: the same on the images that the run held out; empty if it held out none.
        disagreement: see :func:`fmnist.functional.ensembles.disagreement`, on the images of
            :attr:`split`.
        singles: the accuracy of each member on these, in this order.
        images: their number.
    """

    order: Sequence[TrainedModel]
    test: Sequence[Measures]
    validation: Sequence[Measures]
    disagreement: float
    singles: Sequence[float]
    images: int

    @property
    def split(self) -> str:
        """``"test"``, or ``"validation"`` if the test set is unseen."""
        return "test" if self.test else "validation"

    def margin(self, measures: Measures) -> float:
        """Return half of the 95 % interval of an accuracy on the images of :attr:`split`."""
        share = measures.accuracy
        return 1.96 * math.sqrt(share * (1 - share) / self.images)

    @property
    def members(self) -> list[TrainedModel]:
        """The members with their weights, the first added first."""
        counts = Counter(member.number for member in self.order)
        distinct = {member.number: member for member in self.order}
        return [m._replace(weight=counts[number]) for number, m in distinct.items()]


def measure(run: Path, dataset: Dataset, members: str) -> Found:
    """Choose models of a run and measure their mean.

    Args:
        run: the folder of a finished run.
        dataset: the data that it was trained on.
        members: ``"all"`` complete trials, the best first, or by number if none were held out;
            ``"seeds"``, the trials of the winner's configuration; ``"best:K"``, the K trials that
            are best on the held-out images; or ``"greedy:K"``, up to K of them by
            :func:`fmnist.functional.ensembles.greedy`.

    Raises:
        UserError: ``members`` is none of these; the run has no such members, or held out no images
            to choose by, or has none to measure by; it was trained on other data; or a file is
            missing or damaged.
    """
    study, lines = trained.read_results(run)
    splits = {"test": dataset.test} if study.test else {}
    if study.holdout:
        splits["validation"] = holdout_split(dataset.train, study.holdout)[1]
    if not splits:
        raise UserError(f"{run}: held out no images and keeps the test set unseen (test = false)")
    candidates, most = _candidates(run, study, lines, members)
    said = {name: _probabilities(candidates, split) for name, split in splits.items()}
    chosen = list(range(len(candidates)))
    if members.startswith("greedy"):
        chosen = ensembles.greedy(said["validation"], splits["validation"].labels, most)
    accuracies = {
        name: [ensembles.measures(own, splits[name].labels).accuracy for own in said[name]]
        for name in splits
    }
    for name, each in accuracies.items():
        # The metric of a window is of other parameters than those that were kept.
        if name == "test" or min(study.metric_window, study.epochs) == 1:
            _check_recorded(run, f"{name}_accuracy", lines, candidates, each)
    growing = {
        name: ensembles.growing(said[name], split.labels, chosen) for name, split in splits.items()
    }
    distinct, first = list(dict.fromkeys(chosen)), next(iter(splits))
    return Found(
        [candidates[place] for place in chosen],
        growing.get("test", []),
        growing.get("validation", []),
        ensembles.disagreement(said[first][distinct]),
        [accuracies[first][place] for place in distinct],
        len(splits[first].labels),
    )


def _check_recorded(
    run: Path,
    column: str,
    lines: Sequence[trained.Line],
    candidates: Sequence[TrainedModel],
    accuracies: Sequence[float],
) -> None:
    """Check that models are as accurate as the study found them.

    Raises:
        UserError: One is not: the data are others.
    """
    recorded = {line.cells["number"]: line.cells.get(column, math.nan) for line in lines}
    for model, accuracy in zip(candidates, accuracies, strict=True):
        if not abs(recorded[model.number] - accuracy) <= ROUNDING:
            name = column.replace("_", " ")
            raise UserError(
                f"{run}: trial {model.number} has a {name} of {accuracy:.4f} on these data, "
                f"not {recorded[model.number]:.4f} as recorded: they are not those of the run"
            )


def _candidates(
    run: Path, study: StudyConfig, lines: Sequence[trained.Line], members: str
) -> tuple[list[TrainedModel], int]:
    """Return the trials to choose from, the best first, and how many are chosen at most."""
    form = re.fullmatch(r"(all|seeds)|(best|greedy):([0-9]{1,4})", members)
    most = int(form[3]) if form and form[3] else MOST
    if form is None or not 1 <= most <= MOST:
        raise UserError(f"--members {members!r}: must be {FORMS}, with K from 1 to {MOST}")
    if members == "seeds":
        if not trained.has_seeds(run):
            raise UserError(f"{run}: has no trials of several seeds; take all or best:K")
        return trained.ensemble(run), MOST
    if form[2] and not study.holdout:
        raise UserError(f"{run}: held out no images to choose members by; take all or seeds")
    by_number = {model.number: model for model in trained.complete_models(run)}
    sign = 1 if study.metric.endswith("loss") else -1
    # Without held-out images the metric says nothing, or is that of the test set.
    scores = {line.cells["number"]: sign * line.cells.get(study.metric, math.nan) for line in lines}
    if not study.holdout:
        scores = dict.fromkeys(scores, 0.0)
    ordered = sorted(by_number.values(), key=lambda m: (scores[m.number], m.number))
    return ordered[:most] if form[2] == "best" else ordered, most


def _probabilities(
    candidates: Sequence[TrainedModel], split: Split
) -> Float64[Tensor, "members examples 10"]:
    return torch.stack([trained.probabilities([model], split.images) for model in candidates])


# An ensemble as a file


def check_path(path: Path) -> None:
    """Check that a file can be written here without replacing something else.

    Raises:
        UserError: Its name does not end in ``.safetensors``, or there is another file.
    """
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: the name of the file must end in .safetensors")
    if path.exists():
        try:
            models.read_about(path)
        except UserError as error:
            raise UserError(f"{path}: is there, and is no ensemble; it is not replaced") from error


def save(path: Path, members: Sequence[TrainedModel], classes: Sequence[str]) -> None:
    """Write the members of an ensemble as one safetensors file.

    Args:
        path: the file; an ensemble that is there is replaced.
        members: the members, with their weights.
        classes: the names of the classes.

    Raises:
        UserError: The path is of something else, there are too many members, or the parameters of
            one are missing or damaged.
    """
    check_path(path)
    about = {
        "classes": list(classes),
        "members": [
            {
                "number": member.number,
                "point": dict(member.point),
                "weight": member.weight,
                "model": configs.model_values(member.model),
            }
            for member in members
        ],
    }
    trees = [models.load_model(m.path, m.model, m.prefix) for m in members]
    models.save_ensemble(path, json.dumps(about, allow_nan=False), trees)


class Saved(NamedTuple):
    """An ensemble from a file: its members, and the names of the classes."""

    members: list[TrainedModel]
    classes: tuple[str, ...]


def read(path: Path) -> Saved:
    """Read a file that :func:`save` wrote.

    Raises:
        UserError: The file is missing or damaged, or is none of these.
    """
    text = models.read_about(path)
    try:
        about = json.loads(text)
        members = [
            TrainedModel(
                int(member["number"]),
                dict(member["point"]),
                configs.read_model(member["model"]),
                path,
                models.prefix(place),
                int(member["weight"]),
            )
            for place, member in enumerate(about["members"])
        ]
        classes = tuple(trained.one_line(name) for name in about["classes"])
        if not members or len(classes) != CLASS_COUNT:
            raise ValueError("it has no members, or not ten classes")
        if any(not 1 <= member.weight <= MOST for member in members):
            raise ValueError("a weight is out of range")
    except ConfigError as error:
        error.source = str(path)
        raise
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise UserError(f"{path}: is no ensemble ({trained.one_line(error)})") from error
    return Saved(members, classes)
