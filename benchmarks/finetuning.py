"""Fine-tuning SmolLM2 with adapters: what each choice of the training loop is worth, and what the cores could do.

    repsim models smollm2
    python benchmarks/finetuning.py [STEPS]

Every line changes one thing about the first; all are run in turn, twice, and the faster of the two counts. Operations
are counted: products of the forward pass as `repsim_utils.plan.cost` counts them, as many again for gradients of
activations (the base's own weights have none), and six for each weight of an adapter and token.
"""

import sys
from typing import NamedTuple

import numpy as np
import torch
from language import matrix_rate

from repsim_utils import profiles
from repsim_utils.models import llama
from repsim_utils.models.adapters import n_learned, with_adapters, with_all_weights
from repsim_utils.models.language import GPT
from repsim_utils.plan import cost
from repsim_utils.training.language import Recipe, train, whole, windows

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 5
SHAPE = llama.SHAPES["smollm2"]


class Choice(NamedTuple):
    threads: int = 1
    dropout: float = 0.0
    attention: str = "sdpa"
    adapters: bool = True
    vocabulary: int | None = None  # of the logits; None: all 49,152
    full: float = 1.0  # share of a window that is text: the rest is padding, where windows are not packed


CHOICES = {
    "as the book trains": Choice(),
    "two threads": Choice(threads=2),
    "dropout 0.05": Choice(dropout=0.05),
    "attention written out (eager)": Choice(attention="eager"),
    "logits of 4,096 tokens only": Choice(vocabulary=4096),
    "all weights learn": Choice(adapters=False),
    "windows half padding (not packed)": Choice(full=0.5),
}


def ready(base, arm, choice):
    """A model to be trained, as a choice says."""
    if choice.adapters:
        model = with_adapters(base, rank=arm.lora.rank, alpha=arm.lora.alpha, dropout=choice.dropout, seed=0)
    else:
        model = with_all_weights(base)
    model.body.set_attn_implementation(choice.attention)
    if choice.vocabulary is None:
        return model
    head = torch.nn.Linear(SHAPE["width"], choice.vocabulary, bias=False).requires_grad_(False)
    return GPT(model.body, head, base.context)


def main():
    settings = profiles.load("laptop", "dataset_overlap_finetuned")
    arm = settings.arms["small_corpus"]
    recipe = Recipe.model_validate(arm.recipe.model_dump() | {"steps": STEPS, "evaluate_every": STEPS})
    base = llama.load("smollm2", context=settings.context)
    stream = whole(np.random.default_rng(0).integers(0, 4096, 20_000).astype(np.uint16))
    held_out = windows([stream], 1, settings.context)
    speeds, rates = {name: 0.0 for name in CHOICES}, []
    for _ in range(2):
        for name, choice in CHOICES.items():
            torch.set_num_threads(choice.threads)
            history = train(ready(base, arm, choice), [stream], held_out, recipe, seed=0, progress=False)
            speeds[name] = max(speeds[name], history.tokens_per_second * choice.full)
        torch.set_num_threads(1)
        rates.append(matrix_rate())
    first = speeds["as the book trains"]
    print("choice                            | tokens a second | against the first line")
    for name, speed in speeds.items():
        print(f"{name:33s} | {speed:15,.0f} | {speed / first:22.2f}")
    _, forward = cost(settings.context, context=settings.context, **SHAPE)
    done = first * (2 * forward / settings.context + 6 * n_learned(SHAPE, arm.lora.rank))
    print(f"first line: {done / 1e9:.1f} of {max(rates) / 1e9:.1f} GFLOP/s of plain products: {done / max(rates):.0%}")


if __name__ == "__main__":
    main()
