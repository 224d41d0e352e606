"""The settings of a study, one row each: table, type, range, static or dynamic.

:mod:`fmnist.config` derives its checks, its messages and the grid's axes from this table.
"""

from __future__ import annotations

import difflib
import math
import re
import reprlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from fmnist.config.results import Value
from fmnist.utils.errors import UserError, printable

NOTHING = object()
"""The value of an error that is about no value."""

Widths = tuple[int, ...]


class ConfigError(UserError):
    """A mistake in a study. Its text is one line: source, key, value, what is allowed.

    Attributes:
        reason: what is wrong and what is allowed.
        key, value: the setting to blame; the value may be :data:`NOTHING`.
        keys: all settings involved, so that the reader of several sources can name theirs.
        source: a file name or a command line option; empty for a study made in Python.
    """

    def __init__(
        self,
        reason: str,
        key: object = "",
        value: object = NOTHING,
        also: tuple[str, ...] = (),
        source: str = "",
    ) -> None:
        super().__init__(reason, key, value, also, source)
        self.reason, self.key, self.value, self.source = reason, str(key), value, source
        self.keys = (self.key, *also)

    def __str__(self) -> str:
        subject = clipped(self.key, 60)
        if self.value is not NOTHING:
            subject += f" = {shown(self.value)}"
        return ": ".join(filter(None, (clipped(self.source or "study", 200), subject, self.reason)))


def clipped(text: str, limit: int) -> str:
    """The text with everything unprintable escaped, cut to about `limit` characters."""
    return printable(text if len(text) <= limit else text[: limit - 3] + "...")


class _Shown(reprlib.Repr):
    """repr as TOML spells it; its limits keep deep, long and huge values harmless."""

    def repr_str(self, x: str, level: int) -> str:
        text = x if len(x) <= 60 else x[:57] + "..."
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to print integers of more than 4300 digits; hexadecimal TOML can hold them.
        return str(x) if x.bit_length() < 200 else f"an integer of {x.bit_length()} bits"

    def repr_bool(self, x: bool, level: int) -> str:
        return str(x).lower()

    def repr_tuple(self, x: tuple[Any, ...], level: int) -> str:
        return self.repr_list(list(x), level)


def shown(value: object) -> str:
    """A value as a message quotes it: short and on one line."""
    return clipped(_Shown().repr(value), 80)


def nearest(name: object, names: Collection[str]) -> str:
    """``"; did you mean NAME?"`` for a misspelling of one of the names, else nothing."""
    close = difflib.get_close_matches(str(name)[:64].lower(), names, n=1)
    return f"; did you mean {close[0]}?" if close else ""


class Need(NamedTuple):
    """A setting acts only where another one has certain values."""

    key: str
    reader: str
    met: Callable[[Any], bool]


@dataclass(frozen=True)
class Setting:
    """What is known about one setting.

    Attributes:
        table: the table of the study file that holds it.
        role: ``"static"`` makes another program, ``"dynamic"`` another lane of one program;
            ``"study"`` belongs to the whole study and cannot be an axis.
        kind: the type of its value; ``tuple`` is a tuple of widths.
        allowed, check: the range in words, and as a test of a value of the right type.
        choices: the words it may be, when those are few.
        need: when it has an effect at all.
    """

    key: str
    table: Literal["study", "model", "optimizer"]
    role: Literal["study", "static", "dynamic"]
    kind: type
    allowed: str
    check: Callable[[Any], bool]
    choices: tuple[str, ...] = ()
    need: Need | None = None

    def read(self, raw: object) -> Any:
        """The checked value: from TOML, JSON, Python, or the string form of a grid point."""
        value = self._convert(raw)
        if value is None or not self.check(value):
            hint = nearest(raw, self.choices) if isinstance(raw, str) else ""
            raise ConfigError(f"must be {self.allowed}{hint}", self.key, raw)
        return value

    def parse(self, text: str) -> object:
        """What a word of the command line stands for; left as it is when it is no such thing."""
        text = text.strip()
        if self.kind is bool:
            return {"true": True, "false": False}.get(text.lower(), text)
        try:
            return self.kind(text) if self.kind in (int, float) else text
        except ValueError:
            return text

    def scalar(self, raw: object) -> Value:
        """The checked value as a point of a grid axis, which must be a scalar for Optuna."""
        value = self.read(raw)
        if self.kind is tuple:
            return "-".join(map(str, value)) or "none"
        scalar: Value = value
        return scalar

    def _convert(self, raw: object) -> Any:
        """The value as `kind`, or None when it is of another type (a bool is no int)."""
        if self.kind is tuple:
            return _widths(raw)
        if self.kind is float:
            if isinstance(raw, bool) or not isinstance(raw, int | float):
                return None
            try:
                # + 0.0 turns -0.0 into 0.0: they compare equal, so they must be written equal.
                value = float(raw) + 0.0
            except OverflowError:
                return None
            return value if math.isfinite(value) else None
        if isinstance(raw, bool) and self.kind is not bool:
            return None
        return self.kind(raw) if isinstance(raw, self.kind) else None


def _is_int(raw: object) -> bool:
    return isinstance(raw, int) and not isinstance(raw, bool)


def _widths(raw: object) -> Widths | None:
    if isinstance(raw, str) and raw == "none":
        return ()
    if isinstance(raw, str) and re.fullmatch("[0-9]{1,9}(-[0-9]{1,9})*", raw):
        return tuple(map(int, raw.split("-")))
    items = raw if isinstance(raw, list | tuple) else [raw]
    return tuple(map(int, items)) if all(map(_is_int, items)) else None


