"""Images in files: a folder with one folder of images for each class, and the decoding of one image."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from repsim_utils import files
from repsim_utils.datasets.cache import DataError

SPLITS = ("train", "test")
HELD_OUT = ("test", "val", "validation")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")


class Part(NamedTuple):
    """One split of a source, its images opened as they are asked for."""

    images: Iterable[Image.Image]
    labels: NDArray[np.int64]


@contextmanager
def readable() -> Iterator[None]:
    """An error that names a file becomes a DataError that says so."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror})") from None


@readable()
def listing(folder: Path) -> tuple[tuple[str, ...], dict[str, list[tuple[Path, int]]]]:
    """Class names of a folder, and for each split its files and their classes."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    if (folder / "train").is_dir() and _folders(folder / "train"):
        held_out = next((folder / name for name in HELD_OUT if (folder / name).is_dir()), None)
        if held_out is None:
            raise DataError(f"{folder} has a folder train, but none of {', '.join(HELD_OUT)}")
        splits = {"train": _by_class(folder / "train", 1), "test": _by_class(held_out, 1)}
    else:
        splits = {"train": _by_class(folder, 2), "test": {}}
        for name, paths in splits["train"].items():
            order = np.random.default_rng(0).permutation(len(paths))
            n_test = max(1, round(len(paths) / 5))
            splits["test"][name] = [paths[i] for i in sorted(order[:n_test])]
            splits["train"][name] = [paths[i] for i in sorted(order[n_test:])]
    classes = tuple(splits["train"])
    if len(classes) < 2:
        raise DataError(f"{folder} has only one class, {classes[0]}: at least two are needed")
    if unknown := sorted(set(splits["test"]) - set(classes)):
        raise DataError(f"{folder} has classes to test that are not in train: {', '.join(unknown)}")
    ids = {name: k for k, name in enumerate(classes)}
    return classes, {
        split: [(path, ids[name]) for name, paths in found.items() for path in paths] for split, found in splits.items()
    }


def _by_class(folder: Path, at_least: int) -> dict[str, list[Path]]:
    """Images of each class folder, sorted by name."""
    found = {}
    for path in _folders(folder):
        images = [p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.name[0] != "." and p.is_file()]
        if len(images) < at_least:
            raise DataError(f"class folder {path} has {len(images)} images ({', '.join(SUFFIXES)}), needs {at_least}")
        found[path.name] = sorted(images)
    if not found:
        raise DataError(f"{folder} has no class folders: put the images of each class into a folder of its own")
    return found


def _folders(folder: Path) -> list[Path]:
    """Folders in a folder, sorted by name, without hidden ones and links that lead back up."""
    found = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    return [path for path in found if not folder.resolve().is_relative_to(path.resolve())]


@readable()
def contents(root: Path, paths: Iterable[Path]) -> list[tuple[str, str]]:
    """Name and checksum of each file, made again only if a name, a length or a time of modification has changed."""
    stamps = ((path, path.stat()) for path in paths)
    return _contents(root, tuple((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stamps))


@lru_cache(maxsize=40)
def _contents(root: Path, stamps: tuple[tuple[str, int, int], ...]) -> list[tuple[str, str]]:
    return [(str(Path(name).relative_to(root)), files.sha256(Path(name))) for name, _, _ in stamps]


def in_folder(folder: Path) -> tuple[tuple[str, ...], dict[str, Part]]:
    """Class names and splits of a folder."""
    classes, by_split = listing(folder)
    return classes, {
        split: Part((decoded(path, str(path)) for path, _ in listed), np.array([label for _, label in listed]))
        for split, listed in by_split.items()
    }


def decoded(file: Path | io.BytesIO, name: str) -> Image.Image:
    """An image, upright, with 8 bits and no transparency."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as opened:
                image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):  # grey of 16 bits
            return Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
        if "A" in image.getbands() or "transparency" in image.info:
            image = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image
    except Exception as error:  # broken files raise all sorts
        raise DataError(f"{name} cannot be read as an image ({error})") from None
