"""What a score is worth: chance levels from permutations, and intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from repsim_utils.metrics import kernel
from repsim_utils.metrics.inputs import as_pair
from repsim_utils.metrics.kernel import Linear
from repsim_utils.metrics.neighbors import Neighbors
from repsim_utils.metrics.suite import Metric, find, prepared

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
    scores = _scores([first], [second], metric.score, len(x), n_permutations, seed, alpha, groups)
    return _against(scores[0, 0], metric, options, alpha)


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
    checked = [as_pair(xs[0], y, least_rows=metric.least_rows, preprocess=preprocess)[1] for y in ys]
    first = [as_pair(x, ys[0], least_rows=metric.least_rows, preprocess=preprocess)[0] for x in xs]
    filled = metric.filled(options)
    states = [[metric.prepare(values, **filled) for values in side] for side in (first, checked)]
    scores = _scores(states[0], states[1], metric.score, len(first[0]), n_permutations, seed, alpha, groups)
    return _against(scores.max(axis=(0, 1)), metric, options, alpha)


def _scores(
    first: list[Any],
    second: list[Any],
    score: Callable[[Any, Any], float],
    n: int,
    n_permutations: int,
    seed: int,
    alpha: float,
    groups: Sequence[Any] | None,
) -> NDArray[np.float64]:
    """Scores of every pair of states, as observed and after each shuffle: (len(first), len(second), 1 + K)."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1, got {alpha}")
    if n_permutations < 1 or alpha * (n_permutations + 1) < 1:
        raise ValueError(f"alpha={alpha} needs at least {math.ceil(1 / alpha) - 1} permutations, got {n_permutations}")
    scores = np.empty((len(first), len(second), 1 + n_permutations))
    for p, order in enumerate(_orders(n, n_permutations, seed, alpha, groups)):
        for j, state in enumerate(second):
            moved = state if order is None else state.permuted(order)
            scores[:, j, p] = [score(other, moved) for other in first]
    if not np.isfinite(scores).all():
        raise ValueError("the score is not a number, for the given or for shuffled rows: there is nothing to compare")
    return scores


def _orders(
    n: int, n_permutations: int, seed: int, alpha: float, groups: Sequence[Any] | None
) -> Iterator[Tensor | None]:
    """The rows as they are (None), then shuffled orders of them."""
    rng = np.random.default_rng(seed)
    blocks = [np.arange(n)[:, None]] if groups is None else _blocks(np.asarray(groups), n, alpha)
    yield None
    for _ in range(n_permutations):
        order = np.arange(n)
        for rows in blocks:
            order[rows] = rows[rng.permutation(len(rows))]
        yield torch.from_numpy(order)


def _blocks(groups: NDArray[Any], n: int, alpha: float) -> list[NDArray[np.int64]]:
    """Rows of the clusters, those of equal size as the rows of one matrix."""
    if groups.shape != (n,):
        raise ValueError(f"groups must have one label for each of the {n} rows, got shape {groups.shape}")
    _, which, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    rows = np.split(np.argsort(which, kind="stable"), np.cumsum(sizes)[:-1])
    ways = sum(math.lgamma(count + 1) for count in np.unique(sizes, return_counts=True)[1])
    if ways < math.log(1 / alpha):
        raise ValueError(
            f"the groups can be exchanged in {round(math.exp(ways))} ways only, too few for alpha={alpha}: "
            "there must be more groups of equal size"
        )
    return [np.stack([r for r in rows if len(r) == size]) for size in np.unique(sizes)]


def _against(scores: NDArray[np.float64], metric: Metric, options: dict[str, Any], alpha: float) -> Calibrated:
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
    least = 2 * metric.least_rows if method == "subsample" else metric.least_rows + 1
    x, y = as_pair(x, y, least_rows=least, preprocess=preprocess)
    first, second = prepared(name, x, y, options)
    value = metric.score(first, second)
    rng = np.random.default_rng(seed)
    if method == "subsample":
        halves = (torch.from_numpy(rng.permutation(len(x))[: len(x) // 2]).sort().values for _ in range(HALVES))
        values = [metric.score(*prepared(name, x[rows], y[rows], options)) for rows in halves]
        error, quantile = float(np.std(values, ddof=1)), stats.norm.ppf((1 + level) / 2)
    else:
        left = _left_out(x, y, metric, first, second, metric.filled(options), rng)
        m = len(left)
        error = float(((m - 1) / m * (left - left.mean()).square().sum()).sqrt())
        quantile = stats.t.ppf((1 + level) / 2, m - 1)
    if not math.isfinite(error):
        raise ValueError("the score is not a number when some rows are left out: there is no interval")
    half = float(quantile) * error
    return Interval(value, value - half, value + half, error, level, method)


def _left_out(
    x: Tensor, y: Tensor, metric: Metric, first: Any, second: Any, options: dict[str, Any], rng: np.random.Generator
) -> Tensor:
    """Scores without each row, or without each group of rows."""
    if isinstance(first, Linear):
        return kernel.jackknife(first, second, unbiased=metric.score is kernel.unbiased_linear_cka)
    n, folds = len(x), min(len(x), FOLDS)
    fold = torch.from_numpy(rng.permutation(n) % folds)
    gone = [fold.to(x.device) == f for f in range(folds)]
    if not isinstance(first, Neighbors):
        return torch.tensor([metric.score(*(metric.prepare(v[~out], **options) for v in (x, y))) for out in gone])
    k, largest = options["k"], math.ceil(n / folds)
    longer = {"k": min(n - 1, k + min(largest, k + 10))}
    lists = [metric.prepare(values, **longer) for values in (x, y)]
    values = []
    for out in gone:
        states = [state.without(out, k) for state in lists]
        rests = [values[~out] for values in (x, y)]
        states = [replace(state, mean=rest @ rest.mean(0)) for state, rest in zip(states, rests, strict=True)]
        values.append(metric.score(*states))
    return torch.tensor(values, dtype=torch.float64)
