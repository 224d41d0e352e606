"""How far some lanes have come, and how that outlives the process.

Killed at any moment, a run goes on from the last snapshot of each group, and ends with the same
bits: a snapshot holds all that a step reads but the data, and what is random is keyed by seed and
epoch.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import optree
import torch
from torch import Tensor

from fmnist.config.factory import build_model
from fmnist.config.results import EpochMetrics
from fmnist.config.study import TrialConfig
from fmnist.engine import trainer
from fmnist.engine.lanes import Lanes, optimizer_numbers
from fmnist.functional import optim, vmap
from fmnist.functional.train import Optimizer
from fmnist.rundir.snapshots import Generations, Snapshot
from fmnist.tuning.grid import Trial

log = logging.getLogger(__name__)


@dataclass
class GroupProgress:
    """What is known of some lanes of a group so far.

    Attributes:
        trials: the lanes.
        at: where their training is; None at its beginning.
        histories: by trial number.
        failed: by trial number, why.
        seconds: of training.
    """

    trials: Sequence[Trial]
    at: trainer.TrainerState | None = None
    histories: dict[int, list[EpochMetrics]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def epoch(self) -> int:
        """Epochs that are done."""
        return self.at.epoch if self.at else 0

    def take(self, chosen: Sequence[int]) -> GroupProgress:
        """The same for the lanes at these positions alone."""
        at = self.at
        if at is not None:
            index = torch.tensor(chosen, dtype=torch.int64)
            state, total = vmap.take((at.train_state, at.total), index)
            at = at._replace(train_state=state, total=total)
        trials = [self.trials[i] for i in chosen]
        numbers = {trial.number for trial in trials}
        return GroupProgress(
            trials,
            at,
            {number: list(past) for number, past in self.histories.items() if number in numbers},
            {number: why for number, why in self.failed.items() if number in numbers},
            self.seconds * len(chosen) / len(self.trials),
        )

    def halves(self) -> list[GroupProgress]:
        """Each half of the lanes by itself."""
        positions, middle = list(range(len(self.trials))), len(self.trials) // 2
        return [self.take(positions[:middle]), self.take(positions[middle:])]


class Checkpointer:
    """Keeps the progress of each group in a folder.

    Args:
        folder: made where needed.
        every: seconds between the snapshots at the ends of epochs.
        within: seconds without one after which one is taken inside of an epoch.
        clock: what tells the time.
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
        self._clock, self._last = clock, clock()

    def due(self) -> bool:
        """Whether to keep what an epoch's end has brought."""
        return self._clock() - self._last >= self.every

    def overdue(self) -> bool:
        """Whether not to wait for the epoch's end."""
        return self._clock() - self._last >= self.within

    def save(self, progress: GroupProgress) -> None:
        """Keep where these lanes are; nothing where they have not begun."""
        if progress.at is not None:
            self.folder.mkdir(exist_ok=True)  # not what it lies in: that may be lost
            self._of(progress).save(*snapshot(progress))
        self._last = self._clock()

    def forget(self, progress: GroupProgress) -> None:
        """These lanes are done, or go on as others."""
        self._of(progress).delete()

    def clear(self) -> None:
        """All is done: forget everything, also what a kill left behind."""
        if self.folder.is_dir():
            shutil.rmtree(self.folder)

    def restore(self, trials: Iterable[Trial], device: torch.device) -> list[GroupProgress]:
        """The progress of those of these trials that have some, group by group."""
        pending = {trial.number: trial for trial in trials}
        found = []
        for folder in sorted(self.folder.glob("*/")):
            generations = Generations(folder)
            kept = generations.load()
            if kept is None:
                continue
            try:
                progress = restored(kept, pending, device)
            except (ValueError, TypeError, KeyError) as error:
                log.warning("%s: is not used (%s)", folder, error)
                progress = None
            if progress is None:
                generations.delete()  # of trials that are done, or of another version
                continue
            found.append(progress)
            for trial in progress.trials:
                del pending[trial.number]
        return found

    def _of(self, progress: GroupProgress) -> Generations:
        numbers = [trial.number for trial in progress.trials]
        name = hashlib.sha256(repr(numbers).encode()).hexdigest()[:12]
        return Generations(self.folder / f"{numbers[0]:05}-{name}")


