"""Snapshots, and runs that resume from them with the same bits."""

from __future__ import annotations

import itertools
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import optree
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import Group, make_group, random_split, run_group

from fmnist.config.study import StudyConfig
from fmnist.engine import trainer
from fmnist.functional.types import ModelConfig
from fmnist.rundir.snapshots import Generations
from fmnist.tuning import grid, scheduler, storage
from fmnist.tuning.progress import Checkpointer, GroupProgress, lanes_of, program_of
from fmnist.utils import signals
from fmnist.utils.signals import Stop, Terminated

HERE = Path(__file__).parents[1]
CPU = torch.device("cpu")
SPLITS = scheduler.Splits(random_split(60), random_split(10, 1), random_split(10, 2))
CONFIG = StudyConfig(
    name="tiny",
    epochs=3,
    holdout=0,
    model=ModelConfig(channels=(3, 4), hidden=(7,), dropout=0.3),
    grid={"learning_rate": (0.01, 0.001), "seed": (0, 1), "batch_size": (10, 25)},
)
TENSORS = {"weight": torch.arange(6.0).view(2, 3), "steps": torch.tensor([7])}


@pytest.fixture
def study(tmp_path):
    return storage.open_study(CONFIG, f"sqlite:///{tmp_path}/study.db")


def same(ours, theirs):
    return [(r.number, r.point, r.state, r.history, r.test_loss) for r in ours] == [
        (r.number, r.point, r.state, r.history, r.test_loss) for r in theirs
    ]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The results and parameters of an uninterrupted study."""
    study = storage.open_study(CONFIG, f"sqlite:///{tmp_path_factory.mktemp('whole')}/study.db")
    params = final(scheduler.run(study, CONFIG, SPLITS, max_lanes=None))
    return grid.results(study, CONFIG), params


def final(events):
    """The final parameters of each trial, by number."""
    return {e.result.number: e.params for e in events if isinstance(e, scheduler.TrialFinished)}


def equal(ours, theirs):
    return all(
        torch.equal(ours[n][layer][leaf], theirs[n][layer][leaf])
        for n in ours
        for layer in theirs[n]
        for leaf in theirs[n][layer]
    )


def test_newest_snapshot_is_loaded_and_two_are_kept(tmp_path):
    kept = Generations(tmp_path / "it")
    assert kept.load() is None
    for epoch in range(4):
        kept.save(TENSORS | {"epoch": torch.tensor(epoch)}, {"epoch": epoch, "loss": [0.1]})
        found = kept.load()
        assert found.about == {"epoch": epoch, "loss": [0.1]}
        assert found.tensors["epoch"] == epoch
        assert all(torch.equal(found.tensors[name], TENSORS[name]) for name in TENSORS)
    assert sorted(p.name for p in kept.folder.iterdir()) == [
        "00000002.json", "00000002.safetensors", "00000003.json", "00000003.safetensors",
    ]  # fmt: skip
    kept.delete()
    assert not kept.folder.exists()


@given(st.sampled_from(["json", "safetensors"]), st.integers(0), st.integers(0, 8))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_previous_snapshot_is_used_if_the_newest_is_damaged(tmp_path_factory, kind, place, bit):
    """Content with a flipped bit, or truncated anywhere."""
    kept = Generations(tmp_path_factory.mktemp("kept"))
    for epoch in range(2):
        kept.save(TENSORS, {"epoch": epoch})
    path = kept.folder / f"00000001.{kind}"
    content = bytearray(path.read_bytes())
    place %= len(content)
    if bit == 8:
        del content[place:]
    else:
        content[place] ^= 1 << bit
    path.write_bytes(content)
    assert kept.load().about == {"epoch": 0}


def test_damaged_snapshot_is_logged(tmp_path, caplog):
    kept = Generations(tmp_path)
    kept.save(TENSORS, {})
    (tmp_path / "00000000.safetensors").unlink()
    with caplog.at_level(logging.WARNING):
        assert kept.load() is None
    assert "00000000.json: damaged" in caplog.text


def test_unfinished_snapshot_is_ignored(tmp_path):
    kept = Generations(tmp_path)
    kept.save(TENSORS, {"epoch": 0})
    (tmp_path / "00000001.safetensors").write_bytes(b"half")
    assert kept.load().about == {"epoch": 0}
    kept.save(TENSORS, {"epoch": 1})
    assert kept.load().about == {"epoch": 1}


@pytest.mark.parametrize("pauses", range(1, 11))
def test_resuming_from_any_step_changes_no_bit(study, tmp_path, monkeypatch, pauses):
    monkeypatch.setattr(trainer, "_steps_per_event", lambda *_: 2)
    trials = [t for t in grid.pending(study, CONFIG) if t.config.static.batch_size == 10]
    configs = [trial.config for trial in trials]
    group = Group(program_of(configs[0]), lanes_of(configs))
    whole = list(run_group(group, *SPLITS[:2], epochs=2))
    states = (
        event
        for event in trainer.train_lanes(*group, *SPLITS[:2], epochs=4)
        if isinstance(event, trainer.TrainerState)
    )
    at = next(itertools.islice(states, pauses - 1, None))
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(GroupProgress(trials, at))
    (found,) = checkpointer.restore(trials, CPU)
    assert (found.at.epoch, found.at.examples) == (at.epoch, at.examples)
    rest = list(run_group(group, *SPLITS[:2], epochs=2, resume=found.at))
    if at.epoch < 2:
        assert [r.epoch for r in rest] == [r.epoch for r in whole[at.epoch :]]
        for ours, theirs in zip(rest, whole[at.epoch :], strict=True):
            pairs = zip(optree.tree_leaves(ours[1:]), optree.tree_leaves(theirs[1:]), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("stop_after", [1, 2, 3, 5, 7, 9])
def test_killed_study_resumes_to_the_same_bits(study, tmp_path, expected, stop_after):
    checkpointer = Checkpointer(tmp_path / "checkpoints", every=0.0)
    seen = []
    for event in scheduler.run(study, CONFIG, SPLITS, max_lanes=2, checkpointer=checkpointer):
        if isinstance(event, scheduler.EpochFinished | scheduler.TrialFinished):
            seen.append(event)
        if len(seen) == stop_after:
            break  # like a kill after this event
    again = list(scheduler.run(study, CONFIG, SPLITS, max_lanes=None, checkpointer=checkpointer))
    results, params = expected
    assert same(grid.results(study, CONFIG), results)
    assert equal(final(again), params)
    epochs = sum(isinstance(e, scheduler.EpochFinished) for e in seen)
    repeated = sum(isinstance(e, scheduler.EpochFinished) for e in again)
    assert epochs + repeated <= 4 * CONFIG.epochs + 1  # at most one epoch without a snapshot
    checkpointer.clear()
    assert not checkpointer.folder.exists()


def test_resumed_group_has_only_the_trials_that_optuna_lacks(study, tmp_path, expected):
    checkpointer = Checkpointer(tmp_path / "checkpoints")
    events = scheduler.run(study, CONFIG, SPLITS, max_lanes=None, checkpointer=checkpointer)
    finished = 0
    for event in events:
        finished += isinstance(event, scheduler.TrialFinished)
        if finished == 2:
            break  # Optuna has the first trial, but not the second
    events.close()
    again = list(scheduler.run(study, CONFIG, SPLITS, max_lanes=None, checkpointer=checkpointer))
    started = [e for e in again if isinstance(e, scheduler.GroupStarted)]
    assert len(started[0].trials) == 3
    assert all(len(started[0].histories[t.number]) == CONFIG.epochs for t in started[0].trials)
    assert same(grid.results(study, CONFIG), expected[0])


def test_snapshot_of_another_shape_or_trial_is_not_used(study, tmp_path, caplog):
    trials = grid.pending(study, CONFIG)
    small = [t for t in trials if t.config.static.batch_size == 10][:1]
    lane = (0, small[0].config.hyperparams)
    wider = ModelConfig(channels=(3, 5), hidden=(7,), dropout=0.3)
    other = make_group(wider, "adam", False, 10, (lane,))
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(GroupProgress(small, trainer.TrainerState(1, trainer.start(*other, CPU))))
    with caplog.at_level(logging.WARNING):
        assert checkpointer.restore(trials, CPU) == []
    assert "another shape" in caplog.text
    assert not any(tmp_path.glob("*/*"))
    at = trainer.TrainerState(
        1, trainer.start(program_of(small[0].config), lanes_of([small[0].config]), CPU)
    )
    checkpointer.save(GroupProgress([small[0]._replace(point={"learning_rate": 7.0})], at))
    assert checkpointer.restore(trials, CPU) == []


def test_intervals_between_snapshots():
    times = iter([0.0, 4.9, 5.0, 59.9, 60.0, 60.0, 64.9])
    checkpointer = Checkpointer(Path("nowhere"), clock=lambda: next(times))
    assert [checkpointer.due(), checkpointer.due()] == [False, True]
    assert [checkpointer.overdue(), checkpointer.overdue()] == [False, True]
    checkpointer.save(GroupProgress([]))  # writes no snapshot, but counts as one
    assert not checkpointer.due()


STOPS = pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)]
)


def in_stop(*acts):
    """Run these statements in sequence, as a run does its steps."""
    with Stop() as stop:
        for act in acts:
            act(stop)


@STOPS
def test_the_first_signal_waits_for_the_step_and_the_second_does_not(number, error):
    seen = []

    def sent(stop):
        os.kill(os.getpid(), number)
        seen.append(stop.requested)

    before = [signal.getsignal(n) for n in signals.SIGNALS]
    for acts, waited in [
        ([sent], [True]),
        ([sent, sent], [True]),
        ([sent, Stop.check, sent], [True]),
        ([sent, Stop.check, seen.append], [True]),
    ]:
        seen.clear()
        with pytest.raises(error):
            in_stop(*acts)
        assert seen == waited
    assert [signal.getsignal(n) for n in signals.SIGNALS] == before


STATUSES = pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
ACTS = """
import ctypes, hashlib, os, sys, time
from fmnist.utils import command_line
from fmnist.utils.signals import Stop

