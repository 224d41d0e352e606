"""Command lines for the interpreter that runs, and what to do when it lacks a library.

The lines work as they are printed, in a shell in the current folder where nothing was activated.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from fmnist.utils.errors import UserError

CHECKOUT = Path(__file__).parents[2]
OPTIONAL = {
    "MySQLdb": "mysqlclient",
    "optuna_dashboard": "optuna-dashboard",
    "psycopg": "psycopg[binary]",
    "psycopg2": "psycopg2-binary",
}
"""Libraries that the package works without: module -> what pip installs."""

_HAS = "import sys, importlib.util as u; sys.exit(not all(map(u.find_spec, sys.argv[1:])))"


def python() -> str:
    """Return what a shell calls the interpreter that runs: a name if it finds it, else a path.

    The path is relative if the interpreter is below the current folder, as in ``.venv/bin/python``.
    """
    path = Path(sys.executable)
    names = ("python", path.name)
    return next((name for name in names if _finds(name, path)), "") or _path(path)


def module(name: str, *arguments: str) -> str:
    """Return the line that runs a module of this package with some arguments."""
    return shlex.join([python(), "-m", name, *arguments])


def program(name: str) -> str:
    """Return what a shell calls a program of this environment; empty without the program."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        return ""
    return name if _finds(name, path) else _path(path)


def install(package: str) -> str:
    """Return the line that installs a package for the interpreter that runs."""
    return shlex.join([python(), "-m", "pip", "install", package])


def to_install(library: str) -> str:
    """Say in a line that the interpreter lacks a library, and how to install it."""
    name = OPTIONAL.get(library, library)
    return (
        f"{name.partition('[')[0]} is not installed for {python()}; to install it: {install(name)}"
    )


def lacks(library: str, command: str) -> str:
    """Say in a line that the interpreter lacks a library, and what to type instead.

    Args:
        library: the module that cannot be imported.
        command: the command that needs it, such as ``"view"``.
    """
    said = f"{OPTIONAL.get(library, library)} is not installed for {python()}"
    if other := _other_python(library):
        # sys.argv would lack the options of the interpreter.
        return f"{said}; use: {shlex.join([_path(other), *sys.orig_argv[1:]])}"
    if library in OPTIONAL:
        return to_install(library)
    if not (CHECKOUT / "Makefile").is_file():
        return f"{said}; install fmnist again, with all that it needs, for this interpreter"
    if (where := _path(CHECKOUT)) != ".":
        return f"{said}; `make {command}` in {where} installs it into .venv, and runs there"
    arguments = shlex.quote(shlex.join(sys.argv[1:]).replace("$", "$$"))
    given = f" ARGS={arguments}" if sys.argv[1:] else ""
    return f"{said}; to install it into .venv, and run there: make {command}{given}"


def need_torch(command: str) -> None:
    """Check that the interpreter has PyTorch, before anything else is looked at.

    Raises:
        UserError: It has not. The message says what to type instead.
    """
    if find_spec("torch") is None:
        raise UserError(lacks("torch", command))


def _finds(name: str, path: Path) -> bool:
    """Whether a shell finds this very program under a name."""
    found = shutil.which(name)
    if found is None:
        return False
    with contextlib.suppress(OSError):
        # The interpreters of two environments may be links to one file.
        return Path(found).parent.samefile(path.parent) and Path(found).samefile(path)
    return False


def _path(path: Path) -> str:
    with contextlib.suppress(OSError, ValueError):  # no current folder, or not below it
        return str(path.relative_to(Path.cwd()))
    return str(path)


def _other_python(library: str) -> Path | None:
    """The interpreter of a ``.venv`` here or in the checkout that has fmnist and the library."""
    with contextlib.suppress(OSError):
        for folder in dict.fromkeys((Path.cwd(), CHECKOUT)):
            path = folder / ".venv" / "bin" / "python"
            if not path.exists() or path.parent.samefile(Path(sys.executable).parent):
                continue
            probe = [str(path), "-c", _HAS, "fmnist", library]
            with contextlib.suppress(subprocess.TimeoutExpired):
                if not subprocess.run(probe, capture_output=True, timeout=20).returncode:
                    return path
    return None


def is_missing(library: str | None) -> bool:
    """Whether a module that could not be imported is a library that is not installed."""
    top = (library or "fmnist").partition(".")[0]
    return top != "fmnist" and find_spec(top) is None
