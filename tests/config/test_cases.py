"""Cases: settings that are changed together are those of a study of their own."""

from __future__ import annotations

import dataclasses
import json
import tomllib

import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from strategies import tiny_data, tiny_study

import fmnist
from fmnist.config import cases
from fmnist.config.errors import ConfigError
from fmnist.config.loading import differences, load_study
from fmnist.config.results import EpochMetrics, TrialResult
from fmnist.config.study import StudyConfig
from fmnist.reports import effects, failures
from fmnist.study.plan import plan
from fmnist.utils.errors import UserError

CHANGES = {
    "channels": st.sampled_from([[3, 4], [5], [2, 2, 2]]),
    "hidden": st.sampled_from([[7], [6, 5]]),
    "padding": st.sampled_from([0, "same"]),
    "dropout": st.sampled_from([0.1, 0.5]),
    "learning_rate": st.floats(1e-4, 0.1),
    "shift": st.integers(0, 3),
    "flip": st.sampled_from(["none", "random", "alternating"]),
    "schedule": st.sampled_from(["constant", "cosine"]),
}
names = st.from_regex(
    r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,4}( [A-Za-z0-9.+_-]{1,4}){0,2}", fullmatch=True
)
table = st.dictionaries(
    names.filter("base".__ne__), st.fixed_dictionaries({}, optional=CHANGES), max_size=3
).map(lambda found: {"base": {}} | found)
TABLES = {
    "study": {"epochs": 2, "name": "cases"},
    "model": {"kernel_size": 2},
    "training": {"schedule": "linear", "floor": 0.1},
}


def with_table(tables, key, value):
    """The tables of a study file with one more setting, or another value of it."""
    of = StudyConfig().settings[key].table
    return {**tables, of: {**tables.get(of, {}), key: value}}


def study_of(found, grid=None):
    return StudyConfig.from_dict({**TABLES, "cases": found, "grid": grid or {}})


def accepted(found):
    try:
        return study_of(found, {"seed": [0, 1]})
    except ConfigError as error:
        if "trains the same as case" not in str(error):
            raise
        reject()


@given(table)
@settings(deadline=None)
def test_a_case_is_the_study_of_its_settings(found):
    study = accepted(found)
    assert study.grid == {"case": tuple(found), "seed": (0, 1)}
    assert study.size == 2 * len(found)
    for point in study.points():
        tables = {**TABLES, "grid": {"seed": [0, 1]}}
        changed = found[point["case"]]
        if changed.get("schedule") == "constant":
            tables = {**tables, "training": {}}  # floor has no effect there
        for key, value in changed.items():
            tables = with_table(tables, key, value)
        alone = StudyConfig.from_dict(tables)
        assert study.trial(point) == alone.trial({"seed": point["seed"]})


@given(table)
@settings(deadline=None)
def test_round_trips_and_differences(found):
    study = accepted(found)
    for again in (
        StudyConfig.from_dict(tomllib.loads(study.to_toml())),
        StudyConfig.from_dict(json.loads(json.dumps(study.to_dict()))),
        dataclasses.replace(study, epochs=study.epochs),
    ):
        assert again == study
        assert differences(again, study) == []
        assert again.to_toml() == study.to_toml()
    turned = study_of(dict(reversed(found.items())), {"seed": [0, 1]})
    assert bool(differences(study, turned)) == (len(found) > 1)
    other = study_of({**found, next(iter(found)): {"batch_size": 7}}, {"seed": [0, 1]})
    (line,) = (line for line in differences(study, other) if line.startswith("case "))
    assert line.endswith('there, {"batch_size": 7} here')


