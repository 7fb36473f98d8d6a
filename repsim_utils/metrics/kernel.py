"""Similarity from kernels: centered kernel alignment (CKA), linear and RBF, biased and unbiased."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from repsim_utils.metrics.inputs import as_pair, largest_absolute

BLOCK = 1024  # rows of a block of an n × n kernel: no more than one such block is in memory
COLUMNS, ROWS = 2048, 256  # features of a Gram matrix that are multiplied together, and the width of its blocks
CANCELS = 1e-6  # share of an HSIC that is too little to be had as a difference


def cka(x: Any, y: Any, *, kernel: str = "linear", unbiased: bool = False, sigma: float | None = None) -> float:
    r"""Centered kernel alignment of two representations.

    With centered kernels :math:`K, L` the biased value is
    :math:`\langle K, L\rangle / (\|K\|_F \, \|L\|_F)` (Cortes et al. 2012; Kornblith et al. 2019, Section 3): 1 for
    representations that are equal up to rotation and scale, but above 0 for unrelated ones where n is small against
    d. The unbiased value replaces each HSIC by the unbiased estimator of Song et al. (2012), whose mean is 0 for
    unrelated representations; it may be negative and is not clamped.

    The linear kernel is never formed: with column-centered :math:`X, Y`,
    :math:`\langle K, L\rangle = \|X^\top Y\|_F^2`, where d > n after a QR decomposition to n features. The RBF
    kernel is formed in blocks.

    Parameters
    ----------
    x, y : (n, d1) and (n, d2) array or Tensor
        Representations of the same n samples, rows matched.
    kernel : {"linear", "rbf"}
        Inner product, or :math:`\exp(-\|x_i - x_j\|^2 / 2 s^2)`.
    unbiased : bool
        Use the unbiased estimator, which needs 4 rows instead of 2.
    sigma : float, optional
        Bandwidth of the RBF kernel: s is `sigma` times the median distance between different rows of the same
        representation. 1 if not given; the linear kernel has none.

    Returns
    -------
    float
        In [0, 1], or at most 1 if unbiased. Computed in float64. Symmetric; invariant to rotation, scaling and shifts
        of either representation, and not to other invertible linear maps. Linear CKA is blind to directions of little
        variance, and led by those of much: a few outlying rows or one large feature can decide it.

    Raises
    ------
    ValueError
        If the input is malformed (see `as_pair`), the kernel or its bandwidth is not available, or an HSIC of the
        unbiased estimator is not positive.
    """
    if kernel not in ("linear", "rbf") or (kernel == "linear" and sigma is not None):
        raise ValueError(f"kernel must be 'linear' (without sigma) or 'rbf', got kernel={kernel!r}, sigma={sigma!r}")
    x, y = as_pair(x, y, least_rows=4 if unbiased else 2)
    if kernel == "linear":
        a, b = Linear.of(x), Linear.of(y)
        return unbiased_cka_score(a, b) if unbiased else cka_score(a, b)
    c, d = Rbf.of(x, sigma=1.0 if sigma is None else sigma), Rbf.of(y, sigma=1.0 if sigma is None else sigma)
    return unbiased_rbf_cka_score(c, d) if unbiased else rbf_cka_score(c, d)


def centered_unit(x: Tensor) -> Tensor:
    """Columns centered, and scaled so that products of very large or small features neither overflow nor vanish."""
    x = x / largest_absolute(x)
    x -= x.mean(0)
    x /= x.norm()
    return x


@dataclass(frozen=True)
class Linear:
    """What linear kernels need of one representation.

    Attributes
    ----------
    x : Tensor
        (n, d), centered, of Frobenius norm 1; where d > n turned into n features, with the same kernel.
    squared_norms : Tensor
        (n,), of the rows: the diagonal of the kernel.
    own : float
        ‖XᵀX‖², the biased HSIC with itself, times (n − 1)².
    """

    x: Tensor
    squared_norms: Tensor
    own: float

    @classmethod
    def of(cls, x: Tensor) -> Linear:
        """Center, scale, and form what does not depend on the other representation."""
        x = centered_unit(x)
        squared_norms = x.norm(dim=1).square()
        if x.shape[1] > len(x):
            x = torch.linalg.qr(x.T, mode="r").R.T
        return cls(x, squared_norms, squared_product(x, x))

    def permuted(self, order: Tensor) -> Linear:
        """The same representation with its rows in another order."""
        return replace(self, x=self.x[order], squared_norms=self.squared_norms[order])


def squared_product(x: Tensor, y: Tensor) -> float:
    """‖XᵀY‖²: the squares of all products of features."""
    return float((x.T @ y).square().sum())


@dataclass(frozen=True)
class Gram:
    """What linear kernels need of a representation with many features: the kernel, made of batches.

    Attributes
    ----------
    matrix : Tensor
        (n, n), of centered columns, its trace 1, in the type of the features.
    squared_norms : Tensor
        float64 (n,): its diagonal.
    own : float
        Sum of its squares.
    """

    matrix: Tensor
    squared_norms: Tensor
    own: float

    @classmethod
    def of(cls, batches: Sequence[Tensor]) -> Gram:
        """Add up products of some columns after others, of which half are formed: batches (b, d) → (n, n)."""
        n = sum(map(len, batches))
        gram = batches[0].new_zeros(n, n)
        largest = float(torch.stack([largest_absolute(x) for x in batches]).max())
        scale = 2.0 ** -min(max(math.frexp(largest)[1], -126), 126)  # a power of two rounds nothing
        for start in range(0, batches[0].shape[1], COLUMNS):
            x = torch.cat([batch[:, start : start + COLUMNS] for batch in batches])
            x *= scale
            x -= x.mean(0)
            for i in range(0, n, ROWS):
                gram[i:, i : i + ROWS].addmm_(x[i:], x[i : i + ROWS].T)
        for i in range(0, n, ROWS):
            gram[i : i + ROWS, i + ROWS :] = gram[i + ROWS :, i : i + ROWS].T
        for axis in (0, 1):  # what rounding left of the means
            gram -= gram.mean(axis, keepdim=True)
        gram /= gram.trace()
        return cls(gram, gram.diagonal().double(), _inner(gram, gram))

    def permuted(self, order: Tensor) -> Gram:
        """The same representation with its rows in another order."""
        return replace(self, matrix=self.matrix[order][:, order], squared_norms=self.squared_norms[order])


def _inner(k: Tensor, m: Tensor) -> float:
    """Sum of the products of all entries, added up in float64."""
    return float(torch.linalg.vecdot(k, m).sum(dtype=torch.float64))


def _product(a: Linear | Gram, b: Linear | Gram) -> float:
    """Of two states of one kind: the biased HSIC, times (n − 1)²."""
    if isinstance(a, Gram) and isinstance(b, Gram):
        return _inner(a.matrix, b.matrix)
    assert isinstance(a, Linear) and isinstance(b, Linear)
    return squared_product(a.x, b.x)


def cka_score(a: Linear | Gram, b: Linear | Gram) -> float:
    """Biased linear CKA."""
    return _product(a, b) / (a.own * b.own) ** 0.5


def unbiased_cka_score(a: Linear | Gram, b: Linear | Gram) -> float:
    """Unbiased linear CKA."""
    n = len(a.squared_norms)

    def hsic(cross: float, p: Tensor, q: Tensor) -> float:
        return cross - n / (n - 2) * float(p @ q) + float(p.sum() * q.sum()) / ((n - 1) * (n - 2))

    own = [hsic(s.own, s.squared_norms, s.squared_norms) for s in (a, b)]
    _require_positive(own, [a.own, b.own])
    return hsic(_product(a, b), a.squared_norms, b.squared_norms) / (own[0] * own[1]) ** 0.5


def _require_positive(own: list[float], scale: list[float]) -> None:
    for name, value, biased in zip("xy", own, scale, strict=True):
        if value < 1e-10 * biased:
            raise ValueError(
                f"unbiased CKA cannot be computed here: without the diagonal of its kernel {name} has no positive HSIC "
                "with itself, or one that rounding hides, as where one row is far larger than all others"
            )


@dataclass(frozen=True)
class Rbf:
    """What RBF kernels need of one representation.

    Attributes
    ----------
    x : Tensor
        (n, d), centered and divided by √2 times the bandwidth, so that the kernel is exp(−‖x_i − x_j‖²).
    sums : Tensor
        (n,): sums of the rows of the kernel without its diagonal, which is 1.
    own : float
        Sum of the squares of the kernel without its diagonal.
    """

    x: Tensor
    sums: Tensor
    own: float

    @classmethod
    def of(cls, x: Tensor, *, sigma: float = 1.0) -> Rbf:
        """Set the bandwidth, and sum over the kernel."""
        if not sigma > 0:
            raise ValueError(f"sigma must be positive, got {sigma}")
        x = centered_unit(x)
        median = median_distance(x)
        if median == 0:
            raise ValueError("the median distance of the rows is 0, which gives no bandwidth: most rows are the same")
        x /= 2**0.5 * sigma * median
        sums, own = [], 0.0
        for start, block in _rbf_blocks(x):
            _fill_diagonal(block, start, 0.0)
            sums.append(block.sum(1))
            own += float(block.square().sum())
        return cls(x, torch.cat(sums), own)

    def permuted(self, order: Tensor) -> Rbf:
        """The same representation with its rows in another order."""
        return replace(self, x=self.x[order], sums=self.sums[order])


def _squared_distances(x: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Blocks of rows of the matrix of squared distances, with the first row of each; equal rows are 0 apart."""
    norms = x.square().sum(1)
    rounding = 1e-13 * float(norms.max())
    for start in range(0, len(x), BLOCK):
        rows = x[start : start + BLOCK]
        block = torch.addmm(norms, rows, x.T, alpha=-2)
        block += norms[start : start + BLOCK, None]
        yield start, block.masked_fill_(block < rounding, 0.0)


