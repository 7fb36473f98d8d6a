"""Attacks: bounds, limits, and every method against an independent implementation on the same network."""

import copy
import logging

import pytest
import torch
import torchattack
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from repsim_utils.attacks import adversarial
from repsim_utils.attacks.adversarial import (
    METHODS,
    Options,
    attack,
    input_gradients,
    logits,
    random_signs,
    shuffled,
    unmoved,
)
from repsim_utils.models.vision import build
from tests.attacks import literal

N, CLASSES = 12, 5


@pytest.fixture(scope="module")
def network():
    """A network whose norm layers have seen some images, in evaluation mode."""
    model = build("small_resnet", CLASSES, seed=0, width=8)
    with torch.no_grad():
        model(torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(1)))
    return model.eval()


@pytest.fixture(scope="module")
def probe():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(N, 3, 16, 16, generator=generator)
    images[0] = 0.0  # at the edges of what a pixel can be
    images[1] = 1.0
    return images, torch.randint(CLASSES, (N,), generator=generator)


def loss(model, images, labels):
    with torch.no_grad():
        return cross_entropy(model(images), labels, reduction="none")


# Bounds


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("epsilon", [1, 8, 300 / 7])
@pytest.mark.parametrize("method", METHODS)
def test_within_epsilon_and_pixels(network, probe, method, epsilon, targeted):
    images, labels = probe
    made = attack(network, images, labels, method, epsilon=epsilon, targeted=targeted)
    assert made.shape == images.shape and made.dtype == torch.float32
    assert made.min() >= 0 and made.max() <= 1
    distance = (made - images).abs().amax((1, 2, 3))
    assert distance.max() <= epsilon / 255 + 1e-7
    assert (distance > 0.9 * epsilon / 255).all()  # and what is allowed is used


@pytest.mark.parametrize("method", METHODS)
def test_epsilon_0_changes_nothing(network, probe, method, caplog):
    images, labels = probe
    assert torch.equal(attack(network, images, labels, method, epsilon=0), images)
    assert not caplog.records


@pytest.mark.parametrize("method", METHODS)
def test_loss_rises_or_falls_towards_a_target(network, probe, method):
    images, labels = probe
    before = loss(network, images, labels).mean()
    assert loss(network, attack(network, images, labels, method), labels).mean() > before
    assert loss(network, attack(network, images, labels, method, targeted=True), labels).mean() < before


# Limits


def test_momentum_0_is_i_fgsm(network, probe):
    images, labels = probe
    made = attack(network, images, labels, "mi-fgsm", momentum=0)
    assert torch.equal(made, attack(network, images, labels, "i-fgsm"))
    assert not torch.equal(made, attack(network, images, labels, "mi-fgsm"))


@pytest.mark.parametrize("method", ["i-fgsm", "mi-fgsm"])
def test_one_step_is_fgsm(network, probe, method):
    images, labels = probe
    assert torch.equal(attack(network, images, labels, method, steps=1), attack(network, images, labels, "fgsm"))


@pytest.mark.parametrize(
    ("method", "options", "same_as"),
    [
        ("si-fgsm", {"copies": 1}, "ni-fgsm"),
        ("ni-fgsm", {"nesterov": False}, "mi-fgsm"),
        ("di-fgsm", {"diversity": 0}, "mi-fgsm"),
        ("ti-fgsm", {"smoothing": 0}, "mi-fgsm"),
        ("pgd", {"random_start": False, "step": None}, "i-fgsm"),
    ],
)
def test_a_method_without_its_idea_is_the_one_below(network, probe, method, options, same_as):
    images, labels = probe
    made = attack(network, images, labels, method, **options)
    assert torch.equal(made, attack(network, images, labels, same_as))
    assert not torch.equal(made, attack(network, images, labels, method))


class Linear(nn.Module):
    """Two classes, told apart by one weighted sum of the pixels: what an attack can reach is known in closed form."""

    def __init__(self, seed):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3 * 8 * 8, generator=torch.Generator().manual_seed(seed)))

    def forward(self, images):
        score = (images - 0.5).flatten(1) @ self.weight
        return torch.stack([-score, score], 1)


