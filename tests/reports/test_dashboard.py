"""What optuna-dashboard shows, asked of the real server over HTTP and seen in a real browser."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import math
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import chromium
import numpy as np
import optuna
import pytest
from chromium import needs_chromium
from fake_results import CLASS_NAMES, findings, results_of
from hypothesis import given
from hypothesis import strategies as st

from fmnist.config.results import TrialResult, winner
from fmnist.config.study import StudyConfig
from fmnist.reports import figures, heatmap
from fmnist.reports.comparison import compare
from fmnist.reports.dashboard import mirror as dashboard
from fmnist.reports.dashboard import notes, stored
from fmnist.reports.dashboard.notes import MOST_LINES, TimePlot
from fmnist.reports.words import TEST_WAS_SEEN, duration
from fmnist.tuning import events, grid, storage

SHOTS = os.environ.get("FMNIST_SHOTS")  # a folder for the screenshots, for human eyes
STUDY = StudyConfig(name="made_up", epochs=10)
PASSWORD = "hush-1"
FACTS = {
    "Command": f"python -m fmnist.study --storage mysql://me:{PASSWORD}@host/db?password={PASSWORD}",
    "Machine": "a|b <i>*x* ![y](z.png)",
    "Device": "cpu",
    "Versions": "Python 3.11.7, fmnist 0.1.0, torch 2.11.0+cpu, torchvision 0.26.0, optuna 5.0.0, "
    "tensorboard 2.21.0, numpy 2.3.4",
    "Commit": "0123456789ab",
}


def made_up(trial, config=STUDY, bad=()):
    """A result for a trial that Optuna gave; better with its number, but for the last."""
    one = dataclasses.replace(config, grid={})
    (result,) = results_of(one, fail=(0,) if trial.number in bad else ())
    gain = -0.01 if trial.number == config.size - 1 else trial.number / 1000
    past = tuple(m._replace(validation_accuracy=m.validation_accuracy + gain)
                 for m in result.history)  # fmt: skip
    return dataclasses.replace(
        result, number=trial.number, point=trial.point, history=past, seconds=30 + 7 * trial.number
    )


def run(out, config=STUDY, bad=(), stop_after=None):
    """A study as fmnist runs it, but for the training; stopped after some trials."""
    study = storage.open_study(config, f"sqlite:///{out / 'study.db'}")
    done = grid.results(study, config)
    board = dashboard.DashboardMirror(study, config, provenance=FACTS, done=done, images=55_000)
    for trial in itertools.islice(grid.pending(study, config), stop_after):
        grid.begin([trial])
        board(started(trial))
        result = made_up(trial, config, bad)
        for epoch, metrics in enumerate(result.history, 1):
            grid.report(trial, metrics.validation_accuracy, epoch)
        board(events.TrialFinished(result, {}, {}))
        grid.tell(study, trial, result, config)
    return study


def started(trial):
    """A group of one trial."""
    return events.GroupStarted(
        index=0, total=1, trials=[trial], epochs=10, epochs_left=10, images=55_000, histories={},
        variant="",
    )  # fmt: skip


def draw(out, config, results):
    folder = out / "figures"
    figures.curves(results, config, folder / "curves.png")
    heatmap.draw(compare(config, results, 5000), config, folder / "heatmap.png")
    matrix = np.random.default_rng(0).integers(0, 30, (10, 10)) + 870 * np.eye(10, dtype=int)
    figures.confusion(matrix, CLASS_NAMES, folder / "confusion.png", "Test set", config)
    (out / "best").mkdir(exist_ok=True)
    (out / "best" / "params.safetensors").write_bytes(b"parameters")
    (out / "best" / "config.json").write_text("{}")


@contextlib.contextmanager
def served(out):
    orders = {"storage": f"sqlite:///{out / 'study.db'}", "artifacts": [str(out / "artifacts")]}
    with subprocess.Popen(
        [sys.executable, "-m", "fmnist.view.servers"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        server.stdin.write(json.dumps(orders | {"port": 0}).encode() + b"\n")
        server.stdin.flush()
        yield server.stdout.readline().decode().strip().rstrip("/")
        server.stdin.close()
    assert server.returncode == 0


def get(address):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(address, timeout=20) as reply:
        return reply.headers["Content-Type"], reply.read()


def ask(address, path):
    return json.loads(get(f"{address}/api/{path}")[1])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A study of six trials that was interrupted twice and published twice, and its server."""
    out = tmp_path_factory.mktemp("dashboard")
    run(out, bad=(2,), stop_after=2)
    study = run(out, bad=(2,))
    results = grid.results(study, STUDY)
    draw(out, STUDY, results)
    dashboard.publish(out, findings(STUDY, results, FACTS), study)
    before = study._storage.get_study_system_attrs(study._study_id), sorted(out.rglob("*"))
    dashboard.publish(out, findings(STUDY, results, FACTS), study)
    after = study._storage.get_study_system_attrs(study._study_id), sorted(out.rglob("*"))
    assert after == before
    with served(out) as address:
        yield address, out, results


