"""Statistics over trained pairs, held against literal versions."""

import re
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.feature_selection import mutual_info_regression
from sklearn.linear_model import LinearRegression

from repsim_utils import analysis
from repsim_utils.analysis import Trend, mean_interval, trend, trends


def some_table(n_seeds=6, pairs=(1, 3, 2), seed=0):
    """Level i + 1 has pairs[i] pairs a seed."""
    rng = np.random.default_rng(seed)
    rows = [(i + 1, pair, s) for i, n in enumerate(pairs) for pair in range(n) for s in range(n_seeds)]
    table = pd.DataFrame(rows, columns=["overlap", "pair", "seed"])
    return table.assign(value=rng.normal(size=len(table)))


@given(st.integers(2, 12), st.floats(0.5, 0.999), st.integers(0, 100))
def test_units_are_averaged_first_then_student_t(n_seeds, level, seed):
    table = some_table(n_seeds, seed=seed)
    result = mean_interval(table, level=level).set_index("overlap")
    assert list(result) == ["mean", "low", "high", "n"] and list(result.index) == [1, 2, 3]
    for overlap, row in result.iterrows():
        here = table[table.overlap == overlap]
        units = [here.value[here.seed == s].mean() for s in range(n_seeds)]
        low, high = stats.t.interval(level, n_seeds - 1, loc=np.mean(units), scale=stats.sem(units))
        assert (row["mean"], row.low, row.high) == pytest.approx((np.mean(units), low, high))
        assert row.n == n_seeds


def test_realised_overlap_takes_the_place_of_the_one_asked_for():
    table = some_table(pairs=(1, 2)).assign(dataset="digits")
    table["realised_overlap"] = table["overlap"] / 3 + (table["seed"] - 2.5) / 100
    found = analysis.realised(table)
    assert set(zip(table.overlap, found.overlap, strict=True)) == {(1, 0.333), (2, 0.667)}
    pd.testing.assert_frame_equal(found.drop(columns="overlap"), table.drop(columns="overlap"))
    other = table.assign(dataset="letters", realised_overlap=0.0)
    assert list(analysis.realised(pd.concat([table, other])).overlap) == [*found.overlap, *[0.0] * len(other)]
    assert analysis.realised(some_table()).equals(some_table())


def test_more_pairs_of_a_seed_do_not_make_the_interval_narrower():
    table = some_table(pairs=(1,))
    copies = pd.concat([table.assign(pair=pair) for pair in range(10)])
    pd.testing.assert_frame_equal(mean_interval(table), mean_interval(copies))


def test_unequal_numbers_of_rows_weigh_each_unit_once():
    table = pd.DataFrame({"overlap": 1, "seed": [0, 0, 0, 1], "value": [0.0, 0.0, 0.0, 1.0]})
    assert mean_interval(table)["mean"].item() == 0.5


def test_one_unit_has_no_interval():
    row = mean_interval(some_table(n_seeds=1, pairs=(1,))).iloc[0]
    assert np.isfinite(row["mean"]) and np.isnan(row.low) and np.isnan(row.high) and row.n == 1


def test_missing_values_are_left_out():
    table = some_table(pairs=(2, 1))
    table.loc[(table.overlap == 1) & (table.seed == 0), "value"] = np.nan
    table.loc[table.overlap == 2, "value"] = np.nan
    result = mean_interval(table)
    assert list(result.overlap) == [1] and list(result.n) == [5]


def test_other_columns():
    table = some_table().rename(columns={"value": "score", "seed": "run"})
    result = mean_interval(table, by=["overlap", "pair"], y="score", unit="run")
    assert len(result) == 6 and list(result)[:2] == ["overlap", "pair"]


@pytest.mark.parametrize("level", [0, 1, 95, float("nan")])
def test_level(level):
    with pytest.raises(ValueError, match=f"level must be between 0 and 1, got {level}"):
        mean_interval(some_table(), level=level)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    covered = 0
    for seed in range(400):
        row = mean_interval(some_table(n_seeds=5, pairs=(1,), seed=seed), level=0.9).iloc[0]
        covered += row.low < 0 < row.high
    assert 0.85 < covered / 400 < 0.95


OVERLAPS = (0, 0.2, 0.4, 0.6, 0.8, 1)
SEEDS = st.integers(0, 2**32 - 1)


def sloping(n_seeds=8, slope=0.3, effect=0.05, noise=0.02, rows=1, overlaps=OVERLAPS, seed=0):
    """Measurements along a line, whose intercept and slope differ from seed to seed."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        [(x, s) for s in range(n_seeds) for x in overlaps for _ in range(rows)], columns=["overlap", "seed"]
    )
    intercepts, slopes = 0.5 + effect * rng.normal(size=n_seeds), slope + effect * rng.normal(size=n_seeds)
    line = intercepts[table.seed] + slopes[table.seed] * table.overlap
    return table.assign(value=line + noise * rng.normal(size=len(table)))


@st.composite
def any_table(draw):
    """Any number of rows, of any seeds, in any order; in seed 0, x takes two values or more."""
    n = draw(st.integers(2, 60))
    rng = np.random.default_rng(draw(SEEDS))
    x = rng.choice(OVERLAPS, n) if draw(st.booleans()) else rng.normal(size=n) * 10 ** draw(st.integers(-3, 3))
    seed = rng.integers(0, 5, n)
    x[:2], seed[:2] = (0, 1), 0
    return pd.DataFrame({"overlap": x, "seed": seed, "value": rng.normal(3, 2, n)})


def literal_slopes(table, x="overlap", y="value"):
    """Of every seed that has one, by NumPy's polynomial fit."""
    seeds = [part for _, part in table.groupby("seed") if part[x].nunique() > 1]
    return {part.seed.iloc[0]: np.polyfit(part[x], part[y], 1)[0] for part in seeds}


