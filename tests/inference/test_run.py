"""A run that is loaded: tables, winner, predictions from arrays, modules, what a notebook shows."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_once import FIGURES, one_pixel
from fake_results import results_of
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.torch import load_file
from strategies import tiny_data, tiny_study

import fmnist
from fmnist.config.results import EpochMetrics, TrialResult, history_csv, results_csv
from fmnist.config.study import StudyConfig
from fmnist.config.trial import OptimizerConfig
from fmnist.data import fashion_mnist, given
from fmnist.functional.types import ModelConfig
from fmnist.inference import trained
from fmnist.reference import Network
from fmnist.utils.errors import UserError

STUDIES = Path(__file__).parents[2] / "studies"
CONFIG = replace(
    tiny_study("loaded"),
    model=ModelConfig(channels=(2, 2), hidden=(5,)),
    grid={"learning_rate": (0.01, 1e30), "precision": ("float32", "bfloat16")},
)
IMAGES = tiny_data().test.images
NAMES = ("<b>one</b>", "two & 2", *"34567890")


def cells(run, name):
    """The lines of a table of a run as texts."""
    with (run / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", ["baseline", "original", "seeds", "reference"])
def test_committed_runs_are_read_as_they_were_written(name):
    run = fmnist.load_run(STUDIES / name)
    for table, file in ((run.results, "results.csv"), (run.history, "history.csv")):
        written = cells(run.path, file)
        assert list(table.columns) == list(written[0])
        found = table.map(lambda value: value if isinstance(value, str) else repr(value))
        assert found.to_dict("records") == written
    winner = re.search(r"(?:winner is trial|Trial) (\d+)", (run.path / "report.md").read_text())
    assert run.winner is not None
    assert run.winner.number == int(winner[1])
    assert run.classes == fashion_mnist.CLASS_NAMES
    assert f"winner {winner[1]} (" in repr(run)


def test_baseline_predicts_as_its_table_says():
    run, test = fmnist.load_run(str(STUDIES / "baseline")), fmnist.load().test
    winner = run.winner
    assert winner.configuration == {"learning_rate": 0.01, "batch_size": 100}
    assert winner.metrics["validation_accuracy"] == run.results["validation_accuracy"].max()
    right = run.predict(test.images).argmax(axis=1) == test.labels.numpy()
    assert right.mean() == pytest.approx(winner.metrics["test_accuracy"], abs=2e-4)
    same = run.predict(test.images[:5], trial=winner.number)
    assert np.array_equal(same, run.predict(test.images[:5]))
    with pytest.raises(UserError, match=r"parameters/3.safetensors: .*No such file") as raised:
        run.predict(test.images[:5], trial=3)
    assert str(raised.value).count("3.safetensors") == 1


SEVERAL = StudyConfig(
    name="several",
    epochs=3,
    optimizer=OptimizerConfig(algorithm="sgd", momentum=0.5),
    grid={
        "nesterov": (True, False),
        "hidden": ("120-60", "7", "none"),
        "precision": ("float32", "tf32"),
        "learning_rate": (1.0, 1e-05, 0.1 + 0.2),
        "seed": (0, 2**32 - 1),
    },
)
floats = st.floats(width=64, allow_infinity=True, allow_nan=True)


@st.composite
def some_results(draw):
    """Trials of :data:`SEVERAL` in some order, with any numbers."""
    points = draw(st.permutations(list(SEVERAL.points())))[: draw(st.integers(1, 6))]
    results = []
    for number, point in enumerate(points):
        past = draw(st.lists(st.builds(EpochMetrics, *[floats] * 4), max_size=3))
        state = draw(st.sampled_from(["COMPLETE", "FAIL"]))
        reason = draw(st.sampled_from(["", "the loss, was\n'NaN'", "NA"]))
        test = draw(st.tuples(floats, floats))
        results.append(TrialResult(number, point, state, tuple(past), *test, 0.25, reason))
    return results


@settings(max_examples=30, deadline=None)
@for_all(some_results())
def test_tables_hold_what_was_written(tmp_path_factory, results):
    out = tmp_path_factory.mktemp("any")
    (out / "study.toml").write_text(SEVERAL.to_toml())
    (out / "results.csv").write_text(results_csv(results, list(SEVERAL.grid)))
    (out / "history.csv").write_text(history_csv(results))
    run = fmnist.load_run(out)
    assert run.config == SEVERAL
    for row, result in zip(run.results.to_dict("records"), results, strict=True):
        point = {key: SEVERAL.settings[key].scalar(row[key]) for key in SEVERAL.grid}
        assert (point, row["number"], row["state"]) == (result.point, result.number, result.state)
        assert isinstance(row["hidden"], tuple)
        assert [type(row[key]) for key in ("nesterov", "precision", "seed")] == [bool, str, int]
        assert (row["epochs"], row["seconds"]) == (result.epochs, 0.2)
        assert row["reason"] == result.reason
        metrics = (*result.final, result.test_loss, result.test_accuracy)
        assert repr([row[name] for name in run.results.columns[7:13]]) == repr([*metrics])
    assert run.history.dtypes["epoch"] == run.history.dtypes["number"] == "int64"
    past = [row for r in results for row in [(r.number, *m) for m in r.history]]
    found = run.history.drop(columns="epoch").itertuples(index=False, name=None)
    assert repr(list(found)) == repr(past)
    assert "several" in repr(run)
    assert "several" in run._repr_html_()


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A finished run of four trials, of which two diverged."""
    folder = tmp_path_factory.mktemp("loaded") / "run"
    with pytest.MonkeyPatch.context() as patched:
        for module, name in FIGURES:
            patched.setattr(module, name, one_pixel(getattr(module, name)))
        fmnist.run_study(CONFIG, folder, dataset=tiny_data()._replace(classes=NAMES))
    return folder


