"""Every metric against its literal definition, on awkward data of every shape; and against public packages."""

import importlib.util
import inspect
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes
from scipy.spatial import procrustes as scipy_procrustes

from repsim_utils import metrics
from repsim_utils.metrics import METRICS, kernel, neighbors, similarity, subspace
from repsim_utils.metrics.subspace import Subspace, cca_score
from tests.metrics import literal

CALLED = {  # how functions are called that have several names in the table
    "unbiased_cka": (metrics.cka, {"unbiased": True}),
    "rbf_cka": (metrics.cka, {"kernel": "rbf"}),
    "unbiased_rbf_cka": (metrics.cka, {"kernel": "rbf", "unbiased": True}),
    "cknna_published": (metrics.cknna, {"published": True}),
    "lcs_knn_published": (metrics.lcs_knn, {"published": True}),
}
SINGLE = {  # by name: the function, what it is called with, and the literal definition
    name: (*CALLED.get(name, (getattr(metrics, name, METRICS[name]), {})), getattr(literal, name))
    for name in METRICS
    if name != "svcca_published"  # which is random
}
WITH_K = [name for name, metric in METRICS.items() if "k" in metric.options]
SUBSPACES = tuple(name for name in SINGLE if METRICS[name].prepare == Subspace.of)  # which need more rows


