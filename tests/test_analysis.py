"""Statistics over trained pairs, held against literal versions."""

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
FEW = {"n_resamples": 300}  # enough where the interval need not be exact
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
    """Any number of rows, of any seeds, in any order; x takes two values or more."""
    n = draw(st.integers(2, 60))
    rng = np.random.default_rng(draw(SEEDS))
    x = rng.choice(OVERLAPS, n) if draw(st.booleans()) else rng.normal(size=n) * 10 ** draw(st.integers(-3, 3))
    x[:2] = 0, 1
    return pd.DataFrame({"overlap": x, "seed": rng.integers(0, 5, n), "value": rng.normal(3, 2, n)})


@given(any_table())
def test_the_line_is_that_of_least_squares(table):
    found = trend(table, n_resamples=2)
    model = LinearRegression().fit(table[["overlap"]], table.value)
    slope, intercept = np.polyfit(table.overlap, table.value, 1)
    assert (found.slope, found.intercept) == pytest.approx((slope, intercept), rel=1e-6, abs=1e-9)
    assert (found.slope, found.intercept) == pytest.approx((model.coef_[0], model.intercept_), rel=1e-6, abs=1e-9)
    assert found.r_squared == pytest.approx(model.score(table[["overlap"]], table.value), rel=1e-6, abs=1e-9)
    assert found.n == len(table)


@given(any_table())
def test_the_mutual_information_is_that_of_the_paper(table):
    found = trend(table, n_resamples=2).mutual_information
    if len(table) < 5:
        assert np.isnan(found)
    else:
        assert found == mutual_info_regression(table[["overlap"]].to_numpy(), table.value, random_state=42)[0]


@settings(max_examples=25)
@given(st.integers(2, 12), SEEDS)
def test_the_interval_contains_the_slope_of_an_ordinary_table(n_seeds, seed):
    found = trend(sloping(n_seeds=n_seeds, seed=seed), **FEW)
    assert found.low < found.slope < found.high


def test_a_perfect_line_has_a_sure_slope():
    found = trend(sloping(slope=-0.25, effect=0, noise=0))
    assert asdict(found) == pytest.approx(
        asdict(found) | {"slope": -0.25, "low": -0.25, "high": -0.25, "intercept": 0.5, "r_squared": 1, "n": 48}
    )


def width(found):
    return found.high - found.low


def test_more_seeds_make_the_interval_narrower():
    widths = [np.mean([width(trend(sloping(n_seeds=n, seed=s), **FEW)) for s in range(10)]) for n in (6, 24, 96)]
    assert widths[0] > widths[1] > widths[2]
    assert widths[1] / widths[2] == pytest.approx(2, rel=0.2)  # four times as many


def test_more_rows_of_a_seed_do_not():
    """Whole seeds are drawn: what differs between them does not average out within one."""
    table = sloping()
    once, copies = trend(table, **FEW), trend(pd.concat([table] * 10), **FEW)
    assert (copies.low, copies.high) == pytest.approx((once.low, once.high))
    assert copies.n == 10 * once.n
    many = [width(trend(sloping(rows=20, seed=s), **FEW)) for s in range(10)]
    few = [width(trend(sloping(rows=1, seed=s), **FEW)) for s in range(10)]
    assert np.mean(many) > 0.6 * np.mean(few)
    alone = sloping(rows=20).assign(seed=range(960))  # the same rows, taken for independent ones
    assert width(trend(alone, **FEW)) < 0.6 * width(trend(sloping(rows=20), **FEW))


@settings(max_examples=25)
@given(st.floats(-100, 100), st.floats(-100, 100), SEEDS)
def test_a_shift_moves_neither_slope_nor_interval(dx, dy, seed):
    table = sloping(seed=seed)
    one, other = trend(table, **FEW), trend(table.assign(overlap=table.overlap + dx, value=table.value + dy), **FEW)
    for name in ("slope", "low", "high", "r_squared"):
        assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-6, abs=1e-9)
    assert other.intercept == pytest.approx(one.intercept + dy - one.slope * dx, rel=1e-6, abs=1e-9)


@settings(max_examples=25)
@given(st.floats(0.01, 100), st.floats(0.01, 100), st.booleans(), SEEDS)
def test_slope_and_interval_scale_with_x_and_y(cx, cy, turned, seed):
    table = sloping(seed=seed)
    one, factor = trend(table, **FEW), (-cy if turned else cy) / cx
    other = trend(table.assign(overlap=table.overlap * cx, value=table.value * factor * cx), **FEW)
    ends = sorted((one.low * factor, one.high * factor))
    assert (other.slope, other.low, other.high) == pytest.approx(
        (one.slope * factor, *ends), rel=0.02 if turned else 1e-6
    )
    assert other.r_squared == pytest.approx(one.r_squared)


