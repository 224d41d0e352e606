"""The loss and the metrics."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fmnist.functional.types import Metrics


def cross_entropy(
    logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Return ``-log softmax(logits)[label]`` of each example, in nats.

    Raises:
        ValueError: There are more or fewer labels than examples.
    """
    if labels.shape != logits.shape[:1]:
        found = tuple(labels.shape)
        raise ValueError(f"{logits.shape[0]} examples need as many labels, not {found}")
    return -F.log_softmax(logits, dim=1).gather(1, labels[:, None]).squeeze(1)


def measure(
    losses: Float[Tensor, " batch"],
    logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
) -> Metrics:
    """Return the metrics of a batch, without gradients.

    Args:
        losses: the loss of each example, in nats.
        logits: the logits of each example.
        labels: the true classes.

    Returns:
        Scalars: ``loss_sum`` float64, which limits rounding when many batches are added,
        ``correct`` int64 and ``examples`` int64.
    """
    return Metrics(
        loss_sum=losses.detach().double().sum(),
        correct=(logits.detach().argmax(dim=1) == labels).sum(),
        examples=torch.full((), labels.shape[0], dtype=torch.int64, device=labels.device),
    )
