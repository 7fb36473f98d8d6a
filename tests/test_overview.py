"""Every effect of overlap in one table: each row is what the recorded and published tables say."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from repsim_utils import analysis, files, overview, profiles, published, tables
from repsim_utils.metrics import PAPER


@pytest.fixture(scope="module")
def table():
    return overview.every_effect()


def test_every_experiment_of_the_book_and_of_the_paper_has_a_row(table):
    mine, theirs = (set(table[table.source == source].experiment) for source in ("recorded", "published"))
    assert mine == set(tables.CHAPTERS) == set(overview.EXPERIMENTS) & set(tables.CHAPTERS)
    names = set(pd.read_csv(files.data_folder() / "published_slopes.csv").experiment)
    there = {name for one in theirs for name in published.published_slopes(one).experiment}
    assert there == names
    assert not table.duplicated(overview.KEYS).any() and table.drop(columns="cause").notna().any(axis=1).all()


def test_every_recorded_row_is_the_trend_of_its_rows(table):
    """By `trend` on rows that are filtered here; the share from three means."""
    rows = table[(table.source == "recorded") & table.metric.isin(["cka", "svcca", "transfer"])]
    for row in rows[rows.experiment != "lora_grid"].itertuples():
        some = published.recorded(row.experiment)
        for name, value in profiles.load("laptop", row.experiment).primary.where.items():
            if name not in ("architecture", "probe", "metric", "cause"):
                some = some[some[name].isna() if value is None else some[name] == value]
        if some.dataset.iloc[0] == "fashion_mnist" and row.probe.startswith(("common", "classes_seen_by_none")):
            some = some[some.overlap != 0.2]  # of a single class
        some = some[(some.metric == row.metric) & (some.probe == row.probe)]
        some = some[some.architecture.replace(overview.NAMES) == row.network]
        if "cause" in some:
            some = some[some.cause.str.startswith("task") == row.cause.startswith("classes")]
        some = some[some.seeds == "fresh"] if row.seeds == "fresh" else some
        found, span = analysis.trend(some), np.ptp(some.overlap.dropna())
        assert (row.change, row.low, row.high) == pytest.approx(
            tuple(span * np.array([found.slope, found.low, found.high]))
        )
        assert row.n == found.n_units
        some = some[some.groupby("seed").overlap.transform("nunique") > 1]
        last = some[some.overlap == some.overlap.max()].groupby("seed").value.mean()
        assert row.end == pytest.approx(last.mean())
        if "cka" in row.metric:
            chance = some.groupby("seed").null_mean.mean().mean()
            assert (
                row.share == pytest.approx(row.change / (row.end - chance))
                and row.share_low < row.share < row.share_high
            )


def test_every_published_row_is_its_slope_times_the_span(table):
    slopes = pd.read_csv(files.data_folder() / "published_slopes.csv").set_index(
        ["experiment", "model", "training", "dataset", "probe", "metric"]
    )
    means = pd.read_csv(files.data_folder() / "published_results.csv").set_index(slopes.index.names)
    short = (slopes.index.get_level_values("experiment") == "csd_task_only") & (slopes.n_pairs != 5 * slopes.n_seeds)
    assert set(slopes[short].index.get_level_values("model")) == {"resnet50", "resnet101", "vit_large_patch32_224"}
    slopes = slopes[~short]  # which lack pairs
    rows = table[table.source == "published"]
    assert len(rows) == slopes.index[slopes.index.get_level_values("metric").isin([*PAPER, *overview.TRANSFER])].size
    for index, slope in slopes.iterrows():
        if index[5] not in (*PAPER, *overview.TRANSFER):
            continue
        some = means.loc[[index]].sort_values("overlap")
        span = 1 if index[0] == "csd_task_only" else np.ptp(some.overlap)
        network = index[1] + (", pretrained" if index[2] == "pretrained" else "")
        cause = overview.TOGETHER if "task_overlap" in index[0] else None
        mine = rows[
            (rows.network == network)
            & (rows.dataset == index[3])
            & (rows.probe == index[4])
            & (rows.metric == index[5])
        ]
        mine = mine[(mine.cause == cause) == (cause is not None)]
        mine = mine[mine.change.sub(slope.slope * span).abs() < 1e-12]
        assert len(mine) == 1, index
        row = mine.iloc[0]
        assert (row.start, row.end, row.n) == pytest.approx(
            (some["mean"].iloc[0], some["mean"].iloc[-1], slope.n_seeds)
        )
        error = (slope.high - slope.low) / 2 / stats.t.ppf(0.975, slope.n_seeds - 1)
        assert (row.sign != 0) <= (2 * stats.t.sf(abs(slope.slope) / error, slope.n_seeds - 1) <= 0.05)
        if row.metric in PAPER:
            assert (row.share, row.share_high) == pytest.approx((row.change / row.end, slope.high * span / row.end))


def test_causes_are_told_apart(table):
    assert set(table.cause) == {"task alone", overview.SAMPLES, overview.TOGETHER}
    for row in table[["experiment", "cause", "source"]].drop_duplicates().itertuples():
        if row.experiment.startswith("dataset"):
            assert row.cause == overview.SAMPLES
        if row.experiment.startswith("task_overlap"):
            assert row.cause == overview.TOGETHER