@pytest.mark.parametrize("method", ["fgsm", "i-fgsm", "mi-fgsm", "ni-fgsm", "pgd"])
def test_white_box_rates_of_a_convex_problem(method):
    """A margin m is crossed if and only if ε times the L1 norm of the weights is larger."""
    model, generator = Linear(0), torch.Generator().manual_seed(1)
    images = 0.3 + 0.4 * torch.rand(400, 3, 8, 8, generator=generator)  # far from black and white
    labels = model(images).argmax(1)
    margins = model(images).amax(1).detach()
    found = []
    for epsilon in (0, 1, 2, 4, 8, 16):
        made = attack(model, images, labels, method, epsilon=epsilon)
        found.append(float((model(made).argmax(1) != labels).double().mean()))
        reach = epsilon / 255 * model.weight.abs().sum()
        assert found[-1] == pytest.approx(float((margins < reach).double().mean()), abs=0.005)
    assert found == sorted(found) and found[0] == 0 and found[-1] > 0.9


def test_more_restarts_and_steps_are_no_weaker(network, probe):
    images, labels = probe
    losses = [loss(network, attack(network, images, labels, "pgd", restarts=n), labels) for n in (1, 4)]
    assert (losses[1] >= losses[0]).all() and (losses[1] > losses[0]).any()
    fooled = [loss(network, attack(network, images, labels, "i-fgsm", steps=n), labels).mean() for n in (1, 10)]
    assert fooled[1] > fooled[0]
    towards = [loss(network, attack(network, images, labels, "pgd", restarts=n, targeted=True), labels) for n in (1, 4)]
    assert (towards[1] <= towards[0]).all() and (towards[1] < towards[0]).any()


# Independent implementations


def equal_but_for_rounding(made, expected):
    """Where a gradient is all but 0, its sign may differ: one pixel in a thousand."""
    return ((made.double() - expected.double()).abs() > 1e-5).double().mean() < 1e-3


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(
    ("method", "theirs", "options"),
    [
        ("fgsm", torchattack.FGSM, {}),
        ("i-fgsm", torchattack.PGD, {"steps": 10, "random_start": False}),
        ("mi-fgsm", torchattack.MIFGSM, {"steps": 10, "decay": 1.0}),
    ],
)
def test_equals_torchattack(network, probe, method, theirs, options, targeted):
    images, labels = (values[2:] for values in probe)
    other = theirs(copy.deepcopy(network), eps=8 / 255, targeted=targeted, device="cpu", **options)
    made = attack(network, images, labels, method, epsilon=8, targeted=targeted)
    assert equal_but_for_rounding(made, other(images, labels).detach())


LITERAL = {
    "mi-fgsm": lambda *of, **how: literal.momentum(*of, mu=1.0, **how),
    "i-fgsm": lambda *of, **how: literal.momentum(*of, mu=0.0, **how),
    "ni-fgsm": literal.nesterov,
    "si-fgsm": lambda *of, **how: literal.nesterov(*of, copies=5, **how),
    "ti-fgsm": literal.smoothed,
}


@pytest.mark.parametrize("method", LITERAL)
def test_equals_the_literal_definition(network, probe, method):
    """In float64, so that no sign is left to rounding."""
    model, (images, labels) = copy.deepcopy(network).double(), probe
    made = attack(model, images.double(), labels, method, epsilon=4, steps=5)
    for image, label, ours in zip(images.double(), labels.tolist(), made, strict=True):
        expected = LITERAL[method](model, image, label, epsilon=4 / 255, steps=5)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


def test_diversity_equals_the_literal_definition(network, probe, monkeypatch):
    model, (images, labels) = copy.deepcopy(network).double(), probe
    placed, size, pad = [], images.shape[-1], torch.nn.functional.pad

    def spy_pad(x, pads):
        placed.append((x.shape[-1], x.shape[-1] + pads[0] + pads[1], pads[0], pads[2]))
        return pad(x, pads)

    monkeypatch.setattr(adversarial.F, "pad", spy_pad)
    made = attack(model, images.double(), labels, "di-fgsm", epsilon=4, steps=8, diversity=1, resize=1.5)
    monkeypatch.undo()
    assert len(placed) == 8 and len(set(placed)) > 4
    assert all(size <= chosen < largest == 24 and min(at) >= 0 for chosen, largest, *at in placed)
    for image, label, ours in zip(images.double(), labels.tolist(), made, strict=True):
        expected = literal.diverse(model, image, label, epsilon=4 / 255, steps=8, placed=placed)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


