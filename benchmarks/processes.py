"""The strongest plain peer on a CPU: a process a core, one thread each, a trial in each.

There are no barriers between threads, and Python runs once a core. The time of a trial is that of
all processes together over their number, as they train at the same time.
"""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.connection import Connection
from typing import ClassVar

import contenders
import torch
from common import prepare

from fmnist.functional.types import ModelConfig, Split


def cores() -> list[int]:
    """Return the cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


class ProcessPerCore(contenders.Contender):
    """One process on each core; each trains a trial with one thread."""

    sequential = True
    engine: ClassVar[type[contenders.Contender]]

    def __init__(
        self, split: Split, batch_size: int, lanes: int, model: ModelConfig = ModelConfig()
    ) -> None:
        super().__init__(split, batch_size, lanes, model)
        context = multiprocessing.get_context("spawn")
        self.trials = len(cores())
        self._pipes, self._processes = [], []
        for i, core in enumerate(cores()):
            ours, theirs = context.Pipe()
            what = (type(self), len(split.labels), batch_size, model, contenders.rate(i))
            process = context.Process(target=_work, args=(theirs, core, *what), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def epoch(self) -> list[float]:
        for pipe in self._pipes:
            pipe.send(None)
        return [pipe.recv() for pipe in self._pipes]

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join()


class EagerPerCore(ProcessPerCore):
    """The reference model."""

    engine = contenders.Eager


class EagerChannelsLastPerCore(ProcessPerCore):
    """The reference model with channels last in memory."""

    engine = contenders.EagerChannelsLast


class CompiledPerCore(ProcessPerCore):
    """The reference model under torch.compile."""

    engine = contenders.Compiled


def _work(
    pipe: Connection,
    core: int,
    kind: type[ProcessPerCore],
    examples: int,
    batch_size: int,
    model: ModelConfig,
    rate: float,
) -> None:
    """Train an epoch for each message, and answer with the loss, until the pipe is closed."""
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    contenders.RATES = (rate,)
    contender = kind.engine(prepare(examples, torch.device("cpu")), batch_size, 1, model)
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        pipe.send(contender.epoch()[0])
