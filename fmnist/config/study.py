"""The configuration of a study, loaded from a TOML file and checked."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from itertools import product
from typing import Any, Literal

from fmnist.config import checks, factory, study_file
from fmnist.config.factory import AnyModelConfig, FactoryConfig
from fmnist.config.results import Point, Value
from fmnist.config.settings import (
    FACTORY,
    IMAGES,
    SETTINGS,
    TABLES,
    ConfigError,
    Setting,
    given_twice,
    read_axis,
    unknown,
)
from fmnist.config.trial import OptimizerConfig, TrainingConfig, TrialConfig
from fmnist.functional.types import ModelConfig

BASELINE_GRID: Mapping[str, tuple[Value, ...]] = {
    "learning_rate": (0.01, 0.001),
    "batch_size": (100, 500, 1000),
}
MAX_POINTS = 100_000
SAMPLE = 5000
"""Training images that stand for validation with ``validation = "train"``."""


@dataclass(frozen=True)
class StudyConfig:
    """The configuration of a study. The constructor checks it, so an instance is always valid.

    Attributes:
        name: name of the study and of its folder.
        epochs: number of epochs of each trial.
        holdout: number of validation images, which are not trained on.
        metric: the metric that Optuna optimizes.
        metric_window: over how many last epochs the metric of a trial is a mean.
        keep: which epoch's parameters and metrics are the result of a trial: those of the
            ``"last"``, or of the one that is ``"best"`` by the metric.
        validation: what stands for the validation images if none are held out: those of the
            ``"test"`` set, or some of those to ``"train"`` on.
        seed, batch_size, model, optimizer, training: values of the settings that are not axes of
            the grid.
        grid: values of each axis, in the order of the file; empty means one trial.

    Raises:
        ConfigError: A setting is invalid, has no effect, or does not fit another one.
    """

    name: str = "baseline"
    epochs: int = 25
    holdout: int = 5000
    seed: int = 0
    metric: str = "validation_accuracy"
    metric_window: int = 1
    keep: str = "last"
    validation: str = "test"
    batch_size: int = 100
    model: AnyModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    grid: Mapping[str, tuple[Value, ...]] = field(
        default_factory=lambda: dict(BASELINE_GRID), hash=False
    )

    def __post_init__(self) -> None:
        given = {key: self.setting(key) for key in self.settings}
        missing = self._missing(given)
        values = {k: self.settings[k].read(v) for k, v in given.items() if k not in missing}
        for key, value in self._of_table("study", values).items():
            object.__setattr__(self, key, value)
        object.__setattr__(self, "model", self._model(values))
        object.__setattr__(self, "optimizer", self._optimizer(values))
        object.__setattr__(self, "training", self._training(values))
        grid = {key: read_axis(self.settings, key, raw) for key, raw in self.grid.items()}
        object.__setattr__(self, "grid", grid)
        if self.size > MAX_POINTS:
            reason = f"has {self.size} points, at most {MAX_POINTS} are allowed"
            raise ConfigError(reason, "grid", also=tuple(self.grid))
        changed = [key for key, value in values.items() if value != self.defaults.get(key)]
        for key in changed:
            if key in self.grid:
                raise given_twice(self.settings[key], values[key])
        for key in missing:
            if key not in self.grid:
                raise ConfigError("must be given, as its factory has no default for it", key)
        checks.check_effects(self, [*changed, *self.grid])
        checks.check_combinations(self)

    def _missing(self, given: Mapping[str, Any]) -> list[str]:
        """Return the arguments of a factory that have no default and are not given.

        Raises:
            ConfigError: An argument is given that the factory does not have.
        """
        if not isinstance(self.model, FactoryConfig):
            return []
        names = [key for key, setting in self.settings.items() if setting.table == "model"]
        for key, value in self.model.arguments:
            if key not in names:
                raise unknown(self.settings, "setting of [model]", key, value, names)
        return [key for key in names if given[key] is None]

    @property
    def settings(self) -> Mapping[str, Setting]:
        """The settings of the study by name; those of its model depend on its factory."""
        model = self.model
        return factory.settings_of(model.factory if isinstance(model, FactoryConfig) else None)

    @property
    def defaults(self) -> Mapping[str, Any]:
        """The defaults of all settings that have one, by name."""
        return {**_DEFAULTS, **factory.defaults_of(self.model)}

    def _of_table(self, table: str, values: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if self.settings[key].table == table}

    def _model(self, values: Mapping[str, Any]) -> AnyModelConfig:
        model = self._of_table("model", values)
        if isinstance(self.model, FactoryConfig):
            return FactoryConfig.of(model)
        return ModelConfig(**model)

    def _optimizer(self, values: Mapping[str, Any]) -> OptimizerConfig:
        return OptimizerConfig(**self._of_table("optimizer", values))

    def _training(self, values: Mapping[str, Any]) -> TrainingConfig:
        return TrainingConfig(**self._of_table("training", values))

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """Whether Optuna maximizes or minimizes the metric."""
        return "minimize" if self.metric.endswith("loss") else "maximize"

    @property
    def validation_is_test(self) -> bool:
        """Whether the test set is used for validation, as in the original project."""
        return self.holdout == 0 and self.validation == "test"

    @property
    def validation_is_trained(self) -> bool:
        """Whether the model was trained on the images that stand for validation."""
        return self.holdout == 0 and self.validation == "train"

    def validation_images(self, tested: int, trained: int = IMAGES) -> int:
        """Return how many images the ``validation_*`` metrics are of.

        Args:
            tested: number of test images.
            trained: number of training images.
        """
        sample = max(min(SAMPLE, trained - 1), 1)
        return self.holdout or (sample if self.validation_is_trained else tested)

    @property
    def size(self) -> int:
        """Number of points of the grid."""
        return math.prod(len(axis) for axis in self.grid.values())

    def setting(self, key: str) -> Any:
        """Return the value of a setting. For an axis: its default, or None without one."""
        table = self.settings[key].table
        if isinstance(self.model, FactoryConfig) and table == "model":
            return self.model.values().get(key, self.defaults.get(key))
        return getattr(self if table == "study" else getattr(self, table), key)

    def points(self) -> Iterator[Point]:
        """Yield the points of the grid. The last axis changes fastest."""
        for values in product(*self.grid.values()):
            yield dict(zip(self.grid, values, strict=True))

    def trial(self, point: Point) -> TrialConfig:
        """Return the settings of a point of the grid. Unused settings have their default."""
        if set(point) != set(self.grid) or any(point[key] not in self.grid[key] for key in point):
            raise ValueError(f"{dict(point)} is no point of the grid of {self.name}")
        values = {
            key: setting.read(point[key]) if key in point else self.setting(key)
            for key, setting in self.settings.items()
        }
        for key, setting in self.settings.items():
            if setting.need and not setting.need.met(values[setting.need.key]):
                values[key] = self.defaults[key]
        return TrialConfig(
            values["batch_size"], values["seed"], self._model(values), self._optimizer(values),
            self._training(values),
        )  # fmt: skip

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return the tables of the study file as JSON values, without settings without effect."""
        tables: dict[str, dict[str, Any]] = {table: {} for table in TABLES}
        for key, setting in self.settings.items():
            if key not in self.grid and any(checks.needs_met(self, key)):
                value = self.setting(key)
                tables[setting.table][key] = list(value) if isinstance(value, tuple) else value
        tables["grid"] = {key: list(axis) for key, axis in self.grid.items()}
        return {table: entries for table, entries in tables.items() if entries}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StudyConfig:
        """Make a configuration from the tables of a study file. Without a grid it has one trial."""
        return build(*study_file.split(data))

    def to_toml(self) -> str:
        """Return the text of an equivalent study file with every setting."""
        # TOML and JSON write names, numbers, booleans and flat lists of these in the same way.
        return "\n".join(
            f"[{table}]\n" + "".join(f"{_key(k)} = {json.dumps(v)}\n" for k, v in entries.items())
            for table, entries in self.to_dict().items()
        )

    def values(self, key: str) -> list[Any]:
        """Return the values that a setting has in the trials of the study."""
        axis = self.grid.get(key)
        return [self.setting(key)] if axis is None else list(map(self.settings[key].read, axis))


