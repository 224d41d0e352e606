"""The findings of a phase. They are written at once, so nothing is lost if it ends early."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import fmnist
from fmnist.data import fashion_mnist, sources
from fmnist.data.fashion_mnist import Dataset
from fmnist.functional.types import Split
from gpu_phases import LOST, write_json


class SkipError(Exception):
    """A check cannot be done here. The message has the reason."""


class Part:
    """The findings of a phase.

    Args:
        path: their JSON file, written again after each finding.
        device: where to measure.
        quick: whether to do only the minimum that shows that everything runs.
        until: time of the monotonic clock after which no check or measurement starts.
        earlier: the findings of earlier phases, by phase.
        data: a folder with the data set; None by default.

    Attributes:
        found: ``checks`` (name, status, detail), ``tables`` by title, ``values`` by name.
    """

    def __init__(
        self,
        path: Path,
        device: torch.device,
        *,
        quick: bool,
        until: float,
        earlier: dict[str, Any],
        data: str | None = None,
    ) -> None:
        self.device, self.quick, self.earlier = device, quick, earlier
        self.found: dict[str, Any] = {"checks": [], "tables": {}, "values": {}}
        if path.exists():  # the phase continues in a new process
            self.found |= json.loads(path.read_text(encoding="utf-8"))
        self._path, self._end = path, until
        self._data = data or os.environ.get("FMNIST_DATA")
        self._dataset: Dataset | None = None

    @property
    def cuda(self) -> bool:
        """Whether the device is an NVIDIA GPU."""
        return self.device.type == "cuda"

    def left(self) -> float:
        """Seconds left for this phase; negative if it is late."""
        return self._end - time.monotonic()

    def check(self, name: str, run: Callable[[], str | None]) -> bool:
        """Run a check and return whether it passed. It fails if it raises; it may return a detail.

        Checks of an earlier process of this phase are not repeated. An error that makes the GPU
        unusable for this process ends it with status :data:`gpu_phases.LOST`.
        """
        for noted in self.found["checks"]:
            if noted["name"] == name:
                passed: bool = noted["status"] == "passed"
                return passed
        if self.left() <= 0:
            return self.skip(name, "no time left")
        try:
            detail = run() or ""
            self.synchronize()
        except SkipError as reason:
            return self.skip(name, str(reason))
        except Exception as error:
            traceback.print_exc()
            self._note(name, "failed", describe_error(error))
            try:
                self.synchronize()
            except RuntimeError:
                os._exit(LOST)
            return False
        return self._note(name, "passed", detail)

    def synchronize(self) -> None:
        """Wait for the GPU, so that an error is assigned to the right check."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def skip(self, name: str, why: str) -> bool:
        """Record that a check was not done. Return False."""
        return self._note(name, "skipped", why)

    def _note(self, name: str, status: str, detail: str) -> bool:
        print(f"  {status}: {name}{detail and f' ({detail})'}", file=sys.stderr, flush=True)
        self.found["checks"].append({"name": name, "status": status, "detail": detail})
        self.save()
        return status == "passed"

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Store a table. It replaces one with the same title."""
        self.found["tables"][title] = {"header": list(header), "rows": [list(r) for r in rows]}
        self.save()

    def value(self, name: str, value: object) -> None:
        """Store a number or a few words."""
        self.found["values"][name] = value
        self.save()

    def save(self, **more: object) -> None:
        """Write all findings and these."""
        self.found |= more
        write_json(self._path, self.found)

    # Shared by several phases -------------------------------------------------------------------

    def limit(self, name: str) -> float | None:
        """Return a limit of the machine from the first phase; None if it was not measured."""
        value: float | None = self.earlier.get("machine", {}).get("values", {}).get(name)
        return value

    def dataset(self) -> Dataset:
        """Fashion-MNIST if this machine has it and the run is not quick, else made-up images.

        ``source`` names it. Nothing is downloaded, as time-outs would take too long.
        """
        if self._dataset is None:
            self._dataset = self._load()
        return self._dataset

    def _load(self) -> Dataset:
        if self.quick:
            return Dataset(fake_images(3000, 0), fake_images(500, 1), "made-up images")
        every = sources.in_order(self._data)
        local = every if self._data else [s for s in every if s[0] in ("cache", "Debian package")]
        try:
            with patch.object(sources, "in_order", lambda folder: local):
                return fmnist.load(self._data)
        except fashion_mnist.DataError as error:
            why = f"made-up images, as there is no data set here ({describe_error(error)})"
            return Dataset(fake_images(60_000, 0), fake_images(10_000, 1), why)

    def examples(self) -> int:
        """Return the number of training images."""
        return len(self.dataset().train.labels)

    def images(self, examples: int) -> Split:
        """Return this number of training images, on the device."""
        train = self.dataset().train
        assert examples <= self.examples(), f"{examples} of {self.examples()} images"
        return Split(
            train.images[:examples].to(self.device), train.labels[:examples].to(self.device)
        )

    def milliseconds(self, run: Callable[[], object]) -> float:
        """Return the time of ``run``: by events on a GPU, by the clock on a CPU."""
        if not self.cuda:
            began = time.perf_counter()
            run()
            return (time.perf_counter() - began) * 1e3
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        began.record()
        run()
        ended.record()
        ended.synchronize()
        elapsed: float = began.elapsed_time(ended)
        return elapsed

    def median_ms(self, run: Callable[[], object], rounds: int = 0) -> float:
        """Return the median of a few such times, after one that is not counted."""
        run()
        rounds = rounds or (2 if self.quick else 7)
        return statistics.median(self.milliseconds(run) for _ in range(rounds))


def fake_images(examples: int, seed: int) -> Split:
    """Return made-up images that can be learnt: a pattern for each class, with noise."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.rand(10, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(examples) % 10
    noise = torch.rand(examples, 1, 28, 28, generator=generator)
    images = (patterns[labels] * 0.3 + noise * 0.7) * 255
    return Split(images.to(torch.uint8), labels)


def describe_error(error: BaseException) -> str:
    """Return the type and message of an error in one line of at most 300 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
