"""The small GPT: its size, what it looks at, its representation, and what it writes."""

import pytest
import torch
import torch.nn.functional as F

from repsim_utils.models.language import build, generate

SMALL = {"n_layer": 2, "n_head": 2, "width": 16, "context": 12}


@pytest.fixture
def model():
    return build(50, seed=0, **SMALL).eval()


@pytest.fixture
def tokens():
    return torch.randint(50, (3, 12), generator=torch.Generator().manual_seed(1))


def by_hand(vocabulary, n_layer, width, context):
    """Embeddings of tokens and places; of a block attention, two layers four times as wide, two norms; a last norm."""
    attention = width * 3 * width + 3 * width + width * width + width
    mlp = width * 4 * width + 4 * width + 4 * width * width + width
    return vocabulary * width + context * width + n_layer * (attention + mlp + 4 * width) + 2 * width


@pytest.mark.parametrize(
    ("vocabulary", "n_layer", "n_head", "width", "context", "parameters"),
    [(50_257, 6, 6, 384, 256, 30_044_544), (50_257, 12, 12, 768, 256, 123_849_984), (2048, 4, 4, 128, 128, 1_071_872)],
)
def test_parameters(vocabulary, n_layer, n_head, width, context, parameters):
    """The second is GPT-2 itself (124,439,808 parameters) with a quarter of its context."""
    with torch.device("meta"):
        model = build(vocabulary, seed=0, n_layer=n_layer, n_head=n_head, width=width, context=context)
    assert sum(p.numel() for p in model.parameters()) == parameters == by_hand(vocabulary, n_layer, width, context)
    if width == 768:
        assert parameters == 124_439_808 - (1024 - 256) * 768


def test_a_seed_makes_the_same_weights_and_leaves_the_global_state_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, same, other = (build(50, seed=seed, **SMALL).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["body.wte.weight"], other["body.wte.weight"])


def test_weights_begin_small(model):
    """A fresh model thinks all tokens about as likely."""
    loss = F.cross_entropy(model(torch.arange(12)[None])[0], torch.arange(12))
    assert loss.item() == pytest.approx(torch.log(torch.tensor(50.0)).item(), abs=0.2)


def test_it_looks_back_only(model, tokens):
    changed = tokens.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 50
    with torch.no_grad():
        one, other = model(tokens), model(changed)
    assert torch.allclose(one[:, :7], other[:, :7], atol=1e-6) and not torch.allclose(one[:, 7:], other[:, 7:])


def test_output_is_tied_to_input(model, tokens):
    with torch.no_grad():
        hidden = model.body(tokens).last_hidden_state
        assert torch.allclose(model(tokens), hidden @ model.body.wte.weight.T, atol=1e-5)
    assert "head" not in " ".join(model.state_dict())


def test_representation_is_the_mean_of_the_last_hidden_state(model, tokens):
    with torch.no_grad():
        (last,), layers = model.represent(tokens), model.represent(tokens, layers=True)
        hidden = model.body(tokens).last_hidden_state
        embedded = model.body.wte(tokens) + model.body.wpe(torch.arange(12))
    assert torch.allclose(last, hidden.mean(1), atol=1e-6)
    assert len(layers) == 1 + SMALL["n_layer"] and torch.allclose(layers[-1], last, atol=1e-6)
    assert torch.allclose(layers[0], embedded.mean(1), atol=1e-6)
    assert all(layer.shape == (3, 16) for layer in layers)


def test_what_it_writes(model):
    prompt = torch.tensor([1, 2, 3])
    one, same, other = (generate(model, prompt, 20, seed=seed) for seed in (0, 0, 1))
    assert (
        one.shape == (23,) and torch.equal(one[:3], prompt) and torch.equal(one, same) and not torch.equal(one, other)
    )
    with torch.no_grad():
        likeliest = int(model(prompt[None])[0, -1].argmax())
    assert int(generate(model, prompt, 1, seed=0, top_k=1)[-1]) == likeliest


@pytest.mark.parametrize("options", [{"temperature": 0}, {"top_k": 0}])
def test_odd_ways_to_write_are_refused(model, options):
    with pytest.raises(ValueError, match="temperature must be above 0, top_k at least 1 or None"):
        generate(model, torch.tensor([1]), 1, seed=0, **options)
    with pytest.raises(ValueError, match="and 0 tokens"):
        generate(model, torch.tensor([], dtype=torch.int64), 1, seed=0)


def test_heads_must_fit():
    with pytest.raises(ValueError, match="width must be a multiple of n_head = 3, got 16"):
        build(50, seed=0, n_layer=1, n_head=3, width=16)
