"""The report, the table on the terminal, and the progress display in its three forms."""

from __future__ import annotations

import io
import re
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_results import CLASS_NAMES, findings, history, no_images, results_of
from markdown_it import MarkdownIt
from rich.console import Console

from fmnist.config.results import EpochMetrics, TrialResult
from fmnist.config.study import StudyConfig
from fmnist.reports import commands, markdown, outcome, words
from fmnist.reports.comparison import compare
from fmnist.reports.findings import Outputs
from fmnist.reports.terminal import LiveProgress, PlainProgress, make_progress, spark
from fmnist.reports.words import TEST_WAS_SEEN, duration
from fmnist.tuning import events
from fmnist.utils import interpreter
from fmnist.utils.passwords import starred

STUDY = StudyConfig(name="views", epochs=3)
COLOUR = re.compile(r"\x1b\[[\d;]*m")


def written(tmp_path, study=STUDY, results=None, facts=None, pictures=None):
    results = results_of(study, fail=(1,)) if results is None else results
    figures = {"curves": "figures/curves.png", "my own": "figures/a b.png"}
    facts = {"Command": "python -m fmnist.study", "Commit": ""} if facts is None else facts
    labels = torch.arange(10).repeat_interleave(90)
    test = no_images()._replace(labels=torch.cat([labels, torch.full((37,), 6)]))
    predicted = torch.cat([labels, torch.tensor([0] * 30 + [2] * 7)])
    outputs = Outputs(*[torch.nn.functional.one_hot(predicted).float()] * 2)
    found = findings(study, results, facts, test, outputs=outputs)
    path = markdown.write_report(tmp_path, found, figures if pictures is None else pictures)
    return path.read_text(encoding="utf-8")


def test_report_says_everything(tmp_path):
    (tmp_path / "tensorboard").mkdir()
    text = written(tmp_path)
    assert text.startswith("# Study views\n")
    assert f"```toml\n{STUDY.to_toml().rstrip()}\n```" in text
    assert "| Command | python -m fmnist.study |" in text
    assert "Commit" not in text
    assert "held out from training: the validation accuracy on them" in text
    assert "never used to choose" in text
    assert "The winner is trial 5 (learning_rate=0.001,batch_size=1000)" in text
    assert "| **5** | **0.001** | **1000** |" in text
    assert r"failed: the loss was \| NaN" in text
    assert "![curves](figures/curves.png)" in text
    assert "![my own](figures/a%20b.png)\n\n*my own*" in text
    assert f"{commands.WHERE}\n\n```sh\npython -m fmnist.view .\n" in text
    assert "\ntensorboard --logdir tensorboard\n```" in text
    assert str(tmp_path) not in text, "the path of a machine"
    assert "optuna-dashboard" not in text  # there is no study.db here
    assert TEST_WAS_SEEN not in text
    assert [path.name for path in tmp_path.glob("report*")] == ["report.md"]


def test_report_is_a_table_with_every_trial(tmp_path):
    html = MarkdownIt("commonmark").enable("table").render(written(tmp_path))
    results, brought = html.split("Results")[1].split("What each setting brings")
    rows = re.findall(r"<tr>(.*?)</tr>", results, re.DOTALL)
    assert len(rows) == 1 + STUDY.size
    assert len({row.count("</t") for row in rows}) == 1
    rows = re.findall(r"<tr>(.*?)</tr>", brought.split("<h2>")[0], re.DOTALL)
    assert len(rows) == 1 + 2  # the failed trial leaves one batch size with a single pair


def test_training_on_all_images_is_told(tmp_path):
    study = StudyConfig(
        epochs=3, holdout=0, validation="train", keep="last", metric_window=2,
        grid={"seed": (0, 1, 2)},
    )  # fmt: skip
    text = written(tmp_path, study, results_of(study))
    assert "Nothing was held out, and nothing was chosen here" in text
    assert "here. The mean accuracy on the test set over 3 trials is 0.8750 (standard" in text
    assert "| sample accuracy |" in text
    assert "validation accuracy" not in text
    assert re.search(r"\bsample\b", terminal(table(study)))
    assert text.count("| **in best/** |") == 1
    assert "single" not in text
    assert not re.search("(?i)tied|winner|± 95%", text)
    assert TEST_WAS_SEEN not in text


