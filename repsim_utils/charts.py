"""The few figures that every chapter uses."""

from __future__ import annotations

import base64
import io
import math
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from repsim_utils.analysis import mean_interval
from repsim_utils.metrics import LayerTable
from repsim_utils.overlap import Split

# Okabe and Ito's palette: told apart by colour-blind readers, and in grey by shape.
BLACK, GRAY, ORANGE, BLUE = "#000000", "#777777", "#D55E00", "#0072B2"
RECORDED, PUBLISHED, MEASURED = "recorded (laptop)", "published", "this run"
SERIES = (BLACK, ORANGE, BLUE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", GRAY)
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-left", "triangle-right")
_LAYERS = {RECORDED: (BLACK, "circle"), PUBLISHED: (ORANGE, "diamond"), MEASURED: (BLUE, "triangle")}
_LIGHTER = {RECORDED: GRAY, PUBLISHED: "#E69F00", MEASURED: "#56B4E9"}  # every second curve of a source


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
        for source, table in zip(_LAYERS, (recorded, published, measured), strict=True)
        if table is not None and len(table)
    ]
    data = pd.concat(parts).reindex(columns=["source", "place", "mean", "low", "high", "pair"])
    domain = [source for source in _LAYERS if source in set(data["source"])]
    colors, marks = ([_LAYERS[source][i] for source in domain] for i in (0, 1))
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


def picture_grid(
    images: Tensor, rows: list[str], columns: list[str], *, title: str, description: str, size: int = 44
) -> alt.Chart:
    """Small pictures in a labelled grid.

    Parameters
    ----------
    images : Tensor
        uint8 (n, 3, h, w).
    rows, columns : list of str
        Labels of each picture's row and column, n each.
    title, description : str
        What the grid shows, and its alternative text.
    size : int
        Edge of a picture in the figure, in pixels.
    """
    table = pd.DataFrame({"row": rows, "column": columns, "url": [_data_url(image) for image in images]})
    n_rows, n_columns = table["row"].nunique(), table["column"].nunique()

    def axis(name: str) -> alt.Axis:
        angle = 0 if table[name].str.len().max() * 7 < size or name == "row" else -40
        return alt.Axis(title=None, domain=False, ticks=False, labelAngle=angle, labelFontSize=12)

    return (
        alt.Chart(table, description=description)
        .mark_image(width=size - 3, height=size - 3)
        .encode(
            x=alt.X("column:N", sort=list(dict.fromkeys(columns)), axis=axis("column")),
            y=alt.Y("row:N", sort=list(dict.fromkeys(rows)), axis=axis("row")),
            url="url:N",
        )
        .properties(width=size * n_columns, height=size * n_rows, title=alt.Title(title, anchor="start"))
        .configure_view(strokeWidth=0)
    )


def _data_url(image: Tensor) -> str:
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    file = io.BytesIO()
    picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


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
    order = list(dict.fromkeys(rows["pair"]))
    base = alt.Chart(rows[["pair", "value", "seed"]]).encode(
        y=alt.Y("pair:N", sort=order, title=None, axis=alt.Axis(labelLimit=320))
    )
    dots = base.mark_point(size=45, filled=True, opacity=0.45, color=GRAY).encode(
        x=alt.X("value:Q", title="linear CKA on held-out images", scale=alt.Scale(domain=[0, 1])),
        tooltip=["pair:N", "seed:O", alt.Tooltip("value:Q", format=".3f")],
    )
    means = base.mark_tick(thickness=3, size=22, color=BLACK).encode(x="mean(value):Q")
    key = "Level: first model | second model. Grey: one seed each. Black: mean of the pair."
    widest = math.ceil(1000 * spread.max()) / 1000  # a bound is rounded up
    title = f"No pair ranges by more than {widest:.3f} over {rows['seed'].nunique()} seeds"
    return (
        (dots + means)
        .properties(
            width=380,
            height=200,
            title=alt.Title(title, subtitle=key, anchor="start"),
            description=f"CKA of {len(order)} pairs of models, one dot a seed; over seeds they range by "
            f"{spread.min():.3f} to {spread.max():.3f}.",
        )
        .configure_axis(labelFontSize=12, titleFontSize=12)
    )


