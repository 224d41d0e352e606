"""The progress of groups of lanes, and its snapshots.

A run that was killed resumes each group from its last snapshot and ends with the same bits. A
snapshot has everything that a step reads, except the data; random numbers depend on seed and epoch
only.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import optree
import torch
from torch import Tensor

from fmnist.config.factory import FactoryConfig, build_model, unusable
from fmnist.config.results import EpochMetrics
from fmnist.config.trial import TrialConfig
from fmnist.engine import step, trainer
from fmnist.engine.lanes import Lanes, optimizer_numbers
from fmnist.functional import optim, vmap
from fmnist.functional.train import Optimizer
from fmnist.rundir.models import named_leaves
from fmnist.rundir.snapshots import Generations, Snapshot
from fmnist.tuning.grid import Trial
from fmnist.tuning.kills import LanesNote
from fmnist.utils import memory

log = logging.getLogger(__name__)


@dataclass
class GroupProgress:
    """The progress of the lanes of a group.

    Attributes:
        trials: the trials of the lanes.
        at: the state of training; None before it starts.
        histories: metrics of the epochs so far, by trial number.
        failed: reasons of failures, by trial number.
        seconds: time of training so far.
        kept: stacked ``(params, state)`` of the best epoch of each lane, if a study keeps these.
    """

    trials: Sequence[Trial]
    at: trainer.TrainerState | None = None
    histories: dict[int, list[EpochMetrics]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0
    kept: Any = None

    @property
    def epoch(self) -> int:
        """Number of complete epochs."""
        return self.at.epoch if self.at else 0

    def take(self, chosen: Sequence[int]) -> GroupProgress:
        """Return the progress of the lanes at these positions."""
        at, kept = self.at, self.kept
        if at is not None:
            index = torch.tensor(chosen, dtype=torch.int64)
            state, total, kept = vmap.take((at.train_state, at.total, kept), index)
            at = at._replace(train_state=state, total=total)
        trials = [self.trials[i] for i in chosen]
        numbers = {trial.number for trial in trials}
        return GroupProgress(
            trials,
            at,
            {number: list(past) for number, past in self.histories.items() if number in numbers},
            {number: reason for number, reason in self.failed.items() if number in numbers},
            self.seconds * len(chosen) / len(self.trials),
            kept,
        )

    def halves(self) -> list[GroupProgress]:
        """Return the progress of each half of the lanes."""
        positions, middle = list(range(len(self.trials))), len(self.trials) // 2
        return [self.take(positions[:middle]), self.take(positions[middle:])]


class Checkpointer:
    """Writes and reads the snapshots of the groups.

    Args:
        folder: the folder of the snapshots; made if needed.
        every: minimum number of seconds between snapshots at the end of an epoch.
        within: number of seconds after which a snapshot is written within an epoch.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        folder: Path,
        *,
        every: float = 5.0,
        within: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder, self.every, self.within = folder, every, within
        self.note = LanesNote(folder)
        self._clock, self._last = clock, clock()

    def due(self) -> bool:
        """Whether to write a snapshot at the end of an epoch."""
        return self._clock() - self._last >= self.every

    def overdue(self) -> bool:
        """Whether to write a snapshot within an epoch."""
        return self._clock() - self._last >= self.within

    def save(self, progress: GroupProgress) -> None:
        """Write a snapshot of these lanes, if their training has started."""
        if progress.at is not None:
            self.folder.mkdir(exist_ok=True)  # without parents: a folder that is gone must stay so
            self._generations(progress).save(*snapshot(progress))
        self._last = self._clock()

    def forget(self, progress: GroupProgress) -> None:
        """Delete the snapshots of these lanes."""
        self._generations(progress).delete()

    def clear(self) -> None:
        """Delete all snapshots."""
        if self.folder.is_dir():
            shutil.rmtree(self.folder)

    def restore(self, trials: Iterable[Trial], device: torch.device) -> list[GroupProgress]:
        """Read the progress of each group from its snapshots. Delete unusable snapshots."""
        pending = {trial.number: trial for trial in trials}
        groups = []
        for folder in sorted(self.folder.glob("*/")):
            generations = Generations(folder)
            saved = generations.load()
            if saved is None:
                continue
            try:
                progress = restored(saved, pending, device)
            except (ValueError, TypeError, KeyError) as error:
                log.warning("%s: is not used (%s)", folder, error)
                progress = None
            if progress is None:
                generations.delete()  # its trials are finished, or another version wrote it
                continue
            groups.append(progress)
            for trial in progress.trials:
                del pending[trial.number]
        return groups

    def _generations(self, progress: GroupProgress) -> Generations:
        numbers = [trial.number for trial in progress.trials]
        name = hashlib.sha256(repr(numbers).encode()).hexdigest()[:12]
        return Generations(self.folder / f"{numbers[0]:05}-{name}")


