"""Writes what a finished study leaves for people and programs: tables, the winner, figures."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import optuna
import torch
from jaxtyping import Float
from torch import Tensor

from fmnist.config.results import TrialResult, history_csv, results_csv, winner
from fmnist.config.study import StudyConfig
from fmnist.data.fashion_mnist import CLASS_NAMES, Dataset
from fmnist.functional import batching, cnn
from fmnist.functional.types import Params, Split, State
from fmnist.reference import to_module
from fmnist.reports import figures, markdown
from fmnist.reports.confusion import confusion_matrix
from fmnist.reports.dashboard import mirror as dashboard
from fmnist.reports.html import page as html
from fmnist.reports.tensorboard import mirror as tensorboard
from fmnist.reports.tensorboard import winner as winner_board
from fmnist.rundir import files, manifest, models
from fmnist.utils.phases import Phases

EVAL_BATCH = 1000


def outputs(
    params: Params, state: State, split: Split, compute: torch.dtype | None = None
) -> tuple[Float[Tensor, "examples 10"], Float[Tensor, "examples width"]]:
    """Each example's class probabilities, and what the last layer saw of it; on the CPU.

    ``compute`` is as in :func:`model.apply`.
    """
    probabilities, features = [], []
    with torch.no_grad():
        for indices in torch.arange(len(split.labels)).split(EVAL_BATCH):
            images = batching.gather(split, indices.to(split.images.device)).images
            seen, _ = cnn.penultimate(params, state, images, train=False, compute=compute)
            logits = cnn.head(params, state, seen, compute)
            probabilities.append(logits.softmax(dim=1).cpu())
            features.append(seen.cpu())
    return torch.cat(probabilities), torch.cat(features)


def publish(
    out: Path,
    config: StudyConfig,
    results: Sequence[TrialResult],
    dataset: Dataset,
    provenance: Mapping[str, str],
    storage: str | None = None,
    study: optuna.Study | None = None,
    phases: Phases | None = None,
    sums: Mapping[int, str] | None = None,
    lost: Collection[int] = (),
) -> TrialResult | None:
    """Write every file that is made of the whole study.

    Args:
        out: the run's folder; ``parameters/`` holds the trials' models.
        config: the study.
        results: of every grid point.
        dataset: for the figures; the winner's confusion matrix is that of the test set.
        provenance: what the report says of where the results came from.
        storage: Optuna's storage URL where it is not the run's own file.
        study: the study in Optuna, if it is there, for what optuna-dashboard shows.
        phases: what the time went to so far; what this takes is added where it is shown.
        sums: the SHA-256 of each result's parameters when they were written, by trial number.
        lost: the trials whose parameters are not that any more.

    Returns:
        The winner; None when no trial is complete.
    """
    began = time.perf_counter()
    noted = manifest.wrong(out)
    damaged = None if noted is None else {out / name for name in noted}
    known = {models.model_path(out, number): digest for number, digest in (sums or {}).items()}
    parameters = {
        result.number: models.model_path(out, result.number)
        for result in results
        if result.number not in lost
    }
    tables = out / "results.csv", out / "history.csv"
    files.write_text(tables[0], results_csv(results, list(config.grid)))
    files.write_text(tables[1], history_csv(results))
    best = winner(results, config.metric)
    folder = out / "figures"
    folder.mkdir(exist_ok=True)
    shown = {
        "samples": figures.samples(*dataset.train, CLASS_NAMES, folder / "samples.png"),
        "curves": figures.curves(results, config, folder / "curves.png"),
        "heatmap": figures.heatmap(results, config, folder / "heatmap.png"),
    }
    chosen: list[Path] = []
    matrix = probabilities = None
    if best is not None:
        params, state = models.load_model(models.model_path(out, best.number))
        chosen += _write_best(out, config, best, params, state)
        test = dataset.test
        compute = cnn.compute_dtype(config.trial(best.point).model)
        probabilities, seen = outputs(params, state, test, compute)
        predicted = probabilities.argmax(dim=1)
        matrix = confusion_matrix(test.labels, predicted)
        title = f"Test set, {best.label}"
        shown["confusion"] = figures.confusion(
            matrix, CLASS_NAMES, folder / "confusion.png", title, config
        )
        shown["confused pairs"] = figures.confused_pairs(
            *test, predicted, CLASS_NAMES, folder / "confused_pairs.png", config
        )
        board = winner_board.write_winner(
            out / "tensorboard",
            study=config,
            winner=best,
            test=test,
            probabilities=probabilities,
            features=seen,
            classes=CLASS_NAMES,
            twin=to_module(params, state, config.trial(best.point).model).eval(),
            confusion=shown["confusion"],
        )
        chosen += [path for path in board.rglob("*") if path.is_file()]
    if study is not None:
        dashboard.publish(study, config, results, out, provenance)
        dashboard.mend(study, config, results, out, parameters, damaged)
        chosen += dashboard.artifacts(study, parameters, out)
    spent = Phases(phases.seconds if phases else None)
    spent.add("drawing the views", time.perf_counter() - began)
    page = html.write_html(
        out,
        study=config,
        results=results,
        winner=best,
        test=dataset.test if best is not None else None,
        probabilities=probabilities,
        classes=CLASS_NAMES,
        provenance=provenance,
        storage=storage,
        training_images=len(dataset.train.labels) - config.holdout,
        phases=spent.seconds,
    )
    text = markdown.write_report(
        out,
        study=config,
        results=results,
        winner=best,
        matrix=matrix,
        classes=CLASS_NAMES,
        provenance=provenance,
        storage=storage,
        figures={name: str(path.relative_to(out)) for name, path in shown.items()},
    )
    board = out / "tensorboard"
    events = [*board.glob("*tfevents*")]
    for result in results:
        events += (board / tensorboard.run_name(result.point)).glob("*tfevents*")
    made = [*tables, *shown.values(), *chosen, *events, page, text]
    marks = (out / "study.toml", out / "reference.toml")
    made += [path for path in marks if path.exists()]
    manifest.write(out, made, known)
    return best


def _write_best(
    out: Path, config: StudyConfig, best: TrialResult, params: Params, state: State
) -> tuple[Path, Path]:
    path = models.best_path(out)
    models.save_model(path, params, state)
    trial = config.trial(best.point)
    about = {
        "study": config.name,
        "number": best.number,
        "point": dict(best.point),
        "model": {
            "channels": list(trial.model.channels),
            "hidden": list(trial.model.hidden),
            "kernel_size": trial.model.kernel_size,
            "dropout": trial.model.dropout,
            "precision": trial.model.precision,
        },
        config.metric: getattr(best.last, config.metric),
        "test_accuracy": best.test_accuracy,
        "classes": list(CLASS_NAMES),
    }
    described = path.with_name("config.json")
    files.write_text(described, json.dumps(about, indent=2) + "\n")
    return path, described
