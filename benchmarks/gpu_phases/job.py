"""The baseline study: its wall time by phase and its accuracies; and the plain loop."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time

import optuna
import torch

from fmnist.config import loading
from fmnist.config.study import StudyConfig
from fmnist.config.trial import TrialConfig
from fmnist.engine import trainer
from fmnist.reference import fit_reference
from fmnist.study import run as runs
from fmnist.tuning import grid
from fmnist.utils.device import cuda_arithmetic
from gpu_phases.part import Part, SkipError


def run(part: Part) -> None:
    """Run the study, then time an epoch of the plain loop on the same images."""
    part.check("the baseline study", lambda: study(part))
    part.check("one epoch of the plain loop for each trial", lambda: reference(part))


def settings(part: Part) -> StudyConfig:
    """Return the baseline study, or one epoch of it on fewer images."""
    if part.quick:
        return loading.load_study(overrides=["holdout=500"], epochs=1)
    return loading.load_study()


def study(part: Part) -> str:
    """Run the study as the command does, without start-up."""
    own, dataset = settings(part), part.dataset()
    part.value("images", dataset.source)
    late = threading.Timer(part.left(), lambda: os.kill(os.getpid(), signal.SIGINT))
    late.daemon = True
    with tempfile.TemporaryDirectory() as folder:
        late.start()
        began = time.perf_counter()
        try:
            runs.run_study(own, folder, dataset=dataset, device=str(part.device))
            late_by = ""
        except KeyboardInterrupt:  # trained trials are stored, and may be all
            late_by = f"not done after {time.perf_counter() - began:.0f} s"
        finally:
            late.cancel()
        wall = time.perf_counter() - began
        stored = optuna.load_study(study_name=own.name, storage=f"sqlite:///{folder}/study.db")
        phases = stored.user_attrs.get("fmnist:seconds_by_phase", {})
        results = grid.results(stored, own)
    part.value("epochs", own.epochs)
    part.table("Wall time of the study by phase (s)", ("phase", "seconds"),
               [(name, f"{seconds:.1f}") for name, seconds in phases.items()])  # fmt: skip
    part.table(
        "The study's trials", ("trial", "validation", "test", "seconds"),
        [(r.label, f"{r.final.validation_accuracy:.4f}", f"{r.test_accuracy:.4f}",
          f"{r.seconds:.1f}") for r in results],
    )  # fmt: skip
    if late_by:
        raise SkipError(f"{late_by}; {len(results)} of {own.size} trials ended")
    part.value("wall_seconds", wall)
    bad = [result.label for result in results if result.state != "COMPLETE"]
    assert not bad, f"failed: {', '.join(bad)}"
    return f"{len(results)} trials of {own.epochs} epochs in {wall:.1f} s"


def reference(part: Part) -> str:
    """Time torch.nn and torch.optim, one configuration after the other, with loaded kernels."""
    own = settings(part)
    training, validation, _ = runs.splits(own, part.dataset(), part.device)
    few = trainer.Split(training.images[:100], training.labels[:100])
    rows, total = [], 0.0
    for point in own.points():
        if part.left() <= 0:
            raise SkipError(f"no time left after {len(rows)} of {own.size} trials")
        trial = own.trial(point)

        def epoch(
            split: trainer.Split, held_out: trainer.Split, trial: TrialConfig = trial
        ) -> None:
            for _ in fit_reference(
                trial.model, trial.optimizer.algorithm, trial.hyperparams, split, held_out,
                batch_size=trial.batch_size, seed=trial.seed, epochs=1,
            ):  # fmt: skip
                if part.cuda:
                    torch.cuda.synchronize(part.device)

        with cuda_arithmetic(tf32=False):  # as the study is trained
            epoch(few, few)
            began = time.perf_counter()
            epoch(training, validation)
        total += time.perf_counter() - began
        rows.append((trial.batch_size, f"{trial.optimizer.learning_rate:g}",
                     f"{time.perf_counter() - began:.2f}"))  # fmt: skip
        header = ("batch size", "learning rate", "seconds")
        part.table("The plain loop, an epoch", header, rows)
    ours = part.found["values"].get("wall_seconds")
    part.value("reference_seconds_an_epoch_of_all", total)
    said = f"{total:.1f} s for an epoch of all trials"
    if ours:
        said += f"; {own.epochs} of them take {total * own.epochs / ours:.1f} times the study"
    return said