@given(any_table())
def test_the_slope_is_the_mean_of_least_squares_slopes_of_the_units(table):
    found, literal = trend(table), literal_slopes(table)
    own = analysis.slopes(table).set_index("seed").slope.to_dict()
    assert own == pytest.approx(literal, rel=1e-6, abs=1e-9)
    assert found.slope == pytest.approx(np.mean(list(literal.values())), rel=1e-6, abs=1e-9)
    used = table[table.seed.isin(literal)]
    assert (found.n, found.n_units) == (len(used), len(literal))
    assert found.intercept + found.slope * used.overlap.mean() == pytest.approx(used.value.mean())
    pooled = LinearRegression().fit(used[["overlap"]], used.value)
    assert found.r_squared == pytest.approx(pooled.score(used[["overlap"]], used.value), rel=1e-6, abs=1e-9)


@given(any_table())
def test_the_mutual_information_is_that_of_the_paper(table):
    table = table[table.seed.isin(literal_slopes(table))]
    found = trend(table).mutual_information
    if len(table) < 5:
        assert np.isnan(found)
    else:
        assert found == mutual_info_regression(table[["overlap"]].to_numpy(), table.value, random_state=42)[0]


@given(st.integers(2, 12), st.floats(0.5, 0.999), SEEDS)
def test_the_interval_is_students_over_the_slopes_of_units(n_seeds, level, seed):
    table = sloping(n_seeds=n_seeds, seed=seed)
    found, own = trend(table, level=level), list(literal_slopes(table).values())
    low, high = stats.t.interval(level, n_seeds - 1, loc=np.mean(own), scale=stats.sem(own))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert (found.p, found.p_t) == pytest.approx((analysis.sign_flip(own), stats.ttest_1samp(own, 0).pvalue))


def test_rows_between_units_do_not_count():
    """The seed is the block: seeds whose level rises with their overlap do not make a slope."""
    table = sloping(slope=0, effect=0, noise=0.001)
    confounded = table.assign(overlap=table.overlap + table.seed, value=table.value + table.seed)
    assert np.polyfit(confounded.overlap, confounded.value, 1)[0] > 0.9
    assert trend(confounded).slope == pytest.approx(trend(table).slope)
    assert abs(trend(table).slope) < 0.002


def test_a_perfect_line_has_a_sure_slope():
    found = asdict(trend(sloping(slope=-0.25, effect=0, noise=0)))
    sure = {"slope": -0.25, "low": -0.25, "high": -0.25, "intercept": 0.5, "r_squared": 1, "p": 2 / 2**8, "p_t": 0}
    assert found == pytest.approx(found | sure | {"excluded": 0.25, "n": 48, "n_units": 8})


def width(found):
    return found.high - found.low


def test_more_seeds_make_the_interval_narrower_and_more_rows_of_a_seed_do_not():
    widths = [np.mean([width(trend(sloping(n_seeds=n, seed=s))) for s in range(10)]) for n in (6, 24, 96)]
    assert widths[0] > widths[1] > widths[2] and widths[1] / widths[2] == pytest.approx(2, rel=0.2)
    table = sloping()
    once, copies = trend(table), trend(pd.concat([table] * 10))
    assert (copies.low, copies.high, copies.n) == pytest.approx((once.low, once.high, 10 * once.n))


@settings(max_examples=25)
@given(st.floats(-100, 100), st.floats(-100, 100), SEEDS)
def test_a_shift_moves_neither_slope_nor_interval(dx, dy, seed):
    table = sloping(seed=seed)
    one, other = trend(table), trend(table.assign(overlap=table.overlap + dx, value=table.value + dy))
    for name in ("slope", "low", "high", "p", "p_t", "excluded", "r_squared"):
        assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-6, abs=1e-9)
    assert other.intercept == pytest.approx(one.intercept + dy - one.slope * dx, rel=1e-6, abs=1e-9)


@settings(max_examples=25)
@given(st.floats(0.01, 100), st.floats(0.01, 100), st.booleans(), SEEDS)
def test_slope_and_interval_scale_with_x_and_y(cx, cy, turned, seed):
    table = sloping(seed=seed)
    one, factor = trend(table), (-cy if turned else cy) / cx
    other = trend(table.assign(overlap=table.overlap * cx, value=table.value * factor * cx))
    ends = sorted((one.low * factor, one.high * factor))
    assert (other.slope, other.low, other.high) == pytest.approx((one.slope * factor, *ends), rel=1e-6)
    assert other.excluded == pytest.approx(one.excluded * abs(factor)) and other.p == one.p


def test_a_higher_level_makes_the_interval_of_a_slope_wider():
    narrow, wide = (trend(sloping(), level=level) for level in (0.5, 0.95))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_rows_with_a_missing_x_or_y_are_left_out():
    table = sloping()
    holes = pd.concat([table, table.head(5).assign(value=np.nan), table.head(7).assign(overlap=np.nan)])
    assert trend(holes) == trend(table)


def test_a_seed_without_a_slope_is_no_unit():
    table = sloping(n_seeds=3)
    table.loc[table.seed == 1, "value"] = np.nan
    found = trend(table[(table.seed < 2) | (table.overlap == 1)])
    assert (found.n, found.n_units) == (6, 1) and np.isnan([found.low, found.high, found.p, found.excluded]).all()