def test_diversity_is_as_frequent_as_asked(network, probe, monkeypatch):
    images, labels = (values[:2] for values in probe)
    calls, pad = [], torch.nn.functional.pad
    monkeypatch.setattr(adversarial.F, "pad", lambda x, pads: calls.append(pads) or pad(x, pads))
    attack(network, images, labels, "di-fgsm", steps=200, diversity=0.25)
    assert 25 <= len(calls) <= 75


# What reads as robustness and is not


def test_a_model_in_training_mode_is_attacked_as_it_will_be_used(network, probe):
    model, (images, labels) = copy.deepcopy(network).train(), probe
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert torch.equal(attack(model, images, labels), attack(network, images, labels))
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())


def test_a_model_is_afterwards_as_it_was(network, probe):
    """Also where one part of it is not trained, and one is in evaluation mode."""
    model = copy.deepcopy(network).train()
    weights, parts = list(model.parameters()), list(model.modules())
    weights[0].requires_grad_(False)
    parts[-1].eval()
    attack(model, *probe)
    input_gradients(model, *probe)
    assert [weight.requires_grad for weight in weights] == [False] + [True] * (len(weights) - 1)
    assert [part.training for part in parts] == [True] * (len(parts) - 1) + [False]


def test_the_mode_is_restored_after_an_error(probe):
    model = nn.Linear(3, 2).train()
    with pytest.raises(RuntimeError):
        attack(model, *probe)
    assert model.training


def test_images_that_cannot_move_are_told(network, probe, caplog):
    """Logits so large that the loss is flat: libraries divide by zero here, or call it robust."""
    images, labels = probe
    sure = nn.Sequential(copy.deepcopy(network), Times(1e6))
    labels = sure(images).argmax(1)
    with caplog.at_level(logging.WARNING):
        made = attack(sure, images, labels)
    assert made.isfinite().all()
    still = int(unmoved(images, made).sum())
    assert still > 0 and f"{still} of {N} images have no gradient and did not move" in caplog.text


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, logits):
        return self.factor * logits


def test_images_do_not_depend_on_each_other(network, probe):
    images, labels = (values.repeat(20, *[1] * (values.ndim - 1)) for values in probe)  # more than one batch
    made = attack(network, images, labels)
    alone = attack(network, images[-1:], labels[-1:])
    assert equal_but_for_rounding(made[-1:], alone) and equal_but_for_rounding(made[:N], made[-N:])


def test_a_seed_decides(network, probe):
    images, labels = probe
    made = [attack(network, images, labels, "pgd", seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "cw"}, "method must be one of fgsm, i-fgsm, mi-fgsm"),
        ({"mu": 1}, "unknown option mu; there are step, momentum"),
        ({"steps": 0}, "steps must be 1 or more"),
        ({"method": "fgsm", "steps": 2}, "and 1 for fgsm, got 2"),
        ({"epsilon": -1}, "epsilon is in units of 1/255 and must be from 0 to 255, got -1"),
        ({"epsilon": float("nan")}, "epsilon is in units of 1/255"),
        ({"smoothing": 4}, "smoothing 0 or odd"),
        ({"smoothing": 1}, "smoothing 0 or odd"),
        ({"copies": 0}, "copies must be 1 or more"),
        ({"diversity": 2}, r"diversity in \[0, 1\]"),
        ({"step": 0}, "step above 0"),
    ],
)
def test_bad_options_are_named(network, probe, change, message):
    with pytest.raises(ValueError, match=message):
        attack(network, *probe, **change)


