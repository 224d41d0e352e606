"""The folder of a run: held by one process, paired with one study, and checked for damage.

The folder and its study in the storage hold one identity: the folder in its file ``.run``, the
study in an attribute. When the storage was lost or emptied, the identities differ, and the results
in the folder are not overwritten.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import shlex
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fmnist.config import loading
from fmnist.config import study as configs
from fmnist.config.results import TrialResult, winner
from fmnist.functional.types import Params, State
from fmnist.rundir import files, lock, manifest, models
from fmnist.utils.errors import UserError

if TYPE_CHECKING:
    import optuna

RUN = "fmnist:run"
STUDY, _DATABASE, _ID = "study.toml", "study.db", ".run"
REFERENCE = "reference.toml"  # in place of study.toml, where fmnist.reference trained
_ENDED = ("results.csv", manifest.NAME)
_WRITTEN = (
    *_ENDED, "history.csv", "report.md", "report.html", "checkpoints",
    "best", "figures", "parameters", "tensorboard", "artifacts", REFERENCE,
)  # fmt: skip

_log = logging.getLogger("fmnist")


class RunFolder:
    """The folder of a run. :func:`opened` makes one, and holds its lock.

    Args:
        path: the folder.
        config: the study.

    Attributes:
        path, config: as given.
        checkpoints, tensorboard: the folders of the snapshots and of TensorBoard's files in it.
        begun: a file that shows that the study has begun and must be in the storage; None without
            one.
        lost: the numbers of the trials whose parameter file is missing or damaged.
    """

    def __init__(self, path: Path, config: configs.StudyConfig) -> None:
        self.path, self.config = path, config
        self.checkpoints, self.tensorboard = path / "checkpoints", path / "tensorboard"
        self.lost: set[int] = set()
        signs = [*(path / name for name in (_ID, *_ENDED)), *self._parameters()]
        self.begun = next((sign for sign in signs if os.path.lexists(sign)), None)

    def take(self, study: optuna.Study, *, shared: bool) -> None:
        """Give the folder and the study one identity, or check the one that they have.

        Args:
            study: the study in the storage.
            shared: whether other folders may use that storage. The trials of a study in two
                folders would train twice, and each folder would hold the parameters of some.

        Raises:
            UserError: The study belongs to another folder, or the storage has lost trials that the
                folder has results of.
        """
        named = os.path.lexists(self.path / STUDY)
        ours, theirs = self._identity(), study.user_attrs.get(RUN)
        trials = len(study.get_trials(deepcopy=False))
        if theirs is None and (trials or (ours and not named)):
            raise UserError(
                f"study {self.config.name!r} in the storage is not the one that {self.path} was "
                "begun with; restore that, or choose another --out and name (--set name=...)"
            )
        unknown = [path for path in self._parameters() if int(path.stem) >= trials]
        if trials == 0:
            unknown += [self.path / name for name in _ENDED if os.path.lexists(self.path / name)]
        if unknown:
            raise UserError(
                f"{unknown[0]} is of a trial that the storage does not have any more; "
                "restore the storage, or choose another --out"
            )
        if not named:
            files.write_text(self.path / STUDY, self.config.to_toml())
        if theirs is None:
            ours = theirs = ours or str(uuid.uuid4())
            files.write_text(self.path / _ID, ours)
            study.set_user_attr(RUN, ours)
        elif not ours and not shared:  # .run was lost; the storage is in this folder
            files.write_text(self.path / _ID, str(theirs))
        self.confirm(study)

    def confirm(self, study: optuna.Study) -> None:
        """Check that the study still belongs to this folder.

        When two folders begin the same study at the same moment, both mark it, and the last one
        wins.

        Raises:
            UserError: The study belongs to another folder.
        """
        theirs = study.user_attrs.get(RUN)
        if theirs != self._identity():
            raise UserError(
                f"study {self.config.name!r} in the storage belongs to another folder than "
                f"{self.path}, which holds {theirs} in its file {_ID}; "
                "give that as --out, or this study another name (--set name=...)"
            )

    def save_model(self, number: int, params: Params, state: State) -> str:
        """Write the parameters and running statistics of a trial. Return the file's SHA-256."""
        return models.save_model(models.model_path(self.path, number), params, state)

    def check_parameters(self, sums: Mapping[int, str], results: Sequence[TrialResult]) -> None:
        """Find the trials whose parameters are lost, with a warning in the log for each new one.

        The winner's file is restored from ``best/`` where that copy is whole.

        Args:
            sums: the SHA-256 of each trial's parameter file, by trial number.
            results: the results of the trials that ended.

        Raises:
            UserError: The winner's parameters are lost.
        """
        spare = models.best_path(self.path)
        warned, self.lost = self.lost, set()
        for number, expected in sums.items():
            path = models.model_path(self.path, number)
            if manifest.sha256_of(path) == expected:
                continue
            if manifest.sha256_of(spare) == expected:
                files.write_bytes(path, spare.read_bytes())
                _log.warning("%s was missing or damaged, and is restored from %s", path, spare)
                continue
            self.lost.add(number)
            if number not in warned:
                again = "only training in another --out makes it"
                _log.warning("%s is missing or damaged; %s", path, again)
        best = winner(results, self.config.metric)
        if best is not None and best.number in self.lost:
            path = models.model_path(self.path, best.number)
            raise UserError(
                f"{path} is missing or damaged, and is the winner's so far; choose another --out"
            )

    def damaged(self) -> list[str] | None:
        """Find the files other than parameters that are missing or changed; they can be made again.

        Returns:
            Their names, relative to the folder; None when there is no readable manifest.
        """
        names = manifest.damaged_files(self.path)
        return names and [name for name in names if Path(name).parts[0] != "parameters"]

    def seal(self, made: Iterable[Path], sums: Mapping[int, str]) -> None:
        """Write the manifest of a run that is complete.

        Args:
            made: the files in the folder that are not parameters of a trial.
            sums: the SHA-256 of each trial's parameter file as it was written, by trial number.
        """
        named = [path for name in (STUDY, REFERENCE) if (path := self.path / name).exists()]
        known = {models.model_path(self.path, number): digest for number, digest in sums.items()}
        manifest.write(self.path, [*made, *named], known)

    def _identity(self) -> str:
        path = self.path / _ID
        exists = path.exists()
        return path.read_text(encoding="utf-8", errors="replace").strip() if exists else ""

    def _parameters(self) -> list[Path]:
        """The parameter files of the trials."""
        paths = sorted((self.path / "parameters").glob("*.safetensors"))
        return [path for path in paths if path.stem.isdecimal()]


