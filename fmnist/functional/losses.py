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


def smooth(
    losses: Float[Tensor, " batch"],
    logits: Float[Tensor, "batch classes"],
    amount: Float[Tensor, ""],
) -> Float[Tensor, " batch"]:
    """Return the cross entropy with smoothed labels, as torch.nn.functional.cross_entropy.

    Each label is ``1 - amount`` the class and ``amount`` all classes alike.
    Source: Szegedy et al., Rethinking the Inception Architecture (2016), section 7.

    Args:
        losses: the cross entropy of each example, in nats.
        logits: the logits of each example.
        amount: from 0 to below 1.
    """
    amount = amount.to(losses.dtype)
    uniform = torch.logsumexp(logits, 1) - logits.mean(1)
    return losses * (1 - amount) + uniform * amount


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