def test_a_note_names_no_winner_where_nothing_was_held_out():
    study = StudyConfig(epochs=3, holdout=0, validation="train", grid={"seed": (0, 1, 2)})
    text = notes.trial(study, results_of(study)[0], "page", {})
    assert "Its network is in best/" in text
    assert "winner" not in text


def attributes(trial):
    return {attr["key"]: attr["value"] for attr in trial["user_attrs"]}


def test_the_dashboard_has_the_study_and_its_metric(site):
    address, *_ = site
    (summary,) = ask(address, "studies")["study_summaries"]
    assert summary["study_name"] == STUDY.name
    study = ask(address, "studies/1")
    assert study["objective_names"] == ["validation_accuracy"]
    assert ask(address, "meta")["artifact_is_available"]
    assert len(study["trials"]) == 6
    states = {trial["number"]: trial["state"] for trial in study["trials"]}
    assert states == {n: "Fail" if n == 2 else "Complete" for n in range(6)}


def test_the_dashboard_has_each_trials_learning_curve_and_attributes(site):
    address, _, results = site
    trials = {trial["number"]: trial for trial in ask(address, "studies/1")["trials"]}
    for result in results:
        curve = [point["value"] for point in trials[result.number]["intermediate_values"]]
        assert curve == [metrics.validation_accuracy for metrics in result.history]
        known = attributes(trials[result.number])
        assert known["device"] == "cpu"
        assert known["commit"] == "0123456789ab"
        assert known["versions"] == ("Python 3.11.7, fmnist 0.1.0, torch 2.11.0+cpu, optuna 5.0.0")
        assert float(known["seconds"]) == result.seconds
        if result.number == 2:
            assert known["fmnist:reason"] == "the loss was | NaN"
            assert "images_per_second" not in known
        else:
            assert float(known["test_accuracy"]) == result.test_accuracy
            assert float(known["test_loss"]) == result.test_loss
            speed = 55_000 * 10 / result.seconds
            assert float(known["images_per_second"]) == pytest.approx(speed, rel=1e-3)


def test_every_trial_has_a_note_and_that_of_the_winner_has_its_files(site):
    address, _, results = site
    study = ask(address, "studies/1")
    best = winner(results, STUDY.metric)
    assert best.number == 4
    for trial, result in zip(study["trials"], results, strict=True):
        note = trial["note"]["body"]
        assert trial["artifacts"] == []
        assert f"`parameters/{result.number}.safetensors`" in note
        assert all(str(value) in note for value in result.point.values())
        assert "[The note of the study](/dashboard/studies/1/note)" in note
        assert ("The winner of the study" in note) == (result is best)
        if result.number == 2:
            assert "**Failed**: the loss was \\| NaN. It had completed 1 epoch." in note
        else:
            assert f"Complete after 10 epochs: validation accuracy {result.final[3]:.4f}, " in note
        assert f"It took {duration(result.seconds)}, " in note
    ids = {artifact["filename"]: artifact["artifact_id"] for artifact in study["artifacts"]}
    note = study["trials"][best.number]["note"]["body"]
    for name, content in (("config.json", b"{}"), ("params.safetensors", b"parameters")):
        path = f"/artifacts/1/{ids[f'winner-{name}']}"
        assert f"]({path})" in note
        assert get(address + path)[1] == content
    (image,) = images(note)
    kind, body = get(address + image)
    assert (kind, body[:4]) == ("image/png", b"\x89PNG")


