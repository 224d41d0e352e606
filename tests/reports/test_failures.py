"""What is said about trials that diverged: the advice holds for the results, whatever they are."""

from __future__ import annotations

import re

from fake_results import findings, history
from hypothesis import given
from hypothesis import strategies as st

from fmnist.config.results import TrialResult, results_csv
from fmnist.config.study import StudyConfig
from fmnist.reports import markdown
from fmnist.reports.failures import advice, reasons
from fmnist.reports.html.page import write_html

AXES = {
    "learning_rate": (1.0, 0.1, 0.5, 0.001),
    "batch_size": (100, 50, 500),
    "algorithm": ("adam", "adamw", "sgd"),
    "weight_decay": (0.0, 0.1),
    "seed": (0, 1, 2),
}
grids = st.lists(st.sampled_from([*AXES]), unique=True, max_size=3).flatmap(
    lambda keys: st.fixed_dictionaries(
        {key: st.integers(1, len(AXES[key])).map(lambda n, key=key: AXES[key][:n]) for key in keys}
    )
)


def results_where(study, failed):
    """The results of a study; those of which ``failed`` says so diverged."""
    return [
        TrialResult(n, point, "FAIL", (), reason="the loss was not finite in epoch 1")
        if failed(n, point)
        else TrialResult(n, point, "COMPLETE", ())
        for n, point in enumerate(study.points())
    ]


@st.composite
def studies(draw):
    """A study and its results; failures go with a value, with two values, or with nothing."""
    study = StudyConfig(grid=draw(grids))
    key = draw(st.sampled_from([*study.grid, None]))
    bad = draw(st.sets(st.sampled_from(study.grid[key]))) if key else set()
    lot = draw(st.sets(st.integers(0, study.size - 1)))
    mode = draw(st.sampled_from(["value", "both", "lot"]))
    rules = {
        "value": lambda n, point: key and point[key] in bad,
        "both": lambda n, point: key and point[key] in bad and n in lot,
        "lot": lambda n, point: n in lot,
    }
    results = results_where(study, rules[mode])
    kept = draw(st.sets(st.integers(0, study.size - 1))) if draw(st.booleans()) else ()
    return study, [result for result in results if not kept or result.number in kept]


def values_of(text, results, axis):
    """The values that a text names, of those that the trials have."""
    known = {result.point[axis] for result in results}
    if text.startswith(">= ") or text.endswith(" or more"):
        return {value for value in known if value >= float(re.sub("[^0-9.]", "", text))}
    if text.startswith("<= ") or text.endswith(" or less"):
        return {value for value in known if value <= float(re.sub("[^0-9.]", "", text))}
    named = set(re.split(", | or ", text))
    found = {value for value in known if str(value) in named}
    assert len(found) == len(named), text
    return found


def share(text, total):
    """How many trials a text says diverged."""
    words = {"none": 0, "the one": 1, "both": 2, "the trial": 1, "both trials": 2}
    if text.lower() in words:
        return words[text.lower()]
    return int(re.search("[0-9]+", text)[0])


def states(results, axis, values):
    return [r.state == "FAIL" for r in results if r.point[axis] in values]


@given(studies())
def test_the_advice_holds_for_the_results(case):
    study, results = case
    said, failed = advice(study, results), [r for r in results if r.state == "FAIL"]
    if not failed:
        assert said == ""
        return
    assert said.count(". ") == 0
    assert said.endswith(".")
    if len(failed) == len(results):
        assert re.match(r"(The only trial|Both trials|All \d+ trials) diverged, with ", said)
        return
    if whole := re.fullmatch(r"(.*) with (\w+) (.*) diverged; those with (.*) did not\.", said):
        who, axis, bad, good = whole.groups()
        bad, good = (values_of(text, results, axis) for text in (bad, good))
        assert states(results, axis, bad) == [True] * len(failed)
        assert share(who, len(failed)) == len(failed)
        assert not any(states(results, axis, good))
        assert bad | good == {r.point[axis] for r in results}
        return
    count, _, rest = said.removesuffix(".").partition(" trials diverged")
    assert count == f"{len(failed)} of {len(results)}"
    if rest.startswith("; "):  # nothing tells
        for axis, values in study.grid.items():
            for value in values if len(values) > 1 else ():
                assert len(set(states(results, axis, {value}))) in (0, 2)
        return
    parts = re.findall(r"(\d+ of the \d+|the one|both|all \d+|none) with (.*?)(?:, (?=[ntba])|$)",
                       rest.removeprefix(": "))  # fmt: skip
    axis, _, first = parts[0][1].partition(" ")
    named = set()
    for who, text in [(parts[0][0], first), *parts[1:]]:
        values = values_of(text, results, axis)
        found = states(results, axis, values)
        assert share(who, 0) == sum(found), said
        if " of the " in who:
            assert int(who.split()[-1]) == len(found)
        else:
            assert len(set(found)) == 1
        assert not named & values
        named |= values
    assert named == {r.point[axis] for r in results}


def test_the_advice_names_the_learning_rate_first():
    study = StudyConfig(grid={"batch_size": (100, 500), "learning_rate": (1.0, 0.5, 0.1, 0.01)})
    hot = results_where(study, lambda _, point: point["learning_rate"] >= 0.5)
    assert advice(study, hot) == (
        "All 4 trials with learning_rate >= 0.5 diverged; those with 0.1 or less did not."
    )
    two = results_where(study, lambda _, p: p["learning_rate"] == 1 or p["batch_size"] == 100)
    assert advice(study, two) == (
        "5 of 8 trials diverged: 1 of the 4 with batch_size 500, all 4 with 100."
    )


def test_reasons_are_grouped_and_name_their_trials():
    study = StudyConfig(grid={"seed": tuple(range(12))})
    results = results_where(study, lambda n, _: n)
    assert reasons(results) == [
        "11 trials (1, 2, 3, 4, 5, 6, 7, 8, ...) failed: the loss was not finite in epoch 1."
    ]
    assert reasons(results[:2]) == ["Trial 1 failed: the loss was not finite in epoch 1."]
    assert reasons(results[:1]) == []


def test_every_table_says_what_was_trained_and_why_it_failed(tmp_path):
    """The epoch of the failure is counted, so that the number agrees with the reason."""
    study = StudyConfig(epochs=5, grid={"learning_rate": (1.0, 0.1)})
    reason = "the loss was not finite in epoch 3"
    results = [
        TrialResult(0, {"learning_rate": 1.0}, "FAIL", history(2), reason=reason),
        TrialResult(1, {"learning_rate": 0.1}, "COMPLETE", history(5), 0.1, 0.9, 1.0),
    ]
    assert [result.epochs for result in results] == [3, 5]
    table = results_csv(results, ["learning_rate"]).splitlines()
    assert table[1].endswith(f",3,0.0,{reason}")
    found = findings(study, results, {})
    markdown.write_report(tmp_path, found, {})
    write_html(tmp_path, found)
    said = advice(study, results)
    for name in ("report.md", "report.html"):
        text = re.sub(r"\\|<wbr>", "", (tmp_path / name).read_text())
        assert f"failed: {reason}" in text
        assert said in text.replace("&gt;", ">"), name
