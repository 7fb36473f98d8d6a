"""Chance levels and intervals: exact where theory says what they are, valid where only simulation can."""

import math

import numpy as np
import pytest
import torch

from repsim_utils import metrics
from repsim_utils.metrics import METRICS, calibrate, calibrate_best, interval
from repsim_utils.metrics.neighbors import Neighbors
from repsim_utils.metrics.suite import Metric


def pair(n=60, d1=6, d2=8, seed=0, shared=1.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d1))
    return x, shared * x @ rng.normal(size=(d1, d2)) + rng.normal(size=(n, d2))


@pytest.mark.parametrize("name", METRICS)
class TestEveryMetric:
    def test_related_pairs_beat_chance_and_unrelated_ones_do_not(self, name):
        related, unrelated = (calibrate(*pair(shared=shared), name, seed=1) for shared in (1.0, 0.0))
        assert related.p_value == pytest.approx(1 / 201)
        assert related.value > related.null_quantile >= related.null_mean
        assert 0 < related.calibrated < related.above_chance < 1
        assert unrelated.p_value > 0.05 and unrelated.calibrated == 0
        assert abs(unrelated.above_chance) < 0.25

    def test_value_is_that_of_the_metric(self, name):
        x, y = pair()
        assert calibrate(x, y, name).value == pytest.approx(METRICS[name](x, y), rel=1e-12)
        prepared = calibrate(x, y, name, preprocess="platonic").value
        assert prepared == pytest.approx(METRICS[name](x, y, preprocess="platonic"), rel=1e-12)

    @pytest.mark.parametrize("method", ["jackknife", "subsample"])
    def test_interval_is_around_the_value(self, name, method):
        x, y = pair(n=80)
        found = interval(x, y, name, method=method)
        assert found.low < found.value < found.high
        assert found.value == pytest.approx(METRICS[name](x, y), rel=1e-12)
        assert found.low == pytest.approx(2 * found.value - found.high)
        assert found.method == method and found.level == 0.95

    def test_jackknife_leaves_out_every_row_in_turn(self, name):
        """With fewer rows than groups; the shortcuts of the package against plain recomputation."""
        x, y = pair(n=40)
        scores = []
        for i in range(40):
            rest = np.arange(40) != i
            scores.append(METRICS[name](x[rest], y[rest]))
        expected = np.sqrt(39 / 40 * np.sum((scores - np.mean(scores)) ** 2))
        assert interval(x, y, name).standard_error == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("size", [1e3, 1e5, 1e8])
def test_jackknife_with_one_row_that_outweighs_all_others(size):
    """In closed form, sums over all rows less those of that row would leave nothing but rounding."""
    x, y = (np.array(values) for values in pair(n=40))
    x[0] *= size
    y[0] *= size
    scores = [METRICS["cka"](*(values[np.arange(40) != i] for values in (x, y))) for i in range(40)]
    expected = np.std(scores) * 39**0.5
    assert expected > 0.1 and interval(x, y, "cka").standard_error == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "name", ["mutual_knn", "cknna", "lcs_knn", "cycle_knn", "edit_distance_knn", "cknna_published"]
)
def test_lists_without_some_rows_are_those_of_the_rest(name):
    x, y = (torch.from_numpy(values) for values in pair(n=120))
    gone = torch.zeros(120, dtype=torch.bool)
    gone[[0, 3, 50, 119]] = True
    lists = [Neighbors.of(values, k=14).without(gone, 10) for values in (x, y)]
    for left, values in zip(lists, (x, y), strict=True):
        whole = Neighbors.of(values[~gone], k=10)
        assert torch.equal(left.index, whole.index)
        torch.testing.assert_close(left.value, whole.value)


def test_lists_too_short_to_leave_rows_out_are_refused():
    x = torch.from_numpy(pair()[0])
    lists = Neighbors.of(x, k=3)
    gone = torch.zeros(60, dtype=torch.bool)
    gone[lists.index[0]] = True
    gone[0] = False
    with pytest.raises(ValueError, match="the lists are too short to keep 2 neighbors"):
        lists.without(gone, 2)


