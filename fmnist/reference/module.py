"""A trained model as a torch.nn.Module."""

from __future__ import annotations

import optree
import torch

from fmnist.functional.types import Model, ModelConfig, Params, State
from fmnist.reference.network import to_module


def as_module(model: Model, params: Params, state: State, config: object) -> torch.nn.Module:
    """Return a trained model as a module in evaluation mode.

    Args:
        model: the model.
        params: its parameters.
        state: its running statistics.
        config: its settings. Those of the built-in network give the reference
            :class:`fmnist.reference.Network`, a module of layers; with others, the module calls
            ``model.apply``.
    """
    if isinstance(config, ModelConfig):
        return to_module(params, state, config).eval()
    return _Functional(model, params, state).eval()


class _Functional(torch.nn.Module):
    """A pure model and its parameters as a module, for evaluation."""

    def __init__(self, model: Model, params: Params, state: State) -> None:
        super().__init__()
        leaves, self._treespec = optree.tree_flatten((params, state))
        parameters = [torch.nn.Parameter(leaf, requires_grad=False) for leaf in leaves]
        self._model, self._leaves = model, torch.nn.ParameterList(parameters)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        params, state = optree.tree_unflatten(self._treespec, list(self._leaves))
        logits, _ = self._model.apply(params, state, images, train=False)
        return logits
