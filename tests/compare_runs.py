"""All that a study leaves and that is not a time, so that two studies can be compared.

A file in artifacts/ that no artifact names is not seen: a kill may leave one.
"""

from __future__ import annotations

import collections
import csv
import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import optuna
import safetensors.torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from fmnist.rundir import manifest
from fmnist.tuning import storage_url

SPAN = r"(\d+ h )?(\d+ min )?\d+(\.\d+)? (s|min)\b|[\d,]+ images/s"
DATE = r"\d{4}-\d\d-\d\d( \d\d:\d\d UTC)?"
UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
TIMES = {"seconds", "images_per_second"}
"""Columns and attributes."""


def outcome(out: Path) -> dict[str, object]:
    """What a finished study left in its folder, part by part."""
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    url = storage_url.of_run(out)
    (study,) = optuna.get_all_study_names(url)
    stored = optuna.load_study(study_name=study, storage=url)
    shown = [path for path in out.rglob("*") if path.suffix in (".png", ".toml")]
    shown += (out / "tensorboard" / "_winner").rglob("*.*")
    return {
        "files": sorted(n for n in names if "tfevents" not in n and not n.startswith("artifacts/")),
        "damaged": manifest.damaged_files(out),
        "results": [
            {k: v for k, v in row.items() if k not in TIMES}
            for row in csv.DictReader(
                (out / "results.csv").read_text(encoding="utf-8").splitlines()
            )
        ],
        "history": (out / "history.csv").read_bytes(),
        "best": (out / "best" / "config.json").read_bytes(),
        "parameters": {
            str(path.relative_to(out)): {
                name: (tensor.dtype, tensor.tolist())
                for name, tensor in safetensors.torch.load_file(path).items()
            }
            for path in sorted(out.rglob("*.safetensors"))
        },
        "pictures": {
            str(path.relative_to(out)): manifest.sha256_of(path)
            for path in sorted(shown)
            if "tfevents" not in path.name
        },
        "report": timeless((out / "report.md").read_text(encoding="utf-8"), out),
        "page": page((out / "report.html").read_text(encoding="utf-8"), out),
        "events": events(out / "tensorboard"),
        "trials": trials(stored),
        "dashboard": dashboard(stored, out),
    }


def differences(found: Mapping[str, object], expected: Mapping[str, object]) -> list[str]:
    """Which parts are not the same, and where."""
    wrong = [name for name in expected if found[name] != expected[name]]
    for name in list(wrong):
        texts = (lines(outcome[name]) for outcome in (expected, found))
        told = [line[:300] for line in difflib.unified_diff(*texts, lineterm="", n=0)]
        wrong += told[2:22]
    return wrong


def lines(part: object) -> list[str]:
    """A part, a line each thing in it."""
    if isinstance(part, str):
        return part.splitlines()
    if isinstance(part, Mapping):
        return [f"{key}: {line}" for key in sorted(part) for line in lines(part[key])]
    return [str(each) for each in part] if isinstance(part, list) else [str(part)]


def timeless(text: str, out: Path) -> str:
    """A text without the lines that name a time, without spans of time, names and identities."""
    kept = [line for line in text.splitlines() if not re.match(r"\| (Date|Wall time)", line)]
    text = re.sub(SPAN, "TIME", "\n".join(kept).replace(str(out), "OUT"))
    return re.sub(r" +", " ", re.sub(UUID, "ID", re.sub(DATE, "DATE", text)))


def page(text: str, out: Path) -> str:
    """The HTML report without its section about time and its copy of results.csv."""
    text, count = re.subn(r'<section id="time">.*?</section>', "", text, flags=re.DOTALL)
    assert count == 1
    text = re.sub(r'href="data:text/csv[^"]*"', "", text)
    return re.sub(r'data-v="[^"]*">TIME', "TIME", timeless(text.replace("<", "\n<"), out))


def events(root: Path) -> dict[str, list[tuple[int, str, str]]]:
    """Every value of every run, in order; one that is there twice is seen."""
    found = collections.defaultdict(list)
    for path in sorted(root.rglob("*tfevents*")):
        for event in EventFileLoader(str(path)).Load():
            found[str(path.parent.relative_to(root))] += [
                (event.step, value.tag, described(value)) for value in event.summary.value
            ]
    return dict(found)


def described(value: Summary.Value) -> str:
    """A number as it is, anything else by its digest."""
    plugin = value.metadata.plugin_data
    if plugin.plugin_name == "scalars" and value.tensor.float_val:
        return repr(value.tensor.float_val[0])
    if plugin.plugin_name == "hparams":
        data = HParamsPluginData.FromString(plugin.content)
        if data.HasField("session_start_info"):
            data.session_start_info.start_time_secs = 0
        if data.HasField("session_end_info"):
            data.session_end_info.end_time_secs = 0
        plugin.content = data.SerializeToString(deterministic=True)
    return hashlib.sha256(value.SerializeToString(deterministic=True)).hexdigest()


def trials(study: optuna.Study) -> list[object]:
    """What Optuna knows of each trial, times left out."""
    return [
        (
            trial.number,
            trial.state.name,
            trial.params,
            trial.values,
            trial.intermediate_values,
            {key: value for key, value in sorted(trial.user_attrs.items()) if key not in TIMES},
        )
        for trial in study.get_trials(deepcopy=False)
    ]


def dashboard(study: optuna.Study, out: Path) -> dict[str, object]:
    """Artifacts by name, notes and plots: of the study, then of its trials."""
    owners = [study._storage.get_study_system_attrs(study._study_id)]
    owners += [trial.system_attrs for trial in study.get_trials(deepcopy=False)]
    shown: dict[str, object] = {}
    for number, attrs in enumerate(owners, -1):
        for key in [key for key in attrs if key.startswith("artifacts:")]:
            about = json.loads(attrs[key])
            name = f"{number} {about['filename']}"
            assert name not in shown, f"{name} is there twice"
            shown[name] = manifest.sha256_of(out / "artifacts" / about["artifact_id"])
        for kind in ("note_str", "plot_data"):  # a note's version counts how often it was written
            parts = (str(attrs[key]) for key in in_order(attrs) if f":{kind}:" in key)
            text = re.sub(r'"x": \[.*?\]', "", "".join(parts))  # the plot is over seconds
            shown[f"{number} {kind}"] = timeless(text, out)
    return shown


def in_order(keys: Iterable[str]) -> list[str]:
    """Parts of a long text are numbered."""
    return sorted(keys, key=lambda key: (key.rstrip("0123456789"), len(key), key))
