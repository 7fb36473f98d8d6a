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
        B (out, r) and A (r, in); r need not be the same for both. A ValueError if out or in are not.

    Returns
    -------
    float
        From -1 to 1; near 0 for independent changes. Not a number if one changes nothing.
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
        As for `update_cosine`.
    k : int
        At most the smallest of all sides; else a ValueError.

    Returns
    -------
    written, read : float
        From 0 to 1. Random subspaces have k / out and k / in on average.
    """
    _check(first, second)
    fewest = min(min(left.shape[0], *right.shape) for left, right in (first, second))
    if not 1 <= k <= fewest:
        raise ValueError(f"k must be from 1 to {fewest}, the fewest directions of a change; got {k}")
    spaces = [_leading(update, k) for update in (first, second)]
    written, read = (float((x.T @ y).square().sum()) / k for x, y in zip(*spaces, strict=True))
    return written, read


def _leading(update: Update, k: int) -> tuple[Tensor, Tensor]:
    """Leading left and right singular vectors of a product, from the small matrix between two orthonormal bases."""
    left, right = (part.double() for part in update)
    (q, r), (p, s) = torch.linalg.qr(left), torch.linalg.qr(right.T)
    u, _, vt = torch.linalg.svd(r @ s.T)
    return q @ u[:, :k], p @ vt[:k].T


def _check(first: Update, second: Update) -> None:
    shapes = [(left.shape[0], right.shape[1]) for left, right in (first, second)]
    inner = [left.shape[1] == right.shape[0] for left, right in (first, second)]
    if shapes[0] != shapes[1] or not all(inner):
        told = " and ".join(f"{tuple(left.shape)} @ {tuple(right.shape)}" for left, right in (first, second))
        raise ValueError(f"first and second must be products of one shape, got {told}")
