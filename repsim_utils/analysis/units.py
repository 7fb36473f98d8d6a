"""Means, slopes and differences over units: each unit gives one number, and Student's t says how sure their mean is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]


def realised(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the overlap that came out in place of the one that was asked for: the mean over its pairs.

    They differ where classes or images are few, such as three fifths of two classes, and where a training is too short
    to meet all that it was given. Tables without a column ``realised_overlap`` are returned as they are.
    """
    if "realised_overlap" not in table:
        return table
    by = [name for name in ("dataset", "architecture", "overlap") if name in table]
    found = table.groupby(by)["realised_overlap"].transform("mean")
    return table.assign(overlap=found.round(3))


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
    check_level(level)
    by = group_names(by)
    check_columns(table, *by, y, unit)
    if not by:
        raise ValueError("by must name a column at least; to have all rows as one group, add a column that is the same")
    units = table.dropna(subset=[y]).groupby([*by, unit], as_index=False)[y].mean()
    groups = units.groupby(list(by))[y].agg(["mean", "sem", "count"]).reset_index()
    half = groups["sem"] * stats.t.ppf((1 + level) / 2, groups["count"] - 1)
    result = groups.assign(low=groups["mean"] - half, high=groups["mean"] + half)
    return result.rename(columns={"count": "n"})[[*by, "mean", "low", "high", "n"]]


def names(columns: str | Sequence[str]) -> list[str]:
    """Names of columns as a list, also where one is given alone."""
    return [columns] if isinstance(columns, str) else list(columns)


def group_names(by: str | Sequence[str]) -> list[str]:
    """Names of the columns that tell groups apart; those of results are refused, which would be there twice."""
    by = names(by)
    if taken := sorted({"estimate", "mean", "low", "high", "n"} & set(by)):
        raise ValueError(f"by names {', '.join(taken)}, as columns of the result are called: rename it in the table")
    return by


def check_level(level: float) -> None:
    """Refuse a level that is not between 0 and 1."""
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")


def check_columns(table: pd.DataFrame, *columns: str) -> None:
    """Refuse columns that a table does not have."""
    if missing := sorted(set(columns) - set(table)):
        raise ValueError(f"table has no column {', '.join(missing)}; it has {', '.join(map(str, table))}")


def sign_flip(values: Sequence[float] | Array) -> float:
    """Two-sided p-value of a mean of 0, by turning the signs of the units' values over.

    If the effect were 0 and the units' values symmetric about it, each could as well have had the other sign: p is the
    share of all patterns of signs whose mean is as far from 0 as the one that was seen. It is exact (every pattern
    counts) up to 40 units. With n units it cannot be below 2 / 2^n: 0.125 for four, 0.031 for six.

    Parameters
    ----------
    values : array-like
        One number a unit.

    Returns
    -------
    float
        Missing (NaN) with fewer than two units.

    Raises
    ------
    ValueError
        If `values` is not one finite number a unit.
    """
    values = np.asarray(values, float)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError(f"values must be one finite number a unit, got shape {values.shape}: {values.tolist()}")
    if len(values) < 2:
        return float("nan")
    if len(values) > 40:
        drawn = {"permutation_type": "samples", "n_resamples": 99_999, "rng": np.random.default_rng(0)}
        return float(stats.permutation_test((values,), np.mean, vectorized=True, **drawn).pvalue)
    least = abs(values.sum()) - 1e-9 * np.abs(values).sum()
    if least <= 0:
        return 1.0
    first, second = (_signed_sums(part) for part in np.array_split(values, 2))
    as_far = (len(second) - np.searchsorted(np.sort(second), least - first)).sum()
    return float(2 * as_far / 2 ** len(values))  # as many lie as far below 0


