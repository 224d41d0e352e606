"""Runs a study from beginning to end: data, training, storage and reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any

import optuna
import torch

from fmnist.config import cases, loading, widths
from fmnist.config.results import TrialResult
from fmnist.config.study import SAMPLE, StudyConfig
from fmnist.data import fashion_mnist, given
from fmnist.data.fashion_mnist import Dataset
from fmnist.engine import compilation
from fmnist.functional.types import ModelConfig, Split
from fmnist.reports.dashboard.mirror import DashboardMirror
from fmnist.reports.findings import Findings
from fmnist.reports.tensorboard.mirror import TensorBoardMirror
from fmnist.reports.terminal import Progress
from fmnist.reports.words import counted, held_out
from fmnist.rundir.folder import RunFolder, opened
from fmnist.study.process import LogTo, Observer, in_turn, quiet_optuna, shown
from fmnist.study.speeds import SpeedRecorder
from fmnist.tuning import grid, origin, scheduler, storage_errors, storage_url
from fmnist.tuning.events import Event, TrialFinished
from fmnist.tuning.progress import Checkpointer
from fmnist.tuning.scheduler import Splits
from fmnist.tuning.storage import open_study
from fmnist.utils import memory, patience, provenance
from fmnist.utils.device import find_device
from fmnist.utils.errors import UserError
from fmnist.utils.isolation import torch_defaults
from fmnist.utils.phases import Phases
from fmnist.utils.signals import Stop


def shown_to(config: StudyConfig, dataset: Dataset) -> Dataset:
    """Return the data set, without test images if the study is not to see them."""
    if config.test:
        return dataset
    return dataset._replace(test=Split(*(each[:0] for each in dataset.test)))


def splits(config: StudyConfig, dataset: Dataset, device: torch.device) -> Splits:
    """Return the examples of a study on a device."""
    training, validation = fashion_mnist.holdout_split(dataset.train, config.holdout)
    if config.validation_is_trained:
        count = min(SAMPLE, len(training.labels) - 1)
        validation = fashion_mnist.holdout_split(dataset.train, count)[1] if count else training
    training, validation, test = (
        Split(split.images.to(device), split.labels.to(device))
        for split in (training, validation, dataset.test)
    )
    return Splits(training, test if config.validation_is_test else validation, test)


@in_turn
@torch_defaults()
@torch.random.fork_rng(devices=[])  # drawing the graph of the network makes modules
def run_study(
    config: StudyConfig | Mapping[str, Any] | str | Path,
    out: str | Path,
    *,
    storage: str | None = None,
    data: str | Path | None = None,
    dataset: Dataset | None = None,
    device: str = "auto",
    max_lanes: int | None = None,
    retry_failed: bool = False,
    wait: float = patience.SECONDS,
    command: str = "fmnist.run_study",
    progress: Progress | Observer | bool | None = None,
) -> list[TrialResult]:
    """Run a study, or resume it, and write its results and reports.

    In several threads of a process, one study runs after the other.

    Args:
        config: the study; or the tables of a study file as a dictionary, such as
            ``{"study": {"epochs": 5}, "grid": {"learning_rate": [0.01, 0.001]}}``; or the path of a
            study file.
        out: the folder of the run; made if needed.
        storage: URL of an Optuna storage; by default SQLite in ``out``.
        data: a folder with the four IDX files; by default they are found or fetched.
        dataset: the data set to use instead of Fashion-MNIST; see
            :func:`fmnist.data.given.checked`. A run is continued with the data that it began with.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        max_lanes: maximum number of lanes of a group; by default as many as fit in memory.
        retry_failed: whether to train trials that diverged again.
        wait: how many seconds to wait, before giving up, for what may pass: a locked storage, a
            lost connection, a full disk.
        command: the command line that the report shows.
        progress: true shows the progress on standard output; a function gets each event of
            :mod:`fmnist.tuning.events`. By default nothing is shown.

    Returns:
        The results of all points, in the order of the grid. :func:`fmnist.load_run` reads them from
        ``out`` as tables, with the models.

    Raises:
        UserError: The study, the data, the storage or the folder cannot be used.
    """
    out, config = Path(out).expanduser(), loading.as_study(config)
    if dataset is not None:
        dataset = given.checked(dataset, config.holdout)
    url = storage or storage_url.of_run(out)
    target = find_device(device)
    translated = storage_errors.translated(out, url)
    with (
        translated,
        quiet_optuna(),
        shown(progress) as progress,
        LogTo(progress),
        Stop() as stop,
        opened(out, config) as folder,
        patience.patient(wait, stop.check),
    ):
        study = open_study(config, url, begun=folder.begun)
        folder.take(study, shared=storage is not None)
        data_set = given.FASHION_MNIST if dataset is None else given.identity(dataset)
        _check_data(study, data_set)
        done = grid.results(study, config)
        folder.check_parameters(grid.parameter_sums(study, done), done)
        if others := origin.foreign(study, config):
            progress.message(others)
        retry = retry_failed and any(result.state != "COMPLETE" for result in done)
        trains = retry or len(done) < config.size or grid.unfinished(study, config)
        if not trains and _is_complete(folder, done, progress):
            return done
        if trains and any(True for _ in origin.ours(study, config)):
            progress.message(f"continuing: {_complete(done, config)}")
        phases = Phases(_mapping(study, PHASES, int | float))
        with phases("reading the data"):
            dataset = shown_to(config, dataset or fashion_mnist.load(data))
        before = facts = _mapping(study, FACTS, str)
        if trains or facts is None:  # without training, the facts of the last one are kept
            facts = provenance.facts(command, target, None, dataset.source)
            study.set_user_attr(FACTS, facts)
        if retry:
            progress.message(_will_repeat(before or {}, facts))
        with TensorBoardMirror(folder.tensorboard, config) as mirror:
            for result in done:
                mirror.repair(result)
            if trains:
                folder.confirm(study)
                study.set_user_attr(DATA, dict(data_set))
                progress.held_out = held_out(config)
                progress.message(f"device {target}")
                for line in (*cases.explained(config), *widths.explained(config)):
                    progress.message(line)
                _compile(config, target, progress, phases)
                examples = splits(config, dataset, target)
                images = len(examples.training.labels)
                board = DashboardMirror(study, config, provenance=facts, done=done, images=images)
                events = scheduler.run(
                    study,
                    config,
                    examples,
                    max_lanes=max_lanes,
                    checkpointer=Checkpointer(folder.checkpoints),
                    stop=stop,
                    retry_failed=retry,
                )
                save, speeds = _Saver(folder, study, phases), SpeedRecorder(target)
                for event in phases.waiting_for(TRAINING, events):
                    for observer in (save, mirror, board, progress, speeds):
                        observer(event)
        return _finish(study, folder, dataset, facts, phases, storage=storage, url=url)


def _compile(config: StudyConfig, target: torch.device, progress: Progress, phases: Phases) -> None:
    """Compile the kernels that the study needs if they are not, and say so."""
    if target.type != "cpu" or not isinstance(config.model, ModelConfig):
        return
    wanted = {"lanes" if p == "bfloat16" else "blocks" for p in config.values("precision")}
    if missing := sorted(name for name in wanted if not compilation.compiled(name)):
        progress.message("compiling the kernels for this processor, once: about 20 s")
        with phases("compiling the kernels"):
            seconds = sum(map(compilation.compile_kernels, missing))
        progress.message(f"compiled in {seconds:.0f} s")


DATA = "fmnist:data"
FACTS = "fmnist:provenance"
PHASES = "fmnist:seconds_by_phase"
TRAINING = "training and evaluation"


def _finish(
    study: optuna.Study,
    folder: RunFolder,
    dataset: Dataset,
    facts: Mapping[str, str],
    phases: Phases,
    *,
    storage: str | None,
    url: str,
) -> list[TrialResult]:
    """Draw the views of a study whose trials are all finished. Return the results."""
    config = folder.config
    Checkpointer(folder.checkpoints).clear()
    memory.release()  # drawing loads libraries
    results = grid.results(study, config)
    grid.check_whole(results, config)
    sums = grid.parameter_sums(study, results)
    folder.check_parameters(sums, results)
    with phases("drawing the views"):
        from fmnist.reports import publish  # seaborn, which training need not wait for

        about = {**facts, **provenance.wall_time(phases.seconds.get(TRAINING, 0.0))}
        study.set_user_attr(FACTS, about)
        lost = folder.lost
        findings = Findings(
            config, results, dataset, about, storage, sums=sums, lost=lost, classes=dataset.classes
        )
        made = patience.repeated(
            lambda: publish.publish(folder.path, findings, study, phases),
            lambda error: storage_errors.passing(error, url),
        )
        folder.seal(made, sums)
    study.set_user_attr(PHASES, phases.seconds)
    return results


def _check_data(study: optuna.Study, here: given.Identity) -> None:
    """Check that a study continues with the data that it began with.

    Raises:
        UserError: The study began with other data.
    """
    there = study.user_attrs.get(DATA)  # None in a study of an earlier version
    if isinstance(there, dict) and (lines := given.differences(there, here)):
        raise UserError(
            f"study {study.study_name!r} began with other data ({'; '.join(lines)}); "
            "continue it with the same, or choose another --out and name (--set name=...)"
        )


def _is_complete(folder: RunFolder, done: Sequence[TrialResult], progress: Progress) -> bool:
    """Report that all trials are finished. Return whether all files are undamaged, too."""
    name = folder.config.name
    progress.message(f"study {name} in {folder.path} is complete: nothing to train")
    if failed := sum(result.state != "COMPLETE" for result in done):
        progress.message(
            f"{counted(failed, 'trial')} failed; --retry-failed trains again what failed, but "
            "without a change outside the study it diverges again"
        )
    damaged = folder.damaged()
    if damaged:
        progress.message(f"missing or damaged, and made anew: {', '.join(damaged)}")
    return damaged == []


def _complete(done: Sequence[TrialResult], config: StudyConfig) -> str:
    """Say how many trials of a study are complete, and how many have failed."""
    failed = sum(result.state != "COMPLETE" for result in done)
    said = f"{len(done) - failed} of {counted(config.size, 'trial')} are complete"
    return f"{said}, {failed} failed" if failed else said


def _will_repeat(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Say that what diverged diverges again, and what has changed since then.

    Args:
        before: the provenance of the last training; empty if it is not known.
        now: that of this one.
    """
    known = [name for name in ("Machine", "Device", "Versions", "Commit") if name in before]
    changed = [name.lower() for name in known if before.get(name) != now.get(name)]
    since = f"changed: {', '.join(changed)}" if changed else "no change in them is known"
    return (
        "the trials that failed are trained again; with the same seeds they diverge again unless "
        f"something outside the study has changed, such as device or versions ({since})"
    )


def _mapping(study: optuna.Study, name: str, kind: type | UnionType) -> dict[str, Any] | None:
    """Return an attribute of the study if it maps names to values of this type, else None."""
    value = study.user_attrs.get(name)
    valid = isinstance(value, dict) and all(isinstance(item, kind) for item in value.values())
    return value if valid else None


class _Saver:
    """Saves the parameters of every finished trial and the time of the run so far."""

    def __init__(self, folder: RunFolder, study: optuna.Study, phases: Phases) -> None:
        self._folder, self._study, self._phases = folder, study, phases

    def __call__(self, event: Event) -> None:
        if isinstance(event, TrialFinished):
            number = event.result.number
            digest = self._folder.save_model(number, event.params, event.state)
            grid.note_parameters(self._study, number, digest)
            self._study.set_user_attr(PHASES, self._phases.seconds)
