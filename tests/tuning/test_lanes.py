"""How many lanes are trained at once: as memory allows now, and fewer after a kill."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import forked
import pytest
import torch
from strategies import random_split

from fmnist.config.study import StudyConfig
from fmnist.functional.types import ModelConfig
from fmnist.tuning import capacity, grid, scheduler
from fmnist.tuning.kills import LanesNote
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
    room = iter([3, 2, 1])
    asked = capacity.lanes_that_fit

    def fits(*args):
        free = 2 * needed(next(room))
        monkeypatch.setattr(memory, "available", lambda: free)
        return asked(*args)

    monkeypatch.setattr(scheduler, "lanes_that_fit", fits)
    assert sizes(run(study, tmp_path)) == [3, 2, 1]
    assert all(result.state == "COMPLETE" for result in grid.results(study, CONFIG))


def test_memory_that_earlier_groups_have_freed_counts(study, tmp_path, monkeypatch):
    """Freed memory is kept by this process until it is released."""
    free = [needed(1) // 2]
    monkeypatch.setattr(memory, "available", lambda: free[0])
    monkeypatch.setattr(memory, "release", lambda: free.__setitem__(0, 2 * needed(6)))
    capacity.refuse_too_large(grid.pending(study, CONFIG)[0], 40, (1, 28, 28))
    free[0] = needed(1) // 2
    assert sizes(run(study, tmp_path)) == [6]


def test_trial_that_cannot_fit_is_refused_before_it_starts(study, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: needed(1) // 2)
    with pytest.raises(UserError, match=r"not enough memory to train seed=\d even alone: it takes"):
        list(run(study, tmp_path))


KILLED = """
import os, sys
sys.path.insert(0, sys.argv[1])
from test_lanes import CONFIG, run, open_study, scheduler
from pathlib import Path
folder = Path(sys.argv[2])
study = open_study(CONFIG, f"sqlite:///{folder}/study.db")
for event in run(study, folder):
    if isinstance(event, scheduler.GroupStarted):
        print(len(event.trials), flush=True)
    if getattr(event, "epoch", 0) == int(sys.argv[4]):
        os.kill(os.getpid(), int(sys.argv[3]))
"""


def start(tmp_path, number, epoch=1):
    """Train in a process that gets a signal after an epoch; return the sizes of its groups."""
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here.parent), os.environ.get("PYTHONPATH", "")])
    done = forked.run(
        [sys.executable, "-c", KILLED, str(here), str(tmp_path), str(int(number)), str(epoch)],
        capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode != 0
    return [int(line) for line in done.stdout.split()]


def note_says(tmp_path, *kills):
    """Change which kills of the kernel the note of a killed run has seen."""
    note = tmp_path / "checkpoints" / "lanes"
    seen = note.stat()
    note.write_text(" ".join([*note.read_text().split()[:2], *map(str, kills)]))
    os.utime(note, ns=(seen.st_atime_ns, seen.st_mtime_ns))


def finish(study, tmp_path, **options):
    began = sizes(run(study, tmp_path, **options))
    assert all(result.state == "COMPLETE" for result in grid.results(study, CONFIG))
    assert not (tmp_path / "checkpoints" / "lanes").exists()
    return began


@pytest.mark.skipif(not memory.kills(), reason="this kernel does not count its kills")
def test_run_that_the_system_killed_takes_half_of_the_lanes(study, tmp_path, caplog):
    boot, number = memory.kills()
    assert start(tmp_path, signal.SIGKILL) == [6]
    note_says(tmp_path, boot, number - 1)
    assert start(tmp_path, signal.SIGKILL) == [3]
    note_says(tmp_path, boot, number - 1)
    assert start(tmp_path, signal.SIGINT) == [1]  # an orderly end keeps the limit
    assert start(tmp_path, signal.SIGKILL) == [1]  # so does a kill by hand
    assert finish(study, tmp_path, max_lanes=4) == [1] * 6
    assert "it seems for lack of memory: at most 1 configurations" in caplog.text


@pytest.mark.skipif(not memory.kills(), reason="this kernel does not count its kills")
@pytest.mark.parametrize("epoch", [0, 2])
def test_kills_by_hand_take_no_lanes(study, tmp_path, caplog, epoch):
    for _ in range(3):
        assert start(tmp_path, signal.SIGKILL, epoch) == [6]
    assert finish(study, tmp_path) == [6]
    assert caplog.text == ""


@pytest.mark.parametrize(("epoch", "lanes"), [(0, [3, 3]), (2, [6])])
@pytest.mark.parametrize("kills", [["another boot", 0], []], ids=["restarted", "silent"])
def test_kill_that_the_kernel_cannot_tell_counts_before_the_first_snapshot(
    study, tmp_path, epoch, lanes, kills
):
    assert start(tmp_path, signal.SIGKILL, epoch) == [6]
    note_says(tmp_path, *kills)
    assert finish(study, tmp_path) == lanes


@pytest.mark.parametrize("text", ["", "6", "x y", "6 -3 boot 0", "\0" * 9, "9" * 50])
def test_damaged_note_sets_no_limit(tmp_path, monkeypatch, text):
    monkeypatch.setattr(memory, "kills", lambda: ("boot", 0))
    (tmp_path / "lanes").write_text(text)
    assert LanesNote(tmp_path).limit() == 0


def test_kills_of_the_kernel_are_read(tmp_path):
    assert memory.kills(tmp_path) is None
    files = {"sys/kernel/random/boot_id": "a-b\n", "vmstat": "x 1\noom_kill 7\ny 2\n"}
    for name, text in files.items():
        path = tmp_path / "proc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert memory.kills(tmp_path) == ("a-b", 7)


def test_orderly_end_is_no_kill(study, tmp_path, caplog):
    assert start(tmp_path, signal.SIGINT) == [6]
    assert sizes(run(study, tmp_path)) == [6]
    assert caplog.text == ""
