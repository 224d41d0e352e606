"""Attributes, artifacts, notes and a plot of a study for optuna-dashboard.

Attributes and artifacts need only Optuna. Notes and the plot need the extra ``dashboard``; without
it they are left out, with a line in the log.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmnist.config.results import winner
from fmnist.reports.dashboard import notes
from fmnist.reports.dashboard.time_plot import TimePlot
from fmnist.rundir import files, models
from fmnist.tuning import events

if TYPE_CHECKING:
    import optuna

    from fmnist.config.results import TrialResult, Value
    from fmnist.config.study import StudyConfig
    from fmnist.reports.findings import Findings

ATTRIBUTES = {"Device": "device", "Commit": "commit", "Versions": "versions"}
"""Name in the provenance -> user attribute of a trial."""

VERSIONS = {"Python", "fmnist", "torch", "optuna"}
"""The versions on a trial's page, which does not wrap lines. The study's note has all of them."""

OF_A_TRIAL = {
    "curves": "curves.png",
    "parameters": "params.safetensors",
    "configuration": "config.json",
}
"""Kind -> file name of the artifacts of a best trial; ``trial-N-`` is put before the name."""

FIGURES = ("curves", "heatmap", "confusion", "confused_pairs", "samples")
"""The figures in the study's note, in their order."""

PLOT_ID = "fmnist-over-time"

_log = logging.getLogger(__name__)


def artifact_folder(out: Path) -> Path:
    """The folder of a run's artifacts, for ``optuna-dashboard --artifact-dir``."""
    return Path(out) / "artifacts"


def installed() -> bool:
    """Whether optuna-dashboard is installed."""
    return find_spec("optuna_dashboard") is not None


class DashboardMirror:
    """Mirrors a running study to optuna-dashboard.

    A trial that is the best so far when it ends gets its learning curves, parameters and
    configuration as artifacts. They are written then because Optuna adds no artifact to a trial
    that has ended. The winner is always one of these trials, and in the random order of the grid
    they are few.
    """

    def __init__(
        self,
        study: optuna.Study,
        config: StudyConfig,
        out: Path,
        *,
        provenance: Mapping[str, str],
        done: Sequence[TrialResult],
        images: int,
    ) -> None:
        """Write the note of the running study.

        Args:
            study: Optuna's study.
            config: the study.
            out: the run's folder.
            provenance: the provenance of the results; trials get :data:`ATTRIBUTES` of it.
            done: the results of the trials that ended in an earlier process.
            images: how many images an epoch of a trial trains on.
        """
        self._study, self._config, self._out, self._images = study, config, Path(out), images
        self._about = {key: provenance.get(name, "") for name, key in ATTRIBUTES.items()}
        parts = self._about["versions"].split(", ")
        shown = [part for part in parts if part.partition(" ")[0] in VERSIONS]
        self._about["versions"] = ", ".join(shown)
        self._ended, self._best = len(done), winner(done, config.metric)
        if not installed():
            _log.info(
                "optuna-dashboard is not installed, so the study gets no notes: "
                "pip install 'fmnist[dashboard]'"
            )
        elif len(done) < config.size:
            _write_note(study, notes.running(config, provenance))

    def __call__(self, event: events.Event) -> None:
        """Write what a trial that ended is to show."""
        if isinstance(event, events.TrialFinished):
            number = event.result.number
            self.finish(event.result, models.model_path(self._out, number))

    def finish(self, result: TrialResult, parameters: Path) -> None:
        """Write a trial's attributes and, when it is the best so far, its artifacts and note.

        Call it before ``study.tell``.

        Args:
            result: the trial's result.
            parameters: the file of its parameters.
        """
        trial = _trial(self._study, result.number)
        for key, value in self._attributes(result).items():
            trial.set_user_attr(key, value)
        self._ended += 1
        rivals = [result] if self._best is None else [self._best, result]
        if winner(rivals, self._config.metric) is not result:
            return
        self._best = result
        _upload_trial(trial, self._config, result, parameters, self._out)
        if installed():
            links = _trial_links(trial, result.number)
            _write_note(trial, notes.best(self._config, result, links, of=self._ended))

    def _attributes(self, result: TrialResult) -> dict[str, Value]:
        """The trial's provenance and speed. Optuna's tell writes the attributes of the result."""
        found: dict[str, Value] = {key: value for key, value in self._about.items() if value}
        if result.state == "COMPLETE" and result.seconds > 0:
            seen = self._images * len(result.history)
            found["images_per_second"] = float(f"{seen / result.seconds:.4g}")
        return found


def publish(out: Path, findings: Findings, study: optuna.Study) -> None:
    """Write what the dashboard shows of the whole study: figures, note, the plot over time.

    A second call replaces what the first one wrote: there is one note, and one artifact of each
    name. What a person wrote above our part of a note is kept.

    Args:
        out: the run's folder; the note shows those of :data:`FIGURES` that its ``figures/`` has.
        findings: what the study found.
        study: Optuna's study.
    """
    config, results, best = findings.config, findings.results, findings.winner
    with files.scratch_folder(out) as folder:
        for name in FIGURES:
            drawn, copy = out / "figures" / f"{name}.png", folder / _figure(name)
            if drawn.exists():
                shutil.copyfile(drawn, copy)
                _upload(study, copy, out)
    if not installed():
        return
    from optuna_dashboard import save_plotly_graph_object

    known = _artifact_addresses(study)
    pictures = {name: known[_figure(name)] for name in FIGURES if _figure(name) in known}
    page = f"/dashboard/studies/{study._study_id}"
    _write_note(study, notes.results(findings, pictures, page))
    if best is not None:
        trial = _trial(study, best.number)
        _write_note(trial, notes.best(config, best, _trial_links(trial, best.number)))
    # Its type is a Plotly figure, but it calls only to_json.
    save_plotly_graph_object(study, TimePlot(config, results), graph_object_id=PLOT_ID)


