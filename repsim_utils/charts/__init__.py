"""The figures that chapters share, each with a title that states its finding, and alternative text.

What their functions have in common:

- `title`, `subtitle` and `description` (together ``**heading``): the finding, a line below it that says what is shown,
  and the alternative text, which tells those who do not see the figure what it shows. The subtitle may be left out.
- `x_title`, `y_title` and the like: what the axes are called.
- `by`, `panel` and others that name columns of `table`: what tells marks and panels apart. All come in order of
  appearance, panels two in a row.
"""

from repsim_utils.charts.curves import lines, sources, task_overlap
from repsim_utils.charts.pictures import heatmap, layer_heatmap, picture_grid, split_picture
from repsim_utils.charts.points import against_chance, chooser, forest, pairs_and_seeds, plane, scatter
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
    "against_chance",
    "chooser",
    "forest",
    "heatmap",
    "layer_heatmap",
    "lines",
    "pairs_and_seeds",
    "picture_grid",
    "plane",
    "scatter",
    "sources",
    "split_picture",
    "task_overlap",
]
