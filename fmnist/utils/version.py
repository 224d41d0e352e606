"""The version of this package."""

from __future__ import annotations

from importlib import metadata


def version() -> str:
    """Return the version of the installed package; ``"0+unknown"`` if it is not installed."""
    try:
        return metadata.version("fmnist")
    except metadata.PackageNotFoundError:  # a checkout whose folder is on the path
        return "0+unknown"
