"""The command on a small real run: its output for pictures, and what it refuses."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process import call
from PIL import Image
from slice_study import CONFIG, dataset

from fmnist.data.fashion_mnist import CLASS_NAMES, Dataset
from fmnist.functional import cnn
from fmnist.functional.types import ModelConfig, Split
from fmnist.inference import pictures, trained
from fmnist.predict import command as predict
from fmnist.reports import publish, seen
from fmnist.rundir import models
from fmnist.study.run import run_study
from fmnist.utils import interpreter
from fmnist.utils.errors import UserError

TINY = replace(
    CONFIG,
    name="tiny",
    epochs=1,
    holdout=100,
    grid={"precision": ("float32", "bfloat16"), "learning_rate": (0.01, 0.001)},
)


@pytest.fixture(scope="module")
def real():
    whole = dataset()
    train, test = whole.train, whole.test
    return Dataset(Split(train.images[:700], train.labels[:700]), test, "a slice")


@pytest.fixture(scope="module")
def run(real, tmp_path_factory):
    """A finished study of four trials, two of them in bfloat16."""
    out = tmp_path_factory.mktemp("tiny")
    run_study(TINY, out, dataset=real)
    return out


@pytest.fixture
def broken(run, tmp_path):
    """A copy of the run to damage."""
    return shutil.copytree(run, tmp_path / "broken")


def image(real, number=0):
    """An image of the data set as an array."""
    return real.test.images[number, 0].numpy()


def saved(picture, path, **options):
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(
        path, **options
    )
    return path


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 40), st.integers(0, 2**32))
def test_probabilities_sum_to_one_and_an_ensemble_is_their_mean(run, count, seed):
    images = np.random.default_rng(seed).integers(0, 256, (count, 1, 28, 28), dtype=np.uint8)
    images = torch.from_numpy(images)
    trials = trained.complete_models(run)
    each = [trained.probabilities([trial], images) for trial in trials]
    together = trained.probabilities(trials, images)
    for found in (*each, together):
        assert found.shape == (count, 10)
        assert ((found >= 0) & (found <= 1)).all()
        torch.testing.assert_close(found.sum(dim=1), torch.ones(count, dtype=torch.float64))
    torch.testing.assert_close(together, torch.stack(each).mean(dim=0))
    best = trained.best_model(run)
    assert torch.equal(each[best.number], trained.probabilities([best], images))


def test_predictions_of_a_trial_equal_those_of_the_study(run, real):
    """The precision matters: bfloat16 gives other probabilities than float32."""
    for trial in trained.complete_models(run):
        params, state = models.load_model(trial.path, trial.model)
        compute = cnn.compute_dtype(trial.model)
        assert compute == (torch.bfloat16 if "bfloat16" in trial.label else None)
        found = trained.probabilities([trial], real.test.images)
        as_then = publish.outputs(params, state, real.test, trial.model)[0].argmax(dim=1)
        assert (found.argmax(dim=1) == as_then).double().mean() > 0.998  # but for ties
        exact = trial._replace(model=replace(trial.model, precision="float32"))
        same = torch.equal(found, trained.probabilities([exact], real.test.images))
        assert same == (compute is None)


def test_failed_trial_is_not_in_the_ensemble(broken):
    table = (broken / "results.csv").read_text().splitlines()
    table[2] = table[2].replace("COMPLETE", "FAIL")
    (broken / "results.csv").write_text("\n".join(table))
    models.model_path(broken, 1).unlink()
    assert [trial.number for trial in trained.complete_models(broken)] == [0, 2, 3]


def test_the_ensemble_of_a_study_with_seeds_is_the_winners_seeds(broken):
    assert len(trained.ensemble(broken)) == 4
    study = (broken / "study.toml").read_text()
    study = study.replace('precision = ["float32", "bfloat16"]', "seed = [3, 4]")
    (broken / "study.toml").write_text(study.replace("seed = 0\n", ""))
    lines = (broken / "results.csv").read_text().splitlines()
    lines[0] = lines[0].replace("precision", "seed")
    seeds = {"float32": "3", "bfloat16": "4"}
    lines[1:] = [re.sub("float32|bfloat16", lambda m: seeds[m[0]], line) for line in lines[1:]]
    (broken / "results.csv").write_text("\n".join(lines))
    members = trained.ensemble(broken)
    assert {trial.point["seed"] for trial in members} == {3, 4}
    assert len({trial.point["learning_rate"] for trial in members}) == 1
    assert trained.best_model(broken).number in [trial.number for trial in members]


def test_config_json_without_precision_means_float32(broken):
    path = broken / "best" / "config.json"
    about = json.loads(path.read_text())
    del about["model"]["precision"]
    path.write_text(json.dumps(about))
    assert trained.best_model(broken).model.precision == "float32"


def failing(capsys, *args):
    """Return the line of the error that ends the command."""
    with pytest.raises(UserError) as caught:
        predict.main([*map(str, args)])
    assert capsys.readouterr().out == ""
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


@pytest.fixture
def shirt(real, tmp_path):
    return saved(image(real), tmp_path / "shirt.png")


def test_folder_without_a_run_is_refused(run, shirt, tmp_path, capsys, monkeypatch):
    assert "holds no finished run" in failing(capsys, "--run", tmp_path, shirt)
    assert "holds no finished run" in failing(capsys, "--run", tmp_path, "--ensemble", shirt)
    monkeypatch.chdir(tmp_path)
    text = failing(capsys, shirt)
    assert text.startswith("there is no run in the folder runs; ")
    assert text.endswith(f"{interpreter.python()} -m fmnist.study")
    assert "nothing to predict" in failing(capsys, "--run", run)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe", "UTF-8"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[1, 2]", "no number"),
        (b'{"number": "2"}', "no number"),
        (b'{"number": 2}', "model"),
        (b'{"number": 2, "model": {"chanels": [4]}}', "channels"),
        (b'{"number": 2, "model": {"channels": "many"}}', "channels"),
        (b'{"number": 2, "model": {"channels": [4, 6], "kernel_size": 20}}', "kernel_size"),
        (b'{"number": 2, "model": {"channels": [4, 7], "hidden": [20]}}', "params.safetensors"),
        (b'{"number": 2, "model": {"channels": [4, 6], "hidden": [20, 9]}}', "params.safetensors"),
    ],
)
def test_damaged_config_json_gives_one_line(content, said, broken, shirt, capsys):
    (broken / "best" / "config.json").write_bytes(content)
    assert said in failing(capsys, "--run", broken, shirt)


def safetensors_of(header, data=b""):
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not parameters",
        safetensors_of({}),
        safetensors_of(b"{" * 100),
        struct.pack("<Q", 2**63) + b"{}",
        safetensors_of({"conv1.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
        safetensors_of(
            {"conv1": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"0" * 16
        ),
        safetensors_of(
            {"a\nb.c": {"dtype": "I64", "shape": [2], "data_offsets": [0, 16]}}, b"0" * 16
        ),
    ],
)
def test_damaged_parameters_give_one_line(content, broken, shirt, capsys):
    path = broken / "best" / "params.safetensors"
    path.write_bytes(content)
    assert str(path) in failing(capsys, "--run", broken, shirt)


def test_truncated_or_missing_parameters_give_one_line(broken, shirt, capsys):
    path = broken / "best" / "params.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    assert str(path) in failing(capsys, "--run", broken, shirt)
    path.unlink()
    assert str(path) in failing(capsys, "--run", broken, shirt)
    path.mkdir()
    assert str(path) in failing(capsys, "--run", broken, shirt)


def test_parameters_that_give_nan_give_one_line(broken, shirt, capsys):
    params, state = cnn.init(0, TINY.model)
    params["linear1"]["bias"] += float("nan")
    models.save_model(broken / "best" / "params.safetensors", params, state)
    assert "NaN" in failing(capsys, "--run", broken, shirt)


def test_parameters_of_another_dtype_give_one_line(broken, shirt, capsys):
    params, state = cnn.init(0, ModelConfig((4, 6), (20,)), dtype=torch.float64)
    models.save_model(broken / "best" / "params.safetensors", params, state)
    said = "conv1.bias is float64 [4], not float32 [4], and 15 more"
    assert said in failing(capsys, "--run", broken, shirt)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no trial is complete"),
        ("number,state\n0,COMPLETE\n", "no column 'precision'"),
        ("number,precision,learning_rate,state\n0,float32,0.5,COMPLETE\n", "line 2"),
        ("number,precision,learning_rate,state\nx,float32,0.01,COMPLETE\n", "line 2"),
        ("number,precision,learning_rate,state\n0,float99,0.01,COMPLETE\n", "line 2"),
        ("number,precision,learning_rate,state\n77,float32,0.01,COMPLETE\n", "77.safetensors"),
        ("number,precision,learning_rate,state\n0,float32,0.01,FAIL\n", "no trial is complete"),
    ],
)
def test_damaged_results_csv_gives_one_line(content, said, broken, shirt, capsys):
    (broken / "results.csv").write_text(content)
    assert said in failing(capsys, "--run", broken, "--ensemble", shirt)


def test_ensemble_needs_the_parameters_of_every_trial(broken, shirt, capsys):
    models.model_path(broken, 2).unlink()
    assert "2.safetensors" in failing(capsys, "--run", broken, "--ensemble", shirt)
    (broken / "study.toml").write_text("nonsense")
    assert "study.toml" in failing(capsys, "--run", broken, "--ensemble", shirt)


def test_predictions_of_test_images_are_marked_right_or_wrong(run, real, capsys):
    assert predict.main(["--run", str(run), "--test", "0,1", "--test", "2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    expected = trained.probabilities([trained.best_model(run)], real.test.images[:3]).tolist()
    for number, found in enumerate(document["predictions"]):
        assert (found["test"], found["label"]) == (number, int(real.test.labels[number]))
        assert found["probabilities"] == pytest.approx(expected[number], abs=1e-6)
        assert found["right"] == (found["likeliest"][0]["label"] == found["label"])
    assert predict.main(["--run", str(run), "--test", "0,1,2,3,4,5,6,7,8,9"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    for number, line in enumerate(lines):
        assert line.startswith(f"test image {number}  ")
        true = CLASS_NAMES[real.test.labels[number]]
        first = line.removeprefix(f"test image {number}").strip()
        assert line.endswith("right" if first.startswith(f"{true} ") else f"wrong: {true}")


@pytest.mark.parametrize("word", ["10000", "-1", "x", "", "1.5", "1e3", "9" * 5000, "٣"])
def test_bad_number_of_a_test_image_gives_one_line(word, run, capsys):
    assert predict.main(["--run", str(run), f"--test={word}", "--test=4", "--json"]) == 2
    out, err = capsys.readouterr()
    assert "from 0 to 9999" in err
    assert len(err.splitlines()) == 1
    assert [found["test"] for found in json.loads(out)["predictions"]] == [4]


def test_pictures_are_predicted_without_the_data(run, shirt, tmp_path, capsys):
    args = ["--run", str(run), str(shirt), "--test", "3", "--data", str(tmp_path / "nowhere")]
    assert predict.main(args) == 2
    out, err = capsys.readouterr()
    assert "nowhere" in err
    assert "shirt.png" in out


def command(*args, cwd=None, **env):
    """Run the command in a process, so that its output can have another encoding."""
    return subprocess.run(
        [sys.executable, "-m", "fmnist.predict", *map(str, args)],
        capture_output=True, timeout=120, cwd=cwd, check=False, env=os.environ | env,
    )  # fmt: skip


def test_command_predicts_good_pictures_and_reports_bad_ones(run, real, tmp_path):
    """Good and bad files with difficult names, and the default run."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "baseline").symlink_to(run)
    saved(255 - image(real, 1), tmp_path / "café.png")
    saved(Image.fromarray(image(real, 2)).resize((300, 300)).convert("CMYK"), tmp_path / "b.jpg")
    evil = os.fsencode(tmp_path) + b"/\x1b[31m\xff\n.png"
    with open(evil, "wb") as file:  # noqa: PTH123
        Image.fromarray(image(real, 3)).save(file, "PNG")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "short.png").write_bytes((tmp_path / "café.png").read_bytes()[:150])
    names = ["café.png", "missing.png", "b.jpg", "notes.txt", os.path.basename(os.fsdecode(evil))]  # noqa: PTH119
    done = command(*names, "short.png", "runs", cwd=tmp_path, PYTHONIOENCODING="ascii:strict")
    out, err = done.stdout.decode("ascii").splitlines(), done.stderr.decode().splitlines()
    assert done.returncode == 2
    assert [line.split(": ")[1] for line in err] == [
        "missing.png", "notes.txt", "short.png", "runs",
    ]  # fmt: skip
    assert all(line.startswith("error: ") for line in err)
    assert out[0].startswith("runs/baseline: trial ")
    assert [line.split()[0] for line in out[1:]] == [
        r"caf\xe9.png", "b.jpg", r"\x1b[31m\udcff\n.png",
    ]  # fmt: skip
    assert [line.endswith("inverted: it was dark on light") for line in out[1:]] == [
        True, False, False,
    ]  # fmt: skip
    assert all(line.count("%") == 3 for line in out[1:])


