"""report.html: its numbers, its safety, its size, and how it behaves in a real browser."""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_results import CLASS_NAMES, findings, results_of
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fmnist.config.results import EpochMetrics, TrialResult, ranked, results_csv, winner
from fmnist.config.study import StudyConfig
from fmnist.functional.types import Split
from fmnist.reports import rows, words
from fmnist.reports.comparison import compare
from fmnist.reports.confusion import confusion_matrix
from fmnist.reports.findings import Outputs
from fmnist.reports.html import curves
from fmnist.reports.html.page import write_html
from fmnist.reports.html.winner import calibration, calibration_sentence
from fmnist.reports.words import TEST_WAS_SEEN, decimals

STUDY = StudyConfig(name="views", epochs=3)
NASTY = "</script><script>alert(1)</script>"


def examples(n=300):
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (n, 1, 28, 28), dtype=np.uint8))
    labels = torch.from_numpy(rng.integers(0, 10, n))
    logits = torch.from_numpy(rng.normal(size=(n, 10))).float()
    logits[torch.arange(n), labels] += 2.5
    return Split(images, labels), logits.softmax(1)


def written(tmp_path, study=STUDY, results=None, phases=None, **changes):
    results = results_of(study, fail=(1,)) if results is None else results
    test, probabilities = examples()
    given = {
        "facts": {"Command": "python -m fmnist.study", "Commit": ""},
        "test": test,
        "outputs": Outputs(probabilities, probabilities),
    }
    path = write_html(tmp_path, findings(study, results, **{**given, **changes}), phases)
    assert path == tmp_path / "report.html"
    return path.read_text(encoding="utf-8")


class Outline(HTMLParser):
    """Checks that tags nest, and keeps what the tests ask for."""

    VOID = frozenset({"meta", "link", "img", "wbr"})

    def __init__(self, page):
        super().__init__()
        self.open, self.attributes, self.ids, self.tables, self.text = [], [], [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *attr) for attr in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, *attr) for attr in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"line {self.getpos()}"

    def handle_data(self, data):
        if set(self.open) & {"td", "th"}:
            self.tables[-1][-1][-1] += data
        if not set(self.open) & {"style", "script"}:
            self.text.append(data)


def visible(page):
    return re.sub(r"\s+", " ", "".join(Outline(page).text))


def test_the_numbers_are_those_of_the_results(tmp_path):
    results = results_of(STUDY, fail=(1,))
    page = written(tmp_path, results=results)
    outline, best = Outline(page), winner(results, "validation_accuracy")
    assert outline.tables[0][0] == rows.table_header(STUDY)
    comparison, ordered = compare(STUDY, results, 5000), ranked(results, STUDY.metric)
    assert outline.tables[0][1:] == [
        rows.table_row(STUDY, result, result is best, comparison) for result in ordered
    ]
    text = visible(page)
    assert words.winner_sentence(STUDY, best, comparison, 300) in text
    assert words.noise_sentence(STUDY, comparison) in text
    assert words.protocol_sentences(STUDY) in text
    assert STUDY.to_toml().rstrip() in "".join(outline.text)
    (table,) = re.findall(r'download="views-results.csv" href="data:text/csv[^,]*,([^"]*)"', page)
    assert base64.b64decode(table).decode() == results_csv(results, [*STUDY.grid])
    assert "python -m fmnist.study" in text
    assert "Commit" not in text
    assert "failed: the loss was | NaN" in text
    assert f"{55_000 * 3 / 61:,.0f} training images per second" in text
    assert TEST_WAS_SEEN not in text
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_the_curves_carry_every_value(tmp_path):
    results = results_of(STUDY, fail=(1,))
    page = written(tmp_path, results=results)
    data = json.loads(re.search(r'id="curve-data">(.*?)</script>', page)[1])
    assert data["epochs"] == [1, 2, 3]
    for result, trial in zip(results, data["trials"], strict=True):
        for field in EpochMetrics._fields:
            wanted = [round(getattr(m, field), 4) for m in result.history]
            assert trial[field] == wanted + [None] * (3 - len(wanted))