def split_picture(labels: NDArray[np.int64], split: Split, *, names: list[str], title: str) -> alt.Chart:
    """Who is trained on which sample: one mark a sample, one row a class.

    Parameters
    ----------
    labels : ndarray
        int (n,), class of each sample.
    split : Split
        Of samples, such as `repsim_utils.overlap.split_by_example` makes.
    names : list of str
        Name of each class.
    title : str
    """
    samples = np.arange(len(labels))
    seen = np.isin(samples, split.first).astype(int) + 2 * np.isin(samples, split.second).astype(int)
    who = ("neither model", "first model only", "second model only", "both models")
    table = pd.DataFrame({"class": [names[label] for label in labels], "seen by": [who[i] for i in seen]})
    table["sample"] = table.groupby("class", sort=False).cumcount() + 1
    scale = alt.Scale(domain=list(who), range=["#DDDDDD", ORANGE, BLUE, BLACK])
    shapes = alt.Scale(domain=list(who), range=["circle", "triangle-left", "triangle-right", "square"])
    return (
        alt.Chart(table, description=f"{title}: {', '.join(f'{n} samples {w}' for w, n in _counts(table))}.")
        .mark_point(size=130, filled=True, opacity=1)
        .encode(
            x=alt.X("sample:O", axis=alt.Axis(labelAngle=0), title="image of the class"),
            y=alt.Y("class:N", sort=None, title=None),
            color=alt.Color("seen by:N", scale=scale, title="in the training set of"),
            shape=alt.Shape("seen by:N", scale=shapes, title="in the training set of"),
            tooltip=["class:N", "sample:O", "seen by:N"],
        )
        .properties(width=24 * int(table["sample"].max()), height=24 * table["class"].nunique())
        .properties(title=alt.Title(title, anchor="start"))
        .configure_legend(symbolOpacity=1)
        .configure_axis(labelFontSize=12, titleFontSize=12)
    )


def _counts(table: pd.DataFrame) -> list[tuple[str, int]]:
    return [(str(who), int(n)) for who, n in table["seen by"].value_counts().items()]


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
        return _finished(alt.layer(*layers), title, subtitle, description, width=460, height=height)
    panels = list(dict.fromkeys(table[panel]))
    chart = alt.layer(*layers, data=table).properties(width=270, height=height)
    header = alt.Header(labelFontSize=12)
    chart = chart.facet(alt.Facet(f"{panel}:N", sort=panels, title=None, header=header), columns=2)
    return _finished(chart, title, subtitle, description)


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
    for source, table in zip(_LAYERS, (recorded, published, measured), strict=True):
        if table is None or not len(table):
            continue
        curves = (f"{source}: " + table["series"]).rename("curve")
        parts.append(table.assign(curve=curves))
        marks = SHAPES if source != MEASURED else ("triangle-right", "triangle-left", *SHAPES)
        shades = _LAYERS[source][0], _LIGHTER[source]
        styles |= {curve: (shades[i % 2], marks[i]) for i, curve in enumerate(dict.fromkeys(curves))}
    return pd.concat(parts, ignore_index=True), styles


def against_chance(
    null: NDArray[np.float64], marks: dict[str, float], *, title: str, x_title: str, description: str
) -> alt.LayerChart:
    """Histogram of scores by chance, and lines at the scores that are held against them.

    Parameters
    ----------
    null : ndarray
        Scores after shuffling.
    marks : dict
        Name and place of each line.
    title, x_title, description : str
    """
    counts, edges = np.histogram(null, bins=24)
    bars = pd.DataFrame({"low": edges[:-1], "high": edges[1:], "count": counts})
    names = list(marks)
    scales = [alt.Scale(domain=names, range=values[: len(names)]) for values in ([ORANGE, BLACK], [[1, 0], [5, 3]])]
    histogram = (
        alt.Chart(bars)
        .mark_bar(color=GRAY)
        .encode(
            x=alt.X(
                "low:Q",
                bin="binned",
                title=x_title,
                scale=alt.Scale(zero=False),
                axis=alt.Axis(tickCount=8, labelOverlap=True),
            ),
            x2="high:Q",
            y=alt.Y("count:Q", title="shuffles"),
        )
    )
    lines = (
        alt.Chart(pd.DataFrame({"at": list(marks.values()), "what": names}))
        .mark_rule(strokeWidth=3)
        .encode(
            x="at:Q",
            color=alt.Color("what:N", scale=scales[0], title=None),
            strokeDash=alt.StrokeDash("what:N", scale=scales[1], title=None),
        )
    )
    return _finished(alt.layer(histogram, lines), title, "", description, width=460, height=200)


