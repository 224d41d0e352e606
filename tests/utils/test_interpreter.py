"""Command lines work as they are printed, and a Python without the libraries names the one with."""

from __future__ import annotations

import importlib.metadata
import os
import shlex
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
from in_process import call

from fmnist import __main__ as program
from fmnist.utils import interpreter

ROOT = Path(__file__).parents[2]
COMMANDS = ("study", "view", "predict", "reference")


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The folder of the programs of a Python without libraries."""
    folder = tmp_path_factory.mktemp("bare") / "a venv"
    venv.create(folder, symlinks=True)
    return folder / "bin"


def run(*argv, cwd, path=None, **options):
    """Run a program with this checkout; ``path`` is what a shell searches."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "PATH": path or os.defpath}
    return subprocess.run(
        [*map(str, argv)], cwd=cwd, env=env, capture_output=True, text=True, check=False, **options
    )


SAYS = "from fmnist.utils import interpreter as i; print(i.module('this', 'a b'))"


def test_the_printed_line_runs_the_same_interpreter(bare, tmp_path):
    (tmp_path / "this.py").write_text("import sys; print(sys.argv[1:], sys.prefix)")
    (tmp_path / "it's").symlink_to(bare.parent)
    other = tmp_path / "other"
    venv.create(other, symlinks=True)  # a link to the same file, in the path before it
    for cwd, python, path, printed in (
        (tmp_path, bare / "python", None, shlex.quote(f"{bare}/python")),
        (tmp_path, tmp_path / "it's" / "bin" / "python", None, shlex.quote("it's/bin/python")),
        (bare.parent, bare / "python", None, "bin/python"),
        (bare.parent, bare / "python3", str(bare), "python"),
        (bare.parent, bare / "python", f"{other}/bin:{bare}", "bin/python"),
    ):
        line = run(python, "-c", SAYS, cwd=cwd, path=path).stdout.strip()
        assert line == f"{printed} -m this 'a b'"
        env = os.environ | {"PATH": path or os.defpath, "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(
            ["/bin/sh", "-c", line], cwd=cwd, env=env, capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith("['a b'] ")
        assert Path(done.stdout.removeprefix("['a b'] ").strip()).samefile(bare.parent)


def test_programs_are_those_of_the_interpreter(tmp_path, monkeypatch):
    for folder in ("mine", "other"):
        (tmp_path / folder).mkdir()
        for name in ("python", "tensorboard"):
            (tmp_path / folder / name).touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "mine" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "other"))
    assert interpreter.program("tensorboard") == str(tmp_path / "mine" / "tensorboard")
    assert interpreter.program("optuna-dashboard") == ""
    monkeypatch.setenv("PATH", str(tmp_path / "mine"))
    assert interpreter.program("tensorboard") == "tensorboard"
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(tmp_path)
    assert interpreter.program("tensorboard") == "mine/tensorboard"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("way", ["module", "program"])
def test_without_the_libraries_a_command_names_the_python_that_has_them(
    bare, tmp_path, command, way
):
    (tmp_path / ".venv").symlink_to(sys.prefix)
    called = [f"fmnist.{command}"] if way == "module" else ["fmnist", command]
    done = run(bare / "python", "-m", *called, "a b.png", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    said, instead = line.split("; use: ")
    assert said.startswith("error: ")
    assert said.endswith(f" is not installed for {bare}/python")
    assert instead == f".venv/bin/python -m {' '.join(called)} 'a b.png'"


def test_the_command_that_is_named_instead_works(bare, tmp_path):
    (tmp_path / ".venv").symlink_to(sys.prefix)
    study = ("-m", "fmnist.study", "--dry-run", "--set", "learning_rate=0.5")
    instead = run(bare / "python", *study, cwd=tmp_path).stderr.split("; use: ")[1]
    done = run("/bin/sh", "-c", instead, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 trials of 25 epochs" in done.stdout


def test_without_an_environment_make_is_named(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(interpreter, "CHECKOUT", tmp_path / "checkout")
    monkeypatch.setattr(sys, "argv", ["x", "a $b.png", "--json"])
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert interpreter.lacks("torch", "view").endswith("for this interpreter")
    (tmp_path / "checkout").mkdir()
    (tmp_path / "checkout" / "Makefile").write_text("show:\n\t@printf '%s|' $(ARGS)\n")
    assert f"; `make view` in {tmp_path}/checkout installs" in interpreter.lacks("torch", "view")
    monkeypatch.chdir(tmp_path / "checkout")
    said, _, line = interpreter.lacks("torch", "show").rpartition(": ")
    assert said.startswith("torch is not installed for ")
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout == "a $b.png|--json|"


def test_a_driver_that_is_not_installed_is_named_with_its_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the path of the interpreter is relative to it
    done = call("study", "--storage", "mysql://127.0.0.1/d", "--out", "run", cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.endswith("; to install it: " + interpreter.install("mysqlclient"))


def test_a_mistake_in_an_import_is_no_missing_library():
    assert interpreter.is_missing("torch_is_not_here.nn")
    for name in (None, "fmnist.nothing", "torch.nothing", "json"):
        assert not interpreter.is_missing(name)


def test_the_program_needs_no_library_for_its_help_and_version(bare, tmp_path):
    for argument in ("--help", "study --help", "reference --help", "view --help", "predict --help"):
        done = run(bare / "python", "-m", "fmnist", *argument.split(), cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"python -m fmnist {argument.removesuffix('--help')}" in done.stdout
        assert argument != "--help" or all(name in done.stdout for name in COMMANDS)
    done = run(sys.executable, "-m", "fmnist", "--version", cwd=tmp_path)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert done.stdout in (f"fmnist {version}\n", "fmnist 0+unknown\n")


@pytest.mark.parametrize("arguments", [[], ["stdy"], ["--foo", "study"]])
def test_without_a_command_that_there_is_the_program_says_what_there_is(arguments, tmp_path, bare):
    done = run(bare / "python", "-m", "fmnist", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "COMMAND" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_the_console_script_is_this_program(monkeypatch, capsys):
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    (entry,) = importlib.metadata.EntryPoints(
        importlib.metadata.EntryPoint(name, value, "console_scripts")
        for name, value in scripts.items()
    )
    assert (entry.name, entry.load()) == ("fmnist", program.main)
    monkeypatch.setattr(sys, "argv", ["/x/.venv/bin/fmnist", "view", "--help"])
    monkeypatch.setattr("fmnist.utils.passwords.cover_arguments", lambda: None)
    with pytest.raises(SystemExit) as end:
        program.main()
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("usage: fmnist view [-h]")
