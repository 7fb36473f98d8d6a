"""Every metric by name, and several at once under one protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from repsim_utils.metrics import kernel, neighbors, shape, subspace
from repsim_utils.metrics.inputs import as_pair
from repsim_utils.metrics.kernel import Linear, Rbf
from repsim_utils.metrics.neighbors import Neighbors
from repsim_utils.metrics.shape import Geometry, Shape
from repsim_utils.metrics.subspace import Subspace


@dataclass(frozen=True)
class Metric:
    """A metric in two steps: what is made of each representation alone, and the comparison.

    Attributes
    ----------
    prepare : callable
        From a float64 (n, d) tensor and the options to a state with a method ``permuted(order)``.
    score : callable
        From two states to a float.
    least_rows : int
        Rows that it needs.
    options : dict
        What `prepare` takes, with default values.
    largest : float or str
        The largest value, or the option that it equals.
    """

    prepare: Callable[..., Any]
    score: Callable[[Any, Any], float]
    least_rows: int = 2
    options: Mapping[str, Any] = field(default_factory=dict)
    largest: float | str = 1.0

    def filled(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All options, those given in place of the defaults; of an unknown one, a ValueError."""
        unknown = sorted(set(given) - set(self.options))
        if unknown:
            raise ValueError(
                f"unknown option {', '.join(unknown)}; this metric takes {', '.join(self.options) or 'none'}"
            )
        return {**self.options, **given}


def lcs_knn_published_score(a: Neighbors, b: Neighbors) -> float:
    return neighbors.lcs_knn_score(a, b) * a.index.shape[1]


_K, _TEN = {"k": 10}, {"n_components": 10}
METRICS: dict[str, Metric] = {
    "cka": Metric(Linear.of, kernel.cka_score),
    "unbiased_cka": Metric(Linear.of, kernel.unbiased_cka_score, 4),
    "rbf_cka": Metric(Rbf.of, kernel.rbf_cka_score, 2, {"sigma": 1.0}),
    "unbiased_rbf_cka": Metric(Rbf.of, kernel.unbiased_rbf_cka_score, 4, {"sigma": 1.0}),
    "cknna": Metric(Neighbors.of, neighbors.cknna_score, 2, _K),
    "cknna_published": Metric(Neighbors.of, neighbors.cknna_published_score, 4, _K),
    "mutual_knn": Metric(Neighbors.of, neighbors.mutual_knn_score, 2, _K),
    "cycle_knn": Metric(Neighbors.of, neighbors.cycle_knn_score, 2, _K),
    "lcs_knn": Metric(Neighbors.of, neighbors.lcs_knn_score, 2, _K),
    "lcs_knn_published": Metric(Neighbors.of, lcs_knn_published_score, 2, _K, largest="k"),
    "edit_distance_knn": Metric(Neighbors.of, neighbors.edit_distance_knn_score, 2, _K),
    "cca": Metric(Subspace.of, subspace.cca_score, 3),
    "svcca": Metric(Subspace.of, subspace.cca_score, 3, _TEN),
    "svcca_published": Metric(Subspace.randomized, subspace.cca_score, 3, _TEN),
    "pwcca": Metric(Subspace.of, subspace.pwcca_score, 3),
    "procrustes": Metric(Shape.of, shape.procrustes_score),
    "rsa": Metric(Geometry.of, shape.rsa_score, 3, {"dissimilarity": "correlation", "compare": "spearman"}),
}
PAPER = ("cka", "unbiased_cka", "cknna", "svcca", "mutual_knn", "cycle_knn", "lcs_knn", "edit_distance_knn")
PUBLISHED = {"cknna": "cknna_published", "lcs_knn": "lcs_knn_published", "svcca": "svcca_published"}


def find(name: str) -> Metric:
    """The metric of this name, or a ValueError that lists them."""
    if name not in METRICS:
        raise ValueError(f"unknown metric {name}; choose from {', '.join(METRICS)}")
    return METRICS[name]


def similarity(
    x: Any, y: Any, names: Sequence[str] = PAPER, *, k: int = 10, preprocess: str | None = "platonic"
) -> dict[str, float]:
    """Several metrics of one pair of representations; kernels and lists of neighbours are made once.

    Parameters
    ----------
    x, y : (n, d1) and (n, d2) array or Tensor
        Representations of the same n samples, rows matched.
    names : sequence of str
        Metrics, from `METRICS`. By default the paper's eight; `PUBLISHED` names, for three of them, the variant that
        published tables were made with.
    k : int
        Neighbours, for the metrics that look at neighbours.
    preprocess : {"platonic", None}
        The paper's protocol (see `platonic`), or the features as they are.

    Returns
    -------
    dict
        Value of each metric by name, in the order of `names`.

    Raises
    ------
    ValueError
        If a metric or protocol is unknown, or the input is malformed.
    """
    wanted = {name: find(name) for name in ([names] if isinstance(names, str) else names)}
    least_rows = max((metric.least_rows for metric in wanted.values()), default=2)
    x, y = as_pair(x, y, least_rows=least_rows, preprocess=preprocess)
    values: dict[str, float] = {}
    for shared in sharing(wanted):
        metric = wanted[shared[0]]
        options = {**metric.options, **({"k": k} if "k" in metric.options else {})}
        first, second = metric.prepare(x, **options), metric.prepare(y, **options)
        values |= {name: wanted[name].score(first, second) for name in shared}
        del first, second  # before the next ones are made
    return {name: values[name] for name in wanted}


def sharing(wanted: Mapping[str, Metric]) -> list[list[str]]:
    """Names of metrics that are prepared alike, together."""
    together: dict[Any, list[str]] = {}
    for name, metric in wanted.items():
        together.setdefault((metric.prepare, *metric.options.items()), []).append(name)
    return list(together.values())


def prepared(name: str, x: Tensor, y: Tensor, options: Mapping[str, Any]) -> tuple[Any, Any]:
    """States of both representations for one metric."""
    metric = find(name)
    filled = metric.filled(options)
    return metric.prepare(x, **filled), metric.prepare(y, **filled)
