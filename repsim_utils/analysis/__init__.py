"""Statistics over trained pairs: the seed is the block.

Pairs of one seed share their images, their classes and often a model, so they are not independent. Every interval here
is over *units* (seeds). `units` has means, slopes and paired differences; `factorial` has two causes that are crossed;
`sizes` says how large an effect is beside others; `relations` has what relates two measurements, and first takes the
mean of each unit out of both.

Recorded tables have one row a measurement. `trend` and its like take them as they are, filtered; for the relations,
give each measurement a column::

    table = recorded("dataset_overlap_vision")
    table = table[(table.architecture == "small_resnet") & (table.probe == "color_shape_digit")]
    trend(table[table.metric == "cka"])
    wide = table.pivot(index=["seed", "overlap"], columns="metric", values="value").reset_index()
    correlation(wide, "cka", "mutual_knn", given=["overlap"])

What all functions have in common: `table` is a DataFrame, of which rows with a missing value are left out; `x`, `y`,
`unit`, `given` and `by` (which tell groups apart) name columns of it; `level` is the coverage of intervals, between 0
and 1. A ValueError says which column is missing, or what else is wrong. Results have columns `by`, low and high (the
interval) and n, the number of units; with one unit there is no interval, and its ends are missing (NaN).
"""

from repsim_utils.analysis.factorial import SCALES, crossed, on_scale
from repsim_utils.analysis.relations import correlation, mediation, prediction
from repsim_utils.analysis.sizes import effects
from repsim_utils.analysis.units import (
    Trend,
    demeaned,
    discoveries,
    mean_interval,
    paired,
    realised,
    sign_flip,
    slopes,
    trend,
    trends,
)

__all__ = [
    "SCALES", "Trend", "correlation", "crossed", "demeaned", "discoveries", "effects", "mean_interval", "mediation",
    "on_scale", "paired", "prediction", "realised", "sign_flip", "slopes", "trend", "trends",
]  # fmt: skip
