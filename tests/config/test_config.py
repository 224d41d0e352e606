"""Study files: their meaning, and a message of one line for each mistake."""

import json
import math
import pickle
import re
import tomllib
from dataclasses import fields, replace
from datetime import date
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fmnist.config import study_file
from fmnist.config.errors import USUAL, ConfigError
from fmnist.config.loading import differences, load_study
from fmnist.config.settings import DYNAMIC_KEYS, FACTORY, SETTINGS, STATIC_KEYS, TABLES
from fmnist.config.study import StudyConfig, model_values, read_model
from fmnist.config.trial import HYPERPARAMS, OptimizerConfig, Static, TrainingConfig, TrialConfig
from fmnist.functional.recipe import PLAIN
from fmnist.functional.types import ModelConfig

BASELINE = Path(__file__).parents[2] / "studies" / "baseline.toml"

few = settings(max_examples=150, deadline=None)


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "mine.toml"

    def write(content):
        data = content if isinstance(content, bytes) else content.encode()
        path.write_bytes(data)
        return path

    return write


def assert_one_line(error):
    text = str(error)
    assert text == text.strip()
    assert text
    assert text.isprintable(), "so there is neither a newline nor a terminal escape in it"
    assert len(text) < 600


def refusal(*args, **kwargs):
    with pytest.raises(ConfigError) as caught:
        load_study(*args, **kwargs)
    assert_one_line(caught.value)
    return str(caught.value)


# What a study file means


def test_the_default_is_the_original_grid():
    study = load_study()
    assert study == StudyConfig()
    assert study.grid == {"learning_rate": (0.01, 0.001), "batch_size": (100, 500, 1000)}
    assert (study.epochs, study.holdout, study.seed) == (25, 5000, 0)
    assert study.model == ModelConfig((12, 24), (120, 60), 5, 0.0)
    assert study.optimizer == OptimizerConfig(
        "adam", 0.001, 0.9, 0.999, 1e-8, 0.0, 0.0, False, True
    )
    assert (study.size, study.direction, study.validation_is_test) == (6, "maximize", False)
    assert [tuple(point.values()) for point in study.points()] == [
        (0.01, 100),
        (0.01, 500),
        (0.01, 1000),
        (0.001, 100),
        (0.001, 500),
        (0.001, 1000),
    ]


def test_baseline_toml_is_the_default_written_out():
    study = load_study(BASELINE)
    assert study == StudyConfig() == load_study(str(BASELINE))
    assert list(study.grid) == list(StudyConfig().grid)
    # The file also serves as the list of all settings.
    assert tomllib.loads(BASELINE.read_text()) == tomllib.loads(study.to_toml())


def test_no_grid_is_one_trial(write):
    study = load_study(write("[study]\nname = 'one'\n[model]\nhidden = []\n"))
    assert (study.grid, study.size, list(study.points())) == ({}, 1, [{}])
    assert study.trial({}).model.hidden == ()
    assert load_study(write("")) == StudyConfig(grid={})


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig(),
        ModelConfig(hidden=()),
        ModelConfig((2, 3), (), 3, "same", 0.0, "tf32", 0.5, flip_average=True),
        ModelConfig(hidden=(7,), dropout=0.5, linear_norm=True),
    ],
)
def test_models_that_were_stored_are_read_again(model):
    values = json.loads(json.dumps(model_values(model)))
    assert read_model(values) == model
    old = {k: v for k, v in values.items() if k not in ("linear_norm", "flip_average")}
    if not (model.linear_norm or model.flip_average):
        assert read_model(old) == model


def test_best_epoch_needs_images_that_are_not_trained_on():
    with pytest.raises(ConfigError, match="needs images that are not trained on"):
        StudyConfig(holdout=0, validation="train", keep="best")


def test_a_test_set_that_stands_for_validation_is_not_unseen():
    with pytest.raises(ConfigError, match="each epoch sees the test set"):
        StudyConfig(holdout=0, test=False)


def test_metric_and_holdout():
    assert load_study(overrides=["metric=validation_loss"]).direction == "minimize"
    assert load_study(overrides=["holdout=0"]).validation_is_test


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        ("hidden = [120, 60]", ("120", "60")),
        ("hidden = [[120, 60], [120], []]", ("120-60", "120", "none")),
        ('hidden = ["120-60", "120", "none"]', ("120-60", "120", "none")),
        ('channels = ["12-24", [6], 3]', ("12-24", "6", "3")),
        ("learning_rate = [1, 0.1, 1e30]", (1.0, 0.1, 1e30)),
        ("seed = [4294967295, 0]", (4294967295, 0)),
        ('algorithm = ["sgd", "adam"]', ("sgd", "adam")),
    ],
)
def test_axes(write, axis, values):
    key = axis.split(" ")[0]
    study = load_study(write(f"[grid]\n{axis}\n"))
    assert study.grid == {key: values}
    assert [type(value) for value in study.grid[key]] == [type(value) for value in values]


