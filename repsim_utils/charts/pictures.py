"""Small pictures, who is trained on what, and tables as shades."""

from __future__ import annotations

import base64
import io
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from repsim_utils.charts import style
from repsim_utils.charts.style import BLACK, BLUE, ORANGE, distinct, finished, told_apart
from repsim_utils.metrics import LayerTable
from repsim_utils.overlap import Split


def picture_grid(images: Tensor, rows: list[str], columns: list[str], *, size: int = 44, **heading: Any) -> alt.Chart:
    """Small pictures in a labelled grid.

    Parameters
    ----------
    images : Tensor
        uint8 (n, 3, h, w).
    rows, columns : list of str
        Labels of each picture's row and column, n each.
    size : int
        Edge of a picture in the figure, in pixels.
    **heading : str
        See the package.
    """
    table = pd.DataFrame({"row": rows, "column": columns, "url": [_data_url(image) for image in images]})
    n_rows, n_columns = table["row"].nunique(), table["column"].nunique()

    def axis(name: str) -> alt.Axis:
        angle = 0 if table[name].str.len().max() * 7 < size or name == "row" else -40
        return alt.Axis(title=None, domain=False, ticks=False, labelAngle=angle, labelFontSize=12)

    chart = alt.Chart(table).encode(
        x=alt.X("column:N", sort=distinct(columns), axis=axis("column")),
        y=alt.Y("row:N", sort=distinct(rows), axis=axis("row")),
        url="url:N",
    )
    chart = chart.mark_image(width=size - 3, height=size - 3).configure_view(strokeWidth=0)
    return finished(chart, **heading, width=size * n_columns, height=size * n_rows)


def _data_url(image: Tensor) -> str:
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    file = io.BytesIO()
    picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def split_picture(
    labels: NDArray[np.int64], split: Split, *, names: list[str], title: str, x_title: str = "image of the class"
) -> alt.Chart:
    """Who is trained on which sample: one mark a sample, one row a class.

    Parameters
    ----------
    labels : ndarray
        int (n,), class of each sample.
    split : Split
        Of samples, such as `repsim_utils.overlap.split_by_example` makes.
    names : list of str
        Name of each class.
    title, x_title : str
        See the package; the alternative text says how many samples there are of each kind.
    """
    samples = np.arange(len(labels))
    seen = np.isin(samples, split.first).astype(int) + 2 * np.isin(samples, split.second).astype(int)
    who = ("neither model", "first model only", "second model only", "both models")
    table = pd.DataFrame({"class": [names[label] for label in labels], "seen by": [who[i] for i in seen]})
    table["sample"] = table.groupby("class", sort=False).cumcount() + 1
    colors, shapes = ("#DDDDDD", ORANGE, BLUE, BLACK), ("circle", "triangle-left", "triangle-right", "square")
    color, shape = told_apart("seen by", list(who), colors, shapes, title="in the training set of")
    marks = alt.Chart(table).encode(
        x=alt.X("sample:O", axis=alt.Axis(labelAngle=0), title=x_title),
        y=alt.Y("class:N", sort=None, title=None),
        color=color,
        shape=shape,
        tooltip=["class:N", "sample:O", "seen by:N"],
    )
    counts = ", ".join(f"{n} samples {which}" for which, n in table["seen by"].value_counts().items())
    return finished(
        marks.mark_point(size=130, filled=True, opacity=1),
        title=title,
        description=f"{title}: {counts}.",
        width=24 * int(table["sample"].max()),
        height=24 * table["class"].nunique(),
    )


def heatmap(
    table: pd.DataFrame,
    *,
    x_title: str,
    y_title: str,
    value_title: str = "similarity",
    numbers: bool = True,
    cell: int = 44,
    **heading: Any,
) -> alt.LayerChart:
    """A table of values as shades, dark for large, with the numbers in the cells.

    Parameters
    ----------
    table : DataFrame
        Columns row, column and value.
    x_title, y_title, value_title, **heading : str
        See the package.
    numbers : bool
        Write the values into the cells.
    cell : int
        Edge of a cell, in pixels.
    """
    rows, columns = distinct(table["row"]), distinct(table["column"])
    labels: Any = {"labelLimit": 220, "labelOverlap": cell < 14}
    base = alt.Chart(table).encode(
        x=alt.X("column:N", sort=columns, title=x_title, axis=alt.Axis(labelAngle=-40 if numbers else -90, **labels)),
        y=alt.Y("row:N", sort=rows, title=y_title, axis=alt.Axis(**labels)),
    )
    shades = base.mark_rect().encode(
        color=alt.Color("value:Q", title=value_title, scale=alt.Scale(scheme="greys", domainMin=0)),
        tooltip=["row:N", "column:N", *style.numbers("value")],
    )
    middle = float(table["value"].max()) / 2
    written = (
        base.transform_filter("isValid(datum.value)")
        .mark_text(fontSize=11)
        .encode(
            text=alt.Text("value:Q", format=".2f"),
            color=alt.condition(f"datum.value > {middle}", alt.value("white"), alt.value("black")),
        )
    )
    chart = alt.layer(shades, written) if numbers else alt.layer(shades)
    return finished(chart, **heading, width=cell * len(columns), height=cell * len(rows))


def layer_heatmap(table: LayerTable, *, numbers: bool = True, **texts: Any) -> alt.LayerChart:
    """A `repsim_utils.metrics.LayerTable` as a heat map; layers of the first model from bottom to top.

    Parameters
    ----------
    table : LayerTable
    numbers : bool
        Write them into the cells, if these are no more than 150.
    **texts : str
        Title, x_title, y_title, description and subtitle, as of `heatmap`.
    """
    rows = [
        {"row": a, "column": b, "value": float(value)}
        for a, values in reversed(list(zip(table.first, table.values, strict=True)))
        for b, value in zip(table.second, values, strict=True)
    ]
    value_title = table.metric if table.pool == "mean" else f"{table.metric}, {table.pool}"
    return heatmap(pd.DataFrame(rows), value_title=value_title, numbers=numbers and len(rows) <= 150, **texts)
