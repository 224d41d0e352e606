"""The cases of a study: settings that are changed together, as in an ablation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from fmnist.config import kinds
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
    for name, changed in raw.items():
        SETTING.read(name)
        if not isinstance(changed, Mapping):
            reason = "a case must be a table of settings, such as { dropout = 0.5 }"
            raise ConfigError(reason, f"{CASE} {name}", changed)
        for key, value in changed.items():
            if key not in axes(settings):
                raise unknown(settings, f"setting of {CASE} {name!r}", key, value, axes(settings))
            if key in taken:
                reason = f"is set by {CASE} {name!r} and is an axis of [grid]; give it once"
                raise ConfigError(reason, key, value)
        found[name] = {key: settings[key].read(value) for key, value in changed.items()}
    return found


def check(study: StudyConfig, studies: Mapping[str, StudyConfig]) -> None:
    """Check that no two cases train the same.

    Args:
        study: the study.
        studies: the study of each case, by name.

    Raises:
        ConfigError: Two cases have equal settings.
    """
    known: dict[object, str] = {}
    for name, own in studies.items():
        trial = own.trial(next(own.points()))
        if trial in known:
            reason = f"trains the same as {CASE} {known[trial]!r}"
            raise ConfigError(reason, f"{CASE} {name}", dict(study.cases[name]))
        known[trial] = name


def explained(study: StudyConfig) -> Iterator[str]:
    """Yield a line for each case: what it changes."""
    for name, changed in study.cases.items():
        texts = (f"{key} {study.settings[key].scalar(value)}" for key, value in changed.items())
        yield f"{CASE} {name}: {', '.join(texts) or 'the settings of the study'}"
