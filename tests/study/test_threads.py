"""Studies in several threads of one process run one after the other, each with its own output."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from strategies import tiny_data, tiny_study

from fmnist.reports.terminal import Progress
from fmnist.study.run import run_study
from fmnist.utils.errors import UserError

CONFIG = tiny_study("threads", epochs=3)
TINY = tiny_data()


class Seen(Progress):
    """Notes its epochs and messages in a list that it shares with others."""

    def __init__(self, name, shared):
        self.name, self.shared = name, shared

    def epoch(self, *args):
        self.shared.append((self.name, "epoch"))

    def message(self, text):
        self.shared.append((self.name, text))


def timeless(results):
    return [replace(result, seconds=0.0) for result in results]


def figures(out):
    return {path.name: path.read_bytes() for path in (out / "figures").iterdir()}


def test_studies_in_threads_end_as_alone(tmp_path):
    expected = timeless(run_study(CONFIG, tmp_path / "alone", dataset=TINY))
    shared, together = [], threading.Barrier(3)

    def study(number):
        together.wait()
        return run_study(
            CONFIG, tmp_path / str(number), dataset=TINY, progress=Seen(number, shared)
        )

    with ThreadPoolExecutor(3) as pool:
        found = [*map(timeless, pool.map(study, range(3)))]
    assert found == [expected] * 3
    for number in range(3):
        assert figures(tmp_path / str(number)) == figures(tmp_path / "alone")
        assert shared.count((number, "device cpu")) == 1
    epochs = [number for number, what in shared if what == "epoch"]
    assert sum(a != b for a, b in itertools.pairwise(epochs)) == 2
    assert len(epochs) == 9
    waits = [number for number, what in shared if what == "waiting for the study of another thread"]
    assert len(waits) == 2


@pytest.mark.usefixtures("undrawn")
def test_the_same_study_in_two_threads_trains_once(tmp_path):
    shared = []
    with ThreadPoolExecutor(2) as pool:
        a, b = pool.map(
            lambda n: run_study(CONFIG, tmp_path / "run", dataset=TINY, progress=Seen(n, shared)),
            range(2),
        )
    assert a == b
    assert [what for _, what in shared].count("epoch") == 3


@pytest.mark.usefixtures("undrawn")
def test_a_study_within_a_study_and_after_an_error(tmp_path):
    class Nested(Progress):
        def trial(self, result):
            if not (tmp_path / "inner").exists():
                run_study(CONFIG, tmp_path / "inner", dataset=TINY)

    results = run_study(CONFIG, tmp_path / "outer", dataset=TINY, progress=Nested())
    with pytest.raises(UserError):
        run_study(replace(CONFIG, epochs=1), tmp_path / "outer", dataset=TINY)
    assert timeless(run_study(CONFIG, tmp_path / "inner", dataset=TINY)) == timeless(results)
