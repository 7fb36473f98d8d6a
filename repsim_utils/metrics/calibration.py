"""What a score is worth: chance levels from permutations, and intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from repsim_utils.metrics import kernel
from repsim_utils.metrics.inputs import as_pair, as_representation
from repsim_utils.metrics.kernel import Linear
from repsim_utils.metrics.neighbors import Neighbors
from repsim_utils.metrics.suite import PAPER, Metric, find, prepared, sharing

FOLDS = 50  # groups of rows that are left out in turn, where leaving out each row would take too long
HALVES = 100  # half-samples of the rows


@dataclass(frozen=True)
class Calibrated:
    """A score against chance (Gröger, Wen, Brbić 2026).

    Attributes
    ----------
    value : float
        The score.
    null_mean : float
        Mean score after the rows of y were shuffled.
    null_quantile : float
        The threshold: the (1 − alpha) quantile of all scores, the observed one among them. Depends on n and alpha.
    p_value : float
        Share of the scores, the observed one among them, that are at least as large as the observed one.
    calibrated : float
        How far the score lies beyond the threshold, 0 (or below it) to 1 (the largest value).
    above_chance : float
        The same from the null mean: 0 at chance level, 1 at the largest value; may be negative.
    """

    value: float
    null_mean: float
    null_quantile: float
    p_value: float
    calibrated: float
    above_chance: float


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


def calibrate(
    x: Any,
    y: Any,
    name: str,
    *,
    n_permutations: int = 200,
    seed: int = 0,
    alpha: float = 0.05,
    groups: Sequence[Any] | None = None,
    preprocess: str | None = None,
    **options: Any,
) -> Calibrated:
    """A score, and what it would be if the rows of x and y had nothing to do with each other.

    The rows of y are shuffled, which redoes only what depends on the matching: one cross product for linear CKA, new
    names in the lists of neighbours.

    Parameters
    ----------
    x, y : (n, d1) and (n, d2) array or Tensor
        Representations of the same n samples, rows matched.
    name : str
        Metric, from `METRICS`.
    n_permutations : int
        How often to shuffle.
    seed : int
        Of the shuffles.
    alpha : float
        Error rate of the threshold.
    groups : (n,) sequence, optional
        Label of each row's cluster, where rows are not independent (several images of one object, windows of one file).
        Clusters are then exchanged whole, with clusters of the same size, their rows in order.
    preprocess : {"platonic", None}
        As in `similarity`; by default the features are left as they are, as by the metrics themselves.
    **options
        Of the metric, such as ``k``.

    Returns
    -------
    Calibrated

    Raises
    ------
    ValueError
        If the input is malformed, the score is undefined, there are too few permutations for `alpha`, or too few
        ways to exchange the groups.
    """
    metric = find(name)
    x, y = as_pair(x, y, least_rows=metric.least_rows, preprocess=preprocess)
    first, second = prepared(name, x, y, options)
    scores = _scores([first], [second], [metric], len(x), n_permutations, seed, alpha, groups)
    return _against(scores[0, 0, 0], metric, options, alpha)


def calibrate_best(
    xs: Sequence[Any],
    ys: Sequence[Any],
    name: str,
    *,
    n_permutations: int = 200,
    seed: int = 0,
    alpha: float = 0.05,
    groups: Sequence[Any] | None = None,
    preprocess: str | None = None,
    **options: Any,
) -> Calibrated:
    """The best score of any layer of one model with any of another, against the best of as many by chance.

    A maximum over many pairs is large even where nothing is shared. Here the rows of all `ys` are shuffled alike, and
    the maximum is taken again.

    Parameters
    ----------
    xs, ys : sequence of (n, d) array or Tensor
        Representations of the same n samples, one for each layer.
    name, n_permutations, seed, alpha, groups, preprocess, **options
        See `calibrate`.

    Returns
    -------
    Calibrated

    Raises
    ------
    ValueError
        As `calibrate`, or if there are no layers.
    """
    if not len(xs) or not len(ys):
        raise ValueError("xs and ys need one representation or more each")
    metric = find(name)
    filled = metric.filled(options)
    checks: Any = {"least_rows": metric.least_rows, "preprocess": preprocess}
    tensors = [[as_representation(which, layer, **checks) for layer in side] for which, side in (("x", xs), ("y", ys))]
    rows = {len(layer) for side in tensors for layer in side}
    if len(rows) > 1:
        raise ValueError(f"all layers must have matching rows, got {', '.join(map(str, sorted(rows)))}")
    first, second = ([metric.prepare(layer, **filled) for layer in side] for side in tensors)
    scores = _scores(first, second, [metric], rows.pop(), n_permutations, seed, alpha, groups)
    return _against(scores[0].max(axis=(0, 1)), metric, options, alpha)


def _scores(
    first: list[Any],
    second: list[Any],
    metrics: Sequence[Metric],
    n: int,
    n_permutations: int,
    seed: int,
    alpha: float,
    groups: Sequence[Any] | None,
) -> NDArray[np.float64]:
    """Scores by metric, first state, second state and shuffle, the first of which is none."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1, got {alpha}")
    if n_permutations < 1 or alpha * (n_permutations + 1) < 1:
        raise ValueError(f"alpha={alpha} needs at least {math.ceil(1 / alpha) - 1} permutations, got {n_permutations}")
    scores = np.empty((len(metrics), len(first), len(second), 1 + n_permutations))
    for p, order in enumerate(_orders(n, n_permutations, seed, alpha, groups)):
        for j, state in enumerate(second):
            moved = state if order is None else state.permuted(order)
            scores[:, :, j, p] = [[metric.score(other, moved) for other in first] for metric in metrics]
    if not np.isfinite(scores).all():
        raise ValueError("the score is not a number, for the given or for shuffled rows: there is nothing to compare")
    return scores


