"""Layer by layer: every layer of one network against every layer of another."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from repsim_utils.metrics import outputs
from repsim_utils.metrics.inputs import as_representation, largest_absolute
from repsim_utils.metrics.suite import Metric, find

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LayerTable:
    """Scores of all pairs of layers.

    Attributes
    ----------
    first, second : tuple of str
        Layers of both models.
    values : ndarray
        (len(first), len(second)). With positions as rows, NaN for layers that differ in their number.
    metric : str
    pool : str
        What became of positions and tokens, see `layerwise`.
    """

    first: tuple[str, ...]
    second: tuple[str, ...]
    values: NDArray[np.float64]
    metric: str
    pool: str = "mean"


def layerwise(
    model_a: nn.Module,
    model_b: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[str] | tuple[Sequence[str], Sequence[str]] | None = None,
    *,
    batches_b: Iterable[Any] | None = None,
    pool: str = "mean",
    metric: str = "cka",
    preprocess: str | None = None,
    **options: Any,
) -> LayerTable:
    """A metric between every layer of one model and every layer of another.

    The data are gone through once, the first batch twice. All rows are collected before anything is compared, so that
    the values are those of the whole sample, not averages over batches.

    Values depend on `pool`: most published ones are of flattened maps (Kornblith et al. 2019). Without the mean, the
    batches and all features of one model at a time are held, in float32. Of flattened features linear CKA makes an
    n × n matrix for each layer, computed and held in float32 too; other metrics take a layer at a time in float64.

    Parameters
    ----------
    model_a, model_b : Module
        May be the same. They are run in evaluation mode, without gradients, and left as they were.
    batches : iterable
        Of inputs: a tensor, a tuple or list whose first entry is the input, or a mapping of keyword arguments. Of a
        mapping with an ``attention_mask``, tokens that it leaves out do not count.
    layers : sequence of str, or pair of sequences, optional
        Names as in ``model.named_modules()``, for both models or for each. By default, every layer that has a weight
        matrix (linear, convolution, embedding) and a row for each sample; a warning names those that are left out.
    batches_b : iterable, optional
        Inputs of the second model where it wants others (another tokenizer or size): the same samples in this order.
    pool : {"mean", "flatten", "positions"}
        What becomes of the positions of maps and of tokens. "mean": a row for each sample, their mean. "flatten": a row
        for each sample, the features of all of them side by side. "positions": a row for each (Raghu et al. 2017),
        matched by its place; layers in which a sample has other numbers of positions are not compared.
    metric : str
        From `METRICS`.
    preprocess : {"platonic", None}
        As in `similarity`.
    **options
        Of the metric, such as ``k``.

    Returns
    -------
    LayerTable

    Raises
    ------
    ValueError
        If there is no such layer, it was not used or used more than once in a pass, it has no row for each sample,
        there are no batches, sequences that are padded or differ in length would be flattened, or each pair of layers
        differs in its numbers of positions.
    """
    found = find(metric)
    prepared = _Prepared(found, found.filled(options), preprocess, pool)
    each: Any = layers if isinstance(layers, tuple) and not isinstance(layers[0], str) else (layers, layers)
    if batches_b is None and pool == "mean":
        seen: Iterable[dict[str, _Layer]] = _collected((model_a, model_b), batches, each, pool)
    else:  # one model after the other, so that the features of one are gone
        if batches_b is None:
            batches = batches_b = list(_several(batches))
        given = ((model_a, batches, each[0]), (model_b, batches_b, each[1]))
        seen = (_collected((model,), some, (names,), pool)[0] for model, some, names in given)
    first, second = (prepared.states(layers) for layers in seen)
    return LayerTable(tuple(first), tuple(second), _table(found, first, second), metric, pool)


@dataclass(frozen=True)
class _Prepared:
    """How layers are prepared for a metric."""

    metric: Metric
    options: Mapping[str, Any]
    preprocess: str | None
    pool: str

    def states(self, layers: dict[str, _Layer]) -> dict[str, tuple[Any, list[int]]]:
        """The state of each layer, and how many rows each sample has; features are let go on the way."""
        return {name: (self.state(f"layer {name}", layer := layers.pop(name)), layer.each) for name in list(layers)}

    def state(self, name: str, layer: _Layer) -> Any:
        """The state of one layer: of many features a kernel, of batches, so that they are in memory once."""
        checks: Any = {"least_rows": self.metric.least_rows, "preprocess": self.preprocess}
        if self.pool != "flatten" or self.metric.gram is None:
            return self.metric.prepare(as_representation(name, layer.values(), **checks), **self.options)
        fit = len(layer.each) >= self.metric.least_rows and layer.finite() and layer.varies() and not self.preprocess
        return self.metric.gram(layer.parts if fit else [as_representation(name, layer.values(), **checks)])


def _table(metric: Metric, first: Mapping[str, Any], second: Mapping[str, Any]) -> NDArray[np.float64]:
    """All scores, NaN where samples have not as many rows in both layers."""
    n = [len(next(iter(side.values()))[1]) for side in (first, second)]
    if n[0] != n[1]:
        raise ValueError(f"the two models have seen {n[0]} and {n[1]} samples: give both the same, in one order")
    values = np.full((len(first), len(second)), np.nan)
    for i, (a, rows) in enumerate(first.values()):
        for j, (b, others) in enumerate(second.values()):
            if rows == others:
                values[i, j] = metric.score(a, b)
    if missing := sum(rows != others for _, rows in first.values() for _, others in second.values()):
        told = f"{missing} of {values.size} pairs of layers differ in their number of positions"
        if missing == values.size:
            raise ValueError(f"{told}, and can't be compared row by row: use pool='mean' or 'flatten'")
        log.warning("%s, and are NaN: pool='mean' and 'flatten' compare all", told)
    return values


def layer_features(
    models: Sequence[nn.Module],
    batches: Iterable[Any],
    layers: Sequence[Sequence[str | None] | None],
    *,
    pool: str = "mean",
) -> list[dict[str, Tensor]]:
    """Outputs of the named layers of several models, on the same batches.

    An output may have more axes than those of samples and features: positions of maps (b, c, h, w) or (b, h, w, c),
    tokens (b, t, d) or (t, b, d). Samples are on the axis that grows with the batch, for which the first one is run a
    second time with its last sample twice. Features are on the last axis of a linear, embedding or norm layer, on axis
    1 of a convolution; a tensor is followed from there. Of a tuple, the first entry counts.

    Parameters
    ----------
    models : sequence of Module
    batches : iterable
        As in `layerwise`.
    layers : sequence of (sequence of str or None)
        For each model, as in `layerwise`. None among the names stands for all that are taken by default; ``""`` is the
        network itself.
    pool : {"mean", "flatten", "positions"}
        As in `layerwise`. Flattened features are in the order of the axes; positions come sample by sample.

    Returns
    -------
    list of dict
        For each model, float32 (n, d) on the CPU by the name of the layer; of positions, more rows than n.

    Raises
    ------
    ValueError
        As `layerwise`.
    """
    found = _collected(models, batches, layers, pool)
    return [{name: side.pop(name).values() for name in list(side)} for side in found]


def _several(batches: Iterable[Any]) -> Iterable[Any]:
    if isinstance(batches, Tensor | np.ndarray | Mapping | str):
        raise ValueError("batches must be several, such as a list of tensors or a DataLoader: [images], not images")
    return batches


def _collected(
    models: Sequence[nn.Module], batches: Iterable[Any], layers: Sequence[Sequence[str | None] | None], pool: str
) -> list[dict[str, _Layer]]:
    if pool not in outputs.POOLS:
        raise ValueError(f"pool must be one of {', '.join(outputs.POOLS)}, got {pool!r}")
    passes = [_Pass(model, names, pool) for model, names in zip(models, layers, strict=True)]
    there = False
    with torch.no_grad(), _evaluating(models):
        for batch in _several(batches):
            there = True
            for each in passes:
                each.take(batch)
    if not there:
        raise ValueError("there are no batches")
    return [each.found() for each in passes]


def _choose(model: nn.Module, names: Sequence[str | None] | None) -> tuple[list[str], set[str]]:
    """Layers that are wanted, in the order asked for, and which of them are by their names."""
    modules = dict(model.named_modules())
    weighted = [
        name for name, part in modules.items() if getattr(part, "weight", None) is not None and part.weight.ndim > 1
    ]
    named = {name for name in names or () if name is not None}
    if (unknown := [name for name in named if name not in modules]) or (names is not None and not len(names)):
        raise ValueError(f"no layer {', '.join(unknown) or 'named'}; there is {', '.join(filter(None, modules))}")
    wanted = [None] if names is None else names
    return list(dict.fromkeys(name for one in wanted for name in (weighted if one is None else [one]))), named


@contextmanager
def _evaluating(models: Sequence[nn.Module]) -> Iterator[None]:
    """Evaluation mode, after which every part is in the mode it was in."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def _inputs(batch: Any) -> tuple[Any, int]:
    """What a model is called with, arrays made tensors, and the number of samples in it."""
    if isinstance(batch, Mapping):
        values = {name: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for name, x in batch.items()}
        sizes = [len(x) for x in values.values() if isinstance(x, Tensor) and x.ndim]
        if not sizes:
            raise ValueError(f"a batch with {', '.join(batch) or 'nothing'} holds no tensor")
        return values, max(set(sizes), key=sizes.count)
    value = batch[0] if isinstance(batch, tuple | list) and len(batch) else batch
    value = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
    if not isinstance(value, Tensor) or not value.ndim:
        raise ValueError(f"a batch is a tensor, a tuple that begins with one, or a mapping; got {type(value).__name__}")
    return value, len(value)