def test_epochs_that_count_are_told(tmp_path):
    for options, said in (
        ({"keep": "best"}, "accuracy at its best epoch"),
        ({"metric_window": 2}, "accuracy over the last 2 epochs"),
        ({}, "accuracy after the last epoch"),
    ):
        text = written(tmp_path, StudyConfig(epochs=3, **options))
        assert said in text
        assert f"{said.removeprefix('accuracy ')} picks the winner" in text


def test_holdout_0_is_marked(tmp_path):
    study = StudyConfig(epochs=3, holdout=0)
    text = written(tmp_path, study)
    assert text.count(TEST_WAS_SEEN) == 4  # under the title, at the tables and the curves
    for known in ("validation_accuracy", "where valid", 'validation = "test"'):
        text = text.replace(known, "")
    assert "validation" not in text
    assert "The test set itself chose it" in text
    shown = terminal(table(study))
    assert TEST_WAS_SEEN in shown


def test_report_without_a_winner(tmp_path):
    text = written(tmp_path, results=results_of(STUDY, range(6)), pictures={})
    assert "No trial was completed" in text
    assert "What is confused" not in text
    assert "Figures" not in text
    assert "winner |" not in text


def test_untrusted_text_stays_text(tmp_path):
    odd = "a|b *c* _d_ <script>x</script> `e` [f](g) $h$ &lt; ~~i~~ \\ \x1b[2J\nnew"
    study = SimpleNamespace(
        name=odd, grid={odd: (odd,)}, metric="validation_loss", direction="minimize", epochs=1,
        holdout=9, test=True, validation_is_test=False, validation_is_trained=False, keep="last",
        metric_window=1, validation_images=lambda *counts: 9, to_toml=lambda: "name = '````'\n",
    )  # fmt: skip
    results = [TrialResult(0, {odd: odd}, "COMPLETE", history(1)),
               TrialResult(1, {odd: odd}, "FAIL", (), reason=odd)]  # fmt: skip
    text = written(tmp_path, study, results, {odd: odd}, {odd: "a.png"})
    assert "\x1b" not in text
    html = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)
    assert not re.findall(r"<(script|a |del|em>[cd]<)", html)
    assert html.count("<code") == 1
    seen = (
        "a|b *c* _d_ &lt;script&gt;x&lt;/script&gt; `e` [f](g) $h$ &amp;lt; ~~i~~ \\ \ufffd[2J new"
    )
    assert f"<h1>Study {seen}</h1>" in html
    assert html.count(f"<td>{seen}</td>") == 3  # twice as provenance, once as the failed point
    assert html.count(f"<strong>{seen}</strong>") == 1  # the winner's point
    assert f"<td>failed: {seen}</td>" in html


def test_confusion_sentences_are_computed():
    matrix = np.diag([90] * 10)
    assert words.confusion_sentences(matrix, CLASS_NAMES, "the winner") == (
        "The winner is right on all 900 test images."
    )
    matrix[6, 0], matrix[1, 2] = 30, 10
    assert words.confusion_sentences(matrix, CLASS_NAMES, "the winner") == (
        "The winner is wrong on 40 of the 940 test images (4.3%). Most often it takes Shirt for "
        "T-shirt/top (30 of 120, 25.0%) and Trouser for Pullover (10 of 100, 10.0%). It knows "
        "T-shirt/top best (100.0% right) and Shirt least (75.0%)."
    )
    none = np.zeros((10, 10), int)
    assert "0 test images" in words.confusion_sentences(none, CLASS_NAMES, "the winner")


