"""Kernels are compiled before training, once, and never in the middle of it."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest

FIRST = """
from fmnist.utils import runtime
runtime.prepare()
from fmnist.engine import compilation
for variant in compilation.KERNELS:
    assert not compilation.compiled(variant)
    compilation.compile_kernels(variant)
    assert compilation.compiled(variant)
"""

LATER = """
from fmnist.utils import runtime
runtime.prepare()
import torch, fmnist
from fmnist.engine import compilation
from numba.core import event
with event.install_recorder("numba:compile") as compiled:
    for variant in compilation.KERNELS:
        assert compilation.compiled(variant)
        assert compilation.compile_kernels(variant) < 1
    images = torch.zeros(20, 1, 28, 28, dtype=torch.uint8)
    split = fmnist.Split(images, torch.zeros(20, dtype=torch.int64))
    other = {"padding": 1, "kernel_size": 3, "channels": (2, 3, 4)}
    for options in ({}, other, other | {"precision": "bfloat16"}):
        model = fmnist.cnn(**options)
        lanes = {"learning_rate": 0.01}
        list(fmnist.fit(model, fmnist.adam, split, split, lanes=lanes, batch_size=16))
assert not compiled.buffer, compiled.buffer
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("cache"))
    kept = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    return kept | {"XDG_CACHE_HOME": cache}


def run(program, environment):
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_kernels_are_compiled_first_and_none_later(environment):
    run(FIRST, environment)
    run(LATER, environment)


def test_a_process_that_cannot_start_is_no_failure(environment, tmp_path):
    broken = f"import sys; sys.executable = {str(tmp_path)!r}\n" + FIRST
    own = environment | {"XDG_CACHE_HOME": str(tmp_path)}
    run(broken, own)


KEEP = """
import sys
import fmnist.functional.kernels.cpu
from numba.core.caching import IndexDataCacheFile
file = IndexDataCacheFile(sys.argv[1], "kernel", "source")
for i in range(100):
    file.save((sys.argv[2], i), (sys.argv[2], i))
"""


def test_processes_that_compile_at_once_keep_each_version_apart(tmp_path):
    """Without a lock, two versions had one number, and one was computed in place of the other."""
    processes = [
        subprocess.Popen([sys.executable, "-c", KEEP, str(tmp_path), name]) for name in "ab"
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    from numba.core.caching import IndexDataCacheFile

    import fmnist.functional.kernels.cpu  # noqa: F401

    file = IndexDataCacheFile(str(tmp_path), "kernel", "source")
    for key in itertools.product("ab", range(100)):
        assert file.load(key) == key
