"""Loads a study from a file and the command line, and compares two studies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmnist.config import study_file
from fmnist.config.errors import ConfigError
from fmnist.config.settings import FACTORY
from fmnist.config.study import BASELINE_GRID, StudyConfig, build


def load_study(
    path: str | Path | None = None, *, overrides: Sequence[str] = (), epochs: int | None = None
) -> StudyConfig:
    """Load a study file.

    Args:
        path: the file; by default the baseline study.
        overrides: texts of ``--set``. ``KEY=VALUE`` sets a setting and removes its axis,
            ``KEY=V1,V2`` makes an axis of the grid.
        epochs: number of epochs, instead of that of the file.

    Raises:
        ConfigError: The file cannot be read, or a setting is unknown, invalid or given twice.
    """
    origin = "" if path is None else str(Path(path))
    sources: dict[str, str] = {}
    try:
        data: Mapping[str, Any] = (
            {"grid": BASELINE_GRID} if path is None else study_file.read(Path(path))
        )
        model = data.get("model", {})
        if (name := study_file.factory_of(overrides)) is not None and isinstance(model, Mapping):
            data, sources = {**data, "model": {**model, FACTORY: name}}, {FACTORY: "--set"}
        settings = study_file.settings_in(data)
        given, axes, cases = study_file.split(data)
        sources = {} if path is None else dict.fromkeys((*given, *axes), origin)
        for text in overrides:
            key, values = study_file.override(text, settings)
            if sources.get(key) == "--set":
                raise ConfigError("given twice; which one counts?", key, source="--set")
            sources[key] = "--set"
            given.pop(key, None)
            if len(values) == 1:
                axes.pop(key, None)
                given[key] = values[0]
            else:
                axes[key] = values
        if epochs is not None:
            if sources.get("epochs") == "--set":
                reason = "given by --set, too; which one counts?"
                raise ConfigError(reason, "epochs", epochs, source="--epochs")
            sources["epochs"] = "--epochs"
            given["epochs"] = epochs
        return build(given, axes, cases)
    except ConfigError as error:
        named = dict.fromkeys(sources[key] for key in error.keys if key in sources)
        error.source = error.source or " and ".join(named) or origin
        raise


def as_study(study: StudyConfig | Mapping[str, Any] | str | Path) -> StudyConfig:
    """Return a study: itself, of the tables of a study file, or of the path of one.

    Raises:
        ConfigError: The file cannot be read, or a setting is unknown, invalid or given twice.
    """
    if isinstance(study, StudyConfig):
        return study
    return load_study(study) if isinstance(study, str | Path) else StudyConfig.from_dict(study)


def without_grid(config: StudyConfig) -> str:
    """Say in a line that a study without a grid is one trial, and of what; empty with a grid."""
    if config.grid:
        return ""
    values = (f"{key} = {config.setting(key)}" for key in ("learning_rate", "batch_size", "seed"))
    return f"there is no grid: one trial, with {', '.join(values)}"


def differences(a: StudyConfig, b: StudyConfig) -> list[str]:
    """Return lines such as ``epochs: 25 there, 2 here``: ``a`` is there, ``b`` is here."""
    settings_a, settings_b = _flat(a), _flat(b)
    lines = [
        f"{key}: {settings_a.get(key, 'unused')} there, {settings_b.get(key, 'unused')} here"
        for key in {**a.settings, **b.settings, **settings_a, **settings_b}
        if settings_a.get(key) != settings_b.get(key)
    ]
    if set(a.grid) == set(b.grid) and list(a.grid) != list(b.grid):
        lines.append(f"order of the grid: {', '.join(a.grid)} there, {', '.join(b.grid)} here")
    return lines


def _flat(config: StudyConfig) -> dict[str, str]:
    tables = config.to_dict()
    cases = tables.pop("cases", {})
    flat = {key: json.dumps(value) for table in tables.values() for key, value in table.items()}
    order = {"cases": json.dumps([*cases])} if cases else {}
    return flat | order | {f"case {name}": json.dumps(c) for name, c in cases.items()}
