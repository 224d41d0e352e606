"""Bad input is refused quickly, in one line and in little memory: the short form of ``fuzz.py``."""

from __future__ import annotations

import gzip
import json
import logging
import random
import re
import string
import time

import bad_input
import fuzz
import pytest
from fuzz_kinds import Kind, Place
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fmnist.config import loading
from fmnist.config import study as studies
from fmnist.config.settings import SETTINGS, TABLES
from fmnist.data import fashion_mnist
from fmnist.inference import pictures, trained
from fmnist.rundir import models
from fmnist.rundir.snapshots import Generations
from fmnist.utils.errors import UserError

few = settings(max_examples=80, deadline=None)


def refusal(call, *args, **options):
    with pytest.raises(UserError) as caught:
        call(*args, **options)
    text = str(caught.value)
    assert text.isprintable()
    return text


def test_two_thousand_inputs_are_accepted_or_refused_cleanly(tmp_path):
    report = fuzz.fuzz(tmp_path, 2000)
    assert not report.wrong, str(report)
    for tally in report.tallies.values():
        assert tally.refused > 50
        assert tally.taken > 0


def careless(content, place, chance):
    """Commit each kind of fault."""
    match content:
        case b"lines":
            raise UserError("two\nlines") from None
        case b"bug":
            raise IndexError
        case b"stranger":
            (place.around / "stranger").touch()
        case b"memory":
            bytearray(1_200_000_000)
        case b"terabytes":
            bytearray(10**12)
        case b"slow":
            sum(range(10**7))
        case b"stuck":
            time.sleep(2)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", None),
        (b"lines", "its error is no printable line"),
        (b"bug", "IndexError"),
        (b"stranger", "it left"),
        (b"memory", "it took 1,2"),
        (b"terabytes", "MemoryError"),
        (b"slow", "it took 0."),
        (b"stuck", "it took more than 0.5 s"),
    ],
)
def test_fuzzer_detects_each_kind_of_fault(content, said, tmp_path, monkeypatch):
    """Otherwise a run without faults would prove nothing."""
    monkeypatch.setattr("fuzz.SECONDS", 0.05)
    monkeypatch.setattr("fuzz.STUCK", 0.5 if content == b"stuck" else 60)
    monkeypatch.setattr(UserError, "__str__", Exception.__str__)
    place = Place(tmp_path)
    kind = Kind(careless, [], lambda: iter(()), lambda valid, chance: b"")
    with fuzz.alarmed():
        wrong = fuzz.attempt(fuzz.Tally(), kind, "", content, place, random.Random(0))
    if content == b"memory":  # takes time, too
        wrong = [what for what in wrong if "MB" in what]
    if said is None:
        assert not wrong
    else:
        assert len(wrong) == 1
        assert said in wrong[0]


# Any tables with any values

words = st.text(max_size=12) | st.sampled_from([*SETTINGS, *TABLES, *bad_input.NAMES])
scalars = st.one_of(
    st.booleans(),
    st.integers(),
    st.floats().map(lambda x: float(f"{x:.3g}")),
    words,
)
values = st.recursive(scalars, lambda each: st.lists(each, max_size=3), max_leaves=6)
tables = st.dictionaries(st.sampled_from(TABLES) | words, st.dictionaries(words, values))


def toml(tables):
    """The text of a study file."""

    def written(value):
        if isinstance(value, list):
            return f"[{', '.join(map(written, value))}]"
        if isinstance(value, float):
            return repr(value)
        return json.dumps(value, ensure_ascii=True)

    return "\n".join(
        f"[{json.dumps(table)}]\n"
        + "".join(f"{json.dumps(k)} = {written(v)}\n" for k, v in e.items())
        for table, e in tables.items()
    )


def sound(load):
    """The input gives a study that survives a round trip, or one line."""
    try:
        study, said = load(), ""
    except UserError as error:
        study, said = None, str(error)
    assert said.isprintable()
    if study is not None:
        assert study.name.strip(string.ascii_letters + string.digits + "._-") == ""
        assert study.name[0] not in "._-"
        assert studies.StudyConfig.from_dict(study.to_dict()).to_toml() == study.to_toml()


@few
@given(tables)
def test_any_tables_give_a_study_or_one_line(tmp_path_factory, tables):
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(toml(tables), encoding="utf-8", errors="replace")
    sound(lambda: loading.load_study(path))


@few
@given(st.lists(st.text(max_size=30) | st.tuples(words, st.lists(words)), max_size=3))
def test_any_overrides_give_a_study_or_one_line(overrides):
    texts = [o if isinstance(o, str) else f"{o[0]}={','.join(o[1])}" for o in overrides]
    sound(lambda: loading.load_study(overrides=texts))


# Faults that the fuzzer and its attacks found earlier


