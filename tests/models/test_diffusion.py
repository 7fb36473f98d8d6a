"""Diffusion models: size, what is told of the class, the representation, and sampling."""

import math

import pytest
import torch
from diffusers import UNet2DModel

from repsim_utils import profiles
from repsim_utils.features import draw_noise, represent_noisy
from repsim_utils.models.diffusion import TIMESTEPS, Denoiser, as_pixels, build, sample

TINY = {"width": 8, "multipliers": (1, 2), "attention": 1, "groups": 4, "size": 8}


@pytest.fixture
def model():
    return build(3, seed=0, **TINY).eval()


def noisy(n=4, size=8):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, size, size, generator=generator), torch.randint(TIMESTEPS, (n,), generator=generator)


def count(n_classes, width, multipliers, depth, attention, groups):
    """Parameters of the UNet, layer by layer."""
    told = 4 * width  # width of what a block is told of the timestep and the class

    def conv(n_in, n_out, k=3):
        return k * k * n_in * n_out + n_out

    def block(n_in, n_out):
        norms, shortcut = 2 * n_in + 2 * n_out, conv(n_in, n_out, 1) if n_in != n_out else 0
        return norms + conv(n_in, n_out) + conv(told, n_out, 1) + conv(n_out, n_out) + shortcut

    def attend(n):
        return 2 * n + 4 * conv(n, n, 1)

    channels = [width * m for m in multipliers]
    total = conv(3, width) + conv(width, told, 1) + conv(told, told, 1) + (n_classes + 1) * told
    skips, now = [width], width
    for i, n in enumerate(channels):
        for _ in range(depth):
            total += block(now, n) + (attend(n) if i >= len(channels) - attention else 0)
            now = n
            skips.append(now)
        if i < len(channels) - 1:
            total += conv(now, now)
            skips.append(now)
    total += 2 * block(now, now) + attend(now)
    for i, n in reversed(list(enumerate(channels))):
        for _ in range(depth + 1):
            total += block(now + skips.pop(), n) + (attend(n) if i >= len(channels) - attention else 0)
            now = n
        total += conv(now, now) if i else 0
    return total + 2 * now + conv(now, 3)


@pytest.mark.parametrize("profile", ["paper", "laptop"])
def test_parameters_are_those_of_the_published_shape(profile):
    settings = profiles.load(profile, "diffusion")
    (trainee,) = settings.models.values()
    network = trainee.network.model_dump()
    if profile == "paper":  # base 96, two resolutions halved, attention in the lower ones
        assert (network["width"], len(network["multipliers"]), network["attention"]) == (96, 3, 2)
    with torch.device("meta"):
        built = build(10, seed=0, size=32, **network)
    del network["schedule"]
    assert sum(p.numel() for p in built.parameters()) == count(10, **network)


def test_seeds():
    before = torch.get_rng_state()
    one, same, other = (build(3, seed=seed, **TINY).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["unet.conv_in.weight"], other["unet.conv_in.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 9}, "size must be a multiple of 2 for 2 stages, got 9"),
        ({"width": 10}, "width must be a multiple of groups = 4, got 10"),
        ({"attention": 3}, "attention is of 0 to 2 stages, got 3"),
    ],
)
def test_errors(change, message):
    with pytest.raises(ValueError, match=message):
        build(3, seed=0, **TINY | change)


