"""Statistics over trained pairs."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from scipy import stats


def mean_interval(
    table: pd.DataFrame, *, by: Sequence[str] = ("overlap",), y: str = "value", unit: str = "seed", level: float = 0.95
) -> pd.DataFrame:
    """Mean of a measurement with a Student t interval over independent units.

    Rows of one unit are averaged first: several pairs of one seed share models and are not independent.

    Parameters
    ----------
    table : DataFrame
        One row a measurement; rows with a missing value are left out.
    by : sequence of str
        Columns that tell the groups apart.
    y, unit : str
        Columns of the measurement and of the independent unit.
    level : float
        Coverage of the interval, between 0 and 1.

    Returns
    -------
    DataFrame
        Columns `by`, mean, low, high and n (units). With one unit there is no interval: low and high are missing.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    units = table.dropna(subset=[y]).groupby([*by, unit], as_index=False)[y].mean()
    groups = units.groupby(list(by))[y].agg(["mean", "sem", "count"]).reset_index()
    half = groups["sem"] * stats.t.ppf((1 + level) / 2, groups["count"] - 1)
    result = groups.assign(low=groups["mean"] - half, high=groups["mean"] + half)
    return result.rename(columns={"count": "n"})[[*by, "mean", "low", "high", "n"]]
