"""Trainings that share the cores: threads that spin briefly while they wait (as this package sets it), or for long.

`python benchmarks/waiting.py`
"""

import os
import subprocess
import sys

TRAIN = """
import time
from repsim_utils.datasets.color_shape_digit import ColorShapeDigit
from repsim_utils.models.vision import build
from repsim_utils.training.vision import Recipe, train
data = ColorShapeDigit(8, split="train")
labels, names = data.labels("shape")
recipe = Recipe(epochs=1, batch_size=128, lr=0.1, peak_epoch=0.5)
start = time.perf_counter()
train(build("small_resnet", len(names), seed=0), data.images, labels, recipe, seed=0, progress=False)
print(len(data) / (time.perf_counter() - start))
"""


def rate(spins: int, at_once: int) -> float:
    """Images per second of all processes together."""
    environment = os.environ | {"GOMP_SPINCOUNT": str(spins)}
    command = [sys.executable, "-c", TRAIN]
    runs = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(at_once)]
    return sum(float(run.communicate()[0]) for run in runs)


def main() -> None:
    """Print both rates alone and side by side, and their ratio."""
    for at_once in (1, 2):
        short, long = rate(10_000, at_once), rate(300_000, at_once)
        print(f"{at_once} at once: brief {short:5.0f} images/s, long {long:5.0f}, ratio {short / long:.1f}")


if __name__ == "__main__":
    main()
