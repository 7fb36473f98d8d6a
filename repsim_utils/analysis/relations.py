"""What relates two measurements of the same pairs, with the mean of each unit taken out of both first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from repsim_utils.analysis.units import Array, check_columns, demeaned, jackknife, names


def _blocked(table: pd.DataFrame, columns: Sequence[str], unit: str) -> tuple[Array, Array]:
    """Sums of products of the columns within each unit, whose means are taken out first: (units, q, q).

    Columns are divided by their size, which is given as well, (q,).

    The last column is what the others are to explain. A unit in which none of these varies is left out.
    """
    check_columns(table, *columns, unit)
    if twice := sorted({name for name in columns if list(columns).count(name) > 1}):
        raise ValueError(f"columns must be different ones, and {', '.join(twice)} has two places")
    rows = demeaned(table.dropna(subset=list(columns)).astype(dict.fromkeys(columns, float)), columns, by=[unit])
    which = rows[unit].astype("category").cat.codes.to_numpy()
    values = rows[list(columns)].to_numpy(float)
    sums = np.zeros((which.max(initial=-1) + 1, len(columns), len(columns)))
    np.add.at(sums, which, values[:, :, None] * values[:, None, :])
    spread = np.diagonal(sums, axis1=1, axis2=2)
    whole = spread.sum(0)
    if still := [name for name, size in zip(columns, whole, strict=True) if not size > 0]:
        raise ValueError(f"{', '.join(still)} does not vary within any {unit}")
    scale = np.sqrt(whole)
    sums = sums[(spread[:, :-1] > 1e-12 * whole[:-1]).any(1)] / scale / scale[:, None]
    if np.linalg.eigvalsh(sums.sum(0)[:-1, :-1])[0] < 1e-9:
        raise ValueError(f"one of {', '.join(columns[:-1])} follows from the others within each {unit}")
    return sums, scale


def correlation(
    table: pd.DataFrame, x: str, y: str, *, given: Sequence[str] = (), unit: str = "seed", level: float = 0.95
) -> dict[str, float]:
    """Correlation of x and y within units, with an interval over units.

    Units differ in their images and in how well their models have learned, which moves x and y together or against each
    other; so the mean of each unit is taken out first. With `given`, what these columns explain of both (linearly,
    within units) is taken out as well. The interval is a jackknife over units on Fisher's z scale.

    Parameters
    ----------
    table : DataFrame
        One row a pair and one column a measurement (see the example of the package); rows with a missing value are left
        out.
    x, y, unit : str
        Columns.
    given : sequence of str
        Columns that are held fixed.
    level : float

    Returns
    -------
    dict
        estimate, low, high, p_t and n (units).
    """
    given = names(given)
    sums, _ = _blocked(table, [*given, x, y], unit)
    g = len(given)

    def z(gram: Array) -> Array:
        left = gram[..., g:, g:]
        if g:
            left = left - gram[..., g:, :g] @ np.linalg.pinv(gram[..., :g, :g], hermitian=True) @ gram[..., :g, g:]
        r = left[..., 0, 1] / np.sqrt(left[..., 0, 0] * left[..., 1, 1])
        return np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12))

    estimate, low, high, p = jackknife(z, sums, level)
    ends = {name: float(np.tanh(end)) for name, end in (("estimate", estimate), ("low", low), ("high", high))}
    return ends | {"p_t": float(p), "n": len(sums)}


def mediation(
    table: pd.DataFrame,
    *,
    mediator: str,
    x: str = "overlap",
    y: str = "value",
    given: Sequence[str] = (),
    unit: str = "seed",
    level: float = 0.95,
) -> pd.DataFrame:
    """How much of the effect of x on y goes hand in hand with a mediator, by linear regression within units.

    The total effect is the slope of y on x, the direct effect that slope with the mediator held fixed, the indirect
    effect their difference (Baron and Kenny 1986; MacKinnon et al. 2002). The mean of each unit is taken out of every
    column first, so that what differs from seed to seed is not taken for a mediator. Where x was set by an experiment,
    its total effect is causal. The mediator was not set: whatever else moves it together with y counts as its doing, so
    the split is consistent with mediation at most.

    Parameters
    ----------
    table : DataFrame
        One row a pair; rows with a missing value are left out.
    mediator, x, y, unit : str
        Columns.
    given : sequence of str
        Columns that are held fixed throughout.
    level : float
        Of the intervals, which are a jackknife over units with Student's t. That of the total effect is the interval of
        `trend` where all units have the same x.

    Returns
    -------
    DataFrame
        Columns effect (total, direct, indirect, mediator: the slope of y on it with x held fixed), estimate, low, high
        and p_t.

    Raises
    ------
    ValueError
        If a column is missing, does not vary within units, or follows from the others there: then nothing can be split.
    """
    sums, (of_x, *_, of_mediator, of_y) = _blocked(table, [x, *names(given), mediator, y], unit)

    def effects(gram: Array) -> Array:
        with_mediator = np.linalg.pinv(gram[..., :-1, :-1], hermitian=True) @ gram[..., :-1, -1:]
        without = np.linalg.pinv(gram[..., :-2, :-2], hermitian=True) @ gram[..., :-2, -1:]
        total, direct = without[..., 0, 0], with_mediator[..., 0, 0]
        return np.stack([total, direct, total - direct, with_mediator[..., -1, 0]], -1)

    *ends, p = jackknife(effects, sums, level)
    scale = of_y / np.array([of_x, of_x, of_x, of_mediator])
    found = dict(zip(("estimate", "low", "high"), (scale * end for end in ends), strict=True))
    return pd.DataFrame({"effect": ["total", "direct", "indirect", "mediator"]} | found | {"p_t": p})


def prediction(
    table: pd.DataFrame,
    predictors: Mapping[str, Sequence[str]],
    *,
    y: str = "value",
    unit: str = "seed",
    level: float = 0.95,
    beside: str | None = None,
) -> pd.DataFrame:
    """How well linear regression predicts y within a unit that it has not seen, from each of several sets of columns.

    The mean of each unit is taken out of every column, so that a prediction is of how a pair differs from the other
    pairs of its own unit. A line is fitted to all units but one and applied to that one.

    Parameters
    ----------
    table : DataFrame
        One row a pair; rows with a missing value in any column of use are left out, so that all sets see the same rows.
    predictors : mapping
        Columns of each set, by its name.
    y, unit : str
        Columns.
    level : float
        Of the intervals: a jackknife over units whose predictions stay as they are. As lines are not fitted again, it
        is approximate.
    beside : str, optional
        One of the sets; its `r_squared` is then taken off that of all others, unit by unit.

    Returns
    -------
    DataFrame
        Columns predictors, r_squared, low and high. `r_squared` is 1 - (squared errors) / (squared distances from the
        unit's own mean): below 0 where the set predicts worse than that mean. With `beside`, it is a gain.

    Raises
    ------
    ValueError
        If a column is missing, a set is empty, or fewer than two units have all values.
    """
    from sklearn.linear_model import LinearRegression
    from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict

    sets = {name: names(columns) for name, columns in predictors.items()}
    columns = list(dict.fromkeys(column for some in sets.values() for column in some))
    check_columns(table, *columns, y, unit)
    if empty := [name for name, some in sets.items() if not some]:
        raise ValueError(f"every set of predictors needs a column, and {', '.join(empty)} has none")
    if beside is not None and beside not in sets:
        raise ValueError(f"beside must be one of {', '.join(sets)}, got {beside}")
    rows = table.dropna(subset=[*columns, y])
    if rows[unit].nunique() < 2:
        raise ValueError(
            f"one {unit} is predicted from the others, so at least two must have values; got {rows[unit].nunique()}"
        )
    rows = demeaned(rows.astype(dict.fromkeys([*columns, y], float)), [*columns, y], by=[unit])
    values, units = rows[y].to_numpy(), rows[unit].to_numpy()
    which = np.unique(units, return_inverse=True)[1]

    def squares(errors: Array) -> Array:
        """Their squares, summed within each unit."""
        return np.bincount(which, np.square(errors)).astype(float)

    base, left = squares(values), {}
    for name, some in sets.items():
        line, folds = LinearRegression(fit_intercept=False), LeaveOneGroupOut()
        left[name] = squares(values - cross_val_predict(line, rows[some], values, groups=units, cv=folds))
    than = base if beside is None else left.pop(beside)
    found = []
    for name, sums in left.items():
        parts = np.column_stack([than - sums, base])
        estimate, low, high, _ = jackknife(lambda s: s[..., 0] / s[..., 1], parts, level)
        found.append((name, float(estimate), float(low), float(high)))
    return pd.DataFrame(found, columns=["predictors", "r_squared", "low", "high"])