def _orders(
    n: int, n_permutations: int, seed: int, alpha: float, groups: Sequence[Any] | None
) -> Iterator[Tensor | None]:
    """The rows as they are (None), then shuffled orders of them."""
    rng = np.random.default_rng(seed)
    blocks = [np.arange(n)[:, None]] if groups is None else _blocks(groups, n, alpha)
    yield None
    for _ in range(n_permutations):
        order = np.arange(n)
        for rows in blocks:
            order[rows] = rows[rng.permutation(len(rows))]
        yield torch.from_numpy(order)


def _labels(groups: Sequence[Any], n: int) -> NDArray[np.int64]:
    """Number of each row's cluster, from 0."""
    labels = np.asarray(groups)
    if labels.shape != (n,):
        raise ValueError(f"groups must have one label for each of the {n} rows, got shape {labels.shape}")
    return np.unique(labels, return_inverse=True)[1]


def _blocks(groups: Sequence[Any], n: int, alpha: float) -> list[NDArray[np.int64]]:
    """Rows of the clusters, those of equal size as the rows of one matrix."""
    which = _labels(groups, n)
    sizes = np.bincount(which)
    rows = np.split(np.argsort(which, kind="stable"), np.cumsum(sizes)[:-1])
    ways = sum(math.lgamma(count + 1) for count in np.unique(sizes, return_counts=True)[1])
    if ways < math.log(1 / alpha):
        raise ValueError(
            f"the groups can be exchanged in {round(math.exp(ways))} ways only, too few for alpha={alpha}: "
            "there must be more groups of equal size"
        )
    return [np.stack([r for r in rows if len(r) == size]) for size in np.unique(sizes)]


def _against(scores: NDArray[np.float64], metric: Metric, options: Mapping[str, Any], alpha: float) -> Calibrated:
    """The first score against the others."""
    value, null = float(scores[0]), scores[1:]
    largest = metric.filled(options)[metric.largest] if isinstance(metric.largest, str) else metric.largest
    threshold = float(np.sort(scores)[math.ceil((1 - alpha) * len(scores) - 1e-9) - 1])
    mean = float(null.mean())
    return Calibrated(
        value=value,
        null_mean=mean,
        null_quantile=threshold,
        p_value=(1 + int((null >= value).sum())) / len(scores),
        calibrated=max((value - threshold) / (largest - threshold), 0.0) if largest > threshold else 0.0,
        above_chance=(value - mean) / (largest - mean) if largest > mean else 0.0,
    )


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

    Rows are left out, never drawn with replacement: two copies of a row are each other's nearest neighbours and twins
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
    x, y = as_pair(x, y, least_rows=_rows_needed(metric, method), preprocess=preprocess)
    first, second = prepared(name, x, y, options)
    return _intervals(x, y, first, second, [metric], metric.filled(options), method, level, seed, groups)[0]


def _rows_needed(metric: Metric, method: str) -> int:
    return 2 * metric.least_rows if method == "subsample" else max(metric.least_rows + 1, 5)


def _intervals(
    x: Tensor,
    y: Tensor,
    first: Any,
    second: Any,
    metrics: Sequence[Metric],
    options: Mapping[str, Any],
    method: str,
    level: float,
    seed: int,
    groups: Sequence[Any] | None,
) -> list[Interval]:
    """Intervals of metrics that are prepared alike."""
    rng = np.random.default_rng(seed)
    which = np.arange(len(x)) if groups is None else _labels(groups, len(x))
    if method == "subsample":
        scores = _of_halves(x, y, metrics, options, which, rng)
        errors, quantile = scores.std(axis=1, ddof=1), stats.norm.ppf((1 + level) / 2)
    else:
        scores = _left_out(x, y, first, second, metrics, options, which, rng)
        m = scores.shape[1]
        errors, quantile = scores.std(axis=1) * (m - 1) ** 0.5, stats.t.ppf((1 + level) / 2, m - 1)
    if not np.isfinite(errors).all():
        raise ValueError("the score is not a number when some rows are left out: there is no interval")
    values = [metric.score(first, second) for metric in metrics]
    halves = [float(quantile * error) for error in errors]
    return [
        Interval(value, value - half, value + half, float(error), level, method)
        for value, half, error in zip(values, halves, errors, strict=True)
    ]


