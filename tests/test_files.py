"""Files that are whole or not there."""

import errno
import hashlib
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

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


HOLDER = """
import sys, time
from pathlib import Path
from repsim_utils import files
with files.lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_is_for_one_process_and_a_kill_releases_it(tmp_path):
    path = tmp_path / "new" / ".data.lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(TimeoutError):
        files.lock(path).acquire(timeout=0.2)
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    with files.lock(path).acquire(timeout=10):
        pass


def test_a_folder_gets_its_name_when_it_is_filled(tmp_path):
    folder = tmp_path / "new" / "folder"
    with files.making(folder) as made:
        (made / "file").write_text("first")
        (made.parent / "aside").write_text("not kept")
        assert list(folder.parent.iterdir()) == [made.parent]
    with pytest.raises(KeyboardInterrupt), files.making(folder) as made:
        (made / "file").write_text("half")
        raise KeyboardInterrupt
    with files.making(folder, keep=lambda: True) as made:
        (made / "file").write_text("too late")
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [("file", "first")]
    with files.making(folder) as made:
        (made / "other").write_text("second")
    assert [path.name for path in folder.iterdir()] == ["other"] and list(folder.parent.iterdir()) == [folder]
    assert folder.stat().st_mode & 0o777 == 0o755


WINDOWS = """
import builtins, os, shutil, sys
imported, opened, renamed, shutil._use_fd_functions = builtins.__import__, os.open, os.rename, False

def imports(name, *rest, **options):
    if name == "fcntl":
        raise ModuleNotFoundError("No module named 'fcntl'")
    return imported(name, *rest, **options)

def opens(path, *rest, **options):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", path)
    return opened(path, *rest, **options)

def renames(old, new):
    if os.path.exists(new):
        raise FileExistsError(17, "Cannot create a file when that file already exists", old)
    renamed(old, new)

sys.modules.pop("fcntl", None)
builtins.__import__, os.open, os.rename = imports, opens, renames
"""
COMMANDS = """
from repsim_utils.cli import main
for command in (
    "compare a.npy b.npy --metric unbiased_cka",
    "status dataset_overlap_vision",
    "data color-shape-digit --out shapes --n-train 1 --size 16",
    "data color-shape-digit --out shapes --verify",
):
    sys.argv = ["repsim", *command.split()]
    try:
        main()
    except SystemExit as end:
        assert not end.code, command
"""
TWICE = """
from pathlib import Path
from repsim_utils.datasets import vision
from repsim_utils.store import Store
for _ in range(2):  # the second time over what is damaged
    assert len(vision.load("images", "train").labels) == 4
    next(Path("data").glob("*/manifest.json")).write_bytes(b"damaged")
    Store().save("cells", {"a": 1}, {"b": 2})
    assert Store().load("cells", {"a": 1}).record == {"b": 2}
    next(Path("store").glob("*/*/config.json")).write_bytes(b"damaged")
assert "fcntl" not in sys.modules
"""


def test_without_fcntl_and_where_a_folder_is_no_file(tmp_path):
    """As on Windows."""
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(ord(name)).normal(size=(40, 3)))
    for kind in ("cat", "dog"):
        (tmp_path / "images" / kind).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (8, 8), (i, 0, len(kind))).save(tmp_path / "images" / kind / f"{i}.png")
    command = [sys.executable, "-c", WINDOWS + COMMANDS + TWICE]
    environment = os.environ | {"REPSIM_DATA": "data", "REPSIM_STORE": "store"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for said in ("unbiased_cka", "models  0 of", "every shard matches its checksum"):
        assert said in done.stdout
    assert not list(tmp_path.rglob("*.tmp"))
