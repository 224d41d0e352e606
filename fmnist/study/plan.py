"""The plan of a study, as ``--dry-run`` shows it."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from fmnist.config import cases, widths
from fmnist.config.results import label
from fmnist.config.settings import IMAGES
from fmnist.config.study import StudyConfig
from fmnist.functional.cnn import IMAGE_SIZE
from fmnist.reports.words import counted, duration
from fmnist.study import speeds
from fmnist.tuning import capacity, scheduler


def plan(config: StudyConfig, out: Path, max_lanes: int | None, device: torch.device) -> str:
    """Describe what a run of the study trains, where, and how long it will take.

    Args:
        config: the study.
        out: the folder of the run.
        max_lanes: maximum number of lanes of a group; by default as many as fit in memory.
        device: the device of the training.
    """
    images, shape = IMAGES - config.holdout, (1, IMAGE_SIZE, IMAGE_SIZE)
    numbered = [(number, p, config.trial(p)) for number, p in enumerate(config.points())]
    groups = []
    for group in scheduler.chunks(numbered, lambda item: item[2].static, max_lanes or config.size):
        own = [trial for *_, trial in group]
        most = max_lanes or capacity.lanes_that_fit(own, device, images, shape)
        groups += scheduler.chunks(group, lambda _: 0, most)
    lanes = f"at most {max_lanes} at once" if max_lanes else "as many at once as fit in half of it"
    lines = [
        f"study {config.name}: {counted(config.size, 'trial')} of "
        f"{counted(config.epochs, 'epoch')} of {images:,} images",
        f"fixed{', where no case says otherwise' if config.cases else ''}: {fixed(config)}",
        *cases.explained(config),
        *widths.explained(config),
        f"device {device}, {_gigabytes(capacity.free_memory(device))} of memory free; "
        f"lanes: {lanes}",
    ]
    seconds, unknown = 0.0, 0
    for index, group in enumerate(groups, 1):
        trials = [trial for *_, trial in group]
        rate = speeds.recall(trials[0], images, device, len(group))
        needed = _gigabytes(capacity.lanes_bytes(trials, images, shape))
        speed = "unknown"
        if math.isfinite(rate):
            seconds += (took := len(group) * config.epochs * images / rate)
            speed = f"{rate:,.0f} images/s, {duration(took)}"
        else:
            unknown += 1
        static = {
            key: value
            for key, value in group[0][1].items()
            if config.settings[key].role == "static" and all(p[key] == value for _, p, _ in group)
        }
        what = label(static) if static else f"batch size {trials[0].batch_size}"
        lines.append(
            f"group {index} of {len(groups)}: {what}; {counted(len(group), 'lane')} at once, "
            f"about {needed}; speed {speed}"
        )
        lines += [f"  trial {number}: {label(point)}" for number, point, _ in group]
    lines.append(_expected(seconds, unknown, len(groups)))
    if (out / "study.db").exists():
        lines.append(f"{out} has a run: what is complete in it is not trained again")
    return "\n".join(lines)


FEATURES = (
    "metric_window", "keep", "test", "feature_dropout", "linear_norm", "flip_average",
    "decay_biases",
)  # fmt: skip
"""Like the settings of [training], these are off by default, and then not worth a word."""


def fixed(config: StudyConfig) -> str:
    """The settings that are not axes and have an effect, on one line; no features that are off."""
    tables = config.to_dict()
    tables.pop("grid", None)
    tables.pop("cases", None)
    del tables["study"]["name"], tables["study"]["epochs"]
    settings = {
        key: value
        for table, entries in tables.items()
        for key, value in entries.items()
        if not (table == "training" or key in FEATURES)
        or config.setting(key) != config.defaults[key]
    }
    return ", ".join(f"{key} {config.settings[key].scalar(v)}" for key, v in settings.items())


def _expected(seconds: float, unknown: int, groups: int) -> str:
    if not unknown:
        return f"expected time of training: {duration(seconds)}, at the speeds of earlier runs here"
    if unknown == groups:
        return "expected time: unknown, as nothing like it was trained on this machine yet"
    known = f"{duration(seconds)} for the others"
    return f"expected time of training: unknown for {counted(unknown, 'group')}, {known}"


def _gigabytes(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 0.1 * 2**30 else f"{size / 2**20:.0f} MiB"
