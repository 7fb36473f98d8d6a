"""Similarity from nearest neighbors: who is near whom in either representation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from repsim_utils.metrics.inputs import as_pair, largest_absolute

BLOCK = 1024  # rows and columns of a block of inner products: no more than one such block is in memory


@dataclass(frozen=True)
class Neighbors:
    """The nearest neighbors of every row, nearest first.

    Near means a large inner product, as in Huh et al. (2024): with rows of length one, that is cosine similarity. A row
    is no neighbor of its own; ties go to the row that comes first.

    Attributes
    ----------
    index : Tensor
        int64 (n, k).
    value : Tensor
        float64 (n, k), the inner products.
    mean : Tensor
        float64 (n,), mean inner product of each row with all rows.
    tied : Tensor or None
        The features, where neighbors are tied: their order then depends on that of the rows.
    """

    index: Tensor
    value: Tensor
    mean: Tensor
    tied: Tensor | None = None

    @classmethod
    def of(cls, x: Tensor, *, k: int = 10) -> Neighbors:
        """Exact neighbors, from products of blocks: (n, d) → lists of k, without an n × n matrix."""
        n = len(x)
        if not 1 <= k < n:
            raise ValueError(f"k must be at least 1 and less than the number of rows, got k={k} with {n} rows")
        largest = float(largest_absolute(x))
        x = x if 1e-100 < largest < 1e100 else x / largest  # products neither overflow nor vanish
        first, which = _distinct_rows(x)
        keys = x if len(first) == n else x[first]
        value, index = _largest_products(keys, min(k + 2, len(keys)))  # oneself, and one to see ties
        value, index = _with_equal_rows(value, index, which, min(k + 1, n - 1))
        tied = bool((value[:, 1:] == value[:, :-1]).any())
        return cls(index[:, :k], value[:, :k], x @ x.mean(0), x if tied else None)

    def permuted(self, order: Tensor) -> Neighbors:
        """The lists after the rows came into another order: only the names of the rows change.

        Where there are ties, the lists are made anew: ties go to the row that comes first, in x as in y, and that is
        something that unrelated representations have in common.
        """
        if self.tied is not None:
            return Neighbors.of(self.tied[order.to(self.tied.device)], k=self.index.shape[1])
        order = order.to(self.index.device)
        moved = Neighbors(order.argsort()[self.index[order]], self.value[order], self.mean[order])
        vars(moved).update({name: known for name, known in vars(self).items() if name == "masked_own"})
        return moved

    @cached_property
    def masked_own(self) -> float:
        """HSIC with itself of the kernel that is zero but for these neighbors; the same in any order of the rows."""
        return _masked_hsic(self, self)

    def without(self, gone: Tensor, k: int) -> Neighbors:
        """Lists of k after some rows were taken out (bool (n,)); `mean` stays that of all rows.

        Raises
        ------
        ValueError
            If a row keeps fewer than k of its listed neighbors.
        """
        lost = gone[self.index]
        if int((~lost).sum(1)[~gone].min()) < k:
            raise ValueError(f"the lists are too short to keep {k} neighbors")
        kept = lost.to(torch.int8).argsort(dim=1, stable=True)[:, :k]
        name = (~gone).cumsum(0) - 1
        return Neighbors(name[self.index.gather(1, kept)][~gone], self.value.gather(1, kept)[~gone], self.mean[~gone])


def _distinct_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """First place of each distinct row, ascending (m,), and which of them each row is (n,).

    Products of equal rows may differ in their last bit, depending on where the rows stand: so that equal rows are tied
    exactly, each is multiplied once.
    """
    n = len(x)
    rows = torch.arange(n, device=x.device)
    weights = torch.linspace(1, 2, x.shape[1], dtype=x.dtype, device=x.device).sqrt()
    _, group = (x * weights).sum(1).unique(return_inverse=True)  # equal rows have equal sums
    if int(group.max()) + 1 == n:
        return rows, rows
    representative = torch.full_like(rows, n).scatter_reduce(0, group, rows, "amin")[group]
    if not torch.equal(x[representative], x):  # different rows may have equal sums, if rarely
        group = x.unique(dim=0, return_inverse=True)[1]
        representative = torch.full_like(rows, n).scatter_reduce(0, group, rows, "amin")[group]
    first, which = representative.unique(return_inverse=True)
    return first, which


def _largest_products(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and places of the k largest inner products of every row with all rows, ties to the first place.

    The matrix of products is symmetric: of each pair of blocks one is formed, and serves the rows of both.
    """
    n = len(x)
    largest = _Largest(x, min(k + 1, n))  # one more, to see whether the last place is tied
    for i in range(0, n, BLOCK):
        for j in range(i, n, BLOCK):
            block = largest.product(x[i : i + BLOCK], x[j : j + BLOCK])
            largest.add(block, i, j)
            if j > i:
                largest.add(block, j, i, transposed=True)
    value, index = _sorted(largest.value, largest.place)
    if k < n:
        tied = (value[:, k] == value[:, k - 1]).nonzero()[:, 0]
        for rows in tied.split(BLOCK):
            value[rows, :k], index[rows, :k] = _first_of_tied(x[rows] @ x.T, k)
    return value[:, :k], index[:, :k]


