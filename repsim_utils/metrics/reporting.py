"""Several metrics at once, each with its interval and its chance level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from repsim_utils.metrics.calibration import against, null_scores, shuffles
from repsim_utils.metrics.inputs import as_pair
from repsim_utils.metrics.intervals import intervals_of, rows_needed
from repsim_utils.metrics.suite import PAPER, Prepared, find, sharing


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
    least_rows = max((rows_needed(metric) for metric in wanted.values()), default=2)
    pair = as_pair(x, y, least_rows=least_rows, preprocess=preprocess)
    rows: dict[str, dict[str, Any]] = {}
    alpha = round(1 - level, 12)
    for shared, metrics, options in sharing(wanted, k):
        prepared = Prepared.of(pair, metrics, options)
        for name, value in zip(shared, prepared.scores(), strict=True):
            rows[name] = {"metric": name, "value": value}
        if intervals:
            found = intervals_of(prepared, "jackknife", level, seed, groups)
            for name, one in zip(shared, found, strict=True):
                rows[name] |= {"low": one.low, "high": one.high}
        if calibrated:
            first, second = ([state] for state in prepared.states)
            scores = null_scores(first, second, metrics, shuffles(len(pair[0]), n_permutations, seed, alpha, groups))
            for name, metric, null in zip(shared, metrics, scores[:, 0, 0], strict=True):
                rows[name] |= asdict(against(null, metric, options, alpha))
    return [rows[name] for name in wanted]