def test_trial_has_the_settings_of_its_point_and_the_study(write):
    study = load_study(
        write(
            "[study]\nseed = 7\n[model]\ndropout = 0.25\n[optimizer]\nweight_decay = 1\n"
            "[grid]\nhidden = [[8, 4], [16]]\nlearning_rate = [0.5]\nbatch_size = [10, 20]\n"
        )
    )
    trial = study.trial({"hidden": "8-4", "learning_rate": 0.5, "batch_size": 20})
    assert trial == TrialConfig(
        batch_size=20,
        seed=7,
        model=ModelConfig(hidden=(8, 4), dropout=0.25),
        optimizer=OptimizerConfig(learning_rate=0.5, weight_decay=1.0),
    )
    assert trial.static == Static(trial.model, "adam", False, True, 20, PLAIN)
    assert tuple(trial.hyperparams) == HYPERPARAMS
    assert trial.hyperparams["weight_decay"] == 1.0
    for point in ({}, {"hidden": "8-4"}, {"hidden": "9", "learning_rate": 0.5, "batch_size": 20}):
        with pytest.raises(ValueError, match="no point of the grid"):
            study.trial(point)


def test_settings_without_effect_have_their_default():
    overrides = ["algorithm=adam,sgd", "momentum=0.9", "nesterov=true", "beta1=0.8"]
    study = load_study(overrides=[*overrides, "learning_rate=0.1", "batch_size=100"])
    adam, sgd = map(study.trial, study.points())
    assert adam.optimizer == OptimizerConfig("adam", 0.1, beta1=0.8)
    assert sgd.optimizer == OptimizerConfig("sgd", 0.1, momentum=0.9, nesterov=True)


def test_set_replaces_settings_and_axes(write):
    path = write("[study]\nseed = 3\n[grid]\nlearning_rate = [0.1, 0.2]\nbatch_size = [10, 20]\n")
    assert load_study(path, overrides=["learning_rate=1"]).grid == {"batch_size": (10, 20)}
    assert load_study(path, overrides=["learning_rate=1"]).optimizer.learning_rate == 1.0
    # A replaced axis keeps its place, and a new one comes last. An axis replaces its setting.
    study = load_study(path, overrides=["seed=1,2", "learning_rate=0.3,0.4"], epochs=2)
    assert list(study.grid.items()) == [
        ("learning_rate", (0.3, 0.4)),
        ("batch_size", (10, 20)),
        ("seed", (1, 2)),
    ]
    assert (study.seed, study.epochs) == (0, 2)
    study = load_study(overrides=["hidden= 8-4 , none", "name=x", "metric=validation_loss"])
    assert study.grid["hidden"] == ("8-4", "none")
    assert study.name == "x"
    study = load_study(overrides=["nesterov=True,FALSE", "algorithm=sgd", "momentum=0.5"])
    assert study.grid["nesterov"] == (True, False)


def test_byte_order_mark_is_accepted(write):
    assert load_study(write(b"\xef\xbb\xbf[study]\r\nepochs = 3\r\n")).epochs == 3


# Mistakes

