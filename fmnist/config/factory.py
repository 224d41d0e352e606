"""A model of one's own in a study file: ``factory = "mypackage.nets:mlp"``.

The factory's keyword arguments are settings, typed by its signature.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import re
import sys
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
from fmnist.functional.types import Model, ModelConfig

SOURCE = "source"


@dataclass(frozen=True)
class FactoryConfig:
    """The settings of a model of one's own. All are static: another value is another program.

    Attributes:
        factory: ``"MODULE:FUNCTION"``.
        source: the SHA-256 of the source that it was made from; empty for the one that is there.
        arguments: the factory's keyword arguments by name, as far as they are set.
    """

    factory: str
    source: str = ""
    arguments: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> FactoryConfig:
        """From all settings by name."""
        arguments = {k: v for k, v in values.items() if k not in (FACTORY, SOURCE)}
        return cls(values[FACTORY], values.get(SOURCE, ""), tuple(arguments.items()))

    def values(self) -> dict[str, Any]:
        """All settings by name."""
        source = {SOURCE: self.source} if self.source else {}
        return {FACTORY: self.factory, **source, **dict(self.arguments)}


AnyModelConfig = ModelConfig | FactoryConfig


class Factory(NamedTuple):
    """A factory as it is imported.

    Attributes:
        function: makes the model.
        settings: of a study whose model it makes, by name; see :data:`SETTINGS`.
        defaults: of those of its arguments that have one.
        source: the SHA-256 of its module and of the modules beside it that this one uses.
    """

    function: Callable[..., Model]
    settings: Mapping[str, Setting]
    defaults: Mapping[str, Any]
    source: str


def settings_of(name: object) -> Mapping[str, Setting]:
    """The settings of a study whose model this factory makes; None for the built-in network."""
    return SETTINGS if name is None else load(name).settings


def defaults_of(model: AnyModelConfig) -> Mapping[str, Any]:
    """The defaults of a model's settings, as far as they have one."""
    if isinstance(model, ModelConfig):
        return vars(ModelConfig())
    factory = load(model.factory)
    return {FACTORY: model.factory, SOURCE: factory.source, **factory.defaults}


def load(name: object) -> Factory:
    """Import a factory.

    Args:
        name: ``"MODULE:FUNCTION"``; the module is found as by ``import``.

    Raises:
        ConfigError: There is no such function, its signature does not say that it returns a
            :class:`Model`, or an argument without a default cannot be a setting.
    """
    if not (isinstance(name, str) and re.fullmatch(r"\w+(\.\w+)*:\w+", name)):
        raise ConfigError('must be "MODULE:FUNCTION", such as "mypackage.nets:mlp"', FACTORY, name)
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except AttributeError:
        raise ConfigError(f"there is no {function} in module {module}", FACTORY, name) from None
    except Exception as error:
        where = "" if module in sys.modules else "; run where import finds it, or install it"
        raise ConfigError(f"cannot be imported: {_line(error)}{where}", FACTORY, name) from error
    return _inspected(name, found)


