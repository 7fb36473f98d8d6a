"""Statistics over trained pairs: the seed is the block.

Pairs of one seed share their images, their classes and often a model, so they are not independent. Every interval here
is over *units* (seeds). `units` has means, slopes and paired differences; `relations` has what relates two
measurements, and first takes the mean of each unit out of both.
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
