"""ColorShapeDigit on disk: memory-mappable shards with a manifest, written so that a kill loses one shard at most."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from repsim_utils import files
from repsim_utils.datasets import color_shape_digit as drawing
from repsim_utils.datasets.cache import DataError

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
        As in `color_shape_digit.render`.

    Raises
    ------
    ValueError
        If the folder holds another data set.
    DataError
        If its manifest is damaged.
    OSError
        If the folder is a file, or the disk is full or not writable; the same call goes on later.
    """
    held_out = max(n_train // 20, 1) * drawing.N_COMBINATIONS
    n_images = {"train": n_train * drawing.N_COMBINATIONS, "validation": held_out, "test": held_out}
    header: dict[str, Any] = {"dataset": "color-shape-digit", "version": drawing.VERSION, "seed": seed, "size": size}
    header |= {"difficulty": difficulty, "shard_size": SHARD_SIZE, "n_images": n_images}
    header |= {"shapes": [*drawing.SHAPES], "digits": [*drawing.DIGITS], "colors": [*drawing.COLORS]}
    folder.mkdir(parents=True, exist_ok=True)
    files.remove_leftovers(folder)
    if not (folder / files.MANIFEST).exists():
        files.write(folder / files.MANIFEST, files.canonical_json(header | {"sha256": {}}))
    manifest, shards = _read(folder)
    if differing := [key for key in header if manifest.get(key) != header[key]]:
        there, wanted = ({key: about.get(key) for key in differing} for about in (manifest, header))
        raise ValueError(f"{folder} holds another data set: it has {there}, wanted was {wanted}; choose another folder")
    done = manifest["sha256"]
    with tqdm(total=sum(n_images.values()), unit="image", unit_scale=True) as bar:
        for split, low, high, names in shards:
            if fault := _fault(folder, names, done):
                if any(name in done for name in names):
                    log.warning("%s; it is written again", fault)
                ids, start = drawing.combination_ids(torch.arange(low, high)), drawing.split_start(split) + low
                images = drawing.render(*ids, seed=seed, size=size, difficulty=difficulty, start=start)
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
    manifest, shards = _read(folder)
    for *_, names in shards:
        if fault := _fault(folder, names, manifest["sha256"]):
            raise DataError(f"{fault}; write the data again to mend it")


def _read(folder: Path) -> tuple[dict[str, Any], list[tuple[str, int, int, tuple[str, str]]]]:
    """The manifest, and of each shard its split, the range of its images and the names of its two files."""
    try:
        manifest: dict[str, Any] = json.loads((folder / files.MANIFEST).read_bytes())
        step, manifest["sha256"] = manifest["shard_size"], dict(manifest["sha256"])
        return manifest, [
            (split, low, min(low + step, n), (f"{split}-{k:05d}.npy", f"{split}-{k:05d}-ids.npy"))
            for split, n in manifest["n_images"].items()
            for k, low in enumerate(range(0, n, step))
        ]
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{folder} has no {files.MANIFEST}: no data were written there") from None
    except files.DAMAGE:
        raise DataError(f"{folder / files.MANIFEST} is damaged; remove it and write the data again") from None


def _fault(folder: Path, names: tuple[str, str], sums: dict[str, str]) -> str:
    """What is wrong with a shard, if anything."""
    for name in names:
        try:
            files.verify(folder / name, sums[name])
        except files.DAMAGE:
            return f"{folder / name} is missing or damaged"
    return ""
