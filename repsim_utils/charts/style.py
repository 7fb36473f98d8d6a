"""What all figures have in common: a palette, marks, and how a figure is finished."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt

# Okabe and Ito's palette: told apart by color-blind readers, and in grey by shape.
BLACK, GRAY, ORANGE, BLUE = "#000000", "#777777", "#D55E00", "#0072B2"
RECORDED, PUBLISHED, MEASURED = "recorded (laptop)", "published", "this run"
SERIES = (BLACK, ORANGE, BLUE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", GRAY)
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-left", "triangle-right")
LAYERS = {RECORDED: (BLACK, "circle"), PUBLISHED: (ORANGE, "diamond"), MEASURED: (BLUE, "triangle")}
LIGHTER = {RECORDED: GRAY, PUBLISHED: "#E69F00", MEASURED: "#56B4E9"}  # every second curve of a source


def distinct(values: Iterable[Any]) -> list[Any]:
    """Each value once, in order of appearance."""
    return list(dict.fromkeys(values))


def told_apart(
    column: str, names: list[Any], colors: Sequence[str] = SERIES, shapes: Sequence[str] = SHAPES, **options: Any
) -> tuple[alt.Color, alt.Shape]:
    """Color and shape of the marks by a column, one of each for every name; `options` are those of both channels."""
    options = {"title": None, "sort": names} | options
    color, shape = (alt.Scale(domain=names, range=list(some[: len(names)])) for some in (colors, shapes))
    return alt.Color(f"{column}:N", scale=color, **options), alt.Shape(f"{column}:N", scale=shape, **options)


def numbers(*columns: str) -> list[alt.Tooltip]:
    """What is shown on hovering, to three decimals."""
    return [alt.Tooltip(f"{column}:Q", format=".3f") for column in columns]


def panels(chart: Any, column: str, values: Iterable[Any], columns: int = 2) -> Any:
    """One panel for each value of a column, in order of appearance, so many in a row."""
    header = alt.Header(labelFontSize=12)
    return chart.facet(alt.Facet(f"{column}:N", sort=distinct(values), title=None, header=header), columns=columns)


def finished(chart: Any, *, title: str, description: str, subtitle: str | list[str] = "", **size: int) -> Any:
    """Title, alternative text and readable axes, as all figures have them."""
    heading = alt.Title(title, anchor="start", subtitleColor="#444444", subtitle=subtitle or alt.Undefined)
    chart = chart.properties(title=heading, description=description, background="white", **size)
    return chart.configure_axis(labelFontSize=12, titleFontSize=12).configure_legend(labelFontSize=12, symbolOpacity=1)
