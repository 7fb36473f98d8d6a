"""What every metric promises: symmetry, 1 on itself, what leaves it unchanged, what does not, its value by chance."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repsim_utils.metrics import METRICS

KERNELS = ("cka", "unbiased_cka", "rbf_cka", "unbiased_rbf_cka")
NEIGHBORS = tuple(name for name, metric in METRICS.items() if "k" in metric.options)
SUBSPACES = ("cca", "svcca", "pwcca")
ROTATION = (*KERNELS, *NEIGHBORS, *SUBSPACES, "procrustes")  # RSA compares features within a row
SHIFT = (*KERNELS, *SUBSPACES, "svcca_published", "procrustes")
ONE_ON_ITSELF = set(METRICS) - {"cycle_knn", "lcs_knn_published"}
seeds = given(st.integers(0, 10_000))


def pair(n=80, d1=9, d2=7, seed=0, shared=1.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d1)) * np.linspace(1, 3, d1)
    return x, shared * x @ rng.normal(size=(d1, d2)) + rng.normal(size=(n, d2)) * 2


def changes(name, moved_x, x, y):
    return METRICS[name](moved_x, y) != pytest.approx(METRICS[name](x, y), rel=1e-4)


def rotation(d, seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]


@pytest.mark.parametrize("name", sorted(ONE_ON_ITSELF))
@seeds
def test_one_on_itself_and_less_on_others(name, seed):
    x, y = pair(seed=seed)
    assert METRICS[name](x, x) == pytest.approx(1, abs=1e-9)
    assert METRICS[name](x, y) < 1 - 1e-4


@pytest.mark.parametrize("name", sorted(set(METRICS) - {"cycle_knn", "cknna_published", "pwcca"}))
@seeds
def test_symmetric(name, seed):
    x, y = pair(seed=seed)
    assert METRICS[name](x, y) == pytest.approx(METRICS[name](y, x), rel=1e-9)


@pytest.mark.parametrize("name", ["cycle_knn", "cknna_published", "pwcca"])
def test_not_symmetric(name):
    x, y = pair()
    assert METRICS[name](x, y) != pytest.approx(METRICS[name](y, x), rel=1e-4)


@pytest.mark.parametrize("name", ROTATION)
@seeds
def test_rotation(name, seed):
    x, y = pair(seed=seed)
    if name != "pwcca":
        assert METRICS[name](x @ rotation(9, seed), y) == pytest.approx(METRICS[name](x, y), rel=1e-8)
    assert METRICS[name](x, y @ rotation(7, seed)) == pytest.approx(METRICS[name](x, y), rel=1e-8)


def test_pwcca_weighs_the_features_of_the_first():
    x, y = pair()
    assert changes("pwcca", x @ rotation(9, 0), x, y)


def test_pwcca_where_correlations_are_equal_is_the_mean_over_directions_that_share_them():
    """Directions within a space of equal correlations are arbitrary: here the literal value of many choices."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(np.c_[np.ones(60), rng.normal(size=(60, 12))])[0][:, 1:]
    x = basis[:, :6] @ rng.normal(size=(6, 7))  # three correlations of 1, three of 0
    y = np.c_[basis[:, :3], basis[:, 6:9]]
    weights = [
        [np.abs(x.T @ part @ rotation(3, seed)).sum() for seed in range(3000)] for part in (basis[:, :3], basis[:, 3:6])
    ]
    choices = weights[0] / np.sum(weights, axis=0)
    assert np.std(choices) > 0.01  # what a single choice would have made of it
    wanted = np.mean(weights[0]) / np.mean(weights, axis=1).sum()
    assert METRICS["pwcca"](x, y) == pytest.approx(wanted, abs=3e-3)
    values = [METRICS["pwcca"](x[order], y[order]) for order in (rng.permutation(60) for _ in range(5))]
    assert values == pytest.approx([values[0]] * 5, abs=1e-12)
    assert METRICS["pwcca"](x, x) == pytest.approx(1)


def test_rsa_rotates_with_euclidean_distances_only():
    from repsim_utils.metrics import rsa

    x, y = pair()
    turned = x @ rotation(9, 0)
    assert rsa(turned, y, dissimilarity="euclidean") == pytest.approx(rsa(x, y, dissimilarity="euclidean"), rel=1e-8)
    assert changes("rsa", turned, x, y)