IN_FILES = [
    # content, text that the line must contain
    ("[optimizer]\nlearning_rat = 0.1", ["learning_rat = 0.1", "did you mean learning_rate?"]),
    ("[grid]\nbatchsize = [1]", ["batchsize = [1]", "did you mean batch_size?"]),
    ("[optimiser]\nbeta1 = 0.5", ["optimiser", "did you mean optimizer?"]),
    ("epochs = 3", ["epochs = 3", "belongs in the table [study]"]),
    ("[model]\nlearning_rate = 1.0", ["learning_rate = 1.0", "belongs in the table [optimizer]"]),
    ("[grid]\nepochs = [1, 2]", ["epochs = [1, 2]", "cannot be an axis", "batch_size"]),
    ("grid = 3", ["grid = 3", "must be a table"]),
    ("[[study]]\nepochs = 3", ["study", "must be a table"]),
    ("[study]\nepochs = true", ["epochs = true", "an integer from 1 to 10000"]),
    ("[study]\nepochs = 2.0", ["epochs = 2.0", "an integer from 1 to 10000"]),
    ("[study]\nepochs = 0", ["epochs = 0", "an integer from 1 to 10000"]),
    ("[study]\nepochs = 1979-05-27", ["epochs = ", "1979", "an integer from 1 to 10000"]),
    ("[study]\nholdout = 50001", ["holdout = 50001", "an integer from 0 to 50000"]),
    ("[study]\nseed = -1", ["seed = -1", "an integer from 0 to 4294967295"]),
    ("[study]\nseed = 4294967296", ["seed = 4294967296", "an integer from 0 to 4294967295"]),
    (f"[study]\nseed = 0x{'f' * 9000}", ["seed = an integer of 36000 bits", "from 0 to 42949672"]),
    ('[study]\nname = "../../x"', ['name = "../../x"', "the first a letter or a digit"]),
    ('[study]\nname = ""', ['name = ""', "1 to 64 of the characters"]),
    (f'[study]\nname = "{"a" * 65}"', ["name = ", "aaa...", "1 to 64 of the characters"]),
    ('[study]\nname = "a\\n"', ['name = "a\\n"', "1 to 64 of the characters"]),
    (
        '[study]\nmetric = "validation_acc"',
        ['metric = "validation_acc"', "did you mean validation_accuracy?"],
    ),
    ("[study]\nbatch_size = 0", ["batch_size = 0", "an integer from 1 to 60000"]),
    ("[study]\nbatch_size = 55001", ["batch_size = 55001", "at most 55000", "holdout of 5000"]),
    ("[model]\nchannels = []", ["channels = []", "1 to 4 integers from 1 to 1024"]),
    ("[model]\nchannels = [1, 0]", ["channels = [1, 0]", "1 to 4 integers from 1 to 1024"]),
    ("[model]\nchannels = [1, true]", ["channels = [1, true]", "1 to 4 integers"]),
    ("[model]\nchannels = [3, 3, 3]", ["kernel_size = 5", "at most 3", "channels = [3, 3, 3]"]),
    ("[model]\nhidden = [4097]", ["hidden = [4097]", "0 to 8 integers from 1 to 4096"]),
    ('[model]\nhidden = "1-"', ['hidden = "1-"', "0 to 8 integers from 1 to 4096"]),
    ("[model]\nkernel_size = 10", ["kernel_size = 10", "at most 9", "channels = [12, 24]"]),
    ("[model]\nchannels = [1]\nkernel_size = 28", ["kernel_size = 28", "from 1 to 27"]),
    ("[model]\npadding = 5", ["padding = 5", "at most 4", "kernel_size = 5"]),
    ("[model]\npadding = -1", ["padding = -1", "an integer from 0 to 26", "same"]),
    ('[model]\npadding = "full"', ['padding = "full"', "an integer from 0 to 26", "same"]),
    ("[model]\npadding = true", ["padding = true", "an integer from 0 to 26"]),
    ("[model]\npadding = [1]", ["padding = [1]", "an integer from 0 to 26"]),
    ("[grid]\npadding = [0, 3]\nkernel_size = [3, 5]", ["padding = 3", "at most 2"]),
    ('[grid]\npadding = ["same", "same"]', ['padding = "same"', "once"]),
    (
        "[model]\nchannels = [3, 3, 3, 3]\nkernel_size = 7\npadding = 1",
        ["kernel_size = 7", "at most", "channels = [3, 3, 3, 3]"],
    ),
    ("[model]\ndropout = 1", ["dropout = 1", "a number from 0 to below 1"]),
    ("[model]\nhidden = []\ndropout = 0.5", ["dropout = 0.5", "no effect with hidden = []"]),
    ('[optimizer]\nalgorithm = "sdg"', ['algorithm = "sdg"', "did you mean sgd?", "adamw"]),
    ("[optimizer]\nlearning_rate = 0", ["learning_rate = 0", "a finite number above 0"]),
    ("[optimizer]\nlearning_rate = nan", ["learning_rate = nan", "a finite number above 0"]),
    ("[optimizer]\nlearning_rate = inf", ["learning_rate = inf", "a finite number above 0"]),
    ("[optimizer]\nlearning_rate = 1e999", ["learning_rate = inf", "a finite number above 0"]),
    (f"[optimizer]\nlearning_rate = 1{'0' * 400}", ["learning_rate = ", "a finite number above 0"]),
    ('[optimizer]\nlearning_rate = "0.1"', ['learning_rate = "0.1"', "a finite number above 0"]),
    ("[optimizer]\nlearning_rate = [0.1]", ["learning_rate = [0.1]", "a finite number above 0"]),
    ("[optimizer]\nbeta2 = 1.0", ["beta2 = 1.0", "a number from 0 to below 1"]),
    ("[optimizer]\neps = 0", ["eps = 0", "a finite number above 0"]),
    ("[optimizer]\nweight_decay = -0.1", ["weight_decay = -0.1", "a finite number, 0 or above"]),
    ("[optimizer]\nnesterov = 1", ["nesterov = 1", "true or false"]),
    ("[optimizer]\nmomentum = 0.0", ["momentum = 0.0", 'algorithm = "adam"', "with sgd only"]),
    ("[optimizer]\nalgorithm = 'sgd'\nmomentum = 1", ["momentum = 1", "from 0 to below 1"]),
    ("[optimizer]\nalgorithm = 'sgd'\nbeta1 = 0.9", ["beta1 = 0.9", "with adam and adamw only"]),
    ("[optimizer]\nalgorithm = 'sgd'\nnesterov = true", ["nesterov = true", "momentum above 0"]),
    ("[grid]\nbatch_size = 100", ["batch_size = 100", "must be a list of values"]),
    ("[grid]\nbatch_size = []", ["batch_size = []", "at least one value"]),
    ("[grid]\nhidden = []", ["hidden = []", "at least one value", '["none"]']),
    ("[grid]\nlearning_rate = [0.1, 0.10]", ["learning_rate = 0.1", "once"]),
    ("[grid]\nlearning_rate = [1, 1.0]", ["learning_rate = 1.0", "once"]),
    ("[grid]\nweight_decay = [0.0, -0.0]", ["weight_decay = -0.0", "once"]),
    ("[grid]\nhidden = [[120], 120]", ["hidden = 120", "once"]),
    ('[grid]\nhidden = [[], "none"]', ['hidden = "none"', "once"]),
    ("[grid]\nbatch_size = [10, true]", ["batch_size = true", "an integer from 1 to 60000"]),
    ("[grid]\nbatch_size = [10, 55001]", ["batch_size = 55001", "at most 55000"]),
    ("[grid]\nmomentum = [0.1]", ["momentum = [0.1]", "no effect", "with sgd only"]),
    (
        "[grid]\nmomentum = [0.1, 0.2]\nalgorithm = ['sgd', 'adam']",
        ["momentum = [0.1, 0.2]", 'algorithm = "adam"', "an axis must act in every trial"],
    ),
    ("[grid]\neps = [0.1, 0.2]\nalgorithm = ['adam', 'sgd']", ["eps = [0.1, 0.2]", '"sgd"']),
    ("[grid]\ndropout = [0.0, 0.5]\nhidden = [[], [9]]", ["dropout = [0.0, 0.5]", "hidden = []"]),
    (
        "[optimizer]\nalgorithm = 'sgd'\n[grid]\nnesterov = [false, true]\nmomentum = [0.0, 0.9]",
        ["nesterov = true", "momentum above 0"],
    ),
    (
        "[grid]\nchannels = [[4, 4, 4], [4]]\nkernel_size = [3, 5]",
        ["kernel_size = 5", "at most 3", "[4, 4, 4]"],
    ),
    ("[optimizer]\nbeta1 = 0.9\n[grid]\nbeta1 = [0.9]", ["beta1 = 0.9", "[optimizer]", "[grid]"]),
    ("[study]\nseed = 0\n[grid]\nseed = [0]", ["seed = 0", "[study]", "[grid]", "once"]),
    (
        f"[grid]\nseed = {list(range(317))}\nlearning_rate = {list(range(1, 318))}",
        ["grid", "100489 points", "at most 100000"],
    ),
    ("[study]\nepochs = \nseed = 1", ["valid TOML", "line 2"]),
    ("[study]\nepochs = 1\nepochs = 2", ["valid TOML"]),
    (f"x = {'[' * 5000}", ["valid TOML"]),
    (f"x = {'1' * 5000}", ["valid TOML"]),
    ('"\\u001b[31m\\n" = 1', ["\\x1b[31m\\n = 1", "unknown table"]),
    (f'[study]\n"{"k" * 100_000}" = "{"v" * 100_000}"', ["kkk...", "vvv...", "unknown setting"]),
    ("[study.epochs]\na.b.c.d.e.f.g.h = 1", ["epochs = ", "an integer from 1 to 10000"]),
    (b"[study]\nname = '\xff'", ["UTF-8", "byte 16"]),
    (b"#" * 1_000_001, ["more than 1000000 bytes"]),
]


