"""Tells the trials that a run trains from others in its study.

People enqueue points, add trials, optimize a little, or end interrupted trials with Optuna. Such
trials are left alone: they are neither trained nor results, and no damage.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from fmnist.config.study import StudyConfig
from fmnist.rundir.folder import RUN

HISTORY = "fmnist:history"
REASON = "fmnist:reason"
CHECK = "fmnist:sha256"
ORIGIN = "fmnist:origin"
"""Run and number of a trial that ended. A copy in another study or of another number differs."""


def point_attrs(config: StudyConfig, grid_id: int) -> dict[str, Any]:
    """Return the system attributes by which GridSampler knows the point of a trial."""
    return {"search_space": _space(config), "grid_id": grid_id}


def origin(study: optuna.Study, number: int) -> list[Any]:
    """Return the value of :data:`ORIGIN` for a trial of this study."""
    return [study.user_attrs.get(RUN), number]


def ours(study: optuna.Study, config: StudyConfig) -> Iterator[FrozenTrial]:
    """Yield the trials that a run of the study trains or has trained, by number."""
    run, space = study.user_attrs.get(RUN), _space(config)
    for trial in study.get_trials(deepcopy=False):
        attrs = trial.system_attrs
        if ORIGIN in attrs:
            if attrs[ORIGIN] == [run, trial.number]:
                yield trial
        # One that others ended has no result.
        elif attrs.get("search_space") == space and "grid_id" in attrs:
            result = {HISTORY, CHECK, REASON} & (attrs.keys() | trial.user_attrs.keys())
            if result or not trial.state.is_finished():
                yield trial


def foreign(study: optuna.Study, config: StudyConfig) -> str:
    """Return a line about the trials of another origin; empty without one."""
    known = {trial.number for trial in ours(study, config)}
    others = [t for t in study.get_trials(deepcopy=False) if t.number not in known]
    if not others:
        return ""
    numbers = ", ".join([*(str(trial.number) for trial in others[:5]), "..."][: len(others)])
    hint = "; to train enqueued points, write them in the grid of a study of another name"
    waits = any(trial.state == TrialState.WAITING for trial in others)
    trials, are = ("1 trial", "is") if len(others) == 1 else (f"{len(others)} trials", "are")
    return f"{trials} of another origin ({numbers}) {are} left alone" + hint * waits


def _space(config: StudyConfig) -> dict[str, list[Any]]:
    return {key: list(config.grid[key]) for key in sorted(config.grid)}
