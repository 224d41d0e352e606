"""The user's own model in a study file: its settings, errors and source."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmnist.config import factory
from fmnist.config import study as configs
from fmnist.config.factory import FactoryConfig
from fmnist.config.settings import ConfigError
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
    return configs.load(path, overrides=overrides)


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
    study = configs.load(overrides=words)
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
    assert configs.differences(study, study) == []
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
        ('factory = "os:system"', "signature says that it returns fmnist.Model"),
        ('factory = "{m}:unannotated"', "def unannotated(...) -> fmnist.Model"),
        ('factory = "{m}:number"', "has no signature"),
        ('factory = "{m}:nope"', "there is no nope in module"),
        ('factory = "no.such.package:f"', "cannot be imported: ModuleNotFoundError"),
        ('factory = "{m}"', 'must be "MODULE:FUNCTION"'),
        ("factory = 3", 'must be "MODULE:FUNCTION"'),
        ('factory = "{m}:hooked"', "its argument hook must have a default, or be annotated"),
        ('factory = "{m}:seeded"', "has an argument seed, which is another setting"),
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
        configs.load(overrides=[f"factory={module}:nope"])
    with pytest.raises(ConfigError, match="did you mean factory"):
        configs.load(overrides=[f"factroy={module}:linear"])
    with pytest.raises(ConfigError, match="given twice"):
        configs.load(overrides=[f"factory={module}:linear", f"factory={module}:needs"])


def test_source_covers_the_modules_that_the_factory_uses(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    main, used, unused = (next(names) for _ in range(3))
    for name in (used, unused):
        (tmp_path / f"{name}.py").write_text("def width():\n    return 3\n")
    text = MODULE.format(imports=f"from {used} import width")
    (tmp_path / f"{main}.py").write_text(text)
    found = factory.load(f"{main}:linear")
    files = factory._files(__import__(main))
    assert set(files) == {main, used}  # no torch, fmnist or unused modules

    def changed(name, more):
        path = tmp_path / f"{name}.py"
        path.write_text(path.read_text() + more)
        return factory._source(__import__(main))

    assert factory._source(__import__(main)) == found.source
    assert changed(unused, "# x\n") == found.source
    assert changed(used, "# x\n") != found.source
