"""Layer tables: the whole sample, hooks that leave no trace, and clear errors."""

import numpy as np
import pytest
import torch
from torch import nn

from repsim_utils.metrics import cka, layer_features, layerwise, mutual_knn


class Net(nn.Module):
    def __init__(self, seed, width=8):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.ReLU()
        self.head = nn.Sequential(nn.Flatten(1), nn.Dropout(0.5), nn.LazyLinear(5))
        self(torch.zeros(2, 3, 6, 6))

    def forward(self, x):
        return self.head(self.act(self.act(self.norm(self.conv(x)))))


IMAGES = torch.randn(50, 3, 6, 6, generator=torch.Generator().manual_seed(0))
BATCHES = IMAGES.split(16)  # the last one is short


def test_values_are_those_of_the_whole_sample():
    a, b = Net(0).eval(), Net(1, width=6).eval()
    table = layerwise(a, b, BATCHES)
    assert table.first == table.second == ("conv", "head.2")
    with torch.no_grad():
        conv = a.conv(IMAGES).mean((2, 3)), b.conv(IMAGES).mean((2, 3))
        logits = a(IMAGES), b(IMAGES)
    expected = [[cka(x, y) for y in (conv[1], logits[1])] for x in (conv[0], logits[0])]
    np.testing.assert_allclose(table.values, expected, rtol=1e-5)
    by_neighbors = layerwise(a, b, BATCHES, metric="mutual_knn", k=5)
    assert by_neighbors.values[1, 1] == pytest.approx(mutual_knn(*logits, k=5))


def test_a_model_against_itself():
    model = Net(0)
    table = layerwise(model, model, BATCHES)
    np.testing.assert_allclose(np.diag(table.values), 1, rtol=1e-12)
    np.testing.assert_allclose(table.values, table.values.T, rtol=1e-10)


def test_layers_by_name_for_both_or_for_each():
    a, b = Net(0), Net(1)
    assert layerwise(a, b, BATCHES, ["norm", "head"]).values.shape == (2, 2)
    table = layerwise(a, b, BATCHES, (["norm", "conv"], ["head"]))
    assert (table.first, table.second, table.values.shape) == (("norm", "conv"), ("head",), (2, 1))


def test_models_are_left_as_they_were():
    model = Net(0).train()
    model.norm.eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    layerwise(model, Net(1), BATCHES)
    assert model.training and model.head.training and not model.norm.training
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_hooks_are_taken_off_after_an_error():
    model = Net(0)
    with pytest.raises(RuntimeError):
        layerwise(model, model, [torch.zeros(2, 7, 6, 6)])
    assert not any(module._forward_hooks for module in model.modules())
    assert model.training


def test_batches_with_labels_or_keywords():
    a, b = Net(0), Net(1)
    plain = layerwise(a, b, BATCHES).values
    labelled = layerwise(a, b, ((images, torch.zeros(len(images))) for images in BATCHES)).values
    named = layerwise(a, b, ({"x": images} for images in BATCHES)).values
    np.testing.assert_array_equal(plain, labelled)
    np.testing.assert_array_equal(plain, named)


def test_tokens_are_averaged_and_are_not_samples():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(20, 7)
            self.attention = nn.MultiheadAttention(7, 1, batch_first=True)

        def forward(self, ids):
            x = self.embed(ids)
            return self.attention(x, x, x)[0]

    ids = torch.randint(0, 20, (30, 9), generator=torch.Generator().manual_seed(0))
    model = Tokens()
    (features,) = layer_features([model], [ids], [["embed", "attention"]])
    assert features["embed"].shape == features["attention"].shape == (30, 7)
    torch.testing.assert_close(features["embed"], model.embed(ids).mean(1))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["fc"], "no layer fc; there is conv, norm, act, head, head.0, head.1, head.2"),
        (["act"], "layer act is used more than once in a pass"),
        ([], "no layer named"),
    ],
)
def test_bad_layers(layers, message):
    with pytest.raises(ValueError, match=message):
        layerwise(Net(0), Net(1), BATCHES, layers)


def test_no_batches_and_unused_layers():
    with pytest.raises(ValueError, match="there are no batches"):
        layerwise(Net(0), Net(1), [])
    model = Net(0)
    model.extra = nn.Linear(3, 3)
    assert "extra" not in layerwise(model, Net(1), BATCHES).first
    with pytest.raises(ValueError, match="layer extra is not used in a pass"):
        layerwise(model, Net(1), BATCHES, (["extra"], ["head"]))


def test_a_layer_that_says_nothing_is_named(caplog):
    model = Net(0)
    nn.init.zeros_(model.conv.weight)
    with pytest.raises(ValueError, match="layer conv has no variance"):
        layerwise(model, Net(1), BATCHES, ["conv"])
    assert layerwise(Net(1), Net(2), BATCHES).first == ("conv", "head.2") and not caplog.text
    model.head[2].weight.data.normal_()
    with pytest.raises(ValueError, match="no layer of Net has a row for each sample"):  # nothing comes through
        layerwise(model, Net(1), BATCHES)
    assert "layers of Net that are left out (gives every sample the same): conv, head.2" in caplog.text
    with pytest.raises(ValueError, match="layer conv needs at least 4 rows"):
        layerwise(Net(0), Net(1), [IMAGES[:3]], metric="unbiased_cka")