class _Range(NamedTuple):
    kind: type
    allowed: str
    check: Callable[[Any], bool]
    choices: tuple[str, ...] = ()


def _int(low: int, high: int) -> _Range:
    return _Range(int, f"an integer from {low} to {high}", lambda n: low <= n <= high)


def _ints(fewest: int, most: int, high: int, example: str) -> _Range:
    return _Range(
        tuple,
        f"{fewest} to {most} integers from 1 to {high}, written {example}",
        lambda widths: fewest <= len(widths) <= most and all(1 <= n <= high for n in widths),
    )


def _choice(*names: str) -> _Range:
    return _Range(str, "one of " + ", ".join(names), names.__contains__, names)


_NAME = _Range(
    str,
    "1 to 64 of the characters A-Z a-z 0-9 . _ -, the first a letter or a digit",
    lambda name: re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name) is not None,
)
_POSITIVE = _Range(float, "a finite number above 0", lambda x: x > 0)
_NOT_NEGATIVE = _Range(float, "a finite number, 0 or above", lambda x: x >= 0)
_BELOW_ONE = _Range(float, "a number from 0 to below 1", lambda x: 0 <= x < 1)
_SWITCH = _Range(bool, "true or false", lambda _: True)

_ADAM = Need("algorithm", "adam and adamw", ("adam", "adamw").__contains__)
_SGD = Need("algorithm", "sgd", ("sgd",).__contains__)
_HIDDEN = Need("hidden", "hidden layers", bool)

IMAGES = 60_000
"""How many images there are to train on or to hold out."""

SETTINGS = {
    setting.key: setting
    for setting in (
        Setting("name", "study", "study", *_NAME),
        Setting("epochs", "study", "study", *_int(1, 10_000)),
        Setting("holdout", "study", "study", *_int(0, 50_000)),
        Setting("metric", "study", "study", *_choice("validation_accuracy", "validation_loss")),
        Setting("seed", "study", "dynamic", *_int(0, 2**32 - 1)),
        Setting("batch_size", "study", "static", *_int(1, IMAGES)),
        Setting("channels", "model", "static", *_ints(1, 4, 1024, '[12, 24] or "12-24"')),
        Setting("hidden", "model", "static", *_ints(0, 8, 4096, '[120, 60], "120-60" or "none"')),
        # The image's side is 28, and pooling must find 2 x 2 after the first convolution.
        Setting("kernel_size", "model", "static", *_int(1, 27)),
        Setting("dropout", "model", "static", *_BELOW_ONE, need=_HIDDEN),
        Setting("precision", "model", "static", *_choice("float32", "tf32", "bfloat16")),
        Setting("algorithm", "optimizer", "static", *_choice("adam", "adamw", "sgd")),
        Setting("learning_rate", "optimizer", "dynamic", *_POSITIVE),
        Setting("beta1", "optimizer", "dynamic", *_BELOW_ONE, need=_ADAM),
        Setting("beta2", "optimizer", "dynamic", *_BELOW_ONE, need=_ADAM),
        Setting("eps", "optimizer", "dynamic", *_POSITIVE, need=_ADAM),
        Setting("weight_decay", "optimizer", "dynamic", *_NOT_NEGATIVE),
        Setting("momentum", "optimizer", "dynamic", *_BELOW_ONE, need=_SGD),
        Setting("nesterov", "optimizer", "static", *_SWITCH, need=_SGD),
    )
}

STATIC_KEYS = tuple(key for key, setting in SETTINGS.items() if setting.role == "static")
"""Another value is another program: trials that differ here are in different groups."""

DYNAMIC_KEYS = tuple(key for key, setting in SETTINGS.items() if setting.role == "dynamic")
"""Only numbers: trials that differ here alone are lanes of one program."""

TABLES = ("study", "model", "optimizer", "grid")
AXES = (*STATIC_KEYS, *DYNAMIC_KEYS)


def read_axis(key: str, raw: object) -> tuple[Value, ...]:
    """The checked values of an axis of the grid."""
    if key not in AXES:
        raise unknown("axis of [grid]", key, raw, AXES)
    if not isinstance(raw, list | tuple):
        raise ConfigError("an axis of the grid must be a list of values", key, raw)
    if not raw:
        hint = '; no hidden layer is ["none"]' if key == "hidden" else ""
        raise ConfigError(f"an axis of the grid must have at least one value{hint}", key, raw)
    axis: dict[Value, None] = {}
    for item in raw:
        value = SETTINGS[key].scalar(item)
        if value in axis:
            raise ConfigError("each value of an axis must be there once", key, item)
        axis[value] = None
    return tuple(axis)


def given_twice(key: str, value: object) -> ConfigError:
    """The error for a setting that is an axis as well: which one counts would be a guess."""
    table = SETTINGS[key].table
    return ConfigError(f"is set in [{table}] and is an axis of [grid]; give it once", key, value)


def unknown(
    what: str, key: object, value: object, names: Collection[str], source: str = ""
) -> ConfigError:
    """The error for a name that is not known, or not known in this place."""
    if key not in SETTINGS:
        reason = f"unknown {what}{nearest(key, names)}"
    elif names is AXES:
        reason = "cannot be an axis of the grid"
    else:
        reason = f"belongs in the table [{SETTINGS[str(key)].table}]"
    return ConfigError(f"{reason} (allowed: {', '.join(names)})", key, value, source=source)
