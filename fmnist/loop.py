"""fit(): drives the lanes of one group over epochs. It computes and yields; it never logs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import optree
import torch
from torch import Tensor

from fmnist.functional import batching, lanes, optim, train
from fmnist.functional.trace import traced
from fmnist.functional.types import (
    Batch,
    Hyperparams,
    Metrics,
    ModelConfig,
    Params,
    Split,
    State,
    TrainState,
)

EVAL_BATCH = 500


class Lane(NamedTuple):
    """What is a lane's own: its seed, and its numbers by the names of ``Hyperparams``."""

    seed: int
    numbers: Mapping[str, float]


@dataclass(frozen=True)
class Group:
    """Lanes that share one program, and what makes it one program."""

    model: ModelConfig
    algorithm: str
    nesterov: bool
    batch_size: int
    lanes: tuple[Lane, ...]

    def optimizer(self, hyperparams: Hyperparams) -> optim.GradientTransformation:
        """One lane's optimizer, built from its numbers."""
        inner = optim.from_hyperparams(self.algorithm, hyperparams, nesterov=self.nesterov)
        return optim.flatten(inner)

    @property
    def shared(self) -> bool:
        """Whether all lanes see the same examples: they do when they have one seed."""
        return len({lane.seed for lane in self.lanes}) == 1


class LoopState(NamedTuple):
    """All that :func:`fit` needs to go on after an epoch, in one pytree."""

    epoch: int
    train_state: TrainState


class EpochResult(NamedTuple):
    """One epoch of every lane.

    Attributes:
        epoch: counted from 1.
        train: metrics ``[lanes]`` taken while the epoch trained.
        validation: metrics ``[lanes]`` after it.
        train_state: stacked, after the epoch.
    """

    epoch: int
    train: Metrics
    validation: Metrics
    train_state: TrainState


def hyperparams(group: Group, device: torch.device) -> Hyperparams:
    """The lanes' numbers, stacked ``[lanes]``; float64, so that nothing is rounded early."""
    return Hyperparams(
        *(
            torch.tensor([lane.numbers[name] for lane in group.lanes], dtype=torch.float64).to(
                device
            )
            for name in Hyperparams._fields
        )
    )


def start(group: Group, device: torch.device, dtype: torch.dtype = torch.float32) -> TrainState:
    """The lanes before their first step, stacked."""
    stacked = hyperparams(group, torch.device("cpu"))
    solo = [
        train.start(lane.seed, group.model, own, group.optimizer, dtype=dtype)
        for lane, own in zip(group.lanes, lanes.unstack(stacked), strict=True)
    ]
    return optree.tree_map(lambda leaf: leaf.to(device), lanes.stack(solo))


def evaluate(
    params: Params, state: State, split: Split, dtype: torch.dtype = torch.float32
) -> Metrics:
    """The metrics ``[lanes]`` of a whole split in evaluation mode."""
    total = None
    with torch.no_grad():
        everything = torch.arange(len(split.labels), device=split.labels.device)
        for indices in everything.split(EVAL_BATCH):
            batch = batching.gather(split, indices, dtype)
            total = _sum(total, lanes.eval_step(params, state, batch))
    assert total is not None, "an empty split has no metrics"
    return total


def fit(
    group: Group,
    training: Split,
    validation: Split,
    *,
    epochs: int,
    resume: LoopState | None = None,
    dtype: torch.dtype = torch.float32,
) -> Iterator[EpochResult]:
    """Train the lanes of ``group``, one epoch at a time, on the device where the data lies.

    Args:
        group: what to train.
        training, validation: examples, as uint8 tensors on the device.
        epochs: train until this many are done.
        resume: go on from here instead of from the lanes' seeds.
        dtype: of parameters and images.
    """
    device = training.images.device
    numbers = hyperparams(group, device)
    done, train_state = resume or LoopState(0, start(group, device, dtype))
    step = traced(
        partial(
            lanes.train_step,
            shared=group.shared,
            optimizer=group.optimizer,
            dropout=group.model.dropout,
        )
    )
    for epoch in range(done + 1, epochs + 1):
        total = None
        for batch in _batches(group, training, epoch, dtype):
            train_state, metrics = step(train_state, batch, numbers)
            total = _sum(total, metrics)
        assert total is not None, "an empty split trains nothing"
        seen = evaluate(train_state.params, train_state.state, validation, dtype)
        yield EpochResult(epoch, total, seen, train_state)


def _batches(group: Group, split: Split, epoch: int, dtype: torch.dtype) -> Iterator[Batch]:
    """The epoch's minibatches: one for all lanes where they share a seed, else stacked."""
    device, examples = split.images.device, len(split.labels)
    seeds = [lane.seed for lane in group.lanes[: 1 if group.shared else None]]
    orders = [batching.permutation(seed, epoch, examples) for seed in seeds]
    order = (orders[0] if group.shared else torch.stack(orders)).to(device)
    for step, indices in enumerate(order.split(group.batch_size, dim=-1)):
        size = indices.shape[-1]
        noise = [batching.dropout_noise(s, epoch, step, size, group.model) for s in seeds]
        own: tuple[Tensor, ...] = (
            noise[0] if group.shared else tuple(torch.stack(n) for n in zip(*noise, strict=True))
        )
        batch = batching.gather(split, indices, dtype)
        yield batch._replace(noise=tuple(n.to(device, dtype) for n in own))


def _sum(total: Metrics | None, metrics: Metrics) -> Metrics:
    return metrics if total is None else optree.tree_map(torch.add, total, metrics)
