"""Several metrics at once, under one protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from repsim_utils.metrics.kernel import as_pair, cka

METRICS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "cka": cka,
    "unbiased_cka": lambda x, y: cka(x, y, unbiased=True),
}
PAPER = tuple(METRICS)  # of the paper's eight metrics, those that this version computes


def similarity(
    x: Any, y: Any, names: Sequence[str] = PAPER, *, preprocess: str | None = "platonic"
) -> dict[str, float]:
    """Several metrics of one pair of representations.

    Parameters
    ----------
    x, y : (n, d1) and (n, d2) array or Tensor
        Representations of the same n samples, rows matched.
    names : sequence of str
        Metrics, from `METRICS`.
    preprocess : {"platonic", None}
        The paper's protocol (see `platonic`), or the features as they are.

    Returns
    -------
    dict
        Value of each metric by name.

    Raises
    ------
    ValueError
        If a metric or protocol is unknown, or the input is malformed.
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise ValueError(f"unknown metric {', '.join(unknown)}; choose from {', '.join(METRICS)}")
    if preprocess not in ("platonic", None):
        raise ValueError(f"preprocess must be 'platonic' or None, got {preprocess!r}")
    x, y = as_pair(x, y, least_rows=2)
    if preprocess == "platonic":
        x, y = platonic(x), platonic(y)
    return {name: METRICS[name](x, y) for name in names}


def platonic(x: Tensor, quantile: float = 0.95) -> Tensor:
    """The paper's preparation of features, after Huh et al. (2024): clamp outliers, then give every row unit length.

    Parameters
    ----------
    x : Tensor
        (n, d).
    quantile : float
        Features are clamped to plus and minus this quantile of all their absolute values: one order statistic of the
        whole matrix.

    Returns
    -------
    Tensor
        (n, d). A row of zeros has no direction and stays as it is.

    Raises
    ------
    ValueError
        If so many features are zero that clamping would leave nothing.
    """
    rank = min(int(quantile * x.numel()), x.numel() - 1) + 1
    limit = x.abs().flatten().kthvalue(rank).values
    if limit == 0:
        raise ValueError(
            f"at least {quantile:.0%} of the features are zero, and clamping there leaves nothing: use preprocess=None"
        )
    x = x.clamp(-limit, limit)
    norms = x.norm(dim=1, keepdim=True)
    return torch.where(norms > 0, x / norms, x)
