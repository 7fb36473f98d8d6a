"""Fine-tuning changes a copy: the base stays, what has learned is kept and found again."""

import copy

import numpy as np
import pytest
import torch

from repsim_utils.models import language, llama
from repsim_utils.models.adapters import TARGETS, learned, load, n_learned, updates, with_adapters, with_all_weights
from repsim_utils.store import Store
from repsim_utils.training.language import Recipe, evaluate, train, whole, windows

TINY = {"n_layer": 2, "n_head": 4, "n_kv_head": 2, "width": 32, "hidden": 64, "context": 16}
TOKENS = torch.randint(100, (3, 16), generator=torch.Generator().manual_seed(0))
RECIPE = Recipe(steps=5, batch_size=4, lr=0.01, evaluate_every=5)


@pytest.fixture
def base():
    return llama.build(100, seed=0, **TINY).requires_grad_(False).eval()


def adapted(base, seed=1, dropout=0.0):
    return with_adapters(base, rank=4, alpha=8, dropout=dropout, seed=seed)


KINDS = pytest.mark.parametrize("kind", [adapted, with_all_weights])


def tuned(model, **changes):
    stream = whole(np.random.default_rng(0).integers(0, 30, 2000).astype(np.uint16))
    recipe = RECIPE.model_copy(update=changes)
    train(model, [stream], windows([stream], 8, 16), recipe, seed=0, progress=False)
    return model, windows([stream], 8, 16)


@KINDS
def test_the_base_is_bit_for_bit_the_same_and_the_copy_has_learned(kind, base):
    before = copy.deepcopy(base.state_dict())
    model, seen = tuned(kind(base))
    assert list(base.state_dict()) == list(before)
    assert all(torch.equal(weight, before[name]) for name, weight in base.state_dict().items())
    assert not torch.equal(model(TOKENS), base(TOKENS))
    assert evaluate(model, seen) < evaluate(base, seen)


@KINDS
def test_a_fresh_copy_represents_all_as_the_base_does(kind, base):
    model = kind(base).eval()
    for x, y in zip(model.represent(TOKENS, layers=True), base.represent(TOKENS, layers=True), strict=True):
        assert torch.equal(x, y)
    assert torch.equal(model(TOKENS), base(TOKENS))


@KINDS
def test_what_was_learned_comes_back_from_the_store(kind, base, tmp_path):
    model, _ = tuned(kind(base))
    run = Store(tmp_path).save("models", {"a": 1}, {}, learned(model))
    again = load(kind(base), run.weights()).eval()
    assert torch.equal(again(TOKENS), model(TOKENS))
    if kind is adapted:
        assert sum(w.numel() for w in run.weights().values()) < sum(w.numel() for w in base.parameters()) / 2
    with pytest.raises(ValueError, match="these are not the weights of such a model"):
        load(kind(base), dict(list(run.weights().items())[1:]))


@torch.no_grad()
@KINDS
def test_updates_are_what_the_maps_do_beyond_the_base(kind, base):
    with torch.enable_grad():
        model, _ = tuned(kind(base))
    for block, before, found in zip(model.body.layers, base.body.layers, updates(model, base), strict=True):
        assert set(found) == set(TARGETS)
        for path, name in (("self_attn", "k_proj"), ("mlp", "down_proj")):
            here, there = (getattr(getattr(part, path), name) for part in (block, before))
            x = torch.randn(5, there.in_features, generator=torch.Generator().manual_seed(0))
            left, right = found[name]
            assert left.abs().sum() > 0
            torch.testing.assert_close(here(x) - there(x), x @ (left @ right).T, atol=1e-5, rtol=1e-4)


def test_a_seed_gives_one_adapter_and_leaves_the_random_state_alone(base):
    before = torch.get_rng_state()
    first, again, other = (learned(adapted(base, seed)) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), before)


def test_adapters_on_the_books_own_gpt_change_every_linear_map():
    """GPT-2 keeps its matrices as (in, out), and calls them otherwise than Llama."""
    base = language.build(50, seed=0, n_layer=2, n_head=2, width=16).eval()
    model = adapted(base).eval()
    names = {name.partition(".lora_")[0] for name in learned(model)}
    wanted = {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}
    assert names == {f"body.h.{i}.{name}" for i in (0, 1) for name in wanted}
    tokens = TOKENS[:, :8] % 50
    torch.testing.assert_close(model(tokens), base(tokens))
    plain = copy.deepcopy(base)
    with torch.no_grad():
        for name in names:
            part = model.get_submodule(name)
            left, right = part.lora_B["default"].weight.normal_(), part.lora_A["default"].weight
            plain.get_submodule(name).weight += (2 * left @ right).T  # alpha / rank
    assert (plain(tokens) - base(tokens)).abs().max() > 0.1
    torch.testing.assert_close(model(tokens), plain(tokens), rtol=1e-4, atol=1e-4)


def test_adapters_have_as_many_weights_as_is_told(base):
    assert n_learned(TINY, 4) == sum(weight.numel() for weight in learned(adapted(base)).values())


def test_a_base_in_bfloat16_learns_in_float32(base):
    model, seen = tuned(adapted(base.to(torch.bfloat16)))
    assert {weight.dtype for weight in learned(model).values()} == {torch.float32}
    assert model(TOKENS).dtype == torch.bfloat16
    assert evaluate(model, seen) < evaluate(base, seen)


def test_dropout_is_of_training_alone(base):
    model, _ = tuned(adapted(base, dropout=0.5))
    assert torch.equal(model(TOKENS), model(TOKENS))
    model.train()
    assert not torch.equal(model(TOKENS), model(TOKENS))
