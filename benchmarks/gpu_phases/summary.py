"""The summary of gpu.py in at most 80 lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpu_phases import PHASES

LINES, WIDTH = 80, 160
_ROWS = {"engines": 14, "convolutions": 10, "step": 14, "job": 8, "training": 5}
"""Maximum number of rows of the tables of a phase; 4 for the others."""


def summary(found: dict[str, Any]) -> list[str]:
    """Return the lines: for each phase its outcome, failed and skipped checks, and tables."""
    checks = [check for phase in found["phases"].values() for check in phase["checks"]]
    counts = [f"{_count(checks, status)} {status}" for status in ("passed", "failed", "skipped")]
    head = [
        "=" * 40,
        f"{found['command']}: {', '.join(counts)}, {found['seconds']:.0f} s on {found['device']}",
    ]
    bodies = {name: _phase(name, phase) for name, phase in found["phases"].items()}
    # If there are too many lines, the longest tables lose their last rows.
    while len(head) + sum(map(len, bodies.values())) > LINES:
        longest = max(bodies, key=lambda name: len(bodies[name]))
        bodies[longest][-2:] = ["  ... (the rest is in the JSON)"]
    lines = head + [line for body in bodies.values() for line in body]
    return [line if len(line) <= WIDTH else f"{line[: WIDTH - 3]}..." for line in lines]


def _phase(name: str, phase: dict[str, Any]) -> list[str]:
    checks = phase["checks"]
    counts = [
        f"{_count(checks, status)} {status}"
        for status in ("passed", "failed", "skipped")
        if _count(checks, status)
    ]
    title = f"{PHASES[name].title}: {phase['status'].upper()}"
    lines = [f"{title} ({', '.join(counts) or 'nothing was checked'}; {phase['wall']:.0f} s)"]
    if phase["error"]:
        lines.append(f"  error: {phase['error']}")
    lines += [
        f"  failed: {check['name']} ({check['detail']})"
        for check in checks
        if check["status"] == "failed"
    ][:6]
    reasons: dict[str, list[str]] = {}
    for check in checks:
        if check["status"] == "skipped":
            reasons.setdefault(check["detail"], []).append(check["name"])
    lines += [f"  skipped, {why}: {'; '.join(names)}" for why, names in reasons.items()][:4]
    if name == "machine":
        values = phase["values"]
        keys = ("machine", "driver", "libraries", "versions", "commit", "date", "data")
        lines += [f"  {key}: {values[key]}" for key in keys if values.get(key)]
    if name not in ("kernels", "engines", "convolutions"):  # many similar ones, or tables
        passed = [check for check in checks if check["status"] == "passed" and check["detail"]]
        lines += [f"  {check['name']}: {check['detail']}" for check in passed[:9]]
    for title, table in phase["tables"].items():
        if title == "Milliseconds forward + backward":  # the sums follow
            continue
        lines.append(f"  {title}")
        lines += [f"    {line}" for line in _table(table, _ROWS.get(name, 4))]
    return lines


def _count(checks: Sequence[dict[str, Any]], status: str) -> int:
    return sum(check["status"] == status for check in checks)


def _table(table: dict[str, Any], most: int) -> list[str]:
    rows = [[str(cell) for cell in row] for row in (table["header"], *table["rows"][:most])]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
