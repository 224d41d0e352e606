"""The training features of a recipe in a plain loop: by torch, but for the random changes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fmnist.functional import batching, recipe, schedules
from fmnist.functional.recipe import Recipe
from fmnist.functional.types import Batch
from fmnist.reference.network import Network


class Features:
    """What a loop over a module does besides, for a recipe with its numbers.

    Args:
        features: the recipe, with the number of steps of the whole training.
        numbers: the numbers of the recipe by name; others are ignored.
        network: the network that is trained.
        optimizer: its optimizer.
    """

    def __init__(
        self,
        features: Recipe,
        numbers: Mapping[str, float],
        network: Network,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self._recipe, self._network = features, network
        self._numbers = {
            name: torch.tensor(numbers[name], dtype=torch.float64) for name in features.on
        }
        self._schedule, self._average, self._noise = None, None, dict[str, Tensor]()
        if features.scheduled:
            self._schedule = LambdaLR(optimizer, self._factor)
        if "ema_decay" in features.on:
            average = get_ema_multi_avg_fn(numbers["ema_decay"])
            self._average = AveragedModel(network, multi_avg_fn=average, use_buffers=True)

    def _number(self, name: str) -> float:
        return float(self._numbers.get(name, 0.0))

    def _factor(self, step: int) -> float:
        shares = [
            torch.tensor(self._number(name), dtype=torch.float64) for name in ("warmup", "floor")
        ]
        return schedules.factor(
            self._recipe.schedule, torch.tensor(step), self._recipe.steps, *shares
        ).item()

    def begin(self, seed: int, epoch: int, order: Tensor) -> None:
        """Draw the random numbers of an epoch, which are those of a lane with this seed."""
        examples = len(order)
        for name, width in self._recipe.changes.items():
            generator = batching.change_generator(name, seed, epoch, width)
            drawn = torch.rand(examples, width, generator=generator)
            if name == "flip" and self._recipe.flip == "alternating":
                drawn = batching.flip_numbers(seed, examples, epoch)[order.cpu(), None]
            self._noise[name] = drawn.to(order.device)

    def changed(self, batch: Batch, position: int) -> Tensor:
        """Return the images of a batch, which begins at this position of the epoch, changed."""
        end = position + len(batch.labels)
        noise = tuple(drawn[position:end].to(batch.images) for drawn in self._noise.values())
        return recipe.change_images(self._recipe, batch._replace(noise=noise), self._numbers).images

    def smoothed(self, losses: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the losses with smoothed labels, whose mean is minimised."""
        amount = self._number("label_smoothing")
        if not amount:
            return losses
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=amount)

    def clip(self) -> None:
        """Clip the gradients, before a step."""
        if most := self._number("clip_norm"):
            torch.nn.utils.clip_grad_norm_(self._network.parameters(), most)

    def advance(self) -> None:
        """Advance the schedule and the average, after a step."""
        if self._schedule:
            self._schedule.step()
        if self._average:
            self._average.update_parameters(self._network)

    @property
    def evaluated(self) -> Network:
        """The network that is evaluated and saved: the average, if there is one."""
        if self._average is None:
            return self._network
        averaged = self._average.module
        assert isinstance(averaged, Network)
        return averaged