def _rbf_blocks(x: Tensor) -> Iterator[tuple[int, Tensor]]:
    for start, block in _squared_distances(x):
        yield start, block.neg_().exp_()


def _fill_diagonal(block: Tensor, start: int, value: float) -> None:
    block[:, start : start + len(block)].fill_diagonal_(value)


def median_distance(x: Tensor) -> float:
    """Median of the distances between different rows (the lower of two middle ones), exact: (n, d) → float.

    Four passes over blocks, never n × n in memory: floats that are not negative are in the order of their bits, so
    each pass counts by the next 16 bits, among those that agree with the median so far.
    """
    n = len(x)
    rank = (n * (n - 1) // 2 - 1) // 2 * 2  # every pair is met twice
    prefix = 0
    for shift in (48, 32, 16, 0):
        counts = torch.zeros(1 << 16, dtype=torch.int64, device=x.device)
        for start, block in _squared_distances(x):
            _fill_diagonal(block, start, float("inf"))
            bits = block.view(torch.int64).flatten() >> shift
            bits = bits[bits >> 16 == prefix] if shift < 48 else bits
            counts += torch.bincount(bits & 0xFFFF, minlength=1 << 16)
        reached = counts.cumsum(0)
        place = int((reached <= rank).sum())
        rank -= int(reached[place - 1]) if place else 0
        prefix = prefix << 16 | place
    return float(torch.tensor(prefix).view(torch.float64).sqrt())


def _rbf_product(a: Rbf, b: Rbf) -> float:
    """Sum over different rows of the products of both kernels."""
    total = 0.0
    for (start, first), (_, second) in zip(_rbf_blocks(a.x), _rbf_blocks(b.x), strict=True):
        _fill_diagonal(first, start, 0.0)
        total += float((first * second).sum())
    return total


def _rbf_hsic(product: float, a: Rbf, b: Rbf, unbiased: bool) -> float:
    """HSIC times (n − 1)², or n(n − 3) if unbiased, from sums over the kernels without their diagonals."""
    n = len(a.x)
    if unbiased:
        r, s, n1, n2 = a.sums, b.sums, n - 1, n - 2
        return product + float(r.sum() * s.sum()) / (n1 * n2) - 2 / n2 * float(r @ s)
    r, s = a.sums + 1, b.sums + 1
    return product + n + float(r.sum() * s.sum()) / n**2 - 2 / n * float(r @ s)


def rbf_cka_score(a: Rbf, b: Rbf) -> float:
    """Biased CKA with RBF kernels."""
    own = _rbf_hsic(a.own, a, a, False) * _rbf_hsic(b.own, b, b, False)
    return _rbf_hsic(_rbf_product(a, b), a, b, False) / own**0.5


def unbiased_rbf_cka_score(a: Rbf, b: Rbf) -> float:
    """Unbiased CKA with RBF kernels."""
    own = [_rbf_hsic(s.own, s, s, True) for s in (a, b)]
    _require_positive(own, [a.own, b.own])
    return _rbf_hsic(_rbf_product(a, b), a, b, True) / (own[0] * own[1]) ** 0.5


def jackknife(a: Linear, b: Linear, *, unbiased: bool) -> Tensor:
    """Linear CKA without each row in turn: float64 (n,), from d × d products and sums of rows of the kernels.

    With kernels K, L whose diagonals are taken off if unbiased, leaving out row i takes from each sum over the kernels
    what row and column i contribute. Where a row is so large that little is left without it, that would cancel: such a
    score is computed from the other rows.
    """

    def hsic(a: Linear, b: Linear) -> Tensor:
        m = len(a.x) - 1
        p, q = (a.squared_norms, b.squared_norms) if unbiased else (torch.zeros_like(a.squared_norms),) * 2
        off = a.squared_norms * b.squared_norms - p * q  # of the diagonal, where it counts
        rows = ((a.x @ (a.x.T @ b.x)) * b.x).sum(1) - p * q  # sums of the rows of K∘L
        r, s = -p, -q  # sums of the rows of K and L: those of centered kernels are 0
        product = rows.sum() - 2 * rows + off
        k_diagonal, l_diagonal = a.squared_norms - p, b.squared_norms - q
        total_k, total_l = r.sum() - 2 * r + k_diagonal, s.sum() - 2 * s + l_diagonal
        lr, ks = b.x @ (b.x.T @ r) - q * r, a.x @ (a.x.T @ s) - p * s
        # Σ (r_j − K_ji)(s_j − L_ji) over j ≠ i: row sums that lack row i
        mixed = r @ s - lr - ks + rows - (r - k_diagonal) * (s - l_diagonal)
        if unbiased:
            return product + total_k * total_l / ((m - 1) * (m - 2)) - 2 / (m - 2) * mixed
        return product + total_k * total_l / m**2 - 2 / m * mixed

    own = hsic(a, a), hsic(b, b)
    scores = hsic(a, b) / (own[0] * own[1]).sqrt()
    little = (own[0] < CANCELS * a.own) | (own[1] < CANCELS * b.own)
    for i in little.nonzero()[:, 0].tolist():
        rest = torch.arange(len(a.x), device=a.x.device) != i
        first, second = Linear.of(a.x[rest]), Linear.of(b.x[rest])
        scores[i] = unbiased_cka_score(first, second) if unbiased else cka_score(first, second)
    return scores
