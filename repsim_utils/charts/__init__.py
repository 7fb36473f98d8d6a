"""The figures that chapters share, each with a title that states its finding, and alternative text."""

from repsim_utils.charts.curves import lines, sources, task_overlap, three_layers
from repsim_utils.charts.pictures import heatmap, layer_heatmap, picture_grid, split_picture
from repsim_utils.charts.points import against_chance, forest, pairs_and_seeds, plane, scatter
from repsim_utils.charts.style import BLACK, BLUE, GRAY, MEASURED, ORANGE, PUBLISHED, RECORDED, SERIES, SHAPES

__all__ = [
    "BLACK",
    "BLUE",
    "GRAY",
    "MEASURED",
    "ORANGE",
    "PUBLISHED",
    "RECORDED",
    "SERIES",
    "SHAPES",
    "lines",
    "sources",
    "task_overlap",
    "three_layers",
    "against_chance",
    "forest",
    "pairs_and_seeds",
    "plane",
    "scatter",
    "heatmap",
    "layer_heatmap",
    "picture_grid",
    "split_picture",
]
