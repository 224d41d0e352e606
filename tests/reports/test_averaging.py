"""What the mean of several models gains: its members, its measures, and the report's section."""

from __future__ import annotations

import html

import pytest
import torch
from fake_results import findings, results_of

from fmnist.config.study import StudyConfig
from fmnist.data.fashion_mnist import Dataset, holdout_split
from fmnist.functional import ensembles
from fmnist.functional.types import Split
from fmnist.reports import averaging
from fmnist.reports.html.page import write_html
from fmnist.reports.markdown import write_report
from fmnist.reports.publish import average
from fmnist.reports.words import TEST_WAS_SEEN

RATES = {"learning_rate": (0.1, 0.2, 0.3)}
SEEDS = {**RATES, "seed": (0, 1, 2)}


def some(count):
    labels = torch.arange(count) % 10
    return Split(torch.zeros(count, 1, 28, 28, dtype=torch.uint8), labels)


def probabilities(result, split):
    """Of a trial: the same again, and different for each."""
    generator = torch.Generator().manual_seed(100 * len(split.labels) + result.number)
    guess = torch.rand(len(split.labels), 10, generator=generator)
    guess[torch.arange(len(guess)), split.labels] += 0.5
    return guess / guess.sum(1, keepdim=True)


def found_of(grid, fail=(), lost=(), **settings):
    study = StudyConfig(grid=grid, holdout=settings.pop("holdout", 20), **settings)
    found = findings(study, results_of(study, fail), {}, test=some(50), lost=lost)
    object.__setattr__(found, "dataset", Dataset(some(100), some(50), ""))
    return found


@pytest.mark.parametrize(
    ("grid", "fail", "lost", "holdout", "trials", "seeds"),
    [
        (RATES, (), (), 20, [2, 1, 0], False),  # the best first
        (RATES, (), (), 0, [0, 1, 2], False),  # nothing may choose
        (RATES, (2,), (), 20, [1, 0], False),
        (SEEDS, (), (), 20, [6, 7, 8], True),  # of the winner's configuration
        (SEEDS, (), (), 0, [6, 7, 8], True),
        (SEEDS, (7,), (), 20, [3, 4, 5], True),  # the best of those that all seeds completed
        ({"seed": (0, 1, 2)}, (1,), (), 20, [0, 2], True),
    ],
)
def test_members(grid, fail, lost, holdout, trials, seeds):
    found = average(found_of(grid, fail, lost, holdout=holdout), probabilities)
    assert (list(found.trials), found.seeds) == (trials, seeds)


def test_a_lost_file_is_no_member_and_one_model_is_no_ensemble():
    assert average(found_of(RATES, lost={2}), probabilities).trials == [1, 0]
    assert average(found_of(RATES, lost={1, 2}), probabilities) is None
    assert average(found_of(RATES, fail=(0, 1, 2)), probabilities) is None


def test_at_most_ten_are_averaged():
    many = {"learning_rate": tuple(i / 100 for i in range(1, 15))}
    found = average(found_of(many), probabilities)
    assert list(found.trials) == [*range(13, 3, -1)]


def test_measures_are_those_of_the_growing_mean():
    findings = found_of(RATES)
    found = average(findings, probabilities)
    order = [findings.results[number] for number in found.trials]
    held_out = holdout_split(findings.dataset.train, 20)[1]
    for split, measures in ((findings.dataset.test, found.test), (held_out, found.validation)):
        own = torch.stack([probabilities(result, split) for result in order])
        assert measures == ensembles.growing(own, split.labels, range(3))
    assert found.singles[0] == found.test[0].accuracy


@pytest.mark.parametrize("holdout", [0, 20])
def test_the_section_says_what_was_measured(holdout, tmp_path):
    findings = found_of(SEEDS, holdout=holdout)
    found = average(findings, probabilities)
    said = averaging.sentence(found)
    assert said.startswith("The mean of the probabilities of the 3 seeds")
    assert f"{found.test[-1].accuracy:.4f} (95% interval" in said
    text = write_report(tmp_path, findings, {}, found).read_text()
    page = html.unescape(write_html(tmp_path, findings, None, found).read_text())
    assert "## Averaged" in text
    assert '<section id="averaged">' in page
    for section in (text.partition("## Averaged")[2], page.partition('<section id="averaged">')[2]):
        assert (TEST_WAS_SEEN in section) == (holdout == 0)
    assert said in page
    header, rows = averaging.rows(found)
    assert ("held-out loss" in header) == bool(holdout)
    assert all(len(row) == len(header) for row in rows)
    assert f"{found.test[1].loss:.4f}" in text
    assert "Averaged" not in write_report(tmp_path, findings, {}).read_text()
