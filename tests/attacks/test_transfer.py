"""How transfer is counted, on models whose answers are known."""

import copy

import pytest
import torch
from torch import nn

from repsim_utils.attacks.adversarial import attack
from repsim_utils.attacks.transfer import InClasses, Outcome, answers, attack_pair, gradient_cosine, rates


class Reader(nn.Module):
    """Answers what one channel of an image's first pixel says, in steps of a tenth, and sees no more."""

    def __init__(self, channel, n_classes=10):
        super().__init__()
        self.channel, self.n_classes = channel, n_classes

    def forward(self, images):
        said = (images[:, self.channel, 0, 0] * 10).round().long()
        return torch.eye(self.n_classes)[said] * 5


def pictures(first, second):
    """Images of which the reader of channel 0 says `first`, and that of channel 1 `second`."""
    images = torch.zeros(len(first), 3, 2, 2)
    images[:, 0, 0, 0], images[:, 1, 0, 0] = torch.tensor(first) / 10, torch.tensor(second) / 10
    return images


def test_rates_by_hand():
    """Six images: 0 is wrong for the first, 1 for the second; of 2 to 5 both are right."""
    labels = torch.tensor([1, 1, 1, 2, 3, 4])
    images = pictures([9, 1, 1, 2, 3, 4], [1, 9, 1, 2, 3, 4])
    seen = []

    def perturb(source, x, y):
        """On the first: fools it on 1, 2 and 3, and the second on 1 and 2, once with the same answer."""
        seen.append((source.channel, y.tolist()))
        if source.channel == 0:
            return pictures([8, 8, 8, 4], [8, 7, 3, 4])
        return torch.where(torch.arange(4)[:, None, None, None] == 3, pictures([4, 4, 4, 6], [4, 4, 4, 6]), x)

    outcome = attack_pair(Reader(0), Reader(1), images, labels, perturb)
    assert seen == [(0, [1, 2, 3, 4]), (1, [1, 2, 3, 4])]
    assert outcome.image.tolist() == [2, 3, 4, 5] * 2 and outcome.label.tolist() == [1, 2, 3, 4] * 2
    assert outcome.source.tolist() == [8, 8, 8, 4, 1, 2, 3, 6]
    assert outcome.victim.tolist() == [8, 7, 3, 4, 1, 2, 3, 6]
    found = rates(outcome)
    assert found == {
        "transfer": 3 / 8,  # 2 of 4 in one direction, 1 of 4 in the other
        "white_box": 4 / 8,
        "transfer_given_fooled": 3 / 4,
        "same_mistake": 2 / 8,
        "unmoved": 4 / 8,  # the fourth image of the first direction, and three of the second
    }
    some = outcome.among(torch.tensor([True, True, True, False, False, False]))
    assert some.image.tolist() == [2, 2] and rates(some)["transfer"] == 0.5


def test_all_images_are_attacked_where_wrong_ones_count():
    labels, images = torch.tensor([1, 2, 3]), pictures([9, 2, 3], [9, 9, 3])
    outcome = attack_pair(Reader(0), Reader(1), images, labels, lambda source, x, y: x, only_right=False)
    assert outcome.image.tolist() == [0, 1, 2] * 2
    found = rates(outcome)
    assert found["transfer"] == found["white_box"] == 3 / 6  # the clean errors: 2 of 3, and 1 of 3
    assert rates(attack_pair(Reader(0), Reader(1), images, labels, lambda source, x, y: x))["transfer"] == 0


def test_no_image_has_no_rate():
    outcome = attack_pair(Reader(0), Reader(1), pictures([1], [2]), torch.tensor([3]), lambda *_: pytest.fail("none"))
    assert rates(outcome) == {} and isinstance(outcome, Outcome)


def test_nobody_fooled_has_no_conditional_rate():
    images = pictures([1, 2], [1, 2])
    found = rates(attack_pair(Reader(0), Reader(1), images, torch.tensor([1, 2]), lambda source, x, y: x))
    assert "transfer_given_fooled" not in found and found["white_box"] == 0 and found["unmoved"] == 1


