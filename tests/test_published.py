"""The published and the recorded tables."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from repsim_utils import files, published

COLUMNS = ["experiment", "model", "training", "dataset", "probe", "metric", "overlap", "mean", "sd", "n"]
RECORDED = [
    "experiment", "key", "profile", "dataset", "architecture", "overlap", "seed", "seeds", "probe", "metric", "value",
    "version", "date", "wall_seconds",
]  # fmt: skip


def test_the_published_table_is_whole():
    table = pd.read_csv(files.data_folder() / "published_results.csv")
    assert len(table) == 6100 and list(table) == COLUMNS
    assert sum(len(published.published(name)) for name in table.experiment.unique()) == 6100


def test_published_slopes_agree_with_published_means():
    """Slopes of seeds, averaged, are the slope of the means, as every published seed has every overlap."""
    assert len(pd.read_csv(files.data_folder() / "published_slopes.csv")) == 1066
    slopes, means = (
        function("dataset_overlap_vision") for function in (published.published_slopes, published.published)
    )
    by = ["model", "training", "dataset", "probe", "metric"]
    whole = slopes[(slopes.training == "scratch") & (slopes.metric == "cka")]
    for row in whole.itertuples():
        here = means[(means[by] == [getattr(row, name) for name in by]).all(axis=1)]
        assert row.slope == pytest.approx(np.polyfit(here.overlap, here["mean"], 1)[0], abs=1e-5)
        assert row.low < row.slope < row.high and row.n_pairs == row.n_seeds * row.n_levels
    first = whole[whole.probe == whole.dataset].set_index("dataset")
    assert first.slope.round(3).to_dict() == {"cifar100": 0.119, "tinyimagenet": 0.116}


def test_published_mutual_information_exceeds_what_six_levels_can_hold():
    """Why chapters do not compare it over designs: the authors' own figure for ResNet-18 is above ln 6."""
    table = published.published_regressions()
    assert len(table) == 57 and list(table) == ["experiment", "probe", "mutual_information", "r_squared"]
    theirs = table.set_index("experiment").mutual_information["resnet18_tinyimagenet_ds"]
    ours = published.published_slopes("dataset_overlap_vision")
    ours = ours[(ours.model == "resnet18") & (ours.training == "pretrained") & (ours.metric == "cka")]
    (row,) = ours[(ours.dataset == "tinyimagenet") & (ours.probe == "tinyimagenet")].itertuples()
    assert theirs == pytest.approx(row.mutual_information) and theirs > np.log(row.n_levels)


def test_our_r_squared_and_mutual_information_of_their_tables_are_those_of_the_authors():
    authors = published.published_regressions().set_index("experiment")
    rows = published.published_slopes("dataset_overlap_vision")
    rows = rows[(rows.metric == "cka") & (rows.training == "pretrained") & (rows.probe == rows.dataset)]
    rows = rows.set_index(rows.model + "_" + rows.dataset + "_ds")[["mutual_information", "r_squared"]]
    assert len(rows) == 16
    pd.testing.assert_frame_equal(rows, authors.loc[rows.index, list(rows)], check_names=False, atol=2e-6)


def test_task_only_has_the_numbers_of_the_paper():
    table = published.published("task_only")
    pd.testing.assert_frame_equal(table, published.published("csd_task_only"))
    rows = table[(table.metric == "cka") & (table.training == "scratch") & (table.probe == "color_shape_digit")]
    means = rows.set_index("overlap")["mean"]
    assert [round(means[level], 2) for level in (1, 2, 3)] == [0.00, 0.34, 0.64] and len(rows) == 3


def test_missing_is_missing_and_never_a_sentinel():
    table = pd.read_csv(files.data_folder() / "published_results.csv")
    assert not (table["mean"] == -1).any() and table["mean"].notna().all()
    cka = table[table.metric == "cka"]
    assert cka["mean"].between(0, 1).all() and (cka.n >= 1).all()


def test_unknown_experiment():
    with pytest.raises(ValueError, match=r"nothing published as 'nothing'; there is .*csd_task_only"):
        published.published("nothing")
    with pytest.raises(
        FileNotFoundError, match="nothing is not recorded: run repsim run nothing --profile laptop --rec"
    ):
        published.recorded("nothing")


def small_table():
    row = {
        "experiment": "task_only", "key": "00123e4567890123", "profile": "laptop", "metric": "cka", "overlap": 1,
        "seed": 0, "value": 0.123456789, "rank": 8, "version": "0.1.0", "date": "2026-01-01", "wall_seconds": 1.25,
    }  # fmt: skip
    return pd.DataFrame([row, row | {"seed": 1, "value": None, "key": "1234567890123456"}])


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    """Cells that are named by the keys themselves."""
    monkeypatch.setattr(published, "key", lambda config: config)


def cells(table):
    return [
        SimpleNamespace(model_dump=lambda mode, k=k: k, second=SimpleNamespace(seed=s))
        for k, s in zip(table["key"], table["seed"], strict=True)
    ]


def test_record_and_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "data_folder", lambda: tmp_path / "data")
    (tmp_path / "pyproject.toml").touch()
    path = published.record(small_table(), "task_only", cells(small_table()))
    assert path == tmp_path / "data" / "results" / "task_only.csv"
    table = published.recorded("task_only")
    assert list(table.key) == ["00123e4567890123", "1234567890123456"]  # text, with its zeros
    assert table.value[0] == 0.123457 and pd.isna(table.value[1])
    assert list(table)[-3:] == ["version", "date", "wall_seconds"] and "rank" in table


def test_record_and_read_back_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "data_folder", lambda: tmp_path / "data")
    (tmp_path / "pyproject.toml").touch()
    images = torch.randint(256, (2, 5, 3, 4, 4), dtype=torch.uint8)
    path = published.record_gallery(images, "task_only")
    assert path == tmp_path / "data" / "results" / "task_only.png"
    assert torch.equal(published.recorded_gallery("task_only"), images)


def test_without_a_checkout_nothing_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "data_folder", lambda: tmp_path / "site-packages" / "data")
    with pytest.raises(FileNotFoundError, match="recorded in a checkout of the book"):
        published.record(small_table(), "task_only", cells(small_table()))
    assert not list(tmp_path.rglob("*.csv"))


@pytest.mark.parametrize("path", sorted((files.data_folder() / "results").glob("*.csv")), ids=lambda path: path.stem)
def test_recorded_tables_have_their_columns(path):
    table = published.recorded(path.stem)
    assert set(RECORDED) <= set(table) and set(table.experiment) == {path.stem}
    if "pairing" in table:  # models that were tuned on different kinds of text have no overlap
        assert (table.overlap.isna() == (table.pairing == "floor")).all()
        table = table[table.pairing == "overlap"]
    assert table[RECORDED].notna().all().all()
