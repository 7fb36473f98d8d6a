"""Training of small language models: windows drawn at random from memory-mapped tokens, never across a chunk's end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from tqdm import tqdm

from repsim_utils.models.device import training_device
from repsim_utils.models.language import GPT

# A batch goes through the model in parts, whose gradients add up: of so many windows, fewer if logits are many.
AT_ONCE, LOGITS_AT_ONCE = 64, 2**30
VERSION = 1  # raised when the same recipe and seed give another model


class Recipe(BaseModel):
    """How a language model is trained: AdamW, a warm-up, then a cosine down to a tenth of the learning rate.

    `warmup` is a share of the steps. Weight decay is of matrices, not of biases and norms. Every `evaluate_every` steps
    the loss on `n_validation` held-out windows is taken; without `patience` training goes on to the last step, whose
    weights are kept; with it, training stops after so many evaluations that are no better, and the best are kept.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    lr: float = Field(gt=0)
    warmup: float = Field(0.1, ge=0, lt=1)
    weight_decay: float = Field(0.1, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = Field(1.0, gt=0)
    evaluate_every: int = Field(ge=1)
    n_validation: int = Field(100, ge=1)
    patience: int | None = Field(None, ge=1)

    def lr_at(self, step: int) -> float:
        """Learning rate of a step, the first being 0."""
        warmup = self.warmup * self.steps
        if step < warmup:
            return self.lr * (step + 1) / (warmup + 1)
        done = (step - warmup) / max(1.0, self.steps - warmup)
        return self.lr * (0.1 + 0.45 * (1 + float(np.cos(np.pi * done))))


class Stream(NamedTuple):
    """Part of a corpus: its tokens, and the chunks [start, stop) of them that may be read, int64 (n, 2)."""

    tokens: NDArray[Any]
    chunks: NDArray[np.int64]


Counts = Callable[[Tensor], Tensor]


class History(NamedTuple):
    """What training tells: the losses at some steps, the step whose weights were kept, and how fast it was."""

    curve: list[dict[str, float]]
    kept_step: int
    tokens_per_second: float


def whole(tokens: NDArray[Any]) -> Stream:
    """A stream of one chunk."""
    return Stream(tokens, np.array([[0, len(tokens)]], dtype=np.int64))


def draw(streams: Sequence[Stream], n: int, context: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Windows at random: for each a stream is drawn, then a place in it, all places being equally likely.

    Parameters
    ----------
    streams : sequence of Stream
    n : int
    context : int
    rng : Generator

    Returns
    -------
    ndarray
        int64 (n, 2): which stream, and where in its tokens the window begins. A window is within one chunk.
    """
    places = [_places(stream, context) for stream in streams]
    found = []
    for which in rng.integers(len(streams), size=n):
        counts = places[which]
        place = int(rng.integers(counts[-1]))
        chunk = int(np.searchsorted(counts, place, side="right"))
        found.append((which, streams[which].chunks[chunk, 0] + place - (counts[chunk - 1] if chunk else 0)))
    return np.array(found, dtype=np.int64).reshape(n, 2)


def drawn(streams: Sequence[Stream], recipe: Recipe, context: int, *, seed: int) -> Iterator[NDArray[np.int64]]:
    """The windows of every batch of a training, one batch after another, as `draw` gives them."""
    rng = np.random.default_rng(seed)
    return (draw(streams, recipe.batch_size, context, rng) for _ in range(recipe.steps))


def take(streams: Sequence[Stream], where: NDArray[np.int64], context: int) -> Tensor:
    """Windows that were drawn: int64 (n, context + 1), inputs and, one token on, targets."""
    rows = [streams[which].tokens[start : start + context + 1] for which, start in where]
    return torch.from_numpy(np.stack(rows).astype(np.int64))


def _places(stream: Stream, context: int) -> NDArray[np.int64]:
    """Number of places at which a window may begin, in the chunks up to each."""
    counts = np.maximum(0, stream.chunks[:, 1] - stream.chunks[:, 0] - context)
    if not counts.any():
        longest = int((stream.chunks[:, 1] - stream.chunks[:, 0]).max(initial=0))
        raise ValueError(f"no chunk is long enough: windows need {context + 1} tokens, and the longest has {longest}")
    return np.cumsum(counts)


def windows(streams: Sequence[Stream], n: int, context: int) -> Tensor:
    """Windows at fixed places, which do not overlap and lie evenly over each stream.

    Parameters
    ----------
    streams : sequence of Stream
    n : int
        ``n // len(streams)`` of each stream, at least one, if it has so many.
    context : int

    Returns
    -------
    Tensor
        int64 (m, context + 1).
    """
    rows = []
    for stream in streams:
        starts = np.concatenate([np.arange(a, b - context, context + 1) for a, b in stream.chunks])
        count = min(len(starts), max(1, n // len(streams)))
        some = starts[np.linspace(0, len(starts) - 1, count).round().astype(int)] if count else starts
        rows += [stream.tokens[start : start + context + 1] for start in some]
    whole_rows = np.stack(rows) if rows else np.empty((0, context + 1))
    return torch.from_numpy(whole_rows.astype(np.int64))


def train(
    model: GPT,
    streams: Sequence[Stream],
    validation: Tensor,
    recipe: Recipe,
    *,
    seed: int,
    counts: Counts | None = None,
    progress: bool = True,
) -> History:
    """Train a language model in place.

    Parameters
    ----------
    model : GPT
        Left in evaluation mode, with the weights that `recipe` says.
    streams : sequence of Stream
        What it reads; each window first draws a stream, all being equally likely.
    validation : Tensor
        int64 (n, context + 1), windows that it does not read.
    recipe : Recipe
    seed : int
        Of the windows' places and of dropout; the global random state is left alone.
    counts : callable, optional
        From windows (n, t) to bool (n, t): which of their tokens are to be learned, such as those of answers; by
        default all.
    progress : bool
        Show a progress bar, with the losses and tokens a second.

    Returns
    -------
    History

    Raises
    ------
    ValueError
        If no chunk holds a window, there is nothing to validate on, or the loss is not finite.
    """
    if not len(validation):
        raise ValueError("there is no window to validate on")
    where = training_device()
    model.to(where).train()
    optimizer = _optimizer(model, recipe)
    curve: list[dict[str, float]] = []
    best: tuple[float, int, dict[str, Tensor] | None] = (float("inf"), 0, None)
    seconds, losses, began = 0.0, [], time.perf_counter()
    with torch.random.fork_rng(), (bar := tqdm(total=recipe.steps, desc="train", leave=False, disable=not progress)):
        torch.manual_seed(seed)
        for step, places in enumerate(drawn(streams, recipe, model.context, seed=seed), 1):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr_at(step - 1)
            batch = take(streams, places, model.context).to(where)
            optimizer.zero_grad()
            parts = []
            for part in batch.split(at_once(model)):
                loss = _loss(model, part, counts) * (len(part) / len(batch))
                loss.backward()
                parts.append(loss.detach())
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step()
            losses.append(torch.stack(parts).sum())
            bar.update()
            if step % recipe.evaluate_every and step < recipe.steps:
                continue
            mean = float(torch.stack(losses).mean())
            seconds += time.perf_counter() - began
            speed = step * recipe.batch_size * model.context / seconds
            held_out = evaluate(model, validation, counts)
            if not np.isfinite([mean, held_out]).all():
                told = f"the loss is {mean}, on held-out text {held_out}"
                raise ValueError(f"training diverged before step {step}: {told}; lower lr = {recipe.lr}")
            curve.append({"step": step, "train": mean, "validation": held_out})
            bar.set_postfix_str(f"loss {mean:.2f}, held out {held_out:.2f}, {speed:,.0f} tokens/s")
            if recipe.patience is not None and held_out < best[0]:
                best = held_out, step, {name: value.clone() for name, value in model.state_dict().items()}
            if recipe.patience is not None and step - best[1] >= recipe.patience * recipe.evaluate_every:
                break
            model.train()
            losses, began = [], time.perf_counter()
    if best[2] is not None:
        model.load_state_dict(best[2])
    model.eval()
    return History(curve, best[1] if best[2] is not None else step, speed)


def at_once(model: GPT) -> int:
    """How many windows go through a model together."""
    n_tokens = model.body.get_input_embeddings().weight.shape[0]
    return max(1, min(AT_ONCE, LOGITS_AT_ONCE // (model.context * n_tokens)))


def _loss(model: GPT, batch: Tensor, counts: Counts | None = None) -> Tensor:
    if counts is None:
        return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1).float(), batch[:, 1:].flatten())
    hidden, wanted = model.body(batch[:, :-1], use_cache=False).last_hidden_state, counts(batch)[:, 1:]
    return F.cross_entropy(model.logits(hidden[wanted]).float(), batch[:, 1:][wanted])


@torch.no_grad()
def evaluate(model: GPT, held_out: Tensor, counts: Counts | None = None, *, batch_size: int = 32) -> float:
    """Mean loss of the next token, in nats: of windows int64 (n, context + 1), and of the tokens that count."""
    where = next(model.parameters()).device
    model.eval()
    sums = [float(_loss(model, batch.to(where), counts)) * len(batch) for batch in held_out.split(batch_size)]
    return sum(sums) / len(held_out)


def _optimizer(model: GPT, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW, fused, of what may learn; matrices decay, vectors do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, fused=True)
