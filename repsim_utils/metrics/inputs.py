"""What every metric takes: two finite matrices with matched rows, in float64."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
        If a representation is not a finite matrix that varies over its rows, rows do not match or do not suffice, data
        frames label their rows differently, or the protocol is unknown.
    """
    check_labels([("x", x), ("y", y)])
    first = as_representation("x", x, least_rows=least_rows, preprocess=preprocess)
    second = as_representation("y", y, least_rows=least_rows, preprocess=preprocess)
    if len(first) != len(second):
        raise ValueError(
            f"x and y must have matching rows, got {len(first)} and {len(second)}: give the same samples to both"
        )
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


def check_labels(named: Iterable[tuple[str, Any]]) -> None:
    """Refuse data frames and series whose rows have different labels, since rows are matched by their place."""
    frames = [(name, values) for name, values in named if hasattr(values, "iloc")]
    for (first, x), (second, y) in zip(frames[:1] * len(frames[1:]), frames[1:], strict=True):
        if not x.index.equals(y.index):
            raise ValueError(
                f"{first} and {second} have different row labels (their index), and rows are matched by their place: "
                f"put them in one order with {second}.loc[{first}.index], or give both as .to_numpy()"
            )


def as_matrix(name: str, values: Any) -> Tensor:
    """A finite matrix in float64, or a ValueError that says of `name` what is wrong."""
    tensor = values if isinstance(values, Tensor) else _from_array(name, values)
    if tensor.ndim != 2 or not tensor.shape[1]:
        more, one = "average over the other axes, or flatten them", "a single feature is a column, .reshape(-1, 1)"
        remedy = f": {more if tensor.ndim > 2 else one}" if tensor.ndim != 2 else ""
        raise ValueError(f"{name} must be a matrix with one row a sample, got shape {tuple(tensor.shape)}{remedy}")
    if tensor.is_complex():
        raise ValueError(f"{name} must hold real numbers, got {tensor.dtype}: {REMEDIES['c']}")
    small, tensor = tensor.dtype == torch.float16, tensor.detach().double()
    if not (finite := torch.isfinite(tensor)).all():
        _refuse_gaps(name, tensor, finite, small or getattr(values, "dtype", None) == np.float16)
    return tensor


REMEDIES = {
    "c": "put real and imaginary parts side by side",
    "V": "numpy has no bfloat16: save it as float32",
    "M": "leave dates out",
    "m": "leave times out",
}


def _refuse_gaps(name: str, tensor: Tensor, finite: Tensor, small: bool) -> None:
    row, column = (int(i) for i in torch.nonzero(~finite)[0])
    count, overflow = int((~finite).sum()), small and not tensor.isnan().any()
    remedy = "float16 ends at 65504: save it as float32" if overflow else "fill them, or leave such rows out of both"
    raise ValueError(
        f"{name} must be finite, got NaN or infinite values: {tensor[row, column]:g} in row {row}, column {column} "
        f"({count} of {tensor.numel()}); {remedy}"
    )


def _from_array(name: str, values: Any) -> Tensor:
    if np.ma.is_masked(values):
        row = int(np.argwhere(np.ma.getmaskarray(values))[0][0])
        raise ValueError(f"{name} has masked entries, the first in row {row}: leave such rows out, or fill them")
    if hasattr(values, "iloc"):
        return torch.from_numpy(_from_frame(name, values))
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        told = f"{name} must hold real numbers, got {array.dtype} ({type(values).__name__})"
        raise ValueError(f"{told}: {_remedy(array)}")
    return torch.from_numpy(np.array(array, dtype=np.float64))  # a copy: read-only and reversed arrays are welcome


def _remedy(array: NDArray[Any]) -> str:
    if array.dtype.names:
        return f"put its fields side by side as columns: {', '.join(array.dtype.names)}"
    if array.dtype.kind in REMEDIES:
        return REMEDIES[array.dtype.kind]
    number = (int, float, np.number, np.bool_)
    for place, value in np.ndenumerate(array):
        if not isinstance(value, number):
            where = f"row {place[0]}" + (f", column {place[1]}" if len(place) > 1 else "") if place else "it"
            return f"{where} holds {value!r}; leave text out, and give numbers as numbers, .astype(float)"
    return "give numbers as numbers, .astype(float)"


def _from_frame(name: str, frame: Any) -> NDArray[np.float64]:
    """A data frame or series of numbers; what may be a number of the sample or a label is refused."""
    types = dict(frame.dtypes.items()) if frame.ndim == 2 else {frame.name: frame.dtype}
    if other := [column for column, dtype in types.items() if dtype.kind not in "fiub"]:
        told = f"{name} must hold real numbers, got {types[other[0]]} in column {other[0]!r}"
        raise ValueError(f"{told}: leave it out, .drop(columns={other!r}), or give numbers as numbers, .astype(float)")
    whole = [column for column, dtype in types.items() if dtype.kind != "f"]
    if 0 < len(whole) < len(types):
        raise ValueError(
            f"{name} holds whole numbers in column {whole[0]!r} beside fractions, a label or the number of a sample: "
            f"leave it out, .drop(columns={whole!r}), or give .to_numpy() if all are features"
        )
    return np.array(frame.to_numpy(dtype=np.float64, na_value=np.nan))


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