def test_in_classes():
    """Label 0 of the model is class 4, label 1 class 2; the gradient passes through."""
    linear = nn.Linear(2, 2)
    model = InClasses(linear, {4: 0, 2: 1}, 6)
    x = torch.randn(3, 2, requires_grad=True)
    logits = model(x)
    torch.testing.assert_close(logits[:, [4, 2]], linear(x))
    assert logits[:, [0, 1, 3, 5]].eq(-torch.inf).all()
    loss = nn.functional.cross_entropy(logits, torch.tensor([4, 2, 4]))
    torch.testing.assert_close(loss, nn.functional.cross_entropy(linear(x), torch.tensor([0, 1, 0])))
    loss.backward()
    assert x.grad.isfinite().all() and (x.grad != 0).any()
    assert set(answers(model, x.detach()).tolist()) <= {2, 4}


def test_the_same_mistake_is_one_of_classes_not_of_labels():
    """Both models answer label 1: that is another class for each."""
    images, labels = pictures([0, 0], [0, 0]), torch.tensor([3, 3])
    first, second = InClasses(Reader(0, 2), {3: 0, 4: 1}, 6), InClasses(Reader(0, 2), {3: 0, 5: 1}, 6)
    found = rates(attack_pair(first, second, images, labels, lambda source, x, y: pictures([1, 1], [1, 1])))
    assert found["transfer"] == found["white_box"] == 1 and found["same_mistake"] == 0


def test_gradient_cosine():
    torch.manual_seed(0)
    model, other = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    opposite = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    opposite[1].weight.data, opposite[1].bias.data = -model[1].weight.data, torch.zeros(3)
    model[1].bias.data.zero_()
    images, labels = torch.rand(5, 3, 2, 2) * 0.001, torch.tensor([0, 1, 2, 0, 1])
    assert gradient_cosine(model, model, images, labels) == pytest.approx(1, abs=1e-6)
    assert gradient_cosine(model, opposite, images, labels) == pytest.approx(-1, abs=1e-3)
    assert abs(gradient_cosine(model, other, images, labels)) < 0.9


# Models as they come


def training_pair():
    """Two networks in training mode, but for one part; with dropout, and statistics that a forward pass would move."""
    torch.manual_seed(0)
    parts = lambda: [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(), nn.Linear(4 * 16, 5)]  # noqa: E731
    pair = [nn.Sequential(*parts()).train() for _ in range(2)]
    pair[0][0].eval()
    pair[0][4].bias.requires_grad_(False)
    pair[1][4].weight.grad = torch.ones(5, 64)
    return pair


def state(models):
    """All that a measurement is to leave alone."""
    parts = [part.training for model in models for part in model.modules()]
    values = [value.clone() for model in models for value in model.state_dict().values()]
    weights = [(weight.requires_grad, weight.grad) for model in models for weight in model.parameters()]
    return parts, torch.cat([value.double().flatten() for value in values]).tolist(), weights


def unchanged(before, after):
    weights = zip(before[2], after[2], strict=True)
    return before[:2] == after[:2] and all(a[0] == b[0] and a[1] is b[1] for a, b in weights)


def perturbed(source, x, y):
    """An attack of one's own, which fills the gradients of weights."""
    assert not any(part.training for part in source.modules())
    leaf = x.clone().requires_grad_()
    nn.functional.cross_entropy(source(leaf), y).backward()
    return (leaf + 0.1 * leaf.grad.sign()).clamp(0, 1)


