"""The trials of the grid in Optuna: complete, reported once, resumed after a kill."""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from datetime import datetime

import optuna
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState
from strategies import random_split

from fmnist.config.study import StudyConfig
from fmnist.config.trial import OptimizerConfig
from fmnist.engine import trainer
from fmnist.functional.types import ModelConfig
from fmnist.tuning import grid, origin, scheduler
from fmnist.tuning.storage import StudyMismatchError, open_study
from fmnist.utils.errors import UserError

SPLITS = scheduler.Splits(random_split(40), random_split(10, 1), random_split(10, 2))

CONFIG = StudyConfig(
    name="tiny",
    epochs=2,
    model=ModelConfig(channels=(3, 4)),
    grid={"learning_rate": (0.01, 0.001), "batch_size": (10, 20), "hidden": ("7", "5")},
)


@pytest.fixture
def storage(tmp_path):
    return f"sqlite:///{tmp_path}/study.db"


def finish(study, config=CONFIG, stop_after=None, max_lanes=8):
    """Run to the end, or stop after a number of finished trials, as a kill would."""
    seen = []
    events = scheduler.run(study, config, SPLITS, max_lanes=max_lanes)
    for event in events:
        seen.append(event)
        if sum(isinstance(e, scheduler.TrialFinished) for e in seen) == stop_after:
            break
    return seen


def same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert (a.number, a.point, a.state) == (b.number, b.point, b.state)
        assert a.history == b.history


def test_every_point_of_the_grid_is_one_complete_trial(storage):
    study = open_study(CONFIG, storage)
    events = finish(study)
    results = grid.results(study, CONFIG)
    assert [(r.number, dict(r.point)) for r in results] == [*enumerate(map(dict, CONFIG.points()))]
    assert all(t.state == TrialState.COMPLETE for t in study.trials)
    assert all(
        t.value == r.final.validation_accuracy for t, r in zip(study.trials, results, strict=True)
    )
    assert all(list(t.intermediate_values) == [1, 2] for t in study.trials)
    groups = [e for e in events if isinstance(e, scheduler.GroupStarted)]
    # batch_size and hidden are static, learning_rate is a lane
    assert [[t.number for t in g.trials] for g in groups] == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert study.sampler.is_exhausted(study)


UNSHRUNK = (Phase.explicit, Phase.reuse, Phase.generate)  # an example costs a database


@st.composite
def grids(draw):
    values = {
        "learning_rate": st.sampled_from([0.1, 0.01, 0.001, 0.5]),
        "hidden": st.sampled_from(["7", "5", "3-4"]),
        "batch_size": st.integers(1, 9),
        "seed": st.integers(0, 99),
        "nesterov": st.booleans(),
    }
    axes = draw(st.lists(st.sampled_from([*values]), unique=True))
    return {
        axis: tuple(draw(st.lists(values[axis], unique=True, min_size=1, max_size=3)))
        for axis in axes
    }


@given(grids(), st.integers(0, 3))
@settings(max_examples=10, deadline=None, phases=UNSHRUNK)
def test_trials_have_the_order_of_the_grid_and_the_points_of_gridsampler(axes, seed):
    sgd = OptimizerConfig("sgd", momentum=0.5)
    config = replace(CONFIG, grid=axes, seed=0 if "seed" in axes else seed, optimizer=sgd)
    with tempfile.TemporaryDirectory() as folder:
        study = open_study(config, f"sqlite:///{folder}/study.db")
        trials = grid.pending(study, config)
        assert [(t.number, t.point) for t in trials] == [*enumerate(map(dict, config.points()))]
        for trial in study.trials:  # GridSampler has the same point under its id
            attrs = trial.system_attrs
            bare = optuna.create_trial(state=TrialState.WAITING, system_attrs=attrs)
            for key, value in trial.params.items():
                kind = trial.distributions[key]
                assert study.sampler.sample_independent(study, bare, key, kind) == value


@pytest.mark.parametrize(("created", "asked"), [(3, 2), (8, 8)])
def test_study_in_the_random_order_of_an_earlier_version_continues(storage, created, asked):
    """It added all trials as RUNNING, in the order of GridSampler's ids, and then their points."""
    study = open_study(CONFIG, storage)
    for grid_id in range(created):
        attrs = origin.point_attrs(CONFIG, grid_id)
        study.add_trial(optuna.create_trial(state=TrialState.RUNNING, system_attrs=attrs))
    for trial in study.trials[:asked]:
        grid.suggest(optuna.Trial(study, trial._trial_id), CONFIG.grid)
    before = [trial.params for trial in study.trials[:asked]]
    finish(study, stop_after=2)
    study = open_study(CONFIG, storage)
    finish(study)
    assert [trial.params for trial in study.trials[:asked]] == before
    results = grid.results(open_study(CONFIG, storage), CONFIG)
    assert [dict(r.point) for r in results] == [*map(dict, CONFIG.points())]
    assert sorted(r.number for r in results) == [*range(8)]
    assert len(study.trials) == 8
    assert study.sampler.is_exhausted(study)


