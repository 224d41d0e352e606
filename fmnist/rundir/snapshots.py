"""Snapshots of work in progress; the newest that is whole is the one that counts.

A generation is two files: the tensors, and JSON that names their SHA-256 and its own. The JSON is
written last, so a generation without it was never finished. The one before is kept: when the
newest turns out to be damaged, little is lost.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from torch import Tensor

from fmnist.rundir import files

log = logging.getLogger(__name__)

KEPT = 2
_DAMAGE = (OSError, ValueError, TypeError, KeyError, RecursionError, safetensors.SafetensorError)
"""What reading a damaged file can raise."""


class Snapshot(NamedTuple):
    """What was kept: tensors by name, and what JSON can say."""

    tensors: dict[str, Tensor]
    about: dict[str, Any]


class Generations:
    """The snapshots of one thing, in a folder of their own.

    Args:
        folder: made where needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Keep a snapshot; when this returns it is on the disk, whatever happens next."""
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
                self._remove(old)

    def load(self) -> Snapshot | None:
        """The newest snapshot that is whole; None when there is none.

        What is damaged is left out, and said in the log.
        """
        for number in sorted(self._numbers(), reverse=True):
            try:
                return self._read(number)
            except _DAMAGE as error:
                path = self._path(number, "json")
                reason = str(error).encode("unicode_escape").decode()  # of one line
                log.warning("%s: damaged (%s); the one before it is used", path, reason)
        return None

    def delete(self) -> None:
        """Forget all."""
        for path in self.folder.glob("*"):
            path.unlink(missing_ok=True)
        if self.folder.is_dir():
            self.folder.rmdir()

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

    def _remove(self, number: int) -> None:
        # The JSON first: without it the tensors are nothing.
        for kind in ("json", "safetensors"):
            self._path(number, kind).unlink(missing_ok=True)

    def _path(self, number: int, kind: str) -> Path:
        return self.folder / f"{number:08}.{kind}"


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
