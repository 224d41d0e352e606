"""The user's own models in study files: ``factory = "mypackage.nets:mlp"``.

The keyword arguments of the factory become settings. Its signature gives their types.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import traceback
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, MappingProxyType
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from fmnist.config import kinds, source
from fmnist.config.errors import ConfigError, clipped
from fmnist.config.kinds import Kind
from fmnist.config.results import RESULT_COLUMNS
from fmnist.config.settings import FACTORY, SETTINGS, Setting
from fmnist.functional import cnn, features, outliers
from fmnist.functional.cnn import CLASS_COUNT, IMAGE_SIZE
from fmnist.functional.types import Model, ModelConfig, Params, State, hashable

SOURCE = "source"


@dataclass(frozen=True)
class FactoryConfig:
    """The settings of a model that a factory makes. All are static.

    Attributes:
        factory: ``"MODULE:FUNCTION"``.
        source: the SHA-256 of the factory's source code; empty for the code that is installed now.
        arguments: the keyword arguments of the factory that are set, by name.
    """

    factory: str
    source: str = ""
    arguments: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> FactoryConfig:
        """Make the settings from all values by name."""
        arguments = {k: v for k, v in values.items() if k not in (FACTORY, SOURCE)}
        return cls(values[FACTORY], values.get(SOURCE, ""), tuple(arguments.items()))

    def values(self) -> dict[str, Any]:
        """Return all settings by name."""
        digest = {SOURCE: self.source} if self.source else {}
        return {FACTORY: self.factory, **digest, **dict(self.arguments)}


AnyModelConfig = ModelConfig | FactoryConfig


class Factory(NamedTuple):
    """An imported factory.

    Attributes:
        function: the function that makes the model.
        settings: the settings of a study with this factory, by name; see :data:`SETTINGS`.
        defaults: the defaults of its arguments, by name.
        source: the SHA-256 of its module and of the user's modules that this module uses.
    """

    function: Callable[..., Model]
    settings: Mapping[str, Setting]
    defaults: Mapping[str, Any]
    source: str


def settings_of(name: object) -> Mapping[str, Setting]:
    """Return the settings of a study with this factory; None is the built-in network."""
    return SETTINGS if name is None else load(name).settings


def defaults_of(model: AnyModelConfig) -> Mapping[str, Any]:
    """Return the defaults of the settings of a model, by name."""
    if isinstance(model, ModelConfig):
        return vars(ModelConfig())
    factory = load(model.factory)
    return {FACTORY: model.factory, SOURCE: factory.source, **factory.defaults}


def load(name: object) -> Factory:
    """Import a factory.

    Args:
        name: ``"MODULE:FUNCTION"``; the module must be importable.

    Raises:
        ConfigError: The function cannot be imported, its return annotation is not
            :class:`Model`, an argument has the name of another setting, or an argument without a
            default has an unsupported type.
    """
    if not (isinstance(name, str) and re.fullmatch(r"\w+(\.\w+)*:\w+", name)):
        raise ConfigError('must be "MODULE:FUNCTION", such as "mypackage.nets:mlp"', FACTORY, name)
    module, _, attribute = name.partition(":")
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        missing = isinstance(error, ModuleNotFoundError) and module.startswith(str(error.name))
        hint = "; run where import finds it, or install it" if missing else ""
        raise ConfigError(f"cannot be imported: {_one_line(error)}{hint}", FACTORY, name) from error
    function = getattr(found, attribute, None)
    if not isinstance(function, FunctionType):
        raise ConfigError(f"there is no function {attribute} in module {module}", FACTORY, name)
    return _inspect(name, function)


@functools.cache
def _inspect(name: str, function: FunctionType) -> Factory:
    """Make the settings of a factory from its signature."""
    try:
        signature = inspect.signature(function, eval_str=True)
    except Exception as error:  # annotations in quotes are any code
        raise ConfigError(f"has no signature: {_one_line(error)}", FACTORY, name) from error
    if signature.return_annotation is not Model:
        # This also protects: a study file cannot make the command call an arbitrary function.
        reason = "must be a function whose signature says that it returns fmnist.Model, as in"
        reason += f" def {name.partition(':')[2]}(...) -> fmnist.Model"
        raise ConfigError(reason, FACTORY, name)
    model_settings: dict[str, Setting] = {
        FACTORY: Setting(FACTORY, "model", "study", kinds.TEXT),
        SOURCE: Setting(SOURCE, "model", "study", kinds.TEXT),
    }
    others = {key: setting for key, setting in SETTINGS.items() if setting.table != "model"}
    defaults = {}
    for parameter in signature.parameters.values():
        if parameter.name in {*_COLUMNS, *model_settings, *others}:
            reason = f"has an argument {parameter.name}, which names something else in a study"
            raise ConfigError(reason, FACTORY, name)
        kind = _kind(parameter)
        if kind is not None:
            setting = Setting(parameter.name, "model", "static", kind)
            model_settings[parameter.name] = setting
            if parameter.default is not parameter.empty:
                defaults[parameter.name] = setting.read(parameter.default)
        elif parameter.default is parameter.empty and parameter.kind not in _VARIADIC:
            reason = f"its argument {parameter.name} must have a default, or be annotated as"
            reason += " int, float, bool, str, Literal of words or tuple[int, ...]"
            raise ConfigError(reason, FACTORY, name)
    study = {key: setting for key, setting in others.items() if setting.table == "study"}
    settings = MappingProxyType(study | model_settings | others)
    return Factory(function, settings, defaults, source.digest(name.partition(":")[0]))


_COLUMNS = ("case", "grid", "number", "trial", "time", *RESULT_COLUMNS)
"""Names of other columns in the tables of results."""

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_WIDTHS = (tuple[int, ...], Sequence[int])


def _kind(parameter: inspect.Parameter) -> Kind | None:
    """Return the allowed values of a parameter; None if the parameter cannot be a setting."""
    if parameter.kind in (*_VARIADIC, inspect.Parameter.POSITIONAL_ONLY):
        return None
    default, annotation = parameter.default, parameter.annotation
    if annotation is parameter.empty:
        integers = isinstance(default, tuple) and all(type(n) is int for n in default)
        annotation = tuple[int, ...] if integers else type(default)
    kind = None
    if typing.get_origin(annotation) is typing.Literal:
        words = typing.get_args(annotation)
        if all(isinstance(word, str) and kinds.NAME.check(word) for word in words):
            kind = kinds.choice(*words)
    elif annotation in _WIDTHS:
        kind = kinds.integers(0, 64, 2**31, '[12, 24] or "12-24"')
    elif isinstance(annotation, type):
        kind = kinds.BY_TYPE.get(annotation)
    if kind is not None and default is not parameter.empty:
        try:
            Setting(parameter.name, "model", "static", kind).read(default)
        except ConfigError:  # no study file could name the default, such as None
            return None
    return kind


def build_model(config: AnyModelConfig, convolution: str = "auto") -> Model:
    """Make the model of these settings. The same settings give the same object.

    Args:
        config: the settings of the built-in network, or of a factory.
        convolution: the convolution of the built-in network; as in :func:`fmnist.cnn`.

    Raises:
        ConfigError: The factory raises an error, or does not return a model.
    """
    if isinstance(config, ModelConfig):
        return cnn.build(config, convolution)
    return _call_factory(load(config.factory).function, config)


def looks_and_logits(
    config: AnyModelConfig,
    params: Params,
    state: State,
    images: Tensor,
    convolution: str = "auto",
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Compute what a trained model sees in images, and what it says.

    Args:
        config: the settings of the model.
        params: its parameters.
        state: its running statistics.
        images: floats from 0 to 1, ``[examples, 1, 28, 28]``.
        convolution: as in :func:`build_model`.

    Returns:
        The looks for :mod:`fmnist.functional.outliers`: the outlines, the areas, the features
        after the convolutions, and the inputs of the last layer, if that is another; each
        ``[examples, width]``. And the logits ``[examples, 10]``, which stand for the features of a
        model from a factory.
    """
    plain = outliers.outlines(images), outliers.areas(images)
    if not isinstance(config, ModelConfig):
        logits, _ = build_model(config).apply(params, state, images, train=False)
        return (*plain, logits), logits
    compute = cnn.compute_dtype(config)
    seen, _ = features.features(
        params, state, images,
        train=False, compute=compute, convolution=convolution, frame=cnn.frame(config),
    )  # fmt: skip
    last, _ = cnn.hidden(params, state, seen, compute)
    looks = (*plain, seen, last) if config.hidden else (*plain, last)
    if config.flip_average:
        model = build_model(config, convolution)
        return looks, model.apply(params, state, images, train=False)[0]
    return looks, cnn.head(params, last, compute)


