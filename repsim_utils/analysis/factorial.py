"""Two causes in one design: what each adds at every level of the other, and whether they add up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from repsim_utils.analysis.units import Array, check_columns, check_level, discoveries, over_units

SCALES = ("as measured", "share above chance", "Fisher's z")


def on_scale(table: pd.DataFrame, scale: str) -> pd.DataFrame:
    """A table of similarities with its values on another scale: an interaction on one may be none on another.

    Parameters
    ----------
    table : DataFrame
        Columns value and, for the second scale, null_mean (what chance gives).
    scale : str
        One of `SCALES`: the value itself; (value − chance) / (1 − chance); or its inverse hyperbolic tangent, by which
        a step near 1 counts more than a step near 0.

    Returns
    -------
    DataFrame
        With other values.

    Raises
    ------
    ValueError
        If the scale is unknown, a column is missing, or a value has no place on the scale.
    """
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    check_columns(table, "value", *(["null_mean"] if scale == SCALES[1] else []))
    if scale == SCALES[1]:
        return table.assign(value=(table["value"] - table["null_mean"]) / (1 - table["null_mean"]))
    if scale == SCALES[2]:
        if (table["value"].abs() >= 1).any():
            raise ValueError(f"{scale} is of values between -1 and 1, got {table['value'].abs().max():g}")
        return table.assign(value=np.arctanh(table["value"]))
    return table


def crossed(
    table: pd.DataFrame,
    kinds: str,
    base: Any,
    *,
    x: str = "overlap",
    y: str = "value",
    unit: str = "seed",
    level: float = 0.95,
) -> pd.DataFrame:
    """Effects of two crossed causes, with the unit as the block: one in kinds, one as a slope on x.

    Every unit gives one number for each effect: the least-squares slope of y on x within a kind, the mean over x of a
    kind, or a difference of two of these. Their means get Student t intervals over units.

    Parameters
    ----------
    table : DataFrame
        One row for every unit, kind and x: a complete design, of one measurement.
    kinds, x, y, unit : str
        Columns.
    base : value of `kinds`
        With which the others are compared.
    level : float
        Coverage of the intervals.

    Returns
    -------
    DataFrame
        Columns effect, `kinds`, estimate, low, high, p, p_t, excluded (see `Trend`), n (units), and q and sign of
        `discoveries` over all rows. Effects are ``kind`` (how far a kind lies above the base, mean over x), ``slope``
        (of a kind), ``mean slope`` (over all kinds: the main effect of x) and ``interaction`` (how much steeper the
        slope of a kind is than that of the base).

    Raises
    ------
    ValueError
        If a column is missing, there is no kind to compare, or a combination is missing or there more than once.
    """
    check_level(level)
    check_columns(table, kinds, x, y, unit)
    names = [name for name in dict.fromkeys(table[kinds]) if name != base]
    if base not in set(table[kinds]) or not names:
        raise ValueError(f"{kinds} has {', '.join(map(str, dict.fromkeys(table[kinds])))}: nothing against {base!r}")
    values = _complete(table, [unit, kinds, x], y)
    grid = {kind: values.xs(kind, level=kinds).unstack(x) for kind in [base, *names]}
    steps = np.asarray(grid[base].columns, float)
    if len(steps) < 2:
        raise ValueError(f"{x} must take at least two values, got {steps.tolist()}")
    away = steps - steps.mean()
    slopes: dict[Any, Array] = {kind: rows.to_numpy(float) @ away / (away @ away) for kind, rows in grid.items()}
    means: dict[Any, Array] = {kind: rows.to_numpy(float).mean(1) for kind, rows in grid.items()}
    found: list[tuple[str, Any, Array]] = [("kind", kind, means[kind] - means[base]) for kind in names]
    found += [("mean slope", None, np.mean(list(slopes.values()), axis=0))]
    found += [("slope", kind, slopes[kind]) for kind in grid]
    found += [("interaction", kind, slopes[kind] - slopes[base]) for kind in names]
    rows = [
        {"effect": effect, kinds: kind, "estimate": float(own.mean())} | over_units(own, level) | {"n": len(own)}
        for effect, kind, own in found
    ]
    return discoveries(pd.DataFrame(rows))


def _complete(table: pd.DataFrame, columns: list[str], y: str) -> pd.Series:
    """Measurements by all of some columns; every combination is there, once."""
    rows = table.dropna(subset=[y]).set_index(columns)[y]
    every = pd.MultiIndex.from_product([dict.fromkeys(table[name]) for name in columns], names=columns)
    if rows.index.has_duplicates:
        raise ValueError(
            f"{columns} has {rows.index[rows.index.duplicated()][0]} more than once: filter the table first"
        )
    if missing := [one for one in every if one not in rows.index]:
        raise ValueError(f"{columns} lacks {missing[0]} and {len(missing) - 1} more: give complete units alone")
    return rows.reindex(every)