class TestNull:
    def test_mean_of_mutual_knn_is_exact(self):
        """E = k / (n − 1) over all permutations."""
        x, y = pair(n=50, shared=0)
        found = calibrate(x, y, "mutual_knn", k=5, n_permutations=2000)
        assert found.null_mean == pytest.approx(5 / 49, rel=0.02)

    def test_mean_of_biased_cka_is_exact(self):
        """E = tr K tr L / ((n − 1) ‖K‖ ‖L‖) for centered kernels, far above 0."""
        x, y = (values - values.mean(0) for values in pair(n=30, d1=20, d2=25, shared=0))
        k, m = x @ x.T, y @ y.T
        expected = np.trace(k) * np.trace(m) / (29 * np.linalg.norm(k) * np.linalg.norm(m))
        assert expected > 0.3
        assert calibrate(x, y, "cka", n_permutations=2000).null_mean == pytest.approx(expected, rel=0.01)

    def test_mean_of_unbiased_cka_is_zero(self):
        assert calibrate(*pair(n=30, d1=20, d2=25), "unbiased_cka", n_permutations=2000).null_mean == pytest.approx(
            0, abs=0.005
        )

    def test_p_values_are_uniform_on_unrelated_data(self):
        for name in ("cka", "mutual_knn"):
            drawn = (calibrate(*pair(25, 4, 4, s, 0), name, n_permutations=39, seed=s) for s in range(300))
            p = np.array([found.p_value for found in drawn])
            assert abs((p <= 0.05).mean() - 0.05) < 0.04
            assert abs((p <= 0.5).mean() - 0.5) < 0.12

    def test_the_threshold_counts_the_observed_score(self):
        x, y = pair()
        found = calibrate(x, y, "cka", n_permutations=19, alpha=0.05)  # of 20 scores the 19th
        assert found.p_value == 1 / 20 and found.null_quantile < found.value

    def test_the_same_seed_gives_the_same(self):
        x, y = pair(shared=0.1)
        assert calibrate(x, y, "cka", seed=3) == calibrate(x, y, "cka", seed=3)
        assert calibrate(x, y, "cka", seed=3) != calibrate(x, y, "cka", seed=4)

    def test_published_lcs_is_calibrated_against_k(self):
        x, y = pair()
        per_k, published = (calibrate(x, y, name, k=7) for name in ("lcs_knn", "lcs_knn_published"))
        assert published.value == pytest.approx(7 * per_k.value)
        assert published.calibrated == pytest.approx(per_k.calibrated)
        assert published.above_chance == pytest.approx(per_k.above_chance)

    def test_identical_representations_reach_one(self):
        x, _ = pair()
        found = calibrate(x, x, "mutual_knn")
        assert found.value == found.calibrated == found.above_chance == 1


class TestGroups:
    def clustered(self, seed, n_groups=12, size=8):
        """Unrelated representations whose rows come in clusters: several pictures of one object."""
        rng = np.random.default_rng(seed)
        which = np.repeat(np.arange(n_groups), size)
        centres = [rng.normal(size=(n_groups, 5)) for _ in range(2)]
        return *(c[which] + 0.1 * rng.normal(size=(len(which), 5)) for c in centres), which

    def test_clusters_fool_a_plain_shuffle_and_not_a_restricted_one(self):
        plain, restricted = [], []
        for seed in range(40):
            x, y, groups = self.clustered(seed)
            plain.append(calibrate(x, y, "cka", n_permutations=39, seed=seed).p_value <= 0.05)
            restricted.append(calibrate(x, y, "cka", n_permutations=39, seed=seed, groups=groups).p_value <= 0.05)
        assert np.mean(plain) > 0.9
        assert np.mean(restricted) < 0.2

    def test_groups_move_whole_among_groups_of_their_size(self):
        from repsim_utils.metrics.calibration import shuffles

        groups = np.array([7, 3, 3, 7, 1, 1, 5, 9, 2, 4])
        orders = list(shuffles(10, 50, 0, 0.05, groups))[1:]
        for order in orders:
            moved = groups[order.numpy()]
            for label in (7, 3, 1):
                assert len(set(moved[groups == label])) == 1
            assert sorted(order.tolist()) == list(range(10))
        assert len({tuple(order.tolist()) for order in orders}) > 20

    def test_too_few_ways_to_exchange_them(self):
        x, y = pair()
        with pytest.raises(ValueError, match=r"exchanged in 2 ways only, too few for alpha=0\.05"):
            calibrate(x, y, "cka", groups=[0] * 30 + [1] * 30)
        with pytest.raises(ValueError, match="one label for each of the 60 rows"):
            calibrate(x, y, "cka", groups=[0, 1])


def test_the_best_of_many_layers_is_held_against_the_best_of_many():
    xs = [pair(seed=s, shared=0)[0] for s in range(6)]
    ys = [pair(seed=s + 100, shared=0)[1] for s in range(6)]
    best = calibrate_best(xs, ys, "cka")
    scores = [[metrics.cka(x, y) for y in ys] for x in xs]
    assert best.value == pytest.approx(np.max(scores), rel=1e-12)
    i, j = np.unravel_index(np.argmax(scores), (6, 6))
    assert best.null_mean > calibrate(xs[i], ys[j], "cka").null_mean
    assert best.p_value > calibrate(xs[i], ys[j], "cka").p_value
    with pytest.raises(ValueError, match="x and y must have matching rows, got 60 and 59"):
        calibrate_best(xs, [y[1:] for y in ys], "cka")
    with pytest.raises(ValueError, match="one representation or more"):
        calibrate_best([], ys, "cka")


