"""What an experiment would take, before any of it is run: models, parameters, operations, disk, hours."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import pandas as pd
import torch

from repsim_utils.models.vision import build
from repsim_utils.store import key

# Dense peak of matrix products in 10^12 operations a second, as their makers state it: TF32 where there is such, else
# float32.
GPUS = {"v100": 15.7, "t4": 8.1, "a100": 156.0, "h100": 494.0, "rtx4090": 82.6, "l40s": 183.0}


class Size(NamedTuple):
    """What training one model takes.

    Attributes
    ----------
    dataset : str
        What it is trained on.
    network : dict
        Arguments of `repsim_utils.models.vision.build`, without the seed.
    n_train : int
        Images of its training set.
    epochs : int
    pixels : int
        Height and width of an image as stored.
    """

    dataset: str
    network: dict[str, Any]
    n_train: int
    epochs: int
    pixels: int


def plan(
    cells: Iterable[Any], size: Callable[[Any], Size], *, gpu: str = "a100", utilisation: float = 0.25
) -> pd.DataFrame:
    """One row for each data set and network of an experiment.

    Parameters
    ----------
    cells : iterable
        Configurations of the cells; see `repsim_utils.sweep.Config`.
    size : callable
        From a member of a cell to its `Size`.
    gpu : str
        One of `GPUS`.
    utilisation : float
        Share of the GPU's peak that training is taken to reach. An assumption: measure it on the GPU at hand.

    Returns
    -------
    DataFrame
        dataset, model, cells, models (each is trained once, whatever the number of cells it is in), images (of one
        model's training set), epochs, parameters (of one model), gflops (10^9 operations of one image forward, a
        multiplication and an addition counting two), pflops (10^15 operations to train all models, where backward
        takes twice as much as forward), disk_gb (all weights, in float32) and hours (of all trainings on one GPU).

    Raises
    ------
    ValueError
        If the GPU is unknown or the utilisation not in (0, 1].
    """
    if gpu not in GPUS:
        raise ValueError(f"unknown gpu {gpu!r}; choose from {', '.join(GPUS)}")
    if not 0 < utilisation <= 1:
        raise ValueError(f"utilisation must be above 0 and at most 1, got {utilisation}")
    counts: dict[tuple[str, str], int] = {}
    rows: dict[str, dict[str, Any]] = {}
    for cell in cells:
        for member in cell.members:
            one = size(member)
            model = getattr(cell, "architecture", one.network["name"])  # as tables call it
            name = key(member.model_dump(mode="json"))
            if name not in rows:
                parameters, flops = cost(one.pixels, **one.network)
                training = 3 * flops * one.n_train * one.epochs / 1e15
                rows[name] = one._asdict() | {"model": model, "parameters": parameters, "pflops": training}
                rows[name]["gflops"] = flops / 1e9
        first = size(cell.members[0])
        names = first.dataset, getattr(cell, "architecture", first.network["name"])
        counts[names] = counts.get(names, 0) + 1
    table = pd.DataFrame(rows.values()).groupby(["dataset", "model"], sort=False)
    result = table.agg(
        models=("n_train", "size"),
        images=("n_train", "max"),
        epochs=("epochs", "max"),
        parameters=("parameters", "max"),
        gflops=("gflops", "max"),
        pflops=("pflops", "sum"),
    ).reset_index()
    result.insert(2, "cells", [counts.get(names, 0) for names in zip(result["dataset"], result["model"], strict=True)])
    result["disk_gb"] = result["models"] * result["parameters"] * 4 / 1e9
    result["hours"] = result["pflops"] * 1e3 / (GPUS[gpu] * utilisation) / 3600
    return result


def cost(pixels: int, **network: Any) -> tuple[int, int]:
    """Parameters of a network, and operations of one image forward; nothing is computed, and no memory used.

    Parameters
    ----------
    pixels : int
        Height and width of the image.
    **network
        Arguments of `repsim_utils.models.vision.build`, without the seed; pretrained networks are not downloaded.
    """
    return _cost(pixels, tuple(sorted(network.items())))


@lru_cache(maxsize=256)
def _cost(pixels: int, network: tuple[tuple[str, Any], ...]) -> tuple[int, int]:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = build(seed=0, download=False, **dict(network)).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(1, 3, pixels, pixels))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops()
