"""Classifiers: shapes, sizes and seeds."""

import pytest
import torch

from repsim_utils.models.vision import as_float, build


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


@pytest.mark.parametrize("name", ["small_resnet", "resnet18"])
def test_seeds(name):
    before = torch.get_rng_state()
    one, same, other = (build(name, 10, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])


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
        ({"name": "resnet19"}, r"model must be one of \('small_resnet', 'resnet18'\), got 'resnet19'"),
        ({"stem": "mnist"}, r"stem must be one of \('imagenet', 'cifar'\), got 'mnist'"),
        ({"width": 0}, "must be positive, got 0, 1 and 10"),
        ({"depth": -1}, "must be positive, got 16, -1 and 10"),
        ({"n_classes": 0}, "must be positive, got 16, 1 and 0"),
    ],
)
def test_errors(change, message):
    with pytest.raises(ValueError, match=message):
        build(**({"name": "small_resnet", "n_classes": 10, "seed": 0} | change))