def test_one_unit_has_a_slope_but_no_interval():
    found = trend(sloping(n_seeds=1))
    assert np.isfinite([found.slope, found.intercept, found.r_squared, found.mutual_information]).all()
    assert np.isnan([found.low, found.high, found.p, found.excluded]).all()


@pytest.mark.parametrize("value", [0.0, 0.1, 0.7, 1 / 3, 1e6 / 7])
def test_what_does_not_vary_has_no_r_squared(value):
    found = trend(sloping().assign(value=value))
    assert np.isnan(found.r_squared) and found.slope == pytest.approx(0, abs=1e-9)
    assert found.intercept == pytest.approx(value)


def test_the_trend_of_other_columns():
    table = sloping()
    named = table.rename(columns={"overlap": "rank", "value": "score"}).assign(seed=table.seed.map("run {}".format))
    assert trend(named, x="rank", y="score", unit="seed") == trend(table)
    assert trend(named.rename(columns={"seed": "run"}), x="rank", y="score", unit="run") == trend(table)


@pytest.mark.parametrize("level", [0, 1, 95, float("nan")])
def test_level_of_a_trend(level):
    table = mediated(4)
    functions = [
        lambda: trend(table, level=level),
        lambda: analysis.paired(table, "overlap", 1, 0, level=level),
        lambda: analysis.correlation(table, "m", "value", level=level),
        lambda: analysis.mediation(table, mediator="m", level=level),
        lambda: analysis.prediction(table, {"m": ["m"]}, level=level),
    ]
    for function in functions:
        with pytest.raises(ValueError, match=f"level must be between 0 and 1, got {level}"):
            function()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": "alpha"}, "table has no column alpha; it has overlap, seed, value"),
        ({"y": "cka", "unit": "run"}, "table has no column cka, run; it has overlap, seed, value"),
    ],
)
def test_a_column_that_is_not_there_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        trend(sloping(), **change)


def test_a_constant_x_has_no_trend():
    with pytest.raises(ValueError, match=r"overlap must take at least two values in one seed, got .*0\.4"):
        trend(sloping().assign(overlap=0.4))
    with pytest.raises(ValueError, match="overlap must take at least two values"):
        trend(sloping().assign(value=np.nan))
    table = sloping(n_seeds=2, overlaps=(0, 1))
    with pytest.raises(ValueError, match="in one seed"):
        trend(table[table.overlap == table.seed])


# How often intervals and p-values are right


N_TABLES, TRUTH = 20_000, 0.3
DRAWN = {
    "normal": lambda rng, size: rng.normal(size=size),
    "exponential": lambda rng, size: rng.exponential(size=size) - 1,
}


def simulated(n_units, kind):
    """Slopes of the units of many tables, which follow a distribution exactly, from the tables' rows."""
    rng, x = np.random.default_rng(n_units), np.array([0.0, 1.0])
    slopes = TRUTH + 0.05 * DRAWN[kind](rng, (N_TABLES, n_units, 1))
    value = rng.normal(size=slopes.shape) + slopes * x
    table, seed, place = np.indices(value.shape)
    columns = {"table": table.ravel(), "seed": seed.ravel(), "overlap": x[place.ravel()], "value": value.ravel()}
    return analysis.slopes(pd.DataFrame(columns), by=["table"])


def expanded_bootstrap(slopes, level=0.95):
    """Percentiles of means of whole units, expanded for few (Hesterberg 2015, Section 5.3): the rival."""
    n = slopes.shape[1]
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=2000) / n
    tail = stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf((1 - level) / 2, n - 1))
    return np.quantile(slopes @ weights.T, [tail, 1 - tail], axis=1)


def coverage(ends):
    low, high = ends
    return ((low < TRUTH) & (high > TRUTH)).mean()


@pytest.mark.parametrize("kind", DRAWN)
def test_coverage_is_as_documented_and_that_of_a_bootstrap_lower_for_few_units(kind):
    """A standard error of the simulated coverage is 0.0015 to 0.0032, and the documented one is rounded."""
    said = {
        row: [float(x) for x in re.search(rf"^ *{row} +(\d[\d. ]+)$", trend.__doc__, re.M)[1].split()]
        for row in (kind, f"{kind}, bootstrap")
    }
    for i, n_units in enumerate((3, 4, 6, 8, 12)):
        own = simulated(n_units, kind)
        found = mean_interval(own, by=["table"], y="slope")
        whole = own.slope.to_numpy().reshape(N_TABLES, n_units)
        rival = np.concatenate([expanded_bootstrap(part) for part in np.array_split(whole, 20)], axis=1)
        covered = coverage((found.low, found.high)), coverage(rival)
        assert covered == pytest.approx((said[kind][i], said[f"{kind}, bootstrap"][i]), abs=0.01), n_units
        assert covered[0] > covered[1] or (kind == "exponential" and n_units >= 8)


@pytest.mark.parametrize("n", [2, 3, 6, 9])
def test_the_sign_flip_p_value_is_scipys(n):
    values = np.random.default_rng(n).normal(0.5, 1, n)
    literal = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=10_000)
    assert analysis.sign_flip(values) == pytest.approx(literal.pvalue)
    assert analysis.sign_flip(-values) == analysis.sign_flip(values)