def test_trials_wait_until_their_group_begins(storage):
    """So their durations in Optuna are those of training, without a pause after a kill."""
    finish(open_study(CONFIG, storage), stop_after=3)  # in the second group
    states = [trial.state.name[0] for trial in open_study(CONFIG, storage).trials]
    assert "".join(states) == "CRWWCRWW"
    study, waiting, began = open_study(CONFIG, storage), [], {}
    for event in scheduler.run(study, CONFIG, SPLITS, max_lanes=None):
        if isinstance(event, scheduler.GroupStarted):
            waiting.append(sum(trial.state == TrialState.WAITING for trial in study.trials))
            began |= {trial.number: datetime.now() for trial in event.trials}
        elif isinstance(event, scheduler.TrialFinished):
            trial = study.trials[event.result.number]
            assert trial.state == TrialState.RUNNING
            assert began[trial.number] <= trial.datetime_start
    assert waiting == [6, 4, 2]
    assert sorted(began) == [1, 2, 3, 5, 6, 7]


def disturbed(storage, act):
    """Run while another program acts on the study before Optuna has the result of a trial."""
    for event in scheduler.run(open_study(CONFIG, storage), CONFIG, SPLITS, max_lanes=None):
        if isinstance(event, scheduler.TrialFinished):
            act(open_study(CONFIG, storage))


def test_trial_that_another_program_ended_is_trained_anew_by_the_same_command(storage):
    # A worker of Optuna takes what waits.
    with pytest.raises(UserError, match="another program has ended trial 1 "):
        disturbed(storage, lambda study: study.optimize(lambda trial: 0.99, 1))
    finish(open_study(CONFIG, storage))
    results = grid.results(open_study(CONFIG, storage), CONFIG)
    assert [dict(r.point) for r in results] == [*map(dict, CONFIG.points())]
    assert [r.number for r in results] == [0, 8, 9, 3, 4, 5, 6, 7]


def test_running_trial_that_another_program_ended_is_an_error_of_one_line(storage):
    with pytest.raises(UserError, match="another program has ended trial 0 "):
        disturbed(storage, lambda study: study.tell(0, 0.5))
    finish(open_study(CONFIG, storage))
    results = grid.results(open_study(CONFIG, storage), CONFIG)
    assert [r.number for r in results] == [8, 1, 2, 3, 4, 5, 6, 7]


def test_the_same_study_again_gives_the_same_numbers(storage, tmp_path):
    first = open_study(CONFIG, storage)
    second = open_study(CONFIG, f"sqlite:///{tmp_path}/again.db")
    finish(first)
    finish(second)
    untimed = [
        [replace(result, seconds=0.0) for result in grid.results(study, CONFIG)]
        for study in (first, second)
    ]
    assert untimed[0] == untimed[1]


def test_a_finished_study_trains_nothing(storage):
    finish(open_study(CONFIG, storage))
    assert finish(open_study(CONFIG, storage)) == []


@pytest.mark.parametrize("stop_after", [1, 2, 5, 8])
def test_killed_study_continues_to_the_same_results(storage, tmp_path, stop_after):
    whole = open_study(CONFIG, f"sqlite:///{tmp_path}/whole.db")
    finish(whole)
    finish(open_study(CONFIG, storage), stop_after=stop_after)
    study = open_study(CONFIG, storage)
    # The last one is written but not reported: the kill comes between the two.
    assert sum(t.state == TrialState.COMPLETE for t in study.trials) == stop_after - 1
    finish(study)
    assert all(t.state == TrialState.COMPLETE for t in study.trials)
    same(grid.results(study, CONFIG), grid.results(whole, CONFIG))


def test_intermediate_values_of_a_killed_trial_are_replaced(storage):
    """As after a change of rounding: the curve in Optuna is then that of the result."""
    finish(open_study(CONFIG, storage), stop_after=2)
    study = open_study(CONFIG, storage)
    interrupted = [t for t in study.trials if t.state == TrialState.RUNNING]
    reported = [t for t in interrupted if t.intermediate_values]
    assert reported
    for trial in reported:
        study._storage.set_trial_intermediate_value(trial._trial_id, 1, 0.123)
    study._storage.set_trial_intermediate_value(
        reported[0]._trial_id, 9, 0.5
    )  # the killed run was further
    finish(study)
    again = open_study(CONFIG, storage)
    curves = [[trial.intermediate_values[step] for step in (1, 2)] for trial in again.trials]
    assert curves == [
        [metrics.validation_accuracy for metrics in result.history]
        for result in grid.results(again, CONFIG)
    ]


def test_results_do_not_depend_on_the_number_of_lanes(storage, tmp_path):
    study = open_study(CONFIG, storage)
    finish(study, max_lanes=1)
    other = open_study(CONFIG, f"sqlite:///{tmp_path}/other.db")
    finish(other, max_lanes=2)
    same(grid.results(study, CONFIG), grid.results(other, CONFIG))