def _one_more(batch: Any, n: int) -> Any:
    """The same batch with its last sample twice."""
    if isinstance(batch, Mapping):
        return {name: _one_more(x, n) for name, x in batch.items()}
    grows = isinstance(batch, Tensor) and batch.ndim and len(batch) == n
    return torch.cat([batch, batch[-1:]]) if grows else batch


@dataclass
class _Layer:
    """What a layer gave so far: rows by batch, and how many of them each sample has."""

    parts: list[Tensor] = field(default_factory=list)
    each: list[int] = field(default_factory=list)

    def add(self, rows: outputs.Rows) -> None:
        """Rows of one more batch."""
        self.parts.append(rows.values)
        self.each += rows.each

    def finite(self) -> bool:
        """Whether every feature is."""
        return all(bool(largest_absolute(x) < np.inf) for x in self.parts)

    def varies(self, tolerance: float = 0.0) -> bool:
        """Whether a row is not as the first, by more than a share of the largest feature; mostly one batch tells."""
        limit = tolerance * max(float(largest_absolute(x)) for x in self.parts) if tolerance else 0.0
        return any(bool((x - self.parts[0][0]).abs().max() > limit) for x in self.parts)

    def values(self) -> Tensor:
        """All rows."""
        return torch.cat(self.parts)


