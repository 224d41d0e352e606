"""The command on a small real run: what it measures, saves and refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from in_process import call
from PIL import Image
from slice_study import CONFIG, dataset

from fmnist.data import fashion_mnist
from fmnist.data.fashion_mnist import CLASS_NAMES, Dataset, holdout_split
from fmnist.ensemble import command
from fmnist.functional import ensembles as measured
from fmnist.functional.types import Split
from fmnist.inference import ensembles, trained
from fmnist.study.run import run_study
from fmnist.utils.errors import UserError

TINY = replace(
    CONFIG, name="tiny", epochs=1, holdout=100,
    grid={"learning_rate": (0.01, 0.001), "seed": (0, 1, 2)},
)  # fmt: skip


@pytest.fixture(scope="module")
def real():
    whole = dataset()
    train = Split(whole.train.images[:700], whole.train.labels[:700])
    return Dataset(train, whole.test, "a slice")


@pytest.fixture(scope="module")
def run(real, tmp_path_factory):
    out = tmp_path_factory.mktemp("tiny")
    run_study(TINY, out, dataset=real)
    return out


@pytest.fixture(autouse=True)
def slices(real, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "load", lambda folder: real)


def probabilities(run, numbers, images):
    known = {model.number: model for model in trained.complete_models(run)}
    return torch.stack([trained.probabilities([known[n]], images) for n in numbers])


def document(run, *options):
    done = call("ensemble", run, "--json", *options)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


@pytest.mark.parametrize("members", ["all", "seeds", "best:1", "best:4", "best:999", "greedy:5"])
def test_measures_are_those_of_the_means(run, real, members):
    found = document(run, "--members", members)
    held_out = holdout_split(real.train, 100)[1]
    for name, split in (("test", real.test), ("validation", held_out)):
        each = probabilities(run, found["trials"], split.images)
        for count, own in enumerate(found[name], 1):
            expected = measured.measures(each[:count].mean(0), split.labels)
            assert own == pytest.approx(expected._asdict(), rel=1e-9)
    distinct = list(dict.fromkeys(found["trials"]))
    table = {line.cells["number"]: line.cells for line in trained.read_results(run)[1]}
    assert found["test_accuracy_of_each"] == [table[n]["test_accuracy"] for n in distinct]
    scores = [table[n]["validation_accuracy"] for n in found["trials"]]
    if members == "all" or members.startswith("best"):
        assert scores == sorted(scores, reverse=True)
        assert len(scores) == {"best:1": 1, "best:4": 4}.get(members, 6)
    if members == "seeds":
        assert len({table[n]["learning_rate"] for n in found["trials"]}) == 1
        assert len(scores) == 3
    each = probabilities(run, distinct, real.test.images)
    assert found["disagreement"] == pytest.approx(measured.disagreement(each))


def test_figure_is_drawn(run, tmp_path):
    for members in ("all", "best:1"):
        document(run, "--members", members, "--plot", str(tmp_path / "x.png"))
        with Image.open(tmp_path / "x.png") as picture:
            assert picture.width > 1000


def test_seeds_are_the_members_by_default_and_the_table_has_a_line_for_each(run):
    done = call("ensemble", run)
    assert (done.returncode, done.stderr) == (0, "")
    first, header, *lines, sentence = done.stdout.splitlines()
    assert first == f"{run}: seeds"
    assert header.split()[:3] == ["members", "trial", "validation"]
    assert [line.split()[0] for line in lines] == ["1", "2", "3"]
    assert sentence.startswith("A single member has a test accuracy of 0.")


@pytest.mark.parametrize("members", ["seeds", "greedy:9"])
def test_saved_ensembles_predict_the_same(run, real, tmp_path, members):
    path = tmp_path / "ensemble.safetensors"
    found = document(run, "--members", members, "--save", str(path))
    saved = ensembles.read(path)
    assert saved.classes == CLASS_NAMES
    assert sum(member.weight for member in saved.members) == len(found["trials"])
    images = real.test.images[:50]
    expected = probabilities(run, found["trials"], images).mean(0)
    torch.testing.assert_close(trained.probabilities(saved.members, images), expected)
    done = call("predict", "--run", path, "--json", "--test", "0,7")
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    assert said["trials"] == [member.number for member in saved.members]
    rows = torch.tensor([p["raw_probabilities"] for p in said["predictions"]])
    torch.testing.assert_close(rows.double(), expected[[0, 7]], rtol=1e-5, atol=1e-6)


def refused(*arguments):
    with pytest.raises(UserError) as raised:
        command.main([str(a) for a in arguments])
    (line,) = str(raised.value).splitlines()
    return line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--save", "x.txt"], "must end in .safetensors"),
        (["--save", "here.safetensors"], "is there, and is no ensemble"),
        (["--plot", "x.jpg"], "must end in .png"),
    ],
)
def test_no_other_file_is_replaced(run, tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.safetensors").write_bytes(b"mine")
    assert said in refused(run, *options)
    assert (tmp_path / "here.safetensors").read_bytes() == b"mine"


def test_seeds_are_refused_without_seeds(run, real, tmp_path):
    run_study(replace(TINY, grid={"learning_rate": (0.01, 0.001)}), tmp_path, dataset=real)
    assert "has no trials of several seeds" in refused(tmp_path, "--members", "seeds")
    assert len(document(tmp_path)["trials"]) == 2


@pytest.mark.parametrize("word", ["", "best", "best:0", "best:x", "best:-1", "greedy:5000", "most"])
def test_other_words_for_the_members_are_refused(run, word):
    assert "must be all, seeds, best:K or greedy:K" in refused(run, f"--members={word or ' '}")


def test_other_data_are_refused(run, real, monkeypatch):
    others = Dataset(real.train, Split(real.test.images.flip(0), real.test.labels), "others")
    monkeypatch.setattr(fashion_mnist, "load", lambda folder: others)
    assert "they are not those of the run" in refused(run)


def test_run_without_held_out_images_chooses_none(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    text = (copy / "study.toml").read_text()
    (copy / "study.toml").write_text(text.replace("holdout = 100", "holdout = 0"))
    for members in ("best:2", "greedy:2"):
        assert "held out no images" in refused(copy, "--members", members)
    assert document(copy, "--members", "all")["validation"] == []


def test_damaged_files_give_one_line(run, tmp_path):
    path = tmp_path / "ensemble.safetensors"
    document(run, "--save", str(path))
    with pytest.raises(UserError, match="cannot be read as an ensemble"):
        ensembles.read(tmp_path / "missing")
    plain = tmp_path / "plain.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, plain)
    with pytest.raises(UserError, match="is no ensemble"):
        ensembles.read(plain)
    for about in (
        "",
        "[]",
        "{}",
        '{"members": [], "classes": []}',
        '{"members": [{}]}',
        "[" * 9999,
    ):
        safetensors.torch.save_file({"a": torch.zeros(1)}, plain, metadata={"fmnist": about})
        with pytest.raises(UserError, match="is no ensemble"):
            ensembles.read(plain)
    content = path.read_bytes()
    for end in (0, 7, 100, len(content) // 2):
        path.write_bytes(content[:end])
        with pytest.raises(UserError):
            trained.probabilities(ensembles.read(path).members, torch.zeros(1, 1, 28, 28))