def test_noise_grows_from_none_to_all(model):
    images, noise = torch.ones(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    first, last = (model.noisy(images, noise, torch.full((2,), t)) for t in (0, TIMESTEPS - 1))
    assert torch.allclose(first, images, atol=0.1)
    assert torch.allclose(last, noise, atol=0.1)


@torch.no_grad()
def test_features_are_of_the_null_class(model):
    """They change with what is told of no class, and with nothing that is told of a class."""
    x, t = noisy()
    before = model.represent(x, t)["last"]
    told = model.unet.class_embedding.weight
    told[: model.null] += 1
    assert torch.equal(model.represent(x, t)["last"], before)
    told[model.null] += 1
    assert not torch.allclose(model.represent(x, t)["last"], before)
    assert told.shape[0] == model.null + 1 == 4


@torch.no_grad()
def test_the_last_layer_is_what_the_output_convolution_is_given(model):
    x, t = noisy()
    seen = []
    handle = model.unet.conv_out.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    found = model.represent(x, t, layers=True)
    handle.remove()
    last = seen[0].flatten(2)
    assert torch.allclose(found["last"], torch.cat([last.mean(2), last.std(2, correction=0)], 1), atol=1e-5)
    assert list(found) == ["down 1", "down 2", "middle", "up 1", "up 2", "last"]
    assert [x.shape[1] for x in found.values()] == [16, 32, 32, 32, 16, 16]
    assert torch.equal(model.represent(x, t)["last"], found["last"])
    assert not model.unet.conv_act._forward_hooks


def unconditional(**options):
    """A UNet as others train it: without classes, and one that halves twice."""
    stages = {"block_out_channels": (8, 8, 8), "down_block_types": ("DownBlock2D",) * 3}
    stages |= {"up_block_types": ("UpBlock2D",) * 3, "norm_num_groups": 4, "layers_per_block": 1}
    torch.manual_seed(0)
    return UNet2DModel(sample_size=16, **stages | options)


def test_a_unet_without_classes_can_be_represented_and_not_drawn():
    images = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    unet = unconditional()
    model = Denoiser(unet, "linear")
    found = represent_noisy(model, images, seed=0, timestep=300)["last"]
    kept = []
    handle = unet.conv_act.register_forward_hook(lambda module, given, output: kept.append(output))
    steps = torch.full((3,), 300)
    with torch.no_grad():
        unet(model.noisy(as_pixels(images), draw_noise(images, seed=0)[0], steps), steps)
    handle.remove()
    expected = torch.cat([kept[0].mean((2, 3)), kept[0].std((2, 3), correction=0)], 1)
    torch.testing.assert_close(found, expected)
    half = represent_noisy(Denoiser(unet.bfloat16(), "linear"), images, seed=0, timestep=300)["last"]
    assert half.dtype == torch.float32 and (half - found).abs().max() < 0.1 * found.abs().max()
    with pytest.raises(ValueError, match="the UNet has no classes: its images can be represented, but not drawn"):
        sample(model, torch.zeros(2, dtype=torch.int64), size=16, seed=0, steps=2)
    with pytest.raises(ValueError, match="the UNet is conditioned on 'timestep'"):
        Denoiser(unconditional(class_embed_type="timestep"), "linear")


@pytest.mark.parametrize(
    ("shape", "timestep", "message"),
    [
        ((3, 3, 18, 16), 300, r"sides that are multiples of 4 for this network; got \(3, 3, 18, 16\)"),
        ((3, 3, 16, 6), 300, r"sides that are multiples of 4 for this network; got \(3, 3, 16, 6\)"),
        ((0, 3, 16, 16), 300, "images must be one or more"),
        ((3, 3, 16, 16), 300.5, "timestep must be a whole number, got 300.5"),
        ((3, 3, 16, 16), torch.tensor([1.0, 2.0, 3.0]), "timestep must be a whole number"),
        ((3, 3, 16, 16), 1000, "timestep must be from 0 to 999, got 1000 to 1000"),
    ],
)
def test_what_cannot_be_represented_is_refused(shape, timestep, message):
    model = Denoiser(unconditional(), "linear")
    with pytest.raises(ValueError, match=message):
        represent_noisy(model, torch.zeros(shape, dtype=torch.uint8), seed=0, timestep=timestep)


def test_as_pixels():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert float(as_pixels(images).min()) == -1 and float(as_pixels(images).max()) == 1


def test_samples_depend_on_their_seed_label_and_guidance(model):
    options = {"size": 8, "steps": 3}
    labels = torch.tensor([0, 1, 2, 0])
    drawn = sample(model, labels, seed=1, **options)
    assert drawn.dtype == torch.uint8 and drawn.shape == (4, 3, 8, 8)
    assert torch.equal(drawn, sample(model, labels, seed=1, **options))
    assert not torch.equal(drawn, sample(model, labels, seed=2, **options))
    parts = sample(model, labels, seed=1, batch_size=3, **options)  # other batches round otherwise
    assert (parts.int() - drawn.int()).abs().max() <= 1
    free = [sample(model, some, seed=1, guidance=0, **options) for some in (labels, labels.flip(0))]
    assert torch.equal(*free)  # without guidance the label says nothing


def test_sampling_undoes_noise_that_is_told_exactly():
    """Where there is one image, noise is all that is not that image; who knows that draws it."""
    model = build(1, seed=0, **TINY)
    image = as_pixels(torch.randint(256, (1, 3, 8, 8), generator=torch.Generator().manual_seed(3), dtype=torch.uint8))
    alphas = model.alphas_cumprod

    def exact(x, t, labels):
        a = alphas[t].reshape(-1, 1, 1, 1)
        return (x - a.sqrt() * image) / (1 - a).sqrt()

    model.forward = exact
    drawn = sample(model, torch.zeros(2, dtype=torch.int64), size=8, seed=0, steps=10)
    wanted = (image + 1) * 127.5
    assert math.isclose(float((drawn - wanted).abs().max()), 0, abs_tol=3)
