"""The cache folder of compiled kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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


LIBRARY = """
import sys
import torch
if "first" in sys.argv:
    torch.ones(9, 9) @ torch.ones(9, 9)
import fmnist
from fmnist.engine.step import Program
from fmnist.functional.types import Split
split = Split(torch.zeros(4, 1, 28, 28, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
for _ in range(2):
    list(fmnist.fit(fmnist.cnn(), fmnist.sgd, split, split, lanes={"learning_rate": [0.1]}))
from fmnist.functional.kernels.cpu import tasks
print(tasks.pool_block._compiled._cache.cache_path)
"""


def test_import_makes_the_settings_of_the_promises(tmp_path):
    """As a library: kernels are cached by their sources, and a promise that fails is named."""
    hidden = ("NUMBA_CACHE_DIR", "MKL_CBWR", "XDG_CACHE_HOME")
    known = {k: v for k, v in os.environ.items() if k not in hidden}
    ours = cache()
    for argument, warned in (("", False), ("first", True)):
        done = subprocess.run(
            [sys.executable, "-c", LIBRARY, argument],
            capture_output=True, text=True, env=known, check=True,
        )  # fmt: skip
        assert Path(done.stdout.strip()).parent == ours
        told = done.stderr.count("RuntimeWarning: the last bits of a lane may depend")
        assert told == (warned and torch.backends.mkl.is_available())


def test_import_without_any_writable_folder_works():
    script = (
        "import tempfile; tempfile._candidate_tempdir_list = list; tempfile.tempdir = None\n"
        "import fmnist, os; print(os.environ.get('NUMBA_CACHE_DIR'))"
    )
    known = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False,
        env=known | {"XDG_CACHE_HOME": "/dev/null"},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("None\n", "")
