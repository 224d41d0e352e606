"""The limit of lanes after a run was killed for lack of memory: no error told it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from fmnist.rundir import files
from fmnist.utils import memory


class LanesNote:
    """A note beside the snapshots of how many lanes are in training.

    A killed process leaves it behind. The next run then trains at most half as many lanes at once
    if the system was the killer: the kernel has killed a process for lack of memory since the note
    was written. If it cannot tell, as after a restart of the machine, a kill before the first
    snapshot counts as one. A limit holds until the study is complete; other kills set none.

    Args:
        folder: the folder of the snapshots.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._limit = folder / "lanes", 0

    def limit(self) -> int:
        """Read how many lanes may be trained at once; 0 if no kill has limited them."""
        self._limit = self._read()
        return self._limit

    def _read(self) -> int:
        try:
            lanes, limit, *kills = self._path.read_text("ascii", "replace").split()
            in_training, before = int(lanes[:9]), max(int(limit[:9]), 0)
        except (OSError, ValueError):
            return 0
        killed = in_training > 1 and self._by_the_system(kills)
        return in_training // 2 if killed else before

    def _by_the_system(self, before: Sequence[str]) -> bool:
        now = memory.kills()
        if now and before and before[0] == now[0]:
            return before[1:] != [str(now[1])]
        written = self._path.stat().st_mtime_ns
        snapshots = self._path.parent.glob("*/*.json")
        return not any(path.stat().st_mtime_ns > written for path in snapshots)

    def write(self, lanes: int) -> None:
        """Note that so many lanes are trained from now on, and the limit that was read."""
        self._path.parent.mkdir(exist_ok=True)  # without parents: a folder that is gone stays so
        content = lanes, self._limit, *(memory.kills() or ())
        files.write_text(self._path, " ".join(map(str, content)))

    @contextlib.contextmanager
    def removed_at_end(self) -> Iterator[None]:
        """Remove the note at the end of the block, or leave only the limit if it raises."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError):
                if self._limit:
                    self.write(0)
                else:
                    self._path.unlink(missing_ok=True)
            raise
        self._path.unlink(missing_ok=True)
