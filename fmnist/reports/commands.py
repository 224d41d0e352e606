"""The commands that open the views of a run.

Those on the terminal work as they are printed, in a shell where nothing was activated. Those in a
report hold no path of a machine: they are to be typed in the folder of the report.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from fmnist.tuning import storage_url
from fmnist.utils import interpreter
from fmnist.utils.passwords import starred

WHERE = "In the folder of this file, with the environment of fmnist activated:"

_RELATIVE = re.compile(r"(sqlite[+\w]*:///)([^/:].*)")  # to the folder where the study was run


def here(out: str | Path, storage: str | None = None) -> list[str]:
    """The commands for the current folder and the interpreter that runs.

    Args:
        out: the run's folder; a view that it lacks, or whose program does, has no command.
        storage: Optuna's storage URL; None for the database in the run's folder.

    Returns:
        Command lines, quoted for a shell and without passwords: both servers together, and each
        by itself.
    """
    # A path that begins with - would be read as an option.
    folder = f"./{out}" if str(out).startswith("-") else str(out)
    programs = map(interpreter.program, ("tensorboard", "optuna-dashboard"))
    return _commands(Path(out), folder, storage, interpreter.python(), *programs)


def of_report(out: str | Path, storage: str | None = None) -> list[str]:
    """The commands for the run's folder and an activated environment, as :func:`here`."""
    if storage and (match := _RELATIVE.fullmatch(storage)):
        storage = match[1] + os.path.relpath(match[2], out)
    return _commands(Path(out), "", storage, "python", "tensorboard", "optuna-dashboard")


def _commands(
    out: Path, folder: str, storage: str | None, python: str, tensorboard: str, dashboard: str
) -> list[str]:
    board, artifacts = (out / "tensorboard").is_dir(), (out / "artifacts").is_dir()
    where = ["--storage", starred(storage)] if storage else []
    url = storage_url.of_run(folder) if (out / "study.db").exists() else ""
    url = starred(storage) if storage else url
    served = ["--artifact-dir", os.path.join(folder, "artifacts")] if artifacts else []  # noqa: PTH118
    lines = [
        [python, "-m", "fmnist.view", folder or ".", *where] if board else [],
        [tensorboard, "--logdir", os.path.join(folder, "tensorboard")]  # noqa: PTH118
        if board and tensorboard
        else [],
        [dashboard, url, *served] if url and dashboard else [],
    ]
    return [shlex.join(line) for line in lines if line]
