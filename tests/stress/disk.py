"""A disk that fills up, is read-only or goes away while a small real study runs on it.

    unshare --mount --map-root-user python tests/stress/disk.py [--times 20] [--seed 0]

Each time the study ends with one line and status 2, or waits where the disk is full for a few
seconds. After the disk is repaired, it ends like an uninterrupted one, bit for bit. The disks
are in memory, invisible to other processes.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import crash
from compare_runs import differences, outcome
from drawn_once import Kept

from fmnist.data.fashion_mnist import Dataset

ROOM = "100m"


def mount(*words: object) -> None:
    """Mount something. A failure is an error of this script."""
    subprocess.run(["mount", *map(str, words)], check=True)


def refused(place: Path, log: Path, images: Dataset) -> str:
    """Run the study on the disk. Return its line of output."""
    said = len(log.read_text(encoding="utf-8")) if log.exists() else 0
    status = crash.end(crash.start(place / "study", images, log=log))
    return check(status, log.read_text(encoding="utf-8")[said:])


def check(status: int, text: str) -> str:
    """Check that a study ended with one line and status 2. Return the line."""
    assert status == 2, f"ended with {status}: {text}"
    (line, *more) = [line for line in text.splitlines() if line.strip()]
    assert not more, text
    assert line.startswith("error: "), line
    return line


def full(place: Path, log: Path, images: Dataset, kilobytes: int) -> str:
    """A disk that is too small, and is enlarged later."""
    mount("-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", place)
    line = refused(place, log, images)
    mount("-o", f"remount,size={ROOM}", place)
    return f"{kilobytes} KiB: {line}"


def read_only(place: Path, log: Path, images: Dataset) -> str:
    """A disk that is read-only from the beginning."""
    mount("-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", place)
    mount("-o", "remount,ro", place)
    line = refused(place, log, images)
    mount("-o", "remount,rw", place)
    return line


def filled(place: Path, log: Path, images: Dataset) -> str:
    """A disk without a free byte."""
    mount("-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", place)
    fill(place)
    line = refused(place, log, images)
    (place / "theirs").unlink()
    return line


def fill(place: Path) -> None:
    """Use up the space of the disk."""
    with contextlib.suppress(OSError), (place / "theirs").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def freed(place: Path, log: Path, images: Dataset) -> str:
    """A disk that is full for some seconds. The study waits."""
    mount("-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", place)
    child = crash.start(place / "study", images, log=log, wait=60.0)
    wait_for_a_trial(place)
    fill(place)
    time.sleep(5)
    (place / "theirs").unlink()
    assert crash.end(child) == 0, log.read_text(encoding="utf-8")
    return "5 s full: the study waited"


def wait_for_a_trial(place: Path) -> None:
    """Wait until a trial has ended."""
    until = time.monotonic() + 60
    while not list(place.glob("study/parameters/*.safetensors")) and time.monotonic() < until:
        time.sleep(0.01)


def midway(place: Path, log: Path, images: Dataset, lost: bool) -> str:
    """A disk that becomes read-only or is unmounted after the first trial."""
    mount("-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", place)
    keep = place.with_name("keep")
    keep.mkdir(exist_ok=True)
    mount("--bind", place, keep)
    child = crash.start(place / "study", images, log=log)
    wait_for_a_trial(place)
    if lost:
        subprocess.run(["umount", "--lazy", place], check=True)
    else:
        cover(place)
    line = check(crash.end(child), log.read_text(encoding="utf-8"))
    if not lost:
        subprocess.run(["umount", "--lazy", place], check=True)
    else:
        assert not list(place.iterdir()), "it wrote to where the disk had been"
        mount("--bind", keep, place)
    return line


def cover(place: Path) -> None:
    """Mount a read-only copy over a disk in use. Open files stay open.

    The disk itself could not be made read-only while a file is being written, and a view of it
    cannot on every system.
    """
    copy = place.with_name("copy")
    copy.mkdir(exist_ok=True)
    mount("-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", copy)
    with contextlib.suppress(shutil.Error):  # a file that is gone by now
        shutil.copytree(place, copy, dirs_exist_ok=True)
    mount("-o", "remount,ro", copy)
    mount("--bind", copy, place)


def survive(times: int, seed: int) -> None:
    """Try each kind of disk once, and this number of disks that are too small."""
    chance = random.Random(seed)
    folder = Path(tempfile.mkdtemp())
    images = crash.data()
    whole = folder / "undisturbed"
    assert crash.end(crash.start(whole, images)) == 0
    expected = outcome(whole)
    used = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file()) // 1024
    place, log = folder / "disk", folder / "log"
    sizes = [chance.randint(4, int(used * 0.9)) for _ in range(times)]
    tries = [
        functools.partial(read_only, place, log, images),
        functools.partial(filled, place, log, images),
        functools.partial(freed, place, log, images),
        functools.partial(midway, place, log, images, lost=False),
        functools.partial(midway, place, log, images, lost=True),
        *[functools.partial(full, place, log, images, size) for size in sizes],
    ]
    for attempt in tries:
        place.mkdir()
        log.unlink(missing_ok=True)
        print(attempt(), flush=True)
        assert crash.end(crash.start(place / "study", images, log=log)) == 0, log.read_text()
        wrong = differences(outcome(place / "study"), expected)
        assert not wrong, f"differs from the undisturbed study in {wrong}"
        subprocess.run(["umount", "--lazy", place], check=True)
        for beside in (place.with_name("keep"), place.with_name("copy")):
            if beside.is_mount():
                subprocess.run(["umount", "--lazy", beside], check=True)
        place.rmdir()
    shutil.rmtree(folder)
    print(f"survived {len(tries)}")


def main() -> int:
    """The long run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--drawn-once", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        crash.DRAWN = Kept(folder) if args.drawn_once else None
        survive(args.times, args.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
