"""The reference model in plain torch.nn, against which tests compare the lanes.

It is a plain module and a plain loop. Parameters can be converted in both directions.
"""

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
