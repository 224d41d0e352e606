"""Hyperparameter studies in which every trial is a lane of one vmapped PyTorch program.

The names below are the library; each is imported from its room when it is first used, so that
importing the package, and ``--help``, cost nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

_ROOMS = {
    "ModelConfig": "fmnist.functional.types",
    "Hyperparams": "fmnist.functional.types",
    "Batch": "fmnist.functional.types",
    "init": "fmnist.functional.model",
    "apply": "fmnist.functional.model",
    "adam": "fmnist.functional.optim",
    "adamw": "fmnist.functional.optim",
    "sgd": "fmnist.functional.optim",
    "train_step": "fmnist.functional.train",
    "eval_step": "fmnist.functional.train",
    "stack": "fmnist.functional.lanes",
    "unstack": "fmnist.functional.lanes",
    "Group": "fmnist.loop",
    "Lane": "fmnist.loop",
    "fit": "fmnist.loop",
    "load": "fmnist.data",
    "load_study": "fmnist.config",
    "run_study": "fmnist.run",
}

__all__ = sorted(_ROOMS)


def __getattr__(name: str) -> Any:
    room = _ROOMS.get(name)
    if room is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(room), "load" if name == "load_study" else name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
