"""Writes the files of a finished study: tables, figures, the winner, the reports."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import optuna
import torch
from torch import Tensor

from fmnist.config.factory import (
    AnyModelConfig,
    build_model,
    looks_and_logits,
)
from fmnist.config.results import TrialResult, history_csv, results_csv
from fmnist.config.study import StudyConfig, model_values
from fmnist.data.fashion_mnist import holdout_split
from fmnist.functional import batching, ensembles, outliers
from fmnist.functional.types import ModelConfig, Params, Split, State
from fmnist.reference import as_module
from fmnist.reports import averaging, figures, heatmap, markdown, members
from fmnist.reports.dashboard import mirror as dashboard
from fmnist.reports.findings import Findings, Outputs
from fmnist.reports.html import page as html
from fmnist.reports.tensorboard import winner as winner_board
from fmnist.reports.tensorboard.runs import mark
from fmnist.reports.words import protocol_note
from fmnist.rundir import files, models
from fmnist.utils.phases import Phases

EVAL_BATCH = 1000


def outputs(
    params: Params, state: State, split: Split, config: AnyModelConfig = ModelConfig()
) -> Outputs:
    """Compute class probabilities and last-layer inputs of every example.

    Args:
        params: the network's parameters.
        state: its running statistics.
        split: images uint8 ``[examples, 1, 28, 28]`` and labels ``[examples]``.
        config: the network's settings.

    Returns:
        Probabilities ``[examples, 10]`` and features ``[examples, width]``, on the CPU. The
        features of a model from a factory are its logits: its last layer is not known.
    """
    looks, logits = _looked_at(params, state, split, config)
    # A network that all but diverged may have logits that are not finite.
    return Outputs(logits.softmax(dim=1).nan_to_num(), looks[-1])


def _looked_at(
    params: Params, state: State, split: Split, config: AnyModelConfig
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Compute the looks and the logits of every example, in batches, to the CPU."""
    looks, logits = [], []
    with torch.no_grad():
        for indices in torch.arange(len(split.labels)).split(EVAL_BATCH):
            images = batching.gather(split, indices.to(split.images.device)).images
            seen, said = looks_and_logits(config, params, state, images)
            looks.append([look.cpu() for look in seen])
            logits.append(said.cpu())
    return tuple(torch.cat(parts) for parts in zip(*looks, strict=True)), torch.cat(logits)


def publish(
    out: Path,
    findings: Findings,
    study: optuna.Study | None = None,
    phases: Phases | None = None,
) -> list[Path]:
    """Write every file that is made of the whole study.

    Args:
        out: the run's folder; its ``parameters/`` holds the trials' models.
        findings: what the study found; the winner's outputs are computed here.
        study: Optuna's study, which gets what optuna-dashboard shows; None to leave it alone.
        phases: seconds by phase of the run so far; report.html adds the time spent here.

    Returns:
        The files that were written.

    Raises:
        CheckpointError: The winner's parameter file cannot be read as a model.
    """
    began = time.perf_counter()
    results_file, history_file = out / "results.csv", out / "history.csv"
    files.write_text(results_file, results_csv(findings.results, list(findings.config.grid)))
    files.write_text(history_file, history_csv(findings.results))
    made = [results_file, history_file]
    folder, config, classes = out / "figures", findings.config, findings.classes
    folder.mkdir(exist_ok=True)
    shown = {
        "samples": figures.samples(*findings.dataset.train, classes, folder / "samples.png"),
        "curves": figures.curves(findings.results, config, folder / "curves.png"),
        "heatmap": heatmap.draw(findings.comparison, config, folder / "heatmap.png"),
    }
    if (best := findings.winner) is not None:
        model = findings.config.trial(best.point).model
        params, state = models.load_model(models.model_path(out, best.number), model)
        made += _write_best(out, findings, best, params, state)
    test = findings.dataset.test
    if best is not None and len(test.labels):
        seen = outputs(params, state, test, model)
        findings = replace(findings, outputs=seen)
        assert findings.confusion is not None
        title, predicted = f"Test set, {best.label}", seen.probabilities.argmax(dim=1)
        drawn, pairs = folder / "confusion.png", folder / "confused_pairs.png"
        shown |= {
            "confusion": figures.confusion(findings.confusion, classes, drawn, title, config),
            "confused pairs": figures.confused_pairs(*test, predicted, classes, pairs, config),
        }
        module = as_module(build_model(model), params, state, model)
        run = winner_board.write_winner(out, findings, module)
        made += [path for path in run.rglob("*") if path.is_file()]
    averaged = average(findings, partial(_probabilities, out, config))
    if averaged is not None:
        series = members.series(averaged.test, averaged.validation)
        title = f"Mean of {len(averaged.trials)} {'seeds' if averaged.seeds else 'trials'}"
        if note := protocol_note(config):
            title += f" ({note})"
        shown["members"] = members.draw(
            series, averaged.singles, averaged.images, title, folder / "members.png"
        )
    if study is not None:
        made += dashboard.publish(out, findings, study)
    spent = Phases(phases.seconds if phases else None)
    spent.add("drawing the views", time.perf_counter() - began)
    made.append(html.write_html(out, findings, spent.seconds, averaged))
    links = {name: str(path.relative_to(out)) for name, path in shown.items()}
    made.append(markdown.write_report(out, findings, links, averaged))
    board = out / "tensorboard"
    runs = [board, *mark(board, config, findings.results, findings.winner)]
    return [*made, *shown.values(), *(path for run in runs for path in run.glob("*tfevents*"))]


