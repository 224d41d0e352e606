"""The engines that engines.py compares. Each trains the same steps and returns its loss.

A contender is built for a batch size and a number of lanes, and ``epoch()`` trains one epoch of
every lane and returns the lanes' mean training loss. The order of the examples, the initial
parameters and the optimizer are the same for all, so their losses must agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from common import NUMBERS

import fmnist
from fmnist.functional import batching
from fmnist.functional.types import ModelConfig, Split
from fmnist.reference import Network, fit_reference

RATES = (0.01, 0.001)
"""The learning rates of the baseline study, which the lanes use in turn."""


def rate(lane: int) -> float:
    """Return the learning rate of a lane."""
    return RATES[lane % len(RATES)]


class Contender:
    """One engine at one batch size and number of lanes."""

    sequential = False  # trains lane after lane; the time per trial does not depend on their number
    trials = 1  # that a sequential one trains at once

    def __init__(
        self, split: Split, batch_size: int, lanes: int, model: ModelConfig = ModelConfig()
    ) -> None:
        self.split, self.batch_size, self.lanes, self.model = split, batch_size, lanes, model
        self.done = 0

    def epoch(self) -> list[float]:
        """Train one epoch of every lane. Return the mean training loss of each."""
        raise NotImplementedError

    def close(self) -> None:
        """End what it started."""


class Lanes(Contender):
    """The lanes of this package: fmnist.fit()."""

    precision: str | None = None  # None: that of the model

    def __init__(
        self, split: Split, batch_size: int, lanes: int, model: ModelConfig = ModelConfig()
    ) -> None:
        super().__init__(split, batch_size, lanes, model)
        probe = Split(split.images[:1], split.labels[:1])  # evaluation should take no time
        self._epochs = fmnist.fit(
            fmnist.cnn(
                channels=model.channels, hidden=model.hidden, kernel_size=model.kernel_size,
                padding=model.padding, precision=self.precision or model.precision,
            ),
            fmnist.adam, split, probe,
            lanes={"learning_rate": [rate(i) for i in range(lanes)]},
            batch_size=batch_size, epochs=1 << 30,
        )  # fmt: skip

    def epoch(self) -> list[float]:
        result = next(self._epochs)
        return result.train.loss.tolist()


class Eager(Contender):
    """The reference model with fused Adam and data on the device; in bfloat16 under autocast."""

    sequential = True
    memory_format = torch.contiguous_format

    def __init__(
        self, split: Split, batch_size: int, lanes: int, model: ModelConfig = ModelConfig()
    ) -> None:
        super().__init__(split, batch_size, lanes, model)
        probe = Split(split.images[:1], split.labels[:1])
        exact = replace(model, precision="float32")
        self._epochs = [
            fit_reference(
                exact, "adam", NUMBERS | {"learning_rate": rate(i)}, split, probe,
                batch_size=batch_size, seed=0, epochs=1 << 30, memory_format=self.memory_format,
            )
            for i in range(lanes)
        ]  # fmt: skip

    def epoch(self) -> list[float]:
        narrow = self.model.precision == "bfloat16"
        kind = self.split.images.device.type
        # Without its cache, which would keep the weights of the first step of the epoch.
        with torch.autocast(kind, torch.bfloat16, enabled=narrow, cache_enabled=False):
            results = [next(epochs).train for epochs in self._epochs]
        return [r.loss.item() for r in results]


class EagerChannelsLast(Eager):
    """The reference model with channels last in memory."""

    memory_format = torch.channels_last


class _OwnLoop(Contender):
    """A training loop over modules. Subclasses change its parts."""

    sequential = True
    fused = True

    def __init__(
        self, split: Split, batch_size: int, lanes: int, model: ModelConfig = ModelConfig()
    ) -> None:
        super().__init__(split, batch_size, lanes, model)
        self._trained = []
        for i in range(lanes):
            torch.manual_seed(0)
            network = Network(model).to(split.images.device)
            optimizer = torch.optim.Adam(network.parameters(), lr=rate(i), fused=self.fused)
            self._trained.append((network, optimizer, self.forward(network)))

    def forward(self, network: Network) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """Return the function from a batch to its loss."""
        return lambda images, labels: F.cross_entropy(network(images), labels)

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Return the minibatches of the next epoch."""
        device, examples = self.split.images.device, len(self.split.labels)
        order = batching.permutation(0, self.done, examples).to(device)
        for indices in order.split(self.batch_size):
            batch = batching.gather(self.split, indices)
            yield batch.images, batch.labels

    def epoch(self) -> list[float]:
        self.done += 1
        means = []
        for network, optimizer, forward in self._trained:
            network.train()
            total = torch.zeros((), device=self.split.images.device)
            for images, labels in self.batches():
                optimizer.zero_grad(set_to_none=True)
                loss = forward(images, labels)
                loss.backward()
                optimizer.step()
                total += loss.detach() * len(labels)
            means.append((total / len(self.split.labels)).item())
        return means