def test_bad_images_are_named(network, probe):
    images, labels = probe
    with pytest.raises(ValueError, match=r"in \[0, 1\], got -2 to 2; the model owns its normalisation"):
        attack(network, (images - 0.5) / 0.25, labels)
    with pytest.raises(ValueError, match=r"images must be float .* got torch.uint8"):
        attack(network, (images * 255).byte(), labels)
    with pytest.raises(ValueError, match=r"images must be in \[0, 1\], got nan"):
        attack(network, images * float("nan"), labels)
    with pytest.raises(ValueError, match=r"labels must be int64 \(12,\), got torch.float32"):
        attack(network, images, labels.float())
    with pytest.raises(ValueError, match=r"labels must be int64 \(12,\)"):
        attack(network, images, labels[:3])


@pytest.mark.parametrize("call", [attack, input_gradients])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x.numpy(), y), r"images must be a float tensor .* got ndarray; give torch.as_tensor\(images\)"),
        (lambda x, y: ((x * 255).byte(), y), r"got torch.uint8 .* give images.float\(\) / 255"),
        (lambda x, y: (x[0], y[:1]), r"got torch.float32 \(3, 16, 16\); of one image give image\[None\]"),
        (
            lambda x, y: (x[:0], y[:0]),
            r"images must be float \(n, 3, h, w\), got torch.float32 \(0, 3, 16, 16\); there is none",
        ),
        (lambda x, y: (x.permute(0, 2, 3, 1), y), r"give images.permute\(0, 3, 1, 2\)"),
        (lambda x, y: (x.index_fill(0, torch.tensor([3, 5]), float("nan")), y), r"got nan in 2 of 12"),
        (lambda x, y: (x * 255, y), r"got 0 to 255; .* pixels of 0 … 255 are to be divided by 255"),
        (lambda x, y: (x, y.tolist()), r"labels must be int64 \(12,\), got list; give torch.as_tensor\(labels\)"),
        (lambda x, y: (x, y.numpy()), r"labels must be int64 \(12,\), got ndarray"),
        (lambda x, y: (x, y.double()), r"got torch.float64 \(12,\); give labels.long\(\)"),
        (lambda x, y: (x, y > 0), r"got torch.bool"),
        (
            lambda x, y: (x, one_hot(y, CLASSES)),
            r"got torch.int64 \(12, 5\); of one-hot labels give labels.argmax\(1\)",
        ),
        (lambda x, y: (x, y[:, None]), r"got torch.int64 \(12, 1\); give labels.flatten\(\)"),
        (lambda x, y: (x, y.masked_fill(y == 0, 5)), "labels must be from 0 to 4 of 5 classes, got 5"),
        (lambda x, y: (x, y.masked_fill(y == 0, -100)), "labels must be from 0 to 4 of 5 classes, got -100"),
    ],
)
def test_what_to_do_about_other_images_and_labels_is_said(network, probe, call, change, message):
    with pytest.raises(ValueError, match=message):
        call(network, *change(*probe))


@pytest.mark.parametrize("kind", [torch.int32, torch.int16, torch.uint8])
def test_labels_may_be_any_integers(network, probe, kind):
    images, labels = probe
    assert torch.equal(attack(network, images, labels.to(kind)), attack(network, images, labels))


@pytest.mark.parametrize("control", [random_signs, lambda x, epsilon: shuffled(x, x)])
def test_controls_refuse_what_an_attack_refuses(probe, control):
    for images, message in (((probe[0] * 255).byte(), "images.float"), (probe[0] * 255, "divided by 255")):
        with pytest.raises(ValueError, match=message):
            control(images, epsilon=8)


@pytest.mark.parametrize(
    "call", [lambda *of, **how: attack(*of, **how), lambda net, x, y, **how: random_signs(x, **how)]
)
def test_an_epsilon_in_other_units_is_told_once(network, probe, call, caplog):
    """And computed as documented: in units of 1/255."""
    images = probe[0].double() * 0.8 + 0.1
    made = call(copy.deepcopy(network).double(), images, probe[1], epsilon=8 / 255)
    assert float((made - images).abs().max()) == pytest.approx(8 / 255**2, rel=1e-6)
    told = "epsilon is in units of 1/255: 0.031 is 0.00012 of the pixel range; for 8/255 give 8"
    assert caplog.messages == [told]
    call(network, images.float(), probe[1], epsilon=1)
    assert caplog.messages == [told]


# Models of other kinds. The gradient of a linear one is known: what an attack finds is a formula.


