"""Several metrics at once, each with its interval and its chance level."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from typing import Any, NamedTuple

from torch import Tensor

from repsim_utils.metrics.calibration import Calibrated, against, null_scores, shuffles
from repsim_utils.metrics.inputs import as_pair, check_labels, cluster_numbers
from repsim_utils.metrics.intervals import intervals_of, rows_needed
from repsim_utils.metrics.suite import PAPER, Metric, Prepared, find, sharing


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
    strict: bool = False,
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
    strict : bool
        Whether it is an error if any one number cannot be computed.

    Returns
    -------
    list of dict
        For each metric ``metric, value``; with intervals ``low, high``; calibrated ``null_mean, null_quantile,
        p_value, calibrated, above_chance``. Where a metric, its interval or its chance level cannot be computed, these
        numbers are NaN, and ``reason`` says why.

    Raises
    ------
    ValueError
        As `similarity`, `interval` and `calibrate`, if it is `strict`; else if the input is malformed, or no metric can
        be computed.
    """
    wanted = {name: find(name) for name in ([names] if isinstance(names, str) else names)}
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    check_labels([("x", x), ("y", y), ("groups", groups)])
    least_rows = max((rows_needed(metric) for metric in wanted.values()), default=2) if strict else 2
    pair = as_pair(x, y, least_rows=least_rows, preprocess=preprocess)
    if groups is not None:
        cluster_numbers(groups, len(pair[0]))
    steps: list[Step] = [_intervals(level, seed, groups)] if intervals else []
    if calibrated:
        orders: Any = {"n_permutations": n_permutations, "seed": seed, "alpha": round(1 - level, 12), "groups": groups}
        next(shuffles(len(pair[0]), **orders))  # which refuses what suits no metric
        steps.append(_chance(orders))
    rows: dict[str, dict[str, Any]] = {}
    for shared, metrics, options in sharing(wanted, k):
        try:
            rows |= zip(shared, _together(pair, metrics, options, steps), strict=True)
        except ValueError:
            if strict:
                raise
            rows |= {name: _apart(pair, one, options, steps) for name, one in zip(shared, metrics, strict=True)}
    if rows and all(math.isnan(row["value"]) for row in rows.values()):
        reasons = list(dict.fromkeys(row["reason"] for row in rows.values()))
        raise ValueError("; ".join(reasons))
    return [{"metric": name} | rows[name] for name in wanted]


class Step(NamedTuple):
    """What is found of metrics that are prepared alike, beside their values: its name, its columns, and how."""

    what: str
    columns: Sequence[str]
    find: Callable[[Prepared], list[dict[str, float]]]


def _intervals(level: float, seed: int, groups: Sequence[Any] | None) -> Step:
    def find(prepared: Prepared) -> list[dict[str, float]]:
        n, needed = len(prepared.pair[0]), max(rows_needed(metric) for metric in prepared.metrics)
        if n < needed:
            raise ValueError(f"it needs at least {needed} rows, got {n}")
        found = intervals_of(prepared, "jackknife", level, seed, groups)
        return [{"low": one.low, "high": one.high} for one in found]

    return Step("interval", ("low", "high"), find)


def _chance(orders: dict[str, Any]) -> Step:
    def find(prepared: Prepared) -> list[dict[str, float]]:
        first, second = ([state] for state in prepared.states)
        scores = null_scores(first, second, prepared.metrics, shuffles(len(prepared.pair[0]), **orders))
        pairs = zip(prepared.metrics, scores[:, 0, 0], strict=True)
        return [asdict(against(null, metric, prepared.options, orders["alpha"])) for metric, null in pairs]

    return Step("chance level", [field.name for field in fields(Calibrated) if field.name != "value"], find)


def _scored(
    pair: tuple[Tensor, Tensor], metrics: list[Metric], options: dict[str, Any]
) -> tuple[Prepared, list[dict[str, Any]]]:
    """Metrics that are prepared alike, and their values, all of which are numbers."""
    if len(pair[0]) < (needed := max(metric.least_rows for metric in metrics)):
        raise ValueError(f"x and y need at least {needed} rows for this metric, got {len(pair[0])}")
    prepared = Prepared.of(pair, metrics, options)
    values = prepared.scores()
    if not all(map(math.isfinite, values)):
        raise ValueError("the score is not a number")
    return prepared, [{"value": value} for value in values]


def _together(
    pair: tuple[Tensor, Tensor], metrics: list[Metric], options: dict[str, Any], steps: list[Step]
) -> list[dict[str, Any]]:
    """The row of each of several metrics, or an error if one number of them cannot be computed."""
    prepared, rows = _scored(pair, metrics, options)
    for step in steps:
        rows = [row | found for row, found in zip(rows, step.find(prepared), strict=True)]
    return rows


def _apart(pair: tuple[Tensor, Tensor], metric: Metric, options: dict[str, Any], steps: list[Step]) -> dict[str, Any]:
    """The row of one metric: what can be computed, and the reason why the rest cannot."""
    try:
        prepared, (row,) = _scored(pair, [metric], options)
    except ValueError as error:
        return dict.fromkeys(["value", *(column for step in steps for column in step.columns)], math.nan) | {
            "reason": str(error)
        }
    reasons = []
    for step in steps:
        try:
            row |= step.find(prepared)[0]
        except ValueError as error:
            row |= dict.fromkeys(step.columns, math.nan)
            reasons.append(f"no {step.what}: {str(error).removesuffix(': there is no interval')}")
    return row | ({"reason": "; ".join(reasons)} if reasons else {})
