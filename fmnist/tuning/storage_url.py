"""The URL of the SQLite database that a run keeps in its folder."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote


def of_run(out: str | Path) -> str:
    """The URL, whatever the folder is called: ``?`` would begin a query, ``%`` a code, and
    Optuna fills in what is between braces.
    """
    path = str(Path(out) / "study.db")
    return "sqlite:///" + re.sub("[?%{}]", lambda found: quote(found[0]), path)
