"""Remembers how fast groups of lanes trained on this machine, so that a plan can tell its time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from pathlib import Path

import torch

from fmnist.config.trial import TrialConfig
from fmnist.reports.pace import Pace
from fmnist.rundir import files
from fmnist.tuning import events
from fmnist.utils import provenance, runtime

SHORTEST = 5.0
"""Seconds of training of a group whose speed is remembered, at least; less says little."""

MOST = 1000
"""Programs that are remembered, at most: the last ones."""


class SpeedRecorder:
    """Remembers the speed of each group at its end; called with the events of a study.

    Args:
        device: the device of the training.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._pace = device, Pace()
        self._group: events.GroupStarted | None = None

    def __call__(self, event: events.Event) -> None:
        """Follow a group, and remember its speed after its last epoch."""
        match event:
            case events.GroupStarted():
                self._group = event
                self._pace.group(event)
            case events.BatchesTrained():
                self._pace.batches(event)
            case events.EpochFinished():
                self._pace.epoch(event)
                group = self._group
                assert group is not None
                if event.epoch == group.epochs and event.seconds - group.seconds >= SHORTEST:
                    config = group.trials[0].config
                    lanes, rate = len(group.trials), self._pace.rate
                    remember(config, group.images, self._device, lanes, rate)


def remember(
    config: TrialConfig, images: int, device: torch.device, lanes: int, rate: float
) -> None:
    """Write a speed to the user's cache, if that is possible.

    Args:
        config: the configuration of one of the lanes.
        images: number of training images in an epoch.
        device: the device of the training.
        lanes: number of lanes.
        rate: training images a second, of all lanes together.
    """
    known = _read()
    of_program = known.pop(key := _key(config, images, device), {})
    known[key] = {**of_program, str(lanes): float(f"{rate:.4g}")}
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: no home folder
        _file().parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(_file()) as scratch:  # a full disk is not waited for here
            scratch.write_text(json.dumps(dict([*known.items()][-MOST:]), indent=1), "utf-8")


def recall(config: TrialConfig, images: int, device: torch.device, lanes: int) -> float:
    """Return the speed of such a group, with the nearest number of lanes; NaN if it is unknown."""
    known = _read().get(_key(config, images, device), {})
    nearest = min(known, key=lambda text: abs(math.log(int(text) / lanes)), default=None)
    return math.nan if nearest is None else known[nearest]


def _key(config: TrialConfig, images: int, device: torch.device) -> str:
    """What the speed depends on, but for the number of lanes."""
    where = provenance.machine(device), torch.get_num_threads(), torch.__version__
    return hashlib.sha256(repr((where, config.static, images)).encode()).hexdigest()[:16]


def _file() -> Path:
    return runtime.cache_folder() / "speeds.json"


def _read() -> dict[str, dict[str, float]]:
    """The speeds by program and number of lanes; none if the file is missing or damaged."""
    try:
        found = json.loads(_file().read_text(encoding="utf-8"))
        return {
            key: {lanes: rate for lanes, rate in rates.items() if int(lanes) > 0 and rate > 0}
            for key, rates in found.items()
        }
    except (OSError, RuntimeError, ValueError, TypeError, AttributeError):
        return {}
