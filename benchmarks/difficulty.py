"""Accuracy of a small network trained on 2,000 images, from clean to hard: 80 classes, shape × digit.

`python benchmarks/difficulty.py [seeds]` (about half a minute for each seed and difficulty)
"""

import statistics
import sys

import torch

from repsim_utils.datasets.color_shape_digit import ColorShapeDigit, combination_ids, render
from repsim_utils.models.vision import build
from repsim_utils.training.vision import Recipe, accuracy, train

RECIPE = Recipe(epochs=15, batch_size=64, lr=0.1, peak_epoch=3, translate=2)


def score(difficulty: float, seed: int) -> float:
    """Held-out accuracy; the training images are 25 of each class, with the colors in turn."""
    shape, digit, _ = combination_ids(torch.arange(80) * 10)
    ids = shape.repeat(25), digit.repeat(25), torch.arange(25).repeat_interleave(80) % 10
    images = render(*ids, seed=seed, difficulty=difficulty)
    model = build("small_resnet", 80, seed=seed, width=32)
    train(model, images, 10 * ids[0] + ids[1], RECIPE, seed=seed, progress=False)
    test = ColorShapeDigit(5, split="test", seed=seed, difficulty=difficulty)
    return accuracy(model, test.images, test.labels("shape", "digit")[0])


def main(seeds: int) -> None:
    """Print the mean accuracy and its range over seeds for five difficulties."""
    for difficulty in (0.0, 0.25, 0.5, 0.75, 1.0):
        scores = [score(difficulty, seed) for seed in range(seeds)]
        spread = f"{min(scores):.1%} to {max(scores):.1%}"
        print(f"difficulty {difficulty:.2f}   accuracy {statistics.mean(scores):.1%}   ({spread})", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