@pytest.mark.parametrize("n", [17, 20])
def test_the_sign_flip_p_value_of_many_units_is_exact(n):
    """Every pattern, one by one."""
    values = np.random.default_rng(n).normal(0.3, 1, n)
    signs = 1 - 2.0 * ((np.arange(2 ** (n - 1))[:, None] >> np.arange(n - 1)) & 1)
    sums = np.abs(values[0] + signs @ values[1:])
    assert analysis.sign_flip(values) == (sums >= abs(values.sum()) - 1e-9).mean()


def test_the_ends_of_the_sign_flip_p_value():
    assert analysis.sign_flip(np.ones(32)) == 2 / 2**32 and analysis.sign_flip([1.0, 1.0, 1.0]) == 0.25
    assert np.isnan(analysis.sign_flip([1.0])) and analysis.sign_flip([0.0, 0.0, 0.0]) == 1
    assert analysis.sign_flip([1.0, -1.0]) == 1
    assert 1e-6 < analysis.sign_flip(np.r_[np.ones(50), -np.ones(5)]) < 1e-4  # drawn


def test_the_sign_flip_p_value_is_seldom_small_without_an_effect():
    rng = np.random.default_rng(0)
    p = np.array([analysis.sign_flip(rng.standard_t(3, 8)) for _ in range(2000)])
    assert all((p <= alpha).mean() <= alpha + 3 * np.sqrt(alpha / len(p)) for alpha in (0.01, 0.05, 0.2))
    assert (p <= 0.05).mean() > 0.03


def test_what_is_excluded_is_the_two_one_sided_tests():
    table = sloping(slope=0, noise=0.05)
    own, found = np.array(list(literal_slopes(table).values())), trend(table)
    for bound, inside in ((found.excluded * 1.001, True), (found.excluded * 0.999, False)):
        above = stats.ttest_1samp(own, -bound, alternative="greater").pvalue
        below = stats.ttest_1samp(own, bound, alternative="less").pvalue
        assert (max(above, below) < 0.05) == inside


# Families


def grouped():
    """Four groups, in one of which only one overlap was measured; another has a value at a single overlap."""
    parts = [
        sloping(seed=i).assign(metric=metric, dataset=dataset)
        for i, (metric, dataset) in enumerate([("svcca", "a"), ("cka", "a"), ("cka", "b"), ("rsa", "b")])
    ]
    parts[2] = parts[2][parts[2].overlap == 1]
    parts[3].loc[parts[3].overlap > 0, "value"] = np.nan
    return pd.concat(parts)


def test_trends_have_one_row_a_group():
    table = grouped()
    found = trends(table, by=["metric", "dataset"])
    assert list(found) == ["metric", "dataset", *Trend.__dataclass_fields__, "q", "sign"]
    assert list(found[["metric", "dataset"]].itertuples(index=False, name=None)) == [("svcca", "a"), ("cka", "a")]
    for _, row in found.iterrows():
        group = table[(table.metric == row.metric) & (table.dataset == row.dataset)]
        assert row.drop(["metric", "dataset", "q", "sign"]).to_dict() == asdict(trend(group))


def test_trends_of_no_group_are_an_empty_table_with_all_columns():
    table = grouped()
    found = trends(table[table.overlap == 0], by=["metric"])
    assert len(found) == 0 and list(found) == ["metric", *Trend.__dataclass_fields__, "q", "sign"]


def test_trends_take_the_options_of_trend():
    table = grouped().rename(columns={"overlap": "rank", "value": "score"})
    found = trends(table, by=("metric",), x="rank", y="score", level=0.5)
    whole = trends(grouped(), by=("metric",))
    assert list(found.slope) == list(whole.slope) and (found.low > whole.low).all() and (found.high < whole.high).all()


def family(p, low=1.0, high=2.0):
    return analysis.discoveries(pd.DataFrame({"p_t": p, "low": low, "high": high}))


def test_discoveries_are_those_of_benjamini_and_hochberg():
    found = family([0.01, 0.04, 0.03, np.nan, 0.005])
    assert list(found.q.dropna()) == pytest.approx([0.02, 0.04, 0.04, 0.02]) and np.isnan(found.q[3])
    assert list(found.sign) == [1, 1, 1, 0, 1] and family([]).empty


def test_a_discovery_needs_a_small_q_and_an_interval_without_0():
    low, high = [1, -2, -1, 1], [2, -1, 1, 2]
    assert list(family([0.01, 0.01, 0.01, 0.9], low, high).sign) == [1, -1, 0, 0]


def test_false_discoveries_among_many_null_metrics_are_rare():
    """Sixty metrics that nothing moves, in 40 families: by intervals some seem to move in every family."""
    alone, families = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        slopes = rng.normal(size=(60, 12))
        found = family(stats.ttest_1samp(slopes, 0, axis=1).pvalue)
        alone.append((found.p_t <= 0.05).any())
        families.append(found.sign.any())
    assert np.mean(alone) > 0.8 and np.mean(families) < 0.15


def test_paired_differences_are_taken_within_units():
    table = sloping(noise=0.005, slope=0.02, effect=0.2).assign(metric="cka")
    (row,) = analysis.paired(table, "overlap", 1, 0).itertuples()
    wide = table.pivot(index="seed", columns="overlap", values="value")
    literal = stats.ttest_rel(wide[1.0], wide[0.0])
    low, high = literal.confidence_interval()
    assert (row.low, row.high, row.n) == pytest.approx((low, high, 8))
    assert row.estimate == pytest.approx((wide[1.0] - wide[0.0]).mean())
    by = analysis.paired(pd.concat([table, table.assign(metric="knn")]), "overlap", 1, 0, by=["metric"])
    assert list(by.metric) == ["cka", "knn"] and list(by.estimate) == [row.estimate] * 2


