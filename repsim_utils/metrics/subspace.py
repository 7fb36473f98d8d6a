"""Similarity of the subspaces that representations span: canonical correlations (CCA, SVCCA, PWCCA)."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from repsim_utils.metrics.inputs import as_pair, largest_absolute

BLOCK = 4096  # rows that are looked at together
TIED = 1e-8  # correlations that are no further apart count as equal


@dataclass(frozen=True)
class Subspace:
    """An orthonormal basis of the directions in which a representation varies, those of most variance first.

    Attributes
    ----------
    basis : Tensor
        (n, r), orthonormal columns, each with mean 0.
    loadings : Tensor
        (r, d): inner products of the basis with the features.
    """

    basis: Tensor
    loadings: Tensor

    @classmethod
    def of(cls, x: Tensor, *, n_components: int | None = None) -> Subspace:
        """Leading principal directions, or all of them (up to the numerical rank): (n, d) → Subspace."""
        if n_components is not None and n_components < 1:
            raise ValueError(f"n_components must be at least 1, got {n_components}")
        x = x / largest_absolute(x)
        x -= x.mean(0)
        _, values, directions = torch.linalg.svd(_triangle(x), full_matrices=False)
        rank = int((values > values[0] * max(x.shape) * torch.finfo(x.dtype).eps).sum())
        rank = min(rank, n_components or rank)
        basis = torch.linalg.qr(x @ (directions[:rank].T / values[:rank])).Q
        return cls(basis, basis.T @ x)

    @classmethod
    def randomized(cls, x: Tensor, *, n_components: int = 10, seed: int | None = None) -> Subspace:
        """As `svcca` with ``published=True`` says; the seed is made of the first row if not given."""
        if n_components < 1:
            raise ValueError(f"n_components must be at least 1, got {n_components}")
        if seed is None:
            seed = zlib.crc32(x[0].cpu().numpy().tobytes())
        spread = x.std(0)
        x = (x - x.mean(0)) / torch.where(spread > 0, spread, 1)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            basis = torch.svd_lowrank(x, q=min(n_components, *x.shape))[0]
        return cls(basis, basis.T @ x)

    def permuted(self, order: Tensor) -> Subspace:
        """The same representation with its rows in another order."""
        return replace(self, basis=self.basis[order])


def _triangle(x: Tensor) -> Tensor:
    """The R of a QR decomposition, block by block: it has the singular values and right vectors of x."""
    r = x[:0]
    for rows in x.split(BLOCK):
        r = torch.linalg.qr(torch.cat([r, rows]), mode="r").R
    return r


def _correlations(a: Subspace, b: Subspace) -> tuple[Tensor, Tensor]:
    """Canonical correlations, falling, and the canonical directions of a in terms of its basis: (c,) and (c, r)."""
    n, r1, r2 = len(a.basis), a.basis.shape[1], b.basis.shape[1]
    forced = r1 + r2 - (n - 1)
    if forced > 0:
        raise ValueError(
            f"x and y vary in {r1} and {r2} directions, too many for {n} rows: at least {min(forced, r1, r2)} "
            "canonical correlations are 1 whatever the data; use svcca with fewer components, or more rows"
        )
    directions, values, _ = torch.linalg.svd(a.basis.T @ b.basis, full_matrices=False)
    return values.clamp(max=1), directions.T


def cca_score(a: Subspace, b: Subspace) -> float:
    """Mean of the canonical correlations."""
    return float(_correlations(a, b)[0].mean())


def pwcca_score(a: Subspace, b: Subspace) -> float:
    """Mean of the canonical correlations, weighted by what their directions account for in a.

    Directions of equal correlations are arbitrary within the space that they span: their weight is the mean over all
    choices. For unit vectors h of an orthonormal basis of m dimensions, Σ |⟨h, g⟩| is m Γ(m/2) / (√π Γ((m+1)/2)) times
    the length of g on average.
    """
    values, directions = _correlations(a, b)
    loadings = directions @ a.loadings
    weights, means = [], []
    for group in torch.tensor_split(torch.arange(len(values)), (values.diff().abs() > TIED).nonzero()[:, 0].cpu() + 1):
        m = len(group)
        share = m * math.exp(math.lgamma(m / 2) - math.lgamma((m + 1) / 2)) / math.pi**0.5
        weights.append(share * float(loadings[group].norm(dim=0).sum()))
        means.append(float(values[group].mean()))
    return sum(w * v for w, v in zip(weights, means, strict=True)) / sum(weights)


def cca(x: Any, y: Any) -> float:
    """Mean canonical correlation: how well each space can be had from the other by a linear map.

    The mean of the canonical correlations of Hotelling (1936), over as many as the smaller of both ranks.

    Parameters
    ----------
    x, y : (n, d1) and (n, d2) array or Tensor
        Representations of the same n samples, rows matched.

    Returns
    -------
    float
        In [0, 1]. Symmetric; invariant to shifts and to every invertible linear map of either representation, so blind
        to how large a direction is: noise counts as much as signal. Far above 0 for unrelated representations unless n
        is many times d.

    Raises
    ------
    ValueError
        If the input is malformed (see `as_pair`), or n is so small that some correlations are 1 by counting
        dimensions alone (rank of x + rank of y > n − 1).
    """
    x, y = as_pair(x, y, least_rows=3)
    return cca_score(Subspace.of(x), Subspace.of(y))


def svcca(x: Any, y: Any, *, n_components: int = 10, published: bool = False) -> float:
    """SVCCA: mean canonical correlation of the leading principal components of either representation.

    Raghu et al. (2017), with a fixed number of components, as in Li et al. (2025), and an exact decomposition of the
    centered features. Where a representation has a lower rank, all its directions are taken.

    Parameters
    ----------
    x, y : (n, d1) and (n, d2) array or Tensor
        Representations of the same n samples, rows matched.
    n_components : int
        Principal components of each.
    published : bool
        What the code of Huh et al. (2024) and published tables do: features are divided by their standard deviations,
        and the decomposition is randomised (`torch.svd_lowrank`), anew for each representation; here its seed is made
        of the first row. Its components are not the leading ones exactly, and another seed gives another value, hence
        it is not the default.

    Returns
    -------
    float
        In [0, 1]. Symmetric; invariant to rotation, scaling and shifts (as published, to none of these exactly, since
        any change of the first row brings another random draw). Blind to all but the leading components, and within
        them to their size. Ill-defined where the last component kept has nearly the variance of the first one left
        out.

    Raises
    ------
    ValueError
        If the input is malformed (see `as_pair`), or n is too small for so many components.
    """
    x, y = as_pair(x, y, least_rows=3)
    make = Subspace.randomized if published else Subspace.of
    return cca_score(make(x, n_components=n_components), make(y, n_components=n_components))


def pwcca(x: Any, y: Any) -> float:
    """PWCCA: mean canonical correlation, weighted by how much of x each canonical direction accounts for.

    Morcos et al. (2018), Section 2: the weight of a canonical direction h of x is the sum over the features of x of
    ``|⟨h, feature⟩|``. Where correlations are equal, this is averaged over all directions that share them.

    Parameters
    ----------
    x, y : (n, d1) and (n, d2) array or Tensor
        Representations of the same n samples, rows matched. Either may be the wider one.

    Returns
    -------
    float
        In [0, 1]. Not symmetric: weights are those of x. Invariant to shifts and scaling, and to invertible linear maps
        of y but not of x. Above 0 for unrelated representations, as `cca` is.

    Raises
    ------
    ValueError
        As for `cca`.
    """
    x, y = as_pair(x, y, least_rows=3)
    return pwcca_score(Subspace.of(x), Subspace.of(y))
