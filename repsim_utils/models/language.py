"""Language models: transformers' GPT-2, small, its output tied to its input, and the representation of a text.

The shape is that of GPT-2 (Radford et al. 2019); the published small models are such as nanoGPT trains.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from repsim_utils.models import seeded

VERSION = 1  # raised when the same arguments and seed give another network


class GPT(nn.Module):
    """A decoder-only transformer.

    Parameters
    ----------
    body : transformers.PreTrainedModel
        From tokens (n, t) to hidden states (n, t, d), normalised after the last block: a `GPT2Model`, a `LlamaModel`.
    head : nn.Linear, optional
        From hidden states to logits; by default the matrix that embeds tokens.
    context : int, optional
        How many tokens it reads at once; by default the most that the body can.
    """

    def __init__(self, body: Any, head: nn.Module | None = None, context: int | None = None) -> None:
        super().__init__()
        self.body = body
        self.head = head
        self.context: int = context or body.config.max_position_embeddings

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the token after each: int64 (n, t) to (n, t, vocabulary)."""
        return self.logits(self.body(tokens, use_cache=False).last_hidden_state)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (…, d) to logits (…, vocabulary)."""
        head: Any = self.head or self.body.get_input_embeddings()
        return nn.functional.linear(hidden, head.weight)

    def represent(self, tokens: Tensor, *, layers: bool = False) -> list[Tensor]:
        """Mean over positions of hidden states: int64 (n, t) to one (n, d) array, that of the last layer.

        With `layers` one array for each layer: the embedding first, then every block; the last is after the final
        normalisation, as without `layers`.
        """
        found = self.body(tokens, use_cache=False, output_hidden_states=layers)
        states = found.hidden_states if layers else [found.last_hidden_state]
        return [state.mean(1) for state in states]


def build(
    vocabulary: int,
    *,
    seed: int,
    n_layer: int = 4,
    n_head: int = 4,
    width: int = 128,
    context: int = 128,
    dropout: float = 0.0,
) -> GPT:
    """A freshly initialised GPT.

    Parameters
    ----------
    vocabulary : int
        Number of tokens.
    seed : int
        Of the initial weights; the global random state is left alone.
    n_layer, n_head, width : int
        Blocks, heads of each, and dimension d of the hidden states, a multiple of the number of heads.
    context : int
        The most tokens that it reads at once.
    dropout : float
        Of embeddings, attention and what each half of a block adds.
    """
    from transformers import GPT2Config, GPT2Model

    if width % n_head:
        raise ValueError(f"width must be a multiple of n_head = {n_head}, got {width}")
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=context,
        n_embd=width,
        n_layer=n_layer,
        n_head=n_head,
        activation_function="gelu",
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        resid_pdrop=dropout,
        bos_token_id=None,
        eos_token_id=None,
    )
    config._attn_implementation = "sdpa"
    with seeded(seed):
        return GPT(GPT2Model(config))


@torch.no_grad()
def generate(
    model: GPT, prompt: Tensor, n: int, *, seed: int, temperature: float = 0.8, top_k: int | None = 50
) -> Tensor:
    """Text as the model would go on: token by token, each drawn from the likeliest.

    Parameters
    ----------
    model : GPT
    prompt : Tensor
        int64 (t,), at least one token.
    n : int
        How many tokens to add.
    seed : int
    temperature : float
        Logits are divided by it.
    top_k : int, optional
        How many of the likeliest tokens are drawn from; None for all.

    Returns
    -------
    Tensor
        int64 (t + n,), on the CPU.

    Raises
    ------
    ValueError
        If the temperature, `top_k` or the prompt is none.
    """
    if temperature <= 0 or (top_k is not None and top_k < 1) or not len(prompt):
        raise ValueError(
            f"temperature must be above 0, top_k at least 1 or None, and the prompt not empty; got {temperature}, "
            f"{top_k} and {len(prompt)} tokens"
        )
    where = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    model.eval()
    tokens = prompt.clone()
    for _ in range(n):
        logits = model(tokens[-model.context :].unsqueeze(0).to(where))[0, -1].cpu() / temperature
        if top_k is not None and top_k < len(logits):
            logits[logits < logits.topk(top_k).values[-1]] = -torch.inf
        tokens = torch.cat([tokens, torch.multinomial(logits.softmax(0), 1, generator=generator)])
    return tokens
