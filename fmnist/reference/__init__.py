"""The reference model in plain torch.nn, against which tests compare the lanes.

It is a plain module and a plain loop. Parameters can be converted in both directions.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fmnist.reference.fit import ReferenceEpoch, evaluate, fit_reference, make_optimizer
    from fmnist.reference.module import as_module
    from fmnist.reference.network import Network, from_module, to_module

__all__ = [
    "Network",
    "ReferenceEpoch",
    "as_module",
    "evaluate",
    "fit_reference",
    "from_module",
    "make_optimizer",
    "to_module",
]


def __getattr__(name: str) -> Any:
    """Import a name when it is used: the help of the command needs no torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    files = {"as_module": "module", "Network": "network", "from_module": "network",
             "to_module": "network"}  # fmt: skip
    file = files.get(name, "fit")
    return getattr(importlib.import_module(f"fmnist.reference.{file}"), name)