def images(note):
    return [line.partition("](")[2].rstrip(")")
            for line in note.splitlines() if line.startswith("![")]  # fmt: skip


def test_the_studys_note_shows_results_and_figures_that_are_served(site):
    address, out, _ = site
    study = ask(address, "studies/1")
    note = study["note"]["body"]
    shown = images(note)
    assert len(shown) == 3
    names = {artifact["artifact_id"]: artifact["filename"] for artifact in study["artifacts"]}
    for image, name in zip(shown, ("curves", "heatmap", "confusion"), strict=True):
        kind, body = get(address + image)
        assert kind == "image/png"
        assert body == (out / "figures" / f"{name}.png").read_bytes()
        assert names[image.rpartition("/")[2]] == f"study-{name}.png"
    assert note.count("](/dashboard/studies/1/trials?numbers=") == 6
    assert "the loss was \\| NaN" in note
    assert "epochs = 10" in note
    assert FACTS["Versions"] in note
    assert PASSWORD not in note
    assert PASSWORD not in (out / "study.db").read_bytes().decode("latin-1")


def test_the_plot_over_time_is_valid_and_knows_the_winner(site):
    address, _, results = site
    (plot,) = ask(address, "studies/1")["plotly_graph_objects"]
    figure = json.loads(plot["graph_object"])
    assert len(figure["data"]) == 5  # one failed
    (line,) = [line for line in figure["data"] if line["name"].endswith("(winner)")]
    assert line["x"][-1] == pytest.approx(winner(results, STUDY.metric).seconds)


def test_a_persons_words_are_kept_and_nothing_piles_up(tmp_path):
    from optuna_dashboard import get_note, save_note

    config = dataclasses.replace(STUDY, name="kept", grid={"seed": (0, 1)})
    study = run(tmp_path, config, stop_after=1)
    assert "It is running" in get_note(study)
    save_note(study, "My words.\n\n" + get_note(study) + "lost")
    study = run(tmp_path, config)
    results = grid.results(study, config)
    figures.curves(results, config, tmp_path / "figures" / "curves.png")
    for _ in range(2):
        dashboard.publish(tmp_path, findings(config, results, FACTS), study)
    note = get_note(study)
    assert note.startswith("My words.\n\n" + notes.MARK)
    assert note.count(notes.MARK) == note.count("# Study kept") == 1
    assert "It is running" not in note
    assert "lost" not in note
    assert len(images(note)) == 1
    files = len(list((tmp_path / "artifacts").iterdir()))
    (tmp_path / "figures" / "curves.png").write_bytes(b"drawn anew")
    (tmp_path / "figures" / "heatmap.png").write_bytes(b"new")
    dashboard.publish(tmp_path, findings(config, results, FACTS), study)
    assert len(list((tmp_path / "artifacts").iterdir())) == files + 1
    with served(tmp_path) as address:
        first, second = images(ask(address, "studies/1")["note"]["body"])
        assert get(address + first)[1] == b"drawn anew"
        assert get(address + second)[1] == b"new"
        request = urllib.request.Request(f"{address}/api{first}", method="DELETE")
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).close()
    dashboard.publish(
        tmp_path, findings(config, results, FACTS), study
    )  # it was deleted in the dashboard
    assert len(list((tmp_path / "artifacts").iterdir())) == files + 1