def test_paired_tells_what_unpaired_intervals_do_not():
    """Seeds differ far more than the two ends of a seed do."""
    table = sloping(n_seeds=8, slope=0.05, effect=0, noise=0.01)
    table["value"] += table.seed * 0.1
    ends = mean_interval(table).set_index("overlap")
    assert ends.high[0.0] > ends.low[1.0]
    assert analysis.paired(table, "overlap", 1, 0).low.item() > 0


def test_a_unit_without_one_of_the_two_is_left_out_of_a_pair():
    table = sloping(n_seeds=5)
    left = table[(table.seed > 0) | (table.overlap < 1)]
    assert analysis.paired(left, "overlap", 1, 0).n.item() == 4


# What relates two measurements


def mediated(n_units=40, through=0.6, left=0.3, noise=0.1, between=0.0, seed=0):
    """Pairs in which a part of the effect of x on y passes through m; units differ in m and y together by `between`."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"seed": np.repeat(np.arange(n_units), 6), "overlap": np.tile(np.linspace(0, 1, 6), n_units)})
    apart = between * rng.normal(size=n_units)[table.seed]
    table["m"] = 2 * table.overlap + rng.normal(0, noise, len(table)) + rng.normal(0, noise, n_units)[table.seed]
    table["value"] = through / 2 * table.m + left * table.overlap + rng.normal(0, noise, len(table))
    return table.assign(m=table.m + apart, value=table.value + apart, other=rng.normal(size=len(table)))


def test_demeaned_leaves_what_varies_within_groups():
    table = pd.DataFrame({"g": [0, 0, 1, 1], "a": [1.0, 3, 10, 20], "b": [1, 1, 1, 1]})
    found = analysis.demeaned(table, ["a"], by=["g"])
    assert list(found.a) == [-1, 1, -5, 5] and list(found.b) == [1] * 4 and list(table.a) == [1, 3, 10, 20]


def with_units(table, columns):
    """The columns and one indicator a unit: regressions within units, literally."""
    return pd.concat([table[list(columns)], pd.get_dummies(table.seed, dtype=float, prefix="seed")], axis=1)


def test_mediation_is_that_of_two_regressions_with_an_intercept_for_each_unit():
    table = mediated(8, between=1.0)
    for fixed in ([], ["other"]):
        found = analysis.mediation(table, mediator="m", given=fixed).set_index("effect").estimate
        (total, *_), (direct, m, *_) = (
            LinearRegression().fit(with_units(table, [*names, *fixed]), table.value).coef_
            for names in (["overlap"], ["overlap", "m"])
        )
        assert (found["total"], found["direct"], found["mediator"]) == pytest.approx((total, direct, m))
        assert found["indirect"] == pytest.approx(total - direct)
    assert found["total"] != analysis.mediation(table, mediator="m").estimate[0]


@pytest.mark.parametrize("between", [0.0, 2.0])
@pytest.mark.parametrize(("through", "left"), [(0.6, 0.3), (0.0, 0.5), (0.5, 0.0)])
def test_mediation_recovers_what_was_put_in(through, left, between):
    """Also where units differ in the mediator and in y, together and by far more than within a unit."""
    truth = {"total": through + left, "direct": left, "indirect": through, "mediator": through / 2}
    for n_units, least in ((8, 0.9), (16, 0.91)):
        covered = []
        for seed in range(150):
            found = analysis.mediation(mediated(n_units, through, left, between=between, seed=seed), mediator="m")
            found = found.set_index("effect")
            covered.append([found.low[name] <= value <= found.high[name] for name, value in truth.items()])
        assert np.mean(covered, axis=0).min() >= least


def test_what_differs_between_seeds_is_not_taken_for_a_mediator():
    """Y does not depend on m within a seed; across seeds they go together perfectly."""
    table = mediated(8, through=0.0, left=0.3, between=5.0)
    across = LinearRegression().fit(table[["overlap", "m"]], table.value).coef_
    assert across[1] > 0.9  # the plain regression is deceived
    found = analysis.mediation(table, mediator="m").set_index("effect")
    assert found.low["mediator"] < 0 < found.high["mediator"] and abs(found.estimate["mediator"]) < 0.3
    assert found.low["direct"] < 0.3 < found.high["direct"]
    assert (
        table.m.corr(table.value) > 0.9
        and abs(analysis.correlation(table, "m", "value", given=["overlap"])["estimate"]) < 0.5
    )


def test_mediation_interval_of_the_total_effect_is_that_of_the_trend():
    table = mediated(6)
    total, line = analysis.mediation(table, mediator="m").iloc[0], trend(table)
    assert (total.estimate, total.low, total.high) == pytest.approx((line.slope, line.low, line.high), rel=1e-6)
    assert analysis.mediation(table[table.seed == 0], mediator="m")[["low", "high", "p_t"]].isna().all().all()


def test_the_p_value_of_a_mediator_agrees_with_its_interval():
    for seed in range(30):
        table = mediated(8, through=0.1, seed=seed)
        found = analysis.mediation(table, mediator="m")
        assert ((found.p_t < 0.05) == ((found.low > 0) | (found.high < 0))).all()


def test_correlation_is_that_of_what_is_left_within_units():
    table = mediated(8, between=1.0)
    plain = analysis.demeaned(table, ["m", "value"], by=["seed"])
    assert analysis.correlation(table, "m", "value")["estimate"] == pytest.approx(plain.m.corr(plain.value))
    rest = {
        name: table[name]
        - LinearRegression().fit(with_units(table, ["overlap"]), table[name]).predict(with_units(table, ["overlap"]))
        for name in ("m", "value")
    }
    found = analysis.correlation(table, "m", "value", given=["overlap"])
    assert found["estimate"] == pytest.approx(rest["m"].corr(rest["value"]))
    assert -1 < found["low"] < found["estimate"] < found["high"] < 1 and found["n"] == 8


def test_the_interval_of_a_correlation_covers_the_truth():
    covered, truth = 0, 1 / np.sqrt(2)  # of m and m + equal noise, given overlap
    for seed in range(200):
        rng = np.random.default_rng(seed)
        table = mediated(8, seed=seed)
        noise = rng.normal(size=(2, len(table)))
        table = table.assign(m=table.overlap + noise[0], value=table.seed + table.overlap + noise[0] + noise[1])
        found = analysis.correlation(table, "m", "value", given=["overlap"])
        covered += found["low"] < truth < found["high"]
    assert 0.9 <= covered / 200 <= 0.99


def test_prediction_is_of_units_that_were_left_out():
    """Literally: fit on all other seeds, predict this one; every seed's own mean is taken out."""
    table = mediated(5, between=3.0)
    found = analysis.prediction(table, {"m": ["m"], "both": ["m", "overlap"], "noise": ["other"]})
    columns = ["m", "overlap", "other", "value"]
    within = pd.concat(
        [part.assign(**{c: part[c] - part[c].mean() for c in columns}) for _, part in table.groupby("seed")]
    )
    for name, names in (("m", ["m"]), ("both", ["m", "overlap"]), ("noise", ["other"])):
        left = baseline = 0.0
        for seed in range(5):
            train, test = within[within.seed != seed], within[within.seed == seed]
            weights = np.linalg.lstsq(train[names].to_numpy(), train.value.to_numpy(), rcond=None)[0]
            left += np.square(test.value - test[names].to_numpy() @ weights).sum()
            baseline += np.square(test.value).sum()
        (row,) = found[found.predictors == name].itertuples()
        assert row.r_squared == pytest.approx(1 - left / baseline)
        assert row.low < row.r_squared < row.high
    assert found.r_squared[0] > 0.5 and found.r_squared[2] < 0.05