@pytest.mark.parametrize(
    "text", ["a." * 20_000 + "a = 1", "[" + "'a' . " * 20_000 + "a]", "{a." * 9]
)
def test_toml_key_of_many_parts_is_refused(text, tmp_path):
    (tmp_path / "x.toml").write_text(text)
    assert "TOML" in refusal(loading.load_study, tmp_path / "x.toml")


def test_dots_outside_keys_are_accepted(tmp_path):
    """Names, comments and numbers also have dots."""
    axis = ", ".join(f"0.{i:03}" for i in range(1, 200))
    text = (
        f'# ...... e.g. 1.2.3.4\n[study]\nname = "{"a." * 32}"\n[grid]\nlearning_rate = [{axis}]\n'
    )
    (tmp_path / "x.toml").write_text(text)
    assert loading.load_study(tmp_path / "x.toml").size == 199


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a thread of 60", "at most 65,535 pixels a side"),
        ("a row of 60", "at most 65,535 pixels a side"),
        ("a jump over 16", "at most 65,535 pixels a side"),
        ("a WEBP of 64", "at most 32,000,000 pixels"),
        ("a JPEG of 64", "too many scans"),
        ("an MPO of 64", "too many scans"),
        ("two million pieces", "too many pieces"),
        ("two million comments", "too many pieces"),
        ("four million runs", "too many pieces"),
    ],
)
def test_picture_of_too_many_pixels_or_pieces_is_refused(name, said, tmp_path):
    content = next(content for n, content in bad_input.picture_attacks() if n.startswith(name))
    (tmp_path / "x").write_bytes(content)
    assert said in refusal(pictures.read, tmp_path / "x")


def test_ordinary_progressive_picture_is_read(tmp_path):
    Image.new("RGB", (4000, 3000), "white").save(tmp_path / "x.jpg", progressive=True)
    assert pictures.read(tmp_path / "x.jpg").inverted


@pytest.fixture
def run(tmp_path):
    """The folder of a run of two trials."""
    parameters = {f"parameters/{i}.safetensors": bad_input.parameters() for i in (0, 1)}
    files = bad_input.run_files() | {"best/params.safetensors": bad_input.parameters()} | parameters
    for name, content in files.items():
        path = tmp_path / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "run"


def test_config_json_of_a_huge_network_is_refused(run):
    attack = next(content for name, content in bad_input.run_attacks() if "3 GB" in name)
    (run / "best" / "config.json").write_bytes(attack.removeprefix(b"best/config.json"))
    best = trained.best_model(run)
    assert "is not of the model" in refusal(models.load_model, best.path, best.model)


def test_results_csv_with_too_many_trials_is_refused(run):
    assert [trial.number for trial in trained.complete_models(run)] == [0, 1]
    with (run / "results.csv").open("a") as file:
        file.write("1,0.001,FAIL,\n")
    assert "more trials than the 2 of the study" in refusal(trained.complete_models, run)


def test_too_large_files_of_a_run_are_refused(run):
    for path, read in (
        (run / "best" / "config.json", trained.best_model),
        (run / "results.csv", trained.complete_models),
    ):
        with path.open("wb") as file:
            file.truncate(10**10)  # sparse: it needs no disk
        assert "is too large" in refusal(read, run)


def test_parameters_with_too_long_a_header_are_refused(tmp_path):
    attack = next(c for name, c in bad_input.parameter_attacks() if "half a million" in name)
    (tmp_path / "x").write_bytes(attack)
    assert "its header is too long" in refusal(models.load_model, tmp_path / "x")


def test_gzip_file_of_too_many_parts_is_refused(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(b"") * 1_000_000)
    assert "more than 10,000 parts" in refusal(fashion_mnist.load, tmp_path)


def test_truncated_idx_header_is_refused():
    contents = {file.name: b"\0\0\x08" for file in fashion_mnist._FILES}
    assert "has the shape" in refusal(fashion_mnist._to_tensors, contents, "here")


def test_control_characters_in_file_names_are_escaped(tmp_path):
    odd = tmp_path / "a\x1b[2J\n\u202eb"
    odd.mkdir()
    for call in (
        pictures.read,
        trained.best_model,
        models.load_model,
        fashion_mnist.load,
        loading.load_study,
    ):
        assert r"a\x1b[2J\n\u202eb" in refusal(call, odd)
        assert "a\\x00b" in refusal(call, tmp_path / "a\0b")


@pytest.mark.parametrize("text", ["null", "7", '"text"', "[]", "[" * 100_000, '{"check": 1}'])
def test_previous_snapshot_is_used_if_the_description_is_wrong(text, tmp_path, caplog):
    kept = Generations(tmp_path)
    kept.save(bad_input.SNAPSHOT, {"epoch": 0})
    (tmp_path / "00000001.json").write_text(text)
    with caplog.at_level(logging.WARNING):
        assert kept.load().about == {"epoch": 0}
    assert re.search("00000001.json: damaged", caplog.text)
