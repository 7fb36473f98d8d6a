"""Similarity from kernels: centred kernel alignment (CKA)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_pair(x: Any, y: Any, *, least_rows: int) -> tuple[Tensor, Tensor]:
    """Two representations as float64 tensors, checked.

    Parameters
    ----------
    x, y : (n, d1) and (n, d2) array or Tensor
    least_rows : int
        Rows that the metric needs.

    Raises
    ------
    ValueError
        If a representation is not a finite matrix that varies over its rows, or rows do not match or do not suffice.
    """
    pair = []
    for name, values in (("x", x), ("y", y)):
        tensor = values if isinstance(values, Tensor) else _from_array(name, values)
        if tensor.ndim != 2 or not tensor.shape[1]:
            raise ValueError(f"{name} must be a matrix with one row a sample, got shape {tuple(tensor.shape)}")
        if tensor.is_complex():
            raise ValueError(f"{name} must hold real numbers, got {tensor.dtype}")
        tensor = tensor.detach().double()
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} must be finite, got NaN or infinite values")
        if len(tensor) < least_rows:
            raise ValueError(f"{name} needs at least {least_rows} rows for this metric, got {len(tensor)}")
        if bool((tensor == tensor[0]).all()):
            raise ValueError(f"{name} has no variance: its {len(tensor)} rows are all the same")
        pair.append(tensor)
    if len(pair[0]) != len(pair[1]):
        raise ValueError(f"x and y must have matching rows, got {len(pair[0])} and {len(pair[1])}")
    return pair[0], pair[1]


def _from_array(name: str, values: Any) -> Tensor:
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} must hold real numbers, got {array.dtype} ({type(values).__name__})")
    return torch.from_numpy(np.array(array, dtype=np.float64))  # a copy: read-only and reversed arrays are welcome


def cka(x: Any, y: Any, *, kernel: str = "linear", unbiased: bool = False, sigma: float | None = None) -> float:
    r"""Centred kernel alignment of two representations, with the linear kernel.

    With column-centred :math:`X, Y` the biased value is
    :math:`\|X^\top Y\|_F^2 / (\|X^\top X\|_F \, \|Y^\top Y\|_F)` (Kornblith et al. 2019, Eq. 4): 1 for
    representations that are equal up to rotation and scale, but above 0 for unrelated ones where n is small against
    d. The unbiased value replaces each HSIC by the unbiased estimator of Song et al. (2012), whose mean is 0 for
    unrelated representations; it may be negative and is not clamped. Both work on d × d products, never on n × n.

    Parameters
    ----------
    x, y : (n, d1) and (n, d2) array or Tensor
        Representations of the same n samples, rows matched.
    kernel : {"linear"}
    unbiased : bool
        Use the unbiased estimator, which needs 4 rows instead of 2.
    sigma : None
        Bandwidth of an RBF kernel; the linear kernel has none.

    Returns
    -------
    float
        In [0, 1], or at most 1 if unbiased. Computed in float64. Invariant to rotation, to scaling and to shifts of
        either representation; blind to directions of little variance.

    Raises
    ------
    ValueError
        If the input is malformed (see `as_pair`), or the kernel is not available.
    """
    if kernel != "linear" or sigma is not None:
        raise ValueError(f"kernel must be 'linear' (without sigma), got kernel={kernel!r}, sigma={sigma!r}")
    x, y = as_pair(x, y, least_rows=4 if unbiased else 2)
    x, y = _centre(x), _centre(y)
    hsic = _unbiased_hsic if unbiased else _biased_hsic
    for name, values in (("x", x), ("y", y)):
        if unbiased and hsic(values, values) * len(x) * (len(x) - 3) < 1e-10 * _biased_hsic(values, values):
            raise ValueError(f"unbiased CKA is undefined here: {name} has no positive HSIC with itself")
    return hsic(x, y) / (hsic(x, x) * hsic(y, y)) ** 0.5


def _centre(x: Tensor) -> Tensor:
    """Columns centred, and scaled so that products of very large or small features neither overflow nor vanish."""
    x = x / x.abs().max()
    x = x - x.mean(0)
    return x / x.norm()


def _biased_hsic(x: Tensor, y: Tensor) -> float:
    return float((x.T @ y).square().sum())


def _unbiased_hsic(x: Tensor, y: Tensor) -> float:
    """Unbiased HSIC of Song et al. (2012) for the linear kernel, from squared row norms p, q and one d × d product."""
    n = len(x)
    p, q = x.square().sum(1), y.square().sum(1)
    total = _biased_hsic(x, y) - n / (n - 2) * float(p @ q) + float(p.sum() * q.sum()) / ((n - 1) * (n - 2))
    return total / (n * (n - 3))