def _of_halves(
    x: Tensor,
    y: Tensor,
    metrics: Sequence[Metric],
    options: Mapping[str, Any],
    which: NDArray[np.int64],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Scores of random halves of the rows (or clusters), by metric."""
    scores, n = [], int(which.max()) + 1
    for _ in range(HALVES):
        rows = torch.from_numpy(np.flatnonzero(rng.permutation(n)[which] < n // 2)).to(x.device)
        states = [metrics[0].prepare(values[rows], **options) for values in (x, y)]
        scores.append([metric.score(*states) for metric in metrics])
    return np.array(scores).T


def _left_out(
    x: Tensor,
    y: Tensor,
    first: Any,
    second: Any,
    metrics: Sequence[Metric],
    options: Mapping[str, Any],
    which: NDArray[np.int64],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Scores without each row, or without each group of rows (or clusters), by metric."""
    n, n_clusters = len(x), int(which.max()) + 1
    if isinstance(first, Linear) and n_clusters == n:
        unbiased = [metric.score is kernel.unbiased_linear_cka for metric in metrics]
        return np.array([kernel.jackknife(first, second, unbiased=u).cpu().numpy() for u in unbiased])
    folds = min(n_clusters, FOLDS)
    fold = torch.from_numpy((rng.permutation(n_clusters) % folds)[which]).to(x.device)
    if isinstance(first, Neighbors):  # lists that still have k entries when some are gone
        k, largest = options["k"], int(fold.bincount().max())
        if n - largest <= k:
            raise ValueError(f"with k={k}, {n} rows are too few to leave any out: take a smaller k, or no interval")
        longer = min(n - 1, k + (largest if n_clusters < n else min(largest, k + 10)))
        lists = [Neighbors.of(values, k=longer) for values in (x, y)]
    scores = []
    for gone in (fold == f for f in range(folds)):
        rests = [values[~gone] for values in (x, y)]
        if isinstance(first, Neighbors):
            states: list[Any] = [
                replace(whole.without(gone, k), mean=rest @ rest.mean(0))
                for whole, rest in zip(lists, rests, strict=True)
            ]
        else:
            states = [metrics[0].prepare(rest, **options) for rest in rests]
        scores.append([metric.score(*states) for metric in metrics])
    return np.array(scores).T


def report(
    x: Any,
    y: Any,
    names: Sequence[str] = PAPER,
    *,
    k: int = 10,
    preprocess: str | None = "platonic",
    intervals: bool = True,
    calibrated: bool = True,
    n_permutations: int = 200,
    level: float = 0.95,
    seed: int = 0,
    groups: Sequence[Any] | None = None,
) -> list[dict[str, Any]]:
    """Several metrics at once, with intervals over rows and chance levels; what they share is made once.

    Parameters
    ----------
    x, y, names, k, preprocess
        As in `similarity`.
    intervals, calibrated : bool
        Whether to find intervals (jackknife, see `interval`) and chance levels (see `calibrate`).
    n_permutations, seed, groups
        As in `calibrate`, whose alpha is one minus `level`; intervals leave out whole groups, too.
    level : float
        Coverage of the intervals.

    Returns
    -------
    list of dict
        For each metric ``metric, value``; with intervals ``low, high``; calibrated ``null_mean, null_quantile,
        p_value, calibrated, above_chance``.

    Raises
    ------
    ValueError
        As `similarity`, `interval` and `calibrate`.
    """
    wanted = {name: find(name) for name in names}
    needed = [_rows_needed(metric, "jackknife" if intervals else "") for metric in wanted.values()]
    x, y = as_pair(x, y, least_rows=max(needed, default=2), preprocess=preprocess)
    rows: dict[str, dict[str, Any]] = {}
    alpha = round(1 - level, 12)
    for shared in sharing(wanted):
        metrics = [wanted[name] for name in shared]
        options = metrics[0].filled({"k": k} if "k" in metrics[0].options else {})
        first, second = (metrics[0].prepare(values, **options) for values in (x, y))
        for name, metric in zip(shared, metrics, strict=True):
            rows[name] = {"metric": name, "value": metric.score(first, second)}
        if intervals:
            found = _intervals(x, y, first, second, metrics, options, "jackknife", level, seed, groups)
            for name, one in zip(shared, found, strict=True):
                rows[name] |= {"low": one.low, "high": one.high}
        if calibrated:
            scores = _scores([first], [second], metrics, len(x), n_permutations, seed, alpha, groups)[:, 0, 0]
            for name, metric, null in zip(shared, metrics, scores, strict=True):
                rows[name] |= asdict(_against(null, metric, options, alpha))
    return [rows[name] for name in wanted]
