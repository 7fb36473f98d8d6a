"""Several metrics at once, each with its interval and its chance level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from repsim_utils.metrics.calibration import against, null_scores
from repsim_utils.metrics.inputs import as_pair
from repsim_utils.metrics.intervals import intervals_of, rows_needed
from repsim_utils.metrics.suite import PAPER, find, sharing


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
    needed = [rows_needed(metric, "jackknife" if intervals else "") for metric in wanted.values()]
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
            found = intervals_of(x, y, first, second, metrics, options, "jackknife", level, seed, groups)
            for name, one in zip(shared, found, strict=True):
                rows[name] |= {"low": one.low, "high": one.high}
        if calibrated:
            scores = null_scores([first], [second], metrics, len(x), n_permutations, seed, alpha, groups)[:, 0, 0]
            for name, metric, null in zip(shared, metrics, scores, strict=True):
                rows[name] |= asdict(against(null, metric, options, alpha))
    return [rows[name] for name in wanted]
