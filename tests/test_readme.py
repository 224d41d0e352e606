"""The examples of the README work, and what it and other pages link to exists."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
from in_process import call

from fmnist.config import loading
from fmnist.ensemble import command as ensemble
from fmnist.inference import export
from fmnist.predict import command as predict
from fmnist.view import command as view

README = Path(__file__).parent.parent / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_example_prints_the_accuracy_of_each_lane(capsys):
    code, *_ = blocks("python")
    assert len([line for line in code.splitlines() if line]) == 6, "it is said to be six lines"
    exec(compile(code, "README.md", "exec"), {})
    found = ast.literal_eval(capsys.readouterr().out)
    assert list(found) == [0.01, 0.003, 0.001, 0.0003]
    assert all(0.75 < accuracy < 0.95 for accuracy in found.values())


def test_a_run_is_used_as_shown(tmp_path):
    _, whole, alone = blocks("python")
    if any(importlib.util.find_spec(name) is None for name in export.PACKAGES):
        whole = "\n".join(line for line in whole.splitlines() if "onnx" not in line)
    for block in (whole, alone):
        assert "runs/baseline" in block
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "baseline").symlink_to(README.parent / "studies" / "baseline")
    found = {}
    with contextlib.chdir(tmp_path):
        exec(compile(whole, "README.md", "exec"), found)
        images, ours = found["images"] / 255, found["network"]
        exec(compile(alone, "README.md", "exec"), found)
    with torch.no_grad():
        logits = found["network"](images)
        assert torch.equal(logits, ours(images))
    chances = torch.from_numpy(found["run"].predict(images))
    torch.testing.assert_close(logits.double().softmax(1), chances, rtol=0, atol=1e-6)


def test_study_file_loads(tmp_path):
    text, cases = blocks("toml")
    path = tmp_path / "decay.toml"
    path.write_text(text, encoding="utf-8")
    assert loading.load_study(path).size == 36
    path.write_text(text + cases, encoding="utf-8")
    assert loading.load_study(path).size == 3 * 36


ROOT = README.parent
TEXTS = [README, *(ROOT / "docs").glob("*.md"), *(ROOT / "fmnist").rglob("*.py")]


def lines():
    """The lines of the README that are to be typed, split as a shell does."""
    typed = re.findall(r"^\$ (.+)$", "".join(blocks("console")), re.MULTILINE)
    return [shlex.split(line, comments=True) for line in typed]


def test_every_line_to_type_needs_nothing_activated(tmp_path):
    """It names a program of the system, or one that a line before it has made."""
    assert {argv[0] for argv in lines()} <= {"make", "python3", ".venv/bin/pip", ".venv/bin/python"}
    (tmp_path / "decay.toml").write_text("".join(blocks("toml")), encoding="utf-8")
    checked = set()
    for python, *argv in lines():
        if python == ".venv/bin/python":
            package, arguments = argv[1].removeprefix("fmnist."), argv[2:]
            assert argv[:2] == ["-m", f"fmnist.{package}"]
            if package in ("study", "reference"):
                done = call(package, *arguments, "--dry-run", cwd=tmp_path)
                assert (done.returncode, done.stderr) == (0, "")
            else:
                parsers = {"view": view, "predict": predict, "ensemble": ensemble}
                parser = parsers[package]._parser()
                assert parser.parse_args(arguments).__dict__
            checked.add(package)
        elif python == "make":
            done = subprocess.run(
                ["make", "-n", *argv], cwd=ROOT, capture_output=True, text=True, check=True
            )
            assert f".venv/bin/python -m fmnist.{argv[0]}" in done.stdout
    assert checked == {"study", "reference", "view", "predict", "ensemble"}
    for command in re.findall(r"`make (\w+)", README.read_text(encoding="utf-8")):
        assert re.search(rf"^{command}\b.*:|\b{command}\b.*:", (ROOT / "Makefile").read_text())


def test_nobody_is_told_to_install_the_package_from_an_index():
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        assert "fmnist[" not in text, path
        assert not re.search(r"pip install '?fmnist", text), path
        assert not re.search(r"^(\w*\$ |nohup )?(python3?|fmnist) (-m fmnist|\w)", text, re.M), path


def test_named_test_files_exist():
    for page in (README, README.parent / "docs" / "reliability.md"):
        for name in re.findall(r"\btests/[\w/]+\.py", page.read_text(encoding="utf-8")):
            assert (README.parent / name).exists(), f"{page.name}: {name}"


PAGES = [
    README,
    *sorted((README.parent / "docs").glob("*.md")),
    README.parent / "benchmarks/README.md",
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_files_exist(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
