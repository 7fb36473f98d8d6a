"""What all figures have in common: a palette, marks, and how a figure is finished."""

from __future__ import annotations

from typing import Any

import altair as alt

# Okabe and Ito's palette: told apart by colour-blind readers, and in grey by shape.
BLACK, GRAY, ORANGE, BLUE = "#000000", "#777777", "#D55E00", "#0072B2"
RECORDED, PUBLISHED, MEASURED = "recorded (laptop)", "published", "this run"
SERIES = (BLACK, ORANGE, BLUE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", GRAY)
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-left", "triangle-right")
LAYERS = {RECORDED: (BLACK, "circle"), PUBLISHED: (ORANGE, "diamond"), MEASURED: (BLUE, "triangle")}
LIGHTER = {RECORDED: GRAY, PUBLISHED: "#E69F00", MEASURED: "#56B4E9"}  # every second curve of a source


def finished(chart: Any, title: str, subtitle: str, description: str, **size: int) -> Any:
    """Title, alternative text and readable axes, as all figures have them."""
    heading = alt.Title(title, anchor="start", subtitleColor="#444444", subtitle=subtitle or alt.Undefined)
    chart = chart.properties(title=heading, description=description, background="white", **size)
    return chart.configure_axis(labelFontSize=12, titleFontSize=12).configure_legend(labelFontSize=12, symbolOpacity=1)
