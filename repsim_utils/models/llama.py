"""Models in Llama's shape (Touvron et al. 2023), to be fine-tuned: made by others, or to be pretrained by the book."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from repsim_utils import reason
from repsim_utils.datasets import cache
from repsim_utils.datasets.cache import DataError
from repsim_utils.models import seeded
from repsim_utils.models.language import GPT

VERSION = 1  # raised when the same arguments and seed give another network
SMOLLM2 = "smollm2"
HUB = {
    "llama-3.2-1b-instruct": "meta-llama/Llama-3.2-1B-Instruct",
    "llama-3.2-3b-instruct": "meta-llama/Llama-3.2-3B-Instruct",
    "llama-3.2-11b-vision-instruct": "meta-llama/Llama-3.2-11B-Vision-Instruct",
}
# As their makers' configurations have them. Of the 11B its text half: the layers that look at images see none.
SHAPES: dict[str, dict[str, Any]] = {
    SMOLLM2: {"vocabulary": 49_152, "n_layer": 30, "n_head": 9, "n_kv_head": 3, "width": 576, "hidden": 1536},
    "llama-3.2-1b-instruct": {
        "vocabulary": 128_256, "n_layer": 16, "n_head": 32, "n_kv_head": 8, "width": 2048, "hidden": 8192
    },
    "llama-3.2-3b-instruct": {
        "vocabulary": 128_256, "n_layer": 28, "n_head": 24, "n_kv_head": 8, "width": 3072, "hidden": 8192
    },
    "llama-3.2-11b-vision-instruct": {
        "vocabulary": 128_256, "n_layer": 32, "n_head": 32, "n_kv_head": 8, "width": 4096, "hidden": 14_336,
        "tied": False,
    },
}  # fmt: skip


def build(
    vocabulary: int,
    *,
    seed: int,
    n_layer: int,
    n_head: int,
    n_kv_head: int,
    width: int,
    hidden: int,
    context: int,
    tied: bool = True,
) -> GPT:
    """A freshly initialised model.

    Parameters
    ----------
    vocabulary : int
        Number of tokens.
    seed : int
        Of the initial weights; the global random state is left alone.
    n_layer, n_head, n_kv_head : int
        Blocks, heads of each, and heads that have keys and values of their own, which divide the others.
    width, hidden : int
        Dimension d of the hidden states, a multiple of the number of heads, and of what is inside a block's MLP.
    context : int
        The most tokens that it reads at once.
    tied : bool
        The matrix that embeds tokens also makes logits.
    """
    from transformers import LlamaConfig, LlamaModel

    if width % n_head or n_head % n_kv_head or width // n_head % 2:
        raise ValueError(
            f"width must be an even multiple of n_head, and n_head a multiple of n_kv_head; got {width}, {n_head} and "
            f"{n_kv_head}"
        )
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=n_layer,
        num_attention_heads=n_head,
        num_key_value_heads=n_kv_head,
        max_position_embeddings=context,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    config._attn_implementation = "sdpa"
    with seeded(seed):
        head = None if tied else torch.nn.Linear(width, vocabulary, bias=False)
        return GPT(LlamaModel(config), head)


@lru_cache(maxsize=1)
def load(name: str, *, context: int) -> GPT:
    """A model made by others, in evaluation mode; loaded once in a process, and not to be changed.

    Parameters
    ----------
    name : str
        One of `SHAPES`: ``smollm2``, which ``repsim models smollm2`` fetches, in float32; or a Llama, in bfloat16, from
        the hub unless its files lie in ``$REPSIM_DATA/hub/<name>/``.
    context : int
        How many tokens it reads at once.

    Raises
    ------
    DataError
        If it cannot be had.
    """
    from transformers import AutoModelForCausalLM

    folder = place(name)
    if not folder.is_dir() and name == SMOLLM2:
        raise DataError(f"smollm2 is not in {folder}: `repsim models smollm2` fetches it")
    source = str(folder) if folder.is_dir() else HUB[name]
    options = {"dtype": torch.float32 if name == SMOLLM2 else torch.bfloat16, "attn_implementation": "sdpa"}
    options |= {"use_safetensors": True, "trust_remote_code": False, "local_files_only": folder.is_dir()}
    try:
        whole = AutoModelForCausalLM.from_pretrained(source, token=os.environ.get("HF_TOKEN"), **options)
    except Exception as error:
        raise DataError(
            f"{name} cannot be loaded from {source} ({reason(error)}). With a network, and $HF_TOKEN for gated models, "
            f"the same command tries again; without, place its config.json and *.safetensors in {place(name)}"
        ) from None
    tied = whole.get_input_embeddings().weight is whole.lm_head.weight
    return GPT(whole.model, None if tied else whole.lm_head, context).requires_grad_(False).eval()


def place(name: str) -> Path:
    """The folder of a model's files."""
    return cache.default_root() / "hub" / name
