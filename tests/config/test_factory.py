"""The user's own model in a study file: its settings, errors and source."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmnist.config import factory, loading, source
from fmnist.config import study as configs
from fmnist.config.errors import ConfigError
from fmnist.config.factory import FactoryConfig
from fmnist.config.study import StudyConfig

MODULE = """
from collections.abc import Callable, Sequence
from typing import Literal

import torch

import fmnist
{imports}

def linear(
    width: int = 3,
    rate: float = 0.5,
    wide: bool = False,
    kind: Literal["relu", "gelu"] = "relu",
    layers: tuple[int, ...] = (4, 2),
    more: Sequence[int] = (),
    guessed=7,
    hook: Callable[[], None] | None = None,
    *,
    name_of: str = "plain",
) -> fmnist.Model:
    if width == 13:
        raise ValueError("thirteen is\\nunlucky")

    def init(seed):
        generator = torch.Generator().manual_seed(seed)
        return {{"weight": torch.randn(10, 784, generator=generator)}}, ()

    def apply(params, state, images, *, train, noise=()):
        logits = images.flatten(1) @ params["weight"].mT
        return logits[:, : 9 if wide else 10], state

    return fmnist.Model(init, apply)


def needs(width: int) -> fmnist.Model:
    return linear(width)


def unannotated(width: int = 3):
    return linear(width)


def hooked(hook: Callable[[], None]) -> fmnist.Model:
    return linear()


def seeded(seed: int = 0) -> fmnist.Model:
    return linear()


def nothing() -> fmnist.Model:
    return None


number = 3
"""
names = (f"nets_{number}" for number in itertools.count())


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a new importable module and return its name."""
    name = next(names)
    (tmp_path / f"{name}.py").write_text(MODULE.format(imports=""))
    monkeypatch.syspath_prepend(tmp_path)
    return name


def load(tmp_path, text, *overrides):
    path = tmp_path / "study.toml"
    path.write_text(text)
    return loading.load_study(path, overrides=overrides)


def test_arguments_are_settings_typed_by_the_signature(module, tmp_path):
    study = load(
        tmp_path,
        f"""
[model]
factory = "{module}:linear"
width = 4
rate = 1
kind = "gelu"
[grid]
layers = ["4-2", "none"]
name_of = ["a", "b-2"]
guessed = [1, 2]
""",
    )
    config = study.trial({"layers": "4-2", "name_of": "b-2", "guessed": 2}).model
    values = dict(config.arguments)
    assert values == {
        "width": 4, "rate": 1.0, "wide": False, "kind": "gelu", "layers": (4, 2), "more": (),
        "guessed": 2, "name_of": "b-2",
    }  # fmt: skip
    assert isinstance(values["rate"], float)
    assert study.size == 8
    assert "hook" not in study.settings  # no setting can be a function


def test_words_of_the_command_line_have_the_same_types(module):
    words = ("width=5,6", "wide=false", f"factory={module}:linear", "layers=3-4", "rate=2")
    study = loading.load_study(overrides=words)
    assert study.grid["width"] == (5, 6)
    point = {**next(study.points()), "width": 6}
    assert dict(study.trial(point).model.arguments)["layers"] == (3, 4)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "width": st.integers(14, 1000),
            "rate": st.floats(-1e6, 1e6),
            "kind": st.sampled_from(["relu", "gelu"]),
            "layers": st.lists(st.integers(1, 99), max_size=4),
            "name_of": st.from_regex("[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
        },
    )
)
def test_study_file_round_trip(values):
    model = {"factory": f"{written()}:linear", **values}
    study = StudyConfig.from_dict({"model": model, "grid": {"guessed": [3, 4]}})
    assert StudyConfig.from_dict(study.to_dict()) == study
    assert StudyConfig.from_dict(json.loads(json.dumps(study.to_dict()))) == study
    assert loading.differences(study, study) == []
    assert hash(study.trial(next(study.points())).static) is not None


def written():
    """Return the name of a module that exists for the whole session."""
    import sys
    import types

    name = "nets_of_the_session"
    if name not in sys.modules:
        made = types.ModuleType(name)
        made.__file__ = __file__
        sys.modules[name] = made
        exec(MODULE.format(imports=""), vars(made))
    return name


