"""Which configuration wins, and which cannot be told apart from it."""

from __future__ import annotations

import json
import math
import re
import statistics
from dataclasses import replace

import numpy as np
import pytest
from fake_results import findings, results_of
from hypothesis import given
from hypothesis import strategies as st

from fmnist.config.results import EpochMetrics, TrialResult, by_configuration, ranked, winner
from fmnist.config.study import StudyConfig
from fmnist.reports import colours, heatmap, rows, scores, words
from fmnist.reports.comparison import compare, quantile, wilson
from fmnist.reports.confusion import recognition
from fmnist.reports.dashboard.notes import TimePlot
from fmnist.reports.html import curves, tables
from fmnist.reports.html.page import TEMPLATES

RATES = (0.1, 0.03, 0.01, 0.003)
NAMES = {"validation_accuracy": "maximize", "validation_loss": "minimize"}


def results(study, values):
    """A trial for each point of the grid with such a metric; None failed."""
    made = []
    for number, (point, value) in enumerate(zip(study.points(), values, strict=True)):
        if value is None:
            made.append(TrialResult(number, point, "FAIL", (), reason="the loss was not finite"))
        else:
            made.append(
                TrialResult(
                    number, point, "COMPLETE", (EpochMetrics(1, 0.5, value, value),), 1, 0.9
                )
            )
    return made


def seeded(rates=RATES, seeds=(0, 1, 2), **more):
    return StudyConfig(epochs=1, grid={"learning_rate": rates, "seed": seeds}, **more)


@st.composite
def studies(draw):
    """A study and its results: up to four configurations, up to four seeds, some failed."""
    count, seeds = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    study = seeded(RATES[:count], tuple(range(seeds)), metric=draw(st.sampled_from([*NAMES])))
    value = st.one_of(st.none(), st.integers(0, 1000).map(lambda n: n / 1000))
    values = draw(st.lists(value, min_size=study.size, max_size=study.size))
    return study, results(study, values)


def means(study, made):
    """The mean of each configuration of which no seed failed, by learning rate."""
    found = {}
    for trials in by_configuration(made):
        if all(r.state == "COMPLETE" for r in trials):
            values = [getattr(r.final, study.metric) for r in trials]
            found[trials[0].point["learning_rate"]] = statistics.fmean(values)
    return found


@given(studies())
def test_the_winner_has_the_best_mean_and_is_its_median_seed(case):
    study, made = case
    best, found = winner(made, study.metric), means(study, made)
    if best is None:
        assert all(r.state == "FAIL" for r in made)
        return
    if found:
        wanted = max(found.values()) if study.direction == "maximize" else min(found.values())
        assert found[best.point["learning_rate"]] == pytest.approx(wanted)
        of_it = [getattr(r.final, study.metric) for r in made
                 if r.point["learning_rate"] == best.point["learning_rate"]]  # fmt: skip
        unlucky = statistics.median_low if study.direction == "maximize" else statistics.median_high
        assert getattr(best.final, study.metric) == unlucky(of_it)


def test_a_lucky_seed_does_not_win():
    study = seeded(RATES[:2])
    made = results(study, [0.95, 0.80, 0.81, 0.90, 0.91, 0.89])
    best = winner(made, study.metric)
    assert (best.point["learning_rate"], best.point["seed"]) == (0.03, 0)
    assert winner(results(study, [None, 0.99, 0.99, 0.90, 0.91, 0.89]), study.metric) == best