def average(
    findings: Findings, probabilities: Callable[[TrialResult, Split], Tensor]
) -> averaging.Averaged | None:
    """Measure the mean of several models, see :func:`fmnist.reports.averaging.members`.

    Args:
        findings: what the study found.
        probabilities: computes those of a trial for each example of a split.

    Returns:
        What it gains; None where there are no two models, or no images to measure it by.
    """
    chosen, seeds = averaging.members(findings)
    test, holdout = findings.dataset.test, findings.config.holdout
    splits = {"test": test} if len(test.labels) else {}
    if holdout:
        splits["validation"] = holdout_split(findings.dataset.train, holdout)[1]
    if len(chosen) < 2 or not splits:
        return None
    said = {
        name: torch.stack([probabilities(result, split) for result in chosen])
        for name, split in splits.items()
    }
    labels = {name: split.labels.cpu() for name, split in splits.items()}
    growing = {
        name: ensembles.growing(own, labels[name], range(len(chosen))) for name, own in said.items()
    }
    first = next(iter(splits))
    return averaging.Averaged(
        [result.number for result in chosen],
        seeds,
        growing.get("test", []),
        growing.get("validation", []),
        [ensembles.measures(own, labels[first]).accuracy for own in said[first]],
        ensembles.disagreement(said[first]),
        len(labels[first]),
    )


def _probabilities(out: Path, config: StudyConfig, result: TrialResult, split: Split) -> Tensor:
    """Compute the class probabilities of a trial for each example."""
    model = config.trial(result.point).model
    params, state = models.load_model(models.model_path(out, result.number), model)
    return outputs(params, state, split, model).probabilities


def _write_best(
    out: Path, findings: Findings, best: TrialResult, params: Params, state: State
) -> list[Path]:
    path, config = models.best_path(out), findings.config
    models.save_model(path, params, state)
    model = config.trial(best.point).model
    about = {
        "study": config.name,
        "number": best.number,
        "point": dict(best.point),
        "model": model_values(model),
        config.metric: getattr(best.final, config.metric),
        **({"test_accuracy": best.test_accuracy} if config.test else {}),
        "classes": list(findings.classes),
    }
    standing = findings.comparison.of[best.number]
    if len(standing.trials) > 1:
        about["seeds"] = [result.point["seed"] for result in standing.complete]
        about[f"mean_{config.metric}"] = standing.score
    described = path.with_name("config.json")
    files.write_text(described, json.dumps(about, indent=2) + "\n")
    known = what_it_knows(params, state, findings.dataset.train, config.holdout, model)
    features = models.features_path(out)
    if not bool(known.distances.isfinite().all()):
        features.unlink(missing_ok=True)  # a network that all but diverged
        return [path, described]
    models.save_features(features, known)
    return [path, described, features]


def what_it_knows(
    params: Params, state: State, train: Split, holdout: int, config: AnyModelConfig
) -> outliers.Familiar:
    """Describe what a network knows, by at most 10,000 of the images that it was trained on.

    Args:
        params: the network's parameters.
        state: its running statistics.
        train: the training set.
        holdout: how many images of it were held out; they say which distances are usual. With 0,
            the training images have to do, which are nearer than new ones.
        config: the network's settings.
    """
    training, validation = holdout_split(train, holdout)
    used, calibration = _some(training), _some(validation if holdout else training)
    looks, _ = _looked_at(params, state, used, config)
    return outliers.familiar(
        looks, used.labels.cpu(), _looked_at(params, state, calibration, config)[0]
    )


def _some(split: Split) -> Split:
    """Return at most :data:`fmnist.rundir.models.MAX_CALIBRATION` examples, from everywhere."""
    count = min(len(split.labels), models.MAX_CALIBRATION)
    chosen = torch.arange(count, device=split.labels.device) * len(split.labels) // count
    return Split(split.images[chosen], split.labels[chosen])
