"""Images in files: a folder with one folder of images for each class, and the decoding of one image."""

from __future__ import annotations

import io
import logging
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from repsim_utils import files
from repsim_utils.datasets.cache import DataError

log = logging.getLogger(__name__)
SPLITS = ("train", "test")
TRAIN = ("train", "training")
HELD_OUT = ("test", "val", "validation", "testing", "valid", "eval", "evaluation", "dev")
# No format whose files hold programs (EPS), or that others can be taken for (TGA).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".apng", ".jpe", ".jfif", ".mpo", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".avif"),
)
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
IGNORED = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir")


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
    """Class names of a folder, and for each split its files and their classes; a warning says what is left out."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    left: Counter[str] = Counter()
    if (divided := _divided(folder)) is not None:
        splits = {split: _by_class(path, 1, left) for split, path in zip(SPLITS, divided, strict=True)}
        left.update(f"folder {path.name}" for path in _folders(folder) if path not in divided)
        left.update(_kind(path) for path in _files(folder))
    else:
        splits = {"train": _by_class(folder, 2, left), "test": {}}
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
    listed = {split: [(path, ids[name]) for name in found for path in found[name]] for split, found in splits.items()}
    if left:
        _warn(f"{folder}: {sum(map(len, listed.values()))} images are read, and left out are {_counted(left)}")
    return classes, listed


def _counted(left: Counter[str]) -> str:
    return ", ".join(what if what.startswith("folder ") else f"{n} {what}" for what, n in sorted(left.items()))


@lru_cache(maxsize=1000)
def _warn(text: str) -> None:
    """Say something once."""
    log.warning(text)


def _role(path: Path) -> str:
    """The split that the name of a folder speaks of, in one spelling, or nothing."""
    word = re.sub("[ _-]?(set|data|images)$", "", path.name.lower())
    return word if word in (*TRAIN, *HELD_OUT) else ""


def _divided(folder: Path) -> tuple[Path, Path] | None:
    """The folders to train on and held out, in which there is one for each class; None where these are in `folder`."""
    there = sorted(filter(_role, _folders(folder)), key=lambda path: (path.name != _role(path), path.name))
    train, held_out = ([path for word in words for path in there if _role(path) == word] for words in (TRAIN, HELD_OUT))
    deep = [path for path in there if _folders(path)]
    if train and train[0] in deep:
        if not held_out:
            raise DataError(f"{folder} has a folder {train[0].name}, but none of {', '.join(HELD_OUT)}")
        return train[0], held_out[0]
    if deep or (train and held_out):
        names = ", ".join(sorted(path.name for path in deep or there))
        raise DataError(
            f"{folder} has {names}, but no folder train in which there is one for each class beside a folder test: "
            "move or rename them, also where they are classes of these names"
        )
    return None


def pictures(folder: Path) -> list[Path]:
    """All images in a folder and in those within it, sorted by path; a warning says what is left out.

    Raises
    ------
    OSError
        If a folder cannot be read.
    """
    found = list(_walked(folder))
    images = sorted((path for path in found if _is_image(path)), key=lambda path: path.relative_to(folder).as_posix())
    left = Counter(_kind(path) for path in found if not _is_image(path))
    left.update("linked folders" for path in folder.rglob("*") if path.is_symlink() and path.is_dir())
    if left:
        _warn(f"{folder}: {len(images)} images are read, and left out are {_counted(left)}")
    return images


def _by_class(folder: Path, at_least: int, left: Counter[str]) -> dict[str, list[Path]]:
    """Images of each class folder, sorted by name; what is left out is counted in `left`."""
    found = {}
    for path in _folders(folder):
        others: Counter[str] = Counter()
        images = _images(path, others)
        if len(images) < at_least:
            told = f"class folder {path} has {len(images)} images ({', '.join(SUFFIXES)}), needs {at_least}"
            raise DataError(f"{told}; beside them are {_counted(others)}" if others else told)
        left.update(others)
        found[path.name] = sorted(images)
    if not found:
        raise DataError(f"{folder} has no class folders: put the images of each class into a folder of its own")
    left.update("images outside of class folders" if _is_image(path) else _kind(path) for path in _files(folder))
    return found


def _images(folder: Path, left: Counter[str]) -> list[Path]:
    """Images of a class: in its folder and, if there are some, in folders within it."""
    inner = [path for path in _folders(folder) if not path.is_symlink()]
    left.update("linked folders in class folders" for path in _folders(folder) if path.is_symlink())
    files = {path: _is_image(path) for path in [*_files(folder), *(file for each in inner for file in _walked(each))]}
    left.update(_kind(path) for path, image in files.items() if not image)
    own = [path for path, image in files.items() if image and path.parent == folder]
    within = [path for path, image in files.items() if image and path.parent != folder]
    if within and (divided := [path.name for path in _folders(folder) if _role(path)]):
        raise DataError(f"class folder {folder} has a folder {divided[0]}: make it {divided[0]}/{folder.name} instead")
    if within and not own:
        inner_names = ", ".join(sorted({path.relative_to(folder).parts[0] for path in within})[:5])
        raise DataError(
            f"class folder {folder} has 0 images of its own, only in {inner_names}: put the images of each class into "
            "one folder, and only train and test above these"
        )
    return own + within


def _walked(folder: Path) -> Iterator[Path]:
    """Files in a folder, and in those within it."""
    for here, names, _ in os.walk(folder, onerror=_raise):
        names[:] = [name for name in names if not _ignored(name)]
        yield from _files(Path(here))


def _raise(error: OSError) -> None:
    raise error


def _files(folder: Path) -> list[Path]:
    """Files in a folder, without hidden ones and what file managers leave behind; links that lead nowhere, too."""
    return [path for path in folder.iterdir() if not (_ignored(path.name) or path.is_dir())]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _kind(path: Path) -> str:
    if not path.is_file():
        return "links that lead nowhere"
    return f"{path.suffix.lower()} files" if path.suffix else "files without a suffix"


def _ignored(name: str) -> bool:
    return name[0] == "." or name.lower() in IGNORED


def _folders(folder: Path) -> list[Path]:
    """Folders in a folder, sorted by name, without hidden ones and links that lead back up."""
    found = sorted(path for path in folder.iterdir() if path.is_dir() and not _ignored(path.name))
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
    """An image, upright, with 8 bits and no transparency; of an animation, the first picture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=_formats()) as opened:
                deep = _deep(opened)
                image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):
            return _of_deep_grey(np.asarray(image).astype(np.int64), *deep, name)
        if image.mode in ("F", "LAB"):
            raise ValueError(f"its pixels are {'fractions' if image.mode == 'F' else 'in Lab colors'}: save 8-bit RGB")
        if "A" in image.getbands() or "transparency" in image.info:
            image = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image
    except Exception as error:  # broken files raise all sorts
        raise DataError(f"{name} cannot be read as an image ({error})") from None


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Formats that this Pillow knows."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _deep(opened: Image.Image) -> tuple[int, bool]:
    """Bits of a grey pixel, where there are more than 8, and whether 0 is white."""
    if not isinstance(opened, TiffImageFile):
        return 16, False
    about = opened.tag_v2
    signed = about.get(SAMPLE_FORMAT, (1,))[0] != 1
    return 32 if signed else about.get(BITS, (1,))[0], about.get(PHOTOMETRIC) == 0


def _of_deep_grey(values: NDArray[np.int64], bits: int, inverted: bool, name: str) -> Image.Image:
    """Grey of up to 16 bits, as 8 bits."""
    if bits > 16:
        raise ValueError("its pixels have 32 bits or a sign, and no known white: save 8 or 16 bits")
    white = 2**bits - 1
    if 0 < values.max() < 2**12 < white:
        parent = Path(name).parent
        _warn(
            f"{parent}: an image of 16 bits has nothing in the upper four, and becomes nearly black; if its white is "
            "4095, multiply it by 16"
        )
    return Image.fromarray(np.rint((white - values if inverted else values) * (255 / white)).astype(np.uint8))
