"""Several metrics at once, and the paper's protocol."""

from dataclasses import asdict, replace

import numpy as np
import pandas as pd
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


def test_one_metric_that_cannot_be_computed_leaves_the_others():
    """With 18 rows SVCCA has too many directions; every other number is what it is alone."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(18, 32))
    y = x + rng.normal(size=(18, 32))
    rows = {row["metric"]: row for row in metrics.report(x, y, [*PAPER, "cca"], k=4, n_permutations=39)}
    left_out = {"svcca": "at least 3 canonical correlations are 1", "cca": "at least 17 canonical correlations are 1"}
    assert list(rows) == [*PAPER, "cca"] and {name for name in rows if "reason" in rows[name]} == set(left_out)
    for name, row in rows.items():
        if name in left_out:
            assert left_out[name] in row.pop("reason") and row.pop("metric") == name
            assert set(row) == set(rows["cka"]) - {"metric"} and all(map(np.isnan, row.values()))
            continue
        (alone,) = metrics.report(x, y, name, k=4, n_permutations=39)
        assert list(row) == list(alone) and row.pop("metric") == alone.pop("metric") == name
        assert row == pytest.approx(alone, rel=1e-12)
        assert row["value"] == pytest.approx(similarity(x, y, name, k=4)[name], rel=1e-12)
    with pytest.raises(ValueError, match="use svcca with fewer components"):
        metrics.report(x, y, k=4, strict=True)
    with pytest.raises(ValueError, match="use svcca with fewer components"):
        similarity(x, y, k=4)
    with pytest.raises(ValueError, match=r"at least 3 canonical .*; x and y vary in 17 and 17"):
        metrics.report(x, y, ["svcca", "cca"])


def test_a_metric_without_an_interval_or_a_chance_level_keeps_its_value():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(11, 5)), rng.normal(size=(11, 5))
    (row,) = metrics.report(x, y, "mutual_knn", n_permutations=39)
    assert row["value"] == similarity(x, y, "mutual_knn")["mutual_knn"] and np.isnan([row["low"], row["high"]]).all()
    assert row["p_value"] == metrics.calibrate(x, y, "mutual_knn", n_permutations=39, preprocess="platonic").p_value
    assert row["reason"].startswith("no interval: with k=10, 11 rows are too few")
    few = {row["metric"]: row for row in metrics.report(x[:4], y[:4], ["cka", "mutual_knn"], calibrated=False)}
    assert few["cka"]["value"] == similarity(x[:4], y[:4], "cka")["cka"]
    assert few["cka"]["reason"] == "no interval: it needs at least 5 rows, got 4"
    assert np.isnan(few["mutual_knn"]["value"]) and "got k=10 with 4 rows" in few["mutual_knn"]["reason"]
    (row,) = metrics.report(x, y, "cka", groups=[1] * 11, calibrated=False)
    assert row["reason"] == "no interval: all rows are one group: nothing can be left out"
    one = np.zeros((50, 4))
    one[3] = 1
    (row,) = metrics.report(one, rng.normal(size=(50, 4)), "cka", preprocess=None, calibrated=False)
    assert row["reason"] == "no interval: the score is not a number when some rows are left out"
    assert row["value"] > 0


def test_report_refuses_arguments_that_suit_no_metric():
    x, y = pair()
    for options, message in (
        ({"n_permutations": 5}, "needs at least 19 permutations, got 5"),
        ({"level": 1.5}, "level must be between 0 and 1, got 1.5"),
        ({"groups": [1, 2]}, "one label for each of the 60 rows"),
        ({"names": "ckaa"}, "unknown metric ckaa"),
    ):
        with pytest.raises(ValueError, match=message):
            metrics.report(x, y, **options)
    assert metrics.report(x, y, []) == []


def calls(x, y):
    """Every way to compare two data frames."""
    yield lambda: cka(x, y)
    yield lambda: METRICS["mutual_knn"](x, y)
    yield lambda: similarity(x, y)
    yield lambda: metrics.report(x, y)
    yield lambda: metrics.calibrate(x, y, "cka")
    yield lambda: metrics.interval(x, y, "cka")
    yield lambda: metrics.StreamingCKA().update(x, y)


def test_data_frames_are_matched_by_their_labels_or_refused():
    x, y = (pd.DataFrame(values, index=[f"s{i}" for i in range(60)]) for values in pair())
    wanted = cka(x.to_numpy(), y.to_numpy())
    assert cka(x, y) == cka(x, y.to_numpy()) == wanted
    for moved in (y[::-1], y.sample(frac=1, random_state=0), y.reset_index(drop=True)):
        for call in calls(x, moved):
            with pytest.raises(
                ValueError, match=r"different row labels .* y.loc\[x.index\], or give both as .to_numpy\(\)"
            ):
                call()
    assert cka(x, y[::-1].loc[x.index]) == wanted
    groups = pd.Series(np.arange(60) // 2, index=x.index)
    for find in (metrics.calibrate, metrics.interval):
        assert find(x, y, "cka", groups=groups) == find(x, y, "cka", groups=groups.to_numpy())
        with pytest.raises(ValueError, match="x and groups have different row labels"):
            find(x, y, "cka", groups=groups[::-1])
    with pytest.raises(ValueError, match="x and groups have different row labels"):
        metrics.report(x, y, groups=groups[::-1])


@pytest.mark.parametrize("dtype", ["Float32", "Float64", "float32", "Int64", "float64[pyarrow]"])
def test_data_frames_of_every_kind_of_number(dtype):
    x, y = pair()
    x = x.round() if dtype == "Int64" else x.astype(np.float32)
    frame = pd.DataFrame(x).astype(dtype)
    assert cka(frame, y) == pytest.approx(literal.cka(x.astype(float), y), rel=1e-9)
    frame.iloc[7, 2] = None
    with pytest.raises(ValueError, match=r"nan in row 7, column 2 \(1 of 480\)"):
        cka(frame, y)


def test_what_is_wrong_with_an_array_is_named_with_its_place_and_a_remedy():
    x, y = pair()
    nan, words = x.copy(), x.astype(object)
    nan[3, 1], words[4, 2] = np.nan, "n/a"
    masked = np.ma.masked_array(x, mask=False)
    masked[5, 0] = np.ma.masked
    fields = np.zeros(60, dtype=[("a", "f4"), ("b", "f4")])
    table = pd.DataFrame(x, columns=list("abcdefgh"))
    for bad, message in (
        (
            nan,
            r"y must be finite, got NaN or infinite values: nan in row 3, column 1 \(1 of 480\); fill them, or leave",
        ),
        (
            np.where(x > 2, np.inf, x).astype("f2"),
            r"inf in row \d+, column \d .*float16 ends at 65504: save it as float32",
        ),
        (torch.tensor(x).half() * 60000, "float16 ends at 65504"),
        (words, "got object .ndarray.: row 4, column 2 holds 'n/a'; leave text out"),
        (x.astype(str), "got <U.*: row 0, column 0 holds "),
        (masked, "y has masked entries, the first in row 5"),
        (x + 1j * x, "got complex128 .ndarray.: put real and imaginary parts side by side"),
        (fields, "put its fields side by side as columns: a, b"),
        (x.astype("f2").view("V2"), "numpy has no bfloat16: save it as float32"),
        (x.astype("M8[s]"), "leave dates out"),
        (x.reshape(60, 2, 4), r"got shape \(60, 2, 4\): average over the other axes, or flatten them"),
        (x[:, 0], r"got shape \(60,\): a single feature is a column, .reshape\(-1, 1\)"),
        (pd.Series(x[:, 0]), r"got shape \(60,\)"),
        (table.assign(word="a"), r"in column 'word': leave it out, .drop\(columns=\['word'\]\)"),
        (
            table.assign(label=1),
            r"whole numbers in column 'label' .* .drop\(columns=\['label'\]\), or give .to_numpy\(\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            cka(x, bad)
    assert cka(np.ma.masked_array(x), y) == cka(x, y)


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
