"""ColorShapeDigit on disk: equal to the one in memory, mended where damaged, safe to kill."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from repsim_utils.datasets import shards
from repsim_utils.datasets.cache import DataError
from repsim_utils.datasets.color_shape_digit import ColorShapeDigit
from repsim_utils.datasets.shards import verify

SIZES = {"train": 1600, "validation": 800, "test": 800}


def write(folder, n_train=2, **options):
    shards.write(folder, n_train, **{"seed": 4, "size": 16} | options)


def checksums(folder):
    return json.loads((folder / "manifest.json").read_text())["sha256"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_SIZE", 700)
    write(tmp_path / "data")
    return tmp_path / "data"


def modified(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npy")}


@pytest.mark.parametrize("split", SIZES)
def test_disk_equals_memory(folder, split):
    data = ColorShapeDigit(SIZES[split] // 800, split=split, seed=4, size=16)
    images, ids = (
        [np.load(path, mmap_mode="r") for path in sorted(folder.glob(f"{split}-{end}.npy"))]
        for end in ("[0-9]" * 5, "[0-9]" * 5 + "-ids")
    )
    assert len(images) == len(ids) > 1 and all(isinstance(part, np.memmap) for part in images + ids)
    images, ids = np.concatenate(images), np.concatenate(ids)
    np.testing.assert_array_equal(images, data.images)
    np.testing.assert_array_equal(ids, torch.stack([data.shape, data.digit, data.color], 1))
    assert images.dtype == ids.dtype == np.uint8 and len(images) == SIZES[split]


def test_files_are_whole_shards_and_a_manifest(folder):
    names = {f"train-0000{k}" for k in range(3)} | {
        f"{part}-0000{k}" for part in ("validation", "test") for k in (0, 1)
    }
    expected = {f"{name}{end}.npy" for name in names for end in ("", "-ids")} | {"manifest.json"}
    assert {path.name for path in folder.iterdir()} == expected
    assert set(checksums(folder)) == expected - {"manifest.json"}
    assert json.loads((folder / "manifest.json").read_text())["n_images"] == SIZES
    verify(folder)


def test_resuming_keeps_what_is_good_and_mends_the_rest(folder):
    before, sums = modified(folder), checksums(folder)
    damaged, missing = folder / "train-00001.npy", folder / "test-00000-ids.npy"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    missing.unlink()
    write(folder)
    assert checksums(folder) == sums
    verify(folder)
    after = modified(folder)
    rewritten = {name for name in before if after[name] != before[name]}
    assert {"train-00001.npy", "test-00000-ids.npy"} <= rewritten
    assert {name.removesuffix(".npy").removesuffix("-ids") for name in rewritten} == {"train-00001", "test-00000"}


def test_resuming_a_whole_data_set_writes_nothing(folder, monkeypatch):
    monkeypatch.setattr(shards, "render", None)
    before = modified(folder)
    write(folder)
    assert modified(folder) == before


@pytest.mark.parametrize("change", [{"seed": 5}, {"size": 17}, {"difficulty": 0.4}, {"n_train": 1}])
def test_another_data_set_in_the_folder_is_an_error(folder, change):
    before = modified(folder)
    wanted = next(iter(change)).replace("n_train", "n_images")
    with pytest.raises(ValueError, match=f"holds another data set.*{wanted}.*choose another folder"):
        write(folder, **change)
    assert modified(folder) == before
    verify(folder)


@pytest.mark.parametrize("name", ["train-00002.npy", "test-00001-ids.npy"])
def test_verify_notices_one_flipped_bit(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name} is missing or damaged"):
        verify(folder)


def test_a_missing_shard_is_named(folder):
    (folder / "train-00001-ids.npy").unlink()
    with pytest.raises(DataError, match=r"train-00001-ids.npy is missing"):
        verify(folder)


@pytest.mark.parametrize("damage", ["[]", '{"n_images": {}}', '{"n_images": {"train": 2}, "shard_size": 0}', None])
def test_a_damaged_manifest_is_an_error_that_says_what_to_do(folder, damage):
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text()[:-20] if damage is None else damage)
    for attempt in (verify, write):
        with pytest.raises(DataError, match=r"manifest.json is damaged; remove it and write the data again"):
            attempt(folder)
    manifest.unlink()
    write(folder)
    verify(folder)


def test_where_nothing_was_written_or_a_file_stands(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for name in ("nowhere", "file"):
        with pytest.raises(DataError, match="no data were written there"):
            verify(tmp_path / name)
    with pytest.raises(FileExistsError, match="file"):
        write(tmp_path / "file")


def test_kill_in_mid_write_then_again_gives_the_same_files(tmp_path):
    def start(folder):
        code = "from repsim_utils.cli import main; main()"
        options = ["data", "color-shape-digit", "--out", str(folder), "--n-train", "60", "--size", "16"]
        return subprocess.Popen([sys.executable, "-c", code, *options], stderr=subprocess.PIPE, stdout=subprocess.PIPE)

    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    process = start(killed)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if (killed / "manifest.json").exists() and len(checksums(killed)) >= 2:
            break
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    done = checksums(killed)
    assert 2 <= len(done) < 10  # two files for each of 3 + 1 + 1 shards
    with pytest.raises(DataError):
        verify(killed)
    before = {name: when for name, when in modified(killed).items() if name in done}

    for folder in (killed, undisturbed):
        process = start(folder)
        assert process.communicate() and process.returncode == 0
        verify(folder)
    assert checksums(killed) == checksums(undisturbed) and len(checksums(killed)) == 10
    assert before == {name: modified(killed)[name] for name in before}
