"""Statistics over trained pairs: the seed is the block.

Pairs of one seed share their images, their classes and often a model, so they are not independent. Every interval here
is over *units* (seeds). `units` has means, slopes and paired differences; `relations` has what relates two
measurements, and first takes the mean of each unit out of both.

Recorded tables have one row a measurement. `trend` and its like take them as they are, filtered; for the relations,
give each measurement a column::

    table = recorded("dataset_overlap_vision")
    table = table[(table.architecture == "small_resnet") & (table.probe == "color_shape_digit")]
    trend(table[table.metric == "cka"])
    wide = table.pivot(index=["seed", "overlap"], columns="metric", values="value").reset_index()
    correlation(wide, "cka", "mutual_knn", given=["overlap"])
"""

from repsim_utils.analysis.relations import correlation, mediation, prediction
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
    "Trend", "correlation", "demeaned", "discoveries", "mean_interval", "mediation", "paired", "prediction", "realised",
    "sign_flip", "slopes", "trend", "trends",
]  # fmt: skip
