"""The URL of the SQLite database that a run keeps in its folder."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote


def of_run(out: str | Path) -> str:
    """Return the URL of the database in a run's folder."""
    # ? and % have a meaning in URLs, braces for Optuna.
    path = str(Path(out) / "study.db")
    return "sqlite:///" + re.sub("[?%{}]", lambda match: quote(match[0]), path)
