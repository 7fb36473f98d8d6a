"""Several metrics at once, and the paper's protocol."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from repsim_utils import metrics
from repsim_utils.metrics import METRICS, PAPER, PUBLISHED, cka, platonic, similarity
from repsim_utils.metrics.neighbors import Neighbors
from tests.metrics import literal


def pair(n=60, d1=8, d2=6, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_t(2, size=(n, d1))  # with outliers
    return x, x @ rng.normal(size=(d1, d2)) + rng.normal(size=(n, d2))


@given(st.integers(1, 50), st.integers(1, 30), st.integers(0, 1000))
def test_platonic_equals_its_literal_version(n, d, seed):
    x = pair(n, d, 1, seed)[0]
    np.testing.assert_allclose(platonic(torch.tensor(x)), literal.platonic(x), rtol=1e-12)


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


def test_similarity_without_the_protocol():
    x, y = pair()
    values = similarity(x, y, preprocess=None)
    assert values["cka"] == pytest.approx(cka(x, y), rel=1e-12)
    assert values["cka"] != pytest.approx(similarity(x, y)["cka"], rel=1e-3)


@pytest.mark.parametrize("preprocess", ["platonic", None])
def test_a_metric_of_the_table_can_be_called(preprocess):
    x, y = pair()
    for name, value in similarity(x, y, list(METRICS), preprocess=preprocess).items():
        assert METRICS[name](x, y, preprocess=preprocess) == value
    with pytest.raises(ValueError, match="unknown option k; this metric takes none"):
        METRICS["cka"](x, y, k=3)


def test_names_choose_the_metrics_and_their_order():
    x, y = pair()
    assert list(similarity(x, y)) == list(PAPER) and len(PAPER) == 8
    assert set(PUBLISHED) <= set(PAPER) <= set(METRICS) >= set(PUBLISHED.values())
    assert list(similarity(x, y, "cka")) == ["cka"]
    for names in (["unbiased_cka"], ["unbiased_cka", "mutual_knn", "cka"], []):
        assert list(similarity(x, y, names)) == names


def test_numpy_and_torch_float32_agree():
    x, y = (values.astype(np.float32) for values in pair())
    assert similarity(x, y) == similarity(torch.tensor(x), torch.tensor(y))


def test_what_metrics_share_is_made_once(monkeypatch):
    calls = []
    original = Neighbors.of.__func__
    monkeypatch.setattr(Neighbors, "of", classmethod(lambda cls, x, **o: calls.append(1) or original(cls, x, **o)))
    metric = {name: replace(METRICS[name], prepare=Neighbors.of) for name in METRICS if "k" in METRICS[name].options}
    for name, changed in metric.items():
        monkeypatch.setitem(METRICS, name, changed)
    similarity(*pair())
    assert len(calls) == 2
    metrics.report(*pair(), intervals=False)
    assert len(calls) == 4


def test_report_is_similarity_interval_and_calibration():
    x, y = pair()
    names = [*PAPER, "cknna_published", "procrustes", "rsa"]
    rows = metrics.report(x, y, names, k=4, n_permutations=39)
    values = similarity(x, y, names, k=4)
    assert [row["metric"] for row in rows] == names
    for row in rows:
        options = {"k": 4} if "k" in METRICS[row["metric"]].options else {}
        interval = metrics.interval(x, y, row["metric"], preprocess="platonic", **options)
        chance = metrics.calibrate(x, y, row["metric"], preprocess="platonic", n_permutations=39, **options)
        expected = {"value": values[row["metric"]], "low": interval.low, "high": interval.high, **asdict(chance)}
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    assert set(metrics.report(x, y, ["cka"], intervals=False, calibrated=False)[0]) == {"metric", "value"}


def test_errors():
    x, y = pair()
    with pytest.raises(ValueError, match="unknown metric ckaa; choose from cka, unbiased_cka"):
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
