"""Pairs a run's folder with its study in the storage, so that neither is used with another.

Both hold one identity: the folder in its file ``.run``, the study in an attribute. When the storage
was lost or emptied, the identities differ, and the results in the folder are not overwritten.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from fmnist.config import study as configs
from fmnist.rundir import files
from fmnist.utils.errors import UserError

if TYPE_CHECKING:
    import optuna

RUN = "fmnist:run"
_STUDY, _DATABASE, _ID = "study.toml", "study.db", ".run"
_REFERENCE = "reference.toml"  # in place of study.toml, where fmnist.reference trained
_ENDED = ("results.csv", "checksums.sha256")
_WRITTEN = (
    *_ENDED, "history.csv", "report.md", "report.html", "checkpoints",
    "best", "figures", "parameters", "tensorboard", "artifacts", _REFERENCE,
)  # fmt: skip


def is_taken(out: Path) -> bool:
    """Whether a run of fmnist.study has begun in this folder."""
    database = out / _DATABASE
    begun = database.is_file() and database.stat().st_size > 0
    return begun or any(os.path.lexists(out / name) for name in (_STUDY, _ID))


def check(out: Path, config: configs.StudyConfig) -> Path | None:
    """Check that the folder belongs to this study, or is free. Nothing is written.

    Args:
        out: the run's folder.
        config: the study.

    Returns:
        A file that shows that the study has begun and must be in the storage; None without one.

    Raises:
        UserError: The folder belongs to another study, or holds files that would be overwritten.
    """
    if not _names_study(out / _STUDY, config) and not is_taken(out):
        _check_free(out, "study")
    left = [*(out / name for name in (_ID, *_ENDED)), *_parameters(out)]
    return next((path for path in left if os.path.lexists(path)), None)


def take_for_reference(out: Path, config: configs.StudyConfig) -> None:
    """Mark the folder as one of fmnist.reference, whose earlier results may be overwritten.

    Args:
        out: the folder of the results.
        config: the study.

    Raises:
        UserError: The folder belongs to a run of fmnist.study or to another study, or holds files
            that would be overwritten.
    """
    if is_taken(out):
        raise UserError(f"--out {out} holds a run of fmnist.study; choose another --out")
    path = out / _REFERENCE
    if not _names_study(path, config):
        _check_free(out, _REFERENCE)
        files.write_text(path, config.to_toml())


def _names_study(path: Path, config: configs.StudyConfig) -> bool:
    """Whether the file that names a folder's study exists.

    Raises:
        UserError: It names another study.
    """
    if not os.path.lexists(path):
        return False
    if changes := configs.differences(configs.load(path), config):
        raise UserError(
            f"--out {path.parent} holds another study ({'; '.join(changes)}); "
            "choose another --out, or delete that folder"
        )
    return True


def _check_free(out: Path, lacks: str) -> None:
    """Check that the folder holds no file that a run would overwrite.

    Args:
        out: the folder.
        lacks: what would show that the files are this study's; the error names it.

    Raises:
        UserError: The folder holds such a file.
    """
    for name in _WRITTEN:
        if os.path.lexists(out / name):
            raise UserError(
                f"--out {out} holds {name}, which a study would write over, but no {lacks}; "
                "choose another --out"
            )


def take(out: Path, config: configs.StudyConfig, study: optuna.Study, *, shared: bool) -> None:
    """Give the folder and the study one identity, or check the one that they have.

    Args:
        out: the folder; it may be moved later.
        config: the study.
        study: the study in the storage.
        shared: whether other folders may use that storage. The trials of a study in two folders
            would train twice, and each folder would hold the parameters of some.

    Raises:
        UserError: The study belongs to another folder, or the storage has lost trials that the
            folder has results of.
    """
    path = out / _ID
    own, theirs = _identity(out), study.user_attrs.get(RUN)
    trials = len(study.get_trials(deepcopy=False))
    if theirs is None and (trials or (own and not os.path.lexists(out / _STUDY))):
        raise UserError(
            f"study {config.name!r} in the storage is not the one that {out} was begun with; "
            "restore that, or choose another --out and name (--set name=...)"
        )
    unknown = [path for path in _parameters(out) if int(path.stem) >= trials]
    if trials == 0:
        unknown += [out / name for name in _ENDED if os.path.lexists(out / name)]
    if unknown:
        raise UserError(
            f"{unknown[0]} is of a trial that the storage does not have any more; "
            "restore the storage, or choose another --out"
        )
    if not os.path.lexists(out / _STUDY):
        files.write_text(out / _STUDY, config.to_toml())
    if theirs is None:
        own = theirs = own or str(uuid.uuid4())
        files.write_text(path, own)
        study.set_user_attr(RUN, own)
    elif not own and not shared:  # .run was lost; the storage lies in this folder
        own = str(theirs)
        files.write_text(path, own)
    confirm(out, config, study)


def confirm(out: Path, config: configs.StudyConfig, study: optuna.Study) -> None:
    """Check that the study still belongs to this folder.

    When two folders begin the same study at the same moment, both mark it, and the last one wins.

    Args:
        out: the run's folder.
        config: the study.
        study: the study in the storage.

    Raises:
        UserError: The study belongs to another folder.
    """
    theirs = study.user_attrs.get(RUN)
    if theirs != _identity(out):
        raise UserError(
            f"study {config.name!r} in the storage belongs to another folder than {out}, "
            f"which holds {theirs} in its file {_ID}; "
            "give that as --out, or this study another name (--set name=...)"
        )


def _identity(out: Path) -> str:
    path = out / _ID
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.exists() else ""


def _parameters(out: Path) -> list[Path]:
    """The parameter files of the trials."""
    return [p for p in sorted((out / "parameters").glob("*.safetensors")) if p.stem.isdecimal()]
