"""Snapshots of training. The newest undamaged one is used.

A snapshot is two files: the tensors, and JSON with the SHA-256 of the tensors and of itself. The
JSON is written last, so a snapshot without it is unfinished. The previous snapshot is kept for the
case that the newest one is damaged.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from torch import Tensor

from fmnist.rundir import files

log = logging.getLogger(__name__)

KEPT = 2
_DAMAGE = (OSError, ValueError, TypeError, KeyError, RecursionError, safetensors.SafetensorError)
"""The errors that reading a damaged file can raise."""


class Snapshot(NamedTuple):
    """Tensors by name, and a description as JSON can hold it."""

    tensors: dict[str, Tensor]
    about: dict[str, Any]


class Generations:
    """The snapshots of one group of trials.

    Args:
        folder: holds these snapshots alone; made where needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Write a snapshot and remove those before the last :data:`KEPT`.

        When this returns, the snapshot is synced to the disk.

        Args:
            tensors: tensors by name.
            about: a description of them, as JSON can hold it.
        """
        number = max(self._numbers(), default=-1) + 1
        data = safetensors.torch.save(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        )
        files.write_bytes(self._path(number, "safetensors"), data)
        content = {"about": dict(about), "sha256": hashlib.sha256(data).hexdigest()}
        text = json.dumps(content | {"check": _digest(content)})
        files.write_text(self._path(number, "json"), text)
        for old in self._numbers():
            if old <= number - KEPT:
                # The JSON first: tensors without it are an unfinished snapshot.
                for kind in ("json", "safetensors"):
                    self._path(old, kind).unlink(missing_ok=True)

    def load(self) -> Snapshot | None:
        """Read the newest whole snapshot; None when there is none.

        A damaged snapshot is skipped, with a warning in the log.
        """
        for number in sorted(self._numbers(), reverse=True):
            try:
                return self._read(number)
            except _DAMAGE as error:
                path = self._path(number, "json")
                reason = str(error).encode("unicode_escape").decode()  # on one line
                log.warning("%s: damaged (%s); the one before it is used", path, reason)
        return None

    def delete(self) -> None:
        """Remove all snapshots and the folder."""
        if self.folder.is_dir():
            shutil.rmtree(self.folder)

    def _read(self, number: int) -> Snapshot:
        content = json.loads(self._path(number, "json").read_bytes())
        if not isinstance(content, dict):
            raise ValueError("it is no description")
        if content.pop("check") != _digest(content):
            raise ValueError("its checksum is another")
        data = self._path(number, "safetensors").read_bytes()
        if hashlib.sha256(data).hexdigest() != content["sha256"]:
            raise ValueError("the checksum of its tensors is another")
        return Snapshot(safetensors.torch.load(data), content["about"])

    def _numbers(self) -> set[int]:
        return {int(path.stem) for path in self.folder.glob("*.json") if path.stem.isdecimal()}

    def _path(self, number: int, kind: str) -> Path:
        return self.folder / f"{number:08}.{kind}"


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
