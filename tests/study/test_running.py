"""What a study says while it runs, when it is continued, and when its trials diverged."""

from __future__ import annotations

import itertools
import math
import os
import signal
from dataclasses import replace

import optree
import pytest
from fake_results import results_of
from strategies import tiny_data, tiny_study

from fmnist.config.results import EpochMetrics
from fmnist.functional import cnn
from fmnist.reports import publish, scores
from fmnist.reports.html.curves import ticks
from fmnist.reports.terminal import Progress
from fmnist.study.run import run_study
from fmnist.tuning import events, scheduler


class Heard(Progress):
    """Keeps the events and messages of a study, and stops it after an epoch."""

    def __init__(self, stop_after=0):
        self.events, self.said, self._stop_after = [], [], stop_after

    def __call__(self, event):
        self.events.append(event)
        if isinstance(event, events.EpochFinished) and event.epoch == self._stop_after:
            os.kill(os.getpid(), signal.SIGINT)

    def message(self, text):
        self.said.append(text)

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]


@pytest.mark.usefixtures("undrawn")
def test_continued_study_says_where_it_was(tmp_path):
    config, first, second = tiny_study("continued", epochs=4), Heard(stop_after=2), Heard()
    with pytest.raises(KeyboardInterrupt):
        run_study(config, tmp_path / "run", dataset=tiny_data(), progress=first)
    assert not any(text.startswith("continuing") for text in first.said)
    run_study(config, tmp_path / "run", dataset=tiny_data(), progress=second)
    assert second.said[0] == "continuing: 0 of 2 trials are complete"
    (before,), (after,) = first.of(events.GroupStarted), second.of(events.GroupStarted)
    assert (before.epoch, before.epochs_left, before.epochs_all) == (0, 8, 8)
    assert (after.epoch, after.epochs_left, after.epochs_all) == (2, 4, 8)
    assert after.seconds > 0
    kept = [list(event.metrics.values()) for event in first.of(events.EpochFinished)]
    assert [list(pair) for pair in zip(*after.histories.values(), strict=True)] == kept


@pytest.mark.usefixtures("undrawn")
def test_events_within_an_epoch_come_after_the_first_step_and_then_seldom(tmp_path, monkeypatch):
    config = tiny_study("steps", epochs=3)
    config = replace(config, batch_size=10)  # six steps an epoch
    seldom, often = Heard(), Heard()
    run_study(config, tmp_path / "seldom", dataset=tiny_data(), progress=seldom)
    monkeypatch.setattr(scheduler, "TOLD_EVERY", 0.0)
    run_study(config, tmp_path / "often", dataset=tiny_data(), progress=often)
    told = often.of(events.BatchesTrained)
    steps = [(e.epoch, e.examples) for e in told]
    assert steps == sorted(steps)
    assert set(steps) == {(epoch, 10 * step) for epoch in range(3) for step in range(1, 7)}
    assert all(math.isfinite(e.seconds) for e in told)
    few = seldom.of(events.BatchesTrained)
    assert (few[0].epoch, few[0].examples) == (0, 10)
    seconds = [event.seconds for event in few]
    assert all(b - a >= 0.49 for a, b in itertools.pairwise(seconds))


@pytest.mark.usefixtures("undrawn")
def test_retry_says_that_nothing_has_changed(tmp_path, monkeypatch):
    config = replace(tiny_study("hot"), grid={"learning_rate": (1e30, 0.001)})

    def told(**options):
        heard = Heard()
        run_study(config, tmp_path / "run", dataset=tiny_data(), progress=heard, **options)
        return heard.said

    told()
    (hint,) = [text for text in told() if "--retry-failed" in text]
    assert hint.startswith("1 trial failed;")
    assert "diverges again" in hint
    said = told(retry_failed=True)
    assert said[0] == "continuing: 1 of 2 trials are complete, 1 failed"
    (line,) = [text for text in said if "trained again;" in text]
    assert line.endswith("(no change in them is known)")
    monkeypatch.setattr("fmnist.utils.provenance.versions", lambda: "torch 99")
    (line,) = [text for text in told(retry_failed=True) if "trained again;" in text]
    assert line.endswith("(changed: versions)")


def test_outputs_that_overflow_are_no_probabilities():
    """Logits may overflow on the test set, though the validation loss was finite."""
    config, data = tiny_study("overflow").model, tiny_data()
    params, state = cnn.build(config).init(0)
    huge = optree.tree_map(lambda leaf: leaf * 1e19, params)
    rows = publish.outputs(huge, state, data.test, config).probabilities.sum(dim=1)
    assert rows.tolist() == [0] * 30  # in numpy, NaN would warn wherever it is drawn
    rows = publish.outputs(params, state, data.test, config).probabilities.sum(dim=1)
    assert rows.tolist() == pytest.approx([1] * 30)


@pytest.mark.parametrize("loss", [0.0, 2.3, 1e12, 3e38])
def test_equal_losses_of_any_size_have_an_axis(loss):
    results = [
        replace(result, history=(EpochMetrics(loss, 0.1, loss, 0.1),))
        for result in results_of(tiny_study("equal"))
    ]
    low, high = scores.limits(results, "loss")
    assert low < loss < high
    assert ticks((low, high))
