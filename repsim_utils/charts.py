"""The few figures that every chapter uses."""

from __future__ import annotations

import base64
import io

import altair as alt
import pandas as pd
from PIL import Image
from torch import Tensor

from repsim_utils.analysis import mean_interval

# Okabe and Ito's palette: told apart by colour-blind readers, and in grey by shape.
BLACK, ORANGE, BLUE = "#000000", "#D55E00", "#0072B2"
RECORDED, PUBLISHED, MEASURED = "recorded (laptop)", "published", "this run"
_LAYERS = (RECORDED, PUBLISHED, MEASURED)


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
    domain = list(_LAYERS)
    base = alt.Chart(data).encode(
        x=alt.X("place:N", sort=list(x_labels.values()), title=x_title, axis=alt.Axis(labelAngle=0)),
        xOffset=alt.XOffset("source:N", sort=domain, scale=alt.Scale(domain=domain)),
        color=alt.Color("source:N", scale=alt.Scale(domain=domain, range=[BLACK, ORANGE, BLUE]), title=None),
        shape=alt.Shape("source:N", scale=alt.Scale(domain=domain, range=["circle", "diamond", "triangle"]), title=None),
    )
    numbers = [alt.Tooltip(f"{name}:Q", format=".3f") for name in ("mean", "low", "high")]
    bars = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2)
    points = base.mark_point(size=70, filled=True).encode(
        y=alt.Y("mean:Q", title=y_title, scale=alt.Scale(domain=[0, 1])), tooltip=["source:N", "pair:N", *numbers]
    )
    return (
        alt.layer(bars.encode(y=alt.Y("low:Q", title=y_title), y2="high:Q"), points)
        .properties(width=460, height=280, description=description, background="white")
        .properties(title=alt.Title(title, subtitle=subtitle, anchor="start", subtitleColor="#444444"))
        .configure_legend(orient="top", labelFontSize=12)
        .configure_axis(labelFontSize=12, titleFontSize=12)
    )


def task_overlap(recorded: pd.DataFrame, published: pd.DataFrame, measured: pd.DataFrame | None = None) -> alt.LayerChart:
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
    return three_layers(
        ours,
        theirs,
        now,
        title=f"The more of a task two models share, the more alike they are: CKA {', '.join(means)}",
        subtitle=[
            f"Recorded: mean of {ours['n'].min()} seeds with 95% interval. Published: mean ± standard deviation",
            f"of pairs (ResNet-18, {theirs['n'].min()} seeds). This run: one mark a pair." if now is not None
            else f"of pairs (ResNet-18, {theirs['n'].min()} seeds).",
        ],
        x_title="factors that both models predict (level of task overlap)",
        y_title="linear CKA on held-out images",
        x_labels={1: "none (1)", 2: "one (2)", 3: "all three (3)"},
        description=f"Linear CKA of pairs of models that share no, one and all three factors: recorded {', '.join(means)}; "
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
