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

from repsim_utils.charts.style import BLACK, BLUE, ORANGE, finished
from repsim_utils.metrics import LayerTable
from repsim_utils.overlap import Split


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
            x=alt.X("sample:O", axis=alt.Axis(labelAngle=0), title=x_title),
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
    return finished(chart, title, subtitle, description, width=cell * len(columns), height=cell * len(rows))


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
