"""What a score is worth: chance levels, from permutations of the rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repsim_utils.metrics.inputs import as_representation, check_labels, cluster_numbers
from repsim_utils.metrics.suite import Metric, find


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
    names in the lists of neighbors.

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
    shuffled: Any = {"n_permutations": n_permutations, "seed": seed, "alpha": alpha, "groups": groups}
    return calibrate_best([x], [y], name, preprocess=preprocess, **shuffled, **options)


@dataclass(frozen=True)
class CalibratedLayers:
    """All layers of one model with all of another, against chance.

    Attributes
    ----------
    values, calibrated : ndarray
        (layers of x, layers of y): each score, and how far it lies beyond its own threshold, as `Calibrated` has it.
    best : Calibrated
        The largest score against the largest of as many by chance.
    """

    values: NDArray[np.float64]
    calibrated: NDArray[np.float64]
    best: Calibrated


def calibrate_layers(
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
) -> CalibratedLayers:
    """Every layer of one model with every layer of another, and what chance gives.

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
    CalibratedLayers

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
    check_labels([*(("x", layer) for layer in xs), *(("y", layer) for layer in ys), ("groups", groups)])
    tensors = [[as_representation(which, layer, **checks) for layer in side] for which, side in (("x", xs), ("y", ys))]
    rows = list(dict.fromkeys(len(layer) for side in tensors for layer in side))
    if len(rows) > 1:
        raise ValueError(
            f"x and y must have matching rows, got {' and '.join(map(str, rows))}: give the same samples to both"
        )
    first, second = ([metric.prepare(layer, **filled) for layer in side] for side in tensors)
    scores = null_scores(first, second, [metric], shuffles(rows[0], n_permutations, seed, alpha, groups))[0]
    each = [[against(null, metric, options, alpha) for null in row] for row in scores]
    return CalibratedLayers(
        values=scores[..., 0],
        calibrated=np.array([[one.calibrated for one in row] for row in each]),
        best=against(scores.max(axis=(0, 1)), metric, options, alpha),
    )


def calibrate_best(xs: Sequence[Any], ys: Sequence[Any], name: str, **options: Any) -> Calibrated:
    """The best score of any layer of one model with any of another, against the best of as many by chance.

    Parameters
    ----------
    xs, ys, name, **options
        See `calibrate_layers`.

    Returns
    -------
    Calibrated

    Raises
    ------
    ValueError
        As `calibrate_layers`.
    """
    return calibrate_layers(xs, ys, name, **options).best


def null_scores(
    first: list[Any], second: list[Any], metrics: Sequence[Metric], orders: Iterable[Tensor | None]
) -> NDArray[np.float64]:
    """Scores by metric, first state, second state and order of the rows of the second."""
    scores = []
    for order in orders:
        scores.append(np.empty((len(metrics), len(first), len(second))))
        for j, state in enumerate(second):
            moved = state if order is None else state.permuted(order)
            scores[-1][:, :, j] = [[metric.score(other, moved) for other in first] for metric in metrics]
    if not np.isfinite(scores).all():
        raise ValueError("the score is not a number, for the given or for shuffled rows: there is nothing to compare")
    return np.stack(scores, axis=-1)


def shuffles(
    n: int, n_permutations: int, seed: int, alpha: float, groups: Sequence[Any] | None
) -> Iterator[Tensor | None]:
    """The rows as they are (None), then shuffled orders of them."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1, got {alpha}")
    if n_permutations < 1 or alpha * (n_permutations + 1) < 1:
        raise ValueError(f"alpha={alpha} needs at least {math.ceil(1 / alpha) - 1} permutations, got {n_permutations}")
    rng = np.random.default_rng(seed)
    blocks = [np.arange(n)[:, None]] if groups is None else _blocks(groups, n, alpha)
    yield None
    for _ in range(n_permutations):
        order = np.arange(n)
        for rows in blocks:
            order[rows] = rows[rng.permutation(len(rows))]
        yield torch.from_numpy(order)


def _blocks(groups: Sequence[Any], n: int, alpha: float) -> list[NDArray[np.int64]]:
    """Rows of the clusters, those of equal size as the rows of one matrix."""
    which = cluster_numbers(groups, n)
    sizes = np.bincount(which)
    rows = np.split(np.argsort(which, kind="stable"), np.cumsum(sizes)[:-1])
    ways = sum(math.lgamma(count + 1) for count in np.unique(sizes, return_counts=True)[1])
    if ways < math.log(1 / alpha):
        raise ValueError(
            f"the groups can be exchanged in {round(math.exp(ways))} ways only, too few for alpha={alpha}: "
            "there must be more groups of equal size"
        )
    return [np.stack([r for r in rows if len(r) == size]) for size in np.unique(sizes)]


def against(scores: NDArray[np.float64], metric: Metric, options: Mapping[str, Any], alpha: float) -> Calibrated:
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
