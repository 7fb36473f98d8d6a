"""Charts are valid Vega-Lite, and their words are true to the tables."""

import base64
import io
import re

import altair as alt
import numpy as np
import pandas as pd
import pytest
import torch
import vl_convert
from PIL import Image

from repsim_utils import charts
from repsim_utils.metrics import LayerTable
from repsim_utils.overlap import split_by_example
from repsim_utils.published import published


def some_results(n_seeds=4):
    pairs = {1: ["a | b"], 2: ["a+b | a+c", "a+b | b+c", "a+c | b+c"], 3: ["a+b+c | a+b+c"]}
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        [
            {"overlap": level, "pair": pair, "seed": seed, "metric": metric, "value": rng.uniform(0, 0.3) + level / 5}
            for level, names in pairs.items()
            for pair in names
            for seed in range(n_seeds)
            for metric in ("cka", "unbiased_cka")
        ]
    )


def texts(spec):
    title = spec["title"]
    return title if isinstance(title, str) else title["text"]


def valid(chart):
    """The specification, after it was held against the schema and its words were looked at."""
    spec = chart.to_dict()
    assert spec["$schema"].startswith("https://vega.github.io/schema/vega-lite/")
    assert len(spec["description"]) > 20 and len(texts(spec)) > 10
    assert "nan" not in spec["description"] and "nan" not in texts(spec)
    return spec


def rows_of(spec):
    return [row for rows in spec["datasets"].values() for row in rows]


@pytest.mark.parametrize("measured", [None, some_results(1)])
def test_task_overlap(measured):
    recorded = some_results()
    spec = valid(charts.task_overlap(recorded, published("task_only"), measured))
    cka = recorded[recorded.metric == "cka"]
    means = [f"{cka.value[cka.overlap == level].mean():.2f}" for level in (1, 2, 3)]
    assert re.findall(r"\d\.\d\d", texts(spec)) == means
    assert re.findall(r"\d\.\d\d", spec["description"]) == [*means, "0.00", "0.34", "0.64"]
    assert "mean of 4 seeds" in spec["title"]["subtitle"][0]
    sources = {row["source"] for row in rows_of(spec)}
    assert sources == {charts.RECORDED, charts.PUBLISHED} | (set() if measured is None else {charts.MEASURED})
    assert len(rows_of(spec)) == 6 + (0 if measured is None else 5)  # one metric, and of this run one mark a pair


def test_task_overlap_with_one_seed_draws_no_interval():
    spec = valid(charts.task_overlap(some_results(1), published("task_only")))
    recorded = [row for row in rows_of(spec) if row["source"] == charts.RECORDED]
    assert len(recorded) == 3 and all(row["low"] is None and row["high"] is None for row in recorded)


def test_three_layers_are_told_apart_by_color_and_by_shape():
    spec = valid(charts.task_overlap(some_results(), published("task_only"), some_results()))
    encodings = [layer["encoding"] for layer in spec["layer"]]
    for channel in ("color", "shape"):
        scales = [encoding[channel]["scale"] for encoding in encodings if channel in encoding]
        assert scales  # a rule has no shape
        for scale in scales:
            assert scale["domain"] == [charts.RECORDED, charts.PUBLISHED, charts.MEASURED]
            assert len(set(scale["range"])) == 3


def test_pairs_and_seeds():
    recorded = some_results()
    spec = valid(charts.pairs_and_seeds(recorded))
    cka = recorded[recorded.metric == "cka"]
    ranges = [cka.value[cka.pair == pair].max() - cka.value[cka.pair == pair].min() for pair in cka.pair.unique()]
    assert f"{max(ranges):.2f}" in texts(spec)
    assert "5 pairs" in spec["description"] and f"{min(ranges):.3f} to {max(ranges):.3f}" in spec["description"]
    assert sorted(row["value"] for row in rows_of(spec)) == pytest.approx(sorted(cka.value))