def test_the_same_settings_give_the_same_model(module):
    one, two, other = (
        factory.build_model(FactoryConfig(f"{module}:linear", "", (("width", width),)))
        for width in (3, 3, 4)
    )
    assert one is two
    assert one is not other


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ('factory = "os:system"', "there is no function system in module os"),
        ('factory = "{m}:unannotated"', "def unannotated(...) -> fmnist.Model"),
        ('factory = "shutil:move"', "signature says that it returns fmnist.Model"),
        ('factory = "{m}:number"', "there is no function number in module"),
        ('factory = "{m}:nope"', "there is no function nope in module"),
        ('factory = "no.such.package:f"', "cannot be imported: ModuleNotFoundError"),
        ('factory = "{m}"', 'must be "MODULE:FUNCTION"'),
        ("factory = 3", 'must be "MODULE:FUNCTION"'),
        ('factory = "{m}:hooked"', "its argument hook must have a default, or be annotated"),
        ('factory = "{m}:seeded"', "has an argument seed, which names something else"),
        ('factory = "{m}:nothing"', "it returned NoneType, not fmnist.Model"),
        ('factory = "{m}:needs"', "width: must be given"),
        ('factory = "{m}:linear"\nwidth = "a"', 'width = "a": must be an integer'),
        ('factory = "{m}:linear"\nwidth = 13', "(width=13, "),
        ('factory = "{m}:linear"\nwidth = 13', "ValueError: thirteen is unlucky"),
        ('factory = "{m}:linear"\nwide = true', "have the shape [2, 9], not [2, 10]"),
        ('factory = "{m}:linear"\nkind = "geluu"', "did you mean gelu?"),
        ('factory = "{m}:linear"\nwidht = 3', "did you mean width?"),
        ('factory = "{m}:linear"\nhook = 3', "unknown setting of [model]"),
        ('factory = "{m}:linear"\nname_of = "a/b"', "must be 1 to 64 of the characters"),
        ('factory = "{m}:linear"\nchannels = [3]', "unknown setting of [model]"),
        ('factory = "{m}:linear"\nsource = "abc"', "the source of {m}:linear has changed"),
        ('factory = "{m}:linear"\n[grid]\nwidth = [3, 13]', "(width=13, "),
        ('factory = "{m}:linear"\nwidth = 4\n[grid]\nwidth = [3, 5]', "give it once"),
        ('factory = "{m}:linear"\n[grid]\nfactory = ["a:b"]', "cannot be an axis of the grid"),
        ('factry = "{m}:linear"', "did you mean factory?"),
    ],
)
def test_mistakes_are_refused_in_one_line(module, tmp_path, model, reason):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "[model]\n" + model.replace("{m}", module))
    line = str(caught.value)
    assert reason.replace("{m}", module) in line
    assert len(line.splitlines()) == 1
    assert line.startswith(str(tmp_path / "study.toml"))


def test_argument_without_a_default_must_be_given_or_an_axis(module, tmp_path):
    model = f'[model]\nfactory = "{module}:needs"\n'
    for more in ("width = 4", "[grid]\nwidth = [4, 5]"):
        study = load(tmp_path, model + more)
        point = next(study.points())
        assert study.trial(point).model.arguments == (("width", 4),)
        assert StudyConfig.from_dict(study.to_dict()) == study


def test_message_names_a_wrong_factory_of_the_command_line(module):
    with pytest.raises(ConfigError, match=r"^--set: factory"):
        loading.load_study(overrides=[f"factory={module}:nope"])
    with pytest.raises(ConfigError, match="did you mean factory"):
        loading.load_study(overrides=[f"factroy={module}:linear"])
    with pytest.raises(ConfigError, match="given twice"):
        loading.load_study(overrides=[f"factory={module}:linear", f"factory={module}:needs"])


def write_package(folder, files):
    """Write modules of a user; the name of the factory's module comes from ``{name}``."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_source_is_that_of_the_modules_which_the_imports_name(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    package, single, unused = (next(names) for _ in range(3))
    imports = f"""
import json, os.path
from {single} import SLOPE, make  # a number and a partial
from . import layers
from .more.deep import *
def late():
    from {package} import late_one
