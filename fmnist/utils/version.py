"""The version of the installed package."""

from __future__ import annotations

from importlib import metadata


def version() -> str:
    """The version of fmnist; ``"unknown"`` when its sources are used without an installation."""
    try:
        return metadata.version("fmnist")
    except metadata.PackageNotFoundError:
        return "unknown"