def test_picture_grid_keeps_every_pixel():
    images = torch.randint(0, 256, (6, 3, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows, columns = ["top"] * 3 + ["bottom"] * 3, ["a", "b", "c"] * 2
    spec = valid(
        charts.picture_grid(images, rows, columns, title="Six small pictures", description="Six squares of noise.")
    )
    for row, image in zip(rows_of(spec), images, strict=True):
        picture = Image.open(io.BytesIO(base64.b64decode(row["url"].removeprefix("data:image/png;base64,"))))
        np.testing.assert_array_equal(np.asarray(picture)[::2, ::2], image.permute(1, 2, 0))
    assert [row["row"] for row in rows_of(spec)] == rows and [row["column"] for row in rows_of(spec)] == columns


@pytest.mark.parametrize("overlap", [0, 0.5, 1])
def test_split_picture_counts_the_samples(overlap):
    labels = np.repeat([0, 1], 8)
    split = split_by_example(labels, overlap, seed=0)
    spec = valid(charts.split_picture(labels, split, names=["cat", "dog"], title="Half of each class is shared"))
    seen = [row["seen by"] for row in rows_of(spec)]
    first, second = set(split.first), set(split.second)
    expected = {
        "both models": len(first & second),
        "first model only": len(first - second),
        "second model only": len(second - first),
        "neither model": 16 - len(first | second),
    }
    assert {who: seen.count(who) for who in expected} == expected
    counted = {who: int(n) for n, who in re.findall(r"(\d+) samples ([a-z ]+)", spec["description"])}
    assert counted == {who: n for who, n in expected.items() if n}


def test_charts_need_no_network(tmp_path):
    """The renderer draws them as they stand: no address in the data."""
    chart = charts.task_overlap(some_results(), published("task_only"))
    assert isinstance(chart, alt.LayerChart) and "http" not in chart.to_json().replace(chart.to_dict()["$schema"], "")
    chart.save(str(tmp_path / "figure.svg"))
    assert "<svg" in (tmp_path / "figure.svg").read_text()


def test_lines_have_a_bar_for_each_point_where_the_table_has_intervals():
    table = pd.DataFrame({"n": [1, 2, 1, 2], "v": [0.1, 0.2, 0.3, 0.4], "m": ["a", "a", "b", "b"]})
    options = {
        "title": "A title of some length",
        "x_title": "X",
        "y_title": "Y",
        "description": "What is to be seen here",
    }
    spec = valid(charts.lines(table, x="n", y="v", by="m", **options))
    assert [layer["mark"]["type"] for layer in spec["layer"]] == ["line", "point"]
    assert "shape" in spec["layer"][1]["encoding"]
    table = table.assign(low=table.v - 0.1, high=table.v + 0.1)
    spec = valid(charts.lines(table, x="n", y="v", by="m", log_x=True, ticks=[1, 2], **options))
    assert [layer["mark"]["type"] for layer in spec["layer"]] == ["rule", "line", "point"]


def test_plane_draws_points_and_links():
    points = pd.DataFrame({"x": [0, 1], "y": [1, 0], "kind": ["a", "b"], "model": ["first", "second"]})
    links = pd.DataFrame({"x": [0], "y": [0], "x2": [1], "y2": [1], "model": ["first"]})
    words = {"title": "A title of some length", "description": "What is to be seen here"}
    spec = valid(charts.plane(points, by="kind", panel="model", links=links, **words))
    assert [row["part"] for row in rows_of(spec)] == ["point", "point", "link"]


def test_layer_heatmap_has_a_cell_for_each_pair_of_layers_first_layer_at_the_bottom():
    table = LayerTable(("a", "b"), ("c", "d", "e"), np.arange(6.0).reshape(2, 3) / 6, "cka")
    words = {"title": "A title of some length", "description": "What is to be seen here"}
    cells = rows_of(valid(charts.layer_heatmap(table, x_title="X", y_title="Y", **words)))
    assert [(row["row"], row["column"]) for row in cells[:3]] == [("b", "c"), ("b", "d"), ("b", "e")]
    assert {(row["row"], row["column"]): row["value"] for row in cells}["a", "e"] == pytest.approx(2 / 6)
    assert "cka, positions" not in str(charts.layer_heatmap(table, x_title="X", y_title="Y", **words).to_dict())


def test_layer_heatmap_leaves_pairs_that_are_not_compared_empty():
    values = np.array([[0.5, np.nan], [np.nan, 0.25]])
    words = {
        "title": "A title of some length",
        "description": "What is to be seen here",
        "x_title": "X",
        "y_title": "Y",
    }
    spec = valid(charts.layer_heatmap(LayerTable(("a", "b"), ("c", "d"), values, "cka", "positions"), **words))
    assert sum(row["value"] is None for row in rows_of(spec)) == 2 and "cka, positions" in str(spec)
    written = vl_convert.vegalite_to_svg(spec)
    assert "0.50" in written and "0.25" in written and "null" not in written and "NaN" not in written


def test_against_chance_counts_every_shuffle_and_draws_every_line():
    null = np.random.default_rng(0).normal(size=200)
    words = {"title": "A title of some length", "x_title": "X", "description": "What there is to be seen"}
    rows = rows_of(valid(charts.against_chance(null, {"observed": 3.0, "threshold": 2.0}, **words)))
    assert sum(row.get("count", 0) for row in rows) == 200
    assert [(row["what"], row["at"]) for row in rows if "what" in row] == [("observed", 3), ("threshold", 2)]


def test_sources_give_every_curve_a_color_of_its_source_and_a_shape_of_its_own():
    ours = pd.DataFrame({"overlap": [0, 1, 0], "mean": [0.1, 0.2, 0.3], "low": 0.0, "series": ["a", "a", "b"]})
    theirs = pd.DataFrame({"overlap": [0, 1], "mean": [0.4, 0.5], "series": "a"})
    table, styles = charts.sources(ours, theirs, None)
    assert list(styles) == ["recorded (laptop): a", "recorded (laptop): b", "published: a"]
    assert [color for color, _ in styles.values()] == [charts.BLACK, charts.GRAY, charts.ORANGE]
    assert styles["recorded (laptop): a"][1] != styles["recorded (laptop): b"][1]
    assert list(table["curve"].map(table.groupby("curve").size())) == [2, 2, 1, 2, 2] and len(table) == 5
    words = {"x_title": "x", "y_title": "y", "title": "two sources", "description": "recorded and published curves"}
    spec = valid(charts.lines(table, x="overlap", y="mean", by="curve", styles=styles, **words))
    scale = spec["layer"][1]["encoding"]["color"]["scale"]
    assert dict(zip(scale["domain"], scale["range"], strict=True)) == {
        name: color for name, (color, _) in styles.items()
    }


def test_lines_in_panels():
    table = pd.DataFrame({"x": [0, 1] * 2, "y": [0.1, 0.2, 0.3, 0.4], "by": "one", "which": ["b", "b", "a", "a"]})
    words = {
        "x_title": "x",
        "y_title": "y",
        "title": "one curve in two panels",
        "description": "one curve in each of two panels",
    }
    spec = valid(charts.lines(table, x="x", y="y", by="by", panel="which", **words))
    assert spec["facet"]["field"] == "which" and spec["facet"]["sort"] == ["b", "a"] and spec["columns"] == 2


TEXTS = {"title": "A title of some length", "x_title": "X", "description": "What is to be seen here"}


def test_scatter_has_one_mark_a_row():
    table = pd.DataFrame({"a": [0.1, 0.2, 0.3], "b": [1.0, 2, 3], "o": [0.2, 0.0, 0.2], "p": ["left", "left", "right"]})
    chart = charts.scatter(table, x="a", y="b", color="o", panel="p", y_title="Y", color_title="O", **TEXTS)
    spec = valid(chart)
    assert rows_of(spec) == table[["a", "b", "o", "p"]].to_dict("records")
    assert spec["spec"]["encoding"]["color"]["scale"]["domain"] == [0.0, 0.2]
    assert spec["facet"]["sort"] == ["left", "right"]


def test_forest_has_a_point_and_a_bar_for_each_estimate_and_a_line_at_zero():
    table = pd.DataFrame({"r": ["b", "a"], "k": ["k1", "k2"], "p": ["x", "x"], "estimate": [0.1, 2.0]})
    table = table.assign(low=[-0.1, 1.5], high=[0.3, 2.5])
    spec = valid(charts.forest(table, row="r", by="k", panel="p", domain=(-1, 1), **TEXTS))
    zero, bars, points = spec["spec"]["layer"]
    assert (zero["mark"]["type"], bars["mark"]["type"], points["mark"]["type"]) == ("rule", "rule", "point")
    assert zero["encoding"]["x"]["datum"] == 0 and bars["encoding"]["x2"]["field"] == "high"
    assert bars["mark"]["clip"] and points["encoding"]["x"]["scale"]["domain"] == [-1, 1]
    assert points["encoding"]["y"]["sort"] == ["b", "a"]
    assert [row["estimate"] for row in rows_of(spec)] == [0.1, 2.0]
