"""Fine-tuning SmolLM2 with adapters, with and without dropout, against the rate of plain products of matrices.

    repsim models smollm2
    python benchmarks/finetuning.py [STEPS]

Operations are counted: products of the forward pass as `repsim_utils.plan.cost` counts them, as many again for
gradients of activations (the base's own weights have none), and six for each weight of an adapter and token.
"""

import sys

import numpy as np
import torch
from language import matrix_rate

from repsim_utils import profiles
from repsim_utils.models import llama
from repsim_utils.models.adapters import n_learned, with_adapters
from repsim_utils.plan import cost
from repsim_utils.training.language import Recipe, train, whole, windows

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 5


def main():
    settings = profiles.load("laptop", "dataset_overlap_finetuned")
    arm, shape = settings.arms["small_corpus"], llama.SHAPES["smollm2"]
    recipe = Recipe.model_validate(arm.recipe.model_dump() | {"steps": STEPS, "evaluate_every": STEPS})
    base = llama.load("smollm2", context=settings.context)
    _, forward = cost(settings.context, context=settings.context, **shape)
    per_token = 2 * forward / settings.context + 6 * n_learned(shape, arm.lora.rank)
    tokens = np.random.default_rng(0).integers(0, shape["vocabulary"], 20_000).astype(np.uint16)
    stream = whole(tokens)
    print("threads | dropout | tokens a second | GFLOP/s in training | GFLOP/s of products | share")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for dropout in (0.05, 0.0):
            model = with_adapters(base, rank=arm.lora.rank, alpha=arm.lora.alpha, dropout=dropout, seed=0)
            before = matrix_rate()
            held_out = windows([stream], 1, settings.context)
            speed = train(model, [stream], held_out, recipe, seed=0, progress=False).tokens_per_second
            rate = (before + matrix_rate()) / 2
            print(
                f"{threads:7d} | {dropout:7.2f} | {speed:15,.0f} | {speed * per_token / 1e9:19.1f} | "
                f"{rate / 1e9:19.1f} | {speed * per_token / rate:.0%}"
            )


if __name__ == "__main__":
    main()
