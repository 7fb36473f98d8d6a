"""How large an effect of overlap is, on scales on which experiments can stand beside each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from repsim_utils.analysis.units import (
    check_columns,
    check_level,
    discoveries,
    group_names,
    jackknife,
    over_units,
    slopes,
)


def effects(
    table: pd.DataFrame,
    *,
    by: Sequence[str] = ("architecture", "probe", "metric"),
    x: str = "overlap",
    y: str = "value",
    unit: str = "seed",
    chance: str | float = "null_mean",
    level: float = 0.95,
) -> pd.DataFrame:
    """The effect of overlap in every group: as measured, as a share of what there is, and in deviations between seeds.

    Parameters
    ----------
    table : DataFrame
        One row a measurement, recorded by this package or of your own.
    by : sequence of str
        Columns that tell the groups apart.
    x, y, unit : str
        Columns.
    chance : str or float
        What unrelated representations would have: a column, or one number.
    level : float
        Coverage of the intervals.

    Returns
    -------
    DataFrame
        Columns `by`, and

        change, low, high, p, p_t, excluded, q, sign
            From the least to the most of x, along the line of each unit (see `trend`), and the tests over all rows.
        least, most, start, end
            The ends of x, and the mean there. At the most of x models are as alike as they get: the ceiling.
        chance
        share, share_low, share_high
            The change as a share of what lies between chance and the ceiling; the interval is a jackknife over units.
        spread
            Standard deviation between units at one x, pooled over x.
        deviations
            The change as a multiple of it.
        n
            Units.

    Raises
    ------
    ValueError
        If a column is missing, or in no group a unit has two values of x.
    """
    check_level(level)
    by = group_names(by)
    check_columns(table, *by, x, y, unit, *([chance] if isinstance(chance, str) else []))
    rows = table.dropna(subset=[x, y]).astype({x: float, y: float})
    rows = rows.assign(_chance=rows[chance] if isinstance(chance, str) else float(chance))
    found = []
    for group, some in rows.groupby(by, sort=False):
        if (some.groupby(unit)[x].nunique() > 1).any():
            found.append(dict(zip(by, group, strict=True)) | _effect(some, x, y, unit, level))
    if not found:
        raise ValueError(f"{x} must take at least two values in one {unit}")
    family = pd.DataFrame(found)
    return discoveries(family.assign(deviations=family["change"] / family["spread"]))


def _effect(rows: pd.DataFrame, x: str, y: str, unit: str, level: float) -> dict[str, float]:
    """Of one group; the ends of a unit are its own least and most of x."""
    own = slopes(rows, x=x, y=y, unit=unit).set_index(unit)["slope"]
    rows = rows[rows[unit].isin(own.index)]
    grid = rows.groupby([unit, x])[y].mean().unstack(x).reindex(own.index)  # pairs of one unit and x are averaged
    change = own.to_numpy(float) * float(np.ptp(grid.columns))
    start, end = (np.array([line.dropna().iloc[place] for _, line in grid.iterrows()]) for place in (0, -1))
    chance = rows.groupby(unit)["_chance"].mean().reindex(own.index).to_numpy(float)
    freedom = (grid.count() - 1).clip(lower=0)
    spread = float(np.sqrt((grid.var() * freedom).sum() / freedom.sum())) if freedom.any() else np.nan
    parts = np.column_stack([change, end - chance])
    share = jackknife(lambda sums: sums[..., 0] / sums[..., 1], parts, level)
    found = {"change": float(change.mean())} | over_units(change, level)
    found |= {"least": float(grid.columns.min()), "most": float(grid.columns.max())}
    found |= {"start": start.mean(), "end": end.mean(), "chance": chance.mean(), "n": len(own), "spread": spread}
    return found | dict(zip(("share", "share_low", "share_high"), map(float, share[:3]), strict=True))