def data(n, d1, d2, seed, kind="plain"):
    """Two related representations, with what makes trouble: equal rows, ties, columns that do not vary."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d1)) + 0.5
    y = x @ rng.normal(size=(d1, d2)) + rng.normal(size=(n, d2))
    if kind == "ties":
        x, y = x.round(), y.round()
    if kind == "equal rows":
        x, y = x[rng.integers(0, n, n)], y[rng.integers(0, 1 + n // 3, n)]
    if kind == "constant columns":
        x, y = np.hstack([x, np.full((n, 2), 0.3)]), np.hstack([np.zeros((n, 1)), y])
    return x, y


KINDS = ("plain", "ties", "equal rows", "constant columns")
shapes = given(
    st.integers(6, 40), st.integers(2, 50), st.integers(2, 50), st.integers(0, 10_000), st.sampled_from(KINDS)
)


def compare(name, x, y, relative, **options):
    function, fixed, definition = SINGLE[name]
    expected = definition(np.asarray(x), np.asarray(y), **options)
    if not np.isfinite(expected):
        with pytest.raises(ValueError):
            function(x, y, **fixed, **options)
        return
    value = function(x, y, **fixed, **options)
    assert type(value) is float
    assert value == pytest.approx(expected, rel=relative, abs=1e-12)


@pytest.mark.parametrize("name", [name for name in SINGLE if name not in SUBSPACES])
@shapes
def test_equals_the_literal_definition(name, n, d1, d2, seed, kind):
    x, y = data(n, d1, d2, seed, kind)
    options = {"k": min(n - 1, 1 + seed % 12)} if name in WITH_K else {}
    compare(name, x, y, 1e-10, **options)


@pytest.mark.parametrize("name", SUBSPACES)
@given(st.integers(45, 80), st.integers(1, 20), st.integers(1, 20), st.integers(0, 10_000), st.sampled_from(KINDS))
def test_subspaces_equal_the_literal_definition(name, n, d1, d2, seed, kind):
    x, y = data(n, d1, d2, seed, kind)
    compare(name, x, y, 1e-10)


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("shape", [(60, 5, 9), (60, 20, 3), (300, 30, 40)])
def test_float32_loses_nothing(name, shape):
    x, y = (values.astype(np.float32) for values in data(*shape, seed=1))
    compare(name, x, y, 1e-9)
    compare(name, torch.from_numpy(x), torch.from_numpy(y), 1e-9)


@pytest.mark.parametrize("name", ["rsa"])
@pytest.mark.parametrize("dissimilarity", ["correlation", "euclidean"])
@pytest.mark.parametrize("compare_by", ["spearman", "pearson"])
@pytest.mark.parametrize("kind", KINDS)
def test_rsa_of_every_kind(name, dissimilarity, compare_by, kind):
    compare(name, *data(30, 8, 60, 3, kind), 1e-10, dissimilarity=dissimilarity, compare=compare_by)


@pytest.mark.parametrize("sigma", [0.2, 1.0, 5.0])
def test_rbf_bandwidth(sigma):
    compare("rbf_cka", *data(31, 4, 60, 3), 1e-10, sigma=sigma)
    compare("unbiased_rbf_cka", *data(30, 4, 60, 3), 1e-10, sigma=sigma)


@pytest.mark.parametrize("k", [1, 5, 70, 119])
@pytest.mark.parametrize("name", [name for name in WITH_K])
def test_any_k(name, k):
    compare(name, *data(120, 6, 8, 4), 1e-10, k=k)


@pytest.mark.parametrize("block", [1, 7, 64])
def test_blocks_do_not_matter(block, monkeypatch):
    x, y = data(65, 6, 8, 4, "equal rows")
    names = [name for name in SINGLE]
    before = similarity(x, y, names, preprocess=None)
    for module in (kernel, neighbors, subspace):
        monkeypatch.setattr(module, "BLOCK", block)
    assert similarity(x, y, names, preprocess=None) == pytest.approx(before, rel=1e-10)


def test_similarity_is_every_function_after_the_protocol():
    x, y = data(60, 8, 6, 5)
    prepared_x, prepared_y = literal.platonic(x), literal.platonic(y)
    for preprocess, first, second in (("platonic", prepared_x, prepared_y), (None, x, y)):
        values = similarity(x, y, list(SINGLE), k=4, preprocess=preprocess)
        for name, (function, fixed, _) in SINGLE.items():
            options = {"k": 4} if name in WITH_K else {}
            assert values[name] == pytest.approx(function(first, second, **fixed, **options), rel=1e-9), name


def test_defaults_of_functions_and_of_the_table_agree():
    for name, (function, _, _) in SINGLE.items():
        if function is METRICS[name]:  # called by its name alone
            continue
        defaults = {key: p.default for key, p in inspect.signature(function).parameters.items()}
        for option, value in METRICS[name].options.items():
            assert defaults[option] == value or (option, defaults[option]) == ("sigma", None)


class TestPublicPackages:
    def test_scipy_procrustes(self):
        x, y = data(40, 5, 5, 6)
        disparity = scipy_procrustes(x, y)[2]
        assert metrics.procrustes(x, y) ** 2 == pytest.approx(1 - disparity, rel=1e-10)
        assert metrics.procrustes(x, y, angular=True) == pytest.approx(np.arccos(np.sqrt(1 - disparity)), rel=1e-10)

    def test_angle_after_the_best_rotation(self):
        x, y = ((v - v.mean(0)) / np.linalg.norm(v - v.mean(0)) for v in data(40, 6, 6, 6))
        rotation = orthogonal_procrustes(y, x)[0]
        expected = np.arccos((x * (y @ rotation)).sum())
        assert metrics.procrustes(x, y, angular=True) == pytest.approx(expected, rel=1e-8)

    if importlib.util.find_spec("netrep"):  # it has no package for some versions of Python

        def test_netrep_angular_distance(self):
            from netrep.metrics import LinearMetric

            x, y = data(40, 6, 6, 6)
            metric = LinearMetric(alpha=1, center_columns=True, score_method="angular")
            assert metrics.procrustes(x, y, angular=True) == pytest.approx(metric.fit(x, y).score(x, y), rel=1e-6)

    def test_sklearn_cca(self):
        from sklearn.cross_decomposition import CCA

        x, y = data(400, 4, 6, 7)
        fitted = CCA(n_components=4, max_iter=5000, tol=1e-12).fit(x, y)
        variates = fitted.transform(x, y)
        expected = [np.corrcoef(variates[0][:, i], variates[1][:, i])[0, 1] for i in range(4)]
        assert metrics.cca(x, y) == pytest.approx(np.mean(expected), rel=1e-5)

    @pytest.mark.parametrize(("theirs", "ours"), [("correlation", "correlation"), ("euclidean", "euclidean")])
    @pytest.mark.parametrize(("method", "compare_by"), [("spearman", "spearman"), ("corr", "pearson")])
    def test_rsatoolbox(self, theirs, ours, method, compare_by):
        from rsatoolbox.data import Dataset
        from rsatoolbox.rdm import calc_rdm
        from rsatoolbox.rdm import compare as compare_rdms

        x, y = data(25, 12, 9, 8)
        rdms = [calc_rdm(Dataset(values), method=theirs) for values in (x, y)]
        if ours == "euclidean" and compare_by == "pearson":  # theirs are squared
            for rdm in rdms:
                rdm.dissimilarities = np.sqrt(rdm.dissimilarities)
        value = metrics.rsa(x, y, dissimilarity=ours, compare=compare_by)
        assert value == pytest.approx(compare_rdms(*rdms, method=method).item(), rel=1e-8)

    def test_published_svcca_is_canonical_correlation_of_a_randomized_decomposition(self):
        from sklearn.cross_decomposition import CCA

        x, y = data(200, 30, 40, 9)
        bases = []
        for values in (x, y):
            z = torch.from_numpy((values - values.mean(0)) / values.std(0, ddof=1))
            with torch.random.fork_rng():
                torch.manual_seed(zlib.crc32(values[0].tobytes()))
                bases.append(torch.svd_lowrank(z, q=10)[0].numpy())
        variates = CCA(n_components=10, max_iter=10_000, tol=1e-12).fit(*bases).transform(*bases)
        expected = np.mean([np.corrcoef(variates[0][:, i], variates[1][:, i])[0, 1] for i in range(10)])
        assert metrics.svcca(x, y, published=True) == pytest.approx(expected, rel=1e-4)
        assert metrics.svcca(x, y, published=True) != pytest.approx(metrics.svcca(x, y), rel=1e-3)

    def test_published_svcca_draws_anew_for_each_representation(self):
        """One draw for both would find shared directions that are those of the draw."""
        rng = np.random.default_rng(0)
        x = rng.normal(size=(300, 100))
        y = x + rng.normal(size=(300, 100))
        shared = [Subspace.randomized(torch.from_numpy(v), seed=0) for v in (x, y)]
        assert metrics.svcca(x, y, published=True) < cca_score(*shared) - 0.1

    def test_published_svcca_of_few_features_is_exact(self):
        x, y = data(200, 6, 8, 9)
        standard = [(values - values.mean(0)) / values.std(0) for values in (x, y)]
        assert metrics.svcca(x, y, published=True) == pytest.approx(literal.svcca(*standard), rel=1e-10)


@pytest.mark.parametrize("name", METRICS)
def test_states_in_another_order_score_as_rows_in_that_order(name):
    """What a permutation redoes is enough."""
    x, y = (torch.from_numpy(values) for values in data(120, 9, 7, 10))
    order = torch.from_numpy(np.random.default_rng(0).permutation(120))
    metric = METRICS[name]
    first, second, again = (metric.prepare(values, **metric.options) for values in (x, y, y[order]))
    tolerance = 1e-9 if name != "svcca_published" else 0.2  # its random draw meets other rows
    assert metric.score(first, second.permuted(order)) == pytest.approx(metric.score(first, again), rel=tolerance)
