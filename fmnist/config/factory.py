"""The user's own models in study files: ``factory = "mypackage.nets:mlp"``.

The keyword arguments of the factory become settings. Its signature gives their types.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import re
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, MappingProxyType, ModuleType
from typing import Any, NamedTuple

import torch

from fmnist.config import kinds
from fmnist.config.kinds import Kind
from fmnist.config.settings import FACTORY, SETTINGS, ConfigError, Setting, clipped
from fmnist.functional import cnn
from fmnist.functional.cnn import CLASS_COUNT, IMAGE_SIZE
from fmnist.functional.types import Model, ModelConfig, hashable

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
        source = {SOURCE: self.source} if self.source else {}
        return {FACTORY: self.factory, **source, **dict(self.arguments)}


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
        function = getattr(importlib.import_module(module), attribute)
    except AttributeError:
        raise ConfigError(f"there is no {attribute} in module {module}", FACTORY, name) from None
    except Exception as error:
        hint = "" if module in sys.modules else "; run where import finds it, or install it"
        raise ConfigError(f"cannot be imported: {_one_line(error)}{hint}", FACTORY, name) from error
    return _inspect(name, function)


@functools.cache
def _inspect(name: str, function: Callable[..., Model]) -> Factory:
    """Make the settings of a factory from its signature."""
    try:
        signature = inspect.signature(function, eval_str=True)
    except (ValueError, TypeError, NameError) as error:
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
    defaults = {}
    for parameter in signature.parameters.values():
        kind = _kind(parameter)
        if parameter.name in (FACTORY, SOURCE, "grid") or (
            parameter.name in SETTINGS and SETTINGS[parameter.name].table != "model"
        ):
            reason = f"has an argument {parameter.name}, which is another setting of the study"
            raise ConfigError(reason, FACTORY, name)
        if kind is not None:
            setting = Setting(parameter.name, "model", "static", kind)
            model_settings[parameter.name] = setting
            if parameter.default is not parameter.empty:
                defaults[parameter.name] = setting.read(parameter.default)
        elif parameter.default is parameter.empty and parameter.kind not in _VARIADIC:
            reason = f"its argument {parameter.name} must have a default, or be annotated as"
            reason += " int, float, bool, str, Literal of words or tuple[int, ...]"
            raise ConfigError(reason, FACTORY, name)
    others = {key: setting for key, setting in SETTINGS.items() if setting.table != "model"}
    study = {key: setting for key, setting in others.items() if setting.table == "study"}
    settings = MappingProxyType(study | model_settings | others)
    return Factory(function, settings, defaults, _source(sys.modules[function.__module__]))


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_WIDTHS = (tuple[int, ...], list[int], Sequence[int])


def _kind(parameter: inspect.Parameter) -> Kind | None:
    """Return the allowed values of a parameter; None if the parameter cannot be a setting."""
    if parameter.kind in (*_VARIADIC, inspect.Parameter.POSITIONAL_ONLY):
        return None
    annotation = parameter.annotation
    if annotation is parameter.empty:
        annotation = type(parameter.default)
        if annotation in (tuple, list) and parameter.default:
            integers = all(type(n) is int for n in parameter.default)
            annotation = tuple[int, ...] if integers else None
    if typing.get_origin(annotation) is typing.Literal:
        words = typing.get_args(annotation)
        return kinds.choice(*words) if all(isinstance(word, str) for word in words) else None
    if annotation in _WIDTHS:
        return kinds.integers(0, 64, 2**31, '[12, 24] or "12-24"')
    return kinds.BY_TYPE.get(annotation)


def _source(module: ModuleType) -> str:
    """Return the SHA-256 of the files of a module and of the user's modules that it uses."""
    digest = hashlib.sha256()
    for name, path in sorted(_files(module).items()):
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _files(module: ModuleType) -> dict[str, Path]:
    """Return the files of a module and of the user's modules that it uses, by module name."""
    top = sys.modules[module.__name__.partition(".")[0]]
    root = Path(top.__file__ or ".").resolve().parent
    files: dict[str, Path] = {}
    queue = [module]
    while queue:
        current = queue.pop()
        path = Path(getattr(current, "__file__", None) or "").resolve()
        included = current is module or _is_users(current.__name__, path, root)
        if current.__name__ in files or not (included and path.is_file()):
            continue
        files[current.__name__] = path
        queue += _used_modules(current)
    return files


def _is_users(name: str, path: Path, root: Path) -> bool:
    """Whether a module is part of the user's code and not an installed package or fmnist."""
    installed = {"site-packages", "dist-packages"}.intersection(path.parts)
    return path.is_relative_to(root) and not installed and name.partition(".")[0] != "fmnist"


def _used_modules(module: ModuleType) -> Iterator[ModuleType]:
    """Yield the modules that a module imports, and those that define its functions and classes."""
    for value in list(vars(module).values()):
        if isinstance(value, ModuleType):
            yield value
        elif isinstance(value, FunctionType | type) and value.__module__ in sys.modules:
            yield sys.modules[value.__module__]


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


@functools.lru_cache(maxsize=4096)
def _call_factory(function: Callable[..., Model], config: FactoryConfig) -> Model:
    arguments = dict(config.arguments)
    try:
        model = function(**arguments)
    except Exception as error:
        raise _unusable(config, _one_line(error)) from error
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
        raise _unusable(config, _one_line(error)) from error
    if shape != (2, CLASS_COUNT):
        reason = f"the logits of 2 images have the shape {list(shape)}"
        raise _unusable(config, f"{reason}, not [2, {CLASS_COUNT}]")


@functools.lru_cache(maxsize=4096)  # every study object checks its models
def _logits_shape(model: Model) -> tuple[int, ...]:
    images = torch.zeros(2, 1, IMAGE_SIZE, IMAGE_SIZE)
    with torch.no_grad():
        logits, _ = model.apply(*model.init(0), images, train=False)
    return tuple(logits.shape)


def _unusable(config: FactoryConfig, reason: str) -> ConfigError:
    arguments = ", ".join(f"{name}={value!r}" for name, value in config.arguments)
    return ConfigError(
        clipped(f"cannot be used with ({arguments}): {reason}", 300), FACTORY, config.factory
    )


def _one_line(error: Exception) -> str:
    return clipped(f"{type(error).__name__}: {' '.join(str(error).split())}", 200)
