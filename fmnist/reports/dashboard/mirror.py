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

import optuna
from optuna.artifacts import FileSystemArtifactStore, upload_artifact

from fmnist.config.results import TrialResult, winner
from fmnist.config.study import StudyConfig
from fmnist.reports.dashboard import notes
from fmnist.reports.findings import Findings
from fmnist.rundir import files, models
from fmnist.tuning import events
from fmnist.utils import interpreter
from fmnist.utils.patience import repeated

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
        about = {key: provenance.get(name, "") for name, key in ATTRIBUTES.items()}
        versions = about["versions"].split(", ")
        shown = [version for version in versions if version.partition(" ")[0] in VERSIONS]
        about["versions"] = ", ".join(shown)
        self._about = {key: value for key, value in about.items() if value}
        self._ended, self._best = len(done), winner(done, config.metric)
        if not installed():
            _log.info(
                "optuna-dashboard is not installed, so the study gets no notes; to install it: %s",
                interpreter.install("optuna-dashboard"),
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
        # Optuna's tell writes the attributes of the result.
        for key, value in self._about.items():
            trial.set_user_attr(key, value)
        if result.state == "COMPLETE" and result.seconds > 0:
            speed = self._images * len(result.history) / result.seconds
            trial.set_user_attr("images_per_second", float(f"{speed:.4g}"))
        self._ended += 1
        rivals = [result] if self._best is None else [self._best, result]
        if winner(rivals, self._config.metric) is not result:
            return
        self._best = result
        repeated(lambda: _upload_trial(trial, self._config, result, parameters, self._out))
        if installed():
            _write_best_note(trial, self._config, result, of=self._ended)


def publish(
    out: Path, findings: Findings, study: optuna.Study, damaged: Sequence[str] | None = ()
) -> list[Path]:
    """Write what the dashboard shows of the whole study: figures, note, the plot over time.

    A second call replaces what the first one wrote: there is one note, and one artifact of each
    name. What a person wrote above our part of a note is kept. The artifact files of a trial are
    written again when one of them is wrong; but only those that artifacts of the study name, as
    Optuna adds no artifact to a trial that has ended.

    Args:
        out: the run's folder; the note shows those of :data:`FIGURES` that its ``figures/`` has.
        findings: what the study found.
        study: Optuna's study.
        damaged: the files that are missing or damaged, relative to ``out``; None when that is not
            known, and every file is written again.

    Returns:
        The files of our artifacts, without those of trials whose parameters are lost.
    """
    with files.scratch_folder(out) as folder:
        for name in FIGURES:
            drawn, copy = out / "figures" / f"{name}.png", folder / _figure(name)
            if drawn.exists():
                shutil.copyfile(drawn, copy)
                _upload(study, copy, out)
    if installed():
        _write_views(findings, study)
    ids = _artifact_ids(study)
    ours = {out / "artifacts" / ids[key] for key in map(_figure, FIGURES) if key in ids}
    wrong = {out / name for name in damaged or ()}
    trials = study.get_trials(deepcopy=False)
    for result in findings.results:
        ids, lost = _artifact_ids(trials[result.number]), result.number in findings.lost
        known = {kind: ids[name] for kind, name in _names(result.number).items() if name in ids}
        if lost:
            known.pop("parameters", None)
        paths = {out / "artifacts" / key for key in known.values()}
        if known and (damaged is None or paths & wrong):
            trial = _trial(study, result.number)
            path = None if lost else models.model_path(out, result.number)
            _upload_trial(trial, findings.config, result, path, out, known.keys())
        ours |= set() if lost else paths
    return [path for path in ours if path.is_file()]


def _write_views(findings: Findings, study: optuna.Study) -> None:
    """Write the notes of the study and of its winner, and the plot over time."""
    from optuna_dashboard import save_plotly_graph_object

    config, known, best = findings.config, _artifact_addresses(study), findings.winner
    plot = notes.TimePlot(config, findings.results)
    pictures = {name: known[_figure(name)] for name in FIGURES if _figure(name) in known}
    page = f"/dashboard/studies/{study._study_id}"
    _write_note(study, notes.results(findings, pictures, page))
    if best is not None:
        _write_best_note(_trial(study, best.number), config, best)
    # Its type is a Plotly figure, but it calls only to_json.
    save_plotly_graph_object(study, plot, graph_object_id=PLOT_ID)


def _names(number: int) -> dict[str, str]:
    return {kind: f"trial-{number}-{name}" for kind, name in OF_A_TRIAL.items()}


def _figure(name: str) -> str:
    return f"study-{name}.png"


def _trial(study: optuna.Study, number: int) -> optuna.Trial:
    key = study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
    return optuna.Trial(study, key)


def _artifact_addresses(owner: optuna.Study | optuna.Trial) -> dict[str, str]:
    """File name -> address in the dashboard, of the owner's artifacts."""
    from optuna_dashboard.artifact import get_artifact_path

    return {name: get_artifact_path(owner, key) for name, key in _artifact_ids(owner).items()}


def _artifact_ids(owner: optuna.Study | optuna.Trial | optuna.trial.FrozenTrial) -> dict[str, str]:
    """File name -> id of the owner's artifacts."""
    if isinstance(owner, optuna.Study):
        attrs = owner._storage.get_study_system_attrs(owner._study_id)
    elif isinstance(owner, optuna.Trial):
        attrs = owner.storage.get_trial_system_attrs(owner._trial_id)
    else:
        attrs = owner.system_attrs
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
    from fmnist.reports import figures  # seaborn costs half a second, which training need not wait

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
    (out / "artifacts").mkdir(exist_ok=True)
    store = FileSystemArtifactStore(out / "artifacts")
    known = _artifact_ids(owner).get(path.name)
    if known is None:
        upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=owner)
        return
    with path.open("rb") as file:
        store.write(known, file)


def _write_best_note(
    trial: optuna.Trial, config: StudyConfig, result: TrialResult, of: int | None = None
) -> None:
    known = _artifact_addresses(trial)
    names = _names(result.number).items()
    links = {kind: known[name] for kind, name in names if name in known}
    _write_note(trial, notes.best(config, result, links, of))


def _write_note(owner: optuna.Study | optuna.Trial, text: str) -> None:
    from optuna_dashboard import get_note, save_note

    known = get_note(owner)
    if (whole := notes.with_kept(known, text)) != known:
        save_note(owner, whole)