@pytest.mark.parametrize(("content", "said"), IN_FILES, ids=lambda value: repr(value)[:60])
def test_a_mistake_in_a_file(write, content, said):
    line = refusal(write(content))
    for part in ["mine.toml: ", *said]:
        assert part in line


ON_THE_COMMAND_LINE = [
    (["learning_rat=1"], ['learning_rat = "1"', "did you mean learning_rate?"]),
    (["optimizer.beta1=1"], ["optimizer.beta1", "unknown setting"]),
    (["learning_rate"], ["learning_rate: ", "KEY=VALUE"]),
    ([""], ["KEY=VALUE"]),
    (["=1"], ["unknown setting", "batch_size"]),
    (["batch_size="], ['batch_size = ""', "an integer from 1 to 60000"]),
    (["batch_size=100,"], ['batch_size = ""', "an integer from 1 to 60000"]),
    (["batch_size=1e3"], ['batch_size = "1e3"', "an integer from 1 to 60000"]),
    (["batch_size=100,100"], ["batch_size = 100", "once"]),
    (["learning_rate=0.1,fast"], ['learning_rate = "fast"', "a finite number above 0"]),
    (["learning_rate=nan"], ["learning_rate = nan", "a finite number above 0"]),
    (["learning_rate=0.1,0.10"], ["learning_rate = 0.1", "once"]),
    (["nesterov=yes"], ['nesterov = "yes"', "true or false"]),
    (["hidden=12,x\x1b[2J\n"], ['hidden = "x\\x1b[2J"', "0 to 8 integers"]),
    (["epochs=1,2"], ['epochs = "1,2"', "must be one value"]),
    (["name=a,b"], ['name = "a,b"', "must be one value"]),
    (["seed=1", "seed=2"], ["seed: ", "given twice"]),
    (["momentum=0.9"], ["momentum = 0.9", "with sgd only"]),
    (["weight_decay=0,01"], ['weight_decay = "0,01"', "one number, 0.01, or two, 0.0,1.0; write"]),
    (["weight_decay = 0, 5"], ["one number, 0.5, or two, 0.0,5.0; write"]),
    (["learning_rate=1,5e-3"], ["one number, 1.5e-3, or two, 1.0,0.005; write"]),
    (["dropout=0,5"], ["one number, 0.5, or two"]),
    (["weight_decay=0,01,0,001"], ["commas separate values; write numbers as in 0.01, 10000 or"]),
    (["batch_size=1,000"], ["commas separate values"]),
    (["holdout=10,000"], ["commas separate values"]),
    (["seed=1,000"], ["commas separate values"]),
    (["betas=0.9"], ["did you mean beta1?"]),
    (["optimizer.lr=0.1"], ["did you mean learning_rate?"]),
    (["Batch-Size=100"], ["did you mean batch_size?"]),
    (["batch 100"], ["KEY=VALUE"]),
    (["precision=fp32"], ["did you mean float32?"]),
    (["metric=accuracy"], ["did you mean validation_accuracy?"]),
    (["algorithm=Adam"], ["did you mean adam?"]),
    (["holdout=50000", "batch_size=10001"], ["batch_size = 10001", "at most 10000"]),
    (["seed=" + "9" * 10_000], ["seed = ", "an integer from 0 to 4294967295"]),
]


