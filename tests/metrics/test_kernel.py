"""CKA, held against the literal definitions on n × n kernels."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import pdist

from repsim_utils.metrics import cka
from repsim_utils.metrics.kernel import median_distance
from tests.metrics import literal

SHAPES = [(40, 5, 7), (12, 30, 50), (25, 25, 3), (4, 9, 2), (30, 1, 1)]  # n, d1, d2


def pair(n=40, d1=5, d2=7, seed=0, shared=1.0):
    """Two representations of which a part is the same."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d1)) + 3
    return x, shared * x @ rng.normal(size=(d1, d2)) + rng.normal(size=(n, d2)) - 1


def definition(x, y, unbiased):
    return (literal.unbiased_cka if unbiased else literal.cka)(x, y)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy])
def test_equals_the_literal_definition(shape, dtype, unbiased, convert):
    x, y = (values.astype(dtype) for values in pair(*shape))
    value = cka(convert(x), convert(y), unbiased=unbiased)
    assert type(value) is float
    assert value == pytest.approx(definition(x, y, unbiased), rel=1e-10)


@given(st.integers(5, 30), st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000), st.booleans())
def test_equals_the_literal_definition_at_any_shape(n, d1, d2, seed, unbiased):
    x, y = pair(n, d1, d2, seed)
    assert cka(x, y, unbiased=unbiased) == pytest.approx(definition(x, y, unbiased), rel=1e-10, abs=1e-12)


def test_features_far_from_zero_lose_nothing_in_float32():
    """Centring comes before the product: the truth is that of the same numbers in float64."""
    x, y = (1000 + values.astype(np.float32) for values in pair(200))
    centered = [values.astype(np.float64) - values.astype(np.float64).mean(0) for values in (x, y)]
    for unbiased in (False, True):
        assert cka(x, y, unbiased=unbiased) == pytest.approx(definition(*centered, unbiased), rel=1e-10)


@pytest.mark.parametrize("unbiased", [False, True])
class TestInvariance:
    @given(st.integers(0, 1000), st.floats(1e-12, 1e12), st.floats(-1e3, 1e3))
    def test_rotation_scale_and_shift(self, unbiased, seed, scale, shift):
        x, y = pair(seed=seed)
        rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(5, 5)))[0]
        moved = scale * (x @ rotation + shift)
        assert cka(moved, y, unbiased=unbiased) == pytest.approx(cka(x, y, unbiased=unbiased), rel=1e-8)

    def test_sign(self, unbiased):
        x, y = pair()
        assert cka(-x, y, unbiased=unbiased) == pytest.approx(cka(x, y, unbiased=unbiased), rel=1e-12)

    @given(st.integers(0, 1000))
    def test_rows_in_another_order(self, unbiased, seed):
        x, y = pair(seed=seed)
        order = np.random.default_rng(seed).permutation(len(x))
        assert cka(x[order], y[order], unbiased=unbiased) == pytest.approx(cka(x, y, unbiased=unbiased), rel=1e-10)
        assert cka(x[order], y, unbiased=unbiased) < cka(x, y, unbiased=unbiased)

    @given(st.integers(0, 1000))
    def test_symmetry_and_one_on_itself(self, unbiased, seed):
        x, y = pair(seed=seed)
        assert cka(x, y, unbiased=unbiased) == pytest.approx(cka(y, x, unbiased=unbiased), rel=1e-12)
        assert cka(x, x, unbiased=unbiased) == pytest.approx(1, rel=1e-12)
        assert cka(x, y, unbiased=unbiased) < 1

    @pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e300])
    def test_extreme_scales_neither_overflow_nor_vanish(self, unbiased, scale):
        x, y = pair()
        assert cka(scale * x, y, unbiased=unbiased) == pytest.approx(cka(x, y, unbiased=unbiased), rel=1e-10)


def test_unbiased_has_mean_zero_on_independent_data_and_is_not_clamped():
    values = [[cka(*pair(20, 10, 10, seed, shared=0), unbiased=unbiased) for seed in range(400)] for unbiased in (0, 1)]
    biased, unbiased = np.array(values)
    error = unbiased.std() / np.sqrt(len(unbiased))
    assert abs(unbiased.mean()) < 4 * error < 0.05
    assert 0.3 < (unbiased < 0).mean() < 0.7
    assert biased.min() > 0.15  # while the biased value is far above 0