class _Pass:
    """Layers of one model, batch by batch: those that are wanted, and what they gave so far.

    A layer of which there is no row for each sample is an error if it was named, and else left out.
    """

    def __init__(self, model: nn.Module, names: Sequence[str | None] | None, pool: str) -> None:
        chosen, self.named = _choose(model, names)
        self.model, self.pool = model, pool
        self.layers = {name: _Layer() for name in chosen}
        self.longer: dict[str, torch.Size] = {}  # shapes of outputs for a first batch with one sample more
        self.samples: dict[str, int] = {}  # axes of the samples
        self.left_out: dict[str, str] = {}
        self.begun = False

    def take(self, batch: Any) -> None:
        """Run the model on a batch."""
        batch, n = _inputs(batch)
        if not self.begun:
            self.begun = True
            with suppress(RuntimeError):  # a network may insist on one size of batch: then samples are on axis 0
                self._run(_one_more(batch, n), self._note)
        seen = {name: len(layer.parts) for name, layer in self.layers.items()}
        self._run(batch, lambda name, values, axis: self._keep(name, values, axis, batch, n))
        for name, layer in list(self.layers.items()):
            if (times := len(layer.parts) - seen[name]) != 1:
                self._leave_out(name, f"is {'not used' if not times else 'used more than once'} in a pass")
            elif (width := layer.parts[-1].shape[1]) != (before := layer.parts[0].shape[1]):
                remedy = ": use pool='mean', or samples of one size" if self.pool == "flatten" else ""
                raise ValueError(f"layer {name} has {before} features in one batch and {width} in another{remedy}")

    def found(self) -> dict[str, _Layer]:
        """Every layer with all of its rows."""
        for name, layer in list(self.layers.items()):
            if name not in self.named and sum(map(len, layer.parts)) > 1 and layer.finite() and not layer.varies(1e-6):
                self._leave_out(name, "gives every sample the same")
        short = {name: why.partition(":")[0] for name, why in self.left_out.items()}
        for reason in dict.fromkeys(short.values()):
            names = ", ".join(name for name, why in short.items() if why == reason)
            log.warning("layers of %s that are left out (%s): %s", type(self.model).__name__, reason, names)
        if not self.layers:
            raise ValueError(f"no layer of {type(self.model).__name__} has a row for each sample: name some")
        return self.layers

    def _leave_out(self, name: str, reason: str) -> None:
        if name in self.named:
            hint = ": leave it out, or name another that is used once" if "used" in reason else ""
            raise ValueError(f"{f'layer {name}' if name else 'the network itself'} {reason}{hint}")
        self.left_out.setdefault(name, reason)
        self.layers.pop(name)

    def _note(self, name: str, values: Tensor, axis: int | None) -> None:
        self.longer[name] = values.shape

    def _keep(self, name: str, values: Tensor, axis: int | None, batch: Any, n: int) -> None:
        if name not in self.layers:  # left out in this pass
            return
        reason = f"has no row for each sample: it returns {tuple(values.shape)} for {n} samples"
        try:
            if name not in self.samples:
                self.samples[name] = outputs.samples_axis(values.shape, self.longer.get(name), n)
            samples = self.samples[name]
            if values.ndim > samples and values.shape[samples] == n:
                self.layers[name].add(outputs.rows(values, samples, axis, outputs.mask_of(batch, name), self.pool))
                return
        except outputs.Unreadable as error:
            reason = str(error)
        self._leave_out(name, reason)

    def _run(self, batch: Any, keep: Any) -> None:
        """Run the model, with hooks that are taken off whatever happens."""
        layouts = outputs.Layouts()

        def hook(name: str) -> Any:
            def look(module: nn.Module, inputs: Any, output: Any) -> None:
                values = outputs.first_tensor(output)
                if isinstance(values, Tensor):
                    axis = layouts.features(module, inputs, values)
                if name in self.layers:
                    if not isinstance(values, Tensor):
                        raise ValueError(f"layer {name} ({type(module).__name__}) does not return a tensor")
                    keep(name, values, axis)

            return look

        with ExitStack() as hooks:
            for name, module in self.model.named_modules():
                hooks.enter_context(module.register_forward_hook(hook(name)))
            if isinstance(batch, Mapping):
                self.model(**batch)
            else:
                self.model(batch)
