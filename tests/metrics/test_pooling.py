"""What becomes of positions and tokens: each choice against a computation written apart, in float64."""

import copy
import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from repsim_utils.metrics import cknna, layer_features, layerwise, mutual_knn, similarity
from repsim_utils.metrics.kernel import Gram, cka_score, unbiased_cka_score
from tests.metrics import literal


class Net(nn.Module):
    """Maps of 6 × 6, 6 × 6 and 4 × 4, each changed in place by what follows, and a vector."""

    def __init__(self, seed, width=8):
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.second = nn.Conv2d(width, 5, 3, padding=1)
        self.third = nn.Conv2d(5, 6, 3)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(6 * 4 * 4, 7)

    def forward(self, x):
        x = self.act(self.third(self.act(self.second(self.act(self.first(x))))))
        return self.act(self.head(x.flatten(1)))


LAYERS = ("first", "second", "third", "head")
IMAGES = torch.randn(20, 3, 6, 6, generator=torch.Generator().manual_seed(0))
BATCHES = IMAGES.split(8)  # the last one is short


def maps(net, images=IMAGES):
    """Every layer in float64, without hooks."""
    net, x, found = copy.deepcopy(net).double(), images.double(), {}
    with torch.no_grad():
        for name in LAYERS[:3]:
            layer = getattr(net, name)
            found[name] = F.conv2d(x, layer.weight, layer.bias, padding=layer.padding)
            x = found[name].relu()
        found["head"] = x.reshape(len(x), -1) @ net.head.weight.T + net.head.bias
    return {name: x.numpy() for name, x in found.items()}


def pooled(x, pool):
    """(n, c, h, w) or (n, c) → rows."""
    if x.ndim == 2:
        return x
    if pool == "positions":
        return np.array(
            [[sample[:, i, j] for i in range(x.shape[2]) for j in range(x.shape[3])] for sample in x]
        ).reshape(-1, x.shape[1])
    return x.mean((2, 3)) if pool == "mean" else x.reshape(len(x), -1)


def expected(first, second, pool, metric):
    """The table, NaN where the numbers of rows differ."""
    table = [[(pooled(x, pool), pooled(y, pool)) for y in second.values()] for x in first.values()]
    return np.array([[metric(x, y) if len(x) == len(y) else np.nan for x, y in row] for row in table])


@pytest.mark.parametrize("name", ["cka", "unbiased_cka"])
def test_maps_by_every_pool(name):
    a, b = Net(0), Net(1, width=4)
    tables = {}
    for pool in ("mean", "flatten", "positions"):
        table = layerwise(a, b, BATCHES, LAYERS, pool=pool, metric=name)
        assert (table.first, table.second, table.metric, table.pool) == (LAYERS, LAYERS, name, pool)
        tables[pool] = expected(maps(a), maps(b), pool, getattr(literal, name))
        np.testing.assert_allclose(table.values, tables[pool], rtol=1e-5, atol=1e-6)
    assert np.isnan(tables["positions"]).sum() == 10 and not np.isnan(tables["flatten"]).any()
    where = [0, 1, 2], [1, 0, 2]  # the choice shows, beyond these tolerances
    for one, other in (("mean", "flatten"), ("mean", "positions"), ("flatten", "positions")):
        apart = np.abs(tables[one] - tables[other])[where]
        assert apart.min() > 1e-4 and apart.max() > 0.01


def test_the_default_is_the_mean_and_is_named():
    table = layerwise(Net(0), Net(1), BATCHES, LAYERS)
    assert table.pool == "mean"
    np.testing.assert_allclose(table.values, expected(maps(Net(0)), maps(Net(1)), "mean", literal.cka), rtol=1e-5)
    with pytest.raises(ValueError, match="pool must be one of mean, flatten, positions, got 'max'"):
        layerwise(Net(0), Net(1), BATCHES, pool="max")


def test_rows_are_those_of_the_layer_in_order_whatever_changes_it_later():
    net = Net(0)
    for pool in ("mean", "flatten", "positions"):
        (found,) = layer_features([net], BATCHES, [LAYERS], pool=pool)
        for name, x in maps(net).items():
            np.testing.assert_allclose(found[name], pooled(x, pool), rtol=1e-4, atol=1e-5)
            assert found[name].dtype == torch.float32 and (found[name].min() < 0)


def test_batches_are_gone_through_once_and_need_no_fixed_order():
    class Shuffled:
        def __init__(self):
            self.rounds = 0

        def __iter__(self):
            self.rounds += 1
            return iter(IMAGES[torch.randperm(len(IMAGES))].split(8))

    for pool in ("mean", "flatten", "positions"):
        batches = Shuffled()
        table = layerwise(Net(0), copy.deepcopy(Net(0)), batches, LAYERS, pool=pool)
        np.testing.assert_allclose(np.diag(table.values), 1, rtol=1e-6)
        assert batches.rounds == 1
        once = layerwise(Net(0), Net(1), (batch for batch in BATCHES), LAYERS, pool=pool).values
        np.testing.assert_array_equal(once, layerwise(Net(0), Net(1), BATCHES, LAYERS, pool=pool).values)


