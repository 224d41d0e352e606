"""Memory: constant over many trials, and correct results under a limit."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import footprint
import pytest
import torch

from fmnist.utils import memory

HERE = Path(__file__).parent
MIB = 2**20


def test_memory_does_not_grow_over_80_trials():
    """The short form of memory.py."""
    done = subprocess.run(
        [sys.executable, str(HERE / "memory.py"), "--trials", "80", "--lanes", "2"],
        capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    (grown,) = re.findall(r"grown by (-?[\d.]+)%", done.stdout)
    assert float(grown) < 5, done.stdout


NEEDED = """
import sys, types
from fmnist.utils import runtime
runtime.prepare()
sys.modules["fmnist.reports.publish"] = types.SimpleNamespace()  # --no-views
from fmnist.data import fashion_mnist
from fmnist.study import command
command._load_libraries()
fashion_mnist.load()
print(int(open("/proc/self/statm").read().split()[0]) * 4096)
"""


def trained(out):
    return {path.name: path.read_bytes() for path in out.glob("parameters/*")}


def test_results_under_a_memory_limit_are_the_same(tmp_path):
    """Under ``ulimit -v`` there is room for the libraries, but not for four lanes."""
    probe = [sys.executable, "-c", NEEDED]
    taken = int(subprocess.run(probe, capture_output=True, check=True).stdout)
    limit = taken + 700 * MIB
    command = [
        sys.executable, str(HERE.parent / "slice_command.py"), "--whole", "--no-views",
        "--epochs", "1", "--set", "holdout=50000",
        "--set", "batch_size=5000", "--set", "learning_rate=0.001",
        "--set", f"seed={','.join(map(str, range(4)))}", "--out",
    ]  # fmt: skip

    def limited():  # the stack of each thread counts
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    def run(name, *more, **options):
        done = subprocess.run(
            [*command, str(tmp_path / name), *more],
            capture_output=True, text=True, timeout=300, check=False,
            env=os.environ | {"OMP_NUM_THREADS": "2", "NUMBA_NUM_THREADS": "2"}, **options,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "memory ran out" not in run("free", "--max-lanes", "4")
    assert "memory ran out: 4 lanes" in run("forced", "--max-lanes", "4", preexec_fn=limited)
    said = run("chosen", preexec_fn=limited)  # by default it starts with fewer lanes
    assert "4 trials, 1 epochs" not in said
    assert len(trained(tmp_path / "free")) == 4
    assert trained(tmp_path / "free") == trained(tmp_path / "forced")
    assert trained(tmp_path / "free") == trained(tmp_path / "chosen")


def test_limit_too_small_for_the_libraries_gives_one_line(tmp_path):
    script = (
        "import sys; from fmnist.study import command; sys.argv[1:] = []\n"
        "from fmnist.utils import command_line\n"
        "def starved(name): raise ImportError('failed to map segment from shared object')\n"
        "command.importlib.import_module = starved\n"
        "command.runtime.address_space_is_limited = lambda: True\n"
        "command_line.run(command.main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: the limit of the address space (ulimit -v) has no room for PyTorch and Numba\n"
    )


@pytest.mark.parametrize(
    ("error", "ran_out"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (torch.OutOfMemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."), True),
        (RuntimeError("can't start new thread"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (ImportError("x.so: failed to map segment from shared object"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("not enough memory"), False),
        (OSError(28, "No space left on device"), False),
    ],
)
def test_which_errors_mean_out_of_memory(error, ran_out):
    assert memory.ran_out(error) is ran_out


def machine(root, *, free, groups):
    """Write a fake /proc and /sys: free kilobytes, and limit, use and cache of each group."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable: {free} kB\n")
    (root / "proc/self/cgroup").write_text(f"0::/{'/'.join(groups)}\n")
    folder = root / "sys/fs/cgroup"
    for name, (limit, used, cached) in groups.items():
        folder = folder / name
        folder.mkdir(parents=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\n")
    return root


def test_available_memory_is_the_smallest_bound(tmp_path):
    only = machine(tmp_path / "a", free=1000, groups={})
    assert memory.available(only) == 1000 * 1024
    groups = {"job": (900_000, 500_000, 100_000), "step": ("max", 400_000, 0)}
    assert memory.available(machine(tmp_path / "b", free=1000, groups=groups)) == 500_000
    full = {"job": (900_000, 950_000, 0)}
    assert memory.available(machine(tmp_path / "c", free=1000, groups=full)) == 0


def test_limit_of_a_control_group_of_version_1_counts(tmp_path):
    root = machine(tmp_path, free=1000, groups={})
    (root / "proc/self/cgroup").write_text("5:cpu:/x\n4:hugetlb,memory:/job\n0::/\n")
    for name, limit in (("", 2**63 - 4096), ("job", 900_000)):
        folder = root / "sys/fs/cgroup/memory" / name
        folder.mkdir(parents=True)
        (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
        (folder / "memory.usage_in_bytes").write_text("500000\n")
        (folder / "memory.stat").write_text("inactive_file 9\ntotal_inactive_file 100000\n")
    assert memory.available(root) == 500_000


STUDIES = [
    {
        "model": {"channels": [12, 24], "hidden": [256, 256], "dropout": 0.3},
        "count": 24, "batch_size": 100, "algorithm": "adam", "shared": False,
    },
    {
        "model": {"channels": [4, 8], "precision": "bfloat16"},
        "count": 6, "batch_size": 500, "algorithm": "sgd", "shared": False,
    },
    {
        "model": {"channels": [48, 48], "hidden": [], "kernel_size": 9},
        "count": 6, "batch_size": 100, "algorithm": "adamw", "shared": True,
    },
]  # fmt: skip


@pytest.mark.parametrize("study", STUDIES, ids=["dropout", "bfloat16", "wide"])
def test_estimate_of_the_memory_of_lanes_is_near_what_they_take(study):
    """The short form of footprint.py."""
    estimate, taken = footprint.measured(study)
    assert 0.7 < estimate / taken < 1.3, (estimate, taken)


def test_available_memory_on_this_machine_is_plausible():
    assert 10 * MIB < memory.available() < 2**50
