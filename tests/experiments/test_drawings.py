"""Judging drawings: agreement, Fréchet distance, and where the nearest training image is."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import nn

from repsim_utils.experiments.drawings import copied, frechet, nearest, quality, some
from repsim_utils.models.vision import Classifier


def normal(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_frechet_by_another_way():
    x, y = normal(50, 4, 0), normal(60, 4, 1) @ torch.diag(torch.tensor([1.0, 2.0, 0.5, 1.0])) + 1
    a, b = (np.cov(one.numpy().T) for one in (x, y))
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet(x, y) == pytest.approx(float(expected), rel=1e-4)
    assert frechet(x, x) == pytest.approx(0, abs=1e-6)
    assert frechet(x + 2, x) == pytest.approx(16, rel=1e-5)  # four times two squared


class Mean(nn.Module):
    """Three numbers an image: its mean colour."""

    def forward(self, images):
        return images.mean((2, 3))


def judge():
    """Says which of red, green and blue is the strongest."""
    model = Classifier(Mean(), 3, 3, mean=0, std=1)
    with torch.no_grad():
        model.head.weight.copy_(torch.eye(3))
        model.head.bias.zero_()
    return model


def painted(classes, seed=0):
    """Noise with more of one color each."""
    images = torch.randint(100, (len(classes), 3, 4, 4), generator=torch.Generator().manual_seed(seed))
    images[torch.arange(len(classes)), classes] += 100
    return images.to(torch.uint8)


def test_quality_counts_what_was_asked_for_and_holds_real_images_against_it():
    asked, labels = torch.arange(3).repeat(20), torch.arange(3).repeat(40)
    real = painted(labels, 1)
    good, half = painted(asked), painted(torch.cat([asked[:30], (asked[30:] + 1) % 3]))
    found = quality(judge(), good, asked, real, labels)
    assert found["agreement"] == found["agreement_real"] == 1
    assert found["frechet"] == pytest.approx(found["frechet_real"], rel=1)
    assert quality(judge(), half, asked, real, labels)["agreement"] == 0.5
    one_class = quality(judge(), painted(torch.zeros(60, dtype=torch.int64)), asked, real, labels)
    assert one_class["agreement"] == pytest.approx(1 / 3) and one_class["frechet"] > 10 * found["frechet"]


def test_the_nearest_image():
    sets = {name: torch.randint(256, (40, 3, 4, 4), dtype=torch.uint8) for name in ("shared", "own", "unseen")}
    copies = torch.cat([sets["shared"][:6], sets["own"][:2]])
    assert nearest(copies, sets) == {"shared": 0.75, "own": 0.25, "unseen": 0}


def test_sets_count_alike_whatever_their_size():
    """Of all sets as many are taken as of the smallest, so that independent drawings come near each alike often."""
    generator = torch.Generator().manual_seed(0)
    sets = {
        name: torch.randint(256, (n, 3, 4, 4), dtype=torch.uint8, generator=generator)
        for name, n in (("shared", 400), ("own", 40))
    }
    drawn = torch.randint(256, (1000, 3, 4, 4), dtype=torch.uint8, generator=generator)
    assert nearest(drawn, sets)["own"] == pytest.approx(0.5, abs=0.15)


def test_some():
    rows = torch.arange(100)
    assert some(rows, 100).sort().values.equal(rows) and not some(rows, 100).equal(rows)
    assert some(rows, 10).equal(some(rows, 100)[:10]) and len(some(rows, 200)) == 100


def test_images_in_the_order_of_their_classes_are_judged_as_any():
    """Real images come class after class, or class by class in turn: halves of them are halves of every class."""
    in_turn, sorted_by_class = torch.arange(3).repeat(60), torch.arange(3).repeat_interleave(60)
    far = quality(judge(), painted(torch.zeros(180, dtype=torch.int64)), in_turn, painted(in_turn, 1), in_turn)
    for labels in (in_turn, sorted_by_class):
        found = quality(judge(), painted(in_turn), in_turn, painted(labels, 1), labels)
        assert max(found["frechet_real"], found["frechet"]) < 0.1 * far["frechet"]


def test_copied_counts_what_is_far_nearer_to_what_was_seen():
    generator = torch.Generator().manual_seed(0)
    seen, unseen, new = (torch.randint(256, (20, 3, 4, 4), dtype=torch.uint8, generator=generator) for _ in range(3))
    assert copied(seen[:5], seen, unseen) == (1, 0) and copied(unseen[:5], seen, unseen) == (0, 1)
    assert copied(new, seen, unseen) == (0, 0)
    assert copied(torch.cat([seen[:5], new[:15]]), seen, unseen) == (0.25, 0)
