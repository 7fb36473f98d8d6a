"""One pass over batches gives what all rows at once give."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from repsim_utils.metrics import StreamingCKA, cka


def pair(n=50, d1=4, d2=6, seed=0, offset=2.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d1)) + offset
    return x, x @ rng.normal(size=(d1, d2)) + rng.normal(size=(n, d2))


def streamed(x, y, sizes):
    stream = StreamingCKA()
    for part in np.split(np.arange(len(x)), np.cumsum(sizes)):
        stream.update(x[part], y[part])
    return stream


@given(
    st.integers(5, 60),
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(0, 999),
    st.lists(st.integers(0, 20), max_size=6),
)
def test_any_batches_give_the_whole(n, d1, d2, seed, sizes):
    x, y = pair(n, d1, d2, seed)
    stream = streamed(x, y, sizes)
    assert stream.n == n
    for unbiased in (False, True):
        assert stream.compute(unbiased=unbiased) == pytest.approx(cka(x, y, unbiased=unbiased), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("scale", [1e-150, 1e-20, 1, 1e20, 1e150])
@pytest.mark.parametrize("offset", [0, 1e3, -1e5])
def test_features_far_from_zero_or_of_any_size(scale, offset):
    x, y = pair(offset=offset)
    stream = streamed(scale * x, y, [7, 7, 7])
    assert stream.compute(unbiased=True) == pytest.approx(cka(x, y, unbiased=True), rel=1e-8)


def test_it_is_not_the_mean_over_batches():
    x, y = pair(200, 20, 20, offset=0)
    batches = [cka(x[i : i + 25], y[i : i + 25]) for i in range(0, 200, 25)]
    assert np.mean(batches) > streamed(x, y, [25] * 7).compute() + 0.02


def test_a_batch_of_one_and_a_short_last_batch():
    x, y = pair(11)
    assert streamed(x, y, [1, 4, 4]).compute() == pytest.approx(cka(x, y), rel=1e-10)


def test_a_constant_first_batch():
    x, y = pair(20)
    x[:5], y[:5] = x[0], 0
    assert streamed(x, y, [5]).compute() == pytest.approx(cka(x, y), rel=1e-8)


def test_computing_between_batches_changes_nothing():
    x, y = pair(30)
    stream = streamed(x[:20], y[:20], [10])
    assert stream.compute() == pytest.approx(cka(x[:20], y[:20]), rel=1e-10)
    stream.update(torch.from_numpy(x[20:]).float(), y[20:])
    assert stream.compute() == pytest.approx(cka(x, y), rel=1e-5)


def test_errors_leave_what_was_there():
    x, y = pair(20)
    stream = streamed(x, y, [])
    before = stream.compute()
    for bad_x, bad_y, message in (
        (x[:3], y[:4], "matching rows, got 3 and 4"),
        (x[:3, :2], y[:3], "x has 2 columns, and 4 in the batches before"),
        (x[:3] * np.nan, y[:3], "x must be finite"),
        (x[:3], y[0], "y must be a matrix"),
    ):
        with pytest.raises(ValueError, match=message):
            stream.update(bad_x, bad_y)
    assert stream.compute() == before and stream.n == 20


def test_too_few_rows_or_no_variance():
    with pytest.raises(ValueError, match="needs at least 2 rows, got 0"):
        StreamingCKA().compute()
    x, y = pair(3)
    with pytest.raises(ValueError, match="needs at least 4 rows, got 3"):
        streamed(x, y, []).compute(unbiased=True)
    for unbiased in (False, True):
        with pytest.raises(ValueError, match="y has no positive HSIC"):
            streamed(pair(9)[0], np.full((9, 2), 0.3), [4]).compute(unbiased=unbiased)
