"""The events of a study in training. The scheduler yields them, and observers receive them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fmnist.config.results import EpochMetrics, TrialResult
from fmnist.functional.types import Params, State
from fmnist.tuning.grid import Trial


@dataclass(frozen=True)
class GroupStarted:
    """A group of trials that share one program starts or resumes training.

    Attributes:
        index: number of the group, counted from 0.
        total: number of groups.
        trials: the trials of the lanes.
        epochs: total number of epochs of each trial, including those before a resume.
        epochs_left: number of epochs left in this and the later groups, summed over the trials.
        images: number of training images in an epoch of one trial.
        histories: metrics of the epochs before a resume, by trial number.
        variant: name of the variant of the model; empty if the model has none.
        epochs_all: number of epochs of the whole study, summed over its trials.
        epoch: number of complete epochs of each trial before a resume.
        examples: number of images of the next epoch that were trained before a resume.
        seconds: training time of the group before a resume.
    """

    index: int
    total: int
    trials: Sequence[Trial]
    epochs: int
    epochs_left: int
    images: int
    histories: Mapping[int, Sequence[EpochMetrics]]
    variant: str
    epochs_all: int = 0
    epoch: int = 0
    examples: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class BatchesTrained:
    """A group has come further within an epoch: after its first step, then about twice a second.

    Attributes:
        epoch: number of complete epochs.
        examples: number of images of the next epoch that each trial was trained on. On a GPU these
            steps may still be waiting to be computed.
        seconds: training time of the whole group so far; NaN on a GPU, where it says nothing.
    """

    epoch: int
    examples: int
    seconds: float


@dataclass(frozen=True)
class EpochFinished:
    """An epoch of a group ended.

    Attributes:
        epoch: the epoch, counted from 1.
        metrics: metrics of the lanes that have not failed, by trial number.
        seconds: training time of the whole group so far.
    """

    epoch: int
    metrics: dict[int, EpochMetrics]
    seconds: float


@dataclass(frozen=True)
class TrialFinished:
    """A trial ended. Optuna does not have its result yet."""

    result: TrialResult
    params: Params
    state: State


@dataclass(frozen=True)
class LanesHalved:
    """Memory ran out. This number of lanes continues in two halves after this epoch."""

    lanes: int
    epoch: int


Event = GroupStarted | BatchesTrained | EpochFinished | TrialFinished | LanesHalved

Observer = Callable[[Event], None]
"""A function that handles an event before the result is reported to Optuna."""
