"""Linear CKA of data that do not fit in memory: exact, in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from repsim_utils.metrics.inputs import as_matrix, check_labels


class StreamingCKA:
    """Linear CKA from batches, equal to that of all rows at once.

    Every row x is kept only within sums: of the products of (1, ‖x‖², x) with itself, and with that of the matched row
    y. Once the mean is known, the centered rows and their squared norms are linear in these. Features are shifted and
    scaled by the first batch, so that little is lost where they are far from zero. Memory is O((d1 + d2)²), whatever n.

    Averages of CKA over batches, which are often used instead, are biased.

    Examples
    --------
    >>> import torch
    >>> stream = StreamingCKA()
    >>> for batch in torch.arange(24.0).sin().reshape(4, 3, 2):
    ...     stream.update(batch, batch)
    >>> stream.n, stream.compute(unbiased=True)
    (12, 1.0)
    """

    def __init__(self) -> None:
        self.n = 0
        self._own: list[Tensor] = []
        self._cross = torch.empty(0)
        self._shift: list[Tensor] = []
        self._scale: list[Tensor] = []

    def update(self, x: Any, y: Any) -> None:
        """Add a batch.

        Parameters
        ----------
        x, y : (b, d1) and (b, d2) array or Tensor
            Matched rows, one or more; d1 and d2 are those of the first batch.

        Raises
        ------
        ValueError
            If a batch is not a finite matrix, or does not match in rows, or in columns with the first one. Nothing of
            it is added.
        """
        check_labels([("x", x), ("y", y)])
        pair = [as_matrix("x", x), as_matrix("y", y)]
        if len(pair[0]) != len(pair[1]):
            raise ValueError(
                f"x and y must have matching rows, got {len(pair[0])} and {len(pair[1])}: give the same samples to both"
            )
        if not len(pair[0]):
            return
        if not self.n:
            self._start(pair)
        for name, values, shift in zip("xy", pair, self._shift, strict=True):
            if values.shape[1] != len(shift):
                raise ValueError(f"{name} has {values.shape[1]} columns, and {len(shift)} in the batches before")
        first, second = (self._extended(i, values.to(self._shift[0].device)) for i, values in enumerate(pair))
        self.n += len(first)
        self._own[0] += first.T @ first
        self._own[1] += second.T @ second
        self._cross += first.T @ second

    def _start(self, pair: list[Tensor]) -> None:
        self._shift = [values.mean(0) for values in pair]
        sizes = [(values - shift).abs().max() for values, shift in zip(pair, self._shift, strict=True)]
        self._scale = [
            torch.where(size > 0, size, shift.abs().max().clamp(min=1))
            for size, shift in zip(sizes, self._shift, strict=True)
        ]
        widths = [values.shape[1] + 2 for values in pair]
        zeros = self._shift[0].new_zeros
        self._own, self._cross = [zeros(width, width) for width in widths], zeros(*widths)

    def _extended(self, i: int, x: Tensor) -> Tensor:
        """Rows (1, ‖x‖², x) of shifted and scaled features."""
        x = (x - self._shift[i]) / self._scale[i]
        return torch.cat([torch.ones_like(x[:, :1]), x.square().sum(1, keepdim=True), x], dim=1)

    def compute(self, *, unbiased: bool = False) -> float:
        """CKA of all rows so far; see `repsim_utils.metrics.cka`.

        Raises
        ------
        ValueError
            If there are too few rows (2, or 4 if unbiased), or a representation does not vary over them.
        """
        least = 4 if unbiased else 2
        if self.n < least:
            raise ValueError(f"linear CKA needs at least {least} rows, got {self.n}")
        x, y = (self._centering(sums) for sums in self._own)
        own = [self._hsic(a, a, sums, unbiased) for a, sums in zip((x, y), self._own, strict=True)]
        for name, value, sums, a in zip("xy", own, self._own, (x, y), strict=True):
            if not value > 1e-10 * self._hsic(a, a, sums, False):
                raise ValueError(f"CKA is undefined here: {name} has no positive HSIC with itself")
        return self._hsic(x, y, self._cross, unbiased) / (own[0] * own[1]) ** 0.5

    def _centering(self, sums: Tensor) -> Tensor:
        """The map from (1, ‖x‖², x) to (‖x − m‖², x − m), with m the mean: (d + 1, d + 2)."""
        mean = sums[0, 2:] / self.n
        to_norm = torch.cat([mean.new_tensor([float(mean @ mean), 1.0]), -2 * mean])
        to_features = torch.cat([-mean[:, None], torch.zeros_like(mean)[:, None], torch.eye(len(mean)).to(mean)], dim=1)
        return torch.cat([to_norm[None], to_features])

    def _hsic(self, a: Tensor, b: Tensor, sums: Tensor, unbiased: bool) -> float:
        n, centered = self.n, a @ sums @ b.T
        product = float(centered[1:, 1:].square().sum())
        if not unbiased:
            return product
        total_p, total_q = (m[0] @ s[:, 0] for m, s in ((a, sums), (b, sums.T)))
        return product - n / (n - 2) * float(centered[0, 0]) + float(total_p * total_q) / ((n - 1) * (n - 2))