def mend(out: Path, findings: Findings, study: optuna.Study, damaged: Sequence[str] | None) -> None:
    """Write the artifact files of each trial again when one of them is wrong.

    Only files that artifacts of the study name are written: Optuna adds no artifact to a trial
    that has ended.

    Args:
        out: the run's folder.
        findings: what the study found.
        study: Optuna's study.
        damaged: the files that are missing or damaged, relative to ``out``; None when that is not
            known, and every file is written again.
    """
    parameters = findings.parameter_files(out)
    wrong = {out / name for name in damaged or ()}
    attrs = [trial.system_attrs for trial in study.get_trials(deepcopy=False)]
    for result in findings.results:
        known = _artifact_ids_in(attrs[result.number])
        names = {kind: name for kind, name in _names(result.number).items() if name in known}
        if result.number not in parameters:
            names.pop("parameters", None)
        paths = {artifact_folder(out) / known[name] for name in names.values()}
        if names and (damaged is None or paths & wrong):
            trial, path = _trial(study, result.number), parameters.get(result.number)
            _upload_trial(trial, findings.config, result, path, out, names.keys())


def artifacts(out: Path, findings: Findings, study: optuna.Study) -> list[Path]:
    """List the files of our artifacts, after :func:`mend`.

    Args:
        out: the run's folder.
        findings: what the study found.
        study: Optuna's study.

    Returns:
        Existing files, without those of trials whose parameters are lost.
    """
    trials = [trial.system_attrs for trial in study.get_trials(deepcopy=False)]
    ours = [(_artifact_ids(study), [_figure(name) for name in FIGURES])]
    ours += [
        (_artifact_ids_in(trials[n]), [*_names(n).values()]) for n in findings.parameter_files(out)
    ]
    keys = [known[name] for known, names in ours for name in names if name in known]
    paths = [artifact_folder(out) / key for key in keys]
    return [path for path in paths if path.is_file()]


def _names(number: int) -> dict[str, str]:
    return {kind: f"trial-{number}-{name}" for kind, name in OF_A_TRIAL.items()}


def _figure(name: str) -> str:
    return f"study-{name}.png"


def _trial(study: optuna.Study, number: int) -> optuna.Trial:
    import optuna

    key = study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
    return optuna.Trial(study, key)


def _trial_links(trial: optuna.Trial, number: int) -> dict[str, str]:
    known = _artifact_addresses(trial)
    return {kind: known[name] for kind, name in _names(number).items() if name in known}


def _artifact_addresses(owner: optuna.Study | optuna.Trial) -> dict[str, str]:
    """File name -> address in the dashboard, of the owner's artifacts."""
    from optuna_dashboard.artifact import get_artifact_path

    return {name: get_artifact_path(owner, key) for name, key in _artifact_ids(owner).items()}


def _artifact_ids(owner: optuna.Study | optuna.Trial) -> dict[str, str]:
    """File name -> id of the owner's artifacts."""
    import optuna

    if isinstance(owner, optuna.Study):
        return _artifact_ids_in(owner._storage.get_study_system_attrs(owner._study_id))
    return _artifact_ids_in(owner.storage.get_trial_system_attrs(owner._trial_id))


def _artifact_ids_in(attrs: Mapping[str, Any]) -> dict[str, str]:
    """File name -> id of the artifacts in these system attributes."""
    # optuna.artifacts.get_all_artifact_meta fails when the dashboard has deleted an artifact.
    stored = [json.loads(value) for key, value in attrs.items() if key.startswith("artifacts:")]
    return {meta["filename"]: meta["artifact_id"] for meta in stored if meta is not None}


def _upload_trial(
    trial: optuna.Trial,
    config: StudyConfig,
    result: TrialResult,
    parameters: Path | None,
    out: Path,
    kinds: Set[str] = OF_A_TRIAL.keys(),
) -> None:
    """Upload these kinds of :data:`OF_A_TRIAL`; that of parameters needs their file."""
    from fmnist.reports import figures

    with files.scratch_folder(out) as folder:
        paths = {kind: folder / name for kind, name in _names(result.number).items()}
        figures.curves([result], config, paths["curves"])
        if parameters is not None:
            shutil.copyfile(parameters, paths["parameters"])
        about = {"point": dict(result.point), **asdict(config.trial(result.point))}
        paths["configuration"].write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        for kind in OF_A_TRIAL:
            if kind in kinds:
                _upload(trial, paths[kind], out)


def _upload(owner: optuna.Study | optuna.Trial, path: Path, out: Path) -> None:
    """Upload a file as an artifact, or replace the content of the artifact of its name."""
    from optuna.artifacts import FileSystemArtifactStore, upload_artifact

    folder = artifact_folder(out)
    folder.mkdir(exist_ok=True)
    store = FileSystemArtifactStore(folder)
    known = _artifact_ids(owner).get(path.name)
    if known is None:
        upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=owner)
        return
    with path.open("rb") as file:
        store.write(known, file)


def _write_note(owner: optuna.Study | optuna.Trial, text: str) -> None:
    from optuna_dashboard import get_note, save_note

    known = get_note(owner)
    if (whole := notes.with_kept(known, text)) != known:
        save_note(owner, whole)