@pytest.mark.parametrize(("overrides", "said"), ON_THE_COMMAND_LINE, ids=lambda v: repr(v)[:50])
def test_a_mistake_on_the_command_line(overrides, said):
    line = refusal(overrides=overrides)
    assert line.startswith("--set: ")
    for part in said:
        assert part in line


HABITS = {
    "lr": "learning_rate", "optimizer": "algorithm", "bs": "batch_size", "batch": "batch_size",
    "wd": "weight_decay", "momentun": "momentum", "epoch": "epochs", "seeds": "seed",
    "num_epochs": "epochs", "layers": "hidden", "filters": "channels", "LR": "learning_rate",
    "learning-rate": "learning_rate", "dtype": "precision", "val_split": "holdout",
}  # fmt: skip


@pytest.mark.parametrize(("typed", "meant"), HABITS.items())
def test_names_of_other_tools_get_a_suggestion(write, typed, meant):
    """On the command line and in every table, in the right one and in another."""
    line = refusal(overrides=[f"{typed}=1"])
    assert f"unknown setting; did you mean {meant}? (" in line
    right = SETTINGS[meant].table
    for table in ("study", "model", "optimizer", "grid"):
        line = refusal(write(f"[{table}]\n{typed} = 1"))
        own = table == right or (table == "grid" and SETTINGS[meant].role != "study")
        assert f"; did you mean {meant}{'' if own else f' in [{right}]'}? (" in line
    line = refusal(write(f"{typed} = 1"))
    if typed in TABLES:
        assert "must be a table" in line
    else:
        assert f"; did you mean {meant} in [{right}]? (" in line


def test_every_usual_name_is_of_one_setting_and_of_none_by_itself():
    keys = set(SETTINGS)
    for names in (keys, set(USUAL) - keys):
        words = [word for name in names for word in USUAL.get(name, "").split()]
        assert len(words) == len(set(words))
        assert not {*words} & {*SETTINGS, FACTORY}
    values = {name for setting in SETTINGS.values() for name in setting.kind.choices}
    assert set(USUAL) <= keys | values


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("weight_decay=0.0,1.0", [0.0, 1.0]),
        ("weight_decay=0,0.5", [0, 0.5]),
        ("weight_decay=0,1,2", [0, 1, 2]),
        ("weight_decay=1e-3,1e-4", [0.001, 0.0001]),
        ("batch_size=100,500", [100, 500]),
        ("seed=0,1", [0, 1]),
        ("seed=007", [7]),
    ],
)
def test_lists_of_numbers_that_are_clear_are_accepted(text, values):
    assert study_file.override(text, SETTINGS)[1] == values


