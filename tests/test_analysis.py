"""Statistics over trained pairs, held against literal versions."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from repsim_utils.analysis import mean_interval


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
