"""The recorded results: what the chapters say of them, and that this code still makes them."""

import re

import pytest

from repsim_utils import analysis, charts, profiles, published
from repsim_utils.experiments import task_only
from repsim_utils.files import data_folder
from repsim_utils.store import Store, key
from repsim_utils.sweep import sweep

FILES = sorted(path.stem for path in (data_folder() / "results").glob("*.csv"))


def test_the_files_are_those_that_are_tested_here():
    assert FILES == ["task_only"]


def test_task_only_is_the_laptop_profile_of_this_code():
    table = published.recorded("task_only")
    cells = task_only.pairs(profiles.load("laptop", "task_only"))
    assert set(table["key"]) == {key(cell.model_dump(mode="json")) for cell in cells}
    assert set(table["profile"]) == {"laptop"}
    assert not table.duplicated(["key", "metric"]).any()
    assert table["seed"].nunique() >= 6


def test_task_only_levels_are_apart_and_level_1_is_near_zero():
    table = published.recorded("task_only")
    cka = table[table.metric == "cka"]
    levels = analysis.mean_interval(cka)
    assert list(levels.overlap) == [1, 2, 3]
    assert (levels.high.to_numpy()[:-1] < levels.low.to_numpy()[1:]).all()
    assert (cka[cka.overlap == 1].value < 0.05).all()


def test_task_only_cell_comes_out_again(tmp_path):
    """The cheapest cell that can tell: both models of level 3, seed 0; threads and machines move it by little."""
    cells = task_only.pairs(profiles.load("laptop", "task_only", seeds=[0], overlaps=[3]))
    again = sweep(task_only.measure_pair, cells, store=Store(tmp_path), progress=False).set_index("metric")["value"]
    table = published.recorded("task_only")
    then = table[table["key"] == key(cells[0].model_dump(mode="json"))].set_index("metric")["value"]
    for name in ("cka", "unbiased_cka", "cknna", "mutual_knn", "lcs_knn", "edit_distance_knn", "cycle_knn"):
        assert again[name] == pytest.approx(then[name], abs=0.04), name
    for name in ("svcca", "svcca_published"):
        assert again[name] == pytest.approx(then[name], abs=0.1), name
    assert again["accuracy_first"] == pytest.approx(then["accuracy_first"], abs=0.03)
    assert again["accuracy_second"] == pytest.approx(then["accuracy_second"], abs=0.03)


def test_main_figure_is_drawn_from_the_recorded_table(tmp_path):
    chart = charts.task_overlap(published.recorded("task_only"), published.published("task_only"))
    chart.save(str(tmp_path / "figure.svg"))
    kept = data_folder().parent / "chapters" / "images" / "task_overlap.svg"
    drawn, there = (re.sub(r"clip\d+", "clip", path.read_text()) for path in (tmp_path / "figure.svg", kept))
    assert drawn == there, "the picture is not of the recorded table: make figure"
