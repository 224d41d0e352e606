"""Trials of another origin in the study: left alone with a word, never damage, never a bug."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from strategies import random_split

from fmnist.config.study import StudyConfig
from fmnist.data.fashion_mnist import Dataset
from fmnist.functional.types import ModelConfig
from fmnist.reports.terminal import Progress
from fmnist.study.run import run_study
from fmnist.tuning import storage_url
from fmnist.utils.errors import UserError

CONFIG = StudyConfig(
    name="shared",
    epochs=1,
    holdout=0,
    model=ModelConfig(channels=(2, 2), hidden=(4,)),
    grid={"learning_rate": (0.001, 0.01), "batch_size": (20, 30)},
)
TINY = Dataset(random_split(60), random_split(30, 1), "noise")
LOW = {"learning_rate": FloatDistribution(0.001, 0.01, log=True)}

pytestmark = pytest.mark.usefixtures("undrawn")


class Said(Progress):
    """Keeps the messages, and presses Ctrl-C after so many trials."""

    def __init__(self, stop_after=0):
        self.lines, self.left = [], stop_after

    def message(self, text):
        self.lines.append(text)

    def trial(self, result):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def train(out, stop_after=0, **more):
    """Run the study; return the messages and the results without times."""
    said = Said(stop_after)
    results = run_study(CONFIG, out, dataset=TINY, progress=said, max_lanes=1, **more)
    return "\n".join(said.lines), [replace(result, seconds=0.0) for result in results]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished study, and its results. Tests must not change it."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, train(out)[1]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A study that was stopped after its second trial. Tests must not change it."""
    out = tmp_path_factory.mktemp("begun") / "run"
    with pytest.raises(KeyboardInterrupt):
        train(out, stop_after=2)
    return out


@pytest.fixture(params=["finished", "stopped"])
def run(request, whole, begun, tmp_path):
    return shutil.copytree(whole[0] if request.param == "finished" else begun, tmp_path / "run")


def load(out, **more):
    return optuna.load_study(study_name=CONFIG.name, storage=storage_url.of_run(out), **more)


def objective(trial):
    return trial.suggest_float("learning_rate", 0.001, 0.01, log=True) * 50


def failing(trial):
    trial.suggest_float("learning_rate", 0.001, 0.01, log=True)
    raise ValueError


def pruning(trial):
    trial.report(0.5, 3)
    raise optuna.TrialPruned


def optimized(objective, **more):
    def act(study):
        study.optimize(objective, 2, catch=ValueError)

    return act


def with_their_grid(space):
    """What the same grid, or another one, does in the hands of others."""

    def act(study):
        study.sampler = optuna.samplers.GridSampler(space, seed=7)
        study.optimize(
            lambda trial: sum(
                trial.suggest_int(key, *values)
                if key == "batch_size"
                else trial.suggest_float(key, values[0], values[-1], log=True)
                for key, values in space.items()
            ),
            3,
        )

    return act


def copied(study):
    study.add_trials(study.get_trials(states=[TrialState.COMPLETE]))


def told(state):
    """Ends what was interrupted, as one that cleans up does."""

    def act(study):
        for trial in study.get_trials(states=[TrialState.RUNNING]):
            study.tell(trial.number, 0.99 if state == TrialState.COMPLETE else None, state=state)

    return act


def added(**what):
    return lambda study: study.add_trial(optuna.create_trial(**what))


ACTS = {
    "enqueued": lambda study: study.enqueue_trial({"learning_rate": 0.003}),
    "enqueued point of the grid": lambda study: study.enqueue_trial(
        {"learning_rate": 0.001, "batch_size": 20}, user_attrs={"by": "me"}
    ),
    "enqueued with all axes": lambda study: study.enqueue_trial(
        {"learning_rate": 0.003, "batch_size": 25}
    ),
    "enqueued twice": lambda study: [study.enqueue_trial({"dropout": x}) for x in (0, "a")],
    "enqueued nothing": lambda study: study.enqueue_trial({}),
    "added": added(value=1.0, params={"learning_rate": 0.002}, distributions=LOW),
    "added without anything": added(value=0.1),
    "added of other kinds": added(
        value=0.1,
        params={"width": 3, "act": "relu"},
        distributions={
            "width": IntDistribution(1, 9), "act": CategoricalDistribution(["relu", "tanh"]),
        },
        user_attrs={"fmnist": "no", "seconds": "soon"},
        intermediate_values={1: 0.5},
    ),
    "added failed": added(
        state=TrialState.FAIL, params={"learning_rate": 0.002}, distributions=LOW
    ),
    "added pruned": added(state=TrialState.PRUNED, value=0.5),
    "added waiting": added(state=TrialState.WAITING),
    "added running": added(
        state=TrialState.RUNNING, params={"learning_rate": 0.002}, distributions=LOW
    ),
    "optimized": optimized(objective),
    "optimized and failed": optimized(failing),
    "optimized and pruned": optimized(pruning),
    "optimized by the same grid": with_their_grid(
        {"learning_rate": [0.001, 0.01], "batch_size": [20, 30]}
    ),
    "optimized by another grid": with_their_grid({"learning_rate": [0.002, 0.005, 0.008]}),
    "copied into itself": copied,
    "told that it failed": told(TrialState.FAIL),
    "told that it is complete": told(TrialState.COMPLETE),
    "told that it is pruned": told(TrialState.PRUNED),
    "asked": lambda study: study.ask(),
    "asked with a value": lambda study: study.ask().suggest_float("width", 0, 1),
    "tagged": lambda study: study.set_user_attr("owner", ["me", {"tags": 3}]),
    "best known by Optuna": added(value=2.0),
}  # fmt: skip