def plane(
    table: pd.DataFrame,
    *,
    by: str,
    panel: str,
    title: str,
    description: str,
    subtitle: str = "",
    links: pd.DataFrame | None = None,
    size: int = 200,
) -> alt.FacetChart:
    """Points of the plane in panels side by side, told apart by color and shape.

    Parameters
    ----------
    table : DataFrame
        Columns x, y, `by` and `panel`.
    by, panel : str
        Columns: kind of point, and the panel in which it is drawn.
    title, subtitle, description : str
    links : DataFrame, optional
        Lines to draw: columns x, y, x2, y2 and `panel`.
    size : int
        Edge of a panel, in pixels.
    """
    names = list(dict.fromkeys(table[by]))
    panels = list(dict.fromkeys(table[panel]))
    axis = alt.Axis(title=None, labels=False, ticks=False, grid=False, domain=False)
    base = alt.Chart().encode(
        x=alt.X("x:Q", axis=axis, scale=alt.Scale(zero=False, padding=8)),
        y=alt.Y("y:Q", axis=axis, scale=alt.Scale(zero=False, padding=8)),
    )
    points = base.mark_point(size=55, filled=True, opacity=0.9).encode(
        color=alt.Color(f"{by}:N", scale=alt.Scale(domain=names, range=SERIES[: len(names)]), title=None, sort=names),
        shape=alt.Shape(f"{by}:N", scale=alt.Scale(domain=names, range=SHAPES[: len(names)]), title=None, sort=names),
        tooltip=[f"{by}:N"],
    )
    layers, drawn = [points], table
    if links is not None:
        drawn = pd.concat([table.assign(part="point"), links.assign(part="link")])
        lines = base.mark_rule(color=GRAY, opacity=0.6).encode(x2="x2:Q", y2="y2:Q")
        layers = [lines.transform_filter("datum.part == 'link'"), points.transform_filter("datum.part == 'point'")]
    chart = alt.layer(*layers, data=drawn).properties(width=size, height=size)
    chart = chart.facet(column=alt.Column(f"{panel}:N", sort=panels, title=None, header=alt.Header(labelFontSize=12)))
    chart = chart.resolve_scale(x="independent", y="independent")
    return _finished(chart, title, subtitle, description)


