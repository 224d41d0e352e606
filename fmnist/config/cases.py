"""The cases of a study: settings that are changed together, as in an ablation."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

from fmnist.config import checks, kinds
from fmnist.config.errors import ConfigError, unknown
from fmnist.config.settings import Setting, axes

if TYPE_CHECKING:
    from fmnist.config.study import StudyConfig

CASE = "case"
"""The axis of the grid that :data:`TABLE` makes: the names of the cases."""

TABLE: Literal["cases"] = "cases"
SETTING = Setting(CASE, TABLE, "static", kinds.CASE)

Cases = Mapping[str, Mapping[str, Any]]
"""Name of a case -> the settings that it has in place of those of the study."""


def read(settings: Mapping[str, Setting], raw: object, taken: Mapping[str, Any]) -> Cases:
    """Check the names and the values of the table ``[cases]``, and convert the values.

    Args:
        settings: the settings of the study, by name.
        raw: the table.
        taken: the axes of the grid, which no case may set.

    Raises:
        ConfigError: A name or value is invalid, or a setting cannot differ between trials.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError("must be a table of cases: NAME = { SETTING = VALUE }", TABLE, raw)
    found: dict[str, dict[str, Any]] = {}
    names = [key for key in axes(settings) if key != "seed"]
    for name, changed in raw.items():
        SETTING.read(name)
        with blamed(name):
            if not isinstance(changed, Mapping):
                reason = "a case must be a table of settings, such as { dropout = 0.5 }"
                raise ConfigError(reason, CASE, changed)
            for key, value in changed.items():
                if key == "seed":
                    raise ConfigError("is no setting of a case; make it an axis", key, value)
                if key not in names:
                    raise unknown(settings, "setting of a case", key, value, names)
                if key in taken:
                    raise ConfigError("is an axis of [grid], too; give it once", key, value)
            found[name] = {key: settings[key].read(value) for key, value in changed.items()}
    return found


@contextlib.contextmanager
def blamed(name: str, changed: Collection[str] | None = None) -> Iterator[None]:
    """Name the case in a mistake, and not the option that gives a setting of the same name.

    Args:
        name: the case.
        changed: its settings, if a mistake may be of others only: that is not the case's.
    """
    try:
        yield
    except ConfigError as error:
        if changed is not None and not set(error.keys) & set(changed):
            raise
        error.reason, error.keys = f"{error.reason} (in {CASE} {name!r})", (TABLE,)
        raise


def check(study: StudyConfig, studies: Mapping[str, StudyConfig], given: Collection[str]) -> None:
    """Check that no two cases train the same, and that each setting of the study acts in one.

    Args:
        study: the study.
        studies: the study of each case, by name.
        given: the settings of the study that are not axes and differ from their default.

    Raises:
        ConfigError: Two cases train the same somewhere in the grid, or every case that a setting
            would act in sets it.
    """
    known: dict[object, str] = {}
    for name, own in studies.items():
        # Of the other axes, those alone matter on which it depends what has an effect.
        needed = {setting.need.key for setting in own.settings.values() if setting.need}
        axes = [values if key in needed else values[:1] for key, values in own.grid.items()]
        for values in product(*axes):
            trial = own.trial(dict(zip(own.grid, values, strict=True)))
            if known.setdefault(trial, name) != name:
                reason = f"trains the same as {CASE} {known[trial]!r}"
                raise ConfigError(reason, f"{CASE} {name}", dict(study.cases[name]), also=(TABLE,))
    for key in given:
        left = [own for name, own in studies.items() if key not in study.cases[name]]
        if not any(any(checks.needs_met(own, key)) for own in left):
            reason = "has no effect, as every case in which it would act sets it"
            raise ConfigError(reason, key, study.setting(key), also=(TABLE,))


def explained(study: StudyConfig) -> Iterator[str]:
    """Yield a line for each case: what it changes."""
    for name, changed in study.cases.items():
        texts = (f"{key} {study.settings[key].scalar(value)}" for key, value in changed.items())
        yield f"{CASE} {name}: {', '.join(texts) or 'the settings of the study'}"
