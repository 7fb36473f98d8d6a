"""One mark a measurement: pairs and seeds, points of the plane, scatters, estimates with intervals, chance."""

from __future__ import annotations

import math
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from repsim_utils.charts.style import BLACK, GRAY, ORANGE, distinct, finished, numbers, panels, told_apart


def pairs_and_seeds(recorded: pd.DataFrame, metric: str = "cka") -> alt.LayerChart:
    """Every pair with every seed, one dot each, and the mean of each pair.

    Parameters
    ----------
    recorded : DataFrame
        Table of an experiment with columns overlap, pair, metric and value.
    metric : str
        Which of its metrics to show.

    Returns
    -------
    LayerChart
        Its title says how far a pair ranges over seeds.
    """
    rows = recorded[recorded.metric == metric].sort_values(["overlap", "pair"])
    rows = rows.assign(pair=rows["overlap"].astype(str) + ":  " + rows["pair"])
    spread = rows.groupby("pair")["value"].agg(lambda values: values.max() - values.min())
    order = distinct(rows["pair"])
    base = alt.Chart(rows[["pair", "value", "seed"]]).encode(
        y=alt.Y("pair:N", sort=order, title=None, axis=alt.Axis(labelLimit=320))
    )
    dots = base.mark_point(size=45, filled=True, opacity=0.45, color=GRAY).encode(
        x=alt.X("value:Q", title="linear CKA on held-out images", scale=alt.Scale(domain=[0, 1])),
        tooltip=["pair:N", "seed:O", *numbers("value")],
    )
    means = base.mark_tick(thickness=3, size=22, color=BLACK).encode(x="mean(value):Q")
    widest = math.ceil(1000 * spread.max()) / 1000  # a bound is rounded up
    return finished(
        dots + means,
        title=f"No pair ranges by more than {widest:.3f} over {rows['seed'].nunique()} seeds",
        subtitle="Level: first model | second model. Grey: one seed each. Black: mean of the pair.",
        description=f"CKA of {len(order)} pairs of models, one dot a seed; over seeds they range by "
        f"{spread.min():.3f} to {spread.max():.3f}.",
        width=380,
        height=200,
    )


def against_chance(
    null: NDArray[np.float64], marks: dict[str, float], *, x_title: str, **heading: Any
) -> alt.LayerChart:
    """Histogram of scores by chance, and lines at the scores that are held against them.

    Parameters
    ----------
    null : ndarray
        Scores after shuffling.
    marks : dict
        Name and place of each line.
    x_title, **heading : str
        See the package.
    """
    counts, edges = np.histogram(null, bins=24)
    bars = pd.DataFrame({"low": edges[:-1], "high": edges[1:], "count": counts})
    names = list(marks)
    scales = [alt.Scale(domain=names, range=values[: len(names)]) for values in ([ORANGE, BLACK], [[1, 0], [5, 3]])]
    axis = alt.Axis(tickCount=8, labelOverlap=True)
    histogram = alt.Chart(bars).encode(
        x=alt.X("low:Q", bin="binned", title=x_title, scale=alt.Scale(zero=False), axis=axis),
        x2="high:Q",
        y=alt.Y("count:Q", title="shuffles"),
    )
    lines = alt.Chart(pd.DataFrame({"at": list(marks.values()), "what": names})).encode(
        x="at:Q",
        color=alt.Color("what:N", scale=scales[0], title=None),
        strokeDash=alt.StrokeDash("what:N", scale=scales[1], title=None),
    )
    chart = alt.layer(histogram.mark_bar(color=GRAY), lines.mark_rule(strokeWidth=3))
    return finished(chart, **heading, width=460, height=200)


def plane(
    table: pd.DataFrame, *, by: str, panel: str, links: pd.DataFrame | None = None, size: int = 200, **heading: Any
) -> alt.FacetChart:
    """Points of the plane in panels side by side, told apart by color and shape.

    Parameters
    ----------
    table : DataFrame
        Columns x, y, `by` (kind of point) and `panel`.
    by, panel, **heading : str
        See the package; here all panels are in one row.
    links : DataFrame, optional
        Lines to draw: columns x, y, x2, y2 and `panel`.
    size : int
        Edge of a panel, in pixels.
    """
    axis = alt.Axis(title=None, labels=False, ticks=False, grid=False, domain=False)
    base = alt.Chart().encode(
        x=alt.X("x:Q", axis=axis, scale=alt.Scale(zero=False, padding=8)),
        y=alt.Y("y:Q", axis=axis, scale=alt.Scale(zero=False, padding=8)),
    )
    color, shape = told_apart(by, distinct(table[by]))
    points = base.mark_point(size=55, filled=True, opacity=0.9).encode(color=color, shape=shape, tooltip=[f"{by}:N"])
    layers, drawn = [points], table
    if links is not None:
        drawn = pd.concat([table.assign(part="point"), links.assign(part="link")])
        lines = base.mark_rule(color=GRAY, opacity=0.6).encode(x2="x2:Q", y2="y2:Q")
        layers = [lines.transform_filter("datum.part == 'link'"), points.transform_filter("datum.part == 'point'")]
    chart = alt.layer(*layers, data=drawn).properties(width=size, height=size)
    chart = panels(chart, panel, table[panel], columns=table[panel].nunique())
    return finished(chart.resolve_scale(x="independent", y="independent"), **heading)