@pytest.mark.parametrize("pool", ["flatten", "positions"])
def test_other_metrics_and_the_paper_s_preparation(pool):
    a, b = Net(0), Net(1)
    x, y = (pooled(maps(net)["third"], pool) for net in (a, b))
    by_neighbors = layerwise(a, b, BATCHES, ["third"], pool=pool, metric="mutual_knn", k=4).values.item()
    assert by_neighbors == pytest.approx(mutual_knn(x, y, k=4), abs=2e-3)  # a tie in float32 may be none in float64
    assert layerwise(a, b, BATCHES, ["third"], pool=pool, metric="cknna").values.item() == pytest.approx(
        cknna(x, y), rel=1e-2
    )
    prepared = layerwise(a, b, BATCHES, ["third"], pool=pool, preprocess="platonic").values.item()
    assert prepared == pytest.approx(similarity(x, y, ["cka"])["cka"], rel=1e-5)
    assert abs(prepared - literal.cka(x, y)) > 1e-3


def test_layers_that_differ_in_positions_are_told(caplog):
    with caplog.at_level(logging.WARNING):
        layerwise(Net(0), Net(1), BATCHES, (["first", "head"], ["second", "third"]), pool="positions")
    assert "3 of 4 pairs of layers differ in their number of positions, and are NaN" in caplog.text
    with pytest.raises(
        ValueError, match="4 of 4 pairs of layers differ in their number of positions, and can't be comp"
    ):
        layerwise(Net(0), Net(1), BATCHES, (["first", "second"], ["third", "head"]), pool="positions")


@pytest.mark.parametrize("pool", ["flatten", "positions"])
def test_what_is_wrong_with_a_layer_is_said_as_ever(pool):
    broken, silent = Net(0), Net(0)
    broken.second.weight.data[0, 0, 0, 0] = torch.nan
    nn.init.zeros_(silent.second.weight)
    nn.init.zeros_(silent.second.bias)
    with pytest.raises(ValueError, match="layer second must be finite, got NaN"):
        layerwise(broken, Net(1), BATCHES, ["second"], pool=pool)
    with pytest.raises(ValueError, match=r"layer second has no variance: its .* rows are all the same"):
        layerwise(silent, Net(1), BATCHES, ["second"], pool=pool)
    if pool == "flatten":
        with pytest.raises(ValueError, match="layer second needs at least 4 rows for this metric, got 3"):
            layerwise(Net(0), Net(1), [IMAGES[:3]], ["second"], pool=pool, metric="unbiased_cka")


def test_pictures_of_several_sizes_are_not_flattened():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    sizes = [torch.randn(5, 3, size, size) for size in (6, 8)]
    with pytest.raises(ValueError, match="layer 0 has 64 features in one batch and 144 in another: use pool='mean'"):
        layerwise(net, net, sizes, ["0"], pool="flatten")
    assert layerwise(net, net, sizes, ["0"], pool="positions").values.item() == pytest.approx(1)
    assert layer_features([net], sizes, [["0"]], pool="positions")[0]["0"].shape == (5 * 16 + 5 * 36, 4)


class Reader(nn.Module):
    """One block of attention under a mask."""

    def __init__(self, seed, width=6):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(30, width)
        self.mix = nn.Linear(width, width + 3)
        self.pooler = nn.Linear(width + 3, 4)

    def forward(self, input_ids, attention_mask):
        x = self.embed(input_ids)
        x = x + F.scaled_dot_product_attention(x, x, x, attn_mask=attention_mask[:, None].bool())
        there = attention_mask[..., None]
        return self.pooler((self.mix(x).tanh() * there).sum(1) / there.sum(1))


TOKENS = ("embed", "mix", "pooler")
TEXTS = [torch.randint(30, (n,), generator=torch.Generator().manual_seed(n)) for n in range(3, 31)]


def read(reader, text):
    """Every layer for one text, without padding: float64 (tokens, features)."""
    weights = {name: value.double().numpy() for name, value in reader.state_dict().items()}
    x = embedded = weights["embed.weight"][text.numpy()]
    scores = np.exp(x @ x.T / x.shape[1] ** 0.5)
    x = x + scores / scores.sum(1, keepdims=True) @ x
    mixed = x @ weights["mix.weight"].T + weights["mix.bias"]
    return embedded, mixed, np.tanh(mixed).mean(0, keepdims=True) @ weights["pooler.weight"].T + weights["pooler.bias"]


def padded(texts, side="right"):
    ids = nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_side=side)
    ones = [torch.ones_like(text) for text in texts]
    return {"input_ids": ids, "attention_mask": nn.utils.rnn.pad_sequence(ones, batch_first=True, padding_side=side)}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pool", ["mean", "positions"])
