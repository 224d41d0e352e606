"""A run's folder and its study in the storage belong together, and to no other study or folder.

Both hold one identity: the folder in ``.run``, the study in an attribute. So it shows when a
storage was lost or emptied under a folder that holds results, and nothing is written over.
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
_REFERENCE = "reference.toml"  # instead of the study's, where the plain loop trained it
_ENDED = ("results.csv", "checksums.sha256")
_WRITTEN = (
    *_ENDED, "history.csv", "report.md", "report.html", "checkpoints",
    "best", "figures", "parameters", "tensorboard", "artifacts", _REFERENCE,
)  # fmt: skip


def is_taken(out: Path) -> bool:
    """Whether a study has this folder."""
    database = out / _DATABASE
    begun = database.is_file() and database.stat().st_size > 0
    return begun or any(os.path.lexists(out / name) for name in (_STUDY, _ID))


def check(out: Path, config: configs.StudyConfig) -> Path | None:
    """See that the folder is this study's, or nobody's; nothing is written.

    Returns:
        What shows that the study has begun, and so must be in the storage; None when it has not.

    Raises:
        UserError: the folder is another's.
    """
    if not _is_of(out / _STUDY, config) and not is_taken(out):
        _check_free(out, "study")
    left = [*(out / name for name in (_ID, *_ENDED)), *_parameters(out)]
    return next((path for path in left if os.path.lexists(path)), None)


def take_for_reference(out: Path, config: configs.StudyConfig) -> None:
    """Mark the folder as that of the plain loop's results of this study, which it writes over.

    Raises:
        UserError: the folder is another's.
    """
    if is_taken(out):
        raise UserError(f"--out {out} holds a run of fmnist.study; choose another --out")
    path = out / _REFERENCE
    if not _is_of(path, config):
        _check_free(out, _REFERENCE)
        files.write_text(path, config.to_toml())


def _is_of(path: Path, config: configs.StudyConfig) -> bool:
    """Whether a folder's note of what was run is there.

    Raises:
        UserError: it is of another study.
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
    """See that nothing is there that would be written over.

    Args:
        out: the folder.
        lacks: what would show that it was ours.

    Raises:
        UserError: there is.
    """
    for name in _WRITTEN:
        if os.path.lexists(out / name):
            raise UserError(
                f"--out {out} holds {name}, which a study would write over, but no {lacks}; "
                "choose another --out"
            )


def take(out: Path, config: configs.StudyConfig, study: optuna.Study, *, shared: bool) -> None:
    """Mark the folder as this study's, and the study as this folder's.

    Args:
        out: the folder; it may be moved later.
        config: the study.
        study: in the storage.
        shared: whether other folders may use that storage, too. Two folders would train the
            study's trials twice, and each would have the parameters of some.

    Raises:
        UserError: when the study is another folder's, or lost what the folder has results of.
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
    elif not own and not shared:  # it was lost; the study lies in this folder
        own = str(theirs)
        files.write_text(path, own)
    confirm(out, config, study)


def confirm(out: Path, config: configs.StudyConfig, study: optuna.Study) -> None:
    """See that the study is still this folder's.

    Two folders that begin the same study at the same moment both mark it; the last one has it.

    Raises:
        UserError: it is another's.
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
    """The files of trials' parameters."""
    return [p for p in sorted((out / "parameters").glob("*.safetensors")) if p.stem.isdecimal()]
