"""Sweeps: computed once, failures reported at the end, safe to kill."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from typing import ClassVar

import pandas as pd
import pytest
from pydantic import BaseModel

from repsim_utils import __version__
from repsim_utils.datasets.cache import DataError
from repsim_utils.store import Store, StoreError, key
from repsim_utils.sweep import SweepError, grid, sweep


class Cell(BaseModel):
    kind: ClassVar[str] = "squares"
    number: int


class Square:
    """Two rows a cell; counts its calls, and fails where it is told to."""

    def __init__(self, fails=()):
        self.calls, self.fails = [], fails

    def __call__(self, config, store, *, progress):
        self.calls.append(config.number)
        if config.number in self.fails:
            raise ZeroDivisionError(f"no square of {config.number} today")
        return [{"metric": metric, "value": config.number**power} for metric, power in (("one", 1), ("two", 2))]


CELLS = [Cell(number=n) for n in range(5)]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def test_grid_turns_the_last_axis_fastest():
    assert grid(a=[1, 2], b="xy") == [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"}]
    assert grid() == [{}] and grid(a=[1], b=[]) == []


def test_columns_and_rows(store):
    table = sweep(Square(), CELLS, store=store, progress=False)
    assert list(table) == ["experiment", "key", "metric", "value", "version", "date", "wall_seconds"]
    assert list(table.value) == [n**power for n in range(5) for power in (1, 2)]
    assert list(table.key) == [key({"number": n}) for n in range(5) for _ in range(2)]
    assert set(table.experiment) == {"squares"} and set(table.version) == {__version__}
    assert pd.to_datetime(table.date, format="%Y-%m-%d").nunique() in (1, 2)
    assert (table.wall_seconds >= 0).all() and (table.wall_seconds < 5).all()


def test_what_is_finished_is_not_computed_again(store):
    first = sweep(Square(), CELLS[:3], store=store, progress=False)
    again = Square()
    table = sweep(again, CELLS, store=store, progress=False)
    assert again.calls == [3, 4]
    pd.testing.assert_frame_equal(table[:6], first)


def test_the_default_store_is_used(tmp_path):
    sweep(Square(), CELLS, progress=False)
    assert len(list((tmp_path / "default_store" / "squares").iterdir())) == 5


def test_failed_cells_are_reported_at_the_end_and_tried_again(store):
    failing = Square(fails=(1, 3))
    with pytest.raises(SweepError) as caught:
        sweep(failing, CELLS, store=store, progress=False)
    assert failing.calls == [0, 1, 2, 3, 4]
    assert [config for config, _ in caught.value.failures] == [CELLS[1], CELLS[3]]
    assert sorted(set(caught.value.table.value)) == [0, 2, 4, 16]
    message = str(caught.value)
    assert message.startswith("2 cell(s) failed, the rest is kept")
    for number in (1, 3):
        assert f"Cell(number={number})" in message and f"ZeroDivisionError: no square of {number} today" in message
    assert "Traceback" in message and __file__ in message

    mended = Square()
    table = sweep(mended, CELLS, store=store, progress=False)
    assert mended.calls == [1, 3] and len(table) == 10


def test_all_cells_failing(store):
    with pytest.raises(SweepError) as caught:
        sweep(Square(fails=range(5)), CELLS, store=store, progress=False)
    assert len(caught.value.failures) == 5 and caught.value.table.empty


def test_a_stop_by_the_user_stops_and_keeps(store):
    def stopped(config, store, *, progress):
        if config.number == 2:
            raise KeyboardInterrupt
        return Square()(config, store, progress=progress)

    with pytest.raises(KeyboardInterrupt):
        sweep(stopped, CELLS, store=store, progress=False)
    rest = Square()
    sweep(rest, CELLS, store=store, progress=False)
    assert rest.calls == [2, 3, 4]


def test_a_damaged_cell_is_computed_again(store, caplog):
    whole = sweep(Square(), CELLS, store=store, progress=False)
    path = store.root / "squares" / key({"number": 3}) / "record.json"
    path.write_bytes(path.read_bytes()[:-1])
    again = Square()
    table = sweep(again, CELLS, store=store, progress=False)
    assert again.calls == [3] and str(path.parent) in caplog.text
    pd.testing.assert_frame_equal(table.drop(columns="wall_seconds"), whole.drop(columns="wall_seconds"))


SCRIPT = """
import pathlib, sys, time
from typing import ClassVar
from pydantic import BaseModel
from repsim_utils.datasets.cache import DataError
from repsim_utils.store import Store
from repsim_utils.sweep import sweep

class Cell(BaseModel):
    kind: ClassVar[str] = "squares"
    number: int

def slow_square(config, store, *, progress):
    with open(sys.argv[1] + ".calls", "a") as calls:
        print(config.number, file=calls)
    time.sleep(0.05)
    return [{"number": config.number, "value": config.number**2 / 7}]

table = sweep(slow_square, [Cell(number=n) for n in range(30)], store=Store(sys.argv[1]), progress=False)
table.to_json(sys.argv[1] + ".json", orient="split")
"""


def test_kill_in_mid_sweep_then_again_gives_the_same_table(tmp_path):
    def start(name):
        return subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path / name)])

    def result(name):
        content = json.loads((tmp_path / f"{name}.json").read_text())
        return pd.DataFrame(content["data"], columns=content["columns"]).drop(columns=["date", "wall_seconds"])

    killed = start("killed")
    cells = tmp_path / "killed" / "squares"
    deadline = time.monotonic() + 60
    while killed.poll() is None and time.monotonic() < deadline and not (cells.is_dir() and len(os.listdir(cells)) > 8):
        time.sleep(0.001)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL and not (tmp_path / "killed.json").exists()

    again, undisturbed = start("killed"), start("undisturbed")
    assert again.wait(60) == undisturbed.wait(60) == 0
    pd.testing.assert_frame_equal(result("killed"), result("undisturbed"))
    calls = (tmp_path / "killed.calls").read_text().split()
    assert sorted(set(calls), key=int) == [str(n) for n in range(30)]
    assert len(calls) <= 31  # at most the cell in progress was lost


def test_a_full_disk_stops_the_sweep_at_once(tmp_path):
    calls = []

    def full(config, store, *, progress):
        calls.append(config)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        sweep(full, [Cell(number=1), Cell(number=2)], store=Store(tmp_path), progress=False)
    assert len(calls) == 1


def test_what_all_cells_would_meet_stops_the_sweep_at_once(store):
    def without_network(config, store, *, progress):
        tried.append(config)
        raise DataError("the download failed")

    tried = []
    with pytest.raises(DataError, match="the download failed"):
        sweep(without_network, CELLS, store=store, progress=False)
    assert len(tried) == 1


def test_a_store_that_cannot_be_written_stops_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    square = Square()
    with pytest.raises(StoreError, match="cannot be written"):
        sweep(square, [Cell(number=1)], store=Store(tmp_path / "file"), progress=False)
    assert not square.calls