def main(argv):
    with Stop() as stop:
        try:
            os.kill(os.getpid(), int(argv[0]))
            exec(argv[1])
        finally:
            print("unwound")

command_line.run(main, patience=float(sys.argv[3]))
"""


def acts(number, act, patience):
    """Run a command that gets a signal. Return its status, output and duration."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", ACTS, str(int(number)), act, str(patience)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stderr == "\nstopped\n"
    return done.returncode, done.stdout.split(), time.monotonic() - began


@STATUSES
def test_long_step_is_interrupted(number, status):
    *found, took = acts(number, "time.sleep(30)", 0.2)
    assert found == [status, ["unwound"]]
    assert took < 5
    assert acts(number, "stop.check(); print('more')", 30)[:2] == (status, ["unwound"])


@STATUSES
def test_process_ends_during_an_operation_that_cannot_be_interrupted(number, status):
    *found, took = acts(number, "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)", 0.2)
    assert found == [status, []]
    assert took < 5


@STATUSES
def test_snapshot_at_a_stop_has_the_time_of_training(number, status):
    act = "time.sleep(0.25); assert stop.requested; time.sleep(0.25); print('saved'); stop.check()"
    assert acts(number, act, 1)[:2] == (status, ["saved", "unwound"])


@STATUSES
@pytest.mark.parametrize(
    ("after", "said"),
    [
        ("pass", ["unwound"]),
        ("raise RuntimeError('no compiled object yet')", ["unwound"]),
        ("stop.check(); print('went on')", ["unwound"]),
        ("time.sleep(30); print('went on')", []),
    ],
)
def test_stop_is_raised_if_a_library_swallows_it(number, status, after, said):
    """A library swallows the error of a signal, as LLVM's callbacks from C do in compilation.

    The error is raised again when the library fails, or at the end.
    """
    act = f"ctypes.CFUNCTYPE(None)(lambda: time.sleep(30))(); {after}"
    *found, took = acts(number, act, 0.5)
    assert found == [status, said]
    assert took < 5


@STATUSES
def test_stopped_command_ends_soon_and_resumes(tmp_path, number, status):
    command = [
        sys.executable, str(HERE / "slice_command.py"), "--epochs", "20", "--set", "channels=4-6",
        "--set", "learning_rate=0.01,0.001", "--set", "batch_size=50", "--set", "holdout=500",
        "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    again = [*command, "--no-views"]  # which this test does not read
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        until = time.monotonic() + 120
        while "epoch 1/20" not in (tmp_path / "log").read_text() and time.monotonic() < until:
            time.sleep(0.1)
        process.send_signal(number)
        began = time.monotonic()
        assert process.wait(60) == status
        assert time.monotonic() - began < 5
    said = (tmp_path / "log").read_text()
    assert "the same command continues" in said
    done = forked.run(again, capture_output=True, text=True, timeout=300, check=True)
    seen, later = (re.findall(r"epoch (\d+)/20", text) for text in (said, done.stdout))
    assert seen + later == [str(epoch) for epoch in range(1, 21)]
    assert later
    assert not (tmp_path / "run" / "checkpoints").exists()
