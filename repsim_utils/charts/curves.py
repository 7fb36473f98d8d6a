"""Values against overlap and other scales: recorded, published and just measured in one figure."""

from __future__ import annotations

import altair as alt
import pandas as pd

from repsim_utils.analysis import mean_interval
from repsim_utils.charts.style import LAYERS, LIGHTER, MEASURED, SERIES, SHAPES, finished


def three_layers(
    recorded: pd.DataFrame | None,
    published: pd.DataFrame | None,
    measured: pd.DataFrame | None,
    *,
    title: str,
    subtitle: list[str],
    x_title: str,
    y_title: str,
    x_labels: dict[int, str],
    description: str,
) -> alt.LayerChart:
    """Recorded, published and just measured values in one figure.

    Parameters
    ----------
    recorded, published, measured : DataFrame or None
        Columns overlap and mean, and where there is an interval low and high; a column pair is shown on hovering.
    title, x_title, y_title : str
    subtitle : list of str
        Lines below the title.
    x_labels : dict
        Text below each overlap, in order.
    description : str
        Alternative text: what the figure shows, for those who do not see it.

    Returns
    -------
    LayerChart
    """
    parts = [
        table.assign(source=source, place=table["overlap"].map(x_labels))
        for source, table in zip(LAYERS, (recorded, published, measured), strict=True)
        if table is not None and len(table)
    ]
    data = pd.concat(parts).reindex(columns=["source", "place", "mean", "low", "high", "pair"])
    domain = [source for source in LAYERS if source in set(data["source"])]
    colors, marks = ([LAYERS[source][i] for source in domain] for i in (0, 1))
    base = alt.Chart(data).encode(
        x=alt.X("place:N", sort=list(x_labels.values()), title=x_title, axis=alt.Axis(labelAngle=0)),
        xOffset=alt.XOffset("source:N", sort=domain, scale=alt.Scale(domain=domain)),
        color=alt.Color("source:N", scale=alt.Scale(domain=domain, range=colors), title=None),
    )
    numbers = [alt.Tooltip(f"{name}:Q", format=".3f") for name in ("mean", "low", "high")]
    bars = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2, clip=True)
    points = base.mark_point(size=70, filled=True, opacity=0.9).encode(
        shape=alt.Shape("source:N", scale=alt.Scale(domain=domain, range=marks), title=None),
        y=alt.Y("mean:Q", title=y_title, scale=alt.Scale(domain=[0, 1])),
        tooltip=["source:N", "pair:N", *numbers],
    )
    return (
        alt.layer(bars.encode(y=alt.Y("low:Q", title=y_title), y2="high:Q"), points)
        .properties(width=460, height=280, description=description, background="white")
        .properties(title=alt.Title(title, subtitle=subtitle, anchor="start", subtitleColor="#444444"))
        .configure_legend(orient="top", labelFontSize=12)
        .configure_axis(labelFontSize=12, titleFontSize=12)
    )


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
    means = [f"{mean:.2f}" for mean in ours["mean"]]
    hidden = " (narrower than the marks)" if (ours["high"] - ours["low"]).max() < 0.025 else ""
    return three_layers(
        ours,
        theirs,
        now,
        title=f"The more of a task two models share, the more alike they are: CKA {', '.join(means)}",
        subtitle=[
            f"Recorded: mean of {ours['n'].min()} seeds with 95% interval{hidden}.",
            f"Published: mean ± standard deviation of pairs (ResNet-18, {theirs['n'].min()} seeds)."
            + (" This run: one mark a pair." if now is not None else ""),
        ],
        x_title="factors that both models predict (level of task overlap)",
        y_title="linear CKA on held-out images",
        x_labels={1: "none (1)", 2: "one (2)", 3: "all three (3)"},
        description=f"Linear CKA of models that share no, one and all three factors: recorded {', '.join(means)}; "
        f"published {', '.join(f'{mean:.2f}' for mean in theirs['mean'])}.",
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
        styles |= {curve: (shades[i % 2], marks[i]) for i, curve in enumerate(dict.fromkeys(curves))}
    return pd.concat(parts, ignore_index=True), styles


def lines(
    table: pd.DataFrame,
    *,
    x: str,
    y: str,
    by: str,
    title: str,
    x_title: str,
    y_title: str,
    description: str,
    subtitle: str = "",
    log_x: bool = False,
    domain: tuple[float, float] | None = None,
    ticks: list[int] | None = None,
    height: int = 240,
    styles: dict[str, tuple[str, str]] | None = None,
    panel: str | None = None,
) -> alt.LayerChart | alt.FacetChart:
    """Curves with a mark at every point, and an interval where the table has one.

    Parameters
    ----------
    table : DataFrame
        Columns `x`, `y`, `by` (a name for each curve), and where there is an interval low and high.
    x, y, by : str
        Columns.
    title, x_title, y_title, subtitle, description : str
        The last is the alternative text.
    log_x : bool
    domain : (float, float), optional
        Of the y axis; by default it fits the values.
    ticks : list of int, optional
        Values on the x axis that get a label.
    height : int
        In pixels.
    styles : dict, optional
        Color and shape of each curve, as `sources` makes them.
    panel : str, optional
        Column that tells panels side by side apart, two in a row.
    """
    names = list(dict.fromkeys(table[by])) if styles is None else list(styles)
    colors = list(SERIES[: len(names)]) if styles is None else [color for color, _ in styles.values()]
    shapes = list(SHAPES[: len(names)]) if styles is None else [shape for _, shape in styles.values()]
    legend = alt.Legend(orient="bottom", columns=2, labelLimit=320)
    scale = alt.Scale(zero=False) if domain is None else alt.Scale(domain=list(domain))
    base = alt.Chart(table if panel is None else alt.Undefined).encode(
        x=alt.X(
            f"{x}:Q",
            title=x_title,
            scale=alt.Scale(nice=False, padding=12, **({"type": "log"} if log_x else {"zero": False})),
            axis=alt.Axis(values=ticks, format="d") if ticks else alt.Axis(),
        ),
        color=alt.Color(f"{by}:N", scale=alt.Scale(domain=names, range=colors), title=None, sort=names, legend=legend),
    )
    shape = alt.Shape(f"{by}:N", scale=alt.Scale(domain=names, range=shapes), title=None, sort=names, legend=legend)
    tooltip = [f"{by}:N", f"{x}:Q", alt.Tooltip(f"{y}:Q", format=".3f")]
    vertical = alt.Y(f"{y}:Q", title=y_title, scale=scale)
    layers = [
        base.mark_line(strokeWidth=2, clip=True).encode(y=vertical),
        base.mark_point(size=55, filled=True, opacity=1, clip=True).encode(y=vertical, shape=shape, tooltip=tooltip),
    ]
    if "low" in table:
        low = alt.Y("low:Q", title=y_title, scale=scale)
        bars = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=1.5, clip=True)
        layers.insert(0, bars.encode(y=low, y2="high:Q"))
    if panel is None:
        return finished(alt.layer(*layers), title, subtitle, description, width=460, height=height)
    panels = list(dict.fromkeys(table[panel]))
    chart = alt.layer(*layers, data=table).properties(width=270, height=height)
    header = alt.Header(labelFontSize=12)
    chart = chart.facet(alt.Facet(f"{panel}:N", sort=panels, title=None, header=header), columns=2)
    chart = chart.resolve_axis(x="independent")  # else the place of a panel that is missing gets one
    return finished(chart, title, subtitle, description)
