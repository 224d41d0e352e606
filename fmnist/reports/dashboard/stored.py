"""Writes notes into Optuna's storage. What a person wrote above our part of a note is kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import optuna

from fmnist.config.results import TrialResult
from fmnist.config.study import StudyConfig
from fmnist.reports.dashboard import notes


def write_study(study: optuna.Study, text: str) -> None:
    """Write the note of a study."""
    _write(study, text)


def write_trials(
    study: optuna.Study,
    config: StudyConfig,
    results: Sequence[TrialResult],
    winner: TrialResult | None = None,
    files: Mapping[str, str] | None = None,
) -> None:
    """Write the notes of trials that ended, where they are not as they should be.

    Args:
        study: Optuna's study.
        config: the study.
        results: the results of the trials.
        winner: the winner of a finished study.
        files: kind -> address of the artifacts that are of the winner.
    """
    page = f"/dashboard/studies/{study._study_id}"
    known: dict[str, dict[str, Any]] = defaultdict(dict)
    for key, value in study._storage.get_study_system_attrs(study._study_id).items():
        if key.startswith("dashboard:"):
            known[key.split(":")[1]][key] = value
    trials = study.get_trials(deepcopy=False)
    for result in results:
        trial_id = trials[result.number]._trial_id
        links = (files or {}) if result is winner else None
        text = notes.trial(config, result, page, links)
        _write(_TrialWithNote(study, trial_id, known[str(trial_id)]), text)


class _TrialWithNote:
    """What optuna-dashboard asks of a trial with a note, and of its storage.

    Notes are attributes of the study. Optuna reads all of them whenever it is asked for one, which
    takes a minute for the notes of a thousand trials.
    """

    def __init__(self, study: optuna.Study, trial_id: int, attrs: dict[str, Any]) -> None:
        self.storage, self.study, self._trial_id, self._attrs = self, study, trial_id, attrs

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self._attrs

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self.study._storage.set_study_system_attr(study_id, key, value)
        self._attrs[key] = value


def _write(owner: Any, text: str) -> None:
    from optuna_dashboard import get_note, save_note

    known = get_note(owner)
    if (whole := notes.with_kept(known, text)) != known:
        save_note(owner, whole)