def test_notes_of_ended_trials_are_written_when_the_next_group_starts(tmp_path):
    from optuna_dashboard import get_note, save_note

    config = dataclasses.replace(STUDY, name="grouped", grid={"seed": (0, 1, 2)})
    study = run(tmp_path, config, stop_after=2)
    owners = [optuna.Trial(study, trial._trial_id) for trial in study.trials]
    assert [bool(get_note(owner)) for owner in owners] == [True, False, False]
    first = get_note(owners[0])
    assert "winner" not in first
    save_note(owners[0], f"My words.\n\n{first}")
    study = run(tmp_path, config)  # in another process, which writes the notes that are missing
    assert [bool(get_note(owner)) for owner in owners] == [True, True, False]
    results = grid.results(study, config)
    attrs = study._storage.get_study_system_attrs(study._study_id)
    key = f"dashboard:{owners[0]._trial_id}:note_ver"
    for best in (0, 1):  # the winner may change when failed trials are tried again
        found = dataclasses.replace(findings(config, results, FACTS))
        vars(found)["winner"] = results[best]
        dashboard.publish(tmp_path, found, study)
        won = ["The winner of the study" in get_note(owner) for owner in owners]
        assert won == [number == best for number in range(3)]
    dashboard.publish(tmp_path, found, study)
    assert get_note(owners[0]) == f"My words.\n\n{first}"
    after = study._storage.get_study_system_attrs(study._study_id)
    assert after[key] == attrs[key] + 2  # written when it won, and when it did not any more


def test_notes_of_many_trials_cost_one_read(tmp_path, monkeypatch):
    config = dataclasses.replace(STUDY, name="many", epochs=1, grid={"seed": tuple(range(60))})
    study = storage.open_study(config, f"sqlite:///{tmp_path}/study.db")
    grid.pending(study, config)
    reads, read = [], type(study._storage).get_study_system_attrs
    monkeypatch.setattr(
        type(study._storage), "get_study_system_attrs", lambda *a: reads.append(a) or read(*a)
    )
    stored.write_trials(study, config, results_of(config))
    assert len(reads) == 1
    attrs = read(study._storage, study._study_id)
    assert sum(key.endswith(":note_ver") for key in attrs) == 60


def test_the_note_and_the_plot_say_what_is_noise():
    config = dataclasses.replace(STUDY, grid={"learning_rate": (0.1, 0.2, 0.3, 0.4)}, holdout=5000)
    found = findings(config, results_of(config, fail=(3,)), {})
    said, wanted = (
        notes.results(found, {}, "/dashboard/1"),
        "None of the other 2 configurations",
    )
    assert wanted in said
    assert wanted in TimePlot(found).to_json()
    assert "importance and contours do not tell chance from effect" in said


def test_the_note_says_when_the_best_of_optuna_is_not_the_winner():
    config = dataclasses.replace(STUDY, grid={"seed": (0, 1, 2)})
    note = notes.results(findings(config, results_of(config), {}), {}, "/dashboard/studies/1")
    assert "The winner is single" in note
    assert "The dashboard's *best trial*, 2, is that of the best single value." in note
    alone = dataclasses.replace(STUDY, grid={"seed": (0,)})
    note = notes.results(findings(alone, results_of(alone), {}), {}, "/dashboard/studies/1")
    assert "single value" not in note


def test_without_the_extra_a_study_runs_and_says_so_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    config = dataclasses.replace(STUDY, name="bare", grid={"seed": (0, 1)})
    with caplog.at_level(logging.INFO, "fmnist"):
        study = run(tmp_path, config)
        dashboard.publish(tmp_path, findings(config, grid.results(study, config), FACTS), study)
    (record,) = [record for record in caplog.records if record.name.startswith("fmnist")]
    line = record.getMessage()
    assert line.endswith("-m pip install optuna-dashboard")
    assert line.count("optuna-dashboard") == 2
    assert [trial.user_attrs["device"] for trial in study.trials] == ["cpu", "cpu"]
    attrs = study._storage.get_study_system_attrs(study._study_id)
    assert not any(key.startswith("dashboard:") for key in attrs)