def test_tokens_that_are_padded_do_not_count(pool, side):
    a, b = Reader(0), Reader(1, width=5)
    batches = [padded(TEXTS[i : i + 10], side) for i in range(0, len(TEXTS), 10)]
    each = [[read(net, text) for text in TEXTS] for net in (a, b)]
    rows = [
        [
            np.concatenate([x if pool == "positions" else x.mean(0, keepdims=True) for x in layer])
            for layer in zip(*texts, strict=True)
        ]
        for texts in each
    ]
    (found,) = layer_features([a], batches, [TOKENS], pool=pool)
    for name, x in zip(TOKENS, rows[0], strict=True):
        np.testing.assert_allclose(found[name], x, rtol=1e-4, atol=1e-5)
    table = layerwise(a, b, batches, TOKENS, pool=pool)
    values = [[literal.cka(x, y) if len(x) == len(y) else np.nan for y in rows[1]] for x in rows[0]]
    np.testing.assert_allclose(table.values, values, rtol=1e-5)
    assert np.isnan(table.values).sum() == (4 if pool == "positions" else 0)


def test_sequences_are_flattened_if_none_is_padded():
    a, b = Reader(0), Reader(1)
    texts = [torch.randint(30, (7,), generator=torch.Generator().manual_seed(i)) for i in range(20)]
    batches = [padded(texts[i : i + 8]) for i in range(0, 20, 8)]
    rows = [
        [np.stack([x.reshape(-1) for x in layer]) for layer in zip(*(read(net, t) for t in texts), strict=True)]
        for net in (a, b)
    ]
    values = [[literal.cka(x, y) for y in rows[1]] for x in rows[0]]
    np.testing.assert_allclose(layerwise(a, b, batches, TOKENS, pool="flatten").values, values, rtol=1e-5)


def test_sequences_that_are_padded_or_of_several_lengths_are_not_flattened():
    a, b = Reader(0), Reader(1)
    for layers in (TOKENS, None):
        with pytest.raises(
            ValueError, match=r"pool='flatten' needs sequences of one length, .* use pool='mean' or 'posi"
        ):
            layerwise(a, b, [padded(TEXTS)], layers, pool="flatten")
        with pytest.raises(
            ValueError, match="layer embed has 18 features in one batch and 24 in another: use pool='mean'"
        ):
            layerwise(a, b, [padded([text]) for text in TEXTS], layers, pool="flatten")
    assert layerwise(a, b, [padded(TEXTS)], ["pooler"], pool="flatten").values.shape == (1, 1)  # it has no tokens


def test_tokens_of_two_tokenizers_are_not_matched_by_chance():
    """As many tokens in all, and not in each text."""
    a, b = Reader(0), Reader(1)
    with pytest.raises(ValueError, match="1 of 1 pairs of layers differ in their number of positions"):
        layerwise(a, b, [padded(TEXTS)], ["mix"], batches_b=[padded(TEXTS[::-1])], pool="positions")
    none = padded(TEXTS) | {"attention_mask": torch.zeros(len(TEXTS), 30)}
    with pytest.raises(ValueError, match="has a sample of which the attention_mask leaves no token"):
        layerwise(a, b, [none], ["mix"], pool="positions")


@pytest.mark.parametrize("pool", ["flatten", "positions"])
def test_samples_on_the_second_axis(pool):
    class Sequences(nn.Module):
        def __init__(self, first):
            super().__init__()
            torch.manual_seed(0)
            self.memory, self.first = nn.GRU(6, 4, batch_first=first), first

        def forward(self, x):  # (b, t, d)
            return self.memory(x if self.first else x.transpose(0, 1))[0]

    x = torch.randn(5, 7, 6, generator=torch.Generator().manual_seed(0))
    one, other = (
        layer_features([Sequences(first)], [x], [["memory"]], pool=pool)[0]["memory"] for first in (True, False)
    )
    assert one.shape == ((5, 28) if pool == "flatten" else (35, 4))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(one, Sequences(True)(x).reshape(one.shape), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(40, 5000, 700), (600, 2500, 30), (5, 9, 3)])
@pytest.mark.parametrize("move", [lambda x: x, lambda x: x + 30, lambda x: x * 1e-20, lambda x: x * 1e18])
def test_a_kernel_from_batches_is_that_of_all_rows(shape, move):
    n, d1, d2 = shape
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, d1, generator=generator)
    y = x @ torch.randn(d1, d2, generator=generator) / d1**0.5 + torch.randn(n, d2, generator=generator)
    x = move(x)
    a, b = (Gram.of(values.split(max(n // 3, 2))) for values in (x, y))
    centered = [values.double().numpy() - values.double().numpy().mean(0) for values in (x, y)]
    centered = [values / np.abs(values).max() for values in centered]
    order = torch.randperm(n, generator=generator)
    for one, other in ((a, b), (a.permuted(order), b.permuted(order))):
        assert cka_score(one, other) == pytest.approx(literal.cka(*centered), rel=1e-5)
        assert unbiased_cka_score(one, other) == pytest.approx(literal.unbiased_cka(*centered), rel=1e-5, abs=1e-5)
    assert abs(cka_score(a.permuted(order), b) - cka_score(a, b)) > 1e-3
    assert cka_score(a, a) == pytest.approx(1, rel=1e-12)
