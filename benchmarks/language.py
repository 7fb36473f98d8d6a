"""Training of the laptop profile's GPT against the rate at which this machine multiplies matrices.

    python benchmarks/language.py [STEPS]

Operations are counted, not assumed: products of the forward pass as `repsim_utils.plan.cost` counts them (attention's
included, a multiplication and an addition being two), three times for forward and backward. What else training does
(norms, activations, softmax, the optimiser) is time without such operations.
"""

import sys
import time

import numpy as np
import torch

from repsim_utils import profiles
from repsim_utils.models.language import build
from repsim_utils.plan import cost
from repsim_utils.training.language import Recipe, train, whole, windows

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 100


def matrix_rate(seconds=2.0, n=1024):
    """Operations a second of float32 products of n × n matrices."""
    a, b = torch.randn(n, n), torch.randn(n, n)
    a @ b
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        a @ b
        count += 1
    return 2 * n**3 * count / (time.perf_counter() - start)


def training_rate(settings):
    """Tokens a second of training, on tokens drawn at random, and operations of one token."""
    (model,) = settings.models.values()
    recipe = Recipe.model_validate(model.recipe.model_dump() | {"steps": STEPS, "evaluate_every": STEPS})
    network = model.network.model_dump()
    tokens = np.random.default_rng(0).integers(0, settings.vocabulary, 50_000).astype(np.uint16)
    held_out = windows([whole(tokens)], 1, model.network.context)
    gpt = build(settings.vocabulary, seed=0, **network)
    history = train(gpt, [whole(tokens)], held_out, recipe, seed=0, progress=False)
    _, forward = cost(model.network.context, vocabulary=settings.vocabulary, **network)
    return history.tokens_per_second, 3 * forward / model.network.context


def main():
    settings = profiles.load("laptop", "dataset_overlap_language")
    print("threads | tokens a second | GFLOP/s in training | GFLOP/s of products | share")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        before = matrix_rate()
        speed, per_token = training_rate(settings)
        rate = (before + matrix_rate()) / 2
        print(
            f"{threads:7d} | {speed:15,.0f} | {speed * per_token / 1e9:19.1f} | {rate / 1e9:19.1f} | "
            f"{speed * per_token / rate:.0%}"
        )


if __name__ == "__main__":
    main()
