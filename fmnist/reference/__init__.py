"""The reference model: the functional network as a plain torch.nn module.

Nothing here is clever. It is the module and the loop anyone would write, and parameters
convert both ways, so that every claim about the functional half can be checked against it.
"""

from fmnist.reference.fit import ReferenceEpoch, evaluate, fit_reference, make_optimizer
from fmnist.reference.network import Network, from_module, to_module

__all__ = [
    "Network",
    "ReferenceEpoch",
    "evaluate",
    "fit_reference",
    "from_module",
    "make_optimizer",
    "to_module",
]
