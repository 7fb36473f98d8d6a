"""Attacks: bounds, limits, and every method against an independent implementation on the same network."""

import copy
import logging

import pytest
import torch
import torchattack
from torch import nn
from torch.nn.functional import cross_entropy

from repsim_utils.attacks import adversarial
from repsim_utils.attacks.adversarial import METHODS, Options, attack, input_gradients, random_signs, shuffled, unmoved
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