class Flat(nn.Module):
    """Linear; flattens with a view, as many do, which wants contiguous images."""

    def __init__(self, n_pixels=192, seed=0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, n_pixels, generator=torch.Generator().manual_seed(seed)))

    def forward(self, images):
        return images.view(len(images), -1) @ self.weight.T


def ascent(weight, images, labels, epsilon):
    """One step of FGSM on logits that are linear in the pixels, in float64: sign of Wᵀ(p - e)."""
    weight, x = weight.detach().double(), images.double()
    p = (x.flatten(1) @ weight.T).softmax(1)
    p[torch.arange(len(p)), labels] -= 1
    return (x + epsilon / 255 * (p @ weight).sign().view_as(x)).clamp(0, 1)


@pytest.fixture
def flat():
    return Flat(), torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 4, 2, 1])


def close(made, expected, atol=1e-6):
    torch.testing.assert_close(made.double(), expected, rtol=0, atol=atol)


def given(layout, images):
    if layout == "strided":  # every other pixel of larger images
        return images.repeat_interleave(2, -1)[..., ::2]
    return images.contiguous(memory_format=torch.channels_last) if layout == "channels last" else images


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "strided"])
def test_a_model_may_flatten_with_a_view(flat, layout):
    model, images, labels = flat
    x, expected = given(layout, images), ascent(model.weight, images, labels, 8)
    close(attack(model, x, labels, "fgsm"), expected)
    gradients = input_gradients(model, x, labels)
    assert torch.equal(gradients.sign().double(), (expected - images).sign().double())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_hands_a_view_what_it_needs(flat, method):
    """On a linear model of two classes all of them, but for resizing and smoothing, take the same signs."""
    model, images, labels = Flat(), flat[1] * 0.5 + 0.25, torch.tensor([0, 1, 1, 0])
    model.weight.data = model.weight.data[:2] * 1e-2
    made = attack(model, images, labels, method, epsilon=8, diversity=0, smoothing=0)
    close(made, ascent(model.weight, images, labels, 8))
    again = attack(model, images, labels, method, epsilon=8, diversity=METHODS[method].diversity)
    assert (again - images).abs().max() == pytest.approx(8 / 255, abs=1e-6)


class Named:
    """What some libraries return."""

    def __init__(self, found):
        self.logits = found


@pytest.mark.parametrize(
    "wrapped",
    [
        Named,
        lambda z: {"loss": None, "logits": z},
        lambda z: (z, -z),
        lambda z: [z],
        torch.return_types.max,
        lambda z: z.bfloat16().float(),
    ],
)
def test_logits_are_found_in_what_a_model_returns(flat, wrapped):
    model, images, labels = flat
    wrap = (lambda z: wrapped([z, z])) if wrapped is torch.return_types.max else wrapped
    close(attack(lambda x: wrap(model(x)), images, labels, "fgsm"), ascent(model.weight, images, labels, 8))
    expected = images.flatten(1).double() @ model.weight.double().T
    close(logits(lambda x: wrap(model(x)), images).detach(), expected.detach(), atol=0.2)


def test_a_transformers_classifier_is_attacked_as_its_logits_are(probe):
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    net = ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, num_labels=CLASSES, **shape))
    assert torch.equal(attack(net, *probe), attack(lambda x: net(x).logits, *probe))


@pytest.mark.parametrize(
    ("returned", "named"),
    [
        (lambda z: {"out": z}, "dict of out"),
        (lambda z: None, "NoneType"),
        (lambda z: (), "tuple"),
        (lambda z: z[:, 0], r"Tensor \(4,\)"),
        (lambda z: z[:2], r"Tensor \(2, 5\)"),
        (lambda z: z.numpy(force=True), "ndarray"),
    ],
)
def test_what_is_no_logits_is_named(flat, returned, named):
    model, images, labels = flat
    for call in (attack, input_gradients, lambda f, x, y: logits(f, x)):
        with pytest.raises(ValueError, match=rf"logits \(4, number of classes\), .* but it returned {named}: wrap"):
            call(lambda x: returned(model(x)), images, labels)


