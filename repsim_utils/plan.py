"""What an experiment would take, before any of it is run: models, parameters, operations, disk, hours."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import pandas as pd
import torch

from repsim_utils.models import diffusion, language, llama, vision
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
        Arguments of `build` in one module of `repsim_utils.models`, without the seed.
    n_train : int
        Images of its training set, or windows of text that it reads in all.
    epochs : int
    length : int
        Height and width of an image as stored, in pixels; or length of a window, in tokens.
    backward : float
        Operations backward for each one forward: 2 where all weights learn, 1 where hardly any do.
    kept : int, optional
        Parameters that are kept on disk; by default all.
    """

    dataset: str
    network: dict[str, Any]
    n_train: int
    epochs: int
    length: int
    backward: float = 2.0
    kept: int | None = None


def plan(cells: Iterable[Any], *, gpu: str = "a100", utilisation: float = 0.25) -> pd.DataFrame:
    """One row for each data set and network of an experiment.

    Parameters
    ----------
    cells : iterable
        Pairs, as `repsim_utils.experiments.engine.Pair`: each has an `architecture`, and models that it ``needs()``,
        which have a ``size()``.
    gpu : str
        One of `GPUS`.
    utilisation : float
        Share of the GPU's peak that training is taken to reach. An assumption: measure it on the GPU at hand.

    Returns
    -------
    DataFrame
        dataset, model, cells, models (each is trained once, whatever the number of cells it is in), samples (images or
        windows of one model's training set), epochs, parameters (of one model), gflops (10^9 operations of one sample
        forward, a multiplication and an addition counting two), pflops (10^15 operations to train all models, forward
        and backward), disk_gb (weights that are kept, in float32), hours (of all trainings on one GPU).

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
        for model in cell.needs():
            one, name = model.size(), key(model.config())
            if name not in rows:
                parameters, flops = cost(one.length, **one.network)
                training = (1 + one.backward) * flops * one.n_train * one.epochs / 1e15
                rows[name] = one._asdict() | {"model": cell.architecture, "parameters": parameters, "pflops": training}
                rows[name]["kept"] = parameters if one.kept is None else one.kept
                rows[name]["gflops"] = flops / 1e9
        names = cell.first.size().dataset, cell.architecture
        counts[names] = counts.get(names, 0) + 1
    table = pd.DataFrame(rows.values()).groupby(["dataset", "model"], sort=False)
    result = table.agg(
        models=("n_train", "size"),
        samples=("n_train", "max"),
        epochs=("epochs", "max"),
        parameters=("parameters", "max"),
        gflops=("gflops", "max"),
        pflops=("pflops", "sum"),
        disk_gb=("kept", "sum"),
    ).reset_index()
    result.insert(2, "cells", [counts.get(names, 0) for names in zip(result["dataset"], result["model"], strict=True)])
    result["disk_gb"] *= 4 / 1e9
    result["hours"] = result["pflops"] * 1e3 / (GPUS[gpu] * utilisation) / 3600
    return result


def cost(length: int, **network: Any) -> tuple[int, int]:
    """Parameters of a network, and operations of one sample forward; nothing is computed, and no memory used.

    Parameters
    ----------
    length : int
        Height and width of an image; or tokens of a window, where the network has a `vocabulary`.
    **network
        Arguments of `build`, see `Size`; pretrained networks are not downloaded.
    """
    return _cost(length, tuple(sorted(network.items())))


@lru_cache(maxsize=256)
def _cost(length: int, network: tuple[tuple[str, Any], ...]) -> tuple[int, int]:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    options = dict(network)
    is_text = "vocabulary" in options
    inputs: tuple[torch.Tensor, ...]
    with FakeTensorMode() if is_text else torch.device("meta"):  # each as the library behind the network bears it
        if is_text:
            build = llama.build if "n_kv_head" in options else language.build
            model: Any = build(seed=0, **options).eval()
            inputs = (torch.zeros(1, length, dtype=torch.int64),)
        elif "schedule" in options:
            model, at = diffusion.build(seed=0, **options).eval(), torch.zeros(1, dtype=torch.int64)
            inputs = (torch.empty(1, 3, length, length), at, at)
        else:
            model = vision.build(seed=0, download=False, **options).eval()
            inputs = (torch.empty(1, 3, length, length),)
        # Attention as plain products: fused kernels are not counted on every device.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
            model(*inputs)
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops()