def scatter(
    table: pd.DataFrame,
    *,
    x: str,
    y: str,
    color: str,
    panel: str,
    title: str,
    x_title: str,
    y_title: str,
    color_title: str,
    description: str,
    subtitle: str = "",
) -> alt.FacetChart:
    """One mark a row, in panels two in a row, each with an x axis of its own.

    Parameters
    ----------
    table : DataFrame
        Columns `x`, `y`, `color` (a few ordered values, from dark to light) and `panel`.
    x, y, color, panel : str
        Columns.
    title, x_title, y_title, color_title, subtitle, description : str
        The last is the alternative text.
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
            tooltip=[f"{panel}:N", f"{color}:O", *(alt.Tooltip(f"{name}:Q", format=".3f") for name in (x, y))],
        )
        .properties(width=250, height=210)
    )
    panels, header = list(dict.fromkeys(table[panel])), alt.Header(labelFontSize=12)
    chart = points.facet(alt.Facet(f"{panel}:N", sort=panels, title=None, header=header), columns=2)
    chart = chart.resolve_scale(x="independent")
    return _finished(chart, title, subtitle, description)


def forest(
    table: pd.DataFrame,
    *,
    row: str,
    by: str,
    panel: str,
    title: str,
    x_title: str,
    description: str,
    subtitle: str = "",
    domain: tuple[float, float] | None = None,
) -> alt.FacetChart:
    """Estimates with their intervals, one below the other, and a line at zero.

    Parameters
    ----------
    table : DataFrame
        Columns estimate, low and high, and those named by the following; rows, kinds and panels in order of appearance.
    row, by, panel : str
        Columns: what is estimated, the kind of mark, and the panel in which it is drawn.
    title, x_title, subtitle, description : str
        The last is the alternative text.
    domain : (float, float), optional
        Of the x axis: what lies beyond is cut off.
    """
    rows, kinds, panels = (list(dict.fromkeys(table[name])) for name in (row, by, panel))
    scale = alt.Scale(zero=False) if domain is None else alt.Scale(domain=list(domain))
    axis = alt.Axis(grid=True, labelLimit=220)
    colors, shapes = (alt.Scale(domain=kinds, range=list(marks[: len(kinds)])) for marks in (SERIES, SHAPES))
    legend = alt.Legend(orient="bottom")
    base = alt.Chart().encode(
        y=alt.Y(f"{row}:N", sort=rows, title=None, axis=axis),
        yOffset=alt.YOffset(f"{by}:N", sort=kinds),
        color=alt.Color(f"{by}:N", scale=colors, title=None, sort=kinds, legend=legend),
    )
    numbers = [alt.Tooltip(f"{name}:Q", format=".3f") for name in ("estimate", "low", "high")]
    points = base.mark_point(size=50, filled=True, opacity=1, clip=True).encode(
        x=alt.X("estimate:Q", title=x_title, scale=scale),
        shape=alt.Shape(f"{by}:N", scale=shapes, title=None, sort=kinds, legend=legend),
        tooltip=[f"{row}:N", f"{by}:N", *numbers],
    )
    bars = base.mark_rule(strokeWidth=1.5, clip=True).encode(x=alt.X("low:Q", title=x_title, scale=scale), x2="high:Q")
    zero = alt.Chart().mark_rule(color=GRAY, strokeDash=[4, 3]).encode(x=alt.datum(0, type="quantitative"))
    chart = alt.layer(zero, bars, points, data=table).properties(width=230, height=alt.Step(14))
    header = alt.Header(labelFontSize=12)
    chart = chart.facet(alt.Facet(f"{panel}:N", sort=panels, title=None, header=header), columns=2)
    return _finished(chart, title, subtitle, description)


def heatmap(
    table: pd.DataFrame,
    *,
    title: str,
    description: str,
    x_title: str,
    y_title: str,
    subtitle: str = "",
    value_title: str = "similarity",
    numbers: bool = True,
    cell: int = 44,
) -> alt.LayerChart:
    """A table of values as shades, dark for large, with the numbers in the cells.

    Parameters
    ----------
    table : DataFrame
        Columns row, column and value; rows and columns in order of appearance.
    title, subtitle, description, x_title, y_title, value_title : str
    numbers : bool
        Write the values into the cells.
    cell : int
        Edge of a cell, in pixels.
    """
    rows, columns = list(dict.fromkeys(table["row"])), list(dict.fromkeys(table["column"]))
    base = alt.Chart(table).encode(
        x=alt.X("column:N", sort=columns, title=x_title, axis=alt.Axis(labelAngle=-40, labelLimit=220)),
        y=alt.Y("row:N", sort=rows, title=y_title, axis=alt.Axis(labelLimit=220)),
    )
    shades = base.mark_rect().encode(
        color=alt.Color("value:Q", title=value_title, scale=alt.Scale(scheme="greys", domainMin=0)),
        tooltip=["row:N", "column:N", alt.Tooltip("value:Q", format=".3f")],
    )
    layers = [shades]
    if numbers:
        middle = float(table["value"].max()) / 2
        layers.append(
            base.mark_text(fontSize=11).encode(
                text=alt.Text("value:Q", format=".2f"),
                color=alt.condition(f"datum.value > {middle}", alt.value("white"), alt.value("black")),
            )
        )
    chart = alt.layer(*layers)
    return _finished(chart, title, subtitle, description, width=cell * len(columns), height=cell * len(rows))


def layer_heatmap(table: LayerTable, *, title: str, x_title: str, y_title: str, description: str) -> alt.LayerChart:
    """A `repsim_utils.metrics.LayerTable` as a heat map; layers of the first model from bottom to top.

    Parameters
    ----------
    table : LayerTable
    title, x_title, y_title, description : str
    """
    rows = [
        {"row": a, "column": b, "value": float(value)}
        for a, values in reversed(list(zip(table.first, table.values, strict=True)))
        for b, value in zip(table.second, values, strict=True)
    ]
    texts: dict[str, Any] = {"x_title": x_title, "y_title": y_title, "title": title, "description": description}
    return heatmap(pd.DataFrame(rows), value_title=table.metric, numbers=len(rows) <= 150, **texts)


def _finished(chart: Any, title: str, subtitle: str, description: str, **size: int) -> Any:
    """Title, alternative text and readable axes, as all figures have them."""
    heading = alt.Title(title, anchor="start", subtitleColor="#444444", subtitle=subtitle or alt.Undefined)
    chart = chart.properties(title=heading, description=description, background="white", **size)
    return chart.configure_axis(labelFontSize=12, titleFontSize=12).configure_legend(labelFontSize=12, symbolOpacity=1)
