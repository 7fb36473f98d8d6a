"""Every metric by name, and several at once under one protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from repsim_utils.metrics import kernel, neighbors, shape, subspace
from repsim_utils.metrics.inputs import as_pair
from repsim_utils.metrics.kernel import Gram, Linear, Rbf
from repsim_utils.metrics.neighbors import Neighbors
from repsim_utils.metrics.shape import Geometry, Shape
from repsim_utils.metrics.subspace import Subspace


@dataclass(frozen=True)
class Metric:
    """A metric in two steps: what is made of each representation alone, and the comparison.

    Called with two representations, and options if wanted, it gives their score.

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
    gram : callable, optional
        From batches (b, d) with many features to a state that takes no more than n × n numbers.
    """

    prepare: Callable[..., Any]
    score: Callable[[Any, Any], float]
    least_rows: int = 2
    options: Mapping[str, Any] = field(default_factory=dict)
    largest: float | str = 1.0
    gram: Callable[[Sequence[Tensor]], Any] | None = None

    def __call__(self, x: Any, y: Any, *, preprocess: str | None = None, **options: Any) -> float:
        """The score of two representations; by default the features are left as they are."""
        pair = as_pair(x, y, least_rows=self.least_rows, preprocess=preprocess)
        return Prepared.of(pair, [self], self.filled(options)).scores()[0]

    def filled(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All options, those given in place of the defaults; of an unknown one, a ValueError."""
        if unknown := sorted(set(given) - set(self.options)):
            raise ValueError(
                f"unknown option {', '.join(unknown)}; this metric takes {', '.join(self.options) or 'none'}"
            )
        return {**self.options, **given}


@dataclass(frozen=True)
class Prepared:
    """Two representations (a pair of tensors), their states, and the metrics that compare these states."""

    pair: tuple[Tensor, Tensor]
    metrics: Sequence[Metric]
    options: Mapping[str, Any]
    states: Sequence[Any]

    @classmethod
    def of(cls, pair: tuple[Tensor, Tensor], metrics: Sequence[Metric], options: Mapping[str, Any]) -> Prepared:
        """Prepare both, for metrics that prepare alike."""
        return cls(pair, metrics, options, [metrics[0].prepare(values, **options) for values in pair])

    def scores(self) -> list[float]:
        """The score of each metric."""
        return [metric.score(*self.states) for metric in self.metrics]


_K, _TEN = {"k": 10}, {"n_components": 10}
METRICS: dict[str, Metric] = {
    "cka": Metric(Linear.of, kernel.cka_score, gram=Gram.of),
    "unbiased_cka": Metric(Linear.of, kernel.unbiased_cka_score, 4, gram=Gram.of),
    "rbf_cka": Metric(Rbf.of, kernel.rbf_cka_score, 2, {"sigma": 1.0}),
    "unbiased_rbf_cka": Metric(Rbf.of, kernel.unbiased_rbf_cka_score, 4, {"sigma": 1.0}),
    "cknna": Metric(Neighbors.of, neighbors.cknna_score, 2, _K),
    "cknna_published": Metric(Neighbors.of, neighbors.cknna_published_score, 4, _K),
    "mutual_knn": Metric(Neighbors.of, neighbors.mutual_knn_score, 2, _K),
    "cycle_knn": Metric(Neighbors.of, neighbors.cycle_knn_score, 2, _K),
    "lcs_knn": Metric(Neighbors.of, neighbors.lcs_knn_score, 2, _K),
    "lcs_knn_published": Metric(Neighbors.of, neighbors.lcs_knn_published_score, 2, _K, largest="k"),
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
    """Several metrics of one pair of representations; kernels and lists of neighbors are made once.

    Parameters
    ----------
    x, y : (n, d1) and (n, d2) array or Tensor
        Representations of the same n samples, rows matched.
    names : sequence of str
        Metrics, from `METRICS`. By default the paper's eight; `PUBLISHED` names, for three of them, the variant that
        published tables were made with.
    k : int
        Neighbors, for the metrics that look at neighbors.
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
    pair = as_pair(x, y, least_rows=least_rows, preprocess=preprocess)
    values: dict[str, float] = {}
    for shared, metrics, options in sharing(wanted, k):  # the states of some are gone before others are made
        values |= zip(shared, Prepared.of(pair, metrics, options).scores(), strict=True)
    return {name: values[name] for name in wanted}


def sharing(wanted: Mapping[str, Metric], k: int) -> list[tuple[list[str], list[Metric], dict[str, Any]]]:
    """Metrics that are prepared alike, together: their names, themselves, and their options."""
    together: dict[Any, list[str]] = {}
    for name, metric in wanted.items():
        together.setdefault((metric.prepare, *metric.options.items()), []).append(name)
    found = []
    for names in together.values():
        metrics = [wanted[name] for name in names]
        found.append((names, metrics, metrics[0].filled({"k": k} if "k" in metrics[0].options else {})))
    return found
