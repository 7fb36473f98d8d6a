"""Values against overlap and other scales: recorded, published and just measured in one figure."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from repsim_utils.analysis import mean_interval
from repsim_utils.charts.style import LAYERS, LIGHTER, MEASURED, SHAPES, distinct, finished, numbers, panels, told_apart


def task_overlap(
    recorded: pd.DataFrame, published: pd.DataFrame, measured: pd.DataFrame | None = None
) -> alt.LayerChart:
    """CKA against the number of factors that both models predict (experiment `task_only`).

    Parameters
    ----------
    recorded, measured : DataFrame
        Tables of the experiment, one row a measurement.
    published : DataFrame
        The published table of the experiment.

    Returns
    -------
    LayerChart
        Its title states what the recorded means are.
    """
    ours = mean_interval(recorded[recorded.metric == "cka"])
    theirs = published[
        (published.metric == "cka") & (published.training == "scratch") & (published.probe == "color_shape_digit")
    ]
    theirs = theirs.assign(low=theirs["mean"] - theirs["sd"], high=theirs["mean"] + theirs["sd"])
    now = None if measured is None else measured[measured.metric == "cka"].rename(columns={"value": "mean"})
    levels = {1: "none (1)", 2: "one (2)", 3: "all three (3)"}
    parts = [
        table.assign(source=source, place=table["overlap"].map(levels))
        for source, table in zip(LAYERS, (ours, theirs, now), strict=True)
        if table is not None and len(table)
    ]
    data = pd.concat(parts).reindex(columns=["source", "place", "mean", "low", "high", "pair"])
    there = distinct(data["source"])
    colors, shapes = ([LAYERS[source][i] for source in there] for i in (0, 1))
    color, shape = told_apart("source", there, colors, shapes, legend=alt.Legend(orient="top"))
    y_title = "linear CKA on held-out images"
    base = alt.Chart(data).encode(
        x=alt.X(
            "place:N",
            sort=list(levels.values()),
            title="factors that both models predict (level of task overlap)",
            axis=alt.Axis(labelAngle=0),
        ),
        xOffset=alt.XOffset("source:N", sort=there, scale=alt.Scale(domain=there)),
        color=color,
    )
    bars = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2, clip=True)
    points = base.mark_point(size=70, filled=True, opacity=0.9).encode(
        shape=shape,
        y=alt.Y("mean:Q", title=y_title, scale=alt.Scale(domain=[0, 1])),
        tooltip=["source:N", "pair:N", *numbers("mean", "low", "high")],
    )
    means = [f"{mean:.2f}" for mean in ours["mean"]]
    hidden = " (narrower than the marks)" if (ours["high"] - ours["low"]).max() < 0.025 else ""
    return finished(
        alt.layer(bars.encode(y=alt.Y("low:Q", title=y_title), y2="high:Q"), points),
        title=f"The more of a task two models share, the more alike they are: CKA {', '.join(means)}",
        subtitle=[
            f"Recorded: mean of {ours['n'].min()} seeds with 95% interval{hidden}.",
            f"Published: mean ± standard deviation of pairs (ResNet-18, {theirs['n'].min()} seeds)."
            + (" This run: one mark a pair." if now is not None else ""),
        ],
        description=f"Linear CKA of models that share no, one and all three factors: recorded {', '.join(means)}; "
        f"published {', '.join(f'{mean:.2f}' for mean in theirs['mean'])}.",
        width=460,
        height=280,
    )


def sources(
    recorded: pd.DataFrame | None, published: pd.DataFrame | None, measured: pd.DataFrame | None
) -> tuple[pd.DataFrame, dict[str, tuple[str, str]]]:
    """Recorded, published and just measured curves in one table for `lines`, and how each is drawn.

    Parameters
    ----------
    recorded, published, measured : DataFrame or None
        Each with a column series, that names its curves.

    Returns
    -------
    table : DataFrame
        All rows, with a column curve: source and series.
    styles : dict
        Color, of two shades of the source's, and shape, which goes through the series of a source, of each curve.
    """
    parts: list[pd.DataFrame] = []
    styles: dict[str, tuple[str, str]] = {}
    for source, table in zip(LAYERS, (recorded, published, measured), strict=True):
        if table is None or not len(table):
            continue
        curves = (f"{source}: " + table["series"]).rename("curve")
        parts.append(table.assign(curve=curves))
        marks = SHAPES if source != MEASURED else ("triangle-right", "triangle-left", *SHAPES)
        shades = LAYERS[source][0], LIGHTER[source]
        styles |= {curve: (shades[i % 2], marks[i]) for i, curve in enumerate(distinct(curves))}
    return pd.concat(parts, ignore_index=True), styles


def lines(
    table: pd.DataFrame,
    *,
    x: str,
    y: str,
    by: str,
    x_title: str,
    y_title: str,
    log_x: bool = False,
    domain: tuple[float, float] | None = None,
    ticks: list[int] | None = None,
    height: int = 240,
    styles: dict[str, tuple[str, str]] | None = None,
    panel: str | None = None,
    **heading: Any,
) -> alt.LayerChart | alt.FacetChart:
    """Curves with a mark at every point, and an interval where the table has one.

    Parameters
    ----------
    table : DataFrame
        Columns `x`, `y`, `by` (a name for each curve), and where there is an interval low and high.
    x, y, by, x_title, y_title, panel, **heading : str
        See the package; without `panel`, there is one.
    log_x : bool
    domain : (float, float), optional
        Of the y axis; by default it fits the values.
    ticks : list of int, optional
        Values on the x axis that get a label.
    height : int
        In pixels.
    styles : dict, optional
        Color and shape of each curve, as `sources` makes them.
    """
    marks: Any = () if styles is None else zip(*styles.values(), strict=True)  # colors, shapes
    legend = alt.Legend(orient="bottom", columns=2, labelLimit=320)
    color, shape = told_apart(by, distinct(table[by] if styles is None else styles), *marks, legend=legend)
    scale = alt.Scale(zero=False) if domain is None else alt.Scale(domain=list(domain))
    base = alt.Chart(table if panel is None else alt.Undefined).encode(
        x=alt.X(
            f"{x}:Q",
            title=x_title,
            scale=alt.Scale(nice=False, padding=12, **({"type": "log"} if log_x else {"zero": False})),
            axis=alt.Axis(values=ticks, format="d") if ticks else alt.Axis(),
        ),
        color=color,
    )
    vertical = alt.Y(f"{y}:Q", title=y_title, scale=scale)
    points = base.mark_point(size=55, filled=True, opacity=1, clip=True)
    layers = [
        base.mark_line(strokeWidth=2, clip=True).encode(y=vertical),
        points.encode(y=vertical, shape=shape, tooltip=[f"{by}:N", f"{x}:Q", *numbers(y)]),
    ]
    if "low" in table:
        low = alt.Y("low:Q", title=y_title, scale=scale)
        bars = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=1.5, clip=True)
        layers.insert(0, bars.encode(y=low, y2="high:Q"))
    if panel is None:
        return finished(alt.layer(*layers), **heading, width=460, height=height)
    chart = panels(alt.layer(*layers, data=table).properties(width=270, height=height), panel, table[panel])
    return finished(chart.resolve_axis(x="independent"), **heading)  # else a missing panel's place gets an axis
