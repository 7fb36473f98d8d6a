"""How far a score can be trusted: intervals over rows, by leaving rows out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from repsim_utils.metrics import kernel
from repsim_utils.metrics.inputs import as_pair, check_labels, cluster_numbers
from repsim_utils.metrics.kernel import Linear
from repsim_utils.metrics.neighbors import Neighbors
from repsim_utils.metrics.suite import Metric, Prepared, find

FOLDS = 50  # groups of rows that are left out in turn, where leaving out each row would take too long
HALVES = 100  # half-samples of the rows


@dataclass(frozen=True)
class Interval:
    """A score with an interval over rows: how much it would change with another sample of the same kind.

    It says nothing of other models trained alike; for that, see `repsim_utils.analysis.mean_interval`.

    Attributes
    ----------
    value, low, high : float
    standard_error : float
    level : float
    method : str
    """

    value: float
    low: float
    high: float
    standard_error: float
    level: float
    method: str


def interval(
    x: Any,
    y: Any,
    name: str,
    *,
    method: str = "jackknife",
    level: float = 0.95,
    seed: int = 0,
    groups: Sequence[Any] | None = None,
    preprocess: str | None = None,
    **options: Any,
) -> Interval:
    """A score with an interval over rows.

    Rows are left out, never drawn with replacement: two copies of a row are each other's nearest neighbors and twins
    in every kernel, which moves these metrics far from their value.

    Parameters
    ----------
    x, y : (n, d1) and (n, d2) array or Tensor
        Representations of the same n independent samples, rows matched.
    name : str
        Metric, from `METRICS`.
    method : {"jackknife", "subsample"}
        Leave out each row in turn (linear CKA, in closed form) or each of 50 random groups of rows (other metrics); or
        take 100 random halves, whose spread about their mean is that of the whole sample about its truth.
    level : float
        Coverage wanted.
    seed : int
        Of the groups or halves.
    groups : (n,) sequence, optional
        Label of each row's cluster, where rows are not independent. Clusters are then left out whole.
    preprocess : {"platonic", None}
        As in `calibrate`. Features are prepared once, from all rows.
    **options
        Of the metric, such as ``k``.

    Returns
    -------
    Interval
        The score plus and minus a quantile of Student's t (jackknife) or the normal distribution times the standard
        error; it is not clipped to the range of the metric.

    Raises
    ------
    ValueError
        If the input is malformed, there are too few rows to leave any out, or the method is unknown.

    References
    ----------
    Efron and Stein (1981) for the jackknife; Politis, Romano and Wolf (1999) for subsampling.
    """
    if method not in ("jackknife", "subsample"):
        raise ValueError(f"method must be 'jackknife' or 'subsample', got {method!r}")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    metric = find(name)
    check_labels([("x", x), ("y", y), ("groups", groups)])
    pair = as_pair(x, y, least_rows=rows_needed(metric, method), preprocess=preprocess)
    return intervals_of(Prepared.of(pair, [metric], metric.filled(options)), method, level, seed, groups)[0]


def rows_needed(metric: Metric, method: str = "jackknife") -> int:
    """Rows below which there is nothing to leave out."""
    return 2 * metric.least_rows if method == "subsample" else max(metric.least_rows + 1, 5)


def intervals_of(
    prepared: Prepared, method: str, level: float, seed: int, groups: Sequence[Any] | None
) -> list[Interval]:
    """Intervals of metrics that are prepared alike."""
    from scipy import stats

    rng, n = np.random.default_rng(seed), len(prepared.pair[0])
    which = np.arange(n) if groups is None else cluster_numbers(groups, n)
    if method == "subsample":
        scores = _of_halves(prepared, which, rng)
        errors, quantile = scores.std(axis=1, ddof=1), stats.norm.ppf((1 + level) / 2)
    else:
        scores = _left_out(prepared, which, rng)
        m = scores.shape[1]
        errors, quantile = scores.std(axis=1) * (m - 1) ** 0.5, stats.t.ppf((1 + level) / 2, m - 1)
    if not np.isfinite(errors).all():
        raise ValueError("the score is not a number when some rows are left out: there is no interval")
    halves = [float(quantile * error) for error in errors]
    return [
        Interval(value, value - half, value + half, float(error), level, method)
        for value, half, error in zip(prepared.scores(), halves, errors, strict=True)
    ]


def _of_halves(prepared: Prepared, which: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Scores of random halves of the rows (or clusters), by metric."""
    (x, y), scores, n = prepared.pair, [], int(which.max()) + 1
    for _ in range(HALVES):
        rows = torch.from_numpy(np.flatnonzero(rng.permutation(n)[which] < n // 2)).to(x.device)
        scores.append(Prepared.of((x[rows], y[rows]), prepared.metrics, prepared.options).scores())
    return np.array(scores).T


def _left_out(prepared: Prepared, which: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Scores without each row, or without each group of rows (or clusters), by metric."""
    (x, y), (first, second), metrics = prepared.pair, prepared.states, prepared.metrics
    n, n_clusters = len(x), int(which.max()) + 1
    if n_clusters < 2:
        raise ValueError("all rows are one group: nothing can be left out")
    if isinstance(first, Linear) and n_clusters == n:
        unbiased = [metric.score is kernel.unbiased_cka_score for metric in metrics]
        return np.array([kernel.jackknife(first, second, unbiased=u).cpu().numpy() for u in unbiased])
    folds = min(n_clusters, FOLDS)
    fold = torch.from_numpy((rng.permutation(n_clusters) % folds)[which]).to(x.device)
    if isinstance(first, Neighbors):  # lists that still have k entries when some are gone
        k, largest = prepared.options["k"], int(fold.bincount().max())
        if n - largest <= k:
            raise ValueError(f"with k={k}, {n} rows are too few to leave any out: take a smaller k, or no interval")
        longer = min(n - 1, k + (largest if n_clusters < n else min(largest, k + 10)))
        lists = [Neighbors.of(values, k=longer) for values in (x, y)]
    scores = []
    for gone in (fold == f for f in range(folds)):
        rests = x[~gone], y[~gone]
        if isinstance(first, Neighbors):
            states = [
                replace(whole.without(gone, k), mean=rest @ rest.mean(0))
                for whole, rest in zip(lists, rests, strict=True)
            ]
            some = replace(prepared, pair=rests, states=states)
        else:
            some = Prepared.of(rests, metrics, prepared.options)
        scores.append(some.scores())
    return np.array(scores).T
