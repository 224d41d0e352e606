"""The table of the settings of a study. Checks, messages and the axes of the grid use it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from fmnist.config import kinds
from fmnist.config.errors import ConfigError, nearest, unknown
from fmnist.config.kinds import Kind
from fmnist.config.results import Value
from fmnist.functional.recipe import FLIPS
from fmnist.functional.schedules import SCHEDULES

Widths = tuple[int, ...]


class Need(NamedTuple):
    """A condition on another setting.

    Attributes:
        key: the other setting.
        reader: the values that meet the condition, in words.
        met: returns whether a value meets the condition.
    """

    key: str
    reader: str
    met: Callable[[Any], bool]


@dataclass(frozen=True)
class Setting:
    """A setting.

    Attributes:
        key: its name.
        table: its table in the study file.
        role: trials with different ``"static"`` settings need different programs; trials with
            different ``"dynamic"`` settings can be lanes of one program. ``"study"`` settings are
            the same for all trials and cannot be an axis.
        kind: the values that it can take.
        need: the condition under which it has an effect; None for always.
    """

    key: str
    table: Literal["study", "model", "optimizer", "training", "cases"]
    role: Literal["study", "static", "dynamic"]
    kind: Kind
    need: Need | None = None

    def read(self, raw: object) -> Any:
        """Check a value from TOML, JSON, Python or a grid point, and convert it.

        Raises:
            ConfigError: The value has a wrong type or is out of range.
        """
        value = self._convert(raw)
        if value is None or not self.kind.check(value):
            hint = nearest(raw, self.kind.choices) if isinstance(raw, str) else ""
            raise ConfigError(f"must be {self.kind.allowed}{hint}", self.key, raw)
        return value

    def parse(self, text: str) -> object:
        """Convert a word of the command line to the type; an invalid word is returned unchanged."""
        text = text.strip()
        kind = self.kind.type
        if kind is bool:
            return {"true": True, "false": False}.get(text.lower(), text)
        try:
            return kind(text) if kind in (int, float) else text
        except ValueError:
            return text

    def scalar(self, raw: object) -> Value:
        """Check a value and convert it to the scalar that represents it on an axis of the grid."""
        value = self.read(raw)
        if self.kind.type is tuple:
            return "-".join(map(str, value)) or "none"
        scalar: Value = value
        return scalar

    def _convert(self, raw: object) -> Any:
        """Convert a value to the type; None if it has another type (a bool is not an int)."""
        kind = self.kind.type
        if kind is tuple:
            return _widths(raw)
        if kind is float:
            if isinstance(raw, bool) or not isinstance(raw, int | float):
                return None
            try:
                # + 0.0 turns -0.0 into 0.0. They are equal, so their texts must be equal, too.
                value = float(raw) + 0.0
            except OverflowError:
                return None
            return value if math.isfinite(value) else None
        if isinstance(raw, bool) and kind is not bool:
            return None
        if raw in self.kind.choices:
            return raw
        return kind(raw) if isinstance(raw, kind) else None


def _is_int(raw: object) -> bool:
    return isinstance(raw, int) and not isinstance(raw, bool)


def _widths(raw: object) -> Widths | None:
    if isinstance(raw, str) and raw == "none":
        return ()
    if isinstance(raw, str) and re.fullmatch("[0-9]{1,9}(-[0-9]{1,9})*", raw):
        return tuple(map(int, raw.split("-")))
    items = raw if isinstance(raw, list | tuple) else [raw]
    return tuple(map(int, items)) if all(map(_is_int, items)) else None


_ADAM = Need("algorithm", "adam and adamw", ("adam", "adamw").__contains__)
_SGD = Need("algorithm", "sgd", ("sgd",).__contains__)
_HIDDEN = Need("hidden", "hidden layers", bool)
_DECAY = Need("weight_decay", "a weight decay above 0", bool)
_KEEPS_LAST = Need("keep", '"last"', "last".__eq__)
_NOTHING_HELD = Need("holdout", "a holdout of 0", lambda images: images == 0)
_FALLING = Need("schedule", "linear, cosine and one-cycle", SCHEDULES[1:].__contains__)

IMAGES = 60_000
"""The number of images for training and validation together."""

SETTINGS: Mapping[str, Setting] = {
    setting.key: setting
    for setting in (
        Setting("name", "study", "study", kinds.NAME),
        Setting("epochs", "study", "study", kinds.integer(1, 10_000)),
        Setting("holdout", "study", "study", kinds.integer(0, 50_000)),
        Setting("metric", "study", "study", kinds.choice("validation_accuracy", "validation_loss")),
        Setting("metric_window", "study", "study", kinds.integer(1, 1000), need=_KEEPS_LAST),
        Setting("keep", "study", "study", kinds.choice("last", "best")),
        Setting("validation", "study", "study", kinds.choice("test", "train"), need=_NOTHING_HELD),
        Setting("test", "study", "study", kinds.SWITCH),
        Setting("seed", "study", "dynamic", kinds.integer(0, 2**32 - 1)),
        Setting("batch_size", "study", "static", kinds.integer(1, IMAGES)),
        Setting("channels", "model", "static", kinds.integers(1, 4, 1024, '[12, 24] or "12-24"')),
        Setting(
            "hidden", "model", "static", kinds.integers(0, 8, 4096, '[120, 60], "120-60" or "none"')
        ),
        # Images are 28 x 28, and pooling needs 2 x 2 pixels after the first convolution.
        Setting("kernel_size", "model", "static", kinds.integer(1, 27)),
        Setting("padding", "model", "static", kinds.integer_or(0, 26, "same")),
        Setting("dropout", "model", "static", kinds.BELOW_ONE, need=_HIDDEN),
        Setting("feature_dropout", "model", "static", kinds.BELOW_ONE),
        Setting("linear_norm", "model", "static", kinds.SWITCH, need=_HIDDEN),
        Setting("flip_average", "model", "static", kinds.SWITCH),
        Setting("precision", "model", "static", kinds.choice("float32", "tf32", "bfloat16")),
        Setting("algorithm", "optimizer", "static", kinds.choice("adam", "adamw", "sgd")),
        Setting("learning_rate", "optimizer", "dynamic", kinds.POSITIVE),
        Setting("beta1", "optimizer", "dynamic", kinds.BELOW_ONE, need=_ADAM),
        Setting("beta2", "optimizer", "dynamic", kinds.BELOW_ONE, need=_ADAM),
        Setting("eps", "optimizer", "dynamic", kinds.POSITIVE, need=_ADAM),
        Setting("weight_decay", "optimizer", "dynamic", kinds.NOT_NEGATIVE),
        Setting("momentum", "optimizer", "dynamic", kinds.BELOW_ONE, need=_SGD),
        Setting("nesterov", "optimizer", "static", kinds.SWITCH, need=_SGD),
        Setting("decay_biases", "optimizer", "static", kinds.SWITCH, need=_DECAY),
        Setting("flip", "training", "static", kinds.choice(*FLIPS)),
        Setting("shift", "training", "dynamic", kinds.integer(0, 27)),
        Setting("erasing", "training", "dynamic", kinds.SHARE),
        Setting("label_smoothing", "training", "dynamic", kinds.BELOW_ONE),
        Setting("schedule", "training", "static", kinds.choice(*SCHEDULES)),
        Setting("warmup", "training", "dynamic", kinds.BELOW_ONE),
        Setting("floor", "training", "dynamic", kinds.SHARE, need=_FALLING),
        Setting("ema_decay", "training", "dynamic", kinds.BELOW_ONE),
        Setting("clip_norm", "training", "dynamic", kinds.NOT_NEGATIVE),
    )
}
"""The settings of a study of the built-in network, by name."""

STATIC_KEYS = tuple(key for key, setting in SETTINGS.items() if setting.role == "static")
"""Trials with different values of these settings need different programs."""

DYNAMIC_KEYS = tuple(key for key, setting in SETTINGS.items() if setting.role == "dynamic")
"""Trials that differ only in these settings are lanes of one program, if they have the same ones of
[training] at 0."""

TABLES = ("study", "model", "optimizer", "training", "cases", "grid")

FACTORY = "factory"
"""The setting of [model] that names a factory; see :mod:`fmnist.config.factory`."""


def axes(settings: Mapping[str, Setting]) -> tuple[str, ...]:
    """Return the names of the settings that can be an axis of the grid, static ones first."""
    roles = ("static", "dynamic")
    return tuple(key for role in roles for key, s in settings.items() if s.role == role)


def read_axis(settings: Mapping[str, Setting], key: str, raw: object) -> tuple[Value, ...]:
    """Check the values of an axis of the grid and convert them.

    Raises:
        ConfigError: The setting cannot be an axis, or a value is invalid or appears twice.
    """
    if key not in axes(settings):
        raise unknown(settings, "axis of [grid]", key, raw, axes(settings))
    if not isinstance(raw, list | tuple):
        raise ConfigError("an axis of the grid must be a list of values", key, raw)
    if not raw:
        hint = '; no hidden layer is ["none"]' if key == "hidden" else ""
        raise ConfigError(f"an axis of the grid must have at least one value{hint}", key, raw)
    axis: dict[Value, None] = {}
    for item in raw:
        value = settings[key].scalar(item)
        if value in axis:
            raise ConfigError("each value of an axis must be there once", key, item)
        axis[value] = None
    return tuple(axis)
