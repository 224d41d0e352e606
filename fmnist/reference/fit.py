"""A plain training loop: one configuration, nn.Module, torch.optim, data on the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from fmnist.functional import batching
from fmnist.functional.losses import measure
from fmnist.functional.recipe import PLAIN, Recipe
from fmnist.functional.types import Metrics, ModelConfig, Split
from fmnist.reference.features import Features
from fmnist.reference.network import Network

EVAL_BATCH = 1000


class ReferenceEpoch(NamedTuple):
    """The result of an epoch. The loop continues to train ``network``, which is not a copy."""

    epoch: int
    train: Metrics
    validation: Metrics
    network: Network


def make_optimizer(
    network: torch.nn.Module,
    algorithm: str,
    numbers: Mapping[str, float],
    *,
    nesterov: bool = False,
    decay_biases: bool = True,
) -> torch.optim.Optimizer:
    """Make a fused optimizer of torch.optim.

    Args:
        network: the network to optimize.
        algorithm: ``"adam"``, ``"adamw"`` or ``"sgd"``.
        numbers: learning_rate and weight_decay; beta1, beta2 and eps of Adam; momentum of SGD.
        nesterov: whether SGD uses Nesterov momentum.
        decay_biases: whether weight decay applies to all parameters, or spares biases and norms.

    Raises:
        ValueError: There is no such algorithm.
    """
    parameters: list[Any] = list(network.parameters())
    if not decay_biases:
        spared = [p for p in parameters if p.dim() < 2]
        weights = [p for p in parameters if p.dim() > 1]
        parameters = [{"params": weights}, {"params": spared, "weight_decay": 0.0}]
    common: dict[str, Any] = {
        "lr": numbers["learning_rate"],
        "weight_decay": numbers["weight_decay"],
    }
    if algorithm == "sgd":
        return torch.optim.SGD(
            parameters,
            **common,
            momentum=numbers["momentum"],
            nesterov=nesterov,
            fused=True,
        )
    adams = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    if algorithm not in adams:
        raise ValueError(f"no optimizer is called {algorithm!r}; there are adam, adamw and sgd")
    betas = (numbers["beta1"], numbers["beta2"])
    return adams[algorithm](parameters, **common, betas=betas, eps=numbers["eps"], fused=True)


def _sum(total: Metrics | None, metrics: Metrics) -> Metrics:
    return (
        metrics if total is None else Metrics(*(a + b for a, b in zip(total, metrics, strict=True)))
    )


@torch.no_grad()
def evaluate(network: Network, split: Split, dtype: torch.dtype = torch.float32) -> Metrics:
    """Return the metrics on a split, in evaluation mode."""
    network.eval()
    total = None
    for indices in torch.arange(len(split.labels), device=split.labels.device).split(EVAL_BATCH):
        images, labels, _ = batching.gather(split, indices, dtype)
        logits = network(images)
        losses = F.cross_entropy(logits, labels, reduction="none")
        total = _sum(total, measure(losses, logits, labels))
    assert total is not None
    return total


def fit_reference(
    model: ModelConfig,
    algorithm: str,
    numbers: Mapping[str, float],
    train: Split,
    validation: Split,
    *,
    batch_size: int,
    seed: int,
    epochs: int,
    nesterov: bool = False,
    decay_biases: bool = True,
    recipe: Recipe = PLAIN,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Iterator[ReferenceEpoch]:
    """Train one configuration on the device of the training examples.

    The order of the examples and their random changes are those of the lanes, so steps can be
    compared.

    Args:
        model: the settings of the network.
        algorithm, nesterov, decay_biases: as for :func:`make_optimizer`.
        numbers: as for :func:`make_optimizer`, and the numbers of the recipe.
        train, validation: examples with uint8 images, on the device.
        batch_size: number of examples in a step; the last step of an epoch may have fewer.
        seed: seed of the initial parameters and of the order of the examples.
        epochs: number of epochs.
        recipe: what a step does besides.
        dtype: dtype of parameters and images.
        memory_format: memory format of the network and the images.

    Yields:
        The metrics of each epoch. In training, each batch counts before its step. Between the
        epochs, torch's global random state is the caller's.

    Raises:
        ValueError: On the first iteration: the precision is bfloat16.
    """
    if model.precision == "bfloat16":
        raise ValueError("the reference does not compute in bfloat16")
    device, random = train.images.device, _RandomState(seed, train.images.device)
    with random:
        network = Network(model)
    network.to(device=device, dtype=dtype).to(memory_format=memory_format)
    optimizer = make_optimizer(
        network, algorithm, numbers, nesterov=nesterov, decay_biases=decay_biases
    )
    steps = epochs * batching.steps(len(train.labels), batch_size)
    reach = int(numbers.get("shift", 0))
    features = Features(replace(recipe, steps=steps, reach=reach), numbers, network, optimizer)
    for epoch in range(1, epochs + 1):
        network.train()
        total = None
        order = batching.permutation(seed, epoch, len(train.labels)).to(device)
        features.begin(seed, epoch, order)
        with random:
            for step, indices in enumerate(order.split(batch_size)):
                batch = batching.gather(train, indices, dtype)
                images, labels = features.changed(batch, step * batch_size), batch.labels
                optimizer.zero_grad(set_to_none=True)
                logits = network(images.contiguous(memory_format=memory_format))
                losses = F.cross_entropy(logits, labels, reduction="none")
                features.smoothed(losses, logits, labels).mean().backward()
                features.clip()
                optimizer.step()
                features.advance()
                total = _sum(total, measure(losses, logits, labels))
        assert total is not None
        evaluated = features.evaluated
        yield ReferenceEpoch(epoch, total, evaluate(evaluated, validation, dtype), evaluated)


class _RandomState:
    """A context in which torch's global generators are the trial's own. The end restores them."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._of = [torch.default_generator]
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            self._of.append(torch.cuda.default_generators[index])
        self._own = [g.clone_state().manual_seed(seed).get_state() for g in self._of]

    def __enter__(self) -> None:
        self._before = [generator.get_state() for generator in self._of]
        for generator, state in zip(self._of, self._own, strict=True):
            generator.set_state(state)

    def __exit__(self, *_: object) -> None:
        self._own = [generator.get_state() for generator in self._of]
        for generator, state in zip(self._of, self._before, strict=True):
            generator.set_state(state)
