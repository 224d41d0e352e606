"""A run's folder and its study in the storage belong together, and to no other study or folder."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from fmnist import config as configs
from fmnist import files
from fmnist.errors import UserError

if TYPE_CHECKING:
    import optuna

RUN = "fmnist:run"
_STUDY, _DATABASE, _ID = "study.toml", "study.db", ".run"
_WRITTEN = (
    "results.csv", "history.csv", "report.md", "report.html",
    "best", "figures", "parameters", "tensorboard", "artifacts",
)  # fmt: skip


def is_taken(out: Path) -> bool:
    """Whether a study has this folder."""
    return any((out / name).exists() for name in (_STUDY, _DATABASE, _ID))


def check(out: Path, config: configs.StudyConfig) -> None:
    """See that the folder is this study's, or nobody's; nothing is written.

    Raises:
        UserError: it is not.
    """
    path = out / _STUDY
    if path.exists():
        changes = configs.differences(configs.load(path), config)
        if changes:
            raise UserError(
                f"--out {out} holds another study ({'; '.join(changes)}); "
                "choose another --out, or delete that folder"
            )
    elif not is_taken(out):
        for name in _WRITTEN:
            if (out / name).exists():
                raise UserError(
                    f"--out {out} holds {name}, which a study would write over, but no study; "
                    "choose another --out"
                )


def take(out: Path, config: configs.StudyConfig, shared: optuna.Study | None) -> None:
    """Mark the folder as this study's, and the study as this folder's.

    Args:
        out: the folder; it may be moved later.
        config: the study.
        shared: in a storage that other folders may use, too. Two folders would train its trials
            twice, and each would have the parameters of some.

    Raises:
        UserError: when the study is another folder's.
    """
    if shared is not None:
        path = out / _ID
        own = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        if RUN not in shared.user_attrs:
            own = own or str(uuid.uuid4())
            files.write_text(path, own)
            shared.set_user_attr(RUN, own)
        if shared.user_attrs[RUN] != own:
            raise UserError(
                f"study {config.name!r} in the storage belongs to another folder than {out}; "
                "give that as --out, or this study another name (--set name=...)"
            )
    if not (out / _STUDY).exists():
        files.write_text(out / _STUDY, config.to_toml())