def test_the_grid_shows_means_and_failures(tmp_path):
    grid = {"seed": (1, 2), "learning_rate": (0.1, 0.01), "batch_size": (100, 200, 300)}
    study = StudyConfig(name="views", epochs=3, grid=grid)
    results = results_of(study, fail=(0, 1, 7))
    page = written(tmp_path, study, results)
    found = [t for t in Outline(page).tables if t[1][0] == "learning_rate"]
    heat, brought = found
    assert brought[0][:3] == ["setting", "value", "over"]
    assert brought[1][-1] in ("better", "worse", "not told apart")
    assert heat[1] == ["learning_rate", "100", "200", "300"]
    for row in heat[2:]:
        for batch_size, text in zip((100, 200, 300), row[1:], strict=True):
            trials = [r for r in results if str(r.point["learning_rate"]) == row[0]
                      and r.point["batch_size"] == batch_size]  # fmt: skip
            values = [r.final.validation_accuracy for r in trials if r.state == "COMPLETE"]
            failed = f"{2 - len(values)} failed" if len(values) < 2 else ""
            tied = "tied" if text.endswith("tied") else ""
            assert text == (decimals(np.mean(values)) + tied + failed if values else "failed")
    assert "A cell is a mean over the seeds." in visible(page)


def test_seeds_have_mean_and_standard_deviation(tmp_path):
    study = StudyConfig(epochs=2, grid={"learning_rate": (0.1, 0.01), "seed": (1, 2, 3)})
    scores = [0.80, 0.81, 0.85, 0.90, 0.92]
    *good, last = results_of(study)
    results = [
        replace(r, history=(EpochMetrics(1, 0.5, 1, score),), test_accuracy=score - 0.01)
        for r, score in zip(good, scores, strict=True)
    ]
    results.append(replace(last, state="FAIL", history=(), reason="x"))
    page = written(tmp_path, study, results)
    (table,) = [t for t in Outline(page).tables if "n" in t[0]]
    # A configuration that fails with some seeds is behind one that never does.
    assert table[1][:5] == ["0.1", "0.8200", "± 0.0265", "0.8100", "± 0.0265"]
    assert table[1][6] == "3"
    assert table[1][-1] == "winner"
    assert table[2][:5] == ["0.01", "0.9100", "± 0.0141", "0.9000", "± 0.0141"]
    assert table[2][6] == "2 (1 failed)"
    assert "Mean and spread" not in written(tmp_path)  # no seeds in the grid


def test_the_winner_is_shown_on_the_test_set(tmp_path):
    test, probabilities = examples()
    page = written(tmp_path)
    matrix = confusion_matrix(test.labels, probabilities.argmax(1))
    (table,) = [t for t in Outline(page).tables if "predicted class" in t[0]]
    for index, row in enumerate(table[2:]):
        total = matrix[index].sum()
        assert row[0] == CLASS_NAMES[index]
        for count, text in zip(matrix[index], row[1:-1], strict=True):
            assert text == (f"{count}{count / total:.1%}" if count else "0")
        assert row[-1] == f"{matrix[index, index] / total:.1%}"
    assert words.confusion_sentences(matrix, CLASS_NAMES, "the winner") in visible(page)
    pictures = re.findall(r'<img src="data:image/png;base64,([^"]+)"[^>]*alt="test image (\d+)"',
                          page)  # fmt: skip
    assert len(pictures) > 6
    for encoded, number in pictures:
        with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
            assert (np.asarray(picture) == test.images[int(number), 0].numpy()).all()
        assert probabilities[int(number)].argmax() != test.labels[int(number)]


@given(st.integers(1, 200), st.integers(0, 2**32 - 1), st.integers(1, 20))
def test_calibration_is_its_definition(n, seed, bins):
    rng = np.random.default_rng(seed)
    chances, labels = rng.dirichlet([0.3] * 10, n), rng.integers(0, 10, n)
    found = calibration(chances, labels, bins)
    error = 0.0
    for index in range(bins):
        top = chances.max(1)
        inside = (top > index / bins) & (top <= (index + 1) / bins)
        assert found.counts[index] == inside.sum()
        if inside.any():
            right = (chances.argmax(1) == labels)[inside].mean()
            assert found.accuracy[index] == pytest.approx(right)
            assert found.confidence[index] == pytest.approx(top[inside].mean())
            error += inside.mean() * abs(right - top[inside].mean())
    assert found.error == pytest.approx(error)
    assert found.counts.sum() == n