def test_of_many_trials_the_best_are_listed_and_drawn():
    config = dataclasses.replace(STUDY, name="many", grid={"seed": tuple(range(100))})
    results = results_of(config, fail=(3,))
    text = notes.results(findings(config, results, {}), {}, "/dashboard/studies/1")
    assert "The best 20 of 100 trials." in text
    assert text.count("trials?numbers=") == 20
    assert text.index("numbers=99)") < text.index("numbers=98)")
    figure = json.loads(TimePlot(findings(config, results, {})).to_json())
    assert len(figure["data"]) == MOST_LINES + 1
    assert len(figure["data"][0]["x"]) == 99 - MOST_LINES
    assert len(TimePlot(findings(config, results, {})).to_json()) < 20_000


def test_a_study_without_a_winner_has_a_note_and_a_plot(tmp_path):
    config = dataclasses.replace(STUDY, name="bad", grid={"seed": (0,)}, holdout=0)
    study = run(tmp_path, config, bad=(0,))
    dashboard.publish(tmp_path, findings(config, grid.results(study, config), FACTS), study)
    from optuna_dashboard import get_note

    assert "there is no winner" in get_note(study)
    assert TEST_WAS_SEEN in get_note(study)
    never = TrialResult(0, {"seed": 0}, "COMPLETE", (), seconds=math.nan)
    assert json.loads(TimePlot(findings(config, [never], {})).to_json())["data"][0]["x"] == []


@given(st.text(), st.text(), st.text())
def test_what_is_above_our_part_of_a_note_stays(above, ours, later):
    once = notes.with_kept(above, ours)
    assert once.startswith(above.rstrip().lstrip("\n"))
    again = notes.with_kept(once, later)
    assert again.startswith(above.rstrip().lstrip("\n"))
    assert again.endswith(f"{notes.MARK}\n\n{later}")
    assert notes.with_kept(again, later) == again


LOADED = """[...document.images].filter(i => i.alt && i.complete && i.naturalWidth > 0)
    .map(i => i.alt).join()"""


@pytest.fixture(scope="module")
def page():
    with chromium.opened() as page:
        yield page


def shot(page, name, height):
    if SHOTS:
        page.send("Emulation.setDeviceMetricsOverride", width=1400, height=height,
                  deviceScaleFactor=1, mobile=False)  # fmt: skip
        time.sleep(2)
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        page.screenshot(Path(SHOTS) / f"{name}.png")


@needs_chromium
def test_a_browser_shows_the_studys_note_with_its_figures(site, page):
    address, *_ = site
    page.goto(f"{address}/dashboard/studies/1/note")
    page.wait(lambda page: page.evaluate(LOADED).count(",") == 2)
    assert page.evaluate(LOADED) == "curves,heatmap,confusion"
    text = page.text()
    assert "Study made_up" in text
    assert "a|b <i>*x* ![y](z.png)" in text
    assert "fmnist writes" not in text
    assert page.evaluate("document.querySelectorAll('table a').length") == 6
    shot(page, "note", 2600)


@needs_chromium
def test_a_browser_shows_the_winners_note_with_its_curves(site, page):
    address, *_ = site
    page.goto(f"{address}/dashboard/studies/1/trials?numbers=4")
    assert page.wait(lambda page: "learning curves" in page.evaluate(LOADED))
    assert "The winner of the study" in page.text()
    shot(page, "trial", 1800)


@needs_chromium
def test_a_browser_shows_the_trials_and_the_plot_over_time(site, page):
    address, *_ = site
    page.goto(f"{address}/dashboard/studies/1/trials?numbers=2")
    assert page.wait(lambda page: "the loss was | NaN" in page.text())
    shot(page, "trials", 1000)
    page.goto(f"{address}/dashboard/studies/1")
    assert page.wait(lambda page: "Validation accuracy against time" in page.text())
    shot(page, "study", 2600)
    assert page.errors == []