def test_prediction_is_blind_to_what_differs_between_seeds():
    """Each seed has images of its own: m and y lie on another level, in opposite directions."""
    table = mediated(6)
    moved = table.assign(m=table.m + 10 * table.seed, value=table.value - 10 * table.seed)
    pd.testing.assert_frame_equal(
        analysis.prediction(moved, {"m": ["m"]}), analysis.prediction(table, {"m": ["m"]}), check_exact=False
    )


def test_a_gain_in_prediction_is_a_difference_within_units():
    table = mediated(8, through=4.0)
    sets = {"overlap": ["overlap"], "both": ["overlap", "m"], "noise too": ["overlap", "other"]}
    alone = analysis.prediction(table, sets, y="value").set_index("predictors").r_squared
    gain = analysis.prediction(table, sets, y="value", beside="overlap").set_index("predictors")
    assert list(gain.index) == ["both", "noise too"]
    for name in gain.index:
        assert gain.r_squared[name] == pytest.approx(alone[name] - alone["overlap"])
    assert gain.low["both"] > 0 and gain.low["noise too"] < 0.01


def test_units_that_say_nothing_do_not_count():
    """Pairs of one kind, or a single pair, in a seed: neither makes an interval narrower."""
    table = mediated(4)
    empty = pd.concat([table.head(1).assign(seed=seed) for seed in (100, 101)] + [table.head(1).assign(seed=102)] * 3)
    more = pd.concat([table, empty])
    pd.testing.assert_frame_equal(analysis.mediation(more, mediator="m"), analysis.mediation(table, mediator="m"))
    assert analysis.correlation(more, "m", "value") == analysis.correlation(table, "m", "value")


@pytest.mark.parametrize("n_seeds", [0, 1])
def test_prediction_needs_units_to_learn_from(n_seeds):
    table = mediated(5)
    with pytest.raises(ValueError, match=f"one seed is predicted from the others, so .* two .*; got {n_seeds}"):
        analysis.prediction(table[table.seed < n_seeds], {"m": ["m"]})


def test_prediction_sees_the_same_rows_for_all_predictors():
    table = mediated(5)
    table.loc[3, "other"] = np.nan
    found = analysis.prediction(table, {"m": ["m"], "noise": ["other"]})
    assert found.r_squared[0] == analysis.prediction(table.drop(3), {"m": ["m"]}).r_squared[0]


# What is refused


