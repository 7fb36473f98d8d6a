"""Faults that were met in other packages, and that ours does not share."""

import numpy as np
import pytest

from repsim_utils import metrics
from tests.metrics import literal


def pair(n=200, d1=12, d2=8, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d1)) * np.linspace(3, 0.3, d1)
    return x, x @ rng.normal(size=(d1, d2)) + rng.normal(size=(n, d2))


def nearly_parallel(n=300, d=64, seed=0):
    """Unit rows with a mean cosine of about 0.99, as raw language-model features have; half of the rest is shared."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(n, d)) / d**0.5
    found = []
    for _ in range(2):
        x = 10 * np.ones(d) / d**0.5 + common + 0.3 * rng.normal(size=(n, d)) / d**0.5
        found.append(x / np.linalg.norm(x, axis=1, keepdims=True))
    assert 0.98 < (found[0] @ found[0].T).mean() < 0.995
    return found


def test_unbiased_cka_with_itself_is_one():
    x, _ = pair()
    assert metrics.cka(x, x, unbiased=True) == pytest.approx(1)


def test_unbiased_cka_is_not_clamped():
    rng = np.random.default_rng(0)
    values = [metrics.cka(rng.normal(size=(20, 9)), rng.normal(size=(20, 9)), unbiased=True) for _ in range(40)]
    assert min(values) < -0.01


def test_no_small_number_in_the_denominator():
    """On nearly parallel unit rows an added 1e-6 changes the value; here nothing is added."""
    x, y = nearly_parallel()
    for unbiased in (False, True):
        definition = literal.unbiased_cka if unbiased else literal.cka
        assert metrics.cka(x, y, unbiased=unbiased) == pytest.approx(definition(x, y), rel=1e-8)
        assert metrics.cka(1e-4 * x, y, unbiased=unbiased) == pytest.approx(definition(x, y), rel=1e-8)


def test_nearly_parallel_rows_in_float32():
    """Centring comes before the kernel, and in float64."""
    x, y = (values.astype(np.float32) for values in nearly_parallel())
    assert metrics.cka(x, y) == pytest.approx(literal.cka(x.astype(float), y.astype(float)), rel=1e-8)
    assert metrics.mutual_knn(x, y) == pytest.approx(literal.mutual_knn(x.astype(float), y.astype(float)), rel=1e-8)


def test_svcca_is_not_cca_and_depends_on_its_components():
    x, y = pair()
    values = [metrics.svcca(x, y, n_components=c) for c in (1, 3, 8)]
    assert len({round(value, 6) for value in [*values, metrics.cca(x, y)]}) == 4
    assert metrics.svcca(x, y, n_components=12) == pytest.approx(metrics.cca(x, y))


def test_svcca_keeps_its_components_at_every_scale():
    x, y = pair()
    for scale in (1e-6, 1e6):
        assert metrics.svcca(scale * x, y, n_components=4) == pytest.approx(metrics.svcca(x, y, n_components=4))


def test_pwcca_takes_the_wider_one_first_and_is_not_the_plain_mean():
    x, y = pair(d1=12, d2=8)
    assert metrics.pwcca(x, y) != pytest.approx(metrics.cca(x, y), rel=1e-3)
    assert metrics.pwcca(x, y) == pytest.approx(literal.pwcca(x, y), rel=1e-10)
    assert metrics.pwcca(y, x) == pytest.approx(literal.pwcca(y, x), rel=1e-10)


def test_procrustes_does_not_change_with_scale_nor_leave_its_range():
    x, y = pair()
    assert metrics.procrustes(10 * x, y) == pytest.approx(metrics.procrustes(x, y))
    assert 0 < metrics.procrustes(10 * x, y, angular=True) < np.pi / 2


@pytest.mark.parametrize("d", [60, 300])
def test_canonical_correlations_that_are_one_by_counting_are_refused(d):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(100, d)), rng.normal(size=(100, d))
    for function in (metrics.cca, metrics.pwcca):
        with pytest.raises(ValueError, match="too many for 100 rows"):
            function(x, y)
    assert metrics.svcca(x, y) < 0.6


def test_a_sequence_axis_is_not_taken_for_samples():
    with pytest.raises(ValueError, match=r"one row a sample, got shape \(4, 5, 6\)"):
        metrics.cka(np.zeros((4, 5, 6)), np.zeros((4, 5, 6)))


@pytest.mark.parametrize("k", [0, 200, 201])
def test_k_that_would_count_oneself_is_refused(k):
    x, y = pair()
    for function in (metrics.cknna, metrics.mutual_knn, metrics.cycle_knn, metrics.lcs_knn, metrics.edit_distance_knn):
        with pytest.raises(ValueError, match=f"less than the number of rows, got k={k} with 200 rows"):
            function(x, y, k=k)


def test_oneself_is_left_out_by_name_not_by_rank():
    """With rows of different length, or copies, a row need not be its own nearest."""
    x, y = pair()
    x[:50] *= 0.01
    x[150:] = x[100:150]
    for name in ("mutual_knn", "cycle_knn", "lcs_knn"):
        assert getattr(metrics, name)(x, y) == pytest.approx(getattr(literal, name)(x, y), rel=1e-12)


def test_a_row_of_nan_does_not_pass():
    x, y = pair()
    x[17] = np.nan
    for function in (metrics.cka, metrics.cknna, metrics.mutual_knn, metrics.svcca, metrics.rsa, metrics.procrustes):
        with pytest.raises(ValueError, match="x must be finite"):
            function(x, y)


def test_cknna_has_a_default_k():
    x, y = pair()
    assert metrics.cknna(x, y) == metrics.cknna(x, y, k=10)


def test_the_three_definitions_of_cknna_differ():
    x, y = pair()
    assert metrics.cknna(x, y) != pytest.approx(metrics.cknna(x, y, published=True), rel=1e-3)
    neither = np.random.default_rng(0).normal(size=(200, 5))
    assert abs(metrics.cknna(x, neither)) < 0.2