def test_passwords_are_not_shown(tmp_path):
    url = "mysql://me:se/cr@et@host/db"
    assert commands.of_report(tmp_path, url) == ["optuna-dashboard 'mysql://me:***@host/db'"]
    assert "cr@et" not in "".join(commands.here(tmp_path, url))
    assert starred("sqlite:///a:b@c/study.db") == "sqlite:///a:b@c/study.db"
    assert "cr@et" not in written(tmp_path, facts={"Command": f"x --storage {url}"})


def table(study, fail=()):
    results = results_of(study, fail)
    return outcome.results_table(study, results, compare(study, results, 5000))


def test_commands_of_a_report_find_a_storage_that_was_named_from_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "runs" / "one"
    out.mkdir(parents=True)
    assert commands.of_report(out, "sqlite:///all.db") == [
        "optuna-dashboard sqlite:///../../all.db"
    ]
    assert commands.of_report(out, "sqlite:////all.db") == ["optuna-dashboard sqlite:////all.db"]


def terminal(thing, **options):
    console = Console(file=io.StringIO(), **{"width": 80, "force_terminal": True, **options})
    console.print(thing)
    return console.file.getvalue()


def test_results_table_marks_the_winner():
    shown = terminal(table(STUDY, fail=(1,)), color_system=None)
    rows = [line.split() for line in shown.splitlines() if line.strip()[:1].isdigit()]
    assert [row[0] for row in rows] == list("543201")
    assert [row[-1] for row in rows] == ["winner", "tied", "tied", "tied", "tied", "failed"]
    assert "0.001" in rows[0]
    narrow = terminal(table(STUDY), width=60)
    assert max(len(COLOUR.sub("", line)) for line in narrow.splitlines()) <= 60


def test_print_outcome_ends_with_the_commands(tmp_path):
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "study.db").touch()
    console = Console(file=io.StringIO())
    outcome.print_outcome(STUDY, results_of(STUDY), tmp_path, None, console)
    lines = console.file.getvalue().splitlines()
    assert lines[-3:] == [
        f"{interpreter.python()} -m fmnist.view {tmp_path}",
        f"{interpreter.program('tensorboard')} --logdir {tmp_path}/tensorboard",
        f"{interpreter.program('optuna-dashboard')} sqlite:///{tmp_path}/study.db",
    ]
    assert lines[-5].startswith("The winner is trial 5")
    assert lines[-4].startswith("None of the other 5 configurations can be told apart from it")


def play(progress, lanes=3):
    """Two groups of ``lanes`` trials and two epochs; the last lane fails."""

    def group(index):
        trials = [
            SimpleNamespace(number=n, point={"seed": n - index * lanes, "x": "[red]\x1b[2J"})
            for n in range(index * lanes, (index + 1) * lanes)
        ]
        left = (4 - 2 * index) * lanes
        progress(events.GroupStarted(index, 2, trials, 2, left, 1000, {}, ""))

    metrics = {n: EpochMetrics(1, 0.5, 1, 0.8 + n / 10_000) for n in range(lanes - 1)}
    progress.message("loading [bold]data[/]\nfrom a file")
    group(0)
    progress(events.EpochFinished(1, metrics, 10.0))
    progress(events.EpochFinished(2, metrics, 20.0))
    progress.trial(TrialResult(0, {"seed": 0}, "COMPLETE", history(2), 0.3, 0.85, 20))
    progress.trial(TrialResult(1, {"seed": 1}, "FAIL", (), reason="[red]NaN"))
    group(1)
    progress(events.EpochFinished(1, {n + lanes: m for n, m in metrics.items()}, 5.0))


def test_quiet_says_nothing(capsys):
    with make_progress(True) as progress:
        play(progress)
    assert capsys.readouterr() == ("", "")