def test_logits_without_a_gradient_are_told(flat):
    model, images, labels = flat
    for stop in (torch.no_grad(), torch.inference_mode()):
        with pytest.raises(ValueError, match="no gradient: is there a no_grad, a detach"):
            attack(stop(model.forward), images, labels)


class Unregistered(nn.Module):
    """Holds no weight that a module would list."""

    def __init__(self, model):
        super().__init__()
        self.parts = (model,)

    def forward(self, images):
        return self.parts[0](images)


@pytest.mark.parametrize("without", [lambda m: lambda x: m(x), Unregistered, lambda m: m.forward])
def test_a_model_without_weights_of_its_own(flat, without):
    model, images, labels = flat
    close(attack(without(model), images, labels, "fgsm"), ascent(model.weight, images, labels, 8))
    assert torch.equal(input_gradients(without(model), images, labels), input_gradients(model, images, labels))
    with pytest.raises(ValueError, match="of 5 classes, got 7"):
        attack(without(model), images, labels + 3)


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
def test_a_compiled_script_is_a_model(network, probe):
    script = torch.jit.trace(network, probe[0][:2])
    images, labels = probe
    assert equal_but_for_rounding(attack(script, images, labels), attack(network, images, labels))


def test_a_function_of_two_models(flat):
    """Their mean is linear too, with the mean of their weights."""
    one, images, labels = flat
    two = Flat(seed=1)
    made = attack(lambda x: (one(x) + two(x)) / 2, images, labels, "fgsm")
    close(made, ascent((one.weight + two.weight) / 2, images, labels, 8))


def test_modules_that_a_function_calls_do_not_train(network, probe):
    model = copy.deepcopy(network).train()
    model.body[0].eval()
    before, modes = copy.deepcopy(model.state_dict()), [part.training for part in model.modules()]
    assert torch.equal(attack(lambda x: model(x), *probe), attack(lambda x: network(x), *probe))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [part.training for part in model.modules()] == modes
    model(probe[0])  # and it does again afterwards
    assert not all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("images_too", [False, True])
def test_half_precision_keeps_to_epsilon(flat, kind, images_too):
    """The weights are rounded, the steps are not: each pixel is moved by ε to a millionth."""
    model, images, labels = flat
    model, images = model.to(kind), (images * 0.5 + 0.25).to(kind if images_too else torch.float32)
    made = attack(model, images, labels, "mi-fgsm", epsilon=3)
    assert made.dtype == torch.float32
    moves = (made.double() - images.double()).abs()
    assert moves.max() <= 3 / 255 + 1e-6 and (moves > 3 / 255 - 1e-6).double().mean() > 0.95
    expected = ascent(model.weight, images, labels, 3)
    assert ((made.double() - expected).abs() < 1e-6).double().mean() > 0.95  # where rounding does not turn a sign
    assert input_gradients(model, images, labels).dtype == torch.float32


def test_float64_weights_see_float64_images(flat):
    model, images, labels = flat
    double = copy.deepcopy(model).double()
    expected = images.double().flatten(1) @ double.weight.T
    torch.testing.assert_close(logits(double, images), expected, rtol=0, atol=0)
    close(attack(double, images, labels, "fgsm"), ascent(model.weight, images, labels, 8))


# Whatever is so outside


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_had_where_none_are_recorded(network, probe, mode):
    expected, slopes = attack(network, *probe), input_gradients(network, *probe)
    with mode():
        x, y = (values.clone() for values in probe)  # in inference mode: what autograd refuses
        again = copy.deepcopy(network)
        for model in (network, again):
            assert torch.equal(attack(model, x, y), expected) and torch.equal(input_gradients(model, x, y), slopes)
        assert not torch.is_grad_enabled()
    assert x.is_inference() == (mode is torch.inference_mode)
    assert torch.equal(attack(network, x, y), expected) and torch.equal(attack(again, x, y), expected)
    assert torch.equal(random_signs(x, epsilon=8), random_signs(probe[0], epsilon=8))
    assert torch.equal(shuffled(x, expected), shuffled(probe[0], expected))


