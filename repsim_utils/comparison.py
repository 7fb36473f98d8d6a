"""Two or more representations of the same samples, compared: the numbers, and how they are told."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import pandas as pd
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform
from scipy.stats import false_discovery_control

from repsim_utils import metrics
from repsim_utils.metrics import CalibratedLayers
from repsim_utils.own import Represented

HEADERS = {"null_mean": "chance", "null_quantile": "threshold", "p_value": "p", "q_value": "q"}


@dataclass(frozen=True)
class LayerComparison:
    """Layers of two models by one metric, against chance."""

    metric: str
    first: tuple[str, ...]
    second: tuple[str, ...]
    scores: CalibratedLayers

    @property
    def best(self) -> tuple[str, str]:
        """The two layers that are most alike."""
        i, j = divmod(int(self.scores.values.argmax()), len(self.second))
        return self.first[i], self.second[j]

    def as_table(self) -> pd.DataFrame:
        """Every pair of layers: ``first, second, value, calibrated``."""
        rows = [
            {"first": a, "second": b, "value": self.scores.values[i, j], "calibrated": self.scores.calibrated[i, j]}
            for i, a in enumerate(self.first)
            for j, b in enumerate(self.second)
        ]
        return pd.DataFrame(rows)


@dataclass(frozen=True)
class Comparison:
    """What came of comparing representations.

    Attributes
    ----------
    several : list of Represented
    rows : list of dict
        Of two, what `repsim_utils.metrics.report` has of each metric, and with a control ``untrained``, the value of
        two networks of these shapes with random weights. Of more, one for each pair and the first metric, with
        ``first, second``, and ``q_value``, the false-discovery rate of its p-value (Benjamini and Hochberg 1995).
    layers, control : LayerComparison, optional
        Of two, layer by layer; of the networks with random weights, likewise.
    protocol : str
        How features were prepared.
    """

    several: Sequence[Represented]
    rows: list[dict[str, Any]]
    layers: LayerComparison | None = None
    control: LayerComparison | None = None
    protocol: str = "platonic"

    @property
    def many(self) -> bool:
        """Whether there are more than two."""
        return len(self.several) > 2

    def reworded(self, say: Callable[[str], str]) -> Comparison:
        """The same, the reasons of what is missing in other words."""
        return replace(
            self, rows=[row | ({"reason": say(row["reason"])} if "reason" in row else {}) for row in self.rows]
        )

    def table(self) -> pd.DataFrame:
        """The rows that have a value, with short headers."""
        there = [row for row in self.rows if row["value"] == row["value"]]
        return pd.DataFrame(there).drop(columns="reason", errors="ignore").rename(columns=HEADERS)

    def left_out(self) -> list[str]:
        """What cannot be computed, and why."""
        return [
            f"{row['metric']}{' is left out' if row['value'] != row['value'] else ''}: {row['reason']}"
            for row in self.rows
            if "reason" in row
        ]

    def matrix(self) -> pd.DataFrame:
        """Values of all pairs, models in the order of `ordered`."""
        names = ordered(self.rows)
        found = pd.DataFrame(1.0, index=names, columns=names)
        for row in self.rows:
            found.loc[row["first"], row["second"]] = found.loc[row["second"], row["first"]] = row["value"]
        return found

    def in_words(self) -> str:
        """As the command prints it."""
        parts = [self.table().to_string(index=False, float_format="%.4f", na_rep="-"), *self.left_out()]
        if self.many:
            matrix = self.matrix().to_string(float_format="%.3f")
            parts = [f"{self.rows[0]['metric']}, models that are alike beside one another:\n{matrix}\n", *parts]
        if self.layers is not None:
            parts.append(_best(self.layers, "layers"))
            best = self.layers.scores.best
            parts[-1] += f" (best pair by chance: {best.null_mean:.4f}, p = {best.p_value:.3g})"
        if self.control is not None:
            parts.append(_best(self.control, "layers of untrained networks"))
        return "\n".join(parts)

    def as_json(self) -> str:
        """Rows; with layers an object of ``outputs`` and ``layers``. What is missing is null."""
        rows = [{name: None if value != value else value for name, value in row.items()} for row in self.rows]
        if self.layers is None:
            return json.dumps(rows, indent=1)
        found: dict[str, Any] = {"outputs": rows, "metric": self.layers.metric}
        found["layers"] = self.layers.as_table().to_dict("records")
        if self.control is not None:
            found["layers_untrained"] = self.control.as_table().to_dict("records")
        return json.dumps(found, indent=1)


def _best(layers: LayerComparison, what: str) -> str:
    return f"{layers.metric} of {what}, best pair: {' and '.join(layers.best)}, {layers.scores.best.value:.4f}"


def compare(
    several: Sequence[Represented],
    controls: Sequence[Represented] = (),
    names: Sequence[str] = metrics.PAPER,
    *,
    layers: bool = False,
    **options: Any,
) -> Comparison:
    """Compare representations of the same samples.

    Parameters
    ----------
    several, controls : sequence of Represented
        From `repsim_utils.own.gather`.
    names : sequence of str
        Metrics; layers and pairs of more than two are compared by the first.
    layers : bool
        Whether two are compared layer by layer.
    **options
        Of `repsim_utils.metrics.report`: ``k, preprocess, calibrated, n_permutations, seed``.

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError
        As `repsim_utils.metrics.report`.
    """
    protocol = "as they are" if options.get("preprocess", "platonic") is None else "platonic"
    if len(several) > 2:
        return Comparison(several, _pairs(several, controls, names[0], **options), protocol=protocol)
    rows = metrics.report(several[0].output, several[1].output, names, **options)
    if controls:
        rows = _beside(rows, controls, names, options)
    few = options | {"n_permutations": 19}  # of the control, values alone are of use
    found = _by_layer(several, names[0], options) if layers else None
    control = _by_layer(controls, names[0], few) if layers and controls else None
    return Comparison(several, rows, found, control, protocol)


def _beside(
    rows: list[dict[str, Any]], controls: Sequence[Represented], names: Sequence[str], options: dict[str, Any]
) -> list[dict[str, Any]]:
    """Each row with the value of the control."""
    plain = options | {"calibrated": False, "intervals": False}
    values = metrics.report(controls[0].output, controls[1].output, names, **plain)
    beside = [{"untrained": other["value"]} for other in values]
    first = ("metric", "value", "low", "high")
    return [
        {name: row[name] for name in first if name in row} | more | row for row, more in zip(rows, beside, strict=True)
    ]


def _pairs(
    several: Sequence[Represented], controls: Sequence[Represented], name: str, **options: Any
) -> list[dict[str, Any]]:
    rows = []
    for i, j in combinations(range(len(several)), 2):
        found = metrics.report(several[i].output, several[j].output, [name], **options)
        if controls:
            found = _beside(found, [controls[i], controls[j]], [name], options)
        rows.append({"first": several[i].source, "second": several[j].source} | found[0])
    p = [row.get("p_value", math.nan) for row in rows]
    if not all(map(math.isfinite, p)):
        return rows
    return [row | {"q_value": float(rate)} for row, rate in zip(rows, false_discovery_control(p), strict=True)]


def _by_layer(pair: Sequence[Represented], name: str, options: dict[str, Any]) -> LayerComparison:
    given = {key: value for key, value in options.items() if key in ("n_permutations", "seed", "preprocess")}
    given |= {key: options[key] for key in metrics.METRICS[name].options if key in options}
    first, second = (dict(_varied(one)) for one in pair)
    scores = metrics.calibrate_layers(list(first.values()), list(second.values()), name, **given)
    return LayerComparison(name, tuple(first), tuple(second), scores)


def _varied(one: Represented) -> list[tuple[str, Any]]:
    """Layers that vary over the samples, in the order of the network."""
    return [(name, x) for name, x in one.layers.items() if not bool((x == x[:1]).all())]


def ordered(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Models in the order of a dendrogram, alike ones beside one another: average linkage of one minus similarity.

    Parameters
    ----------
    rows : sequence of dict
        Of every pair, ``first, second, value``.
    """
    names = list(dict.fromkeys(row[side] for row in rows for side in ("first", "second")))
    distance = pd.DataFrame(0.0, index=names, columns=names)
    for row in rows:
        apart = max(1 - row["value"], 0.0)
        distance.loc[row["first"], row["second"]] = distance.loc[row["second"], row["first"]] = apart
    tree = linkage(squareform(distance.to_numpy()), "average", optimal_ordering=True)
    return [names[i] for i in leaves_list(tree)]