def test_point_with_a_failed_trial_from_elsewhere_is_run_again(storage):
    study = open_study(CONFIG, storage)
    lost = study.ask()
    grid.suggest(lost, CONFIG.grid)
    study.tell(lost, state=TrialState.FAIL)
    finish(study)
    results = grid.results(study, CONFIG)
    assert len(results) == CONFIG.size
    assert {str(dict(r.point)) for r in results} == {str(dict(p)) for p in CONFIG.points()}
    assert all(r.state == "COMPLETE" for r in results)


def test_diverging_lane_fails_only_its_trial(storage, tmp_path):
    config = replace(CONFIG, grid={"learning_rate": (0.01, 1e30, 0.001)})
    study = open_study(config, storage)
    finish(study, config)
    by_rate = {r.point["learning_rate"]: r for r in grid.results(study, config)}
    assert by_rate[1e30].state == "FAIL"
    assert "not finite in epoch" in by_rate[1e30].reason
    assert math.isnan(by_rate[1e30].test_accuracy)
    assert [by_rate[r].state for r in (0.01, 0.001)] == ["COMPLETE"] * 2
    assert finish(study, config) == []  # a diverged trial is not trained again
    events = list(scheduler.run(study, config, SPLITS, max_lanes=None, retry_failed=True))
    assert [e.result.number for e in events if isinstance(e, scheduler.TrialFinished)] == [3]
    assert [r.number for r in grid.results(study, config) if r.state == "FAIL"] == [3]
    assert not grid.unfinished(study, config)
    calm = replace(CONFIG, grid={"learning_rate": (0.01, 0.002, 0.001)})
    other = open_study(calm, f"sqlite:///{tmp_path}/calm.db")
    finish(other, calm)
    for result in grid.results(other, calm):
        if result.point["learning_rate"] != 0.002:
            assert result.history == by_rate[result.point["learning_rate"]].history


def test_lanes_are_halved_when_memory_runs_out(storage, tmp_path, monkeypatch):
    """Memory runs out for two lanes in the second epoch. No trial is lost or repeated."""
    config = replace(CONFIG, grid={"learning_rate": (0.01, 0.003, 0.001)}, epochs=3)
    whole = open_study(config, f"sqlite:///{tmp_path}/whole.db")
    finish(whole, config)
    train_lanes = trainer.train_lanes

    def greedy(program, lanes, *args, **kwargs):
        for event in train_lanes(program, lanes, *args, **kwargs):
            second = isinstance(event, trainer.EpochResult) and event.epoch == 2
            if second and len(lanes.seeds) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            yield event

    monkeypatch.setattr(trainer, "train_lanes", greedy)
    study = open_study(config, storage)
    events = finish(study, config)
    assert [e.lanes for e in events if isinstance(e, scheduler.LanesHalved)] == [3, 2]
    assert all(e.epoch == 1 for e in events if isinstance(e, scheduler.LanesHalved))
    same(grid.results(study, config), grid.results(whole, config))
    seen = [
        (n, e.epoch) for e in events if isinstance(e, scheduler.EpochFinished) for n in e.metrics
    ]
    assert sorted(seen) == [(n, e) for n in range(3) for e in (1, 2, 3)]


def test_too_little_memory_for_one_lane_is_a_user_error(storage, monkeypatch):
    def broke(*_, **__):
        raise MemoryError
        yield

    monkeypatch.setattr(trainer, "train_lanes", broke)
    with pytest.raises(UserError, match="not enough memory"):
        finish(open_study(CONFIG, storage))


def test_study_with_another_configuration_is_refused(storage):
    open_study(CONFIG, storage)
    with pytest.raises(StudyMismatchError, match="epochs"):
        open_study(replace(CONFIG, epochs=3), storage)
    with pytest.raises(StudyMismatchError, match="seed"):
        open_study(replace(CONFIG, seed=1), storage)


def test_study_of_another_program_is_refused(storage):
    study = optuna.create_study(study_name=CONFIG.name, storage=storage)
    study.tell(study.ask(), 1.0)
    with pytest.raises(StudyMismatchError, match="not one of fmnist's"):
        open_study(CONFIG, storage)


def test_empty_grid_has_one_trial(storage):
    config = replace(CONFIG, grid={})
    study = open_study(config, storage)
    finish(study, config)
    assert [r.label for r in grid.results(study, config)] == ["single"]


def test_axes_of_numbers_have_numeric_distributions():
    assert grid.distribution((0.1, 0.001)).log
    assert not grid.distribution((0.1, 0.2)).log
    assert isinstance(grid.distribution((100, 500)), optuna.distributions.IntDistribution)
    assert isinstance(grid.distribution(("a", "b")), optuna.distributions.CategoricalDistribution)
    assert isinstance(
        grid.distribution((True, False)), optuna.distributions.CategoricalDistribution
    )
