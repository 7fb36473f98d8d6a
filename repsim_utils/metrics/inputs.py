"""What every metric takes: two finite matrices with matched rows, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def as_pair(x: Any, y: Any, *, least_rows: int = 2, preprocess: str | None = None) -> tuple[Tensor, Tensor]:
    """Two representations as float64 tensors, checked and, if wanted, prepared.

    Parameters
    ----------
    x, y : (n, d1) and (n, d2) array or Tensor
    least_rows : int
        Rows that the metric needs.
    preprocess : {"platonic", None}
        The paper's protocol (see `platonic`), or the features as they are.

    Returns
    -------
    tuple of Tensor
        float64, on the device of `x`. The arguments are not changed.

    Raises
    ------
    ValueError
        If a representation is not a finite matrix that varies over its rows, rows do not match or do not suffice, or
        the protocol is unknown.
    """
    first = as_representation("x", x, least_rows=least_rows, preprocess=preprocess)
    second = as_representation("y", y, least_rows=least_rows, preprocess=preprocess)
    if len(first) != len(second):
        raise ValueError(f"x and y must have matching rows, got {len(first)} and {len(second)}")
    return first, second.to(first.device)


def as_representation(name: str, values: Any, *, least_rows: int = 2, preprocess: str | None = None) -> Tensor:
    """One representation, as `as_pair` has it; `name` is what an error calls it."""
    if preprocess not in ("platonic", None):
        raise ValueError(f"preprocess must be 'platonic' or None, got {preprocess!r}")
    tensor = as_matrix(name, values)
    if len(tensor) < least_rows:
        raise ValueError(f"{name} needs at least {least_rows} rows for this metric, got {len(tensor)}")
    if bool((tensor == tensor[0]).all()):
        raise ValueError(f"{name} has no variance: its {len(tensor)} rows are all the same")
    return platonic(tensor) if preprocess == "platonic" else tensor


def as_matrix(name: str, values: Any) -> Tensor:
    """A finite matrix in float64, or a ValueError that says of `name` what is wrong."""
    tensor = values if isinstance(values, Tensor) else _from_array(name, values)
    if tensor.ndim != 2 or not tensor.shape[1]:
        raise ValueError(f"{name} must be a matrix with one row a sample, got shape {tuple(tensor.shape)}")
    if tensor.is_complex():
        raise ValueError(f"{name} must hold real numbers, got {tensor.dtype}")
    tensor = tensor.detach().double()
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} must be finite, got NaN or infinite values")
    return tensor


def _from_array(name: str, values: Any) -> Tensor:
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} must hold real numbers, got {array.dtype} ({type(values).__name__})")
    return torch.from_numpy(np.array(array, dtype=np.float64))  # a copy: read-only and reversed arrays are welcome


def largest_absolute(x: Tensor) -> Tensor:
    """The largest absolute value, without a copy of the matrix."""
    return torch.maximum(x.max(), -x.min())


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
    rank = min(int(quantile * x.numel()), x.numel() - 1)
    absolute = x.abs().flatten().cpu().numpy()
    absolute.partition(rank)  # in place
    limit = float(absolute[rank])
    if limit == 0:
        raise ValueError(
            f"at least {quantile:.0%} of the features are zero, and clamping there leaves nothing: use preprocess=None "
            "(repsim compare: --raw)"
        )
    x = x.clamp(-limit, limit)
    norms = x.norm(dim=1, keepdim=True)
    x /= torch.where(norms > 0, norms, 1)
    return x


def cluster_numbers(groups: Sequence[Any], n: int) -> NDArray[np.int64]:
    """Number of each row's cluster, from 0."""
    labels = np.asarray(groups)
    if labels.shape != (n,):
        raise ValueError(f"groups must have one label for each of the {n} rows, got shape {labels.shape}")
    return np.unique(labels, return_inverse=True)[1]
