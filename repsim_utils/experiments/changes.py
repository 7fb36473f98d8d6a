"""What is measured on two fine-tuned models: how alike they are, and how alike is what fine-tuning changed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from repsim_utils.experiments.common import similarities
from repsim_utils.experiments.engine import Row
from repsim_utils.metrics import similarity, symmetric_kl, update_cosine, update_subspaces
from repsim_utils.models import adapters
from repsim_utils.models.device import device
from repsim_utils.models.language import GPT
from repsim_utils.training.language import at_once

VERSION = 1  # raised when the same models give other measurements
WHICH = ("first", "second")
SUBSPACE = 4  # leading directions of a change that are compared, fewer where the rank is lower
SHUFFLED = ("cka", "cknna", "mutual_knn")  # metrics of which it is asked how low unrelated changes could bring them
N_SHUFFLES = 20
_KEPT = 32  # observations that a process remembers: the base and the first model are those of many cells
_remembered: OrderedDict[tuple[str, bytes], Observed] = OrderedDict()


class Observed(NamedTuple):
    """What a model makes of windows of text.

    Attributes
    ----------
    states : list of Tensor
        For each layer, the embedding first, the mean over positions of hidden states, float32 (n, d).
    last_token : Tensor
        The last hidden state of the last position alone, float32 (n, d).
    losses : Tensor
        Of every window, in nats a token, float32 (n,).
    """

    states: list[Tensor]
    last_token: Tensor
    losses: Tensor


@torch.no_grad()
def observe(model: GPT, tokens: Tensor) -> Observed:
    """Run a model over windows, int64 (n, t)."""
    model.to(device()).eval()
    states, last, losses = [], [], []
    for batch in tokens.split(min(16, at_once(model))):
        batch = batch.to(device())
        found = model.body(batch, use_cache=False, output_hidden_states=True)
        logits = model.logits(found.last_hidden_state[:, :-1]).float()
        losses.append(F.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none").mean(1).cpu())
        states.append([state.float().mean(1).cpu() for state in found.hidden_states])
        last.append(found.last_hidden_state[:, -1].float().cpu())
    return Observed([torch.cat(layer) for layer in zip(*states, strict=True)], torch.cat(last), torch.cat(losses))


def _observe_once(name: str, model: GPT, tokens: Tensor) -> Observed:
    """`observe`, or what it gave the last time."""
    what = name, tokens.numpy().tobytes()
    if what not in _remembered:
        _remembered[what] = observe(model, tokens)
        while len(_remembered) > _KEPT:
            _remembered.popitem(last=False)
    _remembered.move_to_end(what)
    return _remembered[what]


def probe_rows(
    names: Sequence[str], bases: Sequence[GPT], tuned: Sequence[GPT], tokens: Tensor, *, seed: int,
    n_permutations: int, n_predictions: int,
) -> list[Row]:  # fmt: skip
    """What is measured on one probe: windows int64 (n, t), on both models and what each was tuned from.

    `names` are those of bases and models, as a process remembers what it has observed of them.
    """
    before, after = (
        [_observe_once(name, model, tokens) for name, model in zip(some, of, strict=True)]
        for some, of in ((names[:2], bases), (names[2:], tuned))
    )
    return [
        *_alike(before, after, seed, n_permutations),
        *_read_otherwise(before, after),
        *_if_unrelated(before, after, seed),
        *_of_losses(before, after),
        *_of_predictions(bases, tuned, tokens[:n_predictions]),
    ]


def _alike(before: Sequence[Observed], after: Sequence[Observed], seed: int, n_permutations: int) -> list[Row]:
    """Similarity of hidden states, and of their changes; every metric in the last layer, CKA in all."""
    states = [observed.states for observed in after]
    moves = [
        [h - h0 for h, h0 in zip(new.states, old.states, strict=True)] for new, old in zip(after, before, strict=True)
    ]
    rows: list[Row] = []
    for kind, (first, second) in (("full", states), ("change", moves)):
        for i, (x, y) in enumerate(zip(first, second, strict=True)):
            if min(float(x.std(0).sum()), float(y.std(0).sum())) == 0:
                continue  # adapters do not change the embedding
            if i == len(first) - 1:
                found = similarities(x, y, n_permutations=n_permutations, seed=seed)
                rows += [{"view": kind} | row for row in found]
            else:
                rows.append({"view": kind, "metric": "cka", "layer": i, "value": similarity(x, y, ["cka"])["cka"]})
    for which, move, old in zip(WHICH, moves, before, strict=True):
        size = float(move[-1].norm() / old.states[-1].norm())
        rows.append({"view": "change", "metric": f"change_size_{which}", "value": size})
    return rows


def _read_otherwise(before: Sequence[Observed], after: Sequence[Observed]) -> list[Row]:
    """CKA of other readings of the last layer: unclamped, of the last token, without a base's leading direction."""
    states, moves, stripped = [], [], []
    for old, new in zip(before, after, strict=True):
        leading = _directions(old)[1][:1]
        states.append(new.states[-1])
        moves.append(new.states[-1] - old.states[-1])
        stripped.append(new.states[-1] - new.states[-1] @ leading.T @ leading)
    readings: dict[tuple[str, str], tuple[list[Tensor], str | None]] = {
        ("full", "cka_last_token"): ([new.last_token for new in after], "platonic"),
        ("full", "cka_without_leading"): (stripped, "platonic"),
        ("change", "cka_last_token"): (
            [new.last_token - old.last_token for old, new in zip(before, after, strict=True)],
            "platonic",
        ),
        ("full", "cka_unclamped"): (states, None),
        ("change", "cka_unclamped"): (moves, None),
    }
    rows = [
        {"view": view, "metric": name, "value": similarity(x, y, ["cka"], preprocess=how)["cka"]}
        for (view, name), ((x, y), how) in readings.items()
    ]
    spread = _directions(before[0])[0].square()
    return [*rows, {"view": "full", "metric": "leading_share_base", "value": float(spread[0] / spread.sum())}]