def snapshot(progress: GroupProgress) -> Snapshot:
    """What a snapshot holds of lanes that have begun."""
    assert progress.at is not None
    return Snapshot(
        _named(progress.at),
        {
            "trials": [[trial.number, dict(trial.point)] for trial in progress.trials],
            "epoch": progress.at.epoch,
            "examples": progress.at.examples,
            "histories": {str(n): past for n, past in progress.histories.items()},
            "failed": {str(n): why for n, why in progress.failed.items()},
            "seconds": progress.seconds,
        },
    )


def restored(
    kept: Snapshot, pending: Mapping[int, Trial], device: torch.device
) -> GroupProgress | None:
    """The progress that a snapshot holds, of those lanes that are pending; None without any.

    A lane that is not pending any more has been told to Optuna: its group was done with training.

    Raises:
        ValueError: The snapshot is of another network or optimizer than these lanes have.
    """
    about = kept.about
    points = dict(about["trials"])
    chosen = [
        position
        for position, (number, point) in enumerate(about["trials"])
        if number in pending and dict(pending[number].point) == point
    ]
    if not chosen:
        return None
    some = pending[about["trials"][chosen[0]][0]]
    alone = trainer.start(program_of(some.config), lanes_of([some.config]), device)
    total = trainer.zero_metrics(1, device) if about["examples"] else None
    paths, leaves, treespec = optree.tree_flatten_with_path((alone, total))
    names = [_name(path) for path in paths]
    if sorted(names) != sorted(kept.tensors):
        raise ValueError("its tensors are not those of such a network and optimizer")
    found = [kept.tensors[name].to(device) for name in names]
    for name, tensor, leaf in zip(names, found, leaves, strict=True):
        if tensor.shape != (len(points), *leaf.shape[1:]) or tensor.dtype != leaf.dtype:
            raise ValueError(f"its {name} has another shape or type")
    state, total = optree.tree_unflatten(treespec, found)
    whole = GroupProgress(
        [pending.get(number, some) for number, _ in about["trials"]],  # those told are not taken
        trainer.TrainerState(about["epoch"], state, total, about["examples"]),
        {int(n): [EpochMetrics(*row) for row in past] for n, past in about["histories"].items()},
        {int(n): why for n, why in about["failed"].items()},
        about["seconds"],
    )
    return whole.take(chosen)


OPTIMIZERS: Mapping[str, Optimizer] = {
    "adam": optim.adam,
    "adamw": optim.adamw,
    "sgd": optim.sgd,
    "sgd with nesterov": partial(optim.sgd, nesterov=True),
}


def program_of(config: TrialConfig) -> trainer.Program:
    """The program that trials of this static configuration share."""
    static = config.static
    optimizer = OPTIMIZERS[static.algorithm + " with nesterov" * static.nesterov]
    return trainer.Program(build_model(static.model), optimizer, static.batch_size)


def lanes_of(configs: Sequence[TrialConfig]) -> Lanes:
    """These configurations, equal in what is static, as lanes of their program."""
    known = optimizer_numbers(program_of(configs[0]).optimizer)
    numbers = [config.hyperparams for config in configs]
    return Lanes(
        tuple(config.seed for config in configs),
        {name: tuple(own[name] for own in numbers) for name in known},
    )


def _named(at: trainer.TrainerState) -> dict[str, Tensor]:
    """The tensors of a state, by their paths, in order."""
    paths, leaves, _ = optree.tree_flatten_with_path((at.train_state, at.total))
    return {_name(path): leaf for path, leaf in zip(paths, leaves, strict=True)}


def _name(path: tuple[object, ...]) -> str:
    return ".".join(map(str, path))