def test_the_interval_of_a_slope_covers_the_truth_as_often_as_it_says(monkeypatch):
    """Seeds differ in intercept and slope; rows of one seed are not independent."""
    monkeypatch.setattr(analysis, "_mutual_information", lambda x, y: 0.0)  # it is slow, and another matter
    covered = 0
    for seed in range(300):
        found = trend(sloping(n_seeds=8, noise=0.05, seed=seed), n_resamples=500)
        covered += found.low < 0.3 < found.high
    assert 0.90 <= covered / 300 <= 0.98


def test_a_higher_level_makes_the_interval_of_a_slope_wider():
    narrow, wide = (trend(sloping(), level=level, **FEW) for level in (0.5, 0.95))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_rows_with_a_missing_x_or_y_are_left_out():
    table = sloping()
    holes = pd.concat([table, table.head(5).assign(value=np.nan), table.head(7).assign(overlap=np.nan)])
    assert trend(holes, **FEW) == trend(table, **FEW)


def test_a_seed_without_a_measurement_is_no_unit():
    table = sloping(n_seeds=2)
    table.loc[table.seed == 1, "value"] = np.nan
    found = trend(table, **FEW)
    assert found.n == 6 and np.isnan(found.low) and np.isnan(found.high)


def test_one_unit_has_a_slope_but_no_interval():
    found = trend(sloping(n_seeds=1), **FEW)
    assert np.isfinite([found.slope, found.intercept, found.r_squared, found.mutual_information]).all()
    assert np.isnan(found.low) and np.isnan(found.high)


@pytest.mark.parametrize("value", [0.0, 0.1, 0.7, 1 / 3, 1e6 / 7])
def test_what_does_not_vary_has_no_r_squared(value):
    found = trend(sloping().assign(value=value), **FEW)
    assert np.isnan(found.r_squared) and found.slope == pytest.approx(0, abs=1e-12)
    assert found.intercept == pytest.approx(value)


def test_the_trend_of_other_columns():
    table = sloping()
    named = table.rename(columns={"overlap": "rank", "value": "score"}).assign(seed=table.seed.map("run {}".format))
    assert trend(named, x="rank", y="score", unit="seed", **FEW) == trend(table, **FEW)
    assert trend(named.rename(columns={"seed": "run"}), x="rank", y="score", unit="run", **FEW) == trend(table, **FEW)


@settings(max_examples=25)
@given(SEEDS)
def test_one_table_one_trend(seed):
    table, before = sloping(seed=seed), np.random.get_state()[1].copy()
    assert trend(table, **FEW) == trend(table.copy(), **FEW)
    np.testing.assert_array_equal(before, np.random.get_state()[1])


@pytest.mark.parametrize("level", [0, 1, 95, float("nan")])
def test_level_of_a_trend(level):
    with pytest.raises(ValueError, match=f"level must be between 0 and 1, got {level}"):
        trend(sloping(), level=level)


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
    with pytest.raises(ValueError, match=r"overlap must take at least two values, got .*0\.4"):
        trend(sloping().assign(overlap=0.4))
    with pytest.raises(ValueError, match="overlap must take at least two values"):
        trend(sloping().assign(value=np.nan))


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
    found = trends(table, by=["metric", "dataset"], **FEW)
    assert list(found) == ["metric", "dataset", *Trend.__dataclass_fields__]
    assert list(found[["metric", "dataset"]].itertuples(index=False, name=None)) == [("svcca", "a"), ("cka", "a")]
    for _, row in found.iterrows():
        group = table[(table.metric == row.metric) & (table.dataset == row.dataset)]
        assert row.drop(["metric", "dataset"]).to_dict() == asdict(trend(group, **FEW))


def test_trends_of_no_group_are_an_empty_table_with_all_columns():
    table = grouped()
    found = trends(table[table.overlap == 0], by=["metric"])
    assert len(found) == 0 and list(found) == ["metric", *Trend.__dataclass_fields__]


def test_trends_take_the_options_of_trend():
    table = grouped().rename(columns={"overlap": "rank", "value": "score"})
    found = trends(table, by=("metric",), x="rank", y="score", level=0.5, **FEW)
    whole = trends(grouped(), by=("metric",), **FEW)
    assert list(found.slope) == list(whole.slope) and (found.low > whole.low).all() and (found.high < whole.high).all()


