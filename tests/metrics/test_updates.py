"""Changes of weights, against their literal definitions on whole matrices."""

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch

from repsim_utils.metrics import symmetric_kl, update_cosine, update_subspaces


def update(seed, out=30, rank=5, inside=20):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out, rank, generator=generator), torch.randn(rank, inside, generator=generator)


@pytest.mark.parametrize("ranks", [(5, 5), (1, 7)])
def test_cosine_is_that_of_the_whole_matrices(ranks):
    first, second = update(0, rank=ranks[0]), update(1, rank=ranks[1])
    whole = [(left @ right).flatten() for left, right in (first, second)]
    assert update_cosine(first, second) == pytest.approx(float(torch.cosine_similarity(*whole, dim=0)), abs=1e-5)
    assert update_cosine(first, (-3 * first[0], first[1])) == pytest.approx(-1)


def test_cosine_does_not_depend_on_how_a_change_is_factored():
    left, right = update(0)
    mix = torch.randn(5, 5, generator=torch.Generator().manual_seed(2))
    assert update_cosine((left @ mix, right), (left, mix @ right)) == pytest.approx(1)
    assert np.isnan(update_cosine((0 * left, right), (left, right)))


def test_subspaces_are_those_of_the_whole_matrices():
    first, second = update(0), update(1)
    bases = [scipy.linalg.svd((left @ right).numpy()) for left, right in (first, second)]
    wanted = [
        np.square(np.cos(scipy.linalg.subspace_angles(*sides))).mean()
        for sides in ([u[:, :3] for u, _, _ in bases], [vt[:3].T for _, _, vt in bases])
    ]
    assert update_subspaces(first, second, k=3) == pytest.approx(tuple(wanted), abs=1e-5)
    assert update_subspaces(first, first, k=5) == pytest.approx((1, 1))


def test_random_subspaces_have_what_is_said_of_them():
    found = np.array([update_subspaces(update(2 * i), update(2 * i + 1), k=4) for i in range(200)])
    assert found.mean(0) == pytest.approx((4 / 30, 4 / 20), abs=0.01)


def test_symmetric_kl_is_scipys():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(6, 9, generator=generator) for _ in range(2))
    p, q = first.softmax(-1).numpy(), second.softmax(-1).numpy()
    wanted = np.mean([(scipy.stats.entropy(a, b) + scipy.stats.entropy(b, a)) / 2 for a, b in zip(p, q, strict=True)])
    assert symmetric_kl(first, second) == pytest.approx(wanted, rel=1e-5)
    assert symmetric_kl(first, first + 7) == pytest.approx(0, abs=1e-6)


def test_directions_that_a_change_does_not_have_are_not_compared():
    """Of rank 1 in factors of rank 5: the second singular vector would be arbitrary."""
    left, right = update(0)
    one = left[:, :1] @ torch.ones(1, 5), right
    mix = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1))).Q
    for other in (one, (2 * one[0], one[1] / 2), (one[0] @ mix, mix.T @ one[1])):
        assert update_subspaces(one, other, k=1) == pytest.approx((1, 1), abs=1e-5)
        with pytest.raises(
            ValueError, match="k must be from 1 to 1, the rank of a change: others are arbitrary; got 2"
        ):
            update_subspaces(one, other, k=2)
    assert np.isnan(update_subspaces((0 * left, right), (left, right), k=2)).all()


def test_classes_that_both_rule_out_do_not_count():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(6, 9, generator=generator) for _ in range(2))
    wanted = symmetric_kl(first[:, :5], second[:, :5])
    first[:, 5:] = second[:, 5:] = -torch.inf
    assert symmetric_kl(first, second) == pytest.approx(wanted, rel=1e-6)
    second[0, 5] = 0  # which the first says is impossible
    assert symmetric_kl(first, second) == np.inf
    for wrong in (-torch.inf, torch.inf, torch.nan):
        first[2] = wrong
        with pytest.raises(ValueError, match=r"a row of logits gives no probabilities: it holds nan or \+inf, or noth"):
            symmetric_kl(first, second)


def test_what_does_not_match_is_told():
    with pytest.raises(ValueError, match=r"products of one shape, got \(30, 5\) @ \(5, 20\) and \(31, 5\) @ \(5, 20\)"):
        update_cosine(update(0), update(0, out=31))
    with pytest.raises(ValueError, match="k must be from 1 to 2, the rank of a change: others are arbitrary; got 4"):
        update_subspaces(update(0), update(1, rank=2))
    with pytest.raises(ValueError, match=r"one shape, got \(2, 3\) and \(2, 4\)"):
        symmetric_kl(torch.zeros(2, 3), torch.zeros(2, 4))
