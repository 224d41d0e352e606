"""Which epoch of a trial counts; features of training in studies that are interrupted."""

from __future__ import annotations

import dataclasses
import itertools
import statistics

import optree
import pytest
import torch
from strategies import random_split

import fmnist
from fmnist.config.results import best_epoch
from fmnist.config.study import StudyConfig
from fmnist.config.trial import OptimizerConfig, TrainingConfig
from fmnist.engine.evaluation import evaluate
from fmnist.functional import vmap
from fmnist.functional.types import ModelConfig
from fmnist.tuning import grid, scheduler
from fmnist.tuning.progress import Checkpointer, program_of
from fmnist.tuning.storage import open_study

SPLITS = scheduler.Splits(random_split(45), random_split(20, 1), random_split(20, 2))
PLAIN = StudyConfig(
    name="kept",
    epochs=4,
    batch_size=10,
    model=ModelConfig(channels=(3, 4), hidden=(7,)),
    grid={"learning_rate": (0.02, 0.005, 0.001)},
)
FEATURES = dataclasses.replace(
    PLAIN,
    model=ModelConfig(
        channels=(3, 4), hidden=(7,), dropout=0.2, feature_dropout=0.2, linear_norm=True,
        flip_average=True,
    ),
    optimizer=OptimizerConfig("adamw", weight_decay=0.1, decay_biases=False),
    training=TrainingConfig("alternating", 0, 0.3, 0.1, "one-cycle", 0.3, 0.01, 0.9, 1.0),
    grid={"learning_rate": (0.02, 0.005), "shift": (2, 1, 0), "seed": (0, 1)},
)  # fmt: skip


def events_of(config, folder):
    folder.mkdir(exist_ok=True)
    study = open_study(config, f"sqlite:///{folder}/study.db")
    checkpointer = Checkpointer(folder / "checkpoints", every=0.0, within=0.0)
    return study, scheduler.run(study, config, SPLITS, max_lanes=None, checkpointer=checkpointer)


def run(config, folder):
    study, events = events_of(config, folder)
    finished = {e.result.number: e for e in events if isinstance(e, scheduler.TrialFinished)}
    return grid.results(study, config), finished


def equal(ours, theirs):
    return all(map(torch.equal, *map(optree.tree_leaves, (ours, theirs))))


def test_mean_over_the_last_epochs_counts(tmp_path):
    last, _ = run(PLAIN, tmp_path / "a")
    config = dataclasses.replace(PLAIN, metric_window=3)
    mean, _ = run(config, tmp_path / "b")
    for ours, plain in zip(mean, last, strict=True):
        assert ours.history == plain.history
        for name in ("train_loss", "validation_accuracy"):
            values = [getattr(metrics, name) for metrics in plain.history[-3:]]
            assert getattr(ours.final, name) == pytest.approx(statistics.fmean(values), rel=1e-15)
        assert ours.test_accuracy == plain.test_accuracy


@pytest.mark.parametrize("metric", ["validation_accuracy", "validation_loss"])
def test_parameters_of_the_best_epoch_are_the_result(tmp_path, metric):
    config = dataclasses.replace(PLAIN, keep="best", metric=metric)
    results, finished = run(config, tmp_path / "best")
    kept = [best_epoch(result.history, metric) for result in results]
    assert [result.kept for result in results] == kept
    assert len(set(kept)) > 1, "the test has no best epoch before the last"
    for result, epoch in zip(results, kept, strict=True):
        assert result.final == result.history[epoch - 1]
        # A study that ends with this epoch has the same parameters, as nothing depends on the last.
        short = dataclasses.replace(PLAIN, epochs=epoch)
        ended, others = run(short, tmp_path / f"{result.number}")
        own, other = finished[result.number], others[result.number]
        assert equal((own.params, own.state), (other.params, other.state))
        assert result.test_accuracy == ended[result.number].test_accuracy


@pytest.mark.parametrize("config", [FEATURES, dataclasses.replace(FEATURES, keep="best")])
def test_interrupted_studies_end_with_the_same_bits(tmp_path, monkeypatch, config):
    """Killed every few steps, also within epochs."""
    whole, expected = run(config, tmp_path / "whole")
    monkeypatch.setattr(scheduler, "TOLD_EVERY", 0.0)
    finished, kills = {}, 0
    while len(finished) < config.size:
        _, events = events_of(config, tmp_path / "killed")
        for event in itertools.islice(events, 7):
            if isinstance(event, scheduler.TrialFinished):
                finished[event.result.number] = event
        kills += 1
        events.close()
    results, _ = run(config, tmp_path / "killed")
    assert kills > 10
    assert [r.history for r in results] == [r.history for r in whole]
    assert [(r.kept, r.test_loss) for r in results] == [(r.kept, r.test_loss) for r in whole]
    for number, event in finished.items():
        other = expected[number]
        assert equal((event.params, event.state), (other.params, other.state))


def test_memory_that_runs_out_while_the_best_is_kept_repeats_no_epoch(tmp_path, monkeypatch):
    config = dataclasses.replace(PLAIN, keep="best")
    whole, expected = run(config, tmp_path / "whole")
    keep, calls = scheduler.best_so_far, []

    def fails_once(config, progress, epoch):
        calls.append(epoch.epoch)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return keep(config, progress, epoch)

    monkeypatch.setattr(scheduler, "best_so_far", fails_once)
    results, finished = run(config, tmp_path / "halved")
    assert [r.history for r in results] == [r.history for r in whole]
    for number, event in finished.items():
        assert equal(event.params, expected[number].params)


def test_features_of_a_study_are_those_of_its_trials(tmp_path):
    """The averages are saved and tested; lanes with other shifts are in one group."""
    results, finished = run(FEATURES, tmp_path / "run")
    sizes = {}
    for point in FEATURES.points():
        static = FEATURES.trial(point).static
        sizes[static] = sizes.get(static, 0) + 1
    assert sorted(sizes.values()) == [4, 8]  # without and with a shift
    for result in results:
        event = finished[result.number]
        model = program_of(FEATURES.trial(result.point)).model
        stacked = optree.tree_map(lambda leaf: leaf[None], (event.params, event.state))
        tested = evaluate(model, *stacked, split=SPLITS.test)
        assert tested.accuracy.item() == result.test_accuracy
    for numbers in ([0, 1], [4]):  # the averages, by the library
        config = FEATURES.trial(results[numbers[0]].point)
        own = [results[n].point for n in numbers]
        program = program_of(config)
        *_, end = fmnist.fit(
            program.model, program.optimizer, *SPLITS[:2], batch_size=10, epochs=4,
            flip="alternating", schedule="one-cycle",
            lanes={name: [point[name] for point in own] for name in FEATURES.grid}
            | {name: config.hyperparams[name] for name in (
                "erasing", "label_smoothing", "warmup", "floor", "ema_decay", "clip_norm",
                "weight_decay",
            )},
        )  # fmt: skip
        for lane, number in enumerate(numbers):
            averages = vmap.take(end.train_state.extras.average, torch.tensor(lane))
            event = finished[number]
            assert equal(averages, (event.params, event.state))
            assert not equal(vmap.take(end.train_state.params, torch.tensor(lane)), event.params)