class Compiled(_OwnLoop):
    """The reference model under torch.compile."""

    def forward(self, network: Network) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        return torch.compile(super().forward(network))


class CompiledGraphs(_OwnLoop):
    """The reference model under torch.compile with CUDA graphs."""

    def forward(self, network: Network) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        return torch.compile(super().forward(network), mode="reduce-overhead")


class _AsTheOriginalHadIt(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """The data set of torchvision with ToTensor, which converts a PIL image for each example."""

    def __init__(self, split: Split) -> None:
        from torchvision.transforms import ToTensor

        self._images, self._labels, self._to_tensor = (
            split.images.cpu(),
            split.labels.cpu(),
            ToTensor(),
        )

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        from PIL import Image

        return self._to_tensor(Image.fromarray(self._images[index, 0].numpy())), self._labels[index]


class DataLoaderStyle(_OwnLoop):
    """The style of the original project: a DataLoader, a module, Adam with its defaults."""

    fused = False

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = batching.permutation(0, self.done, len(self.split.labels)).tolist()
        loader = torch.utils.data.DataLoader(
            _AsTheOriginalHadIt(self.split), batch_size=self.batch_size, sampler=order
        )
        device = self.split.images.device
        for images, labels in loader:
            yield images.to(device), labels.to(device)


class StraightVmap(Contender):
    """Plain ``vmap(grad)`` of torch, without the kernels and the tracing of this package."""

    def __init__(
        self, split: Split, batch_size: int, lanes: int, model: ModelConfig = ModelConfig()
    ) -> None:
        super().__init__(split, batch_size, lanes, model)
        device = split.images.device
        torch.manual_seed(0)
        network = Network(model).to(device)
        self._network = network
        stacked = [
            {name: torch.stack([t.detach()] * lanes) for name, t in tensors}
            for tensors in (network.named_parameters(), network.named_buffers())
        ]
        self._params, self._buffers = stacked
        zeros = {name: torch.zeros_like(t) for name, t in self._params.items()}
        self._mean, self._square = zeros, dict(zeros)
        self._rate = torch.tensor([rate(i) for i in range(lanes)], device=device)
        self._steps = 0

    def epoch(self) -> list[float]:
        self.done += 1
        device, examples = self.split.images.device, len(self.split.labels)
        total = torch.zeros(self.lanes, device=device)
        order = batching.permutation(0, self.done, examples).to(device)
        step = torch.func.vmap(
            torch.func.grad(self._loss, has_aux=True), in_dims=(0, 0, None, None)
        )
        for indices in order.split(self.batch_size):
            images, labels, _ = batching.gather(self.split, indices)
            grads, (losses, self._buffers) = step(self._params, self._buffers, images, labels)
            total += losses * len(labels)
            self._adam(grads)
        return (total / examples).tolist()

    def _loss(self, params, buffers, images, labels):  # noqa: ANN001
        # vmap does not allow batch_norm's in-place update of its statistics. functional_call
        # works on a copy, so the new statistics are returned.
        buffers = {name: t.clone() for name, t in buffers.items()}
        logits = torch.func.functional_call(self._network, (params, buffers), (images,))
        loss = F.cross_entropy(logits, labels)
        return loss, (loss.detach(), buffers)

    def _adam(self, grads: dict[str, torch.Tensor]) -> None:
        self._steps += 1
        correction1, correction2 = 1 - 0.9**self._steps, 1 - 0.999**self._steps
        for name, grad in grads.items():
            mean = self._mean[name].lerp(grad, 0.1)
            square = self._square[name] * 0.999 + grad * grad * 0.001
            self._mean[name], self._square[name] = mean, square
            size = self._rate.view(-1, *[1] * (grad.dim() - 1)) / correction1
            self._params[name] = self._params[name] - size * mean / (
                (square / correction2).sqrt() + 1e-8
            )