def test_features_of_a_model_in_training_are_taken():
    x, y = (torch.tensor(values, requires_grad=True) for values in pair())
    assert cka(x, y) == cka(x.detach(), y.detach())


def changed(value, row=0):
    x = pair()[0]
    x[row, 0] = value
    return x


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (changed(np.nan), "must be finite, got NaN or infinite"),
        (changed(np.inf, row=-1), "must be finite, got NaN or infinite"),
        (np.full((40, 3), 0.1), "has no variance: its 40 rows are all the same"),
        (np.zeros(40), r"must be a matrix with one row a sample, got shape \(40,\)"),
        (np.zeros((40, 2, 3)), r"must be a matrix with one row a sample, got shape \(40, 2, 3\)"),
        (np.zeros((40, 0)), r"must be a matrix with one row a sample, got shape \(40, 0\)"),
        (1j * pair()[0], r"must hold real numbers, got (torch\.)?complex128"),
    ],
)
def test_bad_input_names_the_argument(bad, message):
    good = pair()[1]
    with pytest.raises(ValueError, match=f"x {message}"):
        cka(bad, good)
    with pytest.raises(ValueError, match=f"y {message}"):
        cka(good, torch.as_tensor(bad))


@pytest.mark.parametrize(("unbiased", "least"), [(False, 2), (True, 4)])
def test_too_few_rows(unbiased, least):
    x, y = pair(least)
    assert np.isfinite(cka(x, y, unbiased=unbiased))
    with pytest.raises(ValueError, match=f"x needs at least {least} rows for this metric, got {least - 1}"):
        cka(x[:-1], y[:-1], unbiased=unbiased)


def test_rows_that_do_not_match():
    x, y = pair()
    with pytest.raises(ValueError, match="x and y must have matching rows, got 40 and 39"):
        cka(x, y[:-1])


@pytest.mark.parametrize("options", [{"kernel": "cosine"}, {"sigma": 1.0}])
def test_what_is_not_there_is_refused(options):
    with pytest.raises(ValueError, match="kernel must be 'linear'"):
        cka(*pair(), **options)


def test_bandwidths_that_make_no_kernel():
    x, y = pair()
    for sigma in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="sigma must be positive"):
            cka(x, y, kernel="rbf", sigma=sigma)
    x[5:] = x[5]
    with pytest.raises(ValueError, match="the median distance of the rows is 0"):
        cka(x, y, kernel="rbf")


@pytest.mark.parametrize("n", [2, 3, 4, 5, 50, 51])
def test_median_distance_is_exact(n):
    x = torch.from_numpy(pair(n)[0])
    distances = np.sort(pdist(x.numpy()))
    assert median_distance(x) == pytest.approx(distances[(len(distances) - 1) // 2], rel=1e-12)


def test_median_of_equal_distances():
    assert median_distance(torch.eye(30).double()) == pytest.approx(2**0.5, rel=1e-12)


def test_unbiased_is_undefined_where_samples_differ_in_one_row_only():
    """Rows that are equal but for one have an unbiased HSIC of exactly 0 with themselves."""
    for n in range(5, 40):
        x = np.full((n, 1), 0.7)
        x[0] = 1
        with pytest.raises(ValueError, match="kernel x has no positive HSIC with itself, or one that rounding"):
            cka(x, np.random.default_rng(0).normal(size=(n, 3)), unbiased=True)


def test_a_row_that_hides_all_others_is_refused():
    """Of the rest float64 keeps six digits in a row a hundred thousand times as large, none in one of 1e8."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 5)), rng.normal(size=(40, 3))
    with pytest.raises(ValueError, match="x has no positive HSIC with itself, or one that rounding hides"):
        x[0] *= 1e8
        cka(x, y, unbiased=True)


@pytest.mark.parametrize(
    "view", [lambda x: x[::-1], lambda x: np.broadcast_to(x, x.shape)], ids=["reversed", "read-only"]
)
@pytest.mark.filterwarnings("error")
def test_any_numpy_view_is_taken(view):
    x, y = pair()
    assert cka(view(x), y) == cka(np.array(view(x)), y)
