"""Files that are whole or not there."""

import errno
import hashlib
import os
import subprocess
import sys

import pytest

from repsim_utils import files


def test_write_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    for content in (b"old", b"new and longer", b""):
        files.write(path, content)
        assert path.read_bytes() == content
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("old", [b"old", None])
def test_a_failed_write_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch, call, error, old):
    path = tmp_path / "file"
    if old is not None:
        files.write(path, old)

    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(type(error)):
            files.write(path, b"new")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([] if old is None else [old])
    files.write(path, b"new")
    assert path.read_bytes() == b"new"


def test_content_is_synced_before_it_gets_its_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: (calls.append(name), real(*args)))
    files.write(tmp_path / "file", b"content")
    assert calls == ["fsync", "replace", "fsync"]  # the last one is the folder


def test_sha256(tmp_path):
    content = bytes(range(256)) * 5000
    files.write(tmp_path / "file", content)
    assert files.sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_canonical_json_does_not_depend_on_order():
    assert files.canonical_json({"b": [1, {"d": 2, "c": 3}], "a": None}) == b'{"a":null,"b":[1,{"c":3,"d":2}]}'
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            files.canonical_json({"value": [value]})


def test_shipped_tables_are_found():
    assert (files.data_folder() / "published_results.csv").is_file()


def test_leftovers_of_killed_processes_go_and_those_of_living_ones_stay(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    mine = tmp_path / f"{files.temporary_prefix(tmp_path / 'a')}x.tmp"
    dead = tmp_path / mine.name.replace(f".{os.getpid()}.", f".{gone.pid}.")
    elsewhere = tmp_path / f".a.another-machine.{gone.pid}.x.tmp"
    for path in (mine, elsewhere):
        path.write_text("in progress")
    dead.mkdir()
    (dead / "part").write_text("half")
    files.remove_leftovers(tmp_path)
    assert mine.exists() and elsewhere.exists() and not dead.exists()
