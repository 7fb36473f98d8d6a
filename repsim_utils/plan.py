"""What an experiment would take, before any of it is run: models, parameters, operations, disk, hours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
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
    """What training one model takes."""

    dataset: str  # what it is trained on
    network: dict[str, Any]  # arguments of `build` in one module of `repsim_utils.models`, without the seed
    n_train: int  # images of its training set, or windows of text that it reads in all
    epochs: int
    length: int  # height and width of an image as stored, in pixels; or length of a window, in tokens
    backward: float = 2.0  # operations backward for each one forward: 2 where all weights learn, 1 where hardly any do
    kept: int | None = None  # parameters that are kept on disk; by default all


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
    counts: Counter[tuple[str, str]] = Counter()
    rows: dict[str, dict[str, Any]] = {}
    for cell in cells:
        for i, (member, one) in enumerate((member, size(member)) for member in cell.members):
            model = getattr(cell, "architecture", one.network.get("name", "gpt"))  # as tables call it
            counts[one.dataset, model] += i == 0
            name = key(member.model_dump(mode="json"))
            if name not in rows:
                parameters, flops = cost(one.length, **one.network)
                rows[name] = one._asdict() | {"model": model, "parameters": parameters, "gflops": flops / 1e9}
                rows[name]["pflops"] = (1 + one.backward) * flops * one.n_train * one.epochs / 1e15
                rows[name]["disk_gb"] = parameters if one.kept is None else one.kept
    table = pd.DataFrame(rows.values()).groupby(["dataset", "model"], sort=False)
    columns = dict.fromkeys(("n_train", "epochs", "parameters", "gflops"), "max") | {"pflops": "sum", "disk_gb": "sum"}
    result = table.agg(columns).rename(columns={"n_train": "samples"})
    result.insert(0, "cells", [counts[names] for names in result.index])
    result.insert(1, "models", table.size())
    result["disk_gb"] *= 4 / 1e9
    result["hours"] = result["pflops"] * 1e3 / (GPUS[gpu] * utilisation) / 3600
    return result.reset_index()


def cost(length: int, **network: Any) -> tuple[int, int]:
    """Parameters of a network, and operations of one sample forward; nothing is computed, and no memory used.

    `length` is the height and width of an image, in pixels, or where the network has a `vocabulary` the tokens of a
    window; `network` are arguments of `build`, see `Size`. Pretrained networks are not downloaded.
    """
    return _cost(length, tuple(sorted(network.items())))


@lru_cache(maxsize=256)
def _cost(length: int, network: tuple[tuple[str, Any], ...]) -> tuple[int, int]:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    options: dict[str, Any] = dict(network)
    is_text = "vocabulary" in options
    with FakeTensorMode() if is_text else torch.device("meta"):  # each as the library behind the network bears it
        model: torch.nn.Module
        inputs = [torch.zeros(1, length, dtype=torch.int64) if is_text else torch.empty(1, 3, length, length)]
        if is_text:
            model = (llama if "n_kv_head" in options else language).build(seed=0, **options).eval()
        elif "schedule" in options:
            model = diffusion.build(seed=0, **options).eval()
            inputs += [torch.zeros(1, dtype=torch.int64)] * 2  # a timestep and a class
        else:
            model = vision.build(seed=0, download=False, **options).eval()
        # Attention as plain products: fused kernels are not counted on every device.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
            model(*inputs)
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops()