def scatter(
    table: pd.DataFrame,
    *,
    x: str,
    y: str,
    color: str,
    panel: str,
    x_title: str,
    y_title: str,
    color_title: str,
    **heading: Any,
) -> alt.FacetChart:
    """One mark a row, in panels that have an x axis each.

    Parameters
    ----------
    table : DataFrame
        Columns `x`, `y`, `color` (a few ordered values, from dark to light) and `panel`.
    x, y, color, panel, x_title, y_title, color_title, **heading : str
        See the package.
    """
    values = sorted(table[color].unique())
    scale = alt.Scale(domain=values, scheme="viridis")
    points = (
        alt.Chart(table[[x, y, color, panel]])
        .mark_point(size=50, filled=True, opacity=0.9)
        .encode(
            x=alt.X(f"{x}:Q", title=x_title, scale=alt.Scale(zero=False, padding=8)),
            y=alt.Y(f"{y}:Q", title=y_title, scale=alt.Scale(zero=False, padding=8)),
            color=alt.Color(f"{color}:O", title=color_title, scale=scale, legend=alt.Legend(orient="bottom")),
            tooltip=[f"{panel}:N", f"{color}:O", *numbers(x, y)],
        )
        .properties(width=250, height=210)
    )
    return finished(panels(points, panel, table[panel]).resolve_scale(x="independent"), **heading)


def forest(
    table: pd.DataFrame,
    *,
    row: str,
    by: str,
    panel: str,
    x_title: str,
    domain: tuple[float, float] | None = None,
    **heading: Any,
) -> alt.FacetChart:
    """Estimates with their intervals, one below the other, and a line at zero.

    Parameters
    ----------
    table : DataFrame
        Columns estimate, low and high, `row` (what is estimated), `by` (the kind of mark) and `panel`.
    row, by, panel, x_title, **heading : str
        See the package.
    domain : (float, float), optional
        Of the x axis: what lies beyond is cut off.
    """
    kinds = distinct(table[by])
    color, shape = told_apart(by, kinds, legend=alt.Legend(orient="bottom"))
    scale = alt.Scale(zero=False) if domain is None else alt.Scale(domain=list(domain))
    base = alt.Chart().encode(
        y=alt.Y(f"{row}:N", sort=distinct(table[row]), title=None, axis=alt.Axis(grid=True, labelLimit=300)),
        color=color,
    )
    if table.groupby([row, panel])[by].nunique().max() > 1:
        base = base.encode(yOffset=alt.YOffset(f"{by}:N", sort=kinds))
    points = base.mark_point(size=50, filled=True, opacity=1, clip=True).encode(
        x=alt.X("estimate:Q", title=x_title, scale=scale),
        shape=shape,
        tooltip=[f"{row}:N", f"{by}:N", *numbers("estimate", "low", "high")],
    )
    bars = base.mark_rule(strokeWidth=1.5, clip=True).encode(x=alt.X("low:Q", title=x_title, scale=scale), x2="high:Q")
    zero = alt.Chart().mark_rule(color=GRAY, strokeDash=[4, 3]).encode(x=alt.datum(0, type="quantitative"))
    chart = alt.layer(zero, bars, points, data=table).properties(width=230, height=alt.Step(14))
    return finished(panels(chart, panel, table[panel]), **heading)


def chooser(
    table: pd.DataFrame, *, row: str, by: str, choices: dict[str, str], x_title: str, **heading: Any
) -> alt.LayerChart:
    """Estimates with their intervals, of those rows that a reader chooses from menus below the figure.

    Parameters
    ----------
    table : DataFrame
        Columns estimate, low and high, `row` (what is estimated), `by` (the kind of mark), and those of `choices`.
    row, by, x_title, **heading : str
        See the package. Rows have different names.
    choices : dict
        Columns to choose by, and what is chosen at first; ``all`` is every value.
    """
    menus, drawn = [], alt.Chart(table)
    for i, (column, first) in enumerate(choices.items()):
        menu = alt.binding_select(options=["all", *sorted(set(table[column]))], name=f"{column} ")
        menus.append(alt.param(name=f"chosen{i}", value=first, bind=menu))
        drawn = drawn.transform_filter(f"chosen{i} == 'all' || datum[{column!r}] == chosen{i}")
    kinds = distinct(table[by])
    color, shape = told_apart(by, kinds, legend=alt.Legend(orient="top"))
    order = alt.EncodingSortField("order", op="min")
    base = drawn.transform_window(order="row_number()").encode(
        y=alt.Y(f"{row}:N", sort=order, title=None, axis=alt.Axis(grid=True, labelLimit=400)),
        color=color,
    )
    points = base.mark_point(size=50, filled=True, opacity=1).encode(
        x=alt.X("estimate:Q", title=x_title, scale=alt.Scale(zero=True)),
        shape=shape,
        tooltip=[f"{row}:N", f"{by}:N", *numbers("estimate", "low", "high")],
    )
    bars = base.mark_rule(strokeWidth=1.5).encode(x=alt.X("low:Q", title=x_title), x2="high:Q")
    written = base.mark_text(align="left", dx=8, fontSize=11).encode(
        x="high:Q", text=alt.Text("estimate:Q", format="+.3f")
    )
    zero = alt.Chart().mark_rule(color=GRAY, strokeDash=[4, 3]).encode(x=alt.datum(0, type="quantitative"))
    chart = alt.layer(zero, bars, points, written).add_params(*menus).properties(width=340, height=alt.Step(17))
    chart = chart.properties(usermeta={"embedOptions": {"renderer": "svg"}})  # whose text can be searched and selected
    return finished(chart, **heading)
