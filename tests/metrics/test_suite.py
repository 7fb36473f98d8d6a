"""Several metrics at once, and the paper's protocol."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from repsim_utils import metrics
from repsim_utils.metrics import METRICS, PAPER, cka, platonic, similarity


def pair(n=60, d1=8, d2=6, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_t(2, size=(n, d1))  # with outliers
    return x, x @ rng.normal(size=(d1, d2)) + rng.normal(size=(n, d2))


def literal_platonic(x):
    """Clamp at the 95th percentile of |features|, one number for the matrix; then rows of length 1."""
    values = np.sort(np.abs(x), axis=None)
    limit = values[int(0.95 * x.size)]
    x = np.clip(x, -limit, limit)
    return np.array([row / np.sqrt((row**2).sum()) for row in x])


@given(st.integers(1, 50), st.integers(1, 30), st.integers(0, 1000))
def test_platonic_equals_its_literal_version(n, d, seed):
    x = pair(n, d, 1, seed)[0]
    np.testing.assert_allclose(platonic(torch.tensor(x)), literal_platonic(x), rtol=1e-12)


def test_platonic_tames_outliers_only():
    x = torch.ones(10, 10, dtype=torch.float64)
    x[0, 0] = 1e9
    np.testing.assert_allclose(platonic(x), torch.full_like(x, 10**-0.5))


def test_a_row_of_zeros_stays():
    x = torch.tensor(pair()[0])
    x[3] = 0
    assert torch.isfinite(platonic(x)).all() and (platonic(x)[3] == 0).all()


def test_platonic_does_not_change_its_argument():
    x = torch.tensor(pair()[0])
    before = x.clone()
    platonic(x)
    assert torch.equal(x, before)


def test_similarity_is_each_metric_after_the_protocol():
    x, y = pair()
    prepared = literal_platonic(x), literal_platonic(y)
    expected = {"cka": cka(*prepared), "unbiased_cka": cka(*prepared, unbiased=True)}
    assert similarity(x, y) == pytest.approx(expected, rel=1e-10)
    assert all(type(value) is float for value in similarity(x, y).values())


def test_similarity_without_the_protocol():
    x, y = pair()
    values = similarity(x, y, preprocess=None)
    assert values["cka"] == pytest.approx(cka(x, y), rel=1e-12)
    assert values["cka"] != pytest.approx(similarity(x, y)["cka"], rel=1e-3)


def test_names_choose_the_metrics_and_their_order():
    x, y = pair()
    assert list(similarity(x, y)) == list(PAPER) == list(METRICS)
    for names in (["unbiased_cka"], ["unbiased_cka", "cka"], []):
        assert list(similarity(x, y, names)) == names


def test_numpy_and_torch_float32_agree():
    x, y = (values.astype(np.float32) for values in pair())
    assert similarity(x, y) == similarity(torch.tensor(x), torch.tensor(y))


@pytest.mark.parametrize("name", PAPER)
def test_one_on_itself_and_symmetric(name):
    x, y = pair()
    assert similarity(x, x)[name] == pytest.approx(1)
    assert similarity(x, y)[name] == pytest.approx(similarity(y, x)[name])


def test_errors():
    x, y = pair()
    with pytest.raises(ValueError, match="unknown metric ckaa, b; choose from cka, unbiased_cka"):
        similarity(x, y, ["cka", "ckaa", "b"])
    with pytest.raises(ValueError, match="preprocess must be 'platonic' or None, got 'zscore'"):
        similarity(x, y, preprocess="zscore")
    with pytest.raises(ValueError, match="matching rows, got 60 and 59"):
        similarity(x, y[1:])
    with pytest.raises(ValueError, match="y must be finite"):
        similarity(x, y * np.nan)
    with pytest.raises(ValueError, match="at least 4 rows"):
        similarity(x[:3], y[:3])


def test_metrics_depend_on_nothing_else_of_the_package():
    """So that they can be lifted out."""
    import ast
    from pathlib import Path

    for path in Path(metrics.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("repsim_utils"):
                assert node.module.startswith("repsim_utils.metrics"), path