"""
    write_package(
        tmp_path,
        {
            f"{package}/__init__.py": "",
            f"{package}/nets.py": MODULE.format(imports=imports),
            f"{package}/layers.py": "",
            f"{package}/plots.py": "",
            f"{package}/more/__init__.py": "",
            f"{package}/more/deep.py": "from ..layers import *",
            f"{package}/late_one.py": "this is no Python",
            f"{single}.py": "import functools\nSLOPE = 0.1\nmake = functools.partial(print, 1)",
            f"{unused}.py": "",
        },
    )
    module = f"{package}.nets"
    first = factory.load(f"{module}:linear").source
    parts = ("", ".nets", ".layers", ".more", ".more.deep", ".late_one")
    assert set(source.files(module)) == {single, *(package + part for part in parts)}
    # Neither the folder nor what the process has imported changes it.
    importlib.import_module(f"{package}.plots")
    with contextlib.chdir("/"):
        assert source.digest(module) == first

    def changed(name):
        path = tmp_path / name
        before = path.read_text()
        path.write_text(before + "# x\n")
        try:
            return source.digest(module) != first
        finally:
            path.write_text(before)

    assert changed(f"{single}.py")
    assert changed(f"{package}/more/deep.py")
    assert not changed(f"{package}/plots.py")
    assert not changed(f"{unused}.py")


def test_source_of_a_package_without_init_does_not_depend_on_the_folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    package = next(names)
    text = MODULE.format(imports=f"import {package}.layers")
    write_package(tmp_path, {f"{package}/nets.py": text, f"{package}/layers.py": ""})
    first = factory.load(f"{package}.nets:linear").source
    assert set(source.files(f"{package}.nets")) == {f"{package}.nets", f"{package}.layers"}
    with contextlib.chdir("/"):
        assert source.digest(f"{package}.nets") == first


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import sys; sys.exit(0)", "cannot be imported: SystemExit"),
        ("import torch; torch.nonexistent", "cannot be imported: AttributeError"),
        ("1 / 0", "cannot be imported: ZeroDivisionError"),
        ("f = [1]", "there is no function f in module"),
        ("import functools; f = functools.partial(int, 3)", "there is no function f in module"),
        ("def f(a: 'a width' = 3): pass", "has no signature: SyntaxError"),
        ("def f(a: 'torch.Foo' = 3): pass", "has no signature: NameError"),
        ("import fmnist\ndef f(a: [int]) -> fmnist.Model: pass", "argument a must have a default"),
        ("import fmnist\ndef f(a: list[int]) -> fmnist.Model: pass", "must have a default"),
        ("import fmnist\ndef f(number: int = 3) -> fmnist.Model: pass", "has an argument number"),
        ("import fmnist\ndef f(state: int = 3) -> fmnist.Model: pass", "has an argument state"),
        ("import fmnist\ndef f(time: int = 3) -> fmnist.Model: pass", "has an argument time"),
    ],
)
def test_odd_modules_and_signatures_are_refused_in_one_line(tmp_path, monkeypatch, code, reason):
    monkeypatch.syspath_prepend(tmp_path)
    name = next(names)
    (tmp_path / f"{name}.py").write_text(code)
    with pytest.raises(ConfigError) as caught:
        loading.load_study(overrides=[f"factory={name}:f"])
    assert reason in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


LAYERS = """
import torch, fmnist

def model(apply, state=()):
    def init(seed):
        return {"w": torch.ones(10, 784)}, state
    return fmnist.Model(init, apply)

def logits(params, images):
    return images.flatten(1) @ params["w"].mT

def number() -> fmnist.Model:
    return model(lambda p, s, x, *, train: (logits(p, x), s), {"step": 0})

def squeezed() -> fmnist.Model:
    return model(lambda p, s, x, *, train: (logits(p, x).squeeze(0), s))

def words(größe: int = 3, liste=[3], none: int = None) -> fmnist.Model:
    return model(lambda p, s, x, *, train: (logits(p, x), s))
"""


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("number", "TypeError: params and state must be trees of tensors, not of <class 'int'>"),
        ("squeezed", "ValueError: the logits of 1 image have the shape [10]"),
    ],
)
def test_model_that_cannot_be_used_is_refused_before_training(tmp_path, monkeypatch, name, reason):
    monkeypatch.syspath_prepend(tmp_path)
    module = next(names)
    (tmp_path / f"{module}.py").write_text(LAYERS)
    with pytest.raises(ConfigError, match=re.escape(reason)):
        loading.load_study(overrides=[f"factory={module}:{name}"])


def test_letters_beyond_ascii_and_odd_defaults(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    module = next(names)
    (tmp_path / f"{module}.py").write_text(LAYERS)
    study = loading.load_study(overrides=[f"factory={module}:words", "größe=4"])
    path = tmp_path / "again.toml"
    path.write_text(study.to_toml())
    assert loading.load_study(path) == study
    assert {"liste", "none"}.isdisjoint(study.settings)  # no study file can name their defaults


def test_arguments_given_in_python_are_checked(module):
    def made(*arguments):
        return StudyConfig(model=FactoryConfig(f"{module}:linear", arguments=arguments))

    assert dict(made(("width", 5)).model.arguments)["width"] == 5
    with pytest.raises(ConfigError, match="did you mean width"):
        made(("widht", 5))


def test_factory_of_null_is_refused():
    with pytest.raises(ConfigError, match="must be"):
        configs.read_model({"factory": None})


def test_too_many_models_are_refused(module):
    widths = ",".join(map(str, range(14, 54)))
    words = (f"factory={module}:linear", f"width={widths}", f"guessed={widths}")
    with pytest.raises(ConfigError, match="has 1600 models in the grid, at most 1000"):
        loading.load_study(overrides=words)
