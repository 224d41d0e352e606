"""The plan of ``--dry-run``, what it knows of speeds, and what an axis of layers means."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fmnist.config import widths
from fmnist.config.study import StudyConfig
from fmnist.config.trial import TrainingConfig
from fmnist.reports.words import duration
from fmnist.study import speeds
from fmnist.study.plan import plan
from fmnist.tuning import capacity, events

CPU = torch.device("cpu")
STUDY = StudyConfig(epochs=2, grid={"learning_rate": (0.1, 0.01), "batch_size": (500, 1000)})


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_plan_shows_what_is_fixed_and_what_fits(tmp_path):
    lines = plan(STUDY, tmp_path, None, CPU).splitlines()
    assert lines[0] == "study baseline: 4 trials of 2 epochs of 55,000 images"
    assert lines[1].startswith("fixed: holdout 5000, metric validation_accuracy, seed 0, channels")
    assert "hidden 120-60" in lines[1]
    assert not re.search("momentum|learning_rate|batch_size|epochs|flip|ema|keep", lines[1])
    more = replace(STUDY, keep="best", training=TrainingConfig(flip="random", shift=2))
    assert "test False" in plan(replace(STUDY, test=False), tmp_path, None, CPU).splitlines()[1]
    assert "keep best" in (line := plan(more, tmp_path, None, CPU).splitlines()[1])
    assert re.search("flip random, shift 2$", line)
    assert re.fullmatch(
        r"device cpu, [\d.]+ GiB of memory free; lanes: as many at once .*", lines[2]
    )
    configs = [STUDY.trial({"learning_rate": rate, "batch_size": 500}) for rate in (0.1, 0.01)]
    needed = capacity.lanes_bytes(configs, 55_000, (1, 28, 28))
    form = r"group 1 of 2: batch_size=500; 2 lanes at once, about ([\d.]+) ([GM])iB; speed unknown"
    number, unit = re.fullmatch(form, lines[3]).groups()
    assert float(number) * {"M": 2**20, "G": 2**30}[unit] == pytest.approx(needed, rel=0.5)
    trials = [line.strip() for line in lines if line.startswith("  trial")]
    assert sorted(trials) == [
        f"trial {number}: learning_rate={rate},batch_size={size}"
        for number, (rate, size) in enumerate((r, s) for r in (0.1, 0.01) for s in (500, 1000))
    ]
    assert lines[-1].startswith("expected time: unknown")


def test_plan_knows_the_time_of_what_was_trained_here(tmp_path):
    for size, rate in ((500, 11_000.0), (1000, 22_000.0)):
        config = STUDY.trial({"learning_rate": 0.1, "batch_size": size})
        speeds.remember(config, 55_000, CPU, 2, rate)
        text = plan(STUDY, tmp_path, None, CPU)
        assert f"speed {rate:,.0f} images/s, {duration(220_000 / rate)}" in text
        if size == 500:
            assert "expected time of training: unknown for 1 group, 20 s for the others" in text
    assert text.splitlines()[-1].startswith("expected time of training: 30 s, at the speeds of")
    # One lane at a time: the speed of two is the nearest that is known.
    alone = plan(STUDY, tmp_path, 1, CPU)
    assert alone.count("; 1 lane at once") == 4
    assert "expected time of training: 30 s" in alone
    other = StudyConfig(epochs=2, holdout=0, grid=STUDY.grid)
    assert "expected time: unknown" in plan(other, tmp_path, None, CPU)


def test_damaged_speeds_are_unknown(tmp_path):
    config = STUDY.trial({"learning_rate": 0.1, "batch_size": 500})
    speeds.remember(config, 55_000, CPU, 2, 100.0)
    assert speeds.recall(config, 55_000, CPU, 2) == 100
    file = tmp_path / "cache/fmnist/speeds.json"
    for text in ("", "[]", '{"a": 1}', '{"a": {"x": 1}}', '{"a": {"1": "2"}}', "\0"):
        file.write_text(text)
        assert math.isnan(speeds.recall(config, 55_000, CPU, 2))
    speeds.remember(config, 55_000, CPU, 2, 200.0)
    assert speeds.recall(config, 55_000, CPU, 2) == 200


@pytest.mark.parametrize(("second", "known"), [(1.0, False), (10.0, True)])
def test_the_speed_of_a_group_is_remembered_unless_it_was_short(second, known):
    config = STUDY.trial({"learning_rate": 0.1, "batch_size": 500})
    trials = [SimpleNamespace(number=n, config=config) for n in range(2)]
    record = speeds.SpeedRecorder(CPU)
    record(events.GroupStarted(0, 1, trials, 2, 4, 55_000, {}, ""))
    for epoch in (1, 2):
        record(events.EpochFinished(epoch, {}, second * epoch))
    found = speeds.recall(config, 55_000, CPU, 2)
    assert (found == 11_000) if known else math.isnan(found)


layers = st.lists(st.integers(1, 200), min_size=1, max_size=2).map(lambda w: "-".join(map(str, w)))


@given(
    st.sampled_from(["channels", "hidden"]), st.lists(layers, min_size=1, max_size=4, unique=True)
)
def test_an_axis_of_layers_is_explained(key, values):
    said = widths.explained(StudyConfig(grid={key: tuple(values)}))
    if len(values) == 1:
        assert said == []
        return
    (line,) = said
    assert line.startswith(f"{key}: {len(values)} networks")
    if all("-" not in value for value in values):
        assert "each of one" in line
        assert " | ".join(values) in line
        assert f"is written {values[0]}-{values[1]})" in line
    else:
        for value in values:
            count = value.count("-") + 1
            assert re.search(rf"(: | ){value} \({count} [a-z ]*{'s' * (count > 1)}\)", line)
