"""Similarity of shapes and of geometries: orthogonal Procrustes, and representational similarity analysis (RSA)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from repsim_utils.metrics.inputs import as_pair, largest_absolute
from repsim_utils.metrics.kernel import centered_unit


@dataclass(frozen=True)
class Shape:
    """A centered representation of Frobenius norm 1, up to rotation: `x` is (n, min(n, d))."""

    x: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Shape:
        """Center, scale, and, where there are more features than rows, rotate into as many as there are rows."""
        x = centered_unit(x)
        return cls(torch.linalg.qr(x.T, mode="r").R.T if x.shape[1] > len(x) else x)

    def permuted(self, order: Tensor) -> Shape:
        """The same representation with its rows in another order."""
        return Shape(self.x[order])


def procrustes_score(a: Shape, b: Shape) -> float:
    """The largest inner product of both shapes over all rotations."""
    return min(float(torch.linalg.svdvals(a.x.T @ b.x).sum()), 1.0)


def procrustes(x: Any, y: Any, *, angular: bool = False) -> float:
    r"""Orthogonal Procrustes: how well one shape covers the other after the best rotation or reflection.

    With centered :math:`X, Y` of Frobenius norm 1 the similarity is the nuclear norm :math:`\|X^\top Y\|_*`, the
    largest inner product of X with any rotation of Y; its arc cosine is the angular shape distance of Williams et al.
    (2021). Representations of different width need no padding.

    Parameters
    ----------
    x, y : (n, d1) and (n, d2) array or Tensor
        Representations of the same n samples, rows matched.
    angular : bool
        The distance, a metric in the mathematical sense, in place of the similarity.

    Returns
    -------
    float
        Similarity in [0, 1], or distance in [0, π/2]. Symmetric; invariant to rotation, scaling and shifts. Led by
        directions of much variance, less so than linear CKA, which squares them. Far above 0 for unrelated
        representations unless n is many times d.

    Raises
    ------
    ValueError
        If the input is malformed (see `as_pair`).
    """
    x, y = as_pair(x, y)
    similarity = procrustes_score(Shape.of(x), Shape.of(y))
    return math.acos(similarity) if angular else similarity


@dataclass(frozen=True)
class Geometry:
    """Dissimilarities of all pairs of rows, as ranks or as they are: symmetric (n, n), their mean 0 and norm 1."""

    matrix: Tensor

    @classmethod
    def of(cls, x: Tensor, *, dissimilarity: str = "correlation", compare: str = "spearman") -> Geometry:
        """Form the dissimilarity matrix, the one thing here that takes n × n numbers in memory."""
        if dissimilarity not in ("correlation", "euclidean"):
            raise ValueError(f"dissimilarity must be 'correlation' or 'euclidean', got {dissimilarity!r}")
        if compare not in ("spearman", "pearson"):
            raise ValueError(f"compare must be 'spearman' or 'pearson', got {compare!r}")
        matrix = _correlation_distances(x) if dissimilarity == "correlation" else _distances(x)
        above = torch.triu_indices(len(x), len(x), 1, device=x.device)
        values = matrix[above[0], above[1]]
        if compare == "spearman":
            values = _ranks(values)
        values -= values.mean()
        size = values.norm()
        if not size > 0:
            raise ValueError("RSA is undefined here: all dissimilarities of x or of y are the same")
        matrix = x.new_zeros(len(x), len(x))
        matrix[above[0], above[1]] = values / (2**0.5 * size)
        return cls(matrix + matrix.T)

    def permuted(self, order: Tensor) -> Geometry:
        """The same representation with its rows in another order."""
        return Geometry(self.matrix[order][:, order])


def _correlation_distances(x: Tensor) -> Tensor:
    x = x / largest_absolute(x)
    x = x - x.mean(1, keepdim=True)
    norms = x.norm(dim=1, keepdim=True)
    if not bool((norms > 1e-12).all()):
        raise ValueError(
            f"row {int(norms.flatten().argmin())} has equal features, and no correlation with others: use "
            "dissimilarity='euclidean'"
        )
    x = x / norms
    return _rounded(1 - x @ x.T)


def _distances(x: Tensor) -> Tensor:
    x = centered_unit(x) * len(x) ** 0.5  # squared distances are 2 on average
    norms = x.square().sum(1)
    return _rounded(norms[:, None] + norms - 2 * (x @ x.T)).clamp(min=0).sqrt()


def _rounded(matrix: Tensor) -> Tensor:
    """To 12 decimals, so that what is equal but for rounding errors is tied."""
    return (matrix * 1e12).round() / 1e12


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 1, equal values with their mean rank."""
    _, which, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).to(values.dtype)
    return (last - (counts - 1) / 2)[which]


def rsa_score(a: Geometry, b: Geometry) -> float:
    """Correlation of both sets of dissimilarities."""
    return float((a.matrix * b.matrix).sum())


def rsa(x: Any, y: Any, *, dissimilarity: str = "correlation", compare: str = "spearman") -> float:
    """Representational similarity analysis (RSA): whether both find the same pairs of samples unlike.

    The correlation, over all pairs of rows, of their dissimilarities in x and in y (Kriegeskorte et al. 2008).

    Parameters
    ----------
    x, y : (n, d1) and (n, d2) array or Tensor
        Representations of the same n samples, rows matched.
    dissimilarity : {"correlation", "euclidean"}
        One minus Pearson's correlation of two rows over the features, or their distance.
    compare : {"spearman", "pearson"}
        Correlation of ranks, or of the dissimilarities themselves. Ties get their mean rank; dissimilarities (or their
        squares) that are equal to about 12 decimals are ties.

    Returns
    -------
    float
        In [-1, 1], about 0 for unrelated representations. Symmetric. With correlation distances invariant to scaling
        and shifting each row, not to rotation; with Euclidean distances to rotation, scaling and shifts of the whole.
        Ranks are invariant to any rising function of the dissimilarities. Takes memory for n × n numbers.

    Raises
    ------
    ValueError
        If the input is malformed (see `as_pair`), a row has equal features (with correlation distances), or all
        dissimilarities are the same.
    """
    x, y = as_pair(x, y, least_rows=3)
    options = {"dissimilarity": dissimilarity, "compare": compare}
    return rsa_score(Geometry.of(x, **options), Geometry.of(y, **options))