class _Largest:
    """The k largest entries of every row of a matrix that comes in blocks, and their places, in no order."""

    def __init__(self, x: Tensor, k: int) -> None:
        n = len(x)
        self.value = x.new_full((n, k), float("-inf"))
        self.place = torch.zeros((n, k), dtype=torch.int64, device=x.device)
        self.bound = self.value[:, 0].clone()  # what an entry must exceed
        self._block, self._transposed = x.new_empty(2, min(n, BLOCK) ** 2)  # memory is taken once: that takes longest

    def product(self, x: Tensor, y: Tensor) -> Tensor:
        """Inner products of two blocks of rows; the next call overwrites them."""
        return torch.mm(x, y.T, out=self._block[: len(x) * len(y)].view(len(x), len(y)))

    def add(self, block: Tensor, start: int, offset: int, *, transposed: bool = False) -> None:
        """Take in a block whose first row is `start` and whose first column is `offset` (or the transposed block)."""
        size, k = block.shape[transposed], self.value.shape[1]
        rows = slice(start, start + size)
        bound = self.bound[rows] if transposed else self.bound[rows, None]
        hits = (block > bound).nonzero()
        width = int(torch.bincount(hits[:, int(transposed)], minlength=size).max())
        if not width:
            return
        if 8 * width < block.shape[1 - transposed]:  # later blocks hold few large entries
            value, place = _padded(block, hits, width, transposed)
        else:
            if transposed:
                block = self._transposed[: block.numel()].view(size, -1).copy_(block.T)
            value, place = block.topk(min(k, block.shape[1]), dim=1, sorted=False)
        value = torch.cat([self.value[rows], value], 1)
        place = torch.cat([self.place[rows], place + offset], 1)
        self.value[rows], order = value.topk(k, dim=1, sorted=False)
        self.place[rows] = place.gather(1, order)
        self.bound[rows] = self.value[rows].amin(1)


def _padded(block: Tensor, hits: Tensor, width: int, transposed: bool) -> tuple[Tensor, Tensor]:
    """The entries at some places (m, 2), as rows of one width: values (-inf where there is none) and columns."""
    value = block[hits[:, 0], hits[:, 1]]
    if transposed:
        order = hits[:, 1].argsort(stable=True)
        hits, value = hits[order].flip(1), value[order]
    row, size = hits[:, 0], block.shape[transposed]
    counts = torch.bincount(row, minlength=size)
    slot = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    values = block.new_full((size, width), float("-inf"))
    columns = torch.zeros((size, width), dtype=torch.int64, device=row.device)
    values[row, slot], columns[row, slot] = value, hits[:, 1]
    return values, columns


