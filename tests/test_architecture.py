"""The architecture: which package may import which, and what the pure one may not touch."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

import fmnist

ROOT = Path(fmnist.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

MAY_IMPORT = {
    "utils": set(),
    "functional": set(),
    "config": {"functional", "utils"},
    "data": {"functional", "utils"},
    "engine": {"functional", "utils"},
    "reference": {"functional"},
    "rundir": {"config", "functional", "utils"},
    "inference": {"config", "data", "functional", "reference", "rundir", "utils"},
    "tuning": {"config", "engine", "functional", "rundir", "utils"},
    "reports": {"config", "data", "functional", "reference", "rundir", "tuning", "utils"},
    "study": {"config", "data", "engine", "functional", "reports", "rundir", "tuning", "utils"},
    "predict": {"config", "data", "inference", "rundir", "utils"},
    "ensemble": set(),
    "view": {"utils"},
}
"""Package -> the packages that it may import, lowest first: each imports only those above it here.

The commands (``__main__.py`` and ``command.py``) may import all, and nobody imports them.
"""


def package(path: Path) -> str:
    """The package of a file; ``command`` for what a command is made of."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "command" if parts[-1] in ("__main__", "command") else parts[0]


def imports(path: Path) -> set[str]:
    """Every module of the package that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_packages_import_only_lower_packages_of_the_table():
    order = list(MAY_IMPORT)
    for importer, imported in MAY_IMPORT.items():
        assert all(order.index(name) < order.index(importer) for name in imported)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_table(path):
    here = package(path)
    names = [name.split(".") for name in imports(path) if name.startswith("fmnist.")]
    if here == "__init__":  # the public names
        return
    if here == "command":
        own = path.relative_to(ROOT).parts[0]
        assert all(parts[1] == own for parts in names if "command" in parts)
        return
    assert not any("command" in parts for parts in names)
    assert {parts[1] for parts in names} - {here} <= MAY_IMPORT[here]


def test_every_package_has_a_docstring():
    for folder in {path.parent for path in FILES}:
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))


def test_reports_import_only_types_from_functional():
    for path in (ROOT / "reports").rglob("*.py"):
        if path.name != "publish.py":
            ours = {name for name in imports(path) if name.startswith("fmnist.functional")}
            assert all(name.startswith("fmnist.functional.types") for name in ours), path


IMPURE = {
    "builtins": {"open", "print", "input", "exec", "eval"},
    "modules": {"os", "sys", "io", "pathlib", "time", "datetime", "random", "logging", "optuna"},
    "attributes": {"manual_seed_all", "seed", "set_rng_state", "requires_grad_"},
}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "functional").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_functional_is_pure(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in IMPURE["builtins"]
        if isinstance(node, ast.Attribute):
            assert node.attr not in IMPURE["attributes"]
            in_place = node.attr.endswith("_") and not node.attr.startswith("_")
            # A tensor that was made in the same expression may be filled in place.
            assert not in_place or node.attr == "uniform_", f"line {node.lineno}: .{node.attr}"
    tops = {name.split(".")[0] for name in imports(path)}
    assert not tops & IMPURE["modules"]


def test_public_names_are_importable_and_documented():
    assert 10 <= len(fmnist.__all__) <= 22
    for name in fmnist.__all__:
        assert getattr(fmnist, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fmnist.nothing  # noqa: B018
    assert (ROOT / "py.typed").exists()


def test_version_is_that_of_the_installed_package():
    assert fmnist.__version__ == metadata.version("fmnist")
    code = "import sys; sys.path.insert(0, sys.argv[1]); import fmnist; print(fmnist.__version__)"
    # -S leaves site-packages out, so that these are sources that nobody installed.
    alone = [sys.executable, "-I", "-S", "-c", code, str(ROOT.parent)]
    run = subprocess.run(alone, capture_output=True, text=True, check=True)
    assert run.stdout == "0+unknown\n"


@pytest.mark.parametrize("name", ["", ".study", ".view", ".predict", ".reference"])
def test_help_answers_in_under_a_second(name):
    seconds = []
    for _ in range(3):  # the machine may be busy; the fastest is what the code needs
        began = time.perf_counter()
        run = subprocess.run(
            [sys.executable, "-m", f"fmnist{name}", "--help"],
            capture_output=True,
            text=True,
            check=True,
        )
        seconds.append(time.perf_counter() - began)
    assert run.stdout.startswith(f"usage: python -m fmnist{name} ")
    assert min(seconds) < 1


def test_files_have_at_most_400_lines():
    for path in FILES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path


PICKLES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def test_pickle_is_not_used():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in {("torch", "load"), ("torch", "save")}
            if isinstance(node, ast.keyword):
                assert (node.arg, ast.unparse(node.value)) != ("allow_pickle", "True"), path
        assert not {name.split(".")[0] for name in imports(path)} & PICKLES, path
        assert not {"torch.load", "torch.save"} & imports(path), path
