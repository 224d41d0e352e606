"""How many lanes are trained at once: as memory allows now, and fewer after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from strategies import random_split

from fmnist.config.study import StudyConfig
from fmnist.functional.types import ModelConfig
from fmnist.tuning import capacity, grid, scheduler
from fmnist.tuning.progress import Checkpointer
from fmnist.tuning.storage import open_study
from fmnist.utils import memory
from fmnist.utils.errors import UserError

SPLITS = scheduler.Splits(random_split(40), random_split(10, 1), random_split(10, 2))
CONFIG = StudyConfig(
    name="tiny",
    epochs=2,
    batch_size=10,
    model=ModelConfig(channels=(3, 4), hidden=(7,)),
    grid={"seed": tuple(range(6))},
)
CPU = torch.device("cpu")


@pytest.fixture
def study(tmp_path):
    return open_study(CONFIG, f"sqlite:///{tmp_path}/study.db")


def needed(lanes):
    return capacity.lanes_bytes([CONFIG.trial({"seed": n}) for n in range(lanes)], 40, (1, 28, 28))


def sizes(events):
    return [len(e.trials) for e in events if isinstance(e, scheduler.GroupStarted)]


def run(study, tmp_path, **options):
    checkpointer = Checkpointer(tmp_path / "checkpoints", every=0.0)
    options = {"max_lanes": None} | options
    return scheduler.run(study, CONFIG, SPLITS, checkpointer=checkpointer, **options)


def test_lanes_are_as_many_as_fit_in_half_of_the_free_memory(monkeypatch):
    configs = [CONFIG.trial({"seed": n}) for n in range(6)]
    for lanes in range(1, 7):
        monkeypatch.setattr(memory, "available", lambda lanes=lanes: 2 * needed(lanes))
        assert capacity.lanes_that_fit(configs, CPU, 40, (1, 28, 28)) == lanes
    monkeypatch.setattr(memory, "available", lambda: 0)
    assert capacity.lanes_that_fit(configs, CPU, 40, (1, 28, 28)) == 1


def test_memory_is_asked_for_at_each_group(study, tmp_path, monkeypatch):
    free = iter([2 * needed(3), 2 * needed(2), 2 * needed(1), 2 * needed(1)])
    monkeypatch.setattr(memory, "available", lambda: next(free))
    assert sizes(run(study, tmp_path)) == [3, 2, 1]
    assert all(result.state == "COMPLETE" for result in grid.results(study, CONFIG))


def test_trial_that_cannot_fit_is_refused_before_it_starts(study, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: needed(1) // 2)
    with pytest.raises(UserError, match=r"not enough memory to train seed=\d even alone: it takes"):
        list(run(study, tmp_path))


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from test_lanes import CONFIG, run, open_study, scheduler
from pathlib import Path
folder = Path(sys.argv[2])
study = open_study(CONFIG, f"sqlite:///{folder}/study.db")
for event in run(study, folder):
    if isinstance(event, scheduler.GroupStarted):
        print(len(event.trials), flush=True)
    if isinstance(event, scheduler.EpochFinished):
        os.kill(os.getpid(), int(sys.argv[3]))
"""


def start(tmp_path, number):
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(here), str(tmp_path), str(int(number))],
        capture_output=True, text=True, check=False, timeout=300,
        env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode != 0
    return [int(line) for line in done.stdout.split()]


def test_killed_run_takes_half_of_the_lanes_next_time(study, tmp_path, caplog):
    assert start(tmp_path, signal.SIGKILL) == [6]
    assert start(tmp_path, signal.SIGKILL) == [3]
    assert start(tmp_path, signal.SIGINT) == [1]  # an orderly end
    again = run(study, tmp_path, max_lanes=4)
    assert sizes(again) == [1] * 6
    assert "killed while it trained 3 configurations at once" in caplog.text
    assert all(result.state == "COMPLETE" for result in grid.results(study, CONFIG))
    assert not (tmp_path / "checkpoints" / "lanes").exists()


def test_orderly_end_is_no_kill(study, tmp_path, caplog):
    assert start(tmp_path, signal.SIGINT) == [6]
    assert sizes(run(study, tmp_path)) == [6]
    assert caplog.text == ""