def test_a_decimal_comma_in_a_file_gets_a_hint(write):
    said = "a number is written with a point, as in 0.01"
    assert said in refusal(write("[optimizer]\nlearning_rate = 0,01"))
    assert said not in refusal(write("[optimizer]\nlearning_rate = 0.01 0.1"))


def test_the_line_names_every_source_involved(write):
    path = write("[study]\nbatch_size = 20_000\n[optimizer]\nbeta1 = 0.5\n")
    assert re.match(".*mine.toml and --set: batch_size", refusal(path, overrides=["holdout=50000"]))
    assert re.match(".*mine.toml and --set: beta1", refusal(path, overrides=["algorithm=sgd"]))
    assert refusal(path, overrides=["kernel_size=20"]).startswith("--set: kernel_size = 20: ")
    assert refusal(path, epochs=0).startswith("--epochs: epochs = 0: ")
    many = "seed=" + ",".join(map(str, range(17_000)))
    assert refusal(overrides=[many]).startswith("--set: grid: has 102000 points, at most 100000")
    assert refusal(epochs=2, overrides=["epochs=2"]).startswith("--epochs: epochs = 2: ")


def test_files_that_cannot_be_read(tmp_path):
    missing = refusal(tmp_path / "missing.toml")
    assert "missing.toml: cannot be read: No such file" in missing
    assert "cannot be read: Is a directory" in refusal(tmp_path)
    assert "cannot be read" in refusal("a\0b")
    assert "cannot be read" in refusal("")
    assert "a\\nb\\x1b.toml: cannot be read" in refusal(tmp_path / "a\nb\x1b.toml")


def test_study_made_in_python_is_checked():
    study = StudyConfig(
        optimizer=OptimizerConfig(weight_decay=1), grid={"hidden": [(8, 4), ()], "seed": [1]}
    )
    assert study.grid == {"hidden": ("8-4", "none"), "seed": (1,)}
    assert type(study.optimizer.weight_decay) is float
    assert hash(study) == hash(replace(study))
    assert pickle.loads(pickle.dumps(study)) == study
    for change in (
        {"epochs": "2"},
        {"seed": 5},
        {"grid": {"epochs": (1, 2)}},
        {"grid": {"hidden": "120"}},
        {"optimizer": OptimizerConfig(momentum=0.9)},
        {"model": ModelConfig(kernel_size=20)},
    ):
        with pytest.raises(ConfigError, match=r"^study: ") as caught:
            replace(study, **change)
        assert_one_line(caught.value)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize(
    "data", [None, [], 3, {3: {}}, {"study": {None: 1}}, {"grid": {"seed": 1}}]
)
def test_from_dict_refuses_invalid_tables(data):
    with pytest.raises(ConfigError) as caught:
        StudyConfig.from_dict(data)
    assert_one_line(caught.value)


def test_differences():
    a = load_study(epochs=25)
    assert differences(a, load_study(BASELINE)) == []
    assert differences(a, load_study(epochs=2)) == ["epochs: 25 there, 2 here"]
    assert differences(a, load_study(overrides=["batch_size=100"])) == [
        "batch_size: [100, 500, 1000] there, 100 here"
    ]
    swapped = StudyConfig(grid=dict(reversed(a.grid.items())))
    assert differences(a, swapped) == [
        "order of the grid: learning_rate, batch_size there, batch_size, learning_rate here"
    ]
    sgd = load_study(overrides=["algorithm=sgd", "momentum=0.9"])
    assert "momentum: unused there, 0.9 here" in differences(a, sgd)


# Static and dynamic


def test_every_setting_has_one_role():
    tables = (OptimizerConfig, TrainingConfig, ModelConfig)
    gridable = ["batch_size", "seed", *(each.name for table in tables for each in fields(table))]
    assert sorted(STATIC_KEYS + DYNAMIC_KEYS) == sorted(gridable)
    assert set(DYNAMIC_KEYS) == {"seed", *HYPERPARAMS}
    assert {key for key, each in SETTINGS.items() if each.role == "study"} == {
        "name",
        "epochs",
        "holdout",
        "metric",
        "metric_window",
        "keep",
        "validation",
        "test",
    }


# hypothesis: any valid study


def axis_of(values):
    return st.lists(values, min_size=1, max_size=3, unique=True)


def widths(most, high, at_least=0):
    each = st.lists(st.integers(1, high), min_size=at_least, max_size=most)
    return each.map(lambda items: "-".join(map(str, items)) or "none")


positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
below_one = st.floats(min_value=0, max_value=1, exclude_max=True).map(lambda x: x + 0.0)
share = st.floats(min_value=0, max_value=1).map(lambda x: x + 0.0)
VALUES = {
    "seed": st.integers(0, 2**32 - 1),
    "batch_size": st.integers(1, 60_000),
    "channels": widths(4, 1024, at_least=1),
    "hidden": widths(8, 4096),
    "kernel_size": st.integers(1, 27),
    "padding": st.just("same") | st.integers(0, 26),
    "dropout": below_one,
    "precision": st.sampled_from(["float32", "tf32", "bfloat16"]),
    "algorithm": st.sampled_from(["adam", "adamw", "sgd"]),
    "learning_rate": positive,
    "beta1": below_one,
    "beta2": below_one,
    "eps": positive,
    "weight_decay": st.floats(min_value=0, allow_infinity=False).map(lambda x: x + 0.0),
    "momentum": below_one,
    "nesterov": st.booleans(),
    "feature_dropout": below_one,
    "linear_norm": st.booleans(),
    "flip_average": st.booleans(),
    "decay_biases": st.booleans(),
    "flip": st.sampled_from(["none", "random", "alternating"]),
    "shift": st.integers(0, 27),
    "erasing": share,
    "label_smoothing": below_one,
    "schedule": st.sampled_from(["constant", "linear", "cosine", "one-cycle"]),
    "warmup": below_one,
    "floor": share,
    "ema_decay": below_one,
    "clip_norm": st.floats(min_value=0, allow_infinity=False).map(lambda x: x + 0.0),
    "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True),
    "epochs": st.integers(1, 10_000),
    "holdout": st.integers(0, 50_000),
    "metric": st.sampled_from(["validation_accuracy", "validation_loss"]),
    "metric_window": st.integers(1, 1000),
    "keep": st.sampled_from(["last", "best"]),
    "validation": st.sampled_from(["test", "train"]),
    "test": st.booleans(),
}


@st.composite
def studies(draw):
    """A valid study of random settings and axes."""
    keys = draw(st.lists(st.sampled_from(sorted(VALUES)), unique=True))
    axes = {
        key: draw(axis_of(VALUES[key]))
        for key in keys
        if SETTINGS[key].role != "study" and draw(st.booleans())
    }
    given = {key: draw(VALUES[key]) for key in keys if key not in axes}

    def values(key, default):
        return axes.get(key, [given.get(key, default)])

    def drop(*keys):
        for key in keys:
            given.pop(key, None)
            axes.pop(key, None)

    algorithms = set(values("algorithm", "adam"))
    for key, readers in [
        *((key, {"adam", "adamw"}) for key in ("beta1", "beta2", "eps")),
        *((key, {"sgd"}) for key in ("momentum", "nesterov")),
    ]:
        if not (algorithms <= readers if key in axes else algorithms & readers):
            drop(key)
    if 0.0 in values("momentum", 0.0):
        drop("nesterov")
    if "none" in values("hidden", "120-60"):
        drop("dropout", "linear_norm")
    if 0.0 in values("weight_decay", 0.0):
        drop("decay_biases")
    if "one-cycle" in values("schedule", "constant") and 0.0 in values("warmup", 0.0):
        drop("schedule")
    if "constant" in values("schedule", "constant"):
        drop("floor")
    blocks = max(len(text.split("-")) for text in values("channels", "12-24"))
    if any(isinstance(p, int) and p >= min(values("kernel_size", 5)) for p in values("padding", 0)):
        drop("padding")
    whole = set(values("padding", 0)) == {"same"}
    if not whole and max(values("kernel_size", 5)) > {1: 27, 2: 9, 3: 3, 4: 1}[blocks]:
        drop("kernel_size", "padding")
        given["kernel_size"] = 1
    if max(values("batch_size", 100)) > 60_000 - given.get("holdout", 5000):
        drop("batch_size", "holdout")
    if given.get("keep") == "best":
        drop("metric_window", "validation")
    if given.get("holdout", 5000):
        drop("validation")
    elif given.get("validation") != "train":
        drop("test")
    order = draw(st.permutations(sorted(axes)))
    tables = {"grid": {key: axes[key] for key in order}}
    for key, value in given.items():
        tables.setdefault(SETTINGS[key].table, {})[key] = value
    return StudyConfig.from_dict(tables)


@few
@given(studies())
def test_round_trips(write, study):
    for again in (
        load_study(write(study.to_toml())),
        StudyConfig.from_dict(study.to_dict()),
        StudyConfig.from_dict(json.loads(json.dumps(study.to_dict(), allow_nan=False))),
    ):
        assert again == study
        assert list(again.grid) == list(study.grid)
        assert differences(again, study) == []
        assert again.to_toml() == study.to_toml()
    assert study.size == math.prod(len(axis) for axis in study.grid.values())


