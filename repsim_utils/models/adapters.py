"""Fine-tuning: copies of a model that learn through low-rank adapters (Hu et al. 2021), or with all their weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from repsim_utils.models import seeded
from repsim_utils.models.language import GPT

VERSION = 1  # raised when the same arguments and seed give other adapters
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # linear maps of Llama's blocks


def with_adapters(base: GPT, *, rank: int, alpha: int, dropout: float = 0.0, seed: int) -> GPT:
    """A model with fresh adapters beside the linear maps of every block: W x becomes W x + (alpha / rank) B A x.

    Parameters
    ----------
    base : GPT
        Its weights are shared with the copy, which never changes them.
    rank : int
        Rows of A and columns of B.
    alpha : int
    dropout : float
        Of what A reads.
    seed : int
        Of A; B begins at zero, so that nothing is changed yet. The global random state is left alone.

    Returns
    -------
    GPT
        Only A and B can learn; they are in float32, whatever the base is in.

    Raises
    ------
    ValueError
        If the body has no linear maps.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from transformers.pytorch_utils import Conv1D

    maps = {name: part for name, part in base.body.named_modules() if isinstance(part, nn.Linear | Conv1D)}
    if not maps:
        raise ValueError(f"{type(base.body).__name__} has no linear maps to put adapters beside")
    turned = any(isinstance(part, Conv1D) for part in maps.values())  # GPT-2 keeps its matrices as (in, out)
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(maps), fan_in_fan_out=turned
    )
    shared = {id(weight): weight for weight in base.parameters()}
    model = copy.deepcopy(base, shared).requires_grad_(False)
    with seeded(seed):
        inject_adapter_in_model(config, model.body)
    for weight in learned(model).values():
        weight.data = weight.data.float()  # small steps need more digits than bfloat16 has
    return model


def with_all_weights(base: GPT) -> GPT:
    """A model all of whose weights can learn; those of `base` stay as they are."""
    return copy.deepcopy(base).requires_grad_(True)


def learned(model: GPT) -> dict[str, Tensor]:
    """What was fine-tuned, by name: all that is to be kept beside the base."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def n_learned(shape: dict[str, Any], rank: int) -> int:
    """How many numbers adapters of a rank have, on a model of a shape (see `repsim_utils.models.llama.build`)."""
    width, hidden = shape["width"], shape["hidden"]
    narrow = width // shape["n_head"] * shape["n_kv_head"]
    sides = 2 * (width + width) + 2 * (width + narrow) + 3 * (width + hidden)
    return shape["n_layer"] * rank * sides


@torch.no_grad()
def load(model: GPT, weights: dict[str, Tensor]) -> GPT:
    """Put what was `learned` into a model that has just been made ready for it in the same way."""
    places = learned(model)
    if set(places) != set(weights):
        odd = ", ".join(sorted(set(places) ^ set(weights))[:3])
        raise ValueError(f"these are not the weights of such a model; one has and the other has not {odd} …")
    for name, place in places.items():
        place.copy_(weights[name])
    return model


@torch.no_grad()
def updates(model: GPT, base: GPT) -> list[dict[str, tuple[Tensor, Tensor]]]:
    """What fine-tuning added to the linear maps of every block, as products of two matrices.

    Returns
    -------
    list of dict
        For each block, by the name of the map: float32 ``left`` (out, r) and ``right`` (r, in), on the CPU, whose
        product is the change of the map's weights. Where all weights have learned, ``right`` is the identity.
    """
    found = []
    for block, before in zip(model.body.layers, base.body.layers, strict=True):
        here, there = ({name.rpartition(".")[2]: map_ for name, map_ in b.named_modules()} for b in (block, before))
        found.append({name: _update(here[name], there[name]) for name in TARGETS})
    return found


def _update(part: Any, before: Any) -> tuple[Tensor, Tensor]:
    if hasattr(part, "lora_A"):
        (name,) = part.lora_A
        left, right = part.lora_B[name].weight * part.scaling[name], part.lora_A[name].weight
    else:
        left, right = part.weight - before.weight, torch.eye(part.weight.shape[1])
    return left.detach().float().cpu(), right.detach().float().cpu()
