"""Training of small language models: what they read, how, and which weights are kept."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from repsim_utils.models.language import build
from repsim_utils.overlap import split_by_chunk
from repsim_utils.training import language
from repsim_utils.training.language import Recipe, Stream, draw, evaluate, take, train, whole, windows

SMALL = {"n_layer": 1, "n_head": 2, "width": 16, "context": 8}
RECIPE = Recipe(steps=6, batch_size=4, lr=0.01, evaluate_every=2)


def counted(n):
    """Tokens that say where they stand."""
    return np.arange(n, dtype=np.uint16)


def random_windows(streams, n, context, rng):
    return take(streams, draw(streams, n, context, rng), context)


@given(seed=st.integers(0, 100), overlap=st.sampled_from([0, 0.25, 0.5, 1]), context=st.integers(1, 9))
def test_no_window_crosses_a_chunk(seed, overlap, context):
    """Chunks of one corpus are neighbours, and the tokens between those of one model are the other's."""
    split = split_by_chunk(83, overlap, seed=seed, n_chunks=8, min_length=context + 1)
    for chunks in (split.first, split.second):
        stream = Stream(counted(83), chunks)
        drawn = random_windows([stream], 40, context, np.random.default_rng(seed))
        for rows in (drawn, windows([stream], 40, context)):
            assert rows.shape[1] == context + 1 and rows.dtype == torch.int64
            assert (rows[:, 1:] - rows[:, :-1] == 1).all()
            inside = [((rows >= a) & (rows < b)).all(1) for a, b in chunks]
            assert torch.stack(inside).sum(0).eq(1).all()


def test_every_place_is_drawn_alike():
    """Chunks of 4 and 8 tokens have 2 and 6 places for windows of 3: each is drawn about as often."""
    stream = Stream(counted(20), np.array([[0, 4], [10, 18]]))
    starts, counts = random_windows([stream], 8000, 2, np.random.default_rng(0))[:, 0].unique(return_counts=True)
    assert starts.tolist() == [0, 1, 10, 11, 12, 13, 14, 15]
    assert (counts - 1000).abs().max() < 150


def test_every_stream_is_drawn_alike_whatever_its_size():
    streams = [Stream(counted(20), np.array([[0, 20]])), Stream(counted(9000) + 100, np.array([[0, 9000]]))]
    rows = random_windows(streams, 4000, 4, np.random.default_rng(0))
    assert abs(int((rows[:, 0] < 100).sum()) - 2000) < 150


def test_fixed_windows_do_not_overlap_and_lie_evenly():
    stream = whole(counted(1000))
    rows = windows([stream], 5, 9)
    assert rows[:, 0].tolist() == [0, 250, 500, 740, 990]
    every = windows([stream], 10_000, 9)
    assert len(every) == 100 and every.flatten().unique().numel() == every.numel()
    both = windows([stream, whole(counted(500) + 5000)], 6, 9)
    assert (both[:, 0] < 1000).sum() == 3 and len(both) == 6
    assert windows([whole(counted(5))], 10, 9).shape == (0, 10)


def test_a_chunk_that_is_too_short_is_told():
    with pytest.raises(ValueError, match="no chunk is long enough: windows need 9 tokens, and the longest has 5"):
        draw([whole(counted(5))], 1, 8, np.random.default_rng(0))


def test_learning_rate_rises_then_falls_to_a_tenth():
    recipe = Recipe(steps=100, batch_size=1, lr=1.0, evaluate_every=1, warmup=0.1)
    rates = [recipe.lr_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11) and rates[10] == pytest.approx(1)
    assert (np.diff(rates[:11]) > 0).all() and (np.diff(rates[10:]) < 0).all()
    assert rates[-1] == pytest.approx(0.1, abs=0.01)
    assert Recipe(steps=4, batch_size=1, lr=2.0, evaluate_every=1, warmup=0).lr_at(0) == 2


def literal(model, stream, recipe, seed):
    """The same in a plain loop, with AdamW as its authors write it."""
    parameters = list(model.parameters())
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
    rng = np.random.default_rng(seed)
    for step in range(recipe.steps):
        batch = random_windows([stream], recipe.batch_size, 8, rng)
        logits = model(batch[:, :-1])
        loss = -logits.log_softmax(-1).gather(2, batch[:, 1:, None]).mean()
        gradients = torch.autograd.grad(loss, parameters)
        scale = min(1.0, recipe.clip / float(sum(g.pow(2).sum() for g in gradients).sqrt() + 1e-6))
        lr = recipe.lr_at(step)
        for p, g, (m, v) in zip(parameters, gradients, moments, strict=True):
            m.mul_(recipe.betas[0]).add_(scale * g, alpha=1 - recipe.betas[0])
            v.mul_(recipe.betas[1]).add_((scale * g) ** 2, alpha=1 - recipe.betas[1])
            p.data.mul_(1 - lr * recipe.weight_decay * (p.dim() >= 2))
            m_hat, v_hat = (x / (1 - beta ** (step + 1)) for x, beta in zip((m, v), recipe.betas, strict=True))
            p.data.sub_(lr * m_hat / (v_hat.sqrt() + 1e-8))