def test_settings_of_different_cases_are_not_combined():
    found = {"cycle": {"schedule": "one-cycle", "warmup": 0.3}, "flat": {}}
    study = StudyConfig.from_dict({"cases": found, "grid": {"seed": [0]}})
    assert study.trial({"case": "flat", "seed": 0}).training.warmup == 0
    assert study.values("schedule") == ["one-cycle", "constant"]
    with pytest.raises(ConfigError, match=r"schedule = .*needs a warmup.*case 'cycle'"):
        StudyConfig.from_dict({"cases": {"cycle": {"schedule": "one-cycle"}}})


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([], "cases = .*must be a table"),
        ({"a": 5}, "case = 5: a case must be a table of settings.* .in case 'a'."),
        ({"a  b": {}}, "case = \"a  b\": must be 1 to 40 letters, digits, single spaces"),
        ({}, "cases = {}: must have at least one case"),
        ({"a": {"lr": 0.1}}, "lr = 0.1: unknown setting of a case; did you mean learning_rate"),
        ({"a": {"case": "b"}}, "case = \"b\": unknown setting of a case .allowed: [^c]"),
        ({"a": {"epochs": 3}}, "epochs = 3: belongs in the table"),
        ({"a": {"padding": 1}}, "padding = 1: is an axis of .grid., too; .* .in case 'a'."),
        ({"a": {"seed": 3}}, "seed = 3: is no setting of a case; make it an axis .in case 'a'."),
        ({"a": {"dropout": 2}}, "dropout = 2: must be a number from 0 to below 1 .in case 'a'."),
        ({"a": {"dropout": {}}}, "dropout = .*must be a number from 0 to below 1"),
        ({"a": {"dropout": [0.1, 0.2]}}, "dropout = .*must be a number"),
        ({"=a": {}}, "case = \"=a\": must be 1 to 40 letters"),
        ({" ": {}}, "must be 1 to 40 letters"),
        ({"a": {}, "b": {"dropout": 0.0}}, "trains the same as case 'a'"),
        ({"a": {"momentum": 0.5}}, "momentum = 0.5: has no effect with algorithm.*case 'a'"),
        ({"a": {"kernel_size": 27}}, "kernel_size = 27: must be at most 9.*case 'a'"),
    ],
)  # fmt: skip
def test_a_wrong_case_is_refused_in_one_line(found, said):
    with pytest.raises(ConfigError, match=said) as raised:
        study_of(found, {"padding": [0, 1]})
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("grid", [{"case": ["a"]}, {"case": ["x"], "seed": [1]}])
def test_case_is_no_axis_that_a_grid_lists(grid):
    with pytest.raises(ConfigError, match="case"):
        StudyConfig.from_dict({"grid": grid})
    with pytest.raises(ConfigError, match="case"):
        StudyConfig.from_dict({"cases": {"a": {}}, "grid": grid})


@pytest.mark.parametrize(
    "axis",
    [
        {"algorithm": ["adam", "adamw"]}, {"algorithm": ["sgd"]}, {"hidden": ["none"]},
        {"weight_decay": [0.0]}, {"schedule": ["constant"]}, {"batch_size": [10, 20]},
    ],
)  # fmt: skip
def test_settings_that_nobody_gave_are_not_refused_beside_an_axis(axis):
    study = StudyConfig.from_dict({"cases": {"a": {}, "b": {"shift": 1}}, "grid": axis})
    for point in study.points():
        (key,) = axis
        shift = {"training": {"shift": int(point["case"] == "b")}}
        alone = StudyConfig.from_dict({**shift, "grid": axis})
        assert study.trial(point) == alone.trial({key: point[key]})


@pytest.mark.parametrize("algorithms", [["sgd", "adam"], ["adam", "sgd"]])
def test_cases_that_are_equal_somewhere_in_the_grid_are_refused(algorithms):
    found = {"a": {}, "b": {"momentum": 0.9}}
    with pytest.raises(ConfigError, match=r"trains the same as case 'a'"):
        StudyConfig.from_dict({"cases": found, "grid": {"algorithm": algorithms}})


@pytest.mark.parametrize(
    ("found", "given", "said"),
    [
        ({"a": {"learning_rate": 0.1}, "b": {"learning_rate": 0.2}},
         {"optimizer": {"learning_rate": 0.5}}, "learning_rate = 0.5: has no effect, as every"),
        ({"a": {"schedule": "linear", "floor": 0.2}, "b": {}},
         {"training": {"floor": 0.3}}, "floor = 0.3: has no effect, as every case"),
    ],
)  # fmt: skip
def test_a_setting_that_no_case_uses_is_refused(found, given, said):
    with pytest.raises(ConfigError, match=said):
        StudyConfig.from_dict({"cases": found, **given})


