"""A comparison as one page that needs no network: the finding, the numbers, the layers, and what to make of them."""

from __future__ import annotations

import html
import json
import shlex
import sys
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd

from repsim_utils import RepsimError, __version__, charts, files
from repsim_utils.comparison import Comparison, LayerComparison

PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body {font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
 color: #111; background: #fff}
h1 {font-size: 1.5rem; line-height: 1.3; overflow-wrap: anywhere} h2 {font-size: 1.15rem; margin-top: 2rem}
.wide {overflow-x: auto} table {border-collapse: collapse} th, td {padding: .25rem .75rem; text-align: right}
th:first-child, td:first-child {text-align: left} tr {border-bottom: 1px solid #ccc} code {overflow-wrap: anywhere}
</style></head><body>
<h1>$title</h1>
<p>$about</p>
<div class="wide">$table</div>
$left_out
$figures
<h2>How to read this</h2>
<ul>$reading</ul>
<p><small>repsim $version: <code>$command</code></small></p>
<script>$library</script>
<script>$draw</script>
</body></html>
""")
POOLED = {
    "mean": " Maps and tokens are averaged over positions.",
    "flatten": " Features of all positions are side by side.",
}
READING = {
    "low": "<b>low, high</b>: a 95% interval over the samples (jackknife), for these two models, not for others.",
    "chance": "<b>chance</b>, <b>threshold</b>: the mean, and what 95% stay below, when samples are matched at random.",
    "p": "<b>p</b>: the share of random matchings that reach the value.",
    "calibrated": "<b>calibrated</b>: how far the value lies beyond the threshold, from 0 to 1.",
    "above_chance": "<b>above_chance</b>: how far it lies beyond the mean of random matchings.",
    "q": "<b>q</b>: p as a false-discovery rate over all pairs.",
    "untrained": "<b>untrained</b>: two networks of these shapes with random weights. Training has not made this.",
}


def write(made: Comparison, path: Path) -> None:
    """Write a comparison as a page, whole or not at all.

    Raises
    ------
    RepsimError
        If the library that draws is not installed.
    OSError
        If the file cannot be written.
    """
    try:
        import vl_convert
    except ImportError:
        raise RepsimError("a page needs vl-convert-python: pip install vl-convert-python") from None
    figures = {f"figure{i}": chart.to_dict() for i, chart in enumerate(_charts(made))}
    draw = "".join(f"vegaEmbed('#{name}', {_script(figure)}, {{actions: false}});" for name, figure in figures.items())
    table = made.table()
    left_out = "".join(f"<li>{html.escape(line)}</li>" for line in made.left_out())
    filled = PAGE.substitute(
        title=html.escape(finding(made)),
        about=html.escape(_about(made)),
        table=table.to_html(index=False, float_format="{:.3f}".format, na_rep="–", border=0),
        left_out=f"<h2>What could not be computed</h2><ul>{left_out}</ul>" if left_out else "",
        figures="".join(f'<div class="wide"><div id="{name}"></div></div>' for name in figures),
        reading="".join(f"<li>{text}</li>" for column, text in READING.items() if column in table),
        version=__version__,
        command=html.escape(shlex.join(["repsim", *sys.argv[1:]])),
        library=vl_convert.javascript_bundle() if figures else "",  # type: ignore[call-arg]
        draw=draw,
    )
    files.write(path, filled.encode())


def check_name(path: Path) -> None:
    """Refuse a name under which no page can be written, before anything is computed."""
    if path.is_dir():
        raise ValueError(f"{path}: this is a folder; name a file for the page")
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{path}: let the name of the page end in .html")


def finding(made: Comparison) -> str:
    """What the comparison shows, in a sentence."""
    row = next(row for row in made.rows if row["value"] == row["value"])
    if made.many:
        above = sum(row.get("q_value", 1) <= 0.05 for row in made.rows)
        return (
            f"{above} of {len(made.rows)} pairs are more alike than chance ({row['metric']}, false-discovery rate 5%)"
        )
    text = f"{' and '.join(one.source for one in made.several)}: {row['metric']} is {row['value']:.2f}"
    if "p_value" in row:
        beyond = row["value"] > row["null_quantile"]
        text += f", {'more' if beyond else 'no more'} than chance gives"
        text += f" ({row['null_mean']:.2f}, p = {row['p_value']:.2g})"
    if "untrained" in row and row["untrained"] == row["untrained"]:
        text += f"; untrained networks of these shapes have {row['untrained']:.2f}"
    return text


def _about(made: Comparison) -> str:
    first = made.several[0]
    probe = next((f" of {one.about['probe']}" for one in made.several if "probe" in one.about), "")
    prepared = "as they are" if made.protocol == "as they are" else "clamped, rows of length one (as in the paper)"
    pooled = "".join(POOLED.get(pool, "") for pool in sorted({one.about.get("pool", "") for one in made.several}))
    each = "; ".join(f"{one.source}: {one.output.shape[1]} features{_weights(one)}" for one in made.several)
    return f"{len(first)} samples{probe}, features {prepared}.{pooled} {each}."


def _weights(one: Any) -> str:
    return f", weights {one.about['weights']}" if "weights" in one.about else ""


def _charts(made: Comparison) -> list[Any]:
    if made.many:
        matrix = made.matrix()
        rows = [{"row": a, "column": b, "value": matrix.loc[a, b]} for a in matrix.index for b in matrix.columns]
        chart = charts.heatmap(
            pd.DataFrame(rows),
            x_title="",
            y_title="",
            value_title=made.rows[0]["metric"],
            title="Models that are alike are beside one another",
            description="Similarity of every pair of models",
        )
        return [chart]
    found = []
    for layers, who in ((made.layers, ""), (made.control, "untrained ")):
        if layers is not None:
            names = [f"{who}{one.source}" for one in made.several]
            found += [_heatmap(layers, names, "value"), *([_heatmap(layers, names, "calibrated")] if not who else [])]
    return found


def _heatmap(layers: LayerComparison, names: list[str], column: str) -> Any:
    """Layers of the first model from bottom to top, of the second from left to right."""
    table = layers.as_table().rename(columns={"first": "row", "second": "column"}, errors="raise")
    table["value"] = table[column]
    table = pd.concat([rows for _, rows in table.groupby("row", sort=False)][::-1])
    best = layers.scores.best
    title = f"Most alike: {' and '.join(layers.best)}, {best.value:.2f}"
    subtitle = f"the best pair by chance has {best.null_mean:.2f}, p = {best.p_value:.2g}"
    if column == "calibrated":
        title, subtitle = "Beyond chance", "0: within what 95% of random matchings give; 1: the same"
    elif "untrained" in names[0]:
        subtitle = "with random weights"
    return charts.heatmap(
        table[["row", "column", "value"]],
        x_title=names[1],
        y_title=names[0],
        value_title=layers.metric,
        numbers=len(table) <= 150,
        cell=max(12, min(44, 560 // max(len(layers.first), len(layers.second)))),
        title=title,
        subtitle=subtitle,
        description=f"{layers.metric} of layers of {names[0]} and {names[1]}. {title}",
    )


def _script(value: Any) -> str:
    """JSON that may stand within a script of a page."""
    return json.dumps(value).replace("</", "<\\/").replace("<!--", "<\\!--")