def test_training_is_the_literal_loop():
    stream, recipe = whole(counted(60)), Recipe(steps=5, batch_size=4, lr=0.01, evaluate_every=5, clip=0.3)
    model = build(60, seed=0, **SMALL)
    other = copy.deepcopy(model)
    history = train(model, [stream], windows([stream], 2, 8), recipe, seed=7, progress=False)
    literal(other, stream, recipe, seed=7)
    for (name, one), two in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.allclose(one, two, atol=2e-5), name
    assert history.kept_step == 5 and history.tokens_per_second > 0 and not model.training


def test_parts_of_a_batch_add_up_to_it(monkeypatch):
    stream, weights = whole(counted(60)), []
    for at_once in (64, 3):
        monkeypatch.setattr(language, "AT_ONCE", at_once)
        model = build(60, seed=0, **SMALL)
        history = train(model, [stream], windows([stream], 2, 8), RECIPE, seed=7, progress=False)
        weights.append((model.body.wte.weight, history.curve[-1]["train"]))
    assert torch.allclose(weights[0][0], weights[1][0], atol=1e-5)
    assert weights[0][1] == pytest.approx(weights[1][1], abs=1e-5)


def test_it_learns_and_one_seed_is_one_result():
    stream = whole(np.tile(counted(10), 30))
    held_out = windows([stream], 4, 8)
    models = [build(10, seed=0, dropout=0.1, **SMALL) for _ in range(3)]
    recipe = Recipe(steps=60, batch_size=8, lr=0.02, evaluate_every=20)
    torch.manual_seed(9)
    before = torch.random.get_rng_state()
    histories = [
        train(model, [stream], held_out, recipe, seed=seed, progress=False)
        for model, seed in zip(models, (0, 0, 1), strict=True)
    ]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [point["step"] for point in histories[0].curve] == [20, 40, 60]
    assert histories[0].curve[-1]["validation"] < 0.3 < histories[0].curve[0]["train"]
    weights = [model.body.wte.weight for model in models]
    assert histories[0].curve == histories[1].curve and torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_without_patience_the_last_weights_are_kept_with_it_the_best(monkeypatch):
    """Losses on held-out text are given: they fall, then rise."""
    stream = whole(counted(60))
    held_out, given, seen = windows([stream], 2, 8), [3.0, 2.0, 2.5, 2.6, 2.7, 2.8], []

    def told(model, tokens, counts):
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return given[len(seen) - 1]

    monkeypatch.setattr(language, "evaluate", told)
    for patience, kept, n_evaluated in ((None, 12, 6), (2, 4, 4)):
        seen.clear()
        model = build(60, seed=0, **SMALL)
        recipe = Recipe(steps=12, batch_size=4, lr=0.01, evaluate_every=2, patience=patience)
        history = train(model, [stream], held_out, recipe, seed=0, progress=False)
        assert history.kept_step == kept and len(seen) == len(history.curve) == n_evaluated
        for name, value in model.state_dict().items():
            assert torch.equal(value, seen[kept // 2 - 1][name])


def test_loss_is_of_the_next_token():
    model = build(60, seed=0, **SMALL).eval()
    rows = windows([whole(counted(60))], 5, 8)
    with torch.no_grad():
        wanted = [F.cross_entropy(model(row[None, :-1])[0], row[1:]).item() for row in rows]
    assert evaluate(model, rows, batch_size=2) == pytest.approx(np.mean(wanted), abs=1e-5)


def test_what_cannot_be_trained_is_told():
    model, stream = build(60, seed=0, **SMALL), whole(counted(60))
    with pytest.raises(ValueError, match="there is no window to validate on"):
        train(model, [stream], torch.empty(0, 9, dtype=torch.int64), RECIPE, seed=0, progress=False)
    wild = Recipe(steps=40, batch_size=4, lr=1e30, evaluate_every=40)
    with pytest.raises(
        ValueError, match=r"training diverged before step 40: the loss is nan, on held-out text nan; lower lr = 1e\+30"
    ):
        train(model, [stream], windows([stream], 2, 8), wild, seed=0, progress=False)
    with pytest.raises(ValidationError):
        Recipe(steps=0, batch_size=1, lr=1, evaluate_every=1)


def test_only_tokens_that_count_are_learned():
    """Windows whose second half is something else: nothing differs if that half does not count."""
    first_half = lambda rows: (torch.arange(rows.shape[1]) < 9).expand(rows.shape)  # noqa: E731
    tokens = torch.randint(50, (40, 17), generator=torch.Generator().manual_seed(0))
    other = tokens.clone()
    other[:, 9:] = 50 - other[:, 9:]
    losses, weights = [], []
    for rows in (tokens, other):
        model = build(51, seed=0, **SMALL | {"context": 16})
        chunks = 17 * np.stack([np.arange(40), np.arange(1, 41)], 1)
        recipe = Recipe(steps=5, batch_size=8, lr=0.01, evaluate_every=5)
        read = Stream(rows.numpy().ravel(), chunks)
        history = train(model, [read], rows[:4], recipe, seed=0, counts=first_half, progress=False)
        losses.append(history.curve[-1])
        weights.append(torch.cat([weight.flatten() for weight in model.parameters()]))
    assert losses[0] == losses[1] and torch.equal(*weights)
    assert evaluate(model, tokens[:4]) != evaluate(model, other[:4])
