"""Keeps what each lane of a group was at the epoch that is best by the metric."""

from __future__ import annotations

import optree
import torch
from torch import Tensor

from fmnist.config.results import EpochMetrics, best_epoch
from fmnist.config.study import StudyConfig
from fmnist.engine import trainer
from fmnist.functional.types import Metrics, Params, State
from fmnist.tuning.progress import GroupProgress


def best_so_far(
    config: StudyConfig, progress: GroupProgress, epoch: trainer.EpochResult
) -> tuple[Params, State]:
    """Return what to evaluate of each lane at its best epoch, this one included."""
    evaluated = epoch.train_state.evaluated
    if progress.kept is None:
        copy: tuple[Params, State] = optree.tree_map(torch.clone, evaluated)
        return copy  # as a snapshot has both
    own = epoch_metrics(epoch.train, epoch.validation)
    better = []
    for trial, metrics in zip(progress.trials, own, strict=True):
        history = [*progress.histories.get(trial.number, []), metrics]
        better.append(best_epoch(history, config.metric) == len(history))

    def chosen(old: Tensor, new: Tensor) -> Tensor:
        shape = (-1, *[1] * (new.dim() - 1))
        return torch.where(torch.tensor(better, device=new.device).view(shape), new, old)

    best: tuple[Params, State] = optree.tree_map(chosen, progress.kept, evaluated)
    return best


def epoch_metrics(train: Metrics, validation: Metrics) -> list[EpochMetrics]:
    """Return the metrics of an epoch, lane by lane, as Python numbers."""
    columns = (train.loss, train.accuracy, validation.loss, validation.accuracy)
    return [EpochMetrics(*row) for row in torch.stack(columns, dim=1).tolist()]