WIDE = mediated(4)
REFUSED = {
    "table has no column prob; it has seed, overlap, m": lambda: trends(WIDE, by=["prob"]),
    "table has no column ovrlap": lambda: analysis.slopes(WIDE, x="ovrlap"),
    "table has no column sd": lambda: analysis.mediation(WIDE, mediator="m", unit="sd"),
    "table has no column cka": lambda: analysis.correlation(WIDE, "cka", "m"),
    "table has no column high, low, p_t": lambda: analysis.discoveries(WIDE),
    "table has no column knn": lambda: analysis.prediction(WIDE, {"a": "knn"}),
    "every set of predictors needs a column, and none has none": lambda: analysis.prediction(WIDE, {"none": []}),
    "beside must be one of m, got nope": lambda: analysis.prediction(WIDE, {"m": "m"}, beside="nope"),
    "by must name a column at least": lambda: mean_interval(WIDE, by=()),
    r"overlap has no value 0\.5; it has 0\.0, 0\.2": lambda: analysis.paired(WIDE, "overlap", 0.5, 0),
    "no seed has both 1.0 and 0.0 in overlap": lambda: analysis.paired(
        WIDE[(WIDE.seed + WIDE.overlap).isin([0, 2])], "overlap", 1.0, 0.0
    ),
    "one of overlap, copy follows from the others within each seed": lambda: analysis.mediation(
        WIDE.assign(copy=2 * WIDE.overlap + WIDE.seed), mediator="copy"
    ),
    "columns must be different ones, and overlap has two places": lambda: analysis.mediation(WIDE, mediator="overlap"),
    "m does not vary within any seed": lambda: analysis.mediation(WIDE.assign(m=WIDE.seed), mediator="m"),
    "overlap, m, value does not vary": lambda: analysis.mediation(WIDE.head(0), mediator="m"),
    "values must be one finite number a unit": lambda: analysis.sign_flip([1.0, np.nan, 2.0]),
    r"one finite number a unit, got shape \(2, 2\)": lambda: analysis.sign_flip([[1, 2], [3, 4]]),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_answered_is_refused_with_what_is_needed(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()


def test_one_column_may_be_given_by_its_name_alone():
    table = sloping().assign(metric="cka")
    pd.testing.assert_frame_equal(trends(table, by="metric"), trends(table, by=["metric"]))
    assert analysis.correlation(WIDE, "m", "value", given="overlap") == analysis.correlation(
        WIDE, "m", "value", given=["overlap"]
    )


@pytest.mark.parametrize("factor", [1e-9, 1e9])
def test_the_unit_of_a_mediator_does_not_matter(factor):
    one = analysis.mediation(WIDE, mediator="m").set_index("effect").estimate
    other = analysis.mediation(WIDE.assign(m=WIDE.m * factor), mediator="m").set_index("effect").estimate
    assert other["mediator"] * factor == pytest.approx(one["mediator"])
    for effect in ("total", "direct", "indirect"):
        assert other[effect] == pytest.approx(one[effect])


def crossed_table(n_seeds=6, rng=None):
    rng = np.random.default_rng(0) if rng is None else rng
    rows = [
        {"seed": seed, "pair": pair, "overlap": x, "value": float(rng.uniform(0.1, 0.9)), "null_mean": 0.05}
        for seed in range(n_seeds)
        for pair in ("none", "some", "all")
        for x in (0, 0.25, 0.5, 1)
    ]
    return pd.DataFrame(rows)


class TestCrossed:
    def test_every_effect_is_what_least_squares_of_each_seed_gives(self):
        """Written out with np.polyfit, seed by seed, on rows in any order."""
        table = crossed_table()
        found = analysis.crossed(table.sample(frac=1, random_state=1), "pair", "none")
        expected = {}
        for _, rows in table.groupby("seed"):
            slope, mean = {}, {}
            for pair, some in rows.groupby("pair"):
                slope[pair], mean[pair] = np.polyfit(some.overlap, some.value, 1)[0], some.value.mean()
            for pair in slope:
                expected.setdefault(("slope", pair), []).append(slope[pair])
                if pair != "none":
                    expected.setdefault(("kind", pair), []).append(mean[pair] - mean["none"])
                    expected.setdefault(("interaction", pair), []).append(slope[pair] - slope["none"])
            expected.setdefault(("mean slope", None), []).append(np.mean(list(slope.values())))
        assert len(found) == len(expected) == 8 and set(found.n) == {6}
        for row in found.itertuples():
            own = np.array(expected[row.effect, None if pd.isna(row.pair) else row.pair])
            half = stats.t.ppf(0.975, 5) * own.std(ddof=1) / 6**0.5
            assert (row.estimate, row.low, row.high) == pytest.approx(
                (own.mean(), own.mean() - half, own.mean() + half)
            )
            assert row.p == analysis.sign_flip(own)
        assert found.q.tolist() == pytest.approx(stats.false_discovery_control(found.p_t).tolist())

    def test_two_causes_that_add_up_have_no_interaction_and_noise_seldom(self):
        """A false alarm of an interval of 95% is one in twenty, whatever the main effects are."""
        rng, alarms = np.random.default_rng(1), 0
        for _ in range(200):
            table = crossed_table(8, rng)
            level = table.pair.map({"none": 0.1, "some": 0.3, "all": 0.6})
            seed = table.seed.map(dict(enumerate(rng.normal(0, 0.3, 8))))
            table["value"] = level + seed + 0.2 * table.overlap + rng.normal(0, 0.02, len(table))
            row = analysis.crossed(table, "pair", "none").set_index(["effect", "pair"]).loc[("interaction", "all")]
            alarms += not row.low < 0 < row.high
        assert 3 <= alarms <= 20

    def test_an_interaction_can_be_of_the_scale_alone(self):
        table = crossed_table()
        z = table.pair.map({"none": 0.1, "some": 0.5, "all": 1.5}) + 0.3 * table.overlap + 0.01 * table.seed
        table["value"] = np.tanh(z)
        of = {
            scale: analysis.crossed(analysis.on_scale(table, scale), "pair", "none").set_index(["effect", "pair"])
            for scale in analysis.SCALES
        }
        assert of["Fisher's z"].estimate["interaction", "all"] == pytest.approx(0, abs=1e-12)
        assert of["as measured"].high["interaction", "all"] < -0.1
        above = of["share above chance"].estimate / of["as measured"].estimate
        assert above.tolist() == pytest.approx([1 / 0.95] * len(above))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: t.drop(index=[5]), "lacks .* and 0 more: give complete units alone"),
            (lambda t: pd.concat([t, t.iloc[[3]]]), "more than once: filter the table first"),
            (lambda t: t[t.pair == "none"], "pair has none: nothing against 'none'"),
            (lambda t: t[t.overlap == 0], "overlap must take at least two values"),
            (lambda t: t.drop(columns="seed"), "table has no column seed"),
        ],
    )
    def test_incomplete_designs_are_refused(self, change, message):
        with pytest.raises(ValueError, match=message):
            analysis.crossed(change(crossed_table()), "pair", "none")

    def test_scales_that_do_not_fit_are_refused(self):
        table = crossed_table()
        with pytest.raises(ValueError, match="scale must be one of"):
            analysis.on_scale(table, "log")
        with pytest.raises(ValueError, match="table has no column null_mean"):
            analysis.on_scale(table.drop(columns="null_mean"), "share above chance")
        with pytest.raises(ValueError, match="between -1 and 1, got 1"):
            analysis.on_scale(table.assign(value=1.0), "Fisher's z")