def _signed_sums(values: Array) -> Array:
    """The sums of some values with every pattern of signs, (2^n,)."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def over_units(values: Array, level: float) -> dict[str, float]:
    """Of the mean of units: t interval, sign-flip and t-test p-values, and the size of a mean that can be excluded."""
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return dict.fromkeys(("low", "high", "p", "p_t", "excluded"), np.nan)
    error = float(stats.sem(values))
    p_t = 2 * float(stats.t.sf(abs(mean) / error, n - 1)) if error > 0 else 1.0 if mean == 0 else 0.0
    half = error * float(stats.t.ppf((1 + level) / 2, n - 1))
    excluded = abs(mean) + error * float(stats.t.ppf(level, n - 1))
    return {"low": mean - half, "high": mean + half, "p": sign_flip(values), "p_t": p_t, "excluded": excluded}


def jackknife(statistic: Callable[[Array], Array], sums: Array, level: float) -> tuple[Array, ...]:
    """A statistic of sums over units, with a t interval and p-value from leaving out one unit at a time.

    For a mean of units this is Student's t interval itself.
    """
    check_level(level)
    n, estimate = len(sums), statistic(sums.sum(0))
    if n < 2:
        return estimate, *(np.full_like(estimate, np.nan) for _ in range(3))
    without = statistic(sums.sum(0) - sums)
    error = np.sqrt((n - 1) / n * np.square(without - without.mean(0)).sum(0))
    half = error * stats.t.ppf((1 + level) / 2, n - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stats.t.sf(np.abs(estimate / error), n - 1)
    return estimate, estimate - half, estimate + half, p


@dataclass(frozen=True)
class Trend:
    """A straight line through measurements, and how sure its slope is.

    Attributes
    ----------
    slope : float
        Change of y for a change of 1 in x: the mean of the units' own slopes.
    low, high : float
        Student t interval of the slope over units; missing (NaN) with fewer than two units.
    p : float
        Sign-flip p-value over units, exact up to 40 of them; see `sign_flip`.
    p_t : float
        Two-sided p-value of the t test, which goes with the interval; families of tests use it, see `discoveries`.
    excluded : float
        Equivalence bound: two one-sided t tests at ``1 - level`` rule out a slope as far from 0 as this, or farther
        (Schuirmann 1987). What a null result is worth.
    intercept : float
    r_squared : float
        Squared correlation of x and y over all rows, as the paper reports it; missing where y does not vary.
    mutual_information : float
        Between x and y, in nats, as the paper estimates it; missing with fewer than five rows.
    n_units, n : int
        Units with a slope of their own, and their rows; other rows do not count.
    """

    slope: float
    low: float
    high: float
    p: float
    p_t: float
    excluded: float
    intercept: float
    r_squared: float
    mutual_information: float
    n_units: int
    n: int


def slopes(
    table: pd.DataFrame, *, by: Sequence[str] = (), x: str = "overlap", y: str = "value", unit: str = "seed"
) -> pd.DataFrame:
    """Least-squares slope of y on x of every unit by itself: columns `by`, `unit` and slope.

    Units in which x takes a single value have no slope and are left out.
    """
    groups = [*names(by), unit]
    check_columns(table, *groups, x, y)
    rows = table.dropna(subset=[x, y])
    rows = demeaned(rows.astype({x: float, y: float}), [x, y], by=groups)
    sums = rows.assign(xx=rows[x] ** 2, xy=rows[x] * rows[y]).groupby(groups, sort=False)[["xx", "xy"]].sum()
    apart = table.dropna(subset=[x, y]).groupby(groups, sort=False)[x].nunique() > 1
    sums = sums[apart.reindex(sums.index)]
    return (sums.xy / sums.xx).rename("slope").reset_index()


def trend(
    table: pd.DataFrame, *, x: str = "overlap", y: str = "value", unit: str = "seed", level: float = 0.95
) -> Trend:
    """The line of y on x in each unit, their mean slope, and its interval over units.

    A unit is what is independent: a seed, with its images, classes and first model. In simulations (tests), intervals
    of 95% covered the true slope this often, by the distribution of the units' own slopes:

    ======================  ====  ====  ====  ====  ====
    units                      3     4     6     8    12
    normal                  0.95  0.95  0.95  0.95  0.95
    exponential             0.88  0.88  0.89  0.90  0.90
    normal, bootstrap       0.75  0.88  0.93  0.94  0.95
    exponential, bootstrap  0.70  0.82  0.88  0.90  0.91
    ======================  ====  ====  ====  ====  ====

    The last two rows are of a bootstrap of whole units, expanded for few (Hesterberg 2015), which is not used.

    Mutual information is that of `sklearn.feature_selection.mutual_info_regression` with ``random_state=42``, as in the
    paper. True mutual information is at most ln(number of levels of x); the estimate can exceed that where rows share
    an x, grows with the number of levels, and depends on the number of rows. Compare it for equal designs only.

    Parameters
    ----------
    table : DataFrame
        One row a measurement, of one metric, probe and network: others are to be filtered out first. Rows with a
        missing x or y are left out.
    x, y, unit : str
        Columns.
    level : float
        Coverage of the interval, between 0 and 1.

    Returns
    -------
    Trend

    Raises
    ------
    ValueError
        If a column is missing, no unit has two values of x, or `level` is not between 0 and 1.
    """
    from sklearn.feature_selection import mutual_info_regression

    check_level(level)
    check_columns(table, x, y, unit)
    units = slopes(table, x=x, y=y, unit=unit)
    rows = table.dropna(subset=[x, y])
    if not len(units):
        raise ValueError(f"{x} must take at least two values in one {unit}, got {sorted(rows[x].unique())}")
    rows, own = rows[rows[unit].isin(units[unit])], units["slope"].to_numpy(float)
    a, b, slope = rows[x].to_numpy(float), rows[y].to_numpy(float), float(own.mean())
    r_squared = float(np.corrcoef(a, b)[0, 1] ** 2) if np.ptp(b) > 0 else float("nan")
    mutual_information = float("nan")
    if len(a) >= 5:  # it looks at three neighbors
        mutual_information = float(mutual_info_regression(a[:, None], b, random_state=42)[0])
    return Trend(
        slope=slope,
        **over_units(own, level),
        intercept=float(b.mean() - slope * a.mean()),
        r_squared=r_squared,
        mutual_information=mutual_information,
        n_units=len(own),
        n=len(rows),
    )


def trends(table: pd.DataFrame, *, by: Sequence[str], **options: Any) -> pd.DataFrame:
    """`trend` of every group, as one family of tests: columns `by`, those of `Trend`, and q and sign of `discoveries`.

    Groups in which no unit has two values of x are left out, and so are rows in which a column of `by` is missing (the
    last layer, in the recorded tables): fill those first.

    Parameters
    ----------
    table : DataFrame
    by : sequence of str
        Columns that tell the groups apart.
    **options
        Of `trend`.
    """
    x, y, unit = (options.get(name, other) for name, other in (("x", "overlap"), ("y", "value"), ("unit", "seed")))
    by = group_names(by)
    check_columns(table, *by, x, y, unit)
    found = []
    for group, rows in table.dropna(subset=[x, y]).groupby(by, sort=False):
        if (rows.groupby(unit)[x].nunique() > 1).any():
            found.append(dict(zip(by, group, strict=True)) | asdict(trend(rows, **options)))
    columns = [*by, *Trend.__dataclass_fields__]
    return discoveries(pd.DataFrame(found, columns=columns))


def discoveries(family: pd.DataFrame) -> pd.DataFrame:
    """A family of tests with columns q and sign, which say what may be counted.

    `q` is the false-discovery rate at which a test would be a discovery (Benjamini and Hochberg 1995, by
    `scipy.stats.false_discovery_control`): of tests with ``q <= 0.05``, on average at most one in twenty is false (for
    tests that are independent or go along with each other; approximately so for the families here). `sign` is 1
    or -1 where q is at most 0.05 *and* the interval leaves out 0 on that side, and 0 elsewhere. A row without a p-value
    does not count. The p-values are those of t tests: exact ones of six seeds come in steps of 0.031, and a family of
    many tests could not have a discovery, however large its effects.

    Parameters
    ----------
    family : DataFrame
        One row a test: columns p_t, low and high.
    """
    check_columns(family, "p_t", "low", "high")
    known = family["p_t"].astype(float).notna()
    q = pd.Series(np.nan, index=family.index)
    if known.any():
        q[known] = stats.false_discovery_control(family.loc[known, "p_t"].astype(float))
    found = q <= 0.05
    sign = (found & (family["low"] > 0)).astype(int) - (found & (family["high"] < 0)).astype(int)
    return family.assign(q=q, sign=sign)


def paired(
    table: pd.DataFrame,
    column: str,
    more: Any,
    less: Any,
    *,
    by: Sequence[str] = (),
    y: str = "value",
    unit: str = "seed",
    level: float = 0.95,
) -> pd.DataFrame:
    """How far one condition lies above another in the same units, as one family of tests.

    Two curves of the same seeds share images and models; whether their intervals overlap says little. What counts is
    the difference within each unit.

    Parameters
    ----------
    table : DataFrame
        One row a measurement; rows of one unit and condition are averaged first.
    column : str
        Tells the conditions apart; `more` and `less` are two of its values.
    by : sequence of str
        Columns that tell the groups apart; without any, the result has one row.
    y, unit : str
    level : float

    Returns
    -------
    DataFrame
        Columns `by`, estimate, low, high, p, p_t, excluded (see `Trend`), n (units that have both), and q and sign.

    Raises
    ------
    ValueError
        If a column or one of the two conditions is missing, or no unit has both.
    """
    check_level(level)
    by = group_names(by)
    check_columns(table, *by, unit, column, y)
    units = table.dropna(subset=[y]).groupby([*by, unit, column])[y].mean().unstack(column)
    if missing := [value for value in (more, less) if value not in units]:
        raise ValueError(f"{column} has no value {missing[0]!r}; it has {', '.join(map(repr, units.columns.tolist()))}")
    gaps = (units[more] - units[less]).dropna().rename("gap").reset_index()
    if gaps.empty:
        raise ValueError(f"no {unit} has both {more!r} and {less!r} in {column}")
    found = []
    for group, rows in gaps.groupby(by, sort=False) if by else [((), gaps)]:
        own = rows["gap"].to_numpy(float)
        about = {"estimate": float(own.mean())} | over_units(own, level) | {"n": len(own)}
        found.append(dict(zip(by, group, strict=True)) | about)
    return discoveries(pd.DataFrame(found, columns=[*by, "estimate", "low", "high", "p", "p_t", "excluded", "n"]))


def demeaned(table: pd.DataFrame, columns: Sequence[str], *, by: Sequence[str]) -> pd.DataFrame:
    """The table with the mean of each group taken out of some columns: what is left varies within groups alone."""
    check_columns(table, *columns, *names(by))
    groups = table.groupby(names(by))
    return table.assign(**{name: table[name] - groups[name].transform("mean") for name in columns})
