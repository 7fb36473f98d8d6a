"""Layer by layer: every layer of one network against every layer of another, in one pass over the data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from repsim_utils.metrics.inputs import as_representation
from repsim_utils.metrics.suite import find


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
    metric: str = "cka",
    preprocess: str | None = None,
    **options: Any,
) -> LayerTable:
    """A metric between every layer of one model and every layer of another.

    The data are gone through once. All rows are collected before anything is compared, so that the values are those of
    the whole sample, not averages over batches.

    Parameters
    ----------
    model_a, model_b : Module
        May be the same. They are run in evaluation mode, without gradients, and left as they were.
    batches : iterable
        Of inputs: a tensor, a tuple or list whose first entry is the input, or a dict of keyword arguments.
    layers : sequence of str, or pair of sequences, optional
        Names as in ``model.named_modules()``, for both models or for each. By default, every layer that has a weight
        matrix (linear, convolution, embedding).
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
        If there is no such layer, it was not used or used more than once in a pass, or there are no batches.
    """
    found = find(metric)
    filled = found.filled(options)
    each = layers if isinstance(layers, tuple) and not isinstance(layers[0], str) else (layers, layers)
    first, second = layer_features((model_a, model_b), batches, each)  # type: ignore[arg-type]
    checks: Any = {"least_rows": found.least_rows, "preprocess": preprocess}
    states = [
        [found.prepare(as_representation(f"layer {name}", x, **checks), **filled) for name, x in features.items()]
        for features in (first, second)
    ]
    values = np.array([[found.score(a, b) for b in states[1]] for a in states[0]])
    return LayerTable(tuple(first), tuple(second), values, metric)


def layer_features(
    models: Sequence[nn.Module], batches: Iterable[Any], layers: Sequence[Sequence[str] | None]
) -> list[dict[str, Tensor]]:
    """Outputs of the named layers of several models, on the same batches.

    Outputs with more than two axes are averaged over all but the first and the feature axis: over positions of feature
    maps (b, c, h, w), over tokens (b, t, d). Of a tuple, the first entry counts.

    Parameters
    ----------
    models : sequence of Module
    batches : iterable
        As in `layerwise`.
    layers : sequence of (sequence of str or None)
        For each model.

    Returns
    -------
    list of dict
        For each model, float32 (n, d) on the CPU by the name of the layer.

    Raises
    ------
    ValueError
        As `layerwise`.
    """
    chosen = [_choose(model, names) for model, names in zip(models, layers, strict=True)]
    collected: list[dict[str, list[Tensor]]] = [{name: [] for name in names} for names in chosen]
    passes = 0
    with torch.no_grad(), _evaluating(models):
        for passes, batch in enumerate(batches, start=1):
            for model, seen, names in zip(models, collected, layers, strict=True):
                _record(model, seen, batch)
                _check_once(seen, passes, wanted=names is not None)
    if not passes:
        raise ValueError("there are no batches")
    return [{name: torch.cat(parts) for name, parts in seen.items() if parts} for seen in collected]


def _choose(model: nn.Module, names: Sequence[str] | None) -> list[str]:
    modules = dict(model.named_modules())
    if names is None:
        return [
            name
            for name, module in modules.items()
            if getattr(module, "weight", None) is not None and module.weight.ndim > 1
        ]
    unknown = [name for name in names if name not in modules]
    if unknown or not names:
        raise ValueError(f"no layer {', '.join(unknown) or 'named'}; there is {', '.join(filter(None, modules))}")
    return list(names)


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


def _record(model: nn.Module, seen: Mapping[str, list[Tensor]], batch: Any) -> None:
    """Run the model, with hooks that keep the outputs of the named layers, and are taken off whatever happens."""

    def keep(parts: list[Tensor]) -> Callable[..., None]:
        return lambda module, inputs, output: parts.append(_rows(module, output))

    modules = dict(model.named_modules())
    with ExitStack() as hooks:
        for name, parts in seen.items():
            hooks.enter_context(modules[name].register_forward_hook(keep(parts)))
        if isinstance(batch, Mapping):
            model(**batch)
        else:
            model(batch[0] if isinstance(batch, (tuple, list)) else batch)


def _rows(module: nn.Module, output: Any) -> Tensor:
    values = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(values, Tensor) or values.ndim < 2:
        raise ValueError(f"{type(module).__name__} does not return a tensor with a row for each sample")
    maps = isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) or values.ndim > 3
    axes = [axis for axis in range(1, values.ndim) if axis != (1 if maps else values.ndim - 1)]
    return (values.mean(axes) if axes else values).float().cpu()


def _check_once(seen: dict[str, list[Tensor]], passes: int, *, wanted: bool) -> None:
    for name, parts in seen.items():
        if len(parts) != passes and (wanted or parts):
            times = "not used" if len(parts) < passes else "used more than once"
            raise ValueError(f"layer {name} is {times} in a pass: leave it out, or name another that is used once")
