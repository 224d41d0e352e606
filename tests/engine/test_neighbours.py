"""Threads leave cores to other processes, and their number changes no result."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time

import numba
import optree
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import random_split

import fmnist
from fmnist.engine import neighbours
from fmnist.engine.neighbours import FreeCores


class Machine:
    """A clock that moves only as it is told."""

    def __init__(self):
        self.time, self.busy, self.own = 0.0, 0.0, 0.0

    def read(self):
        return self.time, self.busy, self.own

    def now(self):
        return self.time

    def cores(self, most, cores=None):
        return FreeCores(most, cores or most, self.read, self.now)

    def work(self, cores, seconds, own, others):
        with cores.used():
            self.time += seconds
            self.own += own * seconds
            self.busy += (own + others) * seconds


@given(st.integers(2, 64), st.floats(0, 64), st.floats(0.5, 30))
def test_as_many_threads_as_others_leave_cores(most, others, seconds):
    machine = Machine()
    cores = machine.cores(most)
    machine.work(cores, seconds, most, others)
    assert 1 <= cores.threads <= most
    assert cores.threads == 1 or abs(most - others - cores.threads) <= 0.5 + 1e-9
    machine.work(cores, seconds, 1, 0)
    assert cores.threads == most


def test_two_that_share_two_cores_have_one_each_and_the_last_has_both():
    machine = Machine()
    cores = machine.cores(2)
    machine.work(cores, 1, own=1, others=1)
    assert cores.threads == 1
    machine.work(cores, 1, own=1, others=1)
    assert cores.threads == 1
    machine.work(cores, 1, own=1, others=0)
    assert cores.threads == 2


def test_fewer_threads_than_cores_leave_room_already():
    machine = Machine()
    cores = machine.cores(2, cores=16)
    machine.work(cores, 1, own=2, others=14)
    assert cores.threads == 2
    machine.work(cores, 1, own=2, others=15)
    assert cores.threads == 1


def test_what_others_do_while_nothing_is_computed_does_not_count():
    machine = Machine()
    cores = machine.cores(2)
    machine.time += 60
    machine.busy += 120
    machine.work(cores, 1, own=2, others=0)
    assert cores.threads == 2


def test_without_knowledge_the_threads_remain():
    def unknown():
        raise FileNotFoundError("/proc/stat")

    cores = FreeCores(2, 2, unknown)
    with cores.used():
        assert cores.threads == 2


@pytest.fixture
def two_threads():
    """Two threads of torch, and of Numba if it has as many."""
    before = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(2)
    numba.set_num_threads(min(2, numba.config.NUMBA_NUM_THREADS))
    yield torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(before[0])
    numba.set_num_threads(before[1])


def test_the_callers_threads_are_as_before(two_threads):
    machine = Machine()
    cores = machine.cores(2)
    machine.work(cores, 1, own=1, others=1)
    with contextlib.suppress(KeyError), cores.used():
        assert (torch.get_num_threads(), numba.get_num_threads()) == (1, 1)
        raise KeyError
    assert (torch.get_num_threads(), numba.get_num_threads()) == two_threads


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/stat")
def test_a_busy_process_is_seen():
    program = "print(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as busy:
        try:
            busy.stdout.readline()
            before, own = neighbours.read_times(), time.process_time()
            time.sleep(1)
            passed, used, mine = (
                b - a for a, b in zip(before, neighbours.read_times(), strict=True)
            )
        finally:
            busy.kill()
    assert used - mine >= 0.3 * passed
    assert mine == pytest.approx(time.process_time() - own, abs=0.2)


def test_the_number_of_threads_changes_no_bit(two_threads, monkeypatch):
    """In turns, as when other processes come and go."""
    split, results = random_split(70), []
    arguments = (fmnist.cnn(channels=(3, 4), dropout=0.2), fmnist.adam, split, random_split(20))
    for threads in ([2], [1, 2], [1]):
        turns = iter(threads * 1000)

        @contextlib.contextmanager
        def used(self, turns=turns):
            with neighbours._at_most(next(turns)):
                yield

        monkeypatch.setattr(FreeCores, "used", used)
        lanes = {"learning_rate": [0.01, 0.003], "seed": [0, 1]}
        *_, last = fmnist.fit(*arguments, lanes=lanes, batch_size=20, epochs=2)
        results.append(optree.tree_leaves(last.train_state))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))