class TestErrors:
    def test_permutations_must_suffice_for_alpha(self):
        x, y = pair()
        with pytest.raises(ValueError, match=r"alpha=0.05 needs at least 19 permutations, got 18"):
            calibrate(x, y, "cka", n_permutations=18)
        with pytest.raises(ValueError, match=r"alpha=0.01 needs at least 99 permutations, got 20"):
            calibrate(x, y, "cka", n_permutations=20, alpha=0.01)
        assert math.isfinite(calibrate(x, y, "cka", n_permutations=99, alpha=0.01).null_quantile)
        with pytest.raises(ValueError, match="alpha must be between 0 and 1"):
            calibrate(x, y, "cka", alpha=1.0)

    def test_unknown_names_and_options(self):
        x, y = pair()
        for function in (calibrate, interval):
            with pytest.raises(ValueError, match="unknown metric ckaa; choose from cka"):
                function(x, y, "ckaa")
            with pytest.raises(ValueError, match="unknown option k; this metric takes none"):
                function(x, y, "cka", k=3)
            with pytest.raises(ValueError, match="y must be finite"):
                function(x, y * np.nan, "cka")
        with pytest.raises(ValueError, match="with k=10, 11 rows are too few to leave any out"):
            interval(x[:11], y[:11], "mutual_knn")
        with pytest.raises(ValueError, match="method must be 'jackknife' or 'subsample', got 'bootstrap'"):
            interval(x, y, "cka", method="bootstrap")
        with pytest.raises(ValueError, match="level must be between 0 and 1"):
            interval(x, y, "cka", level=95)

    def test_a_score_that_is_not_a_number_is_an_error(self, monkeypatch):
        x, y = pair()
        broken = Metric(METRICS["cka"].prepare, lambda a, b: math.nan)
        monkeypatch.setitem(METRICS, "cka", broken)
        with pytest.raises(ValueError, match="the score is not a number"):
            calibrate(x, y, "cka")


class TestCoverage:
    """Intervals should hold the value that very many rows would give, 95 times in 100."""

    def pair(self, n, seed):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(n, 3))
        mix = np.random.default_rng(12345).normal(size=(3, 4))
        return x, 0.7 * x @ mix + rng.normal(size=(n, 4))

    @pytest.mark.parametrize("method", ["jackknife", "subsample"])
    def test_unbiased_cka(self, method):
        truth = metrics.cka(*self.pair(200_000, 999), unbiased=True)
        hits = [
            found.low <= truth <= found.high
            for found in (interval(*self.pair(150, seed), "unbiased_cka", method=method) for seed in range(150))
        ]
        assert 0.88 <= np.mean(hits) <= 1

    def test_spread_of_mutual_knn(self):
        """The standard error against the true spread over samples."""
        samples = [self.pair(200, seed) for seed in range(150)]
        true = np.std([metrics.mutual_knn(*sample) for sample in samples])
        claimed = np.mean([interval(*sample, "mutual_knn").standard_error for sample in samples[:30]])
        assert 0.75 < claimed / true < 1.35

    def test_rows_with_replacement_would_be_wrong(self):
        """Why there is no bootstrap: copies of a row are each other's neighbors."""
        x, y = pair(n=100, shared=0)
        rng = np.random.default_rng(0)
        drawn = [rng.integers(0, 100, 100) for _ in range(30)]
        for name, once in (
            ("mutual_knn", metrics.mutual_knn(x, y)),
            ("unbiased_cka", metrics.cka(x, y, unbiased=True)),
        ):
            again = [METRICS[name](x[rows], y[rows]) for rows in drawn]
            assert np.min(again) > once


@pytest.mark.parametrize("name", ["mutual_knn", "lcs_knn", "edit_distance_knn", "cycle_knn", "cknna"])
def test_ties_that_go_to_the_first_row_in_both_are_not_taken_for_a_relation(name):
    """One-hot rows: every list is full of ties, and unrelated representations break them alike."""
    alarms = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        x, y = (np.eye(6)[rng.integers(0, 6, 60)] for _ in range(2))
        alarms.append(calibrate(x, y, name, n_permutations=19, seed=seed, k=5).p_value <= 0.05)
    assert np.mean(alarms) < 0.25


@pytest.mark.parametrize("method", ["jackknife", "subsample"])
def test_intervals_of_clustered_rows_leave_out_whole_clusters(method):
    rng = np.random.default_rng(0)
    which = np.repeat(np.arange(20), 6)
    x = rng.normal(size=(20, 4))[which] + 0.1 * rng.normal(size=(120, 4))
    y = x + rng.normal(size=(20, 4))[which]
    for name in ("unbiased_cka", "mutual_knn", "procrustes"):
        plain, grouped = (interval(x, y, name, method=method, groups=g) for g in (None, [f"o{i}" for i in which]))
        assert grouped.value == plain.value
        if name != "mutual_knn":
            assert grouped.standard_error > 1.5 * plain.standard_error
    with pytest.raises(ValueError, match="one label for each of the 120 rows"):
        interval(x, y, "cka", method=method, groups=[1])