@pytest.fixture(scope="module")
def run(out):
    return fmnist.load_run(out)


@pytest.fixture
def copy(out, tmp_path):
    """A copy of the run to damage."""
    return shutil.copytree(out, tmp_path / "<i>copy</i>")


def numbers(run, state):
    return run.results.number[run.results.state == state].tolist()


def test_predictions_of_a_trial_and_of_all(run):
    complete = numbers(run, "COMPLETE")
    assert len(complete) == 2
    each = {number: run.predict(IMAGES, trial=number) for number in complete}
    for model in trained.complete_models(run.path):
        assert np.array_equal(each[model.number], trained.probabilities([model], IMAGES).numpy())
    assert np.array_equal(run.predict(IMAGES), each[run.winner.number])
    together = run.predict(IMAGES, ensemble=True)
    assert (together.dtype, together.shape) == (np.float64, (30, 10))
    np.testing.assert_allclose(together, np.mean([*each.values()], axis=0))
    assert run.classes == NAMES


def test_trials_without_a_model_are_named(run):
    failed = numbers(run, "FAIL")[0]
    for trial, said in (
        (failed, f"trial {failed} failed"),
        (99, "no trial 99 .trials: 0, 1, 2, 3"),
    ):
        for use in (run.model, run.module, lambda n: run.predict(IMAGES, trial=n)):
            with pytest.raises(UserError, match=said):
                use(trial)
    with pytest.raises(ValueError, match="trial or ensemble"):
        run.predict(IMAGES, trial=0, ensemble=True)


WHITE = IMAGES.flip(0).contiguous()
SAME = {
    "array": IMAGES.numpy(),
    "without channel": IMAGES[:, 0],
    "channel last": IMAGES.numpy().transpose(0, 2, 3, 1),
    "int64": IMAGES.long(),
    "big-endian": IMAGES.numpy().astype(">u2"),
    "lists": IMAGES.tolist(),
    "reversed twice": WHITE.numpy()[::-1],
    "float32": IMAGES / 255,
    "float64": IMAGES.numpy() / 255,
    "with gradients": (IMAGES / 255).requires_grad_(),
}


@pytest.mark.parametrize("kind", SAME)
def test_images_with_one_meaning_give_the_same_probabilities(kind, run):
    expected = run.predict(IMAGES)
    np.testing.assert_allclose(run.predict(SAME[kind]), expected, rtol=0, atol=1e-6)


def test_half_precision_no_images_and_black_ones_are_predicted(run):
    assert run.predict((IMAGES / 255).bfloat16()).shape == (30, 10)
    assert run.predict((IMAGES.numpy() / 255).astype(np.float16)).shape == (30, 10)
    assert run.predict(IMAGES[:0]).shape == (0, 10)
    black = run.predict(np.zeros((2, 28, 28), np.uint8))
    assert np.array_equal(black, run.predict(torch.zeros(2, 28, 28)))