def test_plain_lines_are_flushed_and_literal(monkeypatch):
    class File(io.StringIO):
        def flush(self):
            flushed.append(self.getvalue().count("\n"))

    flushed = []
    with make_progress(False, Console(file=File(), width=40)) as progress:
        assert isinstance(progress, PlainProgress)
        play(progress)
    lines = progress.console.file.getvalue().splitlines()
    assert lines == [
        "loading [bold]data[/] from a file",
        "group 1/2: 3 trials, 2 epochs",
        "group 1/2 epoch 1/2: validation accuracy 0.8000 to 0.8001 (seed=1,x=[red]\ufffd[2J), "
        "1 failed, 300 images/s, 0.0 s passed, 30 s left",
        "group 1/2 epoch 2/2: validation accuracy 0.8000 to 0.8001 (seed=1,x=[red]\ufffd[2J), "
        "1 failed, 300 images/s, 0.0 s passed, 20 s left",
        "trial 0 seed=0: validation accuracy 0.8000, test accuracy 0.8500, 20 s",
        "trial 1 seed=1: failed, [red]NaN",
        "group 2/2: 3 trials, 2 epochs",
        "group 2/2 epoch 1/2: validation accuracy 0.8000 to 0.8001 (seed=1,x=[red]\ufffd[2J), "
        "1 failed, 600 images/s, 0.0 s passed, 5.0 s left",
    ]
    assert set(range(1, len(lines) + 1)) <= set(flushed)


@pytest.mark.parametrize(
    ("held_out", "said"),
    [
        ("sample", "sample accuracy 0.8000, test accuracy 0.8500"),
        ("test", "test accuracy 0.8500"),
    ],
)
def test_lines_name_what_stands_for_validation(held_out, said):
    with make_progress(False, Console(file=io.StringIO())) as progress:
        progress.held_out = held_out
        play(progress)
    text = progress.console.file.getvalue()
    assert "validation" not in text
    assert f"epoch 1/2: {held_out} accuracy 0.8000 to 0.8001" in text
    assert f"trial 0 seed=0: {said}, 20 s" in text


def test_plain_is_chosen_for_a_log_even_with_colours_forced(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert isinstance(make_progress(False), PlainProgress)


def test_a_log_that_lacks_a_letter_does_not_end_the_study():
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, "ascii")
    PlainProgress(Console(file=file)).message("服装")
    assert raw.getvalue() == b"\\u670d\\u88c5\n"


@pytest.mark.parametrize("no_color", ["", "1"])
def test_live_display_puts_the_terminal_back(no_color, monkeypatch):
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm-256color")
    console = Console(file=io.StringIO(), width=60, height=24, force_terminal=True)
    threads = threading.active_count()
    progress = make_progress(False, console)
    assert isinstance(progress, LiveProgress)

    def study():
        play(progress)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), progress:
        study()
    shown = console.file.getvalue()
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
    until = time.monotonic() + 5  # rich tells its thread to end and does not wait for it
    while threading.active_count() > threads and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() == threads
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown)
    assert "\x1b" not in plain
    assert "loading [bold]data[/] from a file" in plain
    assert "group 2/2, epoch 1/2, 600 images/s" in plain
    assert re.search(r"4 +seed=1,x=\[red\]\ufffd\[2J +0\.8001", plain)
    assert re.search(r"5 +seed=2,x=\[red\]\ufffd\[2J +failed", plain)
    coloured = re.findall(r"\x1b\[(?:\d+;)*(?:3|9)\d(?:;\d+)*m", shown)
    assert bool(coloured) == (not no_color)


def test_live_display_of_hundreds_fits():
    console = Console(file=io.StringIO(), width=60, height=16, force_terminal=True)
    progress = LiveProgress(console)
    play(progress, lanes=600)
    console.file.truncate(0)
    console.print(progress.render())
    lines = COLOUR.sub("", console.file.getvalue()).lstrip("\0").splitlines()
    assert len(lines) < console.height
    assert max(map(len, lines)) <= 60
    assert lines[-1] == "... and 591 more"
    # The best are shown where not all can be.
    assert [line.split()[0] for line in lines if "seed" in line][:2] == ["1198", "1197"]