def test_what_a_case_has_wrong_is_not_blamed_on_an_option(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text("[cases]\na = {}\nb = { dropout = 5 }\n")
    with pytest.raises(ConfigError) as raised:
        load_study(path, overrides=["dropout=0.2"])
    assert str(raised.value).startswith(f"{path}: dropout = 5: must be")
    path.write_text("[cases]\na = {}\nb = { batch_size = 60000 }\n")
    with pytest.raises(ConfigError) as raised:
        load_study(path, overrides=["batch_size=200"])
    assert str(raised.value).startswith(f"{path}: batch_size = 60000: must be at most 55000")


def test_what_an_option_has_wrong_is_not_blamed_on_a_case(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text("[cases]\na = {}\nb = { dropout = 0.5 }\n")
    with pytest.raises(ConfigError) as raised:
        load_study(path, overrides=["batch_size=60000"])
    assert str(raised.value).startswith("--set: batch_size = 60000: must be at most 55000")
    assert "case" not in str(raised.value)


def test_arguments_that_every_case_gives_need_no_default(tmp_path, monkeypatch):
    (tmp_path / "nets_of_cases.py").write_text(
        "import fmnist\n"
        "def mlp(width: int, depth: int = 1) -> fmnist.Model:\n"
        "    return fmnist.cnn(channels=[width], hidden=[2] * depth)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = {"factory": "nets_of_cases:mlp"}
    study = StudyConfig.from_dict({"model": model, "cases": {"a": {"width": 3}, "b": {"width": 4}}})
    assert StudyConfig.from_dict(tomllib.loads(study.to_toml())) == study
    assert "case b: width 4" in plan(study, tmp_path, 1, torch.device("cpu"))
    with pytest.raises(ConfigError, match="width: must be given"):
        StudyConfig.from_dict({"model": model, "cases": {"a": {"width": 3}, "b": {"depth": 2}}})


def test_advice_after_failures_is_about_what_was_trained():
    found = {"huge": {"learning_rate": 9.0}, "larger one": {"learning_rate": 20.0}}
    study = StudyConfig(cases=found, grid={"seed": (0, 1)})
    results = [TrialResult(n, point, "FAIL", ()) for n, point in enumerate(study.points())]
    assert failures.advice(study, results) == (
        "All 4 trials diverged, with learning_rate from 9.0 to 20.0; a lower one may not."
    )
    fine = EpochMetrics(0.1, 0.9, 0.5, 0.8)
    results[:2] = [dataclasses.replace(r, state="COMPLETE", history=(fine,)) for r in results[:2]]
    assert failures.advice(study, results) == (
        'Both trials with case "larger one" diverged; those with huge did not.'
    )


def test_options_of_the_command_change_what_the_cases_share(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text('[cases]\n"as it is" = {}\nwide = { channels = [5, 6] }\n')
    study = load_study(path, overrides=["seed=0,1", "dropout=0.25"])
    trials = [study.trial(point) for point in study.points()]
    assert [trial.model.channels for trial in trials] == [(12, 24), (12, 24), (5, 6), (5, 6)]
    assert {trial.model.dropout for trial in trials} == {0.25}
    with pytest.raises(ConfigError, match=r"channels = .*is an axis of .grid., too.*'wide'"):
        load_study(path, overrides=["channels=1-2,3-4"])


def test_the_plan_says_what_each_case_changes(tmp_path):
    study = study_of(
        {"as it is": {}, "slow": {"learning_rate": 0.0001}, "thin": {"channels": [2, 3]}},
        {"seed": [0, 1]},
    )
    lines = plan(study, tmp_path, None, torch.device("cpu")).splitlines()
    assert "case as it is: the settings of the study" in lines
    assert "case slow: learning_rate 0.0001" in lines
    assert "case thin: channels 2-3" in lines
    # Two cases that differ in a number are lanes of one group.
    assert any("group 1 of 2: batch size 100; 4 lanes at once" in line for line in lines)
    assert any("group 2 of 2: case=thin; 2 lanes" in line for line in lines)


def test_the_first_case_is_what_the_others_are_compared_with():
    study = StudyConfig(cases={"base": {}, "worse": {"dropout": 0.5}, "best": {"dropout": 0.1}},
                        grid={"seed": (0, 1, 2)})  # fmt: skip
    score = {"base": 0.8, "worse": 0.7, "best": 0.9}
    results = []
    for number, point in enumerate(study.points()):
        value = score[point["case"]] + 0.001 * number % 0.002
        history = (EpochMetrics(0.1, 0.9, 0.5, value),)
        results.append(TrialResult(number, point, "COMPLETE", history))
    found = effects.effects(study, results)
    assert [(e.key, e.value, e.reference, e.pairs) for e in found] == [
        ("case", "worse", "base", 3), ("case", "best", "base", 3),
    ]  # fmt: skip
    said = effects.sentence(found)
    assert said.startswith("Compared with case 'base', over pairs of trials")
    assert "better are best; worse are worse (" in said


@pytest.mark.usefixtures("undrawn")
def test_a_study_of_cases_is_run_and_resumed(tmp_path):
    of_cases = {"base": {}, "fast": {"learning_rate": 0.1}, "norm": {"linear_norm": True}}
    base = dataclasses.replace(tiny_study("cases"), cases=of_cases)
    found = fmnist.run_study(base, tmp_path / "run", dataset=tiny_data())
    assert [(r.point["case"], r.point["seed"]) for r in found] == [
        (case, seed) for case in ("base", "fast", "norm") for seed in (0, 1)
    ]
    norm = dataclasses.replace(
        tiny_study("norm"), model=dataclasses.replace(base.model, linear_norm=True)
    )
    alone = fmnist.run_study(norm, tmp_path / "norm", dataset=tiny_data())
    assert [r.history for r in found[4:]] == [r.history for r in alone]
    assert fmnist.run_study(base, tmp_path / "run", dataset=tiny_data()) == found
    report = (tmp_path / "run" / "report.md").read_text()
    assert "Compared with case 'base'" in report
    assert fmnist.load_run(tmp_path / "run").config == base
    other = dataclasses.replace(base, cases={**base.cases, "fast": {"learning_rate": 0.2}})
    with pytest.raises(UserError, match="case fast"):
        fmnist.run_study(other, tmp_path / "run", dataset=tiny_data())


def test_explained_is_silent_without_cases():
    assert list(cases.explained(StudyConfig())) == []