def _sorted(value: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Each row by falling value, ties by rising index."""
    index, order = index.sort(dim=1)
    value, order = value.gather(1, order).sort(dim=1, descending=True, stable=True)
    return value, index.gather(1, order)


def _first_of_tied(block: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest entries of each row; of equal ones those that come first."""
    last = block.topk(k, dim=1).values[:, -1:]
    larger, equal = block > last, block == last
    taken = larger | (equal & (equal.cumsum(1) <= k - larger.sum(1, keepdim=True)))
    index = taken.nonzero()[:, 1].view(len(block), k)
    return _sorted(block.gather(1, index), index)


def _with_equal_rows(value: Tensor, index: Tensor, which: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """From lists of distinct rows (m, k + 1) to lists of all rows (n, k): equal rows are listed one by one."""
    n, m = len(which), len(value)
    copies = torch.bincount(which, minlength=m)
    order = which.argsort(stable=True)
    within = torch.arange(n, device=which.device) - (copies.cumsum(0) - copies)[which[order]]
    width = min(int(copies.max()), k + 2)
    members = torch.full((m, width), -1, dtype=torch.int64, device=which.device)
    members[which[order][within < width], within[within < width]] = order[within < width]
    lists, products = [], []
    for rows in torch.arange(n, device=which.device).split(BLOCK):
        own = which[rows]
        candidates = members[index[own]].flatten(1)
        scores = value[own].repeat_interleave(width, dim=1)
        scores = scores.masked_fill((candidates < 0) | (candidates == rows[:, None]), float("-inf"))
        best, named = _sorted(scores, candidates)
        lists.append(named[:, :k])
        products.append(best[:, :k])
    return torch.cat(products), torch.cat(lists)


def _matches(a: Neighbors, b: Neighbors) -> Tensor:
    """Whether the p-th neighbor in a is the q-th in b: bool (k, k, n)."""
    return a.index.T[:, None] == b.index.T[None]


def mutual_knn_score(a: Neighbors, b: Neighbors) -> float:
    """Share of neighbors that are in both lists of a row."""
    return int(_matches(a, b).sum()) / a.index.numel()


def cycle_knn_score(a: Neighbors, b: Neighbors) -> float:
    """Share of rows that are found again by way of b and a."""
    here = torch.arange(len(a.index), device=a.index.device)[:, None, None]
    return float((a.index[b.index] == here).flatten(1).any(1).double().mean())


def lcs_knn_score(a: Neighbors, b: Neighbors) -> float:
    """Mean length of the longest common subsequence of the lists, over k."""
    equal, k = _matches(a, b).to(torch.int16), a.index.shape[1]
    row = equal.new_zeros(k + 1, equal.shape[2])
    for i in range(k):
        above, row = row, row.clone()
        for j in range(k):
            torch.maximum(above[j + 1], row[j], out=row[j + 1])
            torch.maximum(row[j + 1], above[j] + equal[i, j], out=row[j + 1])
    return float(row[k].double().mean()) / k


def lcs_knn_published_score(a: Neighbors, b: Neighbors) -> float:
    """The same, not over k."""
    return lcs_knn_score(a, b) * a.index.shape[1]


def edit_distance_knn_score(a: Neighbors, b: Neighbors) -> float:
    """One minus the mean edit distance of the lists over k."""
    different, k = (~_matches(a, b)).to(torch.int16), a.index.shape[1]
    row = torch.arange(k + 1, dtype=torch.int16, device=different.device)[:, None].repeat(1, different.shape[2])
    for i in range(k):
        above, row = row, row + 1
        for j in range(k):
            torch.minimum(row[j + 1], row[j] + 1, out=row[j + 1])
            torch.minimum(row[j + 1], above[j] + different[i, j], out=row[j + 1])
    return 1 - float(row[k].double().mean()) / k


def cknna_score(a: Neighbors, b: Neighbors) -> float:
    """CKNNA after Huh et al. (2024), Eq. 16."""
    first, second = (lists.value - lists.mean[:, None] for lists in (a, b))
    equal = _matches(a, b).permute(2, 0, 1).to(first.dtype)
    common = float(torch.einsum("npq,np,nq->", equal, first, second))
    scale = float(first.square().sum()) * float(second.square().sum())
    if not scale > 0:
        raise ValueError("CKNNA is undefined here: the nearest neighbors of x or of y are no nearer than the average")
    return common / scale**0.5


def cknna_published_score(a: Neighbors, b: Neighbors) -> float:
    """CKNNA as in the code that Huh et al. (2024) published."""
    own = [lists.masked_own for lists in (a, b)]
    if min(own) <= 0:
        raise ValueError(f"CKNNA as published is undefined here: {'xy'[own[0] > 0]} has no positive HSIC with itself")
    return _masked_hsic(a, b) / (own[0] * own[1]) ** 0.5


def _masked_hsic(a: Neighbors, b: Neighbors) -> float:
    """Unbiased HSIC of two kernels that are zero but for the common neighbors (times a constant that cancels)."""
    n = len(a.index)
    p, q, row = _matches(a, b).nonzero(as_tuple=True)
    column, k_value, l_value = a.index[row, p], a.value[row, p], b.value[row, q]
    k_sums = torch.zeros_like(a.mean).index_add(0, column, k_value)
    l_sums = torch.zeros_like(a.mean).index_add(0, row, l_value)
    both = torch.stack([(lists.index[column] == row[:, None]).any(1) for lists in (a, b)]).all(0)  # and the way back
    product = float((k_value * l_value)[both].sum())
    ends = float(k_value.sum() * l_value.sum()) / ((n - 1) * (n - 2))
    return product + ends - 2 / (n - 2) * float(k_sums @ l_sums)


def _pair(x: Any, y: Any, k: int, least_rows: int = 2) -> tuple[Neighbors, Neighbors]:
    x, y = as_pair(x, y, least_rows=least_rows)
    return Neighbors.of(x, k=k), Neighbors.of(y, k=k)


def mutual_knn(x: Any, y: Any, *, k: int = 10) -> float:
    """Mutual k-NN: which share of a row's k nearest neighbors is the same in both representations.

    The mean over rows of ``|A_i ∩ B_i| / k``, with the sets A_i, B_i of row i's nearest neighbors in x and in y (Huh
    et al. 2024, Section 2). For unrelated representations its mean is exactly k / (n − 1), unless neighbors
    are tied (equal rows, features with few values): ties go to the row that comes first, in both alike.

    Parameters
    ----------
    x, y : (n, d1) and (n, d2) array or Tensor
        Representations of the same n samples, rows matched.
    k : int
        Neighbors, fewer than n.

    Returns
    -------
    float
        In [0, 1]. Symmetric; invariant to rotation and scaling, and, since neighbors are by inner product, not to
        shifts. Blind to everything but the nearest neighbors, and to their order. Where rows are not of length one,
        long rows are neighbors of many others (hubs).

    Raises
    ------
    ValueError
        If the input is malformed (see `as_pair`), or k is not below the number of rows.
    """
    return mutual_knn_score(*_pair(x, y, k))


def cycle_knn(x: Any, y: Any, *, k: int = 10) -> float:
    """Cycle k-NN: how often one finds the way back, out through y and home through x.

    The share of rows i that are among the nearest neighbors, in x, of at least one of their nearest neighbors in y.
    Any one hit counts, as in the code of Huh et al. (2024).

    Parameters
    ----------
    x, y : (n, d1) and (n, d2) array or Tensor
        Representations of the same n samples, rows matched.
    k : int
        Neighbors, fewer than n.

    Returns
    -------
    float
        In [0, 1]. Not symmetric, and not 1 on itself where a row is no neighbor of its own neighbors. Invariances as
        for `mutual_knn`.

    Raises
    ------
    ValueError
        If the input is malformed (see `as_pair`), or k is not below the number of rows.
    """
    return cycle_knn_score(*_pair(x, y, k))


def lcs_knn(x: Any, y: Any, *, k: int = 10, published: bool = False) -> float:
    """LCS k-NN: the longest common subsequence of both lists of neighbors, nearest first.

    Like `mutual_knn`, but common neighbors count only as far as they come in the same order.

    Parameters
    ----------
    x, y : (n, d1) and (n, d2) array or Tensor
        Representations of the same n samples, rows matched.
    k : int
        Neighbors, fewer than n.
    published : bool
        The mean length itself, 0 to k, as in the code of Huh et al. (2024) and in published tables. By default it is
        divided by k, so that lists of different lengths can be compared.

    Returns
    -------
    float
        In [0, 1], or in [0, k] as published. Symmetric, 1 (or k) on itself, at most `mutual_knn` (times k).
        Invariances as for `mutual_knn`.

    Raises
    ------
    ValueError
        If the input is malformed (see `as_pair`), or k is not below the number of rows.
    """
    return lcs_knn_score(*_pair(x, y, k)) * (k if published else 1)


def edit_distance_knn(x: Any, y: Any, *, k: int = 10) -> float:
    """Edit-distance k-NN: one minus the mean edit distance of both lists of neighbors, over k.

    The edit distance (Levenshtein 1966) counts the insertions, deletions and substitutions that turn one list into the
    other.

    Parameters
    ----------
    x, y : (n, d1) and (n, d2) array or Tensor
        Representations of the same n samples, rows matched.
    k : int
        Neighbors, fewer than n.

    Returns
    -------
    float
        In [0, 1]. Symmetric, 1 on itself, at most `lcs_knn`. Invariances as for `mutual_knn`.

    Raises
    ------
    ValueError
        If the input is malformed (see `as_pair`), or k is not below the number of rows.
    """
    return edit_distance_knn_score(*_pair(x, y, k))


def cknna(x: Any, y: Any, *, k: int = 10, published: bool = False) -> float:
    r"""CKNNA, centered kernel nearest-neighbor alignment: CKA that looks at common nearest neighbors only.

    By default Eq. 16 of Huh et al. (2024): with kernels :math:`K = XX^\top, L = YY^\top`, both less the mean of each
    row, the sum of :math:`K_{ij} L_{ij}` over those j that are among the k nearest neighbors of i in both, divided by
    the root of the same sums of each representation with itself. The code that they published, which later tables were
    made with, does something else: it sets the kernels to zero but for common neighbors, and then takes the unbiased
    HSIC of what remains. That value has no bound, can be undefined, and changes when x and y are exchanged (a masked
    kernel is not symmetric); hence it is not the default.

    Parameters
    ----------
    x, y : (n, d1) and (n, d2) array or Tensor
        Representations of the same n samples, rows matched.
    k : int
        Neighbors, fewer than n.
    published : bool
        What the published code computes, without the small number that it adds to the denominator. Needs 4 rows.

    Returns
    -------
    float
        In [-1, 1] and symmetric by default; 1 on itself; invariant to rotation and scaling, not to shifts. Unrelated
        representations have few common neighbors, and come close to 0.

    Raises
    ------
    ValueError
        If the input is malformed (see `as_pair`), k is not below the number of rows, or the value is undefined.
    """
    a, b = _pair(x, y, k, least_rows=4 if published else 2)
    return cknna_published_score(a, b) if published else cknna_score(a, b)
