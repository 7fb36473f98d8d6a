"""Where layers of networks that others wrote keep samples and features: the right row, or the layer left out."""

import itertools
import logging
import random

import pytest
import timm
import torch
import transformers
from torch import nn

from repsim_utils.metrics import cka, layer_features, layerwise

N = 4


T = transformers
TIMM = {  # options of a network of 64 px with random widths and depths
    "convnext_atto": lambda r: {"depths": (1, r(1, 2), 1, 1), "dims": (8 * r(1, 3), 16, 24, 8)},
    "convnext_atto_ols": lambda r: {"depths": (1, 1, 1, 1), "dims": (16, 8 * r(1, 3), 8, 8), "conv_mlp": True},
    "swin_tiny_patch4_window7_224": lambda r: {"img_size": 56, "depths": (r(1, 2), 1), "embed_dim": 24},
    "swinv2_tiny_window8_256": lambda r: {"img_size": 64, "depths": (1, 1), "embed_dim": 24 * r(1, 2)},
    "vit_tiny_patch16_224": lambda r: {"img_size": 64, "depth": r(1, 3), "embed_dim": 12 * r(1, 4)},
    "mixer_s16_224": lambda r: {"img_size": 64},
    "resnet10t": lambda r: {"layers": (1, r(1, 2), 1, 1), "channels": (16, 8 * r(1, 4), 16, 8), "stem_width": 8},
    "densenet121": lambda r: {"block_config": (r(1, 2), 2), "growth_rate": 8},
    "cait_xxs24_224": lambda r: {"img_size": 64, "depth": r(1, 2), "embed_dim": 48},
    "xcit_nano_12_p16_224": lambda r: {"img_size": 64, "depth": r(1, 2)},
}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
GPT2 = {"n_layer": 2, "n_head": 2, "bos_token_id": None, "eos_token_id": None}
TRANSFORMERS = {
    T.BertModel: lambda r: SMALL | {"num_hidden_layers": r(1, 3)},
    T.RobertaModel: lambda r: SMALL,
    T.DistilBertModel: lambda r: {"dim": 8 * r(2, 4), "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    T.GPT2Model: lambda r: GPT2 | {"n_embd": 8 * r(2, 4)},
    T.LlamaModel: lambda r: SMALL | {"intermediate_size": 16 * r(2, 4)},
    T.T5EncoderModel: lambda r: {"d_model": 32, "d_kv": 16, "num_layers": r(1, 2), "num_heads": 2, "d_ff": 64},
    T.ViTModel: lambda r: SMALL | {"image_size": 32, "patch_size": 8},
    T.ConvNextModel: lambda r: {"hidden_sizes": [8, 16], "depths": [1, r(1, 2)], "num_stages": 2},
}


def random_network(kind, rng):
    """A network of random widths and depths whose layers all say something, and a batch for it."""
    torch.manual_seed(rng.randrange(1000))
    if isinstance(kind, str):
        options = TIMM[kind](rng.randint)
        model = timm.create_model(kind, pretrained=False, num_classes=7, **options)
        batch = torch.rand(N, 3, options.get("img_size", 64), options.get("img_size", 64))
    elif kind.main_input_name == "pixel_values":
        model = kind(kind.config_class(**TRANSFORMERS[kind](rng.randint)))
        batch = {"pixel_values": torch.rand(N, 3, 32, 32)}
    else:
        model = kind(kind.config_class(vocab_size=50, **TRANSFORMERS[kind](rng.randint)))
        batch = {"input_ids": torch.randint(5, 50, (N, 9)), "attention_mask": torch.ones(N, 9)}
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.2) if weight.ndim > 1 else nn.init.uniform_(weight, 0.5, 1.5)
    return model, batch


def alone(model, batch, layer):
    """Rows by hand: one sample at a time, the mean over all that is not a feature, whose number the layer knows."""
    module, kept = dict(model.named_modules())[layer], []
    width = next(
        w for name in ("out_features", "out_channels", "embedding_dim", "nf") if (w := getattr(module, name, 0))
    )
    handle = module.register_forward_hook(lambda _, inputs, output: kept.append(output.clone()))
    with torch.no_grad():
        for i in range(N):
            one = {k: v[i : i + 1] for k, v in batch.items()} if isinstance(batch, dict) else batch[i : i + 1]
            model.eval()(**one) if isinstance(batch, dict) else model.eval()(one)
    handle.remove()
    assert len(kept) == N
    last = not isinstance(module, (nn.Conv1d, nn.Conv2d))
    return torch.stack([(x if last else x.movedim(1, -1)).reshape(-1, width).mean(0) for x in kept])


