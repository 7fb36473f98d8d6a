"""Models in Llama's shape: their sizes, what they represent, and where those of others come from."""

import pytest
import torch

from repsim_utils.datasets.cache import DataError
from repsim_utils.models import llama
from repsim_utils.models.llama import SHAPES, build

TINY = {"n_layer": 2, "n_head": 4, "n_kv_head": 2, "width": 32, "hidden": 64, "context": 16}
TOKENS = torch.randint(100, (3, 16), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "n"),
    [
        ("smollm2", 134_515_008),
        ("llama-3.2-1b-instruct", 1_235_814_400),
        ("llama-3.2-3b-instruct", 3_212_749_824),
        ("llama-3.2-11b-vision-instruct", 8_030_261_248),  # its text half is Llama 3.1 8B
    ],
)
def test_parameters_are_as_many_as_their_makers_say(name, n):
    with torch.device("meta"):
        model = build(seed=0, context=128, **SHAPES[name])
    assert sum(weight.numel() for weight in model.parameters()) == n


def test_a_seed_gives_one_model_and_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    first, again, other = (build(100, seed=seed, **TINY) for seed in (0, 0, 1))
    assert torch.equal(first(TOKENS), again(TOKENS)) and not torch.equal(first(TOKENS), other(TOKENS))
    assert torch.equal(torch.get_rng_state(), before)


@torch.no_grad()
def test_representations_of_layers():
    model = build(100, seed=0, **TINY).eval()
    layers = model.represent(TOKENS, layers=True)
    assert [tuple(layer.shape) for layer in layers] == [(3, 32)] * 3
    torch.testing.assert_close(layers[-1], *model.represent(TOKENS))
    torch.testing.assert_close(layers[0], model.body.embed_tokens(TOKENS).mean(1))


def test_heads_that_do_not_fit_are_told():
    with pytest.raises(ValueError, match="n_head a multiple of n_kv_head; got 32, 4 and 3"):
        build(100, seed=0, **TINY | {"n_kv_head": 3})


@pytest.mark.parametrize("tied", [True, False])
def test_a_llama_from_its_place(tied, tmp_path, monkeypatch):
    """Files as the hub has them, small: in bfloat16, and nothing in them is executed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    monkeypatch.setenv("REPSIM_DATA", str(tmp_path))
    llama.load.cache_clear()
    sizes = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": tied}
    theirs = LlamaForCausalLM(LlamaConfig(**sizes, **heads)).to(torch.bfloat16).eval()
    folder = llama.place("llama-3.2-1b-instruct")
    theirs.save_pretrained(folder)
    loaded = llama.load("llama-3.2-1b-instruct", context=16)
    with torch.no_grad():
        torch.testing.assert_close(loaded(TOKENS), theirs(TOKENS).logits, atol=2e-3, rtol=0.02)
    assert loaded(TOKENS).dtype == torch.bfloat16 and (loaded.head is None) == tied
    llama.load.cache_clear()
    (folder / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"cannot be loaded from .*place its config.json and \*.safetensors in"):
        llama.load("llama-3.2-1b-instruct", context=16)