def look_widths(config: AnyModelConfig) -> tuple[int, ...]:
    """Return the widths of the looks of :func:`looks_and_logits`."""
    plain = 2 * ((IMAGE_SIZE - 1) // 3) ** 2, (IMAGE_SIZE // 4) ** 2
    if not isinstance(config, ModelConfig):
        return *plain, CLASS_COUNT
    return *plain, cnn.feature_count(config), *config.hidden[-1:]


@functools.lru_cache(maxsize=4096)
def _call_factory(function: Callable[..., Model], config: FactoryConfig) -> Model:
    arguments = dict(config.arguments)
    try:
        model = function(**arguments)
    except Exception as error:
        raise unusable(config, error) from error
    if not isinstance(model, Model):
        raise _unusable(config, f"it returned {type(model).__name__}, not fmnist.Model")
    return model


def check_model(config: FactoryConfig) -> None:
    """Check that a model computes logits of two black images.

    Raises:
        ConfigError: The model cannot be made, raises an error, or its logits have a wrong shape.
    """
    model = build_model(config)
    try:
        shape = _logits_shape(model) if hashable(model) else _logits_shape.__wrapped__(model)
    except Exception as error:
        raise unusable(config, error) from error
    if shape != (2, CLASS_COUNT):
        reason = f"the logits of 2 images have the shape {list(shape)}"
        raise _unusable(config, f"{reason}, not [2, {CLASS_COUNT}]")


@functools.lru_cache(maxsize=4096)  # every study object checks its models
def _logits_shape(model: Model) -> tuple[int, ...]:
    params, state = model.init(0)
    for leaf in optree.tree_leaves((params, state)):
        if not isinstance(leaf, torch.Tensor):
            raise TypeError(f"params and state must be trees of tensors, not of {type(leaf)}")
    shapes = []
    with torch.no_grad():
        for count in (1, 2):
            images = torch.zeros(count, 1, IMAGE_SIZE, IMAGE_SIZE)
            shapes.append(tuple(model.apply(params, state, images, train=False)[0].shape))
    if shapes[0] != (1, *shapes[1][1:]):
        raise ValueError(f"the logits of 1 image have the shape {list(shapes[0])}")
    return shapes[1]


def unusable(config: FactoryConfig, error: BaseException) -> ConfigError:
    """Return the error of the user's code as the error of a setting, with the line of code."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [str(path) for path in source.files(config.factory.partition(":")[0]).values()]
    lines = [f" ({Path(f.filename).name}, line {f.lineno})" for f in frames if f.filename in own]
    return _unusable(config, _one_line(error) + (lines[-1] if lines else ""))


def _unusable(config: FactoryConfig, reason: str) -> ConfigError:
    arguments = ", ".join(f"{name}={value!r}" for name, value in config.arguments)
    return ConfigError(
        clipped(f"cannot be used with ({arguments}): {reason}", 300), FACTORY, config.factory
    )


def _one_line(error: BaseException) -> str:
    return clipped(f"{type(error).__name__}: {' '.join(str(error).split())}", 200)