@contextlib.contextmanager
def opened(out: Path, config: configs.StudyConfig) -> Iterator[RunFolder]:
    """Hold the folder of a run of fmnist.study during the block.

    Args:
        out: the folder; made where needed.
        config: the study.

    Raises:
        UserError: Another process holds the folder, it belongs to another study, or holds files
            that would be overwritten.
    """
    with lock.holding(out):
        if not _names_study(out / STUDY, config) and not is_taken(out):
            _check_free(out, "study")
        files.sweep(out)  # only after the check that the folder is ours
        yield RunFolder(out, config)


@contextlib.contextmanager
def opened_for_reference(out: Path, config: configs.StudyConfig) -> Iterator[RunFolder]:
    """Hold a folder of fmnist.reference, whose earlier results may be overwritten.

    Args:
        out: the folder; made where needed.
        config: the study.

    Raises:
        UserError: Another process holds the folder, it belongs to a run of fmnist.study or to
            another study, or holds files that would be overwritten.
    """
    with lock.holding(out):
        if is_taken(out):
            raise UserError(f"--out {out} holds a run of fmnist.study; choose another --out")
        path = out / REFERENCE
        if not _names_study(path, config):
            _check_free(out, REFERENCE)
            files.write_text(path, config.to_toml())
        files.sweep(out)
        yield RunFolder(out, config)


def is_taken(out: Path) -> bool:
    """Whether a run of fmnist.study has begun in this folder."""
    database = out / _DATABASE
    begun = database.is_file() and database.stat().st_size > 0
    return begun or any(os.path.lexists(out / name) for name in (STUDY, _ID))


def _names_study(path: Path, config: configs.StudyConfig) -> bool:
    """Whether the file that names a folder's study exists.

    Raises:
        UserError: It names another study.
    """
    if not os.path.lexists(path):
        return False
    if changes := loading.differences(loading.load_study(path), config):
        out = path.parent
        beside = out if out.name not in ("", "..") else out.resolve()
        number = next(n for n in itertools.count(2) if not os.path.lexists(f"{beside}-{n}"))
        own = shlex.quote(f"{beside}-{number}")
        raise UserError(
            f"--out {out} holds another study ({'; '.join(changes)}); "
            f"give this one its own, as with --out {own}, or delete that folder"
        )
    return True


def _check_free(out: Path, lacks: str) -> None:
    """Check that the folder holds no file that a run would overwrite.

    Args:
        out: the folder.
        lacks: the file that is missing, for the error message.

    Raises:
        UserError: The folder holds such a file.
    """
    if name := would_overwrite(out):
        raise UserError(
            f"--out {out} holds {name}, which a study would write over, but no {lacks}; "
            "choose another --out"
        )


def would_overwrite(out: Path) -> str:
    """The name of a file in this folder that a run would write over; empty without one."""
    return next((name for name in _WRITTEN if os.path.lexists(out / name)), "")