@functools.cache
def _inspected(name: str, function: Callable[..., Model]) -> Factory:
    try:
        signature = inspect.signature(function, eval_str=True)
    except (ValueError, TypeError, NameError) as error:
        raise ConfigError(f"has no signature: {_line(error)}", FACTORY, name) from error
    if signature.return_annotation is not Model:
        # Also a guard: a study file names no function that was not written to make models.
        reason = "must be a function whose signature says that it returns fmnist.Model, as in"
        reason += f" def {name.partition(':')[2]}(...) -> fmnist.Model"
        raise ConfigError(reason, FACTORY, name)
    own: dict[str, Setting] = {
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
            own[parameter.name] = setting = Setting(parameter.name, "model", "static", kind)
            if parameter.default is not parameter.empty:
                defaults[parameter.name] = setting.read(parameter.default)
        elif parameter.default is parameter.empty and parameter.kind not in _VARIADIC:
            reason = f"its argument {parameter.name} must have a default, or be annotated as"
            reason += " int, float, bool, str, Literal of words or tuple[int, ...]"
            raise ConfigError(reason, FACTORY, name)
    others = {key: each for key, each in SETTINGS.items() if each.table != "model"}
    study = {key: each for key, each in others.items() if each.table == "study"}
    settings = MappingProxyType(study | own | others)
    return Factory(function, settings, defaults, _source(sys.modules[function.__module__]))


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_WIDTHS = (tuple[int, ...], list[int], Sequence[int])


def _kind(parameter: inspect.Parameter) -> Kind | None:
    """What values a parameter takes, by its annotation or its default; None if no setting can."""
    if parameter.kind in (*_VARIADIC, inspect.Parameter.POSITIONAL_ONLY):
        return None
    wanted = parameter.annotation
    if wanted is parameter.empty:
        wanted = type(parameter.default)
        if wanted in (tuple, list) and parameter.default:
            wanted = tuple[int, ...] if all(type(n) is int for n in parameter.default) else None
    if typing.get_origin(wanted) is typing.Literal:
        words = typing.get_args(wanted)
        return kinds.choice(*words) if all(isinstance(word, str) for word in words) else None
    if wanted in _WIDTHS:
        return kinds.integers(0, 64, 2**31, '[12, 24] or "12-24"')
    return kinds.BY_TYPE.get(wanted)


def _source(module: ModuleType) -> str:
    """The SHA-256 of a module's file, and of the modules beside or below it that it uses."""
    digest = hashlib.sha256()
    for name, path in sorted(_files(module).items()):
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _files(module: ModuleType) -> dict[str, Path]:
    """Name -> file of a module and of the modules of its user that it uses, directly or not."""
    top = sys.modules[module.__name__.partition(".")[0]]
    root = Path(top.__file__ or ".").resolve().parent
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        each = waiting.pop()
        path = Path(getattr(each, "__file__", None) or "").resolve()
        own = each is module or _is_own(each.__name__, path, root)
        if each.__name__ in found or not (own and path.is_file()):
            continue
        found[each.__name__] = path
        waiting += _used(each)
    return found


def _is_own(name: str, path: Path, root: Path) -> bool:
    """Whether a module is the user's own: installed packages have versions instead."""
    installed = {"site-packages", "dist-packages"}.intersection(path.parts)
    return path.is_relative_to(root) and not installed and name.partition(".")[0] != "fmnist"


def _used(module: ModuleType) -> Iterator[ModuleType]:
    """The modules among a module's names, and those where its functions and classes are from."""
    for value in list(vars(module).values()):
        if isinstance(value, ModuleType):
            yield value
        elif isinstance(value, FunctionType | type) and value.__module__ in sys.modules:
            yield sys.modules[value.__module__]


def build_model(config: AnyModelConfig, convolution: str = "auto") -> Model:
    """The model of these settings; the same object each time, so that it can be a key.

    Args:
        config: of the built-in network, or of a factory.
        convolution: of the built-in network; as in :func:`fmnist.cnn`.

    Raises:
        ConfigError: The factory raises an error, or returns something else.
    """
    if isinstance(config, ModelConfig):
        return cnn.build(config, convolution)
    return _built(load(config.factory).function, config)


@functools.lru_cache(maxsize=4096)
def _built(function: Callable[..., Model], config: FactoryConfig) -> Model:
    arguments = dict(config.arguments)
    try:
        model = function(**arguments)
    except Exception as error:
        raise _unusable(config, _line(error)) from error
    if not isinstance(model, Model):
        raise _unusable(config, f"it returned {type(model).__name__}, not fmnist.Model")
    return model


def check_models(configs: Collection[AnyModelConfig]) -> None:
    """Have the model of each of these settings compute the logits of two black images.

    Raises:
        ConfigError: One cannot be made, or raises an error, or its logits have another shape.
    """
    images = torch.zeros(2, 1, IMAGE_SIZE, IMAGE_SIZE)
    for config in configs:
        if isinstance(config, FactoryConfig):
            model = build_model(config)
            try:
                with torch.no_grad():
                    logits, _ = model.apply(*model.init(0), images, train=False)
                shape = tuple(logits.shape)
            except Exception as error:
                raise _unusable(config, _line(error)) from error
            if shape != (2, CLASS_COUNT):
                reason = f"the logits of 2 images have the shape {list(shape)}"
                raise _unusable(config, f"{reason}, not [2, {CLASS_COUNT}]")


def _unusable(config: FactoryConfig, why: str) -> ConfigError:
    arguments = ", ".join(f"{name}={value!r}" for name, value in config.arguments)
    return ConfigError(
        clipped(f"cannot be used with ({arguments}): {why}", 300), FACTORY, config.factory
    )


def _line(error: Exception) -> str:
    return clipped(f"{type(error).__name__}: {' '.join(str(error).split())}", 200)
