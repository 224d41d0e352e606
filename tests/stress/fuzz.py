"""Gives bad input to everything that reads input, and checks the outcome.

    python tests/stress/fuzz.py [--inputs 20000] [--seed 0] [--only NUMBER]

Each input must be accepted, or refused with a UserError of one printable line, within 5 seconds of
processor time and a gigabyte of memory. It may leave no file outside of its folder.
The first inputs of each kind are chosen attacks (bad_input.py); the others are damaged at random.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import itertools
import logging
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from fuzz_kinds import Kind, Place, command, kinds

from fmnist.utils.errors import UserError

SECONDS, STUCK = 5.0, 20.0
"""Limits of processor time and of waiting time for an input, in seconds."""
MEMORY = 10**9
GUARD = 4 * 10**9
"""Allocations beyond this fail, to protect the machine."""


class Hang(BaseException):
    """Raised by the alarm; no ``except Exception`` catches it."""


@dataclass
class Tally:
    """The outcomes of the inputs of one kind."""

    taken: int = 0
    refused: int = 0
    seconds: float = 0.0
    memory: int = 0
    slowest: str = ""


@dataclass
class Report:
    """The outcomes by kind, and a line for each fault."""

    tallies: dict[str, Tally] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{'kind':<12}{'inputs':>8}{'taken':>8}{'refused':>9}{'slowest':>9}{'memory':>9}"]
        for kind, tally in self.tallies.items():
            count = tally.taken + tally.refused
            cells = f"{count:>8}{tally.taken:>8}{tally.refused:>9}{tally.seconds:>7.2f} s"
            lines.append(f"{kind:<12}{cells}{tally.memory / 1e6:>6.0f} MB  {tally.slowest}")
        return "\n".join([*lines, *self.wrong, f"{len(self.wrong)} wrong"])


def stream(
    table: dict[str, Kind], seed: int
) -> Iterator[tuple[int, str, str, bytes, random.Random]]:
    """Yield inputs without end: number, kind, name, content and random generator."""
    attacks = ((kind, *attack) for kind in table for attack in table[kind].attacks())
    for number in itertools.count():
        chance = random.Random(f"{seed}/{number}")
        kind, name, content = next(attacks, ("", "", b""))
        if not kind:
            kind = list(table)[number % len(table)]
            content = table[kind].make(table[kind].valid, chance)
        yield number, kind, name, content, chance


def fuzz(around: Path, inputs: int, seed: int = 0, only: int | None = None) -> Report:
    """Try this number of inputs in an empty folder. A seed always gives the same inputs."""
    place, report = Place(around), Report()
    table = kinds(place)
    report.tallies = {kind: Tally() for kind in table}
    tidy = mock.patch.object(tempfile, "tempdir", str(place.temporary))
    with contextlib.chdir(place.scratch), warnings.catch_warnings(), alarmed(), tidy:
        warnings.simplefilter("error")  # a warning would be more than one line
        command(
            ["--run", str(place.run), str(place.picture), "--ensemble"]
        )  # what is slow only once
        for number, kind, name, content, chance in itertools.islice(stream(table, seed), inputs):
            if only in (None, number):
                wrong = attempt(report.tallies[kind], table[kind], name, content, place, chance)
                report.wrong += [
                    f"input {number}, {kind} {name or content[:200]!r} (python "
                    f"tests/stress/fuzz.py --inputs {inputs} --seed {seed} --only {number}): {what}"
                    for what in wrong
                ]
            if len(report.wrong) >= 20:
                break
    return report


def attempt(
    tally: Tally, kind: Kind, name: str, content: bytes, place: Place, chance: random.Random
) -> list[str]:
    """Try one input and return its faults."""
    wrong = []
    if name or resident() > place.resident + MEMORY / 20:
        trim()
        place.resident = resident()
    before = peak_memory(reset=True)
    began = time.process_time()
    signal.setitimer(signal.ITIMER_REAL, STUCK)
    try:
        with guarded():
            kind.test(content, place, chance)
        tally.taken += 1
    except UserError as error:
        tally.refused += 1
        text = str(error)
        if not text or not text.isprintable():
            wrong.append(f"its error is no printable line: {text[:300]!r}")
    except Hang:
        wrong.append(f"it took more than {STUCK:g} s")
    except (Exception, SystemExit) as error:
        lines = traceback.format_exception(error)
        wrong.append("".join(lines[-4:]))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    seconds, memory = time.process_time() - began, peak_memory() - before
    if seconds > SECONDS:
        wrong.append(f"it took {seconds:.1f} s")
    if memory > MEMORY:
        wrong.append(f"it took {memory / 1e6:,.0f} MB")
    if strangers := set(place.outside()) - place.before:
        wrong.append(f"it left {', '.join(sorted(strangers))}")
        place.before |= strangers
    if seconds > tally.seconds:
        tally.seconds, tally.slowest = seconds, name
    tally.memory = max(tally.memory, memory)
    return wrong


@contextlib.contextmanager
def alarmed() -> Iterator[None]:
    """A context in which the alarm raises :class:`Hang`."""

    def hang(*_: object) -> None:
        raise Hang

    previous = signal.signal(signal.SIGALRM, hang)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, previous)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """A context in which too large allocations fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + GUARD, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def resident() -> int:
    """Return the resident memory in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak_memory(reset: bool = False) -> int:
    """Return the peak of resident memory since the last reset, in bytes."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def trim() -> None:
    """Return freed memory to the system, else reuse of it would hide growth."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def main() -> int:
    """The long run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="this input alone")
    args = parser.parse_args()
    logging.getLogger("fmnist").addHandler(logging.NullHandler())
    with tempfile.TemporaryDirectory() as folder:
        report = fuzz(Path(folder), args.inputs, args.seed, args.only)
    print(report)
    return int(bool(report.wrong))


if __name__ == "__main__":
    sys.exit(main())
