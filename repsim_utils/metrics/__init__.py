"""Similarity of two representations of the same probe. Depends on nothing else of this package.

Every metric takes x and y, arrays or Tensors of (n, d1) and (n, d2): representations of the same n samples, rows
matched. It computes in float64, on the device of x, and changes neither. A ValueError says what is wrong with an
argument: one that is not a finite matrix, that has other or too few rows or does not vary over them (see
`inputs.as_pair`), or an option that is not what its description allows.

What takes a metric by `name` finds it in `METRICS`, with its options (such as ``k``) as ``**options``. `preprocess` is
"platonic", the paper's protocol (see `platonic`), or None: the features as they are.
"""

from repsim_utils.metrics.calibration import Calibrated, CalibratedLayers, calibrate, calibrate_best, calibrate_layers
from repsim_utils.metrics.inputs import platonic
from repsim_utils.metrics.intervals import Interval, interval
from repsim_utils.metrics.kernel import cka
from repsim_utils.metrics.layers import LayerTable, layer_features, layerwise
from repsim_utils.metrics.neighbors import cknna, cycle_knn, edit_distance_knn, lcs_knn, mutual_knn
from repsim_utils.metrics.predictions import symmetric_kl
from repsim_utils.metrics.reporting import report
from repsim_utils.metrics.shape import procrustes, rsa
from repsim_utils.metrics.streaming import StreamingCKA
from repsim_utils.metrics.subspace import cca, pwcca, svcca
from repsim_utils.metrics.suite import METRICS, PAPER, PUBLISHED, similarity
from repsim_utils.metrics.updates import update_cosine, update_subspaces

VERSION = 1  # raised when the same input gives another result

__all__ = [
    "METRICS",
    "PAPER",
    "PUBLISHED",
    "Calibrated",
    "CalibratedLayers",
    "Interval",
    "LayerTable",
    "StreamingCKA",
    "calibrate",
    "calibrate_best",
    "calibrate_layers",
    "cca",
    "cka",
    "cknna",
    "cycle_knn",
    "edit_distance_knn",
    "interval",
    "layer_features",
    "layerwise",
    "lcs_knn",
    "mutual_knn",
    "platonic",
    "procrustes",
    "pwcca",
    "report",
    "rsa",
    "similarity",
    "svcca",
    "symmetric_kl",
    "update_cosine",
    "update_subspaces",
]
