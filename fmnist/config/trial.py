"""The settings of a trial: its network, its optimizer and what a step of its training does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from fmnist.config.factory import AnyModelConfig
from fmnist.config.settings import DYNAMIC_KEYS, SETTINGS
from fmnist.functional.recipe import NUMBERS, Recipe
from fmnist.functional.types import ModelConfig

HYPERPARAMS = tuple(key for key in DYNAMIC_KEYS if SETTINGS[key].table != "study")


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its numbers. Each algorithm ignores the numbers of the others."""

    algorithm: str = "adam"
    learning_rate: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    nesterov: bool = False
    decay_biases: bool = True


@dataclass(frozen=True)
class TrainingConfig:
    """What a training step does besides; see :mod:`fmnist.functional.recipe`. 0 turns each off."""

    flip: str = "none"
    shift: int = 0
    erasing: float = 0.0
    label_smoothing: float = 0.0
    schedule: str = "constant"
    warmup: float = 0.0
    floor: float = 0.0
    ema_decay: float = 0.0
    clip_norm: float = 0.0

    @property
    def recipe(self) -> Recipe:
        """The features that are on, without their numbers."""
        on = tuple(name for name in NUMBERS if getattr(self, name))
        return Recipe(self.flip, self.schedule, on)


class Static(NamedTuple):
    """The settings that must be equal for trials to share one program."""

    model: AnyModelConfig
    algorithm: str
    nesterov: bool
    decay_biases: bool
    batch_size: int
    recipe: Recipe


@dataclass(frozen=True)
class TrialConfig:
    """All settings of one trial."""

    batch_size: int = 100
    seed: int = 0
    model: AnyModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    @property
    def static(self) -> Static:
        """The static settings. Trials with equal ones form a group."""
        optimizer = self.optimizer
        switches = (optimizer.algorithm, optimizer.nesterov, optimizer.decay_biases)
        return Static(self.model, *switches, self.batch_size, self.training.recipe)

    @property
    def hyperparams(self) -> dict[str, float]:
        """The numbers of all optimizers and of the recipe, by name; each uses its own."""
        own = vars(self.optimizer) | vars(self.training)
        return {key: own[key] for key in HYPERPARAMS}
