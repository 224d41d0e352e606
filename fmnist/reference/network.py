"""The network as a torch.nn.Module, and conversions of its parameters to pytrees and back."""

from __future__ import annotations

import itertools
import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fmnist.functional.cnn import CLASS_COUNT, feature_count
from fmnist.functional.types import ModelConfig, Params, State


class Network(nn.Module):
    """The reference model: :func:`fmnist.functional.cnn.apply` in torch.nn.

    After ``torch.manual_seed(seed)`` it starts with the parameters of ``init(seed, config)``.
    Dropout uses the global generator of torch, so its noise differs from that of the lanes.
    """

    def __init__(self, config: ModelConfig = ModelConfig()) -> None:
        super().__init__()
        self.config = config
        inputs = 1
        for i, outputs in enumerate(config.channels, 1):
            self.add_module(
                f"conv{i}", nn.Conv2d(inputs, outputs, config.kernel_size, padding=config.padding)
            )
            self.add_module(f"norm{i}", nn.BatchNorm2d(outputs))
            inputs = outputs
        widths = (feature_count(config), *config.hidden, CLASS_COUNT)
        for i, (width, outputs) in enumerate(itertools.pairwise(widths), 1):
            self.add_module(f"linear{i}", nn.Linear(width, outputs))
            if config.linear_norm and i <= len(config.hidden):
                self.add_module(f"hidden_norm{i}", nn.BatchNorm1d(outputs))
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(config.dropout)
        self.feature_dropout = nn.Dropout(config.feature_dropout)

    def forward(self, images: Float[Tensor, "batch 1 28 28"]) -> Float[Tensor, "batch 10"]:
        """Return the logits of images with values from 0 to 1."""
        if not self.config.flip_average or self.training:
            return self._logits(images)
        first, second = (self._logits(x).log_softmax(1) for x in (images, images.flip(3)))
        return torch.logaddexp(first, second) - math.log(2)

    def _logits(self, images: Tensor) -> Tensor:
        x = images
        for i in range(1, len(self.config.channels) + 1):
            x = self.get_submodule(f"norm{i}")(self.get_submodule(f"conv{i}")(x))
            x = self.pool(self.relu(x))
        x = self.feature_dropout(x.flatten(1))
        for i in range(1, len(self.config.hidden) + 1):
            x = self.get_submodule(f"linear{i}")(x)
            if self.config.linear_norm:
                x = self.get_submodule(f"hidden_norm{i}")(x)
            x = self.dropout(self.relu(x))
        last: Tensor = self.get_submodule(f"linear{len(self.config.hidden) + 1}")(x)
        return last


def from_module(network: Network) -> tuple[Params, State]:
    """Return copies of the parameters and running statistics as pytrees."""
    params: Params = {}
    state: State = {}
    for name, tensor in network.state_dict().items():
        layer, leaf = name.split(".")
        if leaf in ("weight", "bias"):
            params.setdefault(layer, {})[leaf] = tensor.clone()
        elif leaf != "num_batches_tracked":
            state.setdefault(layer, {})[leaf] = tensor.clone()
    return params, state


def to_module(params: Params, state: State, config: ModelConfig) -> Network:
    """Make a module in training mode with copies of these parameters and statistics.

    Raises:
        RuntimeError: The trees do not fit a network of this configuration.
    """
    leaves = {f"{layer}.{leaf}": t for layer, tree in params.items() for leaf, t in tree.items()}
    leaves |= {f"{layer}.{leaf}": t for layer, tree in state.items() for leaf, t in tree.items()}
    first = next(iter(leaves.values()))
    network = Network(config).to(device=first.device, dtype=first.dtype)
    # The functional network does not count batches, as its momentum is fixed.
    for layer in state:
        leaves[f"{layer}.num_batches_tracked"] = torch.zeros((), dtype=torch.int64)
    network.load_state_dict(leaves)
    return network
