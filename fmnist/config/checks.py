"""Checks of a study's settings together: what has no effect, and what cannot be combined."""

from __future__ import annotations

import math
from collections.abc import Collection
from itertools import product
from typing import TYPE_CHECKING

from fmnist.config import factory
from fmnist.config.errors import ConfigError, shown
from fmnist.config.factory import FactoryConfig
from fmnist.config.settings import FACTORY, IMAGES

if TYPE_CHECKING:
    from fmnist.config.study import StudyConfig


MAX_MODELS = 1000
"""How many models the factory of a study makes at most: each is tried."""


def needs_met(study: StudyConfig, key: str) -> list[bool]:
    """Return whether a setting has an effect, for each value of the setting it depends on."""
    need = study.settings[key].need
    return [True] if need is None else [need.met(value) for value in study.values(need.key)]


def check_effects(study: StudyConfig, given: Collection[str]) -> None:
    """Check that each setting has an effect in some trial, and each axis in all trials.

    Raises:
        ConfigError: A setting has no effect. An axis without one would train a trial twice.
    """
    for key in given:
        need, axis, met = study.settings[key].need, study.grid.get(key), needs_met(study, key)
        if need is not None and not (any if axis is None else all)(met):
            other = shown(study.values(need.key)[met.index(False)])
            reason = f"has no effect with {need.key} = {other}; it acts with {need.reader} only"
            value = study.setting(key)
            if axis is not None:
                reason, value = f"{reason}, and an axis must act in every trial", axis
            raise ConfigError(reason, key, value, also=(need.key,))


def check_combinations(study: StudyConfig) -> None:
    """Check that every trial of the study can be trained.

    Raises:
        ConfigError: A model cannot be made or is not the one of the run, a batch is larger than
            the training set, ``nesterov`` has no momentum, ``one-cycle`` no warm-up, the best epoch
            no images to be chosen by, or the test set stands for validation and is not to be seen.
    """
    if isinstance(study.model, FactoryConfig):
        _check_factory(study, study.model)
    else:
        _check_kernels(study)
    batch, images = max(study.values("batch_size")), IMAGES - study.holdout
    if batch > images:
        reason = f"must be at most {images}, the training images that a holdout"
        reason += f" of {study.holdout} leaves"
        raise ConfigError(reason, "batch_size", batch, also=("holdout",))
    switches = product(*map(study.values, ("algorithm", "nesterov", "momentum")))
    if ("sgd", True, 0.0) in switches:
        reason = "needs a momentum above 0 in every trial of sgd"
        raise ConfigError(reason, "nesterov", True, also=("momentum",))
    if study.validation_is_trained and study.keep == "best":
        reason = 'needs images that are not trained on, which validation = "train" has not'
        raise ConfigError(reason, "keep", "best", also=("validation",))
    if study.validation_is_test and not study.test:
        reason = "needs a holdout above 0: without one, each epoch sees the test set"
        raise ConfigError(reason, "test", False, also=("holdout", "validation"))
    if ("one-cycle", 0.0) in product(study.values("schedule"), study.values("warmup")):
        reason = "needs a warmup above 0 in every trial of one-cycle, such as 0.3"
        raise ConfigError(reason, "schedule", "one-cycle", also=("warmup",))


def _check_factory(study: StudyConfig, model: FactoryConfig) -> None:
    if model.source != factory.load(model.factory).source:
        reason = f"the source of {model.factory} has changed since this was written"
        hint = "bring it back, or begin a new run with another --out and --set name="
        raise ConfigError(f"{reason}; {hint}", factory.SOURCE, model.source[:12])
    names = [key for key, setting in study.settings.items() if setting.table == "model"]
    count = math.prod(len(study.values(key)) for key in names)
    if count > MAX_MODELS:
        reason = f"has {count} models in the grid, at most {MAX_MODELS} are allowed"
        raise ConfigError(reason, FACTORY, model.factory)
    for values in product(*map(study.values, names)):
        factory.check_model(FactoryConfig.of(dict(zip(names, values, strict=True))))


def _check_kernels(study: StudyConfig) -> None:
    settings = product(*map(study.values, ("channels", "kernel_size", "padding")))
    for channels, kernel, padding in settings:
        if padding != "same" and padding >= kernel:
            reason = f'must be below kernel_size = {kernel}, at most {kernel - 1}, or "same"'
            raise ConfigError(reason, "padding", padding, also=("kernel_size",))
        if not _fits(channels, kernel, padding):
            largest = max(k for k in range(1, 28) if _fits(channels, k, padding))
            reason = f"must be at most {largest} for the {len(channels)} convolutions"
            reason += f" of channels = {shown(channels)} to fit 28 x 28 images"
            raise ConfigError(reason, "kernel_size", kernel, also=("channels",))


def _fits(channels: tuple[int, ...], kernel: int, padding: int | str) -> bool:
    side = 28
    added = kernel - 1 if padding == "same" else 2 * int(padding)
    for _ in channels:  # a convolution, then max pool 2
        side = (side + added - kernel + 1) // 2
    return side >= 1
