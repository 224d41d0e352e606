"""The cache folder of compiled kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMPILES = """
import os
from fmnist.utils import runtime
runtime.prepare()
import numba
from fmnist.functional.kernels.cpu import adam  # Numba looks for its folder here
print(os.environ["NUMBA_CACHE_DIR"])
"""


def cache(**environment):
    """Return the folder of the compiled kernels in this environment."""
    known = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    done = subprocess.run(
        [sys.executable, "-c", COMPILES],
        capture_output=True, text=True, env=known | environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def test_kernels_are_cached_in_the_cache_folder_of_the_user(tmp_path):
    folder = cache(XDG_CACHE_HOME=str(tmp_path))
    assert folder.parent == tmp_path / "fmnist"
    assert folder.is_dir()
    assert cache(NUMBA_CACHE_DIR=str(tmp_path / "theirs")) == tmp_path / "theirs"


@pytest.mark.parametrize("name", ["HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR"])
def test_kernels_are_compiled_for_one_process_without_a_cache(tmp_path, name):
    (tmp_path / "temporary").mkdir()
    folder = cache(**{name: "/dev/null"}, TMPDIR=str(tmp_path / "temporary"))
    assert folder.parent == tmp_path / "temporary"
    assert not folder.exists()
