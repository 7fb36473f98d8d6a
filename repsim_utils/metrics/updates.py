"""How alike two changes of a weight matrix are, each given as a product ``left @ right``, as low-rank adapters are."""

from __future__ import annotations

import torch
from torch import Tensor

Update = tuple[Tensor, Tensor]


def update_cosine(first: Update, second: Update) -> float:
    """Cosine between two changes, each read as one long vector.

    ⟨B₁A₁, B₂A₂⟩ = Σ (B₁ᵀB₂) ∘ (A₁A₂ᵀ): the changes themselves, out × in, are never made.

    Parameters
    ----------
    first, second : tuple of Tensor
        B (out, r) and A (r, in); r need not be the same for both.

    Returns
    -------
    float
        From -1 to 1; near 0 for independent changes. Not a number if one changes nothing.

    Raises
    ------
    ValueError
        If the two are not of matrices of one shape.
    """
    _check(first, second)
    norms = _inner(first, first) * _inner(second, second)
    return _inner(first, second) / norms**0.5 if norms > 0 else float("nan")


def _inner(first: Update, second: Update) -> float:
    (b1, a1), (b2, a2) = ((left.double(), right.double()) for left, right in (first, second))
    return float(((b1.T @ b2) * (a1 @ a2.T)).sum())


def update_subspaces(first: Update, second: Update, *, k: int = 4) -> tuple[float, float]:
    """How far two changes write into, and read from, the same directions.

    The mean squared cosine of the principal angles (Björck and Golub 1973) between the spaces of the k leading left
    singular vectors of both changes (what they write), and between those of the right ones (what they read).

    Parameters
    ----------
    first, second : tuple of Tensor
        B (out, r) and A (r, in).
    k : int
        At most the rank of either change, beyond which singular vectors are arbitrary.

    Returns
    -------
    written, read : float
        From 0 to 1. Random subspaces have k / out and k / in on average. Not a number if one changes nothing.

    Raises
    ------
    ValueError
        If the two are not of matrices of one shape, or have fewer than k directions.
    """
    _check(first, second)
    spaces = [_directions(update) for update in (first, second)]
    fewest = min(written.shape[1] for written, _ in spaces)
    if fewest == 0 and k >= 1:
        return float("nan"), float("nan")
    if not 1 <= k <= fewest:
        raise ValueError(f"k must be from 1 to {fewest}, the rank of a change: others are arbitrary; got {k}")
    written, read = (float((x[:, :k].T @ y[:, :k]).square().sum()) / k for x, y in zip(*spaces, strict=True))
    return written, read


def _directions(update: Update) -> tuple[Tensor, Tensor]:
    """Left and right singular vectors of a product, as many as its rank: from the small matrix between two bases.

    What rounding of the factors makes of a smaller rank is not counted.
    """
    left, right = (part.double() for part in update)
    (q, r), (p, s) = torch.linalg.qr(left), torch.linalg.qr(right.T)
    u, values, vt = torch.linalg.svd(r @ s.T)
    rounding = 10 * max(torch.finfo(part.dtype).eps for part in update)
    rank = int((values > rounding * values.max()).sum())
    return q @ u[:, :rank], p @ vt[:rank].T


def _check(first: Update, second: Update) -> None:
    shapes = [(left.shape[0], right.shape[1]) for left, right in (first, second)]
    inner = [left.shape[1] == right.shape[0] for left, right in (first, second)]
    if shapes[0] != shapes[1] or not all(inner):
        told = " and ".join(f"{tuple(left.shape)} @ {tuple(right.shape)}" for left, right in (first, second))
        raise ValueError(f"first and second must be products of one shape, got {told}")
