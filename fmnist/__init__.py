"""Hyperparameter studies in which every trial is a lane of one vmapped PyTorch program.

The names below are the library. Type checkers and editors see plain imports; at run time each
name is imported when it is first used, so that ``--help`` answers before torch is loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fmnist.config.study import load as load_study
    from fmnist.data.fashion_mnist import load
    from fmnist.engine.trainer import Group, Lane, fit
    from fmnist.functional.cnn import apply, init
    from fmnist.functional.optim import adam, adamw, sgd
    from fmnist.functional.train import eval_step, train_step
    from fmnist.functional.types import Batch, Hyperparams, ModelConfig
    from fmnist.functional.vmap import stack, unstack
    from fmnist.study.run import run_study

__all__ = [
    "Batch",
    "Group",
    "Hyperparams",
    "Lane",
    "ModelConfig",
    "adam",
    "adamw",
    "apply",
    "eval_step",
    "fit",
    "init",
    "load",
    "load_study",
    "run_study",
    "sgd",
    "stack",
    "train_step",
    "unstack",
]

_MODULES = {
    "config.study": ("load_study",),
    "data.fashion_mnist": ("load",),
    "engine.trainer": ("Group", "Lane", "fit"),
    "functional.cnn": ("apply", "init"),
    "functional.optim": ("adam", "adamw", "sgd"),
    "functional.train": ("eval_step", "train_step"),
    "functional.types": ("Batch", "Hyperparams", "ModelConfig"),
    "functional.vmap": ("stack", "unstack"),
    "study.run": ("run_study",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
_CALLED = {"load_study": "load"}
"""Public name -> what its module calls it."""


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"fmnist.{_MODULE_OF[name]}")
    value = getattr(module, _CALLED.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