class TestEffects:
    def test_every_number_is_what_a_loop_over_seeds_gives(self):
        """Written out, for a table in which one probe lacks its last overlap."""
        rng = np.random.default_rng(3)
        rows = [
            {
                "seed": seed,
                "architecture": "net",
                "probe": probe,
                "metric": "cka",
                "overlap": x,
                "null_mean": 0.02 + seed / 100,
            }
            | {"value": 0.5 + 0.2 * x + float(rng.normal(0, 0.05))}
            for seed in range(5)
            for probe, xs in (("all", (0, 0.4, 0.8, 1)), ("one", (0, 0.4, 0.8)))
            for x in xs
            for _ in range(2)  # two pairs each, as in task_only
        ]
        table = pd.DataFrame(rows)
        found = analysis.effects(table).set_index("probe")
        for probe, some in table.groupby("probe"):
            change, end, chance, at = [], [], [], {}
            for _, own in some.groupby("seed"):
                change.append(np.polyfit(own.overlap, own.value, 1)[0] * np.ptp(some.overlap))
                end.append(own[own.overlap == own.overlap.max()].value.mean())
                chance.append(own.null_mean.mean())
                for x, values in own.groupby("overlap").value:
                    at.setdefault(x, []).append(values.mean())
            row, n = found.loc[probe], len(change)
            change, room = np.array(change), np.array(end) - np.array(chance)
            assert row.change == pytest.approx(change.mean()) and row.p == analysis.sign_flip(change)
            assert (row.end, row.chance, row.n) == pytest.approx((np.mean(end), np.mean(chance), 5))
            share = change.mean() / room.mean()
            out = [np.delete(change, i).mean() / np.delete(room, i).mean() for i in range(n)]
            half = stats.t.ppf(0.975, n - 1) * np.std(out) * (n - 1) ** 0.5
            assert (row.share, row.share_low, row.share_high) == pytest.approx((share, share - half, share + half))
            spread = np.mean([np.var(values, ddof=1) for values in at.values()]) ** 0.5
            assert (row.spread, row.deviations) == pytest.approx((spread, change.mean() / spread))

    def test_units_of_measurement_do_not_matter_to_the_common_scales(self):
        table = some_table().assign(probe="a", metric="m", architecture="net", null_mean=0.1)
        one, other = (analysis.effects(t).iloc[0] for t in (table, table.assign(value=3 * table.value, null_mean=0.3)))
        assert other.change == pytest.approx(3 * one.change)
        assert (other.share, other.deviations) == pytest.approx((one.share, one.deviations))

    def test_a_table_of_one_s_own(self):
        """Other names of columns, no chance level, one group that cannot be tested."""
        table = pd.DataFrame({"run": [0, 0, 1, 1, 2], "share": [0, 1, 0, 1, 0], "score": [0.2, 0.4, 0.3, 0.6, 0.1]})
        found = analysis.effects(table.assign(net="mine"), by="net", x="share", y="score", unit="run", chance=0)
        assert found.share.item() == pytest.approx(0.25 / 0.5) and found.n.item() == 2
        with pytest.raises(ValueError, match="table has no column null_mean"):
            analysis.effects(table.assign(net="mine"), by="net", x="share", y="score", unit="run")
        with pytest.raises(ValueError, match="share must take at least two values in one run"):
            analysis.effects(table.drop_duplicates("run"), by=["run"], x="share", y="score", unit="run", chance=0)


@pytest.mark.parametrize("taken", ["n", "low"])
def test_groups_that_are_called_like_a_column_of_the_result_are_refused(taken):
    table = some_table().assign(**{taken: 1}, null_mean=0.0)
    calls = (
        lambda: analysis.mean_interval(table, by=["overlap", taken]),
        lambda: analysis.trends(table, by=[taken]),
        lambda: analysis.paired(table, "overlap", 2, 1, by=taken),
        lambda: analysis.effects(table, by=[taken]),
    )
    for call in calls:
        with pytest.raises(ValueError, match=f"by names {taken}, as columns of the result are called: rename it"):
            call()
