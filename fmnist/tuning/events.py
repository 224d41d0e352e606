"""What happens while a study trains. The scheduler yields these; observers get them as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fmnist.config.results import EpochMetrics, TrialResult
from fmnist.functional.types import Params, State
from fmnist.tuning.grid import Trial


@dataclass(frozen=True)
class GroupStarted:
    """A group of trials that share one program is about to train.

    Attributes:
        index: which group it is, from 0.
        total: how many groups there are.
        trials: its lanes.
        epochs: how long each trains, those behind it included.
        epochs_left: of all trials of this and the later groups; an epoch of one trial is one.
        images: training images of an epoch of one trial.
        histories: of a group that goes on, by trial number.
        variant: of the model, by name; empty where the model names none.
    """

    index: int
    total: int
    trials: Sequence[Trial]
    epochs: int
    epochs_left: int
    images: int
    histories: Mapping[int, Sequence[EpochMetrics]]
    variant: str


@dataclass(frozen=True)
class EpochFinished:
    """Every sound lane's metrics of an epoch, by trial number; ``seconds`` for the whole group."""

    epoch: int
    metrics: dict[int, EpochMetrics]
    seconds: float


@dataclass(frozen=True)
class TrialFinished:
    """A trial ended and Optuna has not been told yet."""

    result: TrialResult
    params: Params
    state: State


@dataclass(frozen=True)
class LanesHalved:
    """Memory ran out: so many lanes go on in two halves from after this epoch."""

    lanes: int
    epoch: int


Event = GroupStarted | EpochFinished | TrialFinished | LanesHalved

Observer = Callable[[Event], None]
"""Acts on an event before Optuna is told of its consequence."""
