"""ColorShapeDigit on disk: memory-mappable shards with a manifest, written so that a kill loses one shard at most."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from repsim_utils import RepsimError, files
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
MANIFEST = "manifest.json"
SHARD_SIZE = 20_000  # images: 47 MB at 28 pixels


class DamagedDataError(RepsimError):
    """Data on disk are not what their manifest says."""


def write_color_shape_digit(
    folder: Path,
    n_images: dict[str, int],
    *,
    seed: int = 0,
    size: int = 28,
    difficulty: float = 0.5,
    shard_size: int = SHARD_SIZE,
    progress: bool = True,
) -> dict[str, Any]:
    """Write splits of ColorShapeDigit as shards, or finish what an earlier call began.

    ``{split}-{k:05d}.npy`` holds uint8 images (n, 3, size, size), ``{split}-{k:05d}-ids.npy`` uint8 ids (n, 3) of
    shape, digit and color. A shard counts only once it stands in the manifest with its checksum; shards that do are
    verified and kept.

    Parameters
    ----------
    folder : Path
    n_images : dict
        Images of each split, such as ``{"train": 800_000, "test": 40_000}``.
    seed, size, difficulty
        As in `render`.
    shard_size : int
        Images in a shard.
    progress : bool

    Returns
    -------
    dict
        The manifest.

    Raises
    ------
    ValueError
        If the folder holds another data set.
    OSError
        If the folder is a file, or the disk is full or not writable; the same call goes on later.
    """
    header = {"dataset": "color-shape-digit", "version": VERSION, "seed": seed, "size": size}
    header |= {"difficulty": difficulty, "shard_size": shard_size, "n_images": n_images}
    header |= {"shapes": SHAPES, "digits": DIGITS, "colors": COLORS}
    header = json.loads(files.canonical_json(header))
    manifest = _begin(folder, header)
    done: dict[str, str] = manifest["sha256"]
    plan = [(split, k) for split, n in n_images.items() for k in range(-(-n // shard_size))]
    with tqdm(total=sum(n_images.values()), unit="image", unit_scale=True, disable=not progress) as bar:
        for split, k in plan:
            low, high = k * shard_size, min((k + 1) * shard_size, n_images[split])
            names = _names(split, k)
            if not all(_is_whole(folder / name, done.get(name)) for name in names):
                if any(name in done for name in names):
                    log.warning("%s was missing or damaged and is written again", folder / names[0])
                ids = combination_ids(torch.arange(low, high))
                start = split_start(split) + low
                images = render(*ids, seed=seed, size=size, difficulty=difficulty, start=start)
                for name, array in zip(names, (images, torch.stack(ids, 1).to(torch.uint8)), strict=True):
                    files.write(folder / name, _npy(array.numpy()))
                    done[name] = files.sha256(folder / name)
                files.write(folder / MANIFEST, files.canonical_json(manifest))
            bar.update(high - low)
    return manifest


def verify(folder: Path) -> None:
    """Hold every shard against its checksum.

    Raises
    ------
    DamagedDataError
        Naming the first shard that is missing or altered.
    """
    manifest = _read_manifest(folder)
    for split, n in manifest["n_images"].items():
        for k in range(-(-n // manifest["shard_size"])):
            for name in _names(split, k):
                if not _is_whole(folder / name, manifest["sha256"].get(name)):
                    raise DamagedDataError(f"{folder / name} is missing or damaged; write the data again to mend it")


class ShardedImages:
    """One split on disk, read through memory maps.

    Parameters
    ----------
    folder : Path
    split : str

    Raises
    ------
    DamagedDataError
        If the folder holds no complete data set.
    ValueError
        If it has no such split.
    """

    def __init__(self, folder: Path, split: str) -> None:
        manifest = _read_manifest(folder)
        if split not in manifest["n_images"]:
            raise ValueError(f"split must be one of {sorted(manifest['n_images'])}, got {split!r}")
        self._n, self._shard_size = manifest["n_images"][split], manifest["shard_size"]
        names = [_names(split, k) for k in range(-(-self._n // self._shard_size))]
        for name in (name for pair in names for name in pair):
            if name not in manifest["sha256"] or not (folder / name).is_file():
                raise DamagedDataError(f"{folder / name} is missing; write the data again to finish them")
        self._images = [np.load(folder / images, mmap_mode="r") for images, _ in names]
        self._ids = [np.load(folder / ids, mmap_mode="r") for _, ids in names]

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: slice | NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Images (m, 3, size, size) and ids (m, 3) of a slice or an array of indices."""
        wanted = np.arange(self._n)[index].reshape(-1)
        images = np.empty((len(wanted), *self._images[0].shape[1:]), np.uint8)
        ids = np.empty((len(wanted), 3), np.uint8)
        shard, row = np.divmod(wanted, self._shard_size)
        for k in np.unique(shard):
            here = shard == k
            images[here], ids[here] = self._images[k][row[here]], self._ids[k][row[here]]
        return images, ids


def default_sizes(n_train: int = 1000) -> dict[str, int]:
    """Images of each split for `n_train` training images a combination: 1,000 give the 800,000 of the paper."""
    held_out = max(n_train // 20, 1)
    return {
        "train": n_train * N_COMBINATIONS,
        "validation": held_out * N_COMBINATIONS,
        "test": held_out * N_COMBINATIONS,
    }


def _names(split: str, k: int) -> tuple[str, str]:
    return f"{split}-{k:05d}.npy", f"{split}-{k:05d}-ids.npy"


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _is_whole(path: Path, checksum: str | None) -> bool:
    return checksum is not None and path.is_file() and files.sha256(path) == checksum


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if not all(isinstance(manifest[name], dict) for name in ("n_images", "sha256")) or not manifest["shard_size"]:
            raise ValueError
        return manifest
    except FileNotFoundError:
        raise DamagedDataError(f"{folder} has no {MANIFEST}: no data were written there") from None
    except (ValueError, KeyError, TypeError):
        raise DamagedDataError(f"{folder / MANIFEST} is damaged; remove it and write the data again") from None


def _begin(folder: Path, header: dict[str, Any]) -> dict[str, Any]:
    """The manifest of what is there already, or an empty one."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; name a folder")
    files.remove_leftovers(folder)
    if not (folder / MANIFEST).exists():
        return header | {"sha256": {}}
    manifest = _read_manifest(folder)
    differing = [key for key in header if manifest.get(key) != header[key]]
    if differing:
        there = {key: manifest.get(key) for key in differing}
        wanted = {key: header[key] for key in differing}
        raise ValueError(f"{folder} holds another data set: it has {there}, wanted was {wanted}; choose another folder")
    return manifest
