"""Interruptions of a study: memory that runs out, and Ctrl-C. The results must not change."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from fmnist.config.study import StudyConfig
from fmnist.functional.types import ModelConfig
from fmnist.tuning import grid, scheduler, storage
from fmnist.tuning.progress import Checkpointer
from fmnist.utils import memory
from fmnist.utils.errors import UserError
from fmnist.utils.signals import Stop
from gpu_phases.part import Part

MIB = 1 << 20


def run(part: Part) -> None:
    """Check both, each with a separate study."""
    part.check("Ctrl-C, and the study goes on to the same numbers", lambda: stopped(part))
    part.check("memory runs out, the halves go on to the same numbers", lambda: halved(part))


class Small:
    """A study of some lanes on a few images, in a separate folder."""

    def __init__(self, part: Part, lanes: int, batch_size: int, epochs: int, images: int) -> None:
        self.lanes = lanes
        rates = tuple(0.001 * (i + 1) / lanes for i in range(lanes))
        self.config = StudyConfig(
            name="small", epochs=epochs, batch_size=batch_size, model=ModelConfig(),
            grid={"learning_rate": rates},
        )  # fmt: skip
        split = part.images(images)
        self.splits = scheduler.Splits(split, split, split)

    def results(
        self,
        folder: str,
        checkpointer: Checkpointer | None = None,
        stop: Stop | None = None,
        seen: list[object] | None = None,
    ) -> list[tuple[object, ...]]:
        """Train the rest of the study. Return the history of each trial."""
        study = storage.open_study(self.config, f"sqlite:///{folder}/study.db")
        events = scheduler.run(
            study,
            self.config,
            self.splits,
            max_lanes=self.lanes,
            checkpointer=checkpointer,
            stop=stop,
        )
        for event in events:
            if seen is not None:
                seen.append(event)
        return [tuple(result.history) for result in grid.results(study, self.config)]


def halved(part: Part) -> str:
    """Start with more lanes than fit in memory, then with fewer."""
    lanes = 4 if part.quick or not part.cuda else 32
    small = Small(part, lanes, batch_size=1500, epochs=1, images=3000)
    starved, said = under_a_limit(part, small)
    memory.release()
    with tempfile.TemporaryDirectory() as folder:
        free = small.results(folder)
    worst = max(
        abs(a - b)
        for one, other in zip(starved, free, strict=True)
        for mine, its in zip(one, other, strict=True)
        for a, b in zip(mine, its, strict=True)
    )
    # On a GPU, rounding depends on the number of lanes.
    assert worst <= (0.02 if part.cuda else 0.0), f"metrics differ by {worst}"
    return f"{', '.join(map(str, said))} lanes halved; metrics differ by at most {worst:.0e}"


def under_a_limit(part: Part, small: Small) -> tuple[list[tuple[object, ...]], list[int]]:
    """Return the histories under a limit that is too small for all lanes, and how many were halved.

    The limit is found by trying, as the memory that libraries keep is unknown.
    """
    for room in rooms(part, small):
        seen = list[object]()
        try:
            with tempfile.TemporaryDirectory() as folder, limited(part, room):
                results = small.results(folder, seen=seen)
        except UserError:  # not even one lane
            continue
        finally:
            memory.release()
        if said := [event.lanes for event in seen if isinstance(event, scheduler.LanesHalved)]:
            return results, said
    raise AssertionError("no limit was found that is too narrow for all and wide enough for half")


def rooms(part: Part, small: Small) -> list[float]:
    """Return limits to try, in bytes."""
    if not part.cuda:
        reserved(part, small, 1)  # loading and compiling at first do not count
        # Upwards, because memory that was allocated once is kept and fits under any limit.
        return [40 * MIB * 1.25**i for i in range(16)]
    # Repeated, because timing and compiling at first need additional memory.
    counts = (small.lanes // 2, small.lanes)
    half, whole = [[reserved(part, small, count) for count in counts] for _ in range(2)][1]
    return [half + share * (whole - half) for share in (0.5, 0.3, 0.7, 0.1, 0.9, -0.2, -0.4)]


@contextlib.contextmanager
def limited(part: Part, room: float) -> Iterator[None]:
    """Limit this process to this number of bytes of GPU memory or of further address space."""
    if part.cuda:
        total = torch.cuda.get_device_properties(part.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(room / total, 1.0), part.device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, part.device)
        return
    memory.release()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * os.sysconf("SC_PAGE_SIZE") + int(room)
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def reserved(part: Part, small: Small, lanes: int) -> float:
    """Train the first of the lanes. Return the bytes that the GPU's allocator took for it."""
    rates = small.config.grid["learning_rate"][:lanes]
    grid = {"learning_rate": rates} if lanes > 1 else {}
    fewer = StudyConfig(name="fewer", epochs=1, batch_size=small.config.batch_size, grid=grid)
    memory.release()
    if part.cuda:
        torch.cuda.reset_peak_memory_stats(part.device)
    with tempfile.TemporaryDirectory() as folder:
        study = storage.open_study(fewer, f"sqlite:///{folder}/study.db")
        for _ in scheduler.run(study, fewer, small.splits, max_lanes=lanes):
            pass
    peak = torch.cuda.max_memory_reserved(part.device) if part.cuda else 0
    memory.release()
    return float(peak)


def stopped(part: Part) -> str:
    """Send SIGINT in the second epoch, and continue in a second run of the study."""
    images, epochs = (2000, 3) if part.quick else (20_000, 6)
    small = Small(part, 4, batch_size=100, epochs=epochs, images=images)
    with tempfile.TemporaryDirectory() as folder:
        undisturbed = small.results(folder)
    with tempfile.TemporaryDirectory() as folder:
        checkpointer = Checkpointer(Path(folder) / "checkpoints", every=0.0)
        sent: list[float] = []

        def interrupt() -> None:
            sent.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)

        class Watched(list[object]):
            def append(self, event: object) -> None:
                if isinstance(event, scheduler.EpochFinished) and event.epoch == 1:
                    threading.Timer(0.02, interrupt).start()

        try:
            with Stop() as stop:
                small.results(folder, checkpointer, stop, Watched())
        except KeyboardInterrupt:
            took = time.monotonic() - sent[0]
        else:
            raise AssertionError("the study ended before it was stopped")
        assert took < 5, f"it took {took:.1f} s to stop"
        again = small.results(folder, Checkpointer(Path(folder) / "checkpoints"))
    assert again == undisturbed, "the metrics are not those of a run that was left alone"
    return f"stopped after {took:.2f} s"