def same(one, other):
    """Measurements: a number, a tensor or an outcome."""
    if isinstance(one, tuple):
        return all(map(torch.equal, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


MEASURES = {
    "answers": lambda a, b, x, y: answers(a, x),
    "gradient_cosine": gradient_cosine,
    "attack_pair": lambda a, b, x, y: attack_pair(a, b, x, y, attack),
    "all images": lambda a, b, x, y: attack_pair(a, b, x, y, attack, only_right=False),
    "another attack": lambda a, b, x, y: attack_pair(a, b, x, y, perturbed, only_right=False),
    "in classes": lambda a, b, x, y: answers(InClasses(a, {i: i for i in range(5)}, 5), x),
}


@pytest.mark.parametrize("name", MEASURES)
def test_models_are_measured_in_evaluation_mode_and_left_as_they_were(name):
    measure, pair = MEASURES[name], training_pair()
    x, y = torch.rand(30, 3, 6, 6), torch.randint(5, (30,))
    before, expected = state(pair), measure(*(copy.deepcopy(model).eval() for model in pair), x, y)
    for _ in range(2):
        assert same(measure(*pair, x.clone().requires_grad_(), y), expected)
        assert unchanged(before, state(pair))
        assert torch.equal(pair[1][4].weight.grad, torch.ones(5, 64))
    with torch.inference_mode():
        assert same(measure(*pair, x * 1, y * 1), expected)


def test_models_are_left_as_they_were_after_an_error():
    pair, x, y = training_pair(), torch.rand(4, 3, 6, 6), torch.tensor([0, 1, 2, 3])
    before = state(pair)

    def broken(source, x, y):
        source(x).sum().backward()
        raise KeyError("own")

    for measure, error in (
        (lambda: attack_pair(*pair, x, y, broken, only_right=False), KeyError),
        (lambda: gradient_cosine(*pair, x[:, :1], y), RuntimeError),
        (lambda: answers(pair[0], x[:, :1]), RuntimeError),
    ):
        with pytest.raises(error):
            measure()
        assert unchanged(before, state(pair))


class Flat(nn.Module):
    """One weight a pixel; flattens with a view, and returns what it is told to."""

    def __init__(self, wrap=lambda z: z):
        super().__init__()
        weight = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
        self.weight = nn.Parameter(weight - weight.mean(0))  # so that no class has all images
        self.wrap = wrap

    def forward(self, images):
        return self.wrap(images.view(len(images), -1) @ self.weight)


@pytest.mark.parametrize("wrap", [lambda z: z, lambda z: (z, 0), lambda z: {"logits": z}])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64])
def test_all_models_are_asked_alike(wrap, layout, kind):
    """Whatever they return, however the images lie, in the precision of the weights."""
    images = torch.rand(20, 3, 2, 2, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=layout)
    model = Flat(wrap).to(kind)
    exact = images.flatten(1).double() @ model.weight.detach().double()
    expected, gap = exact.argmax(1), (exact.topk(2).values @ torch.tensor([1.0, -1.0]).double()) > 0.1  # no near ties
    assert gap.sum() > 10 and len(expected.unique()) > 1
    inside = InClasses(model, {4: 1, 2: 0, 7: 2}, 8)
    assert torch.equal(answers(model, images)[gap], expected[gap])
    assert torch.equal(answers(inside, images)[gap], torch.tensor([2, 4, 7])[expected][gap])
    function = InClasses(lambda x: model(x.to(kind)), {0: 0, 1: 1, 2: 2}, 3)
    labels = expected[gap].int()
    outcome = attack_pair(model, function, images[gap], labels, lambda source, x, y: attack(source, x, y, epsilon=100))
    assert len(outcome.image) == 2 * gap.sum() and rates(outcome)["white_box"] > 0.9


def test_in_classes_needs_as_many_names_as_labels():
    with pytest.raises(ValueError, match="names has 2 classes, but the model 3"):
        InClasses(Flat(), {0: 0, 1: 1}, 5)(torch.rand(2, 3, 2, 2))


@pytest.mark.parametrize("only_right", [False, True])
@pytest.mark.parametrize("label", [3, -100])
def test_labels_that_are_no_classes_are_told(only_right, label):
    images = torch.rand(2, 3, 2, 2)
    with pytest.raises(ValueError, match=f"labels must be from 0 to 2 of 3 classes, got {label}"):
        attack_pair(Flat(), Flat(), images, torch.tensor([1, label]), attack, only_right=only_right)


def test_a_pair_is_not_attacked_on_other_images_and_labels():
    images, labels = torch.rand(2, 3, 2, 2), torch.tensor([0, 1])
    for x, y, message in (
        (images * 255, labels, "divided by 255"),
        (images.numpy(), labels, "as_tensor"),
        (images, [0, 1], "as_tensor"),
        (images, labels.double(), "labels.long"),
    ):
        with pytest.raises(ValueError, match=message):
            attack_pair(Flat(), Flat(), x, y, attack)
    with pytest.raises(ValueError, match=r"images\.float"):
        answers(Flat(), (images * 255).byte())