@pytest.mark.parametrize("kind", [*TIMM, *TRANSFORMERS], ids=lambda kind: getattr(kind, "__name__", kind))
def test_every_default_layer_has_the_right_rows_or_is_left_out(kind, caplog):
    model, batch = random_network(kind, random.Random(str(kind)))
    parts = [{k: v[i] for k, v in batch.items()} if isinstance(batch, dict) else batch[i] for i in ([0, 1, 2], [3])]
    with caplog.at_level(logging.WARNING):
        (found,) = layer_features([model], parts, [None])
    default = {n for n, m in model.named_modules() if getattr(m, "weight", None) is not None and m.weight.ndim > 1}
    told = set(itertools.chain(*(record.args[2].split(", ") for record in caplog.records if "layers" in record.name)))
    assert set(found) | told == default and not set(found) & told and len(found) > len(default) / 2
    for layer, rows in found.items():
        expected = alone(model, batch, layer)
        assert rows.shape == expected.shape, layer
        torch.testing.assert_close(rows, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()), msg=layer)


def rows_of(model, batch, layer):
    return layer_features([model], [batch], [[layer]])[0][layer]


class Sequences(nn.Module):
    """A network of sequences (t, b, d), or (b, t, d)."""

    def __init__(self, first):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.TransformerEncoderLayer(6, 2, 5, batch_first=first)
        self.memory = nn.GRU(6, 4, batch_first=first)
        self.first = first

    def forward(self, x):  # (b, t, d)
        x = self.encoder(x if self.first else x.transpose(0, 1))
        return self.memory(x)[0].mean(1 if self.first else 0)


@pytest.mark.parametrize("tokens", [7, N])  # as many tokens as samples, too
@pytest.mark.parametrize("layer", ["encoder.linear1", "encoder.norm2", "encoder", "memory"])
def test_samples_on_the_second_axis(layer, tokens):
    x = torch.randn(N, tokens, 6, generator=torch.Generator().manual_seed(0))
    first, second = (rows_of(Sequences(first), x, layer) for first in (True, False))
    alone = torch.cat([rows_of(Sequences(True), x[i : i + 1], layer) for i in range(N)])
    torch.testing.assert_close(second, first, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone, first, rtol=1e-4, atol=1e-5)


