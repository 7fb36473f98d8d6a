"""How alike two models predict: the distance between their distributions over what comes next."""

from __future__ import annotations

from torch import Tensor


def symmetric_kl(first: Tensor, second: Tensor) -> float:
    """Mean of both Kullback–Leibler divergences between predictions, in nats each.

    (KL(p ‖ q) + KL(q ‖ p)) / 2 = Σ (p − q) (log p − log q) / 2, averaged over all predictions.

    Parameters
    ----------
    first, second : Tensor
        Logits or logarithms of probabilities (…, classes), of the same inputs; a ValueError if shapes differ.

    Returns
    -------
    float
        0 for the same predictions; without an upper bound.
    """
    if first.shape != second.shape or first.dim() < 1:
        raise ValueError(f"first and second must have one shape, got {tuple(first.shape)} and {tuple(second.shape)}")
    p, q = (logits.float().log_softmax(-1) for logits in (first, second))
    return float(((p.exp() - q.exp()) * (p - q)).sum(-1).mean()) / 2
