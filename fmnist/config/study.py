"""The configuration of a study, loaded from a TOML file and checked."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from itertools import product
from typing import Any, Literal

from fmnist.config import cases, checks, factory, study_file
from fmnist.config.cases import CASE, Cases
from fmnist.config.errors import ConfigError, given_twice, unknown
from fmnist.config.factory import AnyModelConfig, FactoryConfig
from fmnist.config.results import Point, Value
from fmnist.config.settings import FACTORY, IMAGES, SETTINGS, TABLES, Setting, read_axis
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
        test: whether each trial is evaluated on the test set at its end. False keeps the test set
            unseen, for a study that chooses what another one reports.
        seed, batch_size, model, optimizer, training: values of the settings that are not axes of
            the grid.
        cases: the settings that each case has in place of those of the study, by its name. With
            cases, the first axis of the grid is ``case``; the report compares them with the first.
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
    test: bool = True
    batch_size: int = 100
    model: AnyModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    cases: Cases = field(default_factory=dict, hash=False)
    grid: Mapping[str, tuple[Value, ...]] = field(
        default_factory=lambda: dict(BASELINE_GRID), hash=False
    )
    _of_case: Mapping[str, StudyConfig] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        own = {key: setting for key, setting in self.settings.items() if key != CASE}
        given = {key: self.setting(key) for key in own}
        missing = self._missing(given)
        values = {k: self.settings[k].read(v) for k, v in given.items() if k not in missing}
        for key, value in self._of_table("study", values).items():
            object.__setattr__(self, key, value)
        object.__setattr__(self, "model", self._model(values))
        object.__setattr__(self, "optimizer", self._optimizer(values))
        object.__setattr__(self, "training", self._training(values))
        # The axis that the cases make is there already in a copy of a study.
        made = (CASE, tuple(self.cases)) if self.cases else ()
        axes = {key: raw for key, raw in self.grid.items() if (key, raw) != made}
        grid = {key: read_axis(own, key, raw) for key, raw in axes.items()}
        object.__setattr__(self, "cases", cases.read(own, self.cases, grid))
        object.__setattr__(self, "grid", {CASE: tuple(self.cases), **grid} if self.cases else grid)
        if self.size > MAX_POINTS:
            reason = f"has {self.size} points, at most {MAX_POINTS} are allowed"
            raise ConfigError(reason, "grid", also=tuple(self.grid))
        changed = [key for key, value in values.items() if value != self.defaults.get(key)]
        for key in changed:
            if key in self.grid:
                raise given_twice(self.settings[key], values[key])
        for key in missing:
            if key not in self.grid and not self._in_every_case(key):
                raise ConfigError("must be given, as its factory has no default for it", key)
        object.__setattr__(self, "_of_case", {name: self._study_of(name) for name in self.cases})
        checks.check_effects(self, [*changed, *self.grid])
        if self.cases:
            cases.check(self, self._of_case, changed)
        else:
            checks.check_combinations(self)

    def _in_every_case(self, key: str) -> bool:
        return bool(self.cases) and all(key in changed for changed in self.cases.values())

    def _study_of(self, case: str) -> StudyConfig:
        """Return the study of one case: its settings are fixed, and ``case`` is no axis."""
        changed = self.cases[case]
        fixed = {key: self.setting(key) for key in self.settings if key not in self.grid}
        given = {**fixed, **changed}
        for key in [*given]:
            need = self.settings[key].need
            acts = need is None or any(
                need.met(self.settings[need.key].read(value))
                for value in self.grid.get(need.key, [given.get(need.key)])
            )
            if given[key] is None or not (acts or key in changed):
                del given[key]
        with cases.blamed(case, changed):
            return build(given, {key: axis for key, axis in self.grid.items() if key != CASE})

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
        own = factory.settings_of(model.factory if isinstance(model, FactoryConfig) else None)
        return {**own, CASE: cases.SETTING} if self.cases else own

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
        if self.cases:
            rest = {key: value for key, value in point.items() if key != CASE}
            return self._of_case[str(point[CASE])].trial(rest)
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
                if value is None:  # every case gives it
                    continue
                tables[setting.table][key] = list(value) if isinstance(value, tuple) else value
        tables[cases.TABLE] = {
            name: {key: list(v) if isinstance(v, tuple) else v for key, v in changed.items()}
            for name, changed in self.cases.items()
        }
        tables["grid"] = {key: list(axis) for key, axis in self.grid.items() if key != CASE}
        return {table: entries for table, entries in tables.items() if entries}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StudyConfig:
        """Make a configuration from the tables of a study file. Without a grid it has one trial."""
        return build(*study_file.split(data))

    def to_toml(self) -> str:
        """Return the text of an equivalent study file with every setting."""
        return "\n".join(
            f"[{table}]\n" + "".join(f"{_key(k)} = {_toml(v)}\n" for k, v in entries.items())
            for table, entries in self.to_dict().items()
        )

    def values(self, key: str) -> list[Any]:
        """Return the values that a setting has in the trials of the study."""
        if key in self.grid:
            return list(map(self.settings[key].read, self.grid[key]))
        return list(dict.fromkeys(s.setting(key) for s in (*self._of_case.values(),) or (self,)))


def _key(name: str) -> str:
    """Return a key as TOML writes it: an argument's name may have letters beyond ASCII."""
    return name if re.fullmatch("[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)


def _toml(value: Any) -> str:
    """Return a value as TOML writes it, in the same way as JSON but for a table."""
    if isinstance(value, dict):
        inside = ", ".join(f"{_key(k)} = {_toml(v)}" for k, v in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    return json.dumps(value)


_DEFAULTS: Mapping[str, Any] = {
    entry.name: entry.default
    for config in (StudyConfig, OptimizerConfig, TrainingConfig)
    for entry in fields(config)
    if entry.name in SETTINGS
}


def build(
    given: Mapping[str, Any], axes: Mapping[str, Any], of_cases: Cases | None = None
) -> StudyConfig:
    """Make a configuration.

    Args:
        given: the settings that are not axes, by name.
        axes: the values of each axis.
        of_cases: the settings of each case, by its name.

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
        cases=of_cases or {},
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
    given, *_ = study_file.split({"model": table})
    model = FactoryConfig.of(given) if FACTORY in given else ModelConfig(**given)
    return StudyConfig(model=model, grid={}).model