class Block(nn.Module):
    """As many features as positions in both directions, so that shapes alone do not tell."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.GELU())
        self.norm = nn.LayerNorm(6)
        self.mlp = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Dropout(0.5))

    def forward(self, x):
        x = self.conv(x)
        return x + self.mlp(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


def test_features_are_followed_where_shapes_do_not_tell():
    model, x = Block().eval(), torch.randn(N, 3, 6, 6)
    with torch.no_grad():
        conv = model.conv(x)
        mlp = model.mlp(model.norm(conv.permute(0, 2, 3, 1)))
    for layer in ("conv", "conv.1"):
        torch.testing.assert_close(rows_of(model, x, layer), conv.mean((2, 3)))
    for layer in ("mlp", "mlp.1"):
        torch.testing.assert_close(rows_of(model, x, layer), mlp.mean((1, 2)))
    with pytest.raises(
        ValueError, match=r"the network itself returns \(4, 6, 6, 6\), and it is not clear which axis holds its feat"
    ):
        rows_of(model, x, "")


def bert(seed):
    torch.manual_seed(seed)
    return T.BertModel(T.BertConfig(vocab_size=50, **SMALL)).eval()


def padded(texts):
    ids = nn.utils.rnn.pad_sequence(texts, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask}


TEXTS = [torch.randint(5, 50, (n,), generator=torch.Generator().manual_seed(n)) for n in range(3, 23)]


@pytest.mark.parametrize("layer", ["encoder.layer.1.output.LayerNorm", "encoder.layer.0.intermediate.dense", "encoder"])
def test_padding_does_not_count(layer):
    model = bert(0)
    expected = torch.cat([rows_of(model, {"input_ids": text[None]}, layer) for text in TEXTS])
    for size in (1, 6, 20):
        batches = [padded(TEXTS[i : i + size]) for i in range(0, 20, size)]
        (found,) = layer_features([model], batches, [[layer]])
        torch.testing.assert_close(found[layer], expected, rtol=1e-4, atol=1e-5)
    no_mask = layer_features([model], [{"input_ids": padded(TEXTS)["input_ids"]}], [[layer]])[0][layer]
    assert (no_mask - expected).abs().max() > 0.01
    numbers = {name: values.numpy() for name, values in padded(TEXTS).items()}
    torch.testing.assert_close(rows_of(model, numbers, layer), expected, rtol=1e-4, atol=1e-5)


def test_a_decoder_has_a_mask_of_its_own():
    torch.manual_seed(0)
    model = T.T5Model(
        T.T5Config(vocab_size=50, d_model=32, d_kv=16, num_layers=1, num_decoder_layers=1, num_heads=2)
    ).eval()
    read, written = TEXTS[:6], TEXTS[6:12][::-1]
    layers = ["encoder.block.0", "decoder.block.0.layer.1.EncDecAttention.k", "decoder.block.0.layer.0"]

    def batch(some, others):
        return padded(some) | {f"decoder_{name}": values for name, values in padded(others).items()}

    expected = [layer_features([model], [batch([a], [b])], [layers])[0] for a, b in zip(read, written, strict=True)]
    (found,) = layer_features([model], [batch(read, written)], [layers])
    for layer in layers:
        torch.testing.assert_close(found[layer], torch.cat([one[layer] for one in expected]), rtol=1e-4, atol=1e-5)


def test_what_has_no_row_for_each_sample_is_refused_by_name(caplog):
    model, images = random_network("swin_tiny_patch4_window7_224", random.Random(0))
    with pytest.raises(
        ValueError, match=r"layer layers.0.blocks.0.attn.proj has no row .* \(16, 49, 24\) for 4 samples"
    ):
        rows_of(model, images, "layers.0.blocks.0.attn.proj")
    ids = {"input_ids": torch.stack([text[:3] for text in TEXTS])}
    with pytest.raises(ValueError, match=r"embeddings.position_embeddings does not follow the batch: .* \(1, 3, 32\)"):
        rows_of(bert(0), ids, "embeddings.position_embeddings")
    table = layerwise(bert(0), bert(1), [ids])
    assert "layers of BertModel that are left out (gives every sample the same): embeddings.token_type" in caplog.text
    assert "embeddings.word_embeddings" in table.first and not any("position" in name for name in table.first)
    with pytest.raises(ValueError, match="has a sample of which the attention_mask leaves no token"):
        rows_of(bert(0), ids | {"attention_mask": torch.zeros(20, 3)}, "encoder")


def test_batches_are_several():
    model = nn.Conv2d(3, 2, 1)
    for batches in (torch.rand(N, 3, 8, 8), torch.rand(N, 3, 8, 8).numpy(), {"input": torch.rand(N, 3, 8, 8)}):
        with pytest.raises(ValueError, match="batches must be several, such as a list of tensors or a DataLoader"):
            layer_features([model], batches, [[""]])
    with pytest.raises(ValueError, match="a batch is a tensor, a tuple that begins with one, or a mapping; got str"):
        layer_features([model], ["abc"], [[""]])


def test_each_model_may_have_batches_of_its_own():
    x = torch.rand(30, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    wide, narrow = (nn.Sequential(nn.Flatten(), nn.Linear(3 * size**2, 5)) for size in (8, 4))
    few = x[:, :, ::2, ::2]
    table = layerwise(wide, narrow, x.split(7), ["1"], batches_b=few.split(11))
    with torch.no_grad():
        assert table.values.item() == pytest.approx(cka(wide(x), narrow(few)), abs=1e-6)
    with pytest.raises(ValueError, match="the two models have seen 30 and 29 samples"):
        layerwise(wide, narrow, [x], ["1"], batches_b=[few[:29]])


def test_a_network_for_one_size_of_batch():
    """One that cannot be run with a sample more: samples are taken to be on axis 0."""

    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(12, 2)

        def forward(self, x):
            return self.head(x.reshape(N, 12))

    x = torch.rand(N, 3, 2, 2)
    torch.testing.assert_close(rows_of(model := Fixed(), x, "head"), model(x).detach())
