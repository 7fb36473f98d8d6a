"""Layer by layer: every layer of one network against every layer of another, in one pass over the data."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from repsim_utils.metrics import outputs
from repsim_utils.metrics.inputs import as_representation
from repsim_utils.metrics.suite import find

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LayerTable:
    """Scores of all pairs of layers.

    Attributes
    ----------
    first, second : tuple of str
        Layers of both models.
    values : ndarray
        (len(first), len(second)).
    metric : str
    """

    first: tuple[str, ...]
    second: tuple[str, ...]
    values: NDArray[np.float64]
    metric: str


def layerwise(
    model_a: nn.Module,
    model_b: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[str] | tuple[Sequence[str], Sequence[str]] | None = None,
    *,
    batches_b: Iterable[Any] | None = None,
    metric: str = "cka",
    preprocess: str | None = None,
    **options: Any,
) -> LayerTable:
    """A metric between every layer of one model and every layer of another.

    The data are gone through once, the first batch twice. All rows are collected before anything is compared, so that
    the values are those of the whole sample, not averages over batches.

    Parameters
    ----------
    model_a, model_b : Module
        May be the same. They are run in evaluation mode, without gradients, and left as they were.
    batches : iterable
        Of inputs: a tensor, a tuple or list whose first entry is the input, or a mapping of keyword arguments. Of a
        mapping with an ``attention_mask``, tokens are averaged under it.
    layers : sequence of str, or pair of sequences, optional
        Names as in ``model.named_modules()``, for both models or for each. By default, every layer that has a weight
        matrix (linear, convolution, embedding) and a row for each sample; a warning names those that are left out.
    batches_b : iterable, optional
        Inputs of the second model where it wants others (another tokenizer or size): the same samples in this order.
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
        If there is no such layer, it was not used or used more than once in a pass, it has no row for each sample, or
        there are no batches.
    """
    found = find(metric)
    filled = found.filled(options)
    each = layers if isinstance(layers, tuple) and not isinstance(layers[0], str) else (layers, layers)
    if batches_b is None:
        first, second = layer_features((model_a, model_b), batches, each)  # type: ignore[arg-type]
    else:
        (first,) = layer_features((model_a,), batches, each[:1])  # type: ignore[arg-type]
        (second,) = layer_features((model_b,), batches_b, each[1:])  # type: ignore[arg-type]
        n = [len(next(iter(features.values()))) for features in (first, second)]
        if n[0] != n[1]:
            raise ValueError(f"the two models have seen {n[0]} and {n[1]} samples: give both the same, in one order")
    checks: Any = {"least_rows": found.least_rows, "preprocess": preprocess}
    states = [
        [found.prepare(as_representation(f"layer {name}", x, **checks), **filled) for name, x in features.items()]
        for features in (first, second)
    ]
    values = np.array([[found.score(a, b) for b in states[1]] for a in states[0]])
    return LayerTable(tuple(first), tuple(second), values, metric)


def layer_features(
    models: Sequence[nn.Module], batches: Iterable[Any], layers: Sequence[Sequence[str | None] | None]
) -> list[dict[str, Tensor]]:
    """Outputs of the named layers of several models, on the same batches.

    An output with more than two axes is averaged over all but its samples and features: over positions of maps
    (b, c, h, w) or (b, h, w, c), over tokens (b, t, d) or (t, b, d). Samples are on the axis that grows with the batch,
    for which the first one is run a second time with its last sample twice. Features are on the last axis of a linear,
    embedding or norm layer, on axis 1 of a convolution; a tensor is followed from there. Of a tuple, the first entry
    counts.

    Parameters
    ----------
    models : sequence of Module
    batches : iterable
        As in `layerwise`.
    layers : sequence of (sequence of str or None)
        For each model, as in `layerwise`. None among the names stands for all that are taken by default; ``""`` is the
        network itself.

    Returns
    -------
    list of dict
        For each model, float32 (n, d) on the CPU by the name of the layer.

    Raises
    ------
    ValueError
        As `layerwise`.
    """
    if isinstance(batches, Tensor | np.ndarray | Mapping | str):
        raise ValueError("batches must be several, such as a list of tensors or a DataLoader: [images], not images")
    passes = [_Pass(model, names) for model, names in zip(models, layers, strict=True)]
    there = False
    with torch.no_grad(), _evaluating(models):
        for batch in batches:
            there = True
            for each in passes:
                each.take(batch)
    if not there:
        raise ValueError("there are no batches")
    return [each.features() for each in passes]


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


class _Pass:
    """Layers of one model, batch by batch: those that are wanted, and what they gave so far.

    A layer of which there is no row for each sample is an error if it was named, and else left out.
    """

    def __init__(self, model: nn.Module, names: Sequence[str | None] | None) -> None:
        self.model = model
        chosen, self.named = _choose(model, names)
        self.parts: dict[str, list[Tensor]] = {name: [] for name in chosen}
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
        seen = {name: len(parts) for name, parts in self.parts.items()}
        self._run(batch, lambda name, values, axis: self._keep(name, values, axis, batch, n))
        for name in list(self.parts):
            if (times := len(self.parts[name]) - seen[name]) != 1 and name in self.parts:
                self._leave_out(name, f"is {'not used' if not times else 'used more than once'} in a pass")

    def features(self) -> dict[str, Tensor]:
        """All rows of every layer."""
        found = {name: torch.cat(parts) for name, parts in self.parts.items()}
        for name in set(found) - self.named:
            x = found[name]
            if len(x) > 1 and (x - x[0]).abs().max() <= 1e-6 * x.abs().max():
                self._leave_out(name, "gives every sample the same")
                del found[name]
        short = {name: why.partition(":")[0] for name, why in self.left_out.items()}
        for reason in dict.fromkeys(short.values()):
            names = ", ".join(name for name, why in short.items() if why == reason)
            log.warning("layers of %s that are left out (%s): %s", type(self.model).__name__, reason, names)
        if not found:
            raise ValueError(f"no layer of {type(self.model).__name__} has a row for each sample: name some")
        return found

    def _leave_out(self, name: str, reason: str) -> None:
        if name in self.named:
            hint = ": leave it out, or name another that is used once" if "used" in reason else ""
            raise ValueError(f"layer {name} {reason}{hint}")
        self.left_out.setdefault(name, reason)
        self.parts.pop(name)

    def _note(self, name: str, values: Tensor, axis: int | None) -> None:
        self.longer[name] = values.shape

    def _keep(self, name: str, values: Tensor, axis: int | None, batch: Any, n: int) -> None:
        if name not in self.parts:  # left out in this pass
            return
        reason = f"has no row for each sample: it returns {tuple(values.shape)} for {n} samples"
        try:
            if name not in self.samples:
                self.samples[name] = outputs.samples_axis(values.shape, self.longer.get(name), n)
            samples = self.samples[name]
            if values.ndim > samples and values.shape[samples] == n:
                self.parts[name].append(outputs.rows(values, samples, axis, outputs.mask_of(batch, name)))
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
                if name in self.parts:
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