@given(studies(), st.integers(1, 10_000))
def test_no_view_contradicts_another(case, images):
    study, made = case
    comparison, best = compare(study, made, images), winner(made, study.metric)
    ordered = ranked(made, study.metric)
    assert sorted(r.number for r in ordered) == sorted(r.number for r in made)
    if best is None:
        assert comparison.seeds == 0
        return
    first = comparison.standings[0]
    assert ordered[0] is best
    assert best in first.trials
    assert (first.behind == 0) == comparison.known
    assert not first.tied
    assert f"trial {best.number}" in words.winner_sentence(study, best, comparison, 10).lower()
    found = [*rows.table_rows(study, ordered, best, comparison)]
    assert [won for _, won, _ in found] == [True] + [False] * (len(found) - 1)
    for result, _, cells in found[1:]:
        standing = comparison.of[result.number]
        assert (cells["state"] == "tied") == (standing.tied and result.state == "COMPLETE")
    heat = comparison.cells(study, ["learning_rate"])
    assert heat[(best.point["learning_rate"],)] == [first]
    closeness = [comparison.closeness(s) for s in comparison.standings if s.complete]
    assert closeness[0] == 1
    assert all(0 <= value <= 1 for value in closeness)
    tied = [s.tied for s in comparison.standings[1:] if len(s.complete) == len(s.trials)]
    if comparison.seeds == 1:
        assert tied == sorted(tied, reverse=True)  # what is tied is better than what is not


@given(st.integers(0, 500), st.integers(1, 500))
def test_wilsons_interval_holds_the_share_and_is_not_outside_of_0_to_1(right, more):
    images = right + more
    low, high = wilson(right / images, images)
    assert 0 <= low <= right / images + 1e-12
    assert right / images - 1e-12 <= high <= 1


def test_intervals_and_quantiles_are_those_of_the_books():
    # Newcombe (1998), Two-sided confidence intervals for the single proportion, table I.
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15 / 148, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0 / 20, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    for degrees, value in {1: 12.706, 2: 4.303, 5: 2.571, 30: 2.042, 0: 1.960, 9999: 1.960}.items():
        assert quantile(0.975, degrees) == pytest.approx(value, abs=1e-3)
    assert quantile(0.9995, 3) == pytest.approx(12.924, abs=2e-3)


def share_of_studies_without_the_best(rng, spreads, images=5000, repeats=150, rates=6):
    """How often the first of configurations that are equally good is called worse."""
    study = StudyConfig(
        epochs=1,
        grid={
            "learning_rate": tuple(0.001 * (i + 1) for i in range(rates)),
            **({"seed": tuple(range(len(spreads[0])))} if spreads else {}),
        },
    )
    lost = 0
    for _ in range(repeats):
        if spreads:
            values = (0.9 + rng.normal(size=np.shape(spreads)) * spreads).ravel()
        else:
            values = rng.binomial(images, 0.9, rates) / images
        comparison = compare(study, results(study, values.tolist()), images)
        first = comparison.of[0]
        lost += not (first.tied or first is comparison.standings[0])
    return lost / repeats


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_the_best_of_equals_is_seldom_called_worse(seeds):
    spreads = np.full((6, seeds), 0.003).tolist() if seeds > 1 else None
    lost = share_of_studies_without_the_best(np.random.default_rng(seeds), spreads)
    assert lost < 0.13  # 0.05 and three standard errors of 150 studies


def test_what_differs_by_much_is_told_apart():
    study = seeded()
    noise = [1, -1, 0, -1, 0, 1, 0, 1, -1, 1, 0, -1]
    means = np.repeat([0.9, 0.899, 0.88, 0.5], 3)
    values = (means + np.multiply(noise, 0.001)).tolist()
    comparison = compare(study, results(study, values), 5000)
    assert [s.tied for s in comparison.standings] == [False, True, False, False]
    # One that varies a hundredfold is tied itself, and does not hide what the others are.
    values[9:] = [0.95, 0.6, 0.9]
    comparison = compare(study, results(study, values), 5000)
    assert [s.point["learning_rate"] for s in comparison.standings] == [0.1, 0.03, 0.01, 0.003]
    assert [s.tied for s in comparison.standings] == [False, True, False, True]


def test_one_image_in_5000_is_no_difference():
    study = StudyConfig(epochs=1)
    made = results(study, [0.9008, 0.8970, 0.9022, 0.9024, 0.8988, 0.8976])
    comparison = compare(study, made, 5000)
    assert [s.tied for s in comparison.standings] == [False] + [True] * 5
    said = words.noise_sentence(study, comparison)
    assert "None of the other 5 configurations can be told apart from it (by 5,000 images" in said
    assert "make seed an axis" in said
    sure = compare(study, results(study, [0.5, 0.5, 0.5, 0.9, 0.5, 0.5]), 5000)
    assert "better than each of the other 5" in words.noise_sentence(study, sure)