WRONG = {
    "normalised": (IMAGES / 127.5 - 1, r"these .torch.Tensor of .*. go from -1.0 to 1.0"),
    "255 as float": (IMAGES.float(), "integers from 0 to 255 or floats from 0 to 1; these"),
    "16 bits": (IMAGES.int() * 257, "go from 0 to 65535"),
    "NaN": (torch.full((1, 28, 28), float("nan")), "go from nan to nan"),
    "cut to 0 and 1": ((IMAGES > 99).int(), "no pixel above 1; white is 255"),
    "bool": (IMAGES > 99, "integers from 0 to 255 or floats from 0 to 1, not torch.Tensor"),
    "one image": (IMAGES[0, 0], r"\[n, 1, 28, 28\] or \[n, 28, 28\], not \[28, 28\]"),
    "flat": (IMAGES.flatten(1), r"not \[30, 784\]"),
    "coloured": (IMAGES.expand(30, 3, 28, 28), r"not \[30, 3, 28, 28\]"),
    "a path": ("shoe.png", "images must be .* not str"),
    "None": (None, "images must be .* not NoneType"),
    "ragged": ([[1], [1, 2]], "images must be"),
    "meta": (IMAGES.to("meta"), "images must be"),
    "complex": (IMAGES.to(torch.complex64), "images must be .*complex64"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_images_are_refused_in_one_line(kind, run):
    images, said = WRONG[kind]
    with pytest.raises(UserError, match=said) as raised:
        run.predict(images)
    assert len(str(raised.value).splitlines()) == 1


@for_all(
    arrays.arrays(
        st.one_of(arrays.scalar_dtypes(), arrays.unicode_string_dtypes()),
        st.one_of(
            arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3),
            st.just((2, 28, 28)),
        ),
    )
)
def test_any_array_is_images_or_refused(array):
    try:
        found = given.images(array)
    except UserError as error:
        assert str(error).startswith("images ")  # noqa: PT017
    else:
        assert found.shape == (len(array), 1, 28, 28)
        assert found.dtype in (torch.uint8, torch.float32)


def test_modules_and_functions_give_the_logits_of_the_predictions(run):
    images = IMAGES / 255
    for number in numbers(run, "COMPLETE"):
        module = run.module(number)
        model, params, state = run.model(number)
        assert isinstance(module, Network)
        assert not module.training
        narrow = run.results.precision[run.results.number == number].item() == "bfloat16"
        with torch.no_grad():
            logits = module(images)
            pure, same = model.apply(params, state, images, train=False)
        assert same is state or torch.equal(
            same["norm1"]["running_mean"], state["norm1"]["running_mean"]
        )
        tolerance = 0.1 if narrow else 1e-5
        torch.testing.assert_close(logits, pure, rtol=tolerance, atol=tolerance)
        expected = run.predict(IMAGES, trial=number)
        np.testing.assert_allclose(logits.double().softmax(1), expected, atol=tolerance)


def test_settings_of_the_caller_change_nothing(run):
    before = run.predict(IMAGES), run.module().linear1.weight
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), torch.autocast("cpu"), torch.device("meta"):
            after = run.predict(IMAGES), run.module().linear1.weight
    finally:
        torch.set_default_dtype(torch.float32)
    assert np.array_equal(before[0], after[0])
    assert torch.equal(before[1], after[1])


