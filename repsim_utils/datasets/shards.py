"""ColorShapeDigit on disk: memory-mappable shards with a manifest, written so that a kill loses one shard at most."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from repsim_utils import files
from repsim_utils.datasets.cache import DataError
from repsim_utils.datasets.color_shape_digit import (
    COLORS,
    DIGITS,
    N_COMBINATIONS,
    SHAPES,
    VERSION,
    combination_ids,
    render,
    split_start,
)

log = logging.getLogger(__name__)
SHARD_SIZE = 20_000  # images: 47 MB at 28 pixels


def write(folder: Path, n_train: int = 1000, *, seed: int = 0, size: int = 28, difficulty: float = 0.5) -> None:
    """Write ColorShapeDigit as shards, or finish what an earlier call began.

    ``{split}-{k:05d}.npy`` holds uint8 images (n, 3, size, size), ``{split}-{k:05d}-ids.npy`` uint8 ids (n, 3) of
    shape, digit and color; `numpy.load` reads them, with ``mmap_mode="r"`` as memory maps. A shard counts only once it
    stands in the manifest with its checksum; shards that do are verified and kept.

    Parameters
    ----------
    folder : Path
    n_train : int
        Training images of each combination; for validation and test there are a twentieth each, and at least one.
    seed, size, difficulty
        As in `render`.

    Raises
    ------
    ValueError
        If the folder holds another data set.
    DataError
        If its manifest is damaged.
    OSError
        If the folder is a file, or the disk is full or not writable; the same call goes on later.
    """
    held_out = max(n_train // 20, 1) * N_COMBINATIONS
    n_images = {"train": n_train * N_COMBINATIONS, "validation": held_out, "test": held_out}
    header = {"dataset": "color-shape-digit", "version": VERSION, "seed": seed, "size": size}
    header |= {"difficulty": difficulty, "shard_size": SHARD_SIZE, "n_images": n_images}
    header = json.loads(files.canonical_json(header | {"shapes": SHAPES, "digits": DIGITS, "colors": COLORS}))
    folder.mkdir(parents=True, exist_ok=True)
    files.remove_leftovers(folder)
    manifest = _manifest(folder) if (folder / files.MANIFEST).exists() else header | {"sha256": {}}
    if differing := [key for key in header if manifest.get(key) != header[key]]:
        there, wanted = ({key: about.get(key) for key in differing} for about in (manifest, header))
        raise ValueError(f"{folder} holds another data set: it has {there}, wanted was {wanted}; choose another folder")
    done = manifest["sha256"]
    with tqdm(total=sum(n_images.values()), unit="image", unit_scale=True) as bar:
        for split, low, high, names in _shards(manifest):
            if damage := [fault for name in names if (fault := _fault(folder / name, done))]:
                if any(name in done for name in names):
                    log.warning("%s; it is written again", damage[0])
                ids, start = combination_ids(torch.arange(low, high)), split_start(split) + low
                images = render(*ids, seed=seed, size=size, difficulty=difficulty, start=start)
                for name, array in zip(names, (images, torch.stack(ids, 1).to(torch.uint8)), strict=True):
                    np.save(buffer := io.BytesIO(), array.numpy(), allow_pickle=False)
                    files.write(folder / name, buffer.getvalue())
                    done[name] = files.sha256(folder / name)
                files.write(folder / files.MANIFEST, files.canonical_json(manifest))
            bar.update(high - low)


def verify(folder: Path) -> None:
    """Hold every shard against its checksum.

    Raises
    ------
    DataError
        Naming the first shard that is missing or altered.
    """
    manifest = _manifest(folder)
    for *_, names in _shards(manifest):
        for name in names:
            if fault := _fault(folder / name, manifest["sha256"]):
                raise DataError(f"{fault}; write the data again to mend it")


def _shards(manifest: dict[str, Any]) -> Iterator[tuple[str, int, int, tuple[str, str]]]:
    """Of each shard its split, the range of its images, and the names of its two files."""
    step = manifest["shard_size"]
    for split, n in manifest["n_images"].items():
        for k, low in enumerate(range(0, n, step)):
            yield split, low, min(low + step, n), (f"{split}-{k:05d}.npy", f"{split}-{k:05d}-ids.npy")


def _fault(path: Path, sums: dict[str, str]) -> str:
    """What is wrong with a file, if anything."""
    try:
        files.verify(path, sums[path.name])
    except files.DAMAGE:
        return f"{path} is missing or damaged"
    return ""


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((folder / files.MANIFEST).read_bytes())
        _ = list(_shards(manifest)), manifest["sha256"].keys()  # raises where either is none
        return manifest
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{folder} has no {files.MANIFEST}: no data were written there") from None
    except files.DAMAGE:
        raise DataError(f"{folder / files.MANIFEST} is damaged; remove it and write the data again") from None
