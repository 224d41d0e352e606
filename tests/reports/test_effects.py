"""What each setting brings: means over the pairs of trials that differ in nothing else."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist.config.results import EpochMetrics, TrialResult
from fmnist.config.study import StudyConfig
from fmnist.reports import effects

GRID = {"learning_rate": (0.01, 0.001, 0.1), "batch_size": (10, 20), "seed": (0, 1, 2)}


def results_of(study, score, missing=()):
    found = []
    for number, point in enumerate(study.points()):
        value = score(point)
        state = "FAIL" if number in missing else "COMPLETE"
        history = (EpochMetrics(0.1, 0.9, value, value),)
        found.append(TrialResult(number, point, state, history))
    return found


@given(st.integers(0, 2**32 - 1), st.sampled_from(["validation_accuracy", "validation_loss"]))
@settings(deadline=None)
def test_effects_are_mean_differences_over_pairs(seed, metric):
    study = StudyConfig(grid=GRID, metric=metric)
    draws = iter(np.random.default_rng(seed).uniform(0.5, 0.9, study.size))
    missing = {3, 10}
    results = results_of(study, lambda point: next(draws), missing)
    known = {
        tuple(r.point.values()): getattr(r.final, metric)
        for r in results if r.state == "COMPLETE"
    }  # fmt: skip
    sign = 1 if metric == "validation_accuracy" else -1
    found = effects.effects(study, results)
    assert {e.key for e in found} == {"learning_rate", "batch_size"}
    for effect in found:
        place = [*GRID].index(effect.key)
        pairs = [
            sign * (known[p] - known[(*p[:place], effect.reference, *p[place + 1 :])])
            for p in known
            if p[place] == effect.value and (*p[:place], effect.reference, *p[place + 1 :]) in known
        ]
        assert effect.pairs == len(pairs)
        assert effect.gain == pytest.approx(statistics.fmean(pairs))
        low, high = effect.interval
        assert low < effect.gain < high
        # The quantile of Student's t for this many pairs, from a table.
        t = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306}
        half = t[len(pairs)] * statistics.stdev(pairs) / math.sqrt(len(pairs))
        assert high - low == pytest.approx(2 * half, rel=1e-3)


def test_verdicts_and_sentence():
    study = StudyConfig(grid=GRID)
    noise = {0: 0.0, 1: 0.002, 2: -0.001}

    def score(point):
        best = 0.05 * (point["learning_rate"] == 0.01)
        return 0.8 + best + noise[point["seed"]] * (1 + point["batch_size"] / 10)

    found = {(e.key, e.value): e for e in effects.effects(study, results_of(study, score))}
    assert found["learning_rate", 0.1].verdict == "worse"
    assert found["learning_rate", 0.001].gain == pytest.approx(-0.05)
    (other,) = (e for e in found.values() if e.key == "batch_size")
    assert other.verdict == "not told apart"
    said = effects.sentence([*found.values()])
    assert "better are learning_rate 0.01 than 0.001, learning_rate 0.01 than 0.1" in said
    assert f"not told apart are batch_size {other.reference} and {other.value}" in said


def test_single_pairs_have_no_interval_and_no_sentence():
    study = StudyConfig(grid={"learning_rate": (0.01, 0.001)})
    (effect,) = effects.effects(study, results_of(study, lambda p: p["learning_rate"]))
    assert (effect.pairs, effect.verdict) == (1, "not told apart")
    assert math.isnan(effect.interval[0])
    assert effects.sentence([effect]) == ""
    failed = results_of(study, lambda p: 0.5, missing={0, 1})
    assert effects.effects(study, failed) == []
