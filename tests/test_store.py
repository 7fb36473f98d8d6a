"""The store: what was saved comes back, what is damaged does not."""

import errno
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from repsim_utils import store as module
from repsim_utils.store import Store, StoreError, key

CONFIG = {"seed": 1, "recipe": {"lr": 0.1, "epochs": 2}, "factors": ["shape", "digit"]}
RECORD = {"rows": [{"metric": "cka", "value": 0.5}], "note": None}


def some_weights():
    return {"a.weight": torch.arange(12.0).reshape(3, 4).T, "b": torch.tensor(3), "c": torch.ones(2).half()}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def run(store):
    return store.save("models", CONFIG, RECORD, some_weights())


def everything_in(folder):
    return sorted(path.name for path in Path(folder).rglob("*"))


def test_round_trip(store, run):
    loaded = store.load("models", CONFIG)
    assert loaded == run and loaded.record == RECORD
    assert loaded.path == store.root / "models" / key(CONFIG)
    for name, tensor in some_weights().items():
        assert torch.equal(loaded.weights()[name], tensor) and loaded.weights()[name].dtype == tensor.dtype
    assert everything_in(loaded.path) == ["config.json", "record.json", "weights.safetensors"]
    assert json.loads((loaded.path / "config.json").read_text()) == CONFIG


def test_a_run_without_weights(store):
    run = store.save("cells", CONFIG, RECORD)
    assert store.load("cells", CONFIG) == run and everything_in(run.path) == ["config.json", "record.json"]
    assert run.weights() == {}


def test_weights_that_were_lost_are_not_taken_for_none(run):
    (run.path / "weights.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        run.weights()


def test_saved_and_loaded_records_are_alike(store):
    """JSON makes a list of a tuple: in the answer of `save` too."""
    assert (
        store.save("cells", CONFIG, {"pair": (1, 2)}).record == store.load("cells", CONFIG).record == {"pair": [1, 2]}
    )


def test_key_does_not_depend_on_order():
    shuffled = {"factors": ["shape", "digit"], "recipe": {"epochs": 2, "lr": 0.1}, "seed": 1}
    assert list(shuffled) != list(CONFIG) and key(shuffled) == key(CONFIG)
    assert len(key(CONFIG)) == 16 and set(key(CONFIG)) <= set("0123456789abcdef")
    others = [CONFIG | {"seed": 2}, CONFIG | {"factors": ["digit", "shape"]}, CONFIG | {"more": None}]
    assert len({key(config) for config in (CONFIG, *others)}) == 4


def test_what_is_missing_is_none(store, run):
    assert store.load("models", CONFIG | {"seed": 2}) is None
    assert store.load("cells", CONFIG) is None


def test_the_default_store(tmp_path, monkeypatch):
    assert Store().root == tmp_path / "default_store"
    monkeypatch.delenv("REPSIM_STORE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Store().root == tmp_path / "repsim"


def truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def other_value(path):
    path.write_text(path.read_text().replace("0.5", "0.6"))


def other_config(path):
    path.write_text(path.read_text().replace('"seed":1', '"seed":2'))


def empty(path):
    path.write_bytes(b"")


def other_json(path):
    path.write_text("[1, 2]")


DAMAGE = [
    (damage, name)
    for name in ("record.json", "config.json", "weights.safetensors")
    for damage in (truncate, flip, empty, other_json, Path.unlink)
]


@pytest.mark.parametrize(("damage", "name"), [*DAMAGE, (other_value, "record.json"), (other_config, "config.json")])
def test_damage_is_noticed_named_and_mended(store, run, caplog, damage, name):
    damage(run.path / name)
    with caplog.at_level(logging.WARNING):
        assert store.load("models", CONFIG) is None
    assert "damaged run" in caplog.text and str(run.path) in caplog.text
    assert everything_in(store.root) == ["models"]  # nothing of it is left
    assert store.save("models", CONFIG, RECORD, some_weights()) == store.load("models", CONFIG)


def test_what_cannot_be_read_now_is_not_damage(store, run, monkeypatch):
    """Too many open files, say: another process may hold them, and the run is whole."""
    with monkeypatch.context() as patch:
        patch.setattr(
            module.files, "sha256", lambda path: (_ for _ in ()).throw(OSError(errno.EMFILE, "Too many open files"))
        )
        with pytest.raises(OSError, match="Too many open files"):
            store.load("models", CONFIG)
    assert store.load("models", CONFIG) == run


def test_a_run_of_another_configuration_is_damage(store, run, caplog):
    """As after a folder was renamed by hand: every file in it is whole."""
    other = CONFIG | {"seed": 2}
    os.rename(run.path, run.path.with_name(key(other)))
    assert store.load("models", other) is None
    assert "another configuration" in caplog.text


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", ["rename", "fsync"])
def test_a_crash_before_the_rename_leaves_nothing(store, monkeypatch, call, error):
    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(type(error)):
            store.save("models", CONFIG, RECORD, some_weights())
    assert everything_in(store.root) == ["models"]
    assert store.load("models", CONFIG) is None
    store.save("models", CONFIG, RECORD, some_weights())
    assert store.load("models", CONFIG).record == RECORD


def test_who_comes_second_keeps_what_is_there(store, run):
    store.save("models", CONFIG, {"rows": []}, some_weights())
    assert store.load("models", CONFIG).record == RECORD
    assert len(list(run.path.parent.iterdir())) == 1


def test_two_processes_saving_the_same_runs_at_once(store, tmp_path, caplog):
    code = """
import pathlib, sys, time, torch
from repsim_utils.store import StoreError, Store
root, me, go = sys.argv[1:]
pathlib.Path(go + me).touch()
while not pathlib.Path(go).exists():
    time.sleep(0.001)
for i in range(40):
    Store(root).save("models", {"i": i}, {"who": me}, {"w": torch.full((500,), i)})
"""
    go = tmp_path / "go"
    processes = [subprocess.Popen([sys.executable, "-c", code, store.root, me, go]) for me in ("0", "1")]
    while not all((tmp_path / f"go{me}").exists() for me in ("0", "1")):
        assert all(process.poll() is None for process in processes)
    go.touch()
    assert [process.wait(60) for process in processes] == [0, 0]
    for i in range(40):
        run = store.load("models", {"i": i})
        assert run.record["who"] in ("0", "1") and torch.equal(run.weights()["w"], torch.full((500,), i))
    assert len(list((store.root / "models").iterdir())) == 40 and not caplog.records


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_refused(store, value):
    for config, record in ((CONFIG | {"lr": value}, RECORD), (CONFIG, {"value": value})):
        with pytest.raises(ValueError, match="not JSON compliant"):
            store.save("cells", config, record)
    assert [name for name in everything_in(store.root) if name != "cells"] == []


def test_nothing_in_the_store_is_a_pickle(store, run):
    for path in filter(Path.is_file, store.root.rglob("*")):
        assert path.suffix in (".json", ".safetensors")
        assert path.read_bytes()[:1] != b"\x80" and b"PK\x03\x04" not in path.read_bytes()


def test_a_store_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file cannot be written .* name a folder that can, with --store"):
        Store(tmp_path / "file").check()
    Store(tmp_path / "new" / "folder").check()
    assert list((tmp_path / "new" / "folder").iterdir()) == []