def _directions(base: Observed) -> tuple[Tensor, Tensor]:
    """Along which directions, and how far, texts differ in the last layer of a base."""
    states = base.states[-1]
    _, spread, directions = torch.linalg.svd(states - states.mean(0), full_matrices=False)
    return spread, directions


def _if_unrelated(before: Sequence[Observed], after: Sequence[Observed], seed: int) -> list[Row]:
    """How alike the last layer would be, had the models changed as much as they did but in unrelated ways.

    The second model's changes are given to other windows than their own: as large as they were, on the same base.
    """
    first, second = (new.states[-1] for new in after)
    base = before[1].states[-1]
    rng = np.random.default_rng(seed)
    found = [
        similarity(first, base + (second - base)[torch.from_numpy(rng.permutation(len(base)))], SHUFFLED)
        for _ in range(N_SHUFFLES)
    ]
    return [
        {"view": "full", "metric": f"{name}_unrelated", "value": float(np.mean([one[name] for one in found]))}
        for name in SHUFFLED
    ]


def _of_losses(before: Sequence[Observed], after: Sequence[Observed]) -> list[Row]:
    """Losses on a probe, and whether they changed on the same windows in both models."""
    moves = torch.stack([new.losses - old.losses for old, new in zip(before, after, strict=True)])
    found = {"loss_base": before[0].losses.mean()}
    found |= {f"loss_{which}": new.losses.mean() for which, new in zip(WHICH, after, strict=True)}
    found["loss_change_correlation"] = torch.corrcoef(moves)[0, 1]
    return [{"view": "predictions", "metric": name, "value": float(value)} for name, value in found.items()]


@torch.no_grad()
def _of_predictions(bases: Sequence[GPT], models: Sequence[GPT], tokens: Tensor) -> list[Row]:
    """Divergence between predictions, batch by batch: logits of whole probes would not fit into memory."""
    sums = np.zeros(3)
    for batch in tokens.split(min(4, at_once(bases[0]))):
        first, second = (model(batch.to(device())) for model in models)
        old = [base(batch.to(device())) for base in dict.fromkeys(bases)]  # once, where both have the same
        found = symmetric_kl(first, second), symmetric_kl(old[0], first), symmetric_kl(old[-1], second)
        sums += np.array(found) * len(batch)
    names = ("symmetric_kl", "symmetric_kl_base_first", "symmetric_kl_base_second")
    values = zip(names, (sums / len(tokens)).tolist(), strict=True)
    return [{"view": "predictions", "metric": name, "value": value} for name, value in values]


def weight_rows(bases: Sequence[GPT], models: Sequence[GPT]) -> list[Row]:
    """How alike the weights have changed: of each block, mean over its maps, and mean over blocks."""
    blocks = []
    both = (adapters.updates(model, base) for model, base in zip(models, bases, strict=True))
    for one, two in zip(*both, strict=True):
        found = []
        for name in one:
            left, right = one[name]
            k = min(SUBSPACE, left.shape[0], *right.shape)
            written, read = update_subspaces(one[name], two[name], k=k)
            found.append([update_cosine(one[name], two[name]), written, read, 0, k / left.shape[0], k / right.shape[1]])
        blocks.append(np.mean(found, 0))
    rows = []
    for layer, means in [(None, np.mean(blocks, 0)), *enumerate(blocks, 1)]:
        for metric, value, chance in zip(("cosine", "written", "read"), means[:3], means[3:], strict=True):
            row = {"view": "weights", "metric": f"update_{metric}", "value": float(value), "null_mean": float(chance)}
            rows.append(row if layer is None else row | {"layer": layer})
    return rows
