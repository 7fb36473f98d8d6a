"""How transfer is counted, on models whose answers are known."""

import pytest
import torch
from torch import nn

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