@few
@given(studies(), studies())
def test_differences_are_empty_exactly_for_equal_studies(a, b):
    same = a == b and list(a.grid) == list(b.grid)
    assert bool(differences(a, b)) != same
    for line in differences(a, b):
        assert line.isprintable()


@few
@given(studies(), st.data())
def test_trials_share_a_program_exactly_when_they_differ_in_dynamic_keys(study, data):
    points = list(study.points())
    assert len(points) == study.size
    p = points[data.draw(st.integers(0, study.size - 1))]
    changed = data.draw(st.sets(st.sampled_from(sorted(p)))) if p else set()
    q = {
        key: data.draw(st.sampled_from(study.grid[key])) if key in changed else value
        for key, value in p.items()
    }
    assert q in points
    one, two = study.trial(p), study.trial(q)
    assert list(p) == list(study.grid)
    differing = {key for key in p if p[key] != q[key]}
    same = one.training.recipe.on == two.training.recipe.on
    assert (one.static == two.static) == (differing <= set(DYNAMIC_KEYS) and same)
    assert len({one.static, two.static}) == (1 if one.static == two.static else 2)
    assert (one == two) == (not differing), "no two points are the same trial"
    numbers = {k for k in HYPERPARAMS if one.hyperparams[k] != two.hyperparams[k]}
    if "algorithm" in differing:  # then the numbers of only one of the two differ, too
        assert numbers >= differing & set(HYPERPARAMS)
    else:
        assert numbers == differing & set(HYPERPARAMS)


# hypothesis: anything else


def loads_or_says_why(*args, **kwargs):
    try:
        study = load_study(*args, **kwargs)
    except ConfigError as error:
        assert_one_line(error)
    else:
        assert load_text(study.to_toml()) == study


def load_text(text):
    return StudyConfig.from_dict(tomllib.loads(text))


@few
@given(st.text() | st.binary())
def test_arbitrary_content(write, content):
    try:
        path = write(content)
    except UnicodeEncodeError:  # a lone surrogate
        return
    loads_or_says_why(path)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_mutated_baseline(write, data):
    text = BASELINE.read_text()
    lines = [line.split("#")[0].rstrip() for line in text.splitlines()]
    lines = [line for line in lines if line]
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(lines) - 1))
        line = lines[at]
        column = data.draw(st.integers(0, len(line)))
        lines[at] = data.draw(
            st.sampled_from(
                [
                    "",
                    line + "\n" + line,
                    line[:column] + line[column + 1 :],
                    line[:column] + data.draw(st.sampled_from(list('0123456789-."[],=e'))),
                    line.split("=")[0] + "= " + data.draw(st.sampled_from(TOML_VALUES)),
                    lines[data.draw(st.integers(0, len(lines) - 1))],
                ]
            )
        )
    loads_or_says_why(write("\n".join(lines)))


TOML_VALUES = [
    *["-1", "0", "1", "1.0", "1e400", "nan", "true", '""', '"sgd"', '"none"', "[]", "[[]]"],
    *["[1, 1]", "[1, true]", '["120-60", [1]]', "[{}]", "{ a = 1 }", "1979-05-27", "07:32:00"],
]

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.just(date(2020, 1, 1))
    | st.sampled_from(["adam", "sgd", "120-60", "none", "", "1-1-1-1", 0.1, 1, 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
keys = st.sampled_from([*SETTINGS, "grid", "learning_rat"]) | st.text(max_size=5)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["study", "model", "optimizer", "grid"]),
        st.dictionaries(keys, anything | st.lists(anything, max_size=3), max_size=4),
        min_size=1,
    )
    | st.dictionaries(keys, anything, max_size=3)
)
@example({"grid": {"hidden": [[120, 60], 120, "60"]}})
@example({"study": {"epochs": 10**400}})
def test_arbitrary_tables(data):
    # TOML yields only tables, lists, texts, numbers, booleans and dates.
    try:
        study = StudyConfig.from_dict(data)
    except ConfigError as error:
        assert_one_line(error)
    else:
        assert load_text(study.to_toml()) == study


words = st.sampled_from(
    [*["adam", "sgd", "0.1", "1", "120-60", "none", "true", "nan", "1e999", "x", "", "9" * 5000]]
) | st.text(max_size=5)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.text(max_size=10)
        | st.builds(lambda k, v: f"{k}={','.join(v)}", keys, st.lists(words, max_size=3)),
        max_size=3,
    ),
    st.none() | st.integers(-1, 3),
)
def test_arbitrary_overrides(overrides, epochs):
    loads_or_says_why(overrides=overrides, epochs=epochs)