def test_images_that_want_gradients_give_images_that_do_not(network, probe):
    x, y = probe[0].clone().requires_grad_(), probe[1]
    made = [attack(network, x, y), attack(network, x, y, epsilon=0), input_gradients(network, x, y)]
    made += [random_signs(x, epsilon=8), shuffled(x, made[0])]
    assert not any(one.requires_grad for one in made) and x.requires_grad and x.grad is None
    assert torch.equal(made[0], attack(network, *probe))


@pytest.mark.parametrize("call", [attack, input_gradients])
def test_gradients_of_weights_are_left_alone_also_after_an_error(network, probe, call):
    model = copy.deepcopy(network).train()
    some, *others = model.parameters()
    others[0].requires_grad_(False)
    some.grad = kept = torch.ones_like(some)
    with pytest.raises(ValueError, match="got 99"):
        call(model, probe[0], probe[1].clamp_min(99))
    call(model, *probe)
    assert some.grad is kept and torch.equal(kept, torch.ones_like(some)) and all(w.grad is None for w in others)
    assert [w.requires_grad for w in others] == [False] + [True] * (len(others) - 1) and some.requires_grad
    assert all(part.training for part in model.modules())


# Images that are not square


@pytest.mark.parametrize("size", [(8, 20), (20, 8), (1, 9)])
def test_diversity_keeps_the_shape_of_an_image(size, monkeypatch):
    """Both sides grow alike, and the larger image lies anywhere on the largest."""
    model, pad, placed = Flat(3 * size[0] * size[1]), torch.nn.functional.pad, []

    def spy_pad(x, pads):
        placed.append((*x.shape[2:], *pads))
        return pad(x, pads)

    monkeypatch.setattr(adversarial.F, "pad", spy_pad)
    images = torch.full((2, 3, *size), 0.5)
    made = attack(model, images, torch.tensor([0, 1]), "di-fgsm", steps=60, diversity=1, resize=1.5, step=0.1)
    assert made.shape == images.shape and (made - images).abs().max() == pytest.approx(8 / 255, abs=1e-6)
    largest = [max(length * 3 // 2, length + 1) for length in size]
    for high, wide, left, right, top, bottom in placed:
        assert (high + top + bottom, wide + left + right) == tuple(largest) and min(left, right, top, bottom) >= 0
        assert size[0] <= high and size[1] <= wide
        assert abs(high / size[0] - wide / size[1]) < 1 / min(size)  # but for whole pixels
    assert len({one[:2] for one in placed}) > 2


# Gradients and controls


def test_input_gradients(network, probe):
    images, labels = probe
    leaf = images.clone().requires_grad_()
    cross_entropy(network(leaf), labels, reduction="sum").backward()
    torch.testing.assert_close(adversarial.input_gradients(network, images, labels), leaf.grad)


def test_random_signs(probe):
    images, _ = probe
    made = random_signs(images, epsilon=8, seed=3)
    inside = (images > 8 / 255) & (images < 1 - 8 / 255)
    torch.testing.assert_close((made - images).abs()[inside], torch.full_like(images[inside], 8 / 255))
    assert made.min() >= 0 and made.max() <= 1 and 0.45 < ((made - images)[inside] > 0).double().mean() < 0.55
    assert torch.equal(made, random_signs(images, epsilon=8, seed=3))
    assert not torch.equal(made, random_signs(images, epsilon=8, seed=4))


@pytest.mark.parametrize("n", [2, 3, 12])
def test_shuffled_gives_every_image_the_perturbation_of_another(n):
    images = torch.full((n, 3, 4, 4), 0.5)
    changes = torch.arange(n).float() / 100  # known by their size
    made = shuffled(images, images + changes[:, None, None, None], seed=1)
    got = ((made - images).amax((1, 2, 3)) * 100).round().int()
    assert sorted(got.tolist()) == list(range(n)) and (got != torch.arange(n)).all()


def test_one_image_cannot_be_shuffled(probe):
    with pytest.raises(ValueError, match="fewer than 2 images"):
        shuffled(probe[0][:1], probe[0][:1])


def test_every_option_is_used_by_a_method():
    used = {
        name for how in METHODS.values() for name, value in how._asdict().items() if value != Options()._asdict()[name]
    }
    assert used == set(Options._fields) - {"restarts", "resize"}
