"""Rows from what a layer returns: which of its axes holds samples, which features, and what becomes of the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import activation, batchnorm, conv, dropout, pooling

_FIRST = (conv._ConvNd, batchnorm._NormBase, nn.GroupNorm, *(getattr(pooling, name) for name in pooling.__all__))
_LAST = (nn.Linear, nn.Bilinear, nn.Embedding, nn.RNNBase, nn.MultiheadAttention)
_BY_ELEMENT = (
    *(getattr(activation, name) for name in activation.__all__ if name not in ("MultiheadAttention", "GLU")),
    *(getattr(dropout, name) for name in dropout.__all__),
    nn.Identity,
)
_WIDTHS = ("out_features", "out_channels", "num_features", "num_channels", "nf")  # nf: the Conv1D of transformers
POOLS = ("mean", "flatten", "positions")
PADDED = (
    "pool='flatten' needs sequences of one length, and the attention_mask leaves tokens out: give batches without "
    "padding, or use pool='mean' or 'positions'"
)
_TAG = "_repsim_features"  # on a tensor: the axis of its features, and how many axes it had then


class Unreadable(ValueError):
    """An output that has no row for each sample, or of which it is not clear where that is."""


class Rows(NamedTuple):
    """Rows of features, float32 (rows, d) on the CPU, and how many of them each sample has."""

    values: Tensor
    each: list[int]


class Known(NamedTuple):
    """Where the features of a layer are, on the last axis or on axis 1, and how many there are."""

    last: bool
    width: int


def known(module: nn.Module, shape: torch.Size) -> Known | None:
    """Where the features of an output are, by the kind of the layer; None of a kind that may have them anywhere."""
    if isinstance(module, _FIRST):
        return Known(False, shape[1])
    if isinstance(module, _LAST):
        return Known(True, shape[-1])
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        if len(module.normalized_shape) == 1 and type(module) in (nn.LayerNorm, nn.RMSNorm):
            return Known(True, shape[-1])
        if "2d" in type(module).__name__.lower():  # as ConvNeXt norms the channels of its maps
            return Known(False, shape[1])
    weight = getattr(module, "weight", None)
    width = next((getattr(module, name) for name in _WIDTHS if isinstance(getattr(module, name, None), int)), None)
    if width is None and isinstance(weight, Tensor) and weight.ndim == 1:
        width = len(weight)
    if weight is not None and (width == shape[1]) != (width == shape[-1]):
        return Known(width == shape[-1], shape[-1] if width == shape[-1] else shape[1])
    return None


class Layouts:
    """Where the outputs of a network have their features, asked of every module in the order in which they return.

    Kinds of layers that have them on one axis tell for the others: a tensor is followed through activations and out of
    containers, and what a container computes of it is as wide as the last layer in it.
    """

    def __init__(self) -> None:
        self.latest: Known | None = None

    def features(self, module: nn.Module, inputs: Any, values: Tensor) -> int | None:
        """Axis of the features of an output; None where it cannot be told."""
        if values.ndim < 2:
            return None
        given, tag = first_tensor(inputs), getattr(values, _TAG, None)
        if (found := known(module, values.shape)) is not None:
            self.latest, axis = found, values.ndim - 1 if found.last else 1
        elif tag is not None and tag[1] == values.ndim:
            axis = tag[0]
        elif isinstance(module, _BY_ELEMENT) and hasattr(given, _TAG) and given.shape == values.shape:
            axis = getattr(given, _TAG)[0]
        else:
            return self._by_width(values.shape)
        setattr(values, _TAG, (axis, values.ndim))
        return axis

    def _by_width(self, shape: torch.Size) -> int | None:
        last = len(shape) - 1
        if last == 1 or self.latest is None:
            return min(last, 2) if last < 3 else 1
        fits = [axis for axis in (1, last) if shape[axis] == self.latest.width]
        if len(fits) == 1:
            return fits[0]
        if not self.latest.last:
            return 1
        return last if last == 2 else None


def samples_axis(shape: torch.Size, longer: torch.Size | None, n: int) -> int:
    """Axis of the samples of an output: the one that grows by one with the batch.

    Parameters
    ----------
    shape : Size
        Of the output for a batch of n samples.
    longer : Size, optional
        For one sample more. Without it, samples are taken to be on axis 0.
    n : int

    Raises
    ------
    Unreadable
        If there is none: the output does not depend on the batch, or its rows are not samples.
    """
    if longer is None:
        grown = [0] if shape[:1] == (n,) else []
    else:
        if shape == longer:
            raise Unreadable(f"does not follow the batch: it returns {tuple(shape)} for {n} samples and for {n + 1}")
        same = len(shape) == len(longer)
        grown = [i for i, sizes in enumerate(zip(shape, longer, strict=True)) if sizes[0] != sizes[1]] if same else []
    if len(grown) != 1 or shape[grown[0]] != n or (longer is not None and longer[grown[0]] != n + 1):
        raise Unreadable(f"has no row for each sample: it returns {tuple(shape)} for {n} samples")
    return grown[0]


def rows(values: Tensor, samples: int, features: int | None, mask: Tensor | None, pool: str = "mean") -> Rows:
    """Rows of features: one for each sample, or one for each of its positions.

    Parameters
    ----------
    values : Tensor
        What a layer returned.
    samples, features : int
        Axes. A sequence has its features last if the samples are where they would be; None where it is not clear, which
        does not matter to "flatten".
    mask : Tensor, optional
        Bool (n, t). It counts where an output has an axis of t tokens.
    pool : str
        From `POOLS`: the mean over all other axes, and of tokens over those under the mask; all of them as features, in
        their order; or each position a row, sample by sample, tokens not under the mask left out.

    Returns
    -------
    Rows

    Raises
    ------
    Unreadable
        If it is not clear which axis holds features or tokens, or a sample has no token.
    ValueError
        If tokens that are padded would be flattened.
    """
    if features == samples:
        features = values.ndim - 1 if values.ndim - 1 != samples else None
    others = [axis for axis in range(values.ndim) if axis not in (samples, features)]
    tokens = [] if mask is None else [axis for axis in others if values.shape[axis] == mask.shape[1]]
    if pool == "flatten":
        if tokens and mask is not None and not mask.all():
            raise ValueError(PADDED)
        return Rows(_stored(values.movedim(samples, 0).reshape(values.shape[samples], -1)), [1] * values.shape[samples])
    if features is None:
        raise Unreadable(f"returns {tuple(values.shape)}, and it is not clear which axis holds its features")
    padded = mask is not None and not mask.all()
    if len(tokens) > 1 or (padded and others and not tokens):
        raise Unreadable(f"returns {tuple(values.shape)}, and it is not clear which axis holds tokens")
    if tokens and mask is not None and not mask.any(1).all():
        raise Unreadable("has a sample of which the attention_mask leaves no token")
    if pool == "positions":
        last = values.permute(samples, *others, features)
        return _by_position(last, others.index(tokens[0]) + 1 if tokens else None, mask)
    values = values.float()
    if tokens and mask is not None:
        values = _masked(values, samples, tokens[0], mask)
    found = values.mean(others) if others else values
    return Rows(_stored(found if samples < features else found.T), [1] * values.shape[samples])


def _stored(values: Tensor) -> Tensor:
    """A copy, which what a network does in place later does not change."""
    return values.to("cpu", torch.float32, copy=True)


def _by_position(values: Tensor, tokens: int | None, mask: Tensor | None) -> Rows:
    """Every position of (n, ..., d) a row; of tokens on an axis those under the mask."""
    n, positions = len(values), values.shape[1:-1]
    if tokens is None or mask is None:
        return Rows(_stored(values.reshape(-1, values.shape[-1])), [positions.numel()] * n)
    shape = [1] * (values.ndim - 1)
    shape[0], shape[tokens] = mask.shape
    there = mask.to(values.device).reshape(shape).expand(values.shape[:-1])
    return Rows(_stored(values[there]), there.flatten(1).sum(1).tolist())


def _masked(values: Tensor, samples: int, tokens: int, mask: Tensor) -> Tensor:
    """The mean over the tokens that count; the axis stays, with length 1."""
    n = mask.sum(1, keepdim=True)
    shape = [1] * values.ndim
    shape[samples], shape[tokens] = mask.shape
    there, n = (part.to(values.device) if samples < tokens else part.T.to(values.device) for part in (mask, n))
    total = torch.where(there.reshape(shape), values, 0).sum(tokens, keepdim=True)
    shape[tokens] = 1
    return total / n.reshape(shape)


def mask_of(batch: Any, layer: str) -> Tensor | None:
    """Which tokens of a batch of keywords count for a layer: bool (n, t), from its ``attention_mask``.

    Parameters
    ----------
    batch : Any
    layer : str
        Its name: a decoder beside an encoder has a ``decoder_attention_mask``, but for what it reads of the encoder.
    """
    if not isinstance(batch, Mapping):
        return None
    beside = any(name in batch for name in ("decoder_input_ids", "decoder_inputs_embeds"))
    across = any(part in layer.lower() for part in ("encdec", "encoder_attn", "cross"))
    mask = batch.get("decoder_attention_mask" if beside and "decoder" in layer and not across else "attention_mask")
    if mask is None:
        return None
    if mask.ndim != 2:
        raise ValueError(f"attention_mask must be (samples, tokens), got {tuple(mask.shape)}")
    return torch.as_tensor(mask) > 0


def first_tensor(values: Any) -> Any:
    """The first of several values, or of those of a mapping."""
    while isinstance(values, tuple | list | Mapping) and values:
        values = next(iter(values.values())) if isinstance(values, Mapping) else values[0]
    return values
