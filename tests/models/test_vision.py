"""Classifiers: shapes, sizes and seeds."""

import re
import socket
import time
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file

from repsim_utils.models.vision import NAMES, RESNETS, SMALL, VITS, WeightsError, as_float, build


def n_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("name", "width"), [("small_resnet", 4), ("small_resnet", 16), ("resnet18", 16)])
@pytest.mark.parametrize("size", [17, 28])
def test_shapes(name, width, size):
    model = build(name, 7, seed=0, width=width).eval()
    images = torch.rand(3, 3, size, size)
    representation = model.represent(images)
    assert representation.shape == (3, 512 if name == "resnet18" else 4 * width)
    assert model(images).shape == (3, 7)
    assert torch.equal(model(images), model.head(representation))


@pytest.mark.parametrize(("stem", "n_classes", "expected"), [("imagenet", 1000, 11_689_512), ("cifar", 10, 11_173_962)])
def test_resnet18_has_the_known_number_of_parameters(stem, n_classes, expected):
    assert n_parameters(build("resnet18", n_classes, seed=0, stem=stem)) == expected


def test_the_cifar_stem_keeps_the_resolution():
    images, shapes = torch.rand(1, 3, 32, 32), {}
    for stem in ("imagenet", "cifar"):
        body = build("resnet18", 10, seed=0, stem=stem).eval().body
        body.layer1.register_forward_hook(lambda *args, stem=stem: shapes.update({stem: tuple(args[2].shape[2:])}))
        body(images)
    assert shapes == {"imagenet": (8, 8), "cifar": (32, 32)}


def test_width_and_depth_make_the_small_network_larger():
    sizes = [n_parameters(build("small_resnet", 10, seed=0, width=w, depth=d)) for w, d in ((4, 1), (8, 1), (8, 2))]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(
    ("name", "width"), [("small_resnet", 16), ("resnet18", 16), ("small_vit", 64), ("vit_tiny_patch16_224", 16)]
)
def test_seeds(name, width):
    before = torch.get_rng_state()
    one, same, other = (build(name, 10, seed=seed, width=width).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])


@pytest.mark.parametrize("width", [4, 8, 16])
def test_few_channels_never_meet_a_strided_1x1_convolution(width):
    """There oneDNN writes past its workspace, which ends the process now and then; the result is the same."""
    model = build("small_resnet", 10, seed=0, width=width)
    shortcuts = [
        block for block in model.modules() if isinstance(getattr(block, "shortcut", None), torch.nn.Sequential)
    ]
    small = [block for block in shortcuts if block.shortcut[0].in_channels < 16]
    assert len(shortcuts) == 2 and len(small) == {4: 2, 8: 1, 16: 0}[width]
    for block in shortcuts:
        convolution = block.shortcut[0]
        assert convolution.stride == ((1, 1) if block in small else (2, 2))
        x = torch.rand(2, convolution.in_channels, 7, 7)
        expected = F.conv2d(x, convolution.weight, stride=2)
        assert torch.allclose(convolution(x[:, :, :: block.skip, :: block.skip]), expected, atol=1e-6)


def test_models_own_their_normalisation():
    model = build("small_resnet", 10, seed=0, width=4).eval()
    images = torch.rand(2, 3, 28, 28)
    assert torch.allclose(model.represent(images), model.body((images - 0.5) / 0.25))


def test_as_float():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, 16, 16)
    floats = as_float(images)
    assert floats.dtype == torch.float32 and torch.equal(floats.cpu(), images / 255)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "resnet19"}, rf"model must be one of {re.escape(str(NAMES))}, got 'resnet19'"),
        ({"stem": "mnist"}, r"stem must be one of \('imagenet', 'cifar'\), got 'mnist'"),
        ({"width": 0}, "must be positive, got 0, 1 and 10"),
        ({"depth": -1}, "must be positive, got 16, -1 and 10"),
        ({"n_classes": 0}, "must be positive, got 16, 1 and 0"),
        ({"name": "small_vit", "width": 16}, "width of small_vit must be a multiple of 32, got 16"),
        ({"name": "small_vit", "width": 48}, "width of small_vit must be a multiple of 32, got 48"),
        ({"pretrained": True}, "there are no pretrained weights for small_resnet with the imagenet stem"),
        ({"name": "small_vit", "pretrained": True}, "there are no pretrained weights for small_vit"),
        (
            {"name": "resnet18", "stem": "cifar", "pretrained": True},
            "no pretrained weights for resnet18 with the cifar",
        ),
    ],
)
def test_errors(change, message):
    with pytest.raises(ValueError, match=message):
        build(**({"name": "small_resnet", "n_classes": 10, "seed": 0} | change))


def test_the_names():
    assert (*SMALL, *RESNETS, *VITS) == NAMES and len(set(NAMES)) == 10


@pytest.mark.parametrize("width", [32, 96])
@pytest.mark.parametrize("size", [17, 28, 32, 64])
def test_shapes_of_the_small_transformer(width, size):
    model = build("small_vit", 7, seed=0, width=width, depth=2).eval()
    images = torch.rand(3, 3, size, size)
    representation = model.represent(images)
    assert representation.shape == (3, width) and model(images).shape == (3, 7)
    assert torch.equal(model(images), model.head(representation))


def test_width_and_depth_make_the_small_transformer_larger():
    sizes = [n_parameters(build("small_vit", 10, seed=0, width=w, depth=d)) for w, d in ((32, 1), (64, 1), (64, 2))]
    assert sizes == sorted(set(sizes))


def test_a_transformer_resizes_what_it_is_given():
    model = build("small_vit", 7, seed=0, width=32).eval()
    images = torch.rand(2, 3, 50, 50)
    resized = F.interpolate(images, (28, 28), mode="bilinear", align_corners=False)
    assert torch.allclose(model(images), model(resized), atol=1e-6)