def _key(name: str) -> str:
    """Return a key as TOML writes it: an argument's name may have letters beyond ASCII."""
    return name if name.isascii() else json.dumps(name, ensure_ascii=False)


_DEFAULTS: Mapping[str, Any] = {
    entry.name: entry.default
    for config in (StudyConfig, OptimizerConfig, TrainingConfig)
    for entry in fields(config)
    if entry.name in SETTINGS
}


def build(given: Mapping[str, Any], axes: Mapping[str, Any]) -> StudyConfig:
    """Make a configuration.

    Args:
        given: the settings that are not axes, by name.
        axes: the values of each axis.

    Raises:
        ConfigError: A setting is invalid, has no effect, or does not fit another one.
    """
    settings = factory.settings_of(given.get(FACTORY))

    def of_table(table: str) -> dict[str, Any]:
        return {key: value for key, value in given.items() if settings[key].table == table}

    model = of_table("model")
    config = StudyConfig(
        **of_table("study"),
        model=FactoryConfig.of(model) if FACTORY in model else ModelConfig(**model),
        optimizer=OptimizerConfig(**of_table("optimizer")),
        training=TrainingConfig(**of_table("training")),
        grid=axes,
    )
    # The constructor does not check settings that were given with their default value.
    checks.check_effects(config, given)
    return config


def model_values(model: AnyModelConfig) -> dict[str, Any]:
    """Return the settings of a model as JSON can hold them, for :func:`read_model`."""
    values = vars(model) if isinstance(model, ModelConfig) else model.values()
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def read_model(table: object) -> AnyModelConfig:
    """Read the settings of a model from a table [model]; missing ones have their default.

    Raises:
        ConfigError: A setting is unknown or invalid.
    """
    given, _ = study_file.split({"model": table})
    model = FactoryConfig.of(given) if FACTORY in given else ModelConfig(**given)
    return StudyConfig(model=model, grid={}).model
