"""Attributes, artifacts, notes and a plot of a study for optuna-dashboard.

Attributes and artifacts need only Optuna. Notes and the plot need the extra ``dashboard``; without
it they are left out, with a line in the log. Artifacts belong to the study, as Optuna adds none to
a trial that has ended, and the winner is known at the end only.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import optuna
from optuna.artifacts import FileSystemArtifactStore, upload_artifact

from fmnist.config.results import TrialResult
from fmnist.config.study import StudyConfig
from fmnist.reports.dashboard import notes, stored
from fmnist.reports.findings import Findings
from fmnist.rundir import files, models
from fmnist.tuning import events
from fmnist.utils import interpreter

ATTRIBUTES = {"Device": "device", "Commit": "commit", "Versions": "versions"}
"""Name in the provenance -> user attribute of a trial."""

VERSIONS = {"Python", "fmnist", "torch", "optuna"}
"""The versions on a trial's page, which does not wrap lines. The study's note has all of them."""

WINNER = {
    "curves": "winner-curves.png",
    "parameters": "winner-params.safetensors",
    "configuration": "winner-config.json",
}
"""Kind -> file name of the artifacts that are of the winner."""

FIGURES = ("curves", "heatmap", "confusion", "confused_pairs", "samples")
"""The figures in the study's note, in their order."""

PLOT_ID = "fmnist-over-time"

_log = logging.getLogger(__name__)


def installed() -> bool:
    """Whether optuna-dashboard is installed."""
    return find_spec("optuna_dashboard") is not None


class DashboardMirror:
    """Mirrors a running study to optuna-dashboard.

    The trials of a group get their notes together when the next group starts, and those of the last
    one in :func:`publish`: each writing reads the notes of all trials.
    """

    def __init__(
        self,
        study: optuna.Study,
        config: StudyConfig,
        *,
        provenance: Mapping[str, str],
        done: Sequence[TrialResult],
        images: int,
    ) -> None:
        """Write the note of the running study.

        Args:
            study: Optuna's study.
            config: the study.
            provenance: the provenance of the results; trials get :data:`ATTRIBUTES` of it.
            done: the results of the trials that ended in an earlier process.
            images: how many images an epoch of a trial trains on.
        """
        self._study, self._config, self._images = study, config, images
        about = {key: provenance.get(name, "") for name, key in ATTRIBUTES.items()}
        versions = about["versions"].split(", ")
        shown = [version for version in versions if version.partition(" ")[0] in VERSIONS]
        about["versions"] = ", ".join(shown)
        self._about = {key: value for key, value in about.items() if value}
        self._ended = list(done)
        if not installed():
            _log.info(
                "optuna-dashboard is not installed, so the study gets no notes; to install it: %s",
                interpreter.install("optuna-dashboard"),
            )
        elif len(done) < config.size:
            stored.write_study(study, notes.running(config, provenance))

    def __call__(self, event: events.Event) -> None:
        """Write what trials that ended are to show."""
        if isinstance(event, events.TrialFinished):
            self.finish(event.result)
        elif isinstance(event, events.GroupStarted) and installed():
            stored.write_trials(self._study, self._config, self._ended)
            self._ended = []

    def finish(self, result: TrialResult) -> None:
        """Write a trial's attributes. Call it before ``study.tell``, which writes the others."""
        key = self._study._storage.get_trial_id_from_study_id_trial_number(
            self._study._study_id, result.number
        )
        about: dict[str, str | float] = {**self._about}
        if result.state == "COMPLETE" and result.seconds > 0:
            speed = self._images * len(result.history) / result.seconds
            about["images_per_second"] = float(f"{speed:.4g}")
        for name, value in about.items():
            self._study._storage.set_trial_user_attr(key, name, value)
        self._ended.append(result)


def publish(out: Path, findings: Findings, study: optuna.Study) -> list[Path]:
    """Write what the dashboard shows of the whole study: figures, files, notes, the plot over time.

    A second call replaces what the first one wrote: there is one note, and one artifact of each
    name. What a person wrote above our part of a note is kept.

    Args:
        out: the run's folder; the note shows those of :data:`FIGURES` that its ``figures/`` has,
            and links to the winner in its ``best/``.
        findings: what the study found.
        study: Optuna's study.

    Returns:
        The files of the artifacts.
    """
    config, best = findings.config, findings.winner
    with files.scratch_folder(out) as folder:
        made = {_figure(name): out / "figures" / f"{name}.png" for name in FIGURES}
        if best is not None:
            from fmnist.reports import figures  # seaborn, which training need not wait for

            made |= {
                WINNER["curves"]: figures.curves([best], config, folder / "curves.png"),
                WINNER["parameters"]: models.best_path(out),
                WINNER["configuration"]: models.best_path(out).with_name("config.json"),
            }
        for name, path in made.items():
            if path.exists():
                copy = folder / name
                shutil.copyfile(path, copy)
                _upload(study, copy, out)
    if installed():
        _write_views(findings, study)
    ids = _artifact_ids(study)
    return [out / "artifacts" / ids[name] for name in made if name in ids]


def _write_views(findings: Findings, study: optuna.Study) -> None:
    """Write the notes of the study and of its trials, and the plot over time."""
    from optuna_dashboard import save_plotly_graph_object

    config, known = findings.config, _artifact_addresses(study)
    pictures = {name: known[_figure(name)] for name in FIGURES if _figure(name) in known}
    links = {kind: known[name] for kind, name in WINNER.items() if name in known}
    page = f"/dashboard/studies/{study._study_id}"
    stored.write_study(study, notes.results(findings, pictures, page))
    stored.write_trials(study, config, findings.results, findings.winner, links)
    # Its type is a Plotly figure, but it calls only to_json.
    plot = notes.TimePlot(findings)
    save_plotly_graph_object(study, plot, graph_object_id=PLOT_ID)


def _figure(name: str) -> str:
    return f"study-{name}.png"


def _artifact_addresses(study: optuna.Study) -> dict[str, str]:
    """File name -> address in the dashboard, of the study's artifacts."""
    from optuna_dashboard.artifact import get_artifact_path

    return {name: get_artifact_path(study, key) for name, key in _artifact_ids(study).items()}


def _artifact_ids(study: optuna.Study) -> dict[str, str]:
    """File name -> id of the study's artifacts."""
    attrs = study._storage.get_study_system_attrs(study._study_id)
    # optuna.artifacts.get_all_artifact_meta fails when the dashboard has deleted an artifact.
    known = [json.loads(value) for key, value in attrs.items() if key.startswith("artifacts:")]
    return {meta["filename"]: meta["artifact_id"] for meta in known if meta is not None}


def _upload(study: optuna.Study, path: Path, out: Path) -> None:
    """Upload a file as an artifact, or replace the content of the artifact of its name."""
    (out / "artifacts").mkdir(exist_ok=True)
    store = FileSystemArtifactStore(out / "artifacts")
    known = _artifact_ids(study).get(path.name)
    if known is None:
        upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=study)
        return
    with path.open("rb") as file:
        store.write(known, file)