@pytest.mark.parametrize(("width", "room"), [(100, True), (60, False)])
def test_live_display_draws_the_lanes_where_there_is_room(width, room):
    console = Console(file=io.StringIO(), width=width, height=24, force_terminal=True)
    progress = LiveProgress(console)
    play(progress)
    console.file = io.StringIO()
    console.print(progress.render())
    lines = COLOUR.sub("", console.file.getvalue()).splitlines()
    assert max(map(len, lines)) <= width
    assert any("\N{FULL BLOCK}" in line for line in lines) == room


def continued(progress, epoch=2, lanes=3):
    """A group that an earlier run has brought to an epoch, and steps of the next one."""
    trials = [SimpleNamespace(number=n, point={"seed": n}) for n in range(lanes)]
    past = {n: history(epoch, 0.8 + n / 100) for n in range(lanes)}
    past[lanes - 1] = history(max(epoch - 1, 0))  # it failed
    progress(events.GroupStarted(
        1, 3, trials, 4, 2 * lanes, 1000, past, "",
        epochs_all=8 * lanes, epoch=epoch, examples=500, seconds=9.0,
    ))  # fmt: skip


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("height", [12, 40])
def test_live_display_of_a_continued_study_begins_where_it_was(width, height):
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True)
    progress = LiveProgress(console)
    continued(progress)
    progress(events.BatchesTrained(2, 600, 10.0))
    progress(events.BatchesTrained(2, 900, 70.0))  # 900 images of three lanes a minute
    console.print(progress.render())
    shown = COLOUR.sub("", console.file.getvalue())
    lines = shown.splitlines()
    assert lines[0] == "group 2/3: 3 trials, continuing after epoch 2 of 4"
    assert lines[1] == "group 2/3, epoch 2/4, 15 images/s"
    # Of 24 epochs of one trial, 18 were done; 0.3 of 3 lanes' third epoch in 60 s.
    assert re.fullmatch(r"━+[╸╺]?━* +0\.0 s passed, (3 min 40|3 min 39) s left ?", lines[2])
    assert re.search(r"0 +seed=0 +0\.7000", shown)
    assert re.search(r"2 +seed=2 +failed", shown)
    assert ("▁" in shown) == (width >= 72)
    assert max(map(len, lines)) <= width
    assert len(lines) < height


def test_live_bar_moves_within_an_epoch():
    console = Console(file=io.StringIO(), width=80, height=24, color_system="truecolor",
                      force_terminal=True)  # fmt: skip
    progress, bars = LiveProgress(console), []
    play(progress)
    for examples in (0, 250, 500, 1000):
        progress(events.BatchesTrained(1, examples, 5.0 + examples / 100))
        console.file = io.StringIO()
        console.print(progress.render())
        bars.append(console.file.getvalue().splitlines()[1])
    drawn = [re.search(r"m(━+)", bar)[1] for bar in bars]  # the part in the first colour
    assert sorted({len(part) for part in drawn}) == [len(part) for part in drawn]


def test_plain_log_says_where_a_study_continues_and_nothing_of_batches():
    progress = PlainProgress(Console(file=io.StringIO()))
    continued(progress)
    progress(events.BatchesTrained(2, 600, 10.0))
    continued(progress, epoch=0)
    assert progress.console.file.getvalue().splitlines() == [
        "group 2/3: 3 trials, continuing after epoch 2 of 4",
        "group 2/3: 3 trials, continuing within epoch 1 of 4",
    ]


def test_sparks():
    assert spark([0.1, 0.5, 0.9], 0.1, 0.9) == "▁▅█"
    assert spark([0.5, 0.5], 0.5, 0.5) == "▁▁"
    assert not spark([], 0, 1)


def test_durations():
    spans = {0.04: "0.0 s", 9.96: "10 s", 59.4: "59 s", 59.6: "1 min 00 s", 3661: "1 h 01 min"}
    assert {seconds: duration(seconds) for seconds in spans} == spans
    assert duration(float("nan")) == "-"