def strangers(out):
    """The trials that no run has trained, by number."""
    return {
        trial.number: (trial.state, trial.params, trial.values, trial.user_attrs)
        for trial in load(out).get_trials()
        if "fmnist:history" not in trial.system_attrs
    }


@pytest.mark.parametrize("act", ACTS)
def test_trials_of_others_are_left_alone(run, whole, act, recwarn):
    known = len(load(run).trials)
    ACTS[act](load(run))
    theirs = {n: about for n, about in strangers(run).items() if n >= known}
    _, expected = whole
    said, results = train(run)
    of_points = {str(result.point): result for result in results}
    assert len(of_points) == len(results) == CONFIG.size
    for result in expected:
        assert replace(of_points[str(result.point)], number=result.number) == result
    if theirs:
        assert "of another origin" in said
        assert theirs == {n: about for n, about in strangers(run).items() if n in theirs}
    kept = (run / "results.csv").read_bytes()
    said, again = train(run)
    assert again == results
    assert "nothing to train" in said
    assert (run / "results.csv").read_bytes() == kept


@pytest.mark.parametrize("act", ["enqueued", "added failed", "copied into itself", "optimized"])
def test_trials_of_others_stay_alone_when_failed_ones_are_retried(tmp_path, act):
    config = replace(CONFIG, grid={"learning_rate": (0.001, 1e30)})
    run_study(config, tmp_path, dataset=TINY)
    ACTS[act](load(tmp_path))
    before = strangers(tmp_path)
    results = run_study(config, tmp_path, dataset=TINY, retry_failed=True)
    assert sorted(result.state for result in results) == ["COMPLETE", "FAIL"]
    assert strangers(tmp_path) == before


def test_trials_of_another_study_are_no_damage(whole, tmp_path):
    """Merged from a study of another grid, which fmnist trained, too."""
    other = replace(CONFIG, grid={"seed": (0, 1, 2)})
    run_study(other, tmp_path / "other", dataset=TINY)
    run = shutil.copytree(whole[0], tmp_path / "run")
    for source in (load(tmp_path / "other"), load(whole[0])):
        load(run).add_trials(source.trials)
    said, results = train(run)
    assert results == whole[1]
    assert "7 trials of another origin (4, 5, 6, 7, 8, ...)" in said


def test_enqueued_before_the_first_trial(tmp_path, whole):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, stop_after=1)
    with closing(sqlite3.connect(tmp_path / "study.db")) as database, database:
        for table in ("trials", "trial_params", "trial_system_attributes", "trial_user_attributes"):
            database.execute(f"delete from {table}")
        database.execute("delete from trial_intermediate_values")
        database.execute("delete from trial_values")
    shutil.rmtree(tmp_path / "parameters")
    load(tmp_path).enqueue_trial({"learning_rate": 0.003})
    said, results = train(tmp_path)
    assert "1 trial of another origin (0)" in said
    assert [result.number for result in results] == [1, 2, 3, 4]
    by_point = {str(result.point): result.history for result in whole[1]}
    assert {str(result.point): result.history for result in results} == by_point


def test_copies_of_interrupted_trials_are_trained_or_left(begun, whole, tmp_path):
    run = shutil.copytree(begun, tmp_path / "run")
    load(run).add_trials(load(run).get_trials())
    _, results = train(run)
    assert {str(result.point): result.history for result in results} == {
        str(result.point): result.history for result in whole[1]
    }
    assert train(run)[1] == results


def test_an_axis_that_others_gave_another_scale_is_refused(begun, tmp_path):
    run = shutil.copytree(begun, tmp_path / "run")
    with closing(sqlite3.connect(run / "study.db")) as database, database:
        database.execute("delete from trial_params where param_name = 'learning_rate'")
    load(run).ask().suggest_float("learning_rate", 0.0, 1.0)
    with pytest.raises(UserError, match="damaged"):  # trials that ended have lost a parameter
        train(run)
    with closing(sqlite3.connect(run / "study.db")) as database, database:
        database.execute("delete from trial_system_attributes where key like 'fmnist:%'")
    with pytest.raises(UserError, match=r"trials of another origin.* learning_rate, .*name"):
        train(run)


def test_renamed_study_is_named(run):
    with closing(sqlite3.connect(run / "study.db")) as database, database:
        database.execute("update studies set study_name = 'mine'")
    with pytest.raises(UserError, match=r"none of the name 'shared', but 'mine'; .*name back"):
        train(run)


def test_copied_study_continues_under_its_name(run, whole):
    """A copy with all trials, and the old one deleted, as optuna-dashboard renames a study."""
    url = storage_url.of_run(run)
    for old, new in (("shared", "mine"), ("mine", "shared")):
        optuna.copy_study(from_study_name=old, from_storage=url, to_storage=url, to_study_name=new)
        optuna.delete_study(study_name=old, storage=url)
    _, results = train(run)
    assert results == whole[1]


def test_a_note_is_kept(run):
    study = load(run)
    save_note = pytest.importorskip("optuna_dashboard").save_note
    save_note(study, "mine")
    trial = optuna.Trial(study, study.trials[0]._trial_id)
    save_note(trial, "mine, too")
    train(run)
    get_note = pytest.importorskip("optuna_dashboard").get_note
    assert "mine" in get_note(load(run))
    assert "mine, too" in get_note(trial)