class Page(HTMLParser):
    """What is in a piece of HTML: tags, attributes, and the texts of cells."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.cells, self.bold = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        self.tags.append(f"/{tag}")

    def handle_data(self, data):
        if data.strip():
            if self.cells and self.tags[-1] in ("th", "td", "strong"):
                self.cells[-1] = data
            if self.tags[-1] == "strong":
                self.bold.append(data)


def test_notebook_shows_the_best_first_and_the_winner_bold(run):
    page = Page(run._repr_html_())
    assert not page.attributes, "no styles, links or scripts"
    columns = ["number", *CONFIG.grid, "validation_accuracy", "test_accuracy", "state"]
    assert page.cells[:6] == columns
    rows = [page.cells[i : i + 6] for i in range(6, 30, 6)]
    expected = run.results.sort_values(
        ["state", "validation_accuracy", "number"], ascending=[True, False, True]
    )
    complete = len(numbers(run, "COMPLETE"))
    shown = [int(row[0]) for row in rows[:complete]]
    assert shown == expected.number.tolist()[:complete]
    assert page.bold == ["loaded", *rows[shown.index(run.winner.number)]]
    assert rows[0][3] == f"{expected.validation_accuracy.iloc[0]:.4f}"
    assert rows[-1][-2:] == ["-", "FAIL"]
    assert "the validation images are the test images" in run._repr_html_()


def test_notebook_shows_ten_trials_of_many(tmp_path):
    config = replace(CONFIG, holdout=5, grid={"beta1": tuple(n / 64 for n in range(40))})
    written(tmp_path, config, results_of(config, fail={39}))
    run = fmnist.load_run(tmp_path)
    page = run._repr_html_()
    assert page.count("<tr>") == 11
    assert "and 30 more in" in page
    assert "test images" not in page
    assert run.winner.number == 38
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "config.json").write_text('{"number": 3, "model": {}}')
    page = fmnist.load_run(tmp_path)._repr_html_()
    assert page.count("<tr>") == 12
    assert "<td><strong>3</strong></td>" in page
    assert "and 29 more in" in page
    assert "40 trials, winner 38 (beta1=0.59375), validation_accuracy 0.7038" in repr(run)


def written(out, config, results):
    """Write what a run has at least."""
    (out / "study.toml").write_text(config.to_toml())
    (out / "results.csv").write_text(results_csv(results, list(config.grid)))


def test_a_run_of_failed_trials_has_no_winner(tmp_path):
    config = replace(CONFIG, grid={"seed": (0, 1)})
    written(tmp_path, config, results_of(config, fail={0, 1}))
    run = fmnist.load_run(tmp_path)
    assert run.winner is None
    assert "2 trials, none is complete" in repr(run)
    assert "none is complete" in run._repr_html_()
    with pytest.raises(UserError, match="no trial is complete"):
        run.predict(IMAGES)
    with pytest.raises(UserError, match="no trial is complete"):
        run.predict(IMAGES, ensemble=True)
    with pytest.raises(UserError, match=r"history.csv is missing"):
        run.history  # noqa: B018


def test_an_old_table_without_a_column_of_reasons_and_one_with_more_are_read(tmp_path):
    config = replace(CONFIG, grid={"seed": (0, 1)})
    written(tmp_path, config, results_of(config))
    path = tmp_path / "results.csv"
    path.write_text(path.read_text().replace(",reason", ",colour").replace("61.0,", "61.0,red"))
    table = fmnist.load_run(tmp_path).results
    assert table.colour.tolist() == ["red", "red"]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("0.01", "0.02", r"line \d: learning_rate = 0.02 is not in the grid"),
        ("COMPLETE", "COMPLETE,1,1,1,1,1,1", r"line \d: there are more cells than columns"),
        ("state", "stat", "has no column 'state'"),
        ("number", "nr", "has no column 'number'"),
        ("\n", "\nx", r"line \d: invalid literal"),
    ],
)
def test_a_damaged_table_gives_one_line(before, after, said, copy):
    path = copy / "results.csv"
    path.write_text(path.read_text().replace(before, after, 1))
    with pytest.raises(UserError, match=rf"results.csv.*{said}") as raised:
        fmnist.load_run(copy)
    assert len(str(raised.value).splitlines()) == 1


MISSING = {
    "a folder": (".", "holds no finished run .results.csv is missing"),
    "results.csv": ("results.csv", "holds no finished run .results.csv is missing"),
    "study.toml": ("study.toml", r"study.toml: cannot be read"),
}


@pytest.mark.parametrize("kind", MISSING)
def test_what_a_run_must_have_is_named(kind, copy):
    name, said = MISSING[kind]
    path = copy / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=said) as raised:
        fmnist.load_run(copy)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    "content", ["", "number,epoch\n0,1\n", "\0", history_csv([]) + "0,x,1,1,1,1\n"]
)
def test_a_damaged_history_is_named_and_the_rest_is_there(content, copy):
    (copy / "history.csv").write_text(content)
    run = fmnist.load_run(copy)
    with pytest.raises(UserError, match=r"history.csv: is damaged \(.+\)") as raised:
        run.history  # noqa: B018
    assert len(str(raised.value).splitlines()) == 1
    assert len(run.results) == 4


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "is not valid JSON"), (json.dumps({"number": 70, "model": {}}), "no trial 70")],
)
def test_a_damaged_description_of_the_winner_is_shown_and_escaped(content, said, copy):
    (copy / "best" / "config.json").write_text(content)
    run = fmnist.load_run(copy)
    with pytest.raises(UserError, match=said):
        run.winner  # noqa: B018
    assert said in repr(run)
    page = run._repr_html_()
    assert said in page
    assert "&lt;i&gt;copy" in page
    assert "<i>" not in page
    assert run.predict(IMAGES, trial=numbers(run, "COMPLETE")[-1]).shape == (30, 10)


def test_parameters_of_another_model_are_refused(copy):
    run = fmnist.load_run(copy)
    path = copy / "best" / "params.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    for use in (run.model, run.module, lambda: run.predict(IMAGES)):
        with pytest.raises(UserError, match=r"params.safetensors: cannot be read"):
            use()


def test_reference_network_of_any_settings_loads_strictly(run):
    for number in numbers(run, "COMPLETE"):
        path = run.path / "parameters" / f"{number}.safetensors"
        model = next(m.model for m in trained.complete_models(run.path) if m.number == number)
        assert isinstance(model, ModelConfig)
        Network(model).load_state_dict(load_file(path), strict=True)
