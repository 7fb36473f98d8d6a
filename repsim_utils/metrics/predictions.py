"""How alike two models predict: the distance between their distributions over what comes next."""

from __future__ import annotations

import torch
from torch import Tensor


def symmetric_kl(first: Tensor, second: Tensor) -> float:
    """Mean of both Kullback–Leibler divergences between predictions, in nats each.

    (KL(p ‖ q) + KL(q ‖ p)) / 2 = Σ (p − q) (log p − log q) / 2, averaged over all predictions.

    Parameters
    ----------
    first, second : Tensor
        Logits or logarithms of probabilities (…, classes), of the same inputs. A class that has -inf in both counts 0.

    Returns
    -------
    float
        0 for the same predictions; without an upper bound, and infinite if only one of two rules out a class.

    Raises
    ------
    ValueError
        If shapes differ, or a prediction is none: all -inf, +inf or not a number.
    """
    if first.shape != second.shape or first.dim() < 1:
        raise ValueError(f"first and second must have one shape, got {tuple(first.shape)} and {tuple(second.shape)}")
    p, q = (logits.float().log_softmax(-1) for logits in (first, second))
    if p.isnan().any() or q.isnan().any():
        raise ValueError("a row of logits gives no probabilities: it holds nan or +inf, or nothing but -inf")
    return float(((p.exp() - q.exp()) * torch.where(p == q, 0, p - q)).sum(-1).mean()) / 2