@pytest.mark.parametrize("name", sorted(METRICS))
@given(st.integers(0, 10_000), st.floats(1e-12, 1e12))
def test_scaling(name, seed, scale):
    x, y = pair(seed=seed)
    assert METRICS[name](scale * x, y) == pytest.approx(METRICS[name](x, y), rel=1e-7)


@pytest.mark.parametrize("name", sorted(METRICS))
@pytest.mark.parametrize("scale", [1e-250, 1e-30, 1e30, 1e250])
def test_extreme_scales_neither_overflow_nor_vanish(name, scale):
    x, y = pair()
    if name != "svcca_published":
        assert METRICS[name](scale * x, y) == pytest.approx(METRICS[name](x, y), rel=1e-8)


@pytest.mark.parametrize("name", SHIFT)
@given(st.integers(0, 10_000), st.floats(-100, 100))
def test_shift(name, seed, shift):
    x, y = pair(seed=seed)
    assert METRICS[name](x + shift * np.arange(9), y) == pytest.approx(METRICS[name](x, y), rel=1e-6)


@pytest.mark.parametrize("name", NEIGHBORS)
def test_a_shift_changes_neighbors_by_inner_product(name):
    x, y = pair()
    assert changes(name, x + 5, x, y)


@pytest.mark.parametrize("name", ["cca", "pwcca"])
@seeds
def test_invertible_maps_leave_canonical_correlations(name, seed):
    x, y = pair(seed=seed)
    stretch = rotation(7, seed) * np.linspace(1, 20, 7)
    assert METRICS[name](x, y @ stretch) == pytest.approx(METRICS[name](x, y), rel=1e-7)


@pytest.mark.parametrize("name", [*KERNELS, *NEIGHBORS, "svcca", "procrustes", "rsa"])
def test_invertible_maps_change_the_others(name):
    x, y = pair(d1=14)
    assert changes(name, x @ (rotation(14, 0) * np.geomspace(1, 100, 14)), x, y)


@pytest.mark.parametrize("name", sorted(METRICS))
@seeds
def test_both_in_another_order_of_rows(name, seed):
    x, y = pair(seed=seed)
    order = np.random.default_rng(seed).permutation(len(x))
    tolerance = 0.2 if name == "svcca_published" else 1e-8  # its random draw meets other rows
    assert METRICS[name](x[order], y[order]) == pytest.approx(METRICS[name](x, y), rel=tolerance)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_ranges(name):
    for seed in range(20):
        x, y = pair(n=60, seed=seed, shared=seed % 3)
        low = -1 if name in ("rsa", "cknna", "cknna_published", "unbiased_cka", "unbiased_rbf_cka") else 0
        assert low <= METRICS[name](x, y) <= (10 if name == "lcs_knn_published" else 1)


def test_edit_distance_is_at_most_lcs_and_that_at_most_mutual():
    for seed in range(20):
        x, y = pair(seed=seed)
        edit, lcs, mutual = (METRICS[name](x, y) for name in ("edit_distance_knn", "lcs_knn", "mutual_knn"))
        assert edit <= lcs <= mutual


class TestIndependentData:
    """Means over unrelated pairs against what theory says, to four standard errors."""

    def check(self, name, expected, n=40, d=6, draws=300, **options):
        values = [METRICS[name](*pair(n, d, d, seed, shared=0), **options) for seed in range(draws)]
        error = np.std(values) / draws**0.5
        assert np.mean(values) == pytest.approx(expected, abs=4 * error)
        return error

    @pytest.mark.parametrize("k", [1, 5, 20])
    def test_mutual_knn(self, k):
        self.check("mutual_knn", k / 39, k=k)

    @pytest.mark.parametrize("name", ["unbiased_cka", "unbiased_rbf_cka"])
    def test_unbiased(self, name):
        assert self.check(name, 0) < 0.01

    def test_rsa(self):
        self.check("rsa", 0)

    def test_biased_cka_and_cca_are_far_above_zero(self):
        for name, least in (("cka", 0.1), ("cca", 0.25), ("procrustes", 0.25)):
            values = [METRICS[name](*pair(40, 6, 6, seed, shared=0)) for seed in range(50)]
            assert np.mean(values) > least
