"""Measures training beside other processes, and lanes that are dealt out to processes.

    python benchmarks/neighbours.py [--batch-sizes 100,1000] [--lanes 2] [--json FILE]

Alone, beside a busy process, and two such trainings side by side; then half of the lanes in each of
two processes with one thread, against all of them in one process. The situations take turns.
"""

from __future__ import annotations

import argparse
import multiprocessing
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from typing import NamedTuple

from fmnist.utils import runtime

runtime.prepare()  # before torch, as the commands do it

import contenders
import torch
from common import machine, median, prepare, spread, table, write_json

CPU = torch.device("cpu")


class Training(NamedTuple):
    """A process that trains lanes, and its end of a pipe."""

    process: multiprocessing.Process
    pipe: Connection


def main() -> int:
    """Measure in turns, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-sizes", default="100,1000")
    parser.add_argument("--lanes", type=int, default=2)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--seconds", type=float, default=5, help="of each turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    rows = []
    for size in map(int, args.batch_sizes.split(",")):
        whole = [start(args.lanes, size, args.images, 0) for _ in range(2)]
        halves = [start(args.lanes // 2, size, args.images, 1) for _ in range(2)]
        turns: list[dict[str, float]] = []
        for _ in range(args.rounds):
            turn = {"alone": rate(whole[:1], args.seconds)}
            with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
                turn["beside a busy process"] = rate(whole[:1], args.seconds)
                busy.kill()
            turn["two side by side"] = rate(whole, args.seconds) / 2
            turn["in two processes"] = rate(halves, args.seconds)
            turns.append(turn)
        for training in (*whole, *halves):
            training.pipe.close()
            training.process.join()
        for name in list(turns[0])[1:]:
            ratios = [turn["alone"] / turn[name] for turn in turns]
            rows.append((size, name, f"{median(ratios):.2f}", f"{spread(ratios):.0%}"))
    print(table(("batch size", "situation", "times as slow as alone", "spread"), rows))
    write_json(args.json, {"about": machine(CPU) | {"lanes": args.lanes}, "rows": rows})
    return 0


def start(lanes: int, batch_size: int, images: int, threads: int) -> Training:
    """Start a process that trains lanes; 0 threads are as many as there are cores."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, lanes, batch_size, images, threads))
    process.start()
    theirs.close()
    ours.recv()
    return Training(process, ours)


def rate(trainings: list[Training], seconds: float) -> float:
    """Return how many epochs of a lane they train in a second, all together."""
    for training in trainings:
        training.pipe.send(seconds)
    return sum(training.pipe.recv() for training in trainings)


def _work(pipe: Connection, lanes: int, batch_size: int, images: int, threads: int) -> None:
    if threads:
        import numba

        torch.set_num_threads(threads)
        numba.set_num_threads(threads)
    engine = contenders.Lanes(prepare(images, CPU), batch_size, lanes)
    engine.epoch()
    pipe.send(None)
    while True:
        try:
            seconds = pipe.recv()
        except EOFError:
            return
        began, epochs = time.perf_counter(), 0
        while (passed := time.perf_counter() - began) < seconds:
            engine.epoch()
            epochs += lanes
        pipe.send(epochs / passed)


if __name__ == "__main__":
    sys.exit(main())