def test_command_prints_one_json_document(run, real, tmp_path):
    path = saved(255 - image(real, 1), tmp_path / "x.png")
    done = call(
        "predict", "--run", run, path, "nowhere.png", "--json", "--ensemble", "--invert", "no"
    )
    assert done.returncode == 2
    document = json.loads(done.stdout)
    assert document["run"] == str(run)
    assert document["trials"] == [0, 1, 2, 3]
    (found,), (error,) = document["predictions"], document["errors"]
    assert (found["image"], found["inverted"]) == (str(path), False)
    assert sum(found["probabilities"]) == pytest.approx(1)
    best = [found["probabilities"][entry["label"]] for entry in found["likeliest"]]
    assert best == sorted(found["probabilities"], reverse=True)[:3]
    assert [entry["class"] for entry in found["likeliest"]] == [
        CLASS_NAMES[entry["label"]] for entry in found["likeliest"]
    ]
    assert error["image"] == "nowhere.png"
    assert done.stderr.splitlines() == [f"error: {error['error']}"]


def test_wrong_arguments_give_one_line(tmp_path):
    for args in ([], ["--run", tmp_path, "x.png"], ["--test", "1"], ["--run"]):
        done = call("predict", *args, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert "error: " in done.stderr.splitlines()[-1]
    done = command("--help")
    assert done.returncode == 0
    assert b"--run RUN" in done.stdout


def test_a_run_among_the_pictures_is_refused_and_no_other_run_is_used(run, shirt, tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "baseline").symlink_to(run)
    odd = shutil.copytree(run, tmp_path / "it's mine")
    with contextlib.chdir(tmp_path):
        for args in ([shirt, odd], [odd, shirt], [odd]):
            text = failing(capsys, *args)
            assert text == f"{odd}: is a run and no picture: say --run {shlex.quote(str(odd))}"


@pytest.mark.parametrize("order", [1, -1])
def test_what_is_neither_a_picture_nor_a_run_is_named(order, run, shirt, tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "baseline").symlink_to(run)
    with contextlib.chdir(tmp_path):
        assert predict.main([str(shirt), "runs"][::order]) == 2
        out, err = capsys.readouterr()
        assert err == "error: runs: is a folder without pictures\n"
        assert out.startswith("runs/baseline: trial ")
        assert "shirt.png" in out
        for wrong, said in (
            ("runs/bselin", "did you mean --run runs/baseline?"),
            ("baselin", "did you mean --run runs/baseline?"),
            ("baseline.2", "did you mean --run runs/baseline?"),
            ("nosuchrun", "name a run by --run RUN"),
        ):
            text = failing(capsys, *[str(shirt), wrong][::order])
            assert text == f"{wrong}: there is no such picture or folder; {said}"


def test_a_mistyped_run_is_told_those_that_are_there(run, shirt, tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "baseline").symlink_to(run)
    with contextlib.chdir(tmp_path):
        for wrong, said in (("baselin", "did you mean"), ("nosuchrun", "there are")):
            text = failing(capsys, "--run", wrong, shirt)
            assert text.startswith(f"{wrong}: holds no finished run")
            assert f"; {said} runs/baseline" in text


def test_the_run_that_ended_last_is_used_where_none_is_named(run, shirt, tmp_path, capsys):
    for second, name in enumerate(("baseline", "b", "a")):
        shutil.copytree(run, tmp_path / "runs" / name)
        os.utime(tmp_path / "runs" / name / "best" / "config.json", (second, second))
    (tmp_path / "runs" / "going" / "checkpoints").mkdir(parents=True)
    with contextlib.chdir(tmp_path):
        assert predict.main([str(shirt)]) == 0
    assert capsys.readouterr().out.startswith("runs/a: trial ")


def test_a_folder_of_pictures_is_predicted(run, real, tmp_path, capsys):
    folder = tmp_path / "my pictures"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate(("b.PNG", "a.jpeg", "c.webp", "more/d.png", "._a.jpeg", "e.txt")):
        Image.fromarray(image(real, number)).save(folder / name, "PNG")
    assert predict.main(["--run", str(run), str(folder), str(folder / "e.txt"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["predictions"]
    names = ["a.jpeg", "b.PNG", "c.webp", "e.txt"]
    assert [item["image"] for item in found] == [str(folder / name) for name in names]


def photo(path, left=200):
    """A dark object on coloured paper."""
    shot = Image.new("RGB", (600, 400), (230, 200, 240))
    shot.paste((60, 20, 90), (left, 100, left + 150, 300))
    return saved(shot, path)


def test_show_draws_the_pictures_and_what_the_network_saw(run, real, shirt, tmp_path, capsys):
    sheet = tmp_path / "new" / "sheet.PNG"
    found = pictures.read(photo(tmp_path / "café\n.png"))
    args = ["--run", str(run), str(tmp_path / "café\n.png"), "--test", "5", "--show", str(sheet)]
    assert predict.main(args) == 0
    told = capsys.readouterr().out
    assert predict.main(args[:-2]) == 0
    assert capsys.readouterr().out == told
    with Image.open(sheet) as picture:
        colours = np.asarray(picture.convert("RGB")).astype(int)
    grey = colours.min(axis=2)
    for pixels in (found.pixels, image(real, 5)):
        expected = np.asarray(pixels).repeat(10, 0).repeat(10, 1)
        windows = np.lib.stride_tricks.sliding_window_view(grey, expected.shape)
        near = (windows[:, :, ::40, ::40] == expected[::40, ::40]).all((2, 3))
        assert any((windows[y, x] == expected).all() for y, x in np.argwhere(near))
    assert (np.abs(colours - (60, 20, 90)).max(axis=2) < 8).sum() > 70 * 90 * 0.8
    assert [*sheet.parent.iterdir()] == [sheet]
    before = sheet.read_bytes()
    assert predict.main([*args, "--invert", "no", "--json"]) == 0
    assert sheet.read_bytes() != before
    assert len(json.loads(capsys.readouterr().out)["predictions"]) == 2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sheet", r"must end in \.png"),
        ("sheet.jpg", r"must end in \.png"),
        ("folder.png", "is a folder"),
        ("shirt.png", "was not made by --show"),
    ],
)
def test_show_refuses_what_it_would_spoil(name, said, run, shirt, tmp_path, capsys):
    (tmp_path / "folder.png").mkdir()
    before = shirt.read_bytes()
    text = failing(capsys, "--run", run, shirt, "--show", tmp_path / name)
    assert text.startswith("--show ")
    assert re.search(said, text)
    assert shirt.read_bytes() == before


def test_show_to_where_no_file_can_be_is_one_line_after_the_predictions(run, shirt, tmp_path):
    for place in ("no/such/sheet.png", "shirt.png/sheet.png", f"{'x' * 300}.png", "\0.png"):
        done = call("predict", "--run", run, shirt, "--show", tmp_path / place)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: --show {tmp_path}/")
        assert ": cannot be written (" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_show_is_bounded_and_bad_pictures_are_not_in_it(run, real, shirt, tmp_path, capsys):
    sheet, folder = tmp_path / "sheet.png", tmp_path / "pictures"
    folder.mkdir()
    for number in range(seen.MOST + 5):
        saved(image(real, number), folder / f"{number:03}.png")
    (folder / "bad.png").write_text("no picture")
    args = ["--run", str(run), str(folder), "--test", "3", "--show", str(sheet)]
    assert predict.main(args) == 2
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == 1
    assert out.splitlines()[-1] == (
        f"{sheet}: the first {seen.MOST} of {seen.MOST + 6} pictures; 6 are left out"
    )
    with Image.open(sheet) as picture:
        assert max(picture.size) < 3200
    sheet.unlink()
    assert predict.main(["--run", str(run), str(folder / "bad.png"), "--show", str(sheet)]) == 2
    assert not sheet.exists()


def test_without_show_nothing_is_drawn(run, shirt):
    code = (
        "import sys; from fmnist.predict.command import main; "
        f"main(['--run', {str(run)!r}, {str(shirt)!r}]); "
        "assert 'fmnist.reports.seen' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
