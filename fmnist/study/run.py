"""A study from beginning to end: wires data, search, storage and views together."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any

import optuna
import torch

from fmnist.config.results import TrialResult
from fmnist.config.study import StudyConfig
from fmnist.data import fashion_mnist
from fmnist.data.fashion_mnist import Dataset
from fmnist.functional.types import Split
from fmnist.reports.dashboard.mirror import DashboardMirror
from fmnist.reports.findings import Findings
from fmnist.reports.tensorboard.mirror import TensorBoardMirror
from fmnist.reports.terminal import Progress
from fmnist.rundir import files, integrity, lock, models, ownership
from fmnist.tuning import grid, scheduler, storage_errors, storage_url
from fmnist.tuning.events import Event, TrialFinished
from fmnist.tuning.progress import Checkpointer
from fmnist.tuning.scheduler import Splits
from fmnist.tuning.storage import open_study
from fmnist.utils import memory, provenance
from fmnist.utils.device import find_device
from fmnist.utils.phases import Phases
from fmnist.utils.signals import Stop


def splits(config: StudyConfig, dataset: Dataset, device: torch.device) -> Splits:
    """Training, validation and test examples on the device; the last two are one if holdout = 0."""
    training, validation = fashion_mnist.holdout_split(dataset.train, config.holdout)
    training, validation, test = (
        Split(split.images.to(device), split.labels.to(device))
        for split in (training, validation, dataset.test)
    )
    return Splits(training, test if config.validation_is_test else validation, test)


def run_study(
    config: StudyConfig,
    out: str | Path,
    *,
    storage: str | None = None,
    data: str | Path | None = None,
    dataset: Dataset | None = None,
    device: str = "auto",
    max_lanes: int | None = None,
    retry_failed: bool = False,
    command: str = "fmnist.run_study",
    progress: Progress | None = None,
) -> list[TrialResult]:
    """Run a study, or go on with one that was stopped, and write what it found.

    Args:
        config: the study.
        out: the folder of this run; made where needed.
        storage: an Optuna storage URL; SQLite in ``out`` by default.
        data: a folder with the four IDX files; found or fetched by default.
        dataset: use this one instead of loading.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        max_lanes: how many configurations train at once, at most; by default as memory allows.
        retry_failed: train again the trials that diverged.
        command: what the report gives as the command that made it.
        progress: told of what happens; nobody by default.

    Returns:
        The results of every grid point, by trial number.

    Raises:
        UserError: The study, the data, the storage or the folder cannot be used.
    """
    out, progress = Path(out), progress or Progress()
    url = storage or storage_url.of_run(out)
    where = find_device(device)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with lock.holding(out), _LogTo(progress), Stop() as stop, storage_errors.translated(out, url):
        begun = ownership.check(out, config)
        files.sweep(out)  # not before it is known to be ours
        study = open_study(config, url, begun=begun)
        ownership.take(out, config, study, shared=storage is not None)
        done = grid.results(study, config)
        failed = sum(result.state != "COMPLETE" for result in done)
        retry = retry_failed and failed > 0
        trains = retry or len(done) < config.size or grid.unfinished(study)
        lost = integrity.lost_parameters(out, grid.parameter_sums(study, done))
        integrity.check_winner(out, done, config.metric, lost)
        if not trains:
            progress.message(f"study {config.name} in {out} is complete: nothing to train")
            if failed:
                progress.message(f"{failed} trials failed; --retry-failed trains them again")
            damaged = integrity.damaged(out)
            if damaged == []:
                return done
            if damaged:
                progress.message(f"missing or damaged, and made anew: {', '.join(damaged)}")
        phases = Phases(_mapping(study, PHASES, int | float))
        with phases("reading the data"):
            dataset = dataset or fashion_mnist.load(data)
        _mend_events(out, config, done)
        facts = _mapping(study, FACTS, str)
        if trains or facts is None:  # what is only drawn again keeps those of its training
            facts = provenance.facts(command, where, 0.0, dataset.source)
            study.set_user_attr(FACTS, facts)
        if trains:
            ownership.confirm(out, config, study)
            _train(
                study, config, dataset, out, where, max_lanes, progress, facts, phases, stop, retry
            )
        Checkpointer(out / "checkpoints").clear()
        memory.release()  # drawing loads libraries
        results = grid.results(study, config)
        grid.check_whole(results, config)
        sums = grid.parameter_sums(study, results)
        lost = integrity.lost_parameters(out, sums, warned=lost)
        integrity.check_winner(out, results, config.metric, lost)
        wall = f"{phases.seconds.get(TRAINING, 0.0):.0f} s"
        with phases("drawing the views"):
            from fmnist.reports import publish  # seaborn costs a second of start-up

            about = facts | {"Wall time": wall}
            found = Findings(config, results, dataset, about, storage, sums=sums, lost=lost)
            publish.publish(out, found, study, phases)
        study.set_user_attr(PHASES, phases.seconds)
        return results


def _mapping(study: optuna.Study, name: str, kind: type | UnionType) -> dict[str, Any] | None:
    """An attribute of the study that maps names to such values; None when it does not."""
    found = study.user_attrs.get(name)
    sound = isinstance(found, dict) and all(isinstance(value, kind) for value in found.values())
    return found if sound else None


def _mend_events(out: Path, config: StudyConfig, done: Sequence[TrialResult]) -> None:
    with TensorBoardMirror(out / "tensorboard", config) as mirror:
        for result in done:
            mirror.mend(result)


FACTS = "fmnist:provenance"
PHASES = "fmnist:seconds_by_phase"
TRAINING = "training and evaluation"


def _train(
    study: optuna.Study,
    config: StudyConfig,
    dataset: Dataset,
    out: Path,
    device: torch.device,
    max_lanes: int | None,
    progress: Progress,
    facts: Mapping[str, str],
    phases: Phases,
    stop: Stop,
    retry_failed: bool,
) -> None:
    """Train what is pending and mirror every event before Optuna hears of it."""
    examples = splits(config, dataset, device)
    progress.message(f"device {device}")
    images, done = len(examples.training.labels), grid.results(study, config)
    board = DashboardMirror(study, config, out, provenance=facts, done=done, images=images)

    def keep_model(event: Event) -> None:
        if isinstance(event, TrialFinished):
            number = event.result.number
            digest = models.save_model(models.model_path(out, number), event.params, event.state)
            grid.note_parameters(study, number, digest)

    def keep_phases(event: Event) -> None:
        if isinstance(event, TrialFinished):
            study.set_user_attr(PHASES, phases.seconds)

    events = scheduler.run(
        study,
        config,
        examples,
        max_lanes=max_lanes,
        checkpointer=Checkpointer(out / "checkpoints"),
        stop=stop,
        retry_failed=retry_failed,
    )
    with TensorBoardMirror(out / "tensorboard", config) as mirror:
        observers = (keep_model, mirror, board, progress, keep_phases)
        for event in phases.waiting_for(TRAINING, events):
            for observer in observers:
                observer(event)


class _LogTo(logging.Handler):
    """While in it, what the package logs goes to the progress display."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.INFO)
        self._progress = progress
        self._logger = logging.getLogger("fmnist")

    def emit(self, record: logging.LogRecord) -> None:
        self._progress.message(record.getMessage())

    def __enter__(self) -> None:
        self._level = self._logger.level
        self._logger.setLevel(logging.INFO)
        self._logger.addHandler(self)

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
        self._logger.setLevel(self._level)
