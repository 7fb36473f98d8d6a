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
from repsim_utils.datasets.color_shape_digit import ColorShapeDigit
from repsim_utils.datasets.shards import DamagedDataError, ShardedImages, verify

SIZES = {"train": 1600, "test": 800}


def write(folder, n_images=SIZES, **options):
    return shards.write_color_shape_digit(
        folder, n_images, **{"seed": 4, "size": 16, "shard_size": 700, "progress": False} | options
    )


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "data")
    return tmp_path / "data"


def modified(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npy")}


@pytest.mark.parametrize("split", SIZES)
def test_disk_equals_memory(folder, split):
    data = ColorShapeDigit(SIZES[split] // 800, split=split, seed=4, size=16)
    images, ids = ShardedImages(folder, split)[:]
    np.testing.assert_array_equal(images, data.images)
    np.testing.assert_array_equal(ids, torch.stack([data.shape, data.digit, data.color], 1))
    assert images.dtype == ids.dtype == np.uint8 and len(ShardedImages(folder, split)) == len(data)


@pytest.mark.parametrize("index", [slice(690, 710), slice(None, None, -100), np.array([1599, 0, 700, 0]), slice(0, 0)])
def test_any_index_reads_across_shards(folder, index):
    data = ShardedImages(folder, "train")
    images, ids = data[:]
    some, their_ids = data[index]
    np.testing.assert_array_equal(some, images[index])
    np.testing.assert_array_equal(their_ids, ids[index])


def test_files_are_whole_shards_and_a_manifest(folder):
    names = {f"train-0000{k}" for k in range(3)} | {f"test-0000{k}" for k in range(2)}
    expected = {f"{name}{end}.npy" for name in names for end in ("", "-ids")} | {"manifest.json"}
    assert {path.name for path in folder.iterdir()} == expected
    assert set(json.loads((folder / "manifest.json").read_text())["sha256"]) == expected - {"manifest.json"}
    verify(folder)


def test_resuming_keeps_what_is_good_and_mends_the_rest(folder):
    before, sums = modified(folder), json.loads((folder / "manifest.json").read_text())["sha256"]
    damaged, missing = folder / "train-00001.npy", folder / "test-00000-ids.npy"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    missing.unlink()
    assert write(folder)["sha256"] == sums
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


@pytest.mark.parametrize(
    "change",
    [{"seed": 5}, {"size": 17}, {"difficulty": 0.4}, {"shard_size": 701}, {"n_images": {"train": 1600}}],
)
def test_another_data_set_in_the_folder_is_an_error(folder, change):
    before = modified(folder)
    with pytest.raises(ValueError, match=f"holds another data set.*{next(iter(change))}.*choose another folder"):
        write(folder, **change)
    assert modified(folder) == before
    verify(folder)


@pytest.mark.parametrize("name", ["train-00002.npy", "test-00001-ids.npy"])
def test_verify_notices_one_flipped_bit(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(DamagedDataError, match=f"{name} is missing or damaged"):
        verify(folder)


def test_a_missing_shard_is_named(folder):
    (folder / "train-00001-ids.npy").unlink()
    with pytest.raises(DamagedDataError, match=r"train-00001-ids.npy is missing"):
        ShardedImages(folder, "train")
    with pytest.raises(DamagedDataError, match=r"train-00001-ids.npy is missing"):
        verify(folder)
    ShardedImages(folder, "test")


def test_a_truncated_manifest_is_an_error_that_says_what_to_do(folder):
    manifest = folder / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-20])
    for attempt in (verify, write, lambda folder: ShardedImages(folder, "train")):
        with pytest.raises(DamagedDataError, match=r"manifest.json is damaged; remove it and write the data again"):
            attempt(folder)
    manifest.unlink()
    write(folder)
    verify(folder)


def test_reading_what_was_never_written(tmp_path, folder):
    with pytest.raises(DamagedDataError, match="no data were written there"):
        ShardedImages(tmp_path / "nowhere", "train")
    with pytest.raises(ValueError, match=r"split must be one of \['test', 'train'\], got 'validation'"):
        ShardedImages(folder, "validation")


def test_default_sizes_are_those_of_the_paper():
    assert shards.default_sizes()["train"] == 800_000
    assert shards.default_sizes(1) == {"train": 800, "validation": 800, "test": 800}


def test_kill_in_mid_write_then_again_gives_the_same_files(tmp_path):
    def start(folder):
        code = "from repsim_utils.cli import main; main()"
        options = ["data", "color-shape-digit", "--out", str(folder), "--n-train", "60", "--size", "16"]
        return subprocess.Popen([sys.executable, "-c", code, *options], stderr=subprocess.PIPE, stdout=subprocess.PIPE)

    def checksums(folder):
        return json.loads((folder / "manifest.json").read_text())["sha256"]

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
    with pytest.raises(DamagedDataError):
        verify(killed)
    before = {name: when for name, when in modified(killed).items() if name in done}

    for folder in (killed, undisturbed):
        process = start(folder)
        assert process.communicate() and process.returncode == 0
        verify(folder)
    assert checksums(killed) == checksums(undisturbed) and len(checksums(killed)) == 10
    assert before == {name: modified(killed)[name] for name in before}
