"""Attacked images a second: MI-FGSM here against torchattacks', on the same network and images; both make the same.

Needs ``pip install --no-deps torchattacks==3.5.1`` and requests (it pins an old one, so it is not among the pinned
requirements). Run with nothing beside it: ``python benchmarks/attacks.py``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torchattacks import MIFGSM

from repsim_utils.attacks import adversarial
from repsim_utils.models.vision import build

N, ROUNDS, EPSILON, STEPS = 500, 5, 8 / 255, 10  # as many images as the paper attacks at once
NETWORKS = {
    "small_resnet": {"width": 32},
    "small_vit": {"width": 64, "depth": 2},
}


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(N, 3, 28, 28, generator=generator)
    labels = torch.randint(80, (N,), generator=generator)
    print(f"{N} images of 28 pixels, {STEPS} steps, {torch.get_num_threads()} threads; median of {ROUNDS} rounds")
    for name, size in NETWORKS.items():
        model = build(name, 80, seed=0, **size).eval()
        theirs = MIFGSM(model, eps=EPSILON, alpha=EPSILON / STEPS, steps=STEPS, decay=1.0)

        def in_batches(attack: MIFGSM = theirs) -> Tensor:
            batches = zip(images.split(adversarial.BATCH), labels.split(adversarial.BATCH), strict=True)
            return torch.cat([attack(x, y) for x, y in batches])

        ways: dict[str, Callable[[], Tensor]] = {
            "here": lambda model=model: adversarial.attack(model, images, labels),
            "torchattacks": lambda attack=theirs: attack(images, labels),
            f"torchattacks, {adversarial.BATCH} at a time": in_batches,
        }
        made = {way: make() for way, make in ways.items()}
        apart = max(float(((made["here"] - other).abs() > 1e-6).double().mean()) for other in made.values())
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(ROUNDS):
            for way, make in ways.items():
                start = time.perf_counter()
                make()
                seconds[way].append(time.perf_counter() - start)
        print(f"{name}: pixels that differ {apart:.2%}")
        fastest = statistics.median(seconds["here"])
        for way, times in seconds.items():
            median = statistics.median(times)
            print(f"  {way:32} {N / median:6.0f} images a second   ratio {median / fastest:.2f}")


if __name__ == "__main__":
    main()