def test_calibration_says_what_it_is():
    sure = np.full((4, 2), (1.0, 0.0))
    assert calibration(sure, [0, 0, 0, 0]).error == 0
    found = calibration(sure, [0, 0, 1, 1])
    assert found.error == 0.5
    assert calibration_sentence(found, "the winner") == (
        "On average the winner is 100.0% sure of its class, and right on 50.0% of the test "
        "images. The expected calibration error in 10 bins is 0.5000 (Guo et al., 2017): it is "
        "overconfident."
    )
    with pytest.raises(ValueError, match="at least one example"):
        calibration(np.zeros((0, 10)), [])


@given(st.lists(st.one_of(st.floats(0, 1), st.just(float("nan"))), max_size=30))
def test_a_path_has_a_point_a_value_and_gaps(values):
    x, drawn = range(len(values)), curves.path(range(len(values)), values, (-1, 31), (0, 1))
    places, at = [], (0, 0)
    for letter, first, second in re.findall(r"([Mlh])(-?\d+) ?(-?\d+)?", drawn):
        step = int(first), int(second or 0)
        if letter != "h":
            at = step if letter == "M" else (at[0] + step[0], at[1] + step[1])
            places.append(at)
    wanted = [(round(1000 * (i + 1) / 32), 1000 - round(1000 * v))
              for i, v in zip(x, values, strict=True) if v == v]  # fmt: skip
    assert places == wanted
    gaps = [key for key, run in itertools.groupby(values, lambda v: v == v)]
    assert drawn.count("M") == sum(gaps)


def odd_study(text):
    study = SimpleNamespace(
        name=text, grid={text: (text, f"{text}2"), "b<": ('"', "'")}, metric="validation_loss",
        direction="minimize", epochs=1, holdout=9,
        test=True, validation_is_test=False, validation_is_trained=False, keep="last",
        metric_window=1, size=4, validation_images=lambda *counts: 9,
        to_toml=lambda: f"name = {json.dumps(text)}\n",
    )  # fmt: skip
    return study, results_of(study, fail=(3,))


def test_untrusted_text_stays_text(tmp_path):
    odd = f"{NASTY} \"q\" 'a' &lt; <!-- <img src=x onerror=alert(2)> {{{{ 7 * 7 }}}}\x1b\u202e"
    study, results = odd_study(odd)
    results[3] = replace(results[3], reason=odd)
    facts = {odd: odd, "Storage": "mysql://me:secret@host/db"}
    page = written(
        tmp_path, study, results, classes=[odd] * 10, facts=facts, phases={odd: 2.0},
        storage=f"sqlite:///{odd}",
    )  # fmt: skip
    assert page.count("<script") == page.count("</script>") == 2  # the data and the program
    assert "<img src=x" not in page
    assert not set("\x1b\u202e") & set(page)
    assert "secret" not in page
    data = json.loads(re.search(r'id="curve-data">(.*?)</script>', page)[1])
    assert NASTY in data["trials"][0]["name"]
    outline = Outline(page)
    assert not [a for a in outline.attributes if a[1].startswith("on")]
    assert "49" not in outline.tables[0][0]
    assert visible(page).count(NASTY) > 10


def test_nothing_is_fetched(tmp_path):
    page = written(tmp_path)
    assert "http" not in page.replace("http-equiv", "")
    assert not re.search(r"@import|url\(|<iframe|<object|<base|srcset|<form", page)
    outline = Outline(page)
    for tag, name, value in outline.attributes:
        if name in ("src", "href", "xlink:href", "action", "poster"):
            assert value.startswith(("data:", "#")), (tag, value)
            assert not value.startswith("#") or value[1:] in outline.ids
    assert len(outline.ids) == len(set(outline.ids))


