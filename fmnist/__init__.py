"""Hyperparameter studies in which every trial is a lane of one vmapped PyTorch program.

The names below are the library. Type checkers and editors see plain imports; at run time each
name is imported when it is first used, so that ``--help`` answers before torch is loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fmnist.utils import runtime, version

runtime.prepare_library()

if TYPE_CHECKING:
    from fmnist.config.loading import load_study
    from fmnist.data.fashion_mnist import load
    from fmnist.engine.trainer import EpochResult, TrainerState, fit
    from fmnist.functional.batching import gather, permutation
    from fmnist.functional.cnn import cnn
    from fmnist.functional.optim import GradientTransformation, adam, adamw, sgd
    from fmnist.functional.train import start, train_step
    from fmnist.functional.types import Metrics, Model, Split
    from fmnist.functional.vmap import stack, unstack
    from fmnist.inference.run import Run, load_run
    from fmnist.study.run import run_study

    __version__: str

_MODULES = {
    "config.loading": ("load_study",),
    "data.fashion_mnist": ("load",),
    "engine.trainer": ("EpochResult", "TrainerState", "fit"),
    "functional.batching": ("gather", "permutation"),
    "functional.cnn": ("cnn",),
    "functional.optim": ("GradientTransformation", "adam", "adamw", "sgd"),
    "functional.train": ("start", "train_step"),
    "functional.types": ("Metrics", "Model", "Split"),
    "functional.vmap": ("stack", "unstack"),
    "inference.run": ("Run", "load_run"),
    "study.run": ("run_study",),
}

__all__ = [
    "EpochResult",
    "GradientTransformation",
    "Metrics",
    "Model",
    "Run",
    "Split",
    "TrainerState",
    "adam",
    "adamw",
    "cnn",
    "fit",
    "gather",
    "load",
    "load_run",
    "load_study",
    "permutation",
    "run_study",
    "sgd",
    "stack",
    "start",
    "train_step",
    "unstack",
]

_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = version.version()
    elif name in _MODULE_OF:
        value = getattr(importlib.import_module(f"fmnist.{_MODULE_OF[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
