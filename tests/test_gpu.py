"""benchmarks/gpu.py, rehearsed on a CPU: everything runs, and what fails shows and stops nobody."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from gpu_phases import PHASES
from gpu_phases.engines import steps_of
from gpu_phases.step import covered
from gpu_phases.summary import LINES, WIDTH, summary

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def gpu(folder, *arguments):
    """Run the command on a CPU; its exit status, its standard output's lines, its JSON."""
    file = folder / "found.json"
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--quick", "--json", str(file)]
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    found = json.loads(file.read_text()) if file.exists() else None
    return done, done.stdout.splitlines(), found


def test_quick_run_on_a_cpu_passes_or_skips_every_check(tmp_path):
    done, lines, found = gpu(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(found["phases"]) == list(PHASES)
    assert 30 < len(lines) <= LINES
    statuses = {
        check["name"]: check["status"]
        for phase in found["phases"].values()
        for check in phase["checks"]
    }
    assert "failed" not in statuses.values()
    # What a CPU cannot show is never called passed.
    skipped = {name for name, status in statuses.items() if status == "skipped"}
    assert skipped == {
        "CUDA device",
        "matrix products, TF32",
        "Triton norm_relu_pool, compiled: all",
        "CUDA graph equals the eager step, bit for bit",
        "a model of one's own: its graph equals its step",
        "compiled, CUDA graphs, batch size 100",
    }
    assert sum("skipped, " in line for line in lines) >= 5
    told = {line.strip() for line in done.stderr.splitlines()}
    assert "passed: float32: the same run twice, bit for bit" in told
    assert not any(f"passed: {name}" in line for name in skipped for line in told)


def test_failed_phase_is_reported_and_other_phases_run(tmp_path):
    done, lines, found = gpu(
        tmp_path, "--phases", "machine,convolutions,step", "--fail", "convolutions=raise"
    )
    assert done.returncode == 1
    assert [phase["status"] for phase in found["phases"].values()] == ["done", "failed", "done"]
    assert found["phases"]["convolutions"]["error"] == "RuntimeError: failed on purpose"
    assert "  error: RuntimeError: failed on purpose" in lines
    assert found["phases"]["step"]["checks"]


def test_other_phases_run_after_a_phase_process_dies(tmp_path):
    done, lines, found = gpu(tmp_path, "--phases", "machine,step", "--fail", "machine=crash")
    assert done.returncode == 1
    assert "  error: ended by SIGABRT" in lines
    assert [phase["status"] for phase in found["phases"].values()] == ["failed", "done"]


def test_checks_are_skipped_when_no_time_is_left(tmp_path):
    done, _, found = gpu(tmp_path, "--seconds", "0.001", "--phases", "training")
    assert done.returncode == 0
    checks = found["phases"]["training"]["checks"]
    assert checks
    assert {check["status"] for check in checks} == {"skipped"}
    assert {check["detail"] for check in checks} == {"no time left"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--phases", "kernel"], "--phases 'kernel': allowed are machine, kernels, "),
        (["--seconds", "0"], "--seconds must be more than 0"),
    ],
)
def test_bad_arguments_exit_with_status_2_and_a_message(tmp_path, arguments, said):
    done, _, found = gpu(tmp_path, *arguments)
    assert (done.returncode, found) == (2, None)
    assert said in done.stderr


def test_summary_has_bounded_lines_and_width():
    check = {"name": "n" * 300, "status": "failed", "detail": "d" * 300}
    table = {"header": ["a", "b"], "rows": [["x" * 90, 1]] * 500}
    phase = {
        "status": "failed", "error": "e" * 300, "wall": 1.0, "values": {},
        "checks": [check] * 90, "tables": {str(i): table for i in range(20)},
    }  # fmt: skip
    phases = dict.fromkeys(PHASES, phase)
    lines = summary({"command": "c", "device": "cpu", "seconds": 1.0, "phases": phases})
    assert len(lines) <= LINES
    assert all(len(line) <= WIDTH for line in lines)
    assert sum(": FAILED" in line for line in lines) == len(PHASES)


@pytest.mark.parametrize("batch", [100, 500, 1000])
@pytest.mark.parametrize("lanes", [1, 64])
def test_steps_of_an_engine_need_no_more_than_an_epoch(batch, lanes):
    assert 20 <= steps_of(batch, lanes, 60_000, quick=False) <= 60_000 // batch


def test_overlapping_kernel_times_are_counted_once():
    assert covered([(5.0, 6.0), (1.0, 3.0), (0.0, 2.0), (1.5, 1.7)]) == 4.0
    assert covered([]) == 0.0