def large(epochs, size=600):
    study = StudyConfig(
        epochs=epochs,
        grid={
            "learning_rate": tuple(0.0001 * i for i in range(1, 11)),
            "weight_decay": (0.0, 0.1, 0.2),
            "seed": tuple(range(size // 30)),
        },
        optimizer=replace(STUDY.optimizer, algorithm="adamw"),
    )
    return study, results_of(study, fail=range(0, size, 50))


@pytest.mark.parametrize(("epochs", "trials"), [(25, 600), (300, 600), (3, 6000)])
def test_many_trials_are_quick_and_small(epochs, trials, tmp_path):
    study, results = large(epochs, trials)
    began = time.perf_counter()
    page = written(tmp_path, study, results)
    assert time.perf_counter() - began < 5
    assert len(page.encode()) < 3_000_000
    outline = Outline(page)
    assert len(outline.tables[0]) == 1 + min(trials, 2000)
    assert ("more rows are left out here" in page) == (trials > 2000)
    best = winner(results, study.metric)
    assert next(row for row in outline.tables[0] if row[-1] == "winner")[0] == str(best.number)
    data = json.loads(re.search(r'id="curve-data">(.*?)</script>', page)[1])
    assert any(trial["name"].endswith("(winner)") for trial in data["trials"][:10])
    assert (data["epochs"][0], data["epochs"][-1]) == (1, epochs)


def test_nothing_wins_where_nothing_was_held_out(tmp_path):
    study = StudyConfig(epochs=3, holdout=0, validation="train", grid={"seed": (0, 1, 2)})
    page = written(tmp_path, study, results_of(study))
    assert "in best/" in page
    page = re.sub(r"(?s)<style>.*?</style>|<tr class=\"winner\">", "", page)
    assert not re.search("(?i)winner|tied", re.sub(r"(?s)<script>.*?</script>", "", page))


@pytest.mark.parametrize("gone", ["winner", "test", "outputs"])
def test_parts_may_be_missing(gone, tmp_path):
    results = results_of(STUDY, range(6)) if gone == "winner" else None
    missing = {} if gone == "winner" else {gone: None}
    page = written(tmp_path, results=results, **missing)
    ids = Outline(page).ids
    assert {"results", "curves", "grid", "time", "run"} - set(ids) <= {"time"}
    assert not {"confused", "calibration"} & set(ids)
    assert ("No trial was completed" in page) == (gone == "winner")


def test_no_results_and_no_grid_make_a_page(tmp_path):
    page = written(tmp_path, results=[])
    assert 'id="curve-data"' not in page
    assert "There are none: no trial finished an epoch" in page
    single = StudyConfig(epochs=1, grid={})
    ids = Outline(written(tmp_path, single, results_of(single))).ids
    assert "grid" not in ids
    assert "curves" in ids
    bad = [TrialResult(0, {}, "FAIL", (EpochMetrics(*[float("nan")] * 4),), reason="NaN")]
    assert "failed: NaN" in written(tmp_path, single, bad)


def test_holdout_0_is_marked(tmp_path):
    study = StudyConfig(epochs=3, holdout=0, grid={"seed": (1, 2), "batch_size": (10, 20)})
    page = written(tmp_path, study)
    for part in page.split("<section")[1:]:
        name = re.search(r'id="(\w+)"', part)[1]
        assert (TEST_WAS_SEEN in part) == (name not in ("time", "run", "look")), name
    assert TEST_WAS_SEEN in page.split("<section")[0]


def test_the_same_results_make_the_same_bytes(tmp_path):
    assert written(tmp_path) == written(tmp_path)


def test_probabilities_must_fit_the_test_set(tmp_path):
    _, few = examples(10)
    with pytest.raises(ValueError, match="300 labels, but 10 rows"):
        written(tmp_path, outputs=Outputs(few, few))
    assert not list(tmp_path.iterdir())


# In a browser


class Browser:
    """Headless Chromium, spoken to in the DevTools protocol through a pair of pipes."""

    # Chromium reads from descriptor 3 and writes to 4.
    EXEC = """import fcntl, os, sys
a, b = (fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3])
os.dup2(a, 3), os.dup2(b, 4)
os.execvp(sys.argv[3], sys.argv[3:])"""

    def __init__(self, program, folder):
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        command = [
            program, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
            "--no-first-run", "--disable-dev-shm-usage", f"--user-data-dir={folder}", "about:blank",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.EXEC, str(theirs_in), str(theirs_out), *command],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._serial, self._read, self.events, self._session = 0, b"", [], {}
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method, **params):
        self._serial += 1
        message = {"id": self._serial, "method": method, "params": params, **self._session}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        answer = self._wait(lambda said: said.get("id") == self._serial)
        assert "error" not in answer, answer
        return answer["result"]

    def _wait(self, wanted, seconds=60):
        while True:
            while b"\0" not in self._read:
                assert select.select([self._from], [], [], seconds)[0], "Chromium is silent"
                part = os.read(self._from, 1 << 20)
                assert part, "Chromium has ended"
                self._read += part
            line, _, self._read = self._read.partition(b"\0")
            said = json.loads(line)
            self.events.append(said)
            if wanted(said):
                return said

    def open(self, path, width=1200, height=900, dark=False):
        self.events.clear()
        phone = width < 600
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=phone)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Page.navigate", url=path.resolve().as_uri())
        if not any(said.get("method") == "Page.loadEventFired" for said in self.events):
            self._wait(lambda said: said.get("method") == "Page.loadEventFired")

    def js(self, expression):
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def point(self, x, y):
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def press(self, key, code, text=""):
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key,
                      windowsVirtualKeyCode=code, **({"text": text} if text else {}))  # fmt: skip

    def picture(self):
        shot = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    @property
    def complaints(self):
        """What went to the console, what was thrown, and what was asked of anyone else."""
        self.js("0")
        loud = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        said = [e for e in self.events if e.get("method") in loud]
        asked = [e for e in self.events if e.get("method") == "Network.requestWillBeSent"
                 and not e["params"]["request"]["url"].startswith(("file:", "data:"))]  # fmt: skip
        return said + asked

    def close(self):
        os.close(self._to)  # Chromium ends with its pipe
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._from)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        assert not os.environ.get("CI"), "CI must have Chromium"
        pytest.skip("Chromium is not installed")
    browser = Browser(program, tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture
def shown(browser, tmp_path):
    """The report of a study of six trials, one of them failed, on a wide screen."""
    written(tmp_path, phases={"training": 300.0, "figures": 20.0})
    browser.open(tmp_path / "report.html")
    return browser


COLUMN = "[...document.querySelectorAll('#results tbody tr')].map(r => r.cells[{}].textContent)"
HEADS = "document.querySelectorAll('#results th[aria-sort]')"


def test_a_header_sorts_by_click_and_by_key(shown):
    column = rows.table_header(STUDY).index("validation accuracy")
    wanted = sorted(shown.js(COLUMN.format(column)), reverse=True)
    wanted = [text for text in wanted if text != "-"]
    assert shown.js(f"{HEADS}[{column}].getAttribute('aria-sort')") == "descending"
    assert shown.js(COLUMN.format(column)) == [*wanted, "-"]  # what failed stands last
    shown.js(f"{HEADS}[{column}].querySelector('button').click()")
    assert shown.js(COLUMN.format(column)) == [*wanted[::-1], "-"]
    shown.js(f"{HEADS}[1].querySelector('button').click()")
    shown.js(f"{HEADS}[{column}].querySelector('button').focus()")
    shown.press("Enter", 13, "\r")
    assert shown.js(COLUMN.format(column)) == [*wanted, "-"]  # the best first
    states = shown.js(f"[...{HEADS}].map(h => h.getAttribute('aria-sort'))")
    assert [state != "none" for state in states] == [i == column for i in range(len(states))]
    assert states[column] == "descending"
    loss = rows.table_header(STUDY).index("validation loss")
    shown.js(f"{HEADS}[{loss}].querySelector('button').click()")
    losses = [text for text in shown.js(COLUMN.format(loss)) if text != "-"]
    assert losses == sorted(losses)
    shown.js(f"{HEADS}[2].querySelector('button').click()")  # as numbers: 1000 after 500
    assert shown.js(COLUMN.format(2)) == ["100", "100", "500", "500", "1000", "1000"]
    assert not shown.complaints


def centre(browser, selector):
    return browser.js(
        f"(() => {{ const e = document.querySelector('{selector}'); "
        "e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect(); "
        "return [b.left, b.top, b.width, b.height]; })()"
    )


def test_pointing_shows_the_values_of_the_nearest_epoch(shown):
    left, top, width, height = centre(shown, "[data-kind=accuracy] .canvas")
    shown.point(left + 0.97 * width, top + 0.02 * height)
    tip = "document.querySelector('[data-kind=accuracy] .tip')"
    text = shown.js(f"{tip}.innerText")
    assert "epoch 3" in text
    best = winner(results_of(STUDY, fail=(1,)), STUDY.metric)
    assert decimals(best.final.validation_accuracy) in text
    assert decimals(best.final.train_accuracy) in text
    hot = "[...document.querySelectorAll('.panels .hot path')].length"
    assert shown.js(hot) == 4  # two lines in each panel
    shown.point(left + 0.03 * width, top + 0.5 * height)
    assert "epoch 1" in shown.js(f"{tip}.innerText")
    shown.point(5, 5)
    assert shown.js(f"{tip}.hidden")
    assert shown.js(hot) == 0
    assert not shown.complaints


def test_arrow_keys_and_legend_reach_the_curves(shown):
    shown.js("document.querySelector('[data-kind=loss]').focus()")
    shown.press("ArrowLeft", 37)
    tip = "document.querySelector('[data-kind=loss] .tip')"
    assert "epoch 2" in shown.js(f"{tip}.innerText")
    shown.press("Escape", 27)
    assert shown.js(f"{tip}.hidden")
    shown.js("document.querySelector('.legend button').click()")
    assert shown.js("document.querySelectorAll('.line.off').length") == 2
    pressed = "document.querySelector('.legend button').getAttribute('aria-pressed')"
    assert shown.js(pressed) == "false"
    shown.press("ArrowLeft", 37)
    shown.js("document.querySelector('.legend button').click()")
    assert shown.js("document.querySelectorAll('.line.off').length") == 0
    assert not shown.complaints


def test_dark_mode_is_dark(shown, tmp_path):
    light = shown.picture()
    shown.open(tmp_path / "report.html", dark=True)
    dark = shown.picture()
    means = [np.asarray(Image.open(io.BytesIO(p)).convert("L")).mean() for p in (light, dark)]
    assert means[0] > 200
    assert means[1] < 80


@pytest.mark.parametrize("width", [360, 768, 1600])
@pytest.mark.parametrize("kind", ["six", "seeds", "odd"])
def test_nothing_is_wider_than_the_screen(browser, tmp_path, width, kind):
    if kind == "odd":
        study, results = odd_study(NASTY + "x" * 60)
        written(tmp_path, study, results, phases={NASTY: 1.0}, facts={"C" * 50: "c" * 500})
    elif kind == "seeds":
        grid = {"seed": tuple(range(5)), "learning_rate": (0.1, 0.01), "hidden": ("9", "8-7")}
        written(tmp_path, StudyConfig(epochs=2, grid=grid))
    else:
        written(tmp_path)
    browser.open(tmp_path / "report.html", width=width)
    assert browser.js("document.documentElement.scrollWidth") <= width
    assert browser.js("document.documentElement.clientWidth") == width or width > 600
    assert browser.js("typeof alert") == "function"
    assert not browser.complaints


def test_600_trials_are_quick_in_the_browser(browser, tmp_path):
    study, results = large(25)
    written(tmp_path, study, results)
    began = time.perf_counter()
    browser.open(tmp_path / "report.html")
    left, top, width, height = centre(browser, "[data-kind=loss] .canvas")
    for share in (0.1, 0.4, 0.7, 0.9):
        browser.point(left + share * width, top + share * height)
    assert browser.js("document.querySelectorAll('[data-kind=loss] .tip tbody tr').length") >= 10
    browser.js(f"{HEADS}[5].querySelector('button').click()")
    assert time.perf_counter() - began < 10
    assert not browser.complaints


def test_print_shows_whole_tables_on_white(shown, tmp_path):
    shown.send("Emulation.setEmulatedMedia", media="print",
               features=[{"name": "prefers-color-scheme", "value": "dark"}])  # fmt: skip
    style = "getComputedStyle(document.querySelector('{}')).{}"
    assert shown.js(style.format("#results .scroll", "overflow")) == "visible"
    assert shown.js(style.format("nav", "display")) == "none"
    assert shown.js(style.format("body", "color")) == "rgb(38, 50, 61)"
    assert len(shown.send("Page.printToPDF", printBackground=True)["data"]) > 10_000
    shown.send("Emulation.setEmulatedMedia", media="", features=[])
