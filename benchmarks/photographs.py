"""How recipes for photographs were chosen: accuracy, fit and seconds of single models, and white-box success by ε.

No pair is compared, so no slope on overlap is seen. Run with one thread and nothing beside it, for each network:
``OMP_NUM_THREADS=1 python benchmarks/photographs.py small_resnet`` (or ``small_vit``).
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch

from repsim_utils.attacks import adversarial
from repsim_utils.experiments import samples, vision
from repsim_utils.experiments.samples import Data, relabelled
from repsim_utils.models.vision import as_float
from repsim_utils.store import Store
from repsim_utils.training.vision import Recipe, accuracy

SEEDS = (100, 101, 102, 103)  # for this alone; the experiments have others
ADAMW: dict[str, Any] = {"optimizer": "adamw", "weight_decay": 0.05, "label_smoothing": 0}
NETWORKS: dict[str, dict[str, Any]] = {
    "small_resnet": {"name": "small_resnet", "width": 32},
    "small_vit": {"name": "small_vit", "width": 64, "depth": 2},
}
RECIPES: dict[str, list[dict[str, Any]]] = {
    "small_resnet": [
        {"epochs": 15, "batch_size": 64, "lr": 0.005, "peak_epoch": 3},  # as on ColorShapeDigit
        {"epochs": 8, "batch_size": 64, "lr": 0.005, "peak_epoch": 2},
    ],
    "small_vit": [
        {"epochs": 30, "batch_size": 32, "lr": 0.002, "peak_epoch": 6, "translate": 2},  # as on ColorShapeDigit
        {"epochs": 30, "batch_size": 32, "lr": 0.002, "peak_epoch": 6},
    ],
}
EACH = (50, 100, 300)  # photographs a class and model
EPSILONS = (8, 16, 24)


def main() -> None:
    name = sys.argv[1]
    print(
        "photographs  epochs  translate  seed  seconds  fit   accuracy  white-box at " + ", ".join(map(str, EPSILONS))
    )
    for each in EACH:
        for options in RECIPES[name]:
            for seed in SEEDS[: 1 if each == max(EACH) else None]:
                print(
                    f"{each:11}  {options['epochs']:6}  {options.get('translate', 0):9}",
                    *tried(name, each, options, seed),
                )


def tried(name: str, each: int, options: dict[str, Any], seed: int) -> list[str]:
    """Seconds, accuracy on the model's own and on held-out photographs, and white-box success, of one model."""
    data = Data(source="fashion_mnist", n_per_class=2 * each)  # which the two models of a pair divide
    about: dict[str, Any] = {"by": "example", "which": 1, "overlap": 0.0, "fingerprint": samples.fingerprint(data)}
    about |= {"network": NETWORKS[name], "recipe": Recipe(**ADAMW | options)}
    member = vision.Member(seed=seed, data=data, **about)
    network, start = member.build(Store()), time.perf_counter()
    member.fit(network, Store(), progress=False)
    seconds = time.perf_counter() - start
    images, labels = relabelled(samples.held_out(data, 160, seed, member.fingerprint), member.label_map())
    found = [
        f"{seed:4} {seconds:8.1f}",
        f"{accuracy(network, *member.own()):5.3f}",
        f"{accuracy(network, images, labels):9.3f}",
    ]
    x, y = as_float(images[:320]), labels[:320]
    with torch.no_grad():
        right = network.eval()(x).argmax(1) == y
    for epsilon in EPSILONS:
        attacked = adversarial.attack(network, x[right], y[right], "mi-fgsm", epsilon=epsilon, seed=seed)
        with torch.no_grad():
            found.append(f"{float((network(attacked).argmax(1) != y[right]).double().mean()):7.3f}")
    return found


if __name__ == "__main__":
    main()