def snapshot(progress: GroupProgress) -> Snapshot:
    """Make a snapshot of lanes whose training has started."""
    assert progress.at is not None
    return Snapshot(
        _named(progress.at, progress.kept),
        {
            "trials": [[trial.number, dict(trial.point)] for trial in progress.trials],
            "epoch": progress.at.epoch,
            "examples": progress.at.examples,
            "histories": {str(n): past for n, past in progress.histories.items()},
            "failed": {str(n): reason for n, reason in progress.failed.items()},
            "seconds": progress.seconds,
            "kept": progress.kept is not None,
        },
    )


def restored(
    saved: Snapshot, pending: Mapping[int, Trial], device: torch.device
) -> GroupProgress | None:
    """Read the progress of lanes from a snapshot.

    Args:
        saved: the snapshot.
        pending: the trials that are not finished, by number. The other lanes of the snapshot are
            ignored: Optuna already has their results.
        device: the device of the training.

    Returns:
        The progress of the pending lanes; None if the snapshot has none of them.

    Raises:
        ValueError: The snapshot is of another network or optimizer than these lanes have.
    """
    about = saved.about
    points = dict(about["trials"])
    chosen = [
        position
        for position, (number, point) in enumerate(about["trials"])
        if number in pending and dict(pending[number].point) == point
    ]
    if not chosen:
        return None
    first = pending[about["trials"][chosen[0]][0]]
    one_lane = trainer.start(program_of(first.config), lanes_of([first.config]), device)
    total = step.zero_metrics(1, device) if about["examples"] else None
    kept = one_lane.evaluated if about.get("kept") else None
    names, leaves, treespec = named_leaves((one_lane, total, kept))
    if sorted(names) != sorted(saved.tensors):
        raise ValueError("its tensors are not those of such a network and optimizer")
    tensors = [saved.tensors[name].to(device) for name in names]
    for name, tensor, leaf in zip(names, tensors, leaves, strict=True):
        if tensor.shape != (len(points), *leaf.shape[1:]) or tensor.dtype != leaf.dtype:
            raise ValueError(f"its {name} has another shape or type")
    state, total, kept = optree.tree_unflatten(treespec, tensors)
    group = GroupProgress(
        # Finished trials are missing in `pending`; `take` drops their lanes.
        [pending.get(number, first) for number, _ in about["trials"]],
        trainer.TrainerState(about["epoch"], state, total, about["examples"]),
        {int(n): [EpochMetrics(*row) for row in past] for n, past in about["histories"].items()},
        {int(n): reason for n, reason in about["failed"].items()},
        about["seconds"],
        kept,
    )
    return group.take(chosen)


OPTIMIZERS: Mapping[str, Optimizer] = {
    "adam": optim.adam,
    "adamw": optim.adamw,
    "sgd": optim.sgd,
    "sgd with nesterov": partial(optim.sgd, nesterov=True),
}

_SPARING: Mapping[str, Optimizer] = {
    name: partial(optimizer, decay_biases=False) for name, optimizer in OPTIMIZERS.items()
}
"""The same, with weight decay that spares biases and norms."""


def program_of(config: TrialConfig) -> step.Program:
    """Return the program of a trial. Trials with equal static settings share it."""
    static = config.static
    optimizers = OPTIMIZERS if static.decay_biases else _SPARING
    optimizer = optimizers[static.algorithm + " with nesterov" * static.nesterov]
    model = build_model(static.model)
    return step.Program(model, optimizer, static.batch_size, recipe=static.recipe)


def lanes_of(configs: Sequence[TrialConfig]) -> Lanes:
    """Return the lanes of configurations with equal static settings."""
    program = program_of(configs[0])
    known = (*optimizer_numbers(program.optimizer), *sorted(program.recipe.on))
    numbers = [config.hyperparams for config in configs]
    return Lanes(
        tuple(config.seed for config in configs),
        {name: tuple(values[name] for values in numbers) for name in known},
    )


def _named(at: trainer.TrainerState, kept: Any) -> dict[str, Tensor]:
    """Return the tensors of a state by their names, in order."""
    names, leaves, _ = named_leaves((at.train_state, at.total, kept))
    return dict(zip(names, leaves, strict=True))


@contextlib.contextmanager
def user_errors(config: TrialConfig) -> Iterator[None]:
    """Raise an error of a model from a factory as an error of that setting, in one line."""
    try:
        yield
    except Exception as error:
        if isinstance(config.model, FactoryConfig) and not memory.ran_out(error):
            raise unusable(config.model, error) from error
        raise
