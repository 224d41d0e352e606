"""Optuna's storage for databases, which waits for locks and lost connections."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.trial import TrialState

from fmnist.tuning import storage_errors
from fmnist.utils.patience import repeated

_NEW = {"create_new_study", "create_new_trial"}


class PatientStorage(_CachedStorage):
    """A database storage with Optuna's cache, whose calls are repeated when the trouble may pass.

    Each call is one transaction, so a locked or full database has stored nothing of it. A lost
    connection leaves unknown whether the transaction was stored. All calls but those that make a
    study or a trial may be repeated even then: they store the same values again.
    """

    def __init__(self, backend: RDBStorage) -> None:
        super().__init__(backend)
        self._url = backend.url

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        try:
            return super().set_trial_state_values(trial_id, state, values)
        except UpdateFinishedTrialError:
            stored = self.get_trial(trial_id)
            if (stored.state, stored.values) == (state, values and list(values)):
                return True  # by a call whose answer was lost
            raise


def _patient(name: str) -> Callable[..., Any]:
    method = getattr(PatientStorage, name)

    @functools.wraps(method)
    def call(self: PatientStorage, *args: object, **kwargs: object) -> Any:
        def passing(error: Exception) -> str:
            return storage_errors.passing(error, self._url, lost=name not in _NEW)

        return repeated(lambda: method(self, *args, **kwargs), passing)

    return call


# Not only the abstract methods: to find a trial's key, for example, the cache may ask the database.
for _name in dir(BaseStorage):
    if not _name.startswith("_") and _name != "remove_session":
        setattr(PatientStorage, _name, _patient(_name))