# More than one predictor


def mediated(n_units=40, through=0.6, left=0.3, noise=0.1, seed=0):
    """Pairs in which a of the effect of x on y passes through m."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"seed": np.repeat(np.arange(n_units), 6), "overlap": np.tile(np.linspace(0, 1, 6), n_units)})
    table["m"] = 2 * table.overlap + rng.normal(0, noise, len(table)) + rng.normal(0, noise, n_units)[table.seed]
    table["value"] = through / 2 * table.m + left * table.overlap + rng.normal(0, noise, len(table))
    return table.assign(other=rng.normal(size=len(table)))


def test_demeaned_leaves_what_varies_within_groups():
    table = pd.DataFrame({"g": [0, 0, 1, 1], "a": [1.0, 3, 10, 20], "b": [1, 1, 1, 1]})
    found = analysis.demeaned(table, ["a"], by=["g"])
    assert list(found.a) == [-1, 1, -5, 5] and list(found.b) == [1] * 4 and list(table.a) == [1, 3, 10, 20]


def test_mediation_is_that_of_two_regressions():
    """Against scikit-learn's, which knows nothing of sums of products."""
    table = mediated(8)
    for fixed in ([], ["other"]):
        found = analysis.mediation(table, mediator="m", given=fixed).set_index("effect").estimate
        (total, *_), (direct, m, *_) = (
            LinearRegression().fit(table[[*names, *fixed]], table.value).coef_
            for names in (["overlap"], ["overlap", "m"])
        )
        assert (found["total"], found["direct"], found["mediator"]) == pytest.approx((total, direct, m))
        assert found["indirect"] == pytest.approx(total - direct)
    assert found["total"] != analysis.mediation(table, mediator="m").estimate[0]


@pytest.mark.parametrize(("through", "left"), [(0.6, 0.3), (0.0, 0.5), (0.5, 0.0)])
def test_mediation_covers_what_was_put_in(through, left):
    covered = []
    for seed in range(40):
        found = analysis.mediation(mediated(10, through, left, seed=seed), mediator="m", n_resamples=1000)
        found = found.set_index("effect")
        truth = {"total": through + left, "direct": left, "indirect": through, "mediator": through / 2}
        covered += [found.low[name] <= value <= found.high[name] for name, value in truth.items()]
    assert np.mean(covered) > 0.88


def test_mediation_interval_of_the_total_effect_is_that_of_the_trend():
    table = mediated(6)
    total = analysis.mediation(table, mediator="m").iloc[0]
    line = trend(table)
    assert (total.estimate, total.low, total.high) == pytest.approx((line.slope, line.low, line.high), rel=1e-6)
    assert analysis.mediation(table[table.seed == 0], mediator="m")[["low", "high"]].isna().all().all()


def test_prediction_is_of_units_that_were_left_out():
    """Literally: fit on all other seeds, foretell this one."""
    table = mediated(5)
    found = analysis.prediction(table, {"m": ["m"], "both": ["m", "overlap"], "noise": ["other"]})
    for name, columns in (("m", ["m"]), ("both", ["m", "overlap"]), ("noise", ["other"])):
        left = baseline = 0.0
        for seed in range(5):
            train, test = table[table.seed != seed], table[table.seed == seed]
            told = LinearRegression().fit(train[columns], train.value).predict(test[columns])
            left += np.square(test.value - told).sum()
            baseline += np.square(test.value - train.value.mean()).sum()
        (row,) = found[found.predictors == name].itertuples()
        assert row.r_squared == pytest.approx(1 - left / baseline)
        assert row.low < row.r_squared < row.high
    assert found.r_squared[0] > 0.5 and found.r_squared[2] < 0.05


@pytest.mark.parametrize("n_seeds", [0, 1])
def test_prediction_needs_units_to_learn_from(n_seeds):
    table = mediated(5)
    with pytest.raises(ValueError, match=f"one seed is foretold from the others, so .* two .*; got {n_seeds}"):
        analysis.prediction(table[table.seed < n_seeds], {"m": ["m"]})


def test_prediction_sees_the_same_rows_for_all_predictors():
    table = mediated(5)
    table.loc[3, "other"] = np.nan
    found = analysis.prediction(table, {"m": ["m"], "noise": ["other"]})
    assert found.r_squared[0] == analysis.prediction(table.drop(3), {"m": ["m"]}).r_squared[0]