SIZES = {name: 28 if name in SMALL else 224 if name in VITS else 64 for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_every_network_learns_with_all_its_parameters(name):
    """One step's gradients, on two images: finite, and none missing."""
    model = build(name, 5, seed=0, width=32).train()
    images = torch.rand(2, 3, SIZES[name], SIZES[name], generator=torch.Generator().manual_seed(0))
    logits = model(images)
    assert logits.shape == (2, 5)
    F.cross_entropy(logits, torch.tensor([0, 4])).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
    assert (model.head.weight.grad != 0).any() and (next(model.body.parameters()).grad != 0).any()


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Neither a network nor weights that were downloaded before; waiting takes no time, but is added up."""
    waited = []

    def refuse(*args, **options):
        raise OSError(101, "Network is unreachable")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


PRETRAINED = ("resnet18", "resnet152", "vit_tiny_patch16_224")


@pytest.mark.parametrize("name", PRETRAINED)
def test_without_a_network_pretrained_weights_are_one_line_of_error(name, no_network):
    with pytest.raises(WeightsError) as caught:
        build(name, 3, seed=0, pretrained=True)
    message = str(caught.value)
    assert message.startswith(f"the pretrained weights of {name} could not be downloaded (")
    assert message.endswith("try again with a network, or train from scratch with pretrained: false")
    assert "\n" not in message


@pytest.mark.parametrize("name", PRETRAINED)
def test_without_download_no_network_is_needed(name, no_network):
    """The same network as one trained from scratch, but for what it is told of pixels."""
    model, scratch = (build(name, 3, seed=0, pretrained=pretrained, download=False) for pretrained in (True, False))
    assert model.resolution == 224
    state = scratch.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert set(state) == set(model.state_dict())


def weights_like(state, seed=0):
    """Random weights of the same names, shapes and types."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.rand(value.shape, generator=generator) + 0.5 if value.is_floating_point() else value.clone()
        for key, value in state.items()
    }


@pytest.fixture(scope="module")
def resnet18_file(tmp_path_factory):
    """A file as torchvision publishes it: a pickled mapping of parameters, with the head of 1,000 classes."""
    state = weights_like(torchvision.models.resnet18().state_dict())
    published = OrderedDict(
        (k, torch.nn.Parameter(v)) for k, v in state.items() if not k.endswith("num_batches_tracked")
    )
    folder = tmp_path_factory.mktemp("hub")
    torch.save(published, folder / "resnet18-f37072fd.pth")
    return folder, state


def test_resnet_takes_the_weights_of_torchvision(resnet18_file, no_network, monkeypatch):
    folder, state = resnet18_file
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder.parent / "nowhere"))
    load = torch.hub.load_state_dict_from_url
    asked = []

    def from_folder(url, **options):
        asked.append((url, options))
        return load(url, model_dir=str(folder), **options)

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", from_folder)
    model = build("resnet18", 7, seed=3, pretrained=True)
    body = model.body.state_dict()
    assert set(state) - set(body) == {"fc.weight", "fc.bias"} and set(body) <= set(state)
    assert all(torch.equal(body[key], state[key]) for key in body)
    assert [url.rpartition("/")[2] for url, _ in asked] == ["resnet18-f37072fd.pth"]
    assert asked[0][1]["weights_only"] and asked[0][1]["check_hash"]
    assert_head_is_new(model, 7, 512)


def assert_head_is_new(model, n_classes, width):
    name = "resnet18" if width == 512 else "vit_tiny_patch16_224"
    assert model.head.weight.shape == (n_classes, width) and model.resolution == 224
    assert model.head.weight.abs().max() < 0.5  # those of the file are larger
    other = build(name, n_classes, seed=4, pretrained=True)
    assert not torch.equal(model.head.weight, other.head.weight)
    same = build(name, n_classes, seed=3, pretrained=True)
    assert all(torch.equal(value, same.state_dict()[key]) for key, value in model.state_dict().items())


def test_transformers_take_the_weights_of_timm(tmp_path, no_network, monkeypatch):
    """A file as timm publishes it: safetensors, with the head of 1,000 classes."""
    import timm

    state = weights_like(timm.create_model("vit_tiny_patch16_224").state_dict())
    save_file(state, tmp_path / "model.safetensors")
    asked = []

    def from_folder(repo_id, filename, **options):
        asked.append((repo_id, filename))
        return str(tmp_path / filename)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", from_folder)
    model = build("vit_tiny_patch16_224", 7, seed=3, pretrained=True)
    body = model.body.state_dict()
    assert set(state) - set(body) == {"head.weight", "head.bias"} and set(body) <= set(state)
    assert all(torch.equal(body[key], state[key]) for key in body)
    assert asked == [("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", "model.safetensors")]
    assert_head_is_new(model, 7, 192)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_pretrained_networks_see_pixels_as_they_were_trained_on(name):
    """(x - 127) / 127 of 0 … 255, at 224 pixels."""
    model, seen = build(name, 3, seed=0, pretrained=True, download=False).eval(), []
    model.body.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    pixels = torch.randint(256, (2, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model(as_float(pixels))
    np.testing.assert_allclose(seen[0].numpy(), (pixels.double().numpy() - 127) / 127, atol=1e-5)
    model(as_float(pixels[..., :32, :32]))
    assert seen[1].shape == (2, 3, 224, 224)


def test_other_errors_are_not_taken_for_a_missing_network(monkeypatch):
    """A file of another network must not be called a failed download."""
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda url, **options: {"conv1.weight": 0})
    with pytest.raises(RuntimeError, match="Missing key"):
        build("resnet18", 3, seed=0, pretrained=True)
