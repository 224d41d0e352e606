"""Loads matplotlib and seaborn, whatever the user's settings of matplotlib are.

Loading them reads MPLBACKEND, the matplotlibrc files, the style files and the locale, and fails
when one of these is wrong. They are then loaded again without these settings. Modules that draw
import this module before matplotlib.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def _without_settings() -> Iterator[None]:
    """Hide the user's settings of matplotlib, and forget what was loaded with them."""
    for name in [*sys.modules]:
        if name.partition(".")[0] in ("matplotlib", "mpl_toolkits", "seaborn"):
            del sys.modules[name]
    folder = tempfile.mkdtemp(prefix="fmnist-matplotlib-")  # it also gets the list of fonts
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    hidden = {"MPLBACKEND": None, "MATPLOTLIBRC": os.devnull, "MPLCONFIGDIR": folder}
    before, exists = {name: os.environ.get(name) for name in hidden}, os.path.exists
    try:
        _set_environment(hidden)
        # Matplotlib looks for this file in the working directory first.
        os.path.exists = lambda path: path != "matplotlibrc" and exists(path)
        yield
    finally:
        os.path.exists = exists
        _set_environment(before)


def _set_environment(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


try:
    import seaborn
except Exception as error:  # wrong settings give errors of many types
    _log.info(
        "matplotlib cannot be loaded with the user's settings (%s), and is loaded without them",
        " ".join(str(error).split())[:200],
    )
    with _without_settings():
        import seaborn  # noqa: F401