def test_nothing_is_said_of_the_noise_of_a_loss_with_one_seed():
    study = StudyConfig(epochs=1, metric="validation_loss")
    comparison = compare(study, results(study, [0.3, 0.2, 0.5, 0.4, 0.6, None]), 5000)
    assert not comparison.known
    assert not any(s.tied for s in comparison.standings)
    assert "says nothing about the noise of a loss" in words.noise_sentence(study, comparison)
    assert "interval" not in words.winner_sentence(
        study, winner(results(study, [0.3, 0.2, 0.5, 0.4, 0.6, None]), study.metric), comparison, 0
    )


def test_the_map_shows_the_winner_whatever_the_other_axes(tmp_path):
    grid = {"learning_rate": RATES, "batch_size": (100, 200), "seed": (0, 1), "beta1": (0.9, 0.8)}
    study = StudyConfig(name="views", epochs=1, grid=grid)
    rng = np.random.default_rng(0)
    made = results(study, rng.uniform(0.88, 0.92, study.size).tolist())
    found = findings(study, made, {})
    heat = tables.heat_map(found)
    cells = [cell for _, row in heat["rows"] for cell in row]
    assert sum(cell["won"] for cell in cells) == 1
    top = max(cells, key=lambda cell: cell["score"])
    assert (top["won"], top["share"]) == (True, 100)
    assert heat["others"] == ["beta1"]
    assert heatmap.draw(found.comparison, study, tmp_path / "heat.png").stat().st_size > 5000


def test_a_trial_has_one_colour_in_every_picture():
    css = (TEMPLATES / "report.css").read_text("utf-8")
    light = css.partition("@media screen and (prefers-color-scheme: dark)")[0]
    assert [re.search(rf"--c{i}: (#\w+)", light)[1] for i in range(10)] == [*colours.HUES]
    for grid in ({"learning_rate": RATES}, {"learning_rate": RATES, "seed": tuple(range(9))}):
        study = StudyConfig(epochs=3, grid=grid)
        made = results_of(study, fail=(1,))
        of_trial = colours.hues(study, made)
        assert winner(made, study.metric).number in of_trial
        assert len({*of_trial.values()}) == len(of_trial) <= len(colours.HUES)
        page = curves.curves(study, made)
        drawn = {t["number"]: t["hue"] for t in page["data"]["trials"] if t["hue"] is not None}
        assert drawn == of_trial
        lines = json.loads(TimePlot(findings(study, made, {})).to_json())["data"]
        plotted = {
            int(line["name"].partition(":")[0]): colours.HUES.index(line["line"]["color"])
            for line in lines if "line" in line
        }  # fmt: skip
        assert plotted.items() <= of_trial.items()


def test_axes_fit_what_is_drawn():
    study = StudyConfig(epochs=3, grid={"learning_rate": tuple(i / 1000 for i in range(1, 15))})
    made = results_of(study)
    odd = [m._replace(train_accuracy=0.1) for m in made[0].history]
    low = scores.limits(made[10:], "accuracy", made[:10])[0]
    assert scores.limits(made[10:], "accuracy", [replace(made[0], history=tuple(odd))])[0] >= low
    assert scores.limits([replace(made[0], history=tuple(odd))], "accuracy")[0] < 0.1


def test_precision_recall_and_f1_are_those_of_the_matrix():
    matrix = np.array([[8, 2, 0], [4, 6, 0], [0, 0, 0]])
    one, two, none = recognition(matrix, ["one", "two", "none"])
    assert one == ("one", 10, pytest.approx(8 / 12), pytest.approx(0.8), pytest.approx(16 / 22))
    assert two.precision == pytest.approx(6 / 8)
    assert all(math.isnan(value) for value in none[2:])
