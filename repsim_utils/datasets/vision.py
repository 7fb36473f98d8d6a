"""Real images: data sets known by name, and folders of one's own.

Images are parsed once and kept as ``.npy`` files beside a manifest of their checksums; later they are read through a
memory map. Nothing here is pickled, and an archive is opened only once its md5 was checked.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from repsim_utils import files
from repsim_utils.datasets import cache
from repsim_utils.datasets.cache import DataError
from repsim_utils.datasets.folders import SPLITS, contents, in_folder, listing

VERSION = 1  # raised when the same source gives other pixels
FOLDER_SIZE = 32  # pixels, where none is asked for


class About(NamedTuple):
    """What is known of a data set without having it; `size` in pixels."""

    n_train: int
    n_test: int
    n_classes: int
    size: int


ABOUT = {
    "fashion_mnist": About(60_000, 10_000, 10, 28),
    "cifar10": About(50_000, 10_000, 10, 32),
    "cifar100": About(50_000, 10_000, 100, 32),
    "mnist": About(60_000, 10_000, 10, 28),
    "svhn": About(73_257, 26_032, 10, 32),
    "tinyimagenet": About(100_000, 10_000, 200, 64),
    "digits": About(1_000, 797, 10, 8),
}
NAMES = tuple(ABOUT)
DIGITS_SHA256 = "0b7e9c3202d7bcd255d6a19a238d3743bf5e320ba74812a6679958a017c55382"  # uint8 pixels, then int64 labels


@dataclass(frozen=True, eq=False)
class Images:
    """Images of one split.

    Attributes
    ----------
    images : Tensor
        uint8 (n, 3, h, w). Where it comes from disk it is a read-only memory map: never write to it in place.
    labels : Tensor
        int64 (n,), ids into `classes`.
    classes : tuple of str
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]


def load(source: str | Path, split: str, *, size: int | None = None, root: str | Path | None = None) -> Images:
    """Read one split of a data set; the first time it is downloaded if need be, and parsed.

    A folder holds either one folder of images for each class, of which a fifth of every class (chosen by a fixed
    shuffle of the sorted names) is "test"; or ``train/<class>/`` and ``test/<class>/`` (else ``val``, else
    ``validation``; also ``Training`` and ``valid``, say). Images in folders within a class folder that has images of
    its own are of that class. What is left out (other kinds of files, images beside the class folders) is counted in a
    warning. Transparent pixels become white, grey images get three equal channels, an animation counts as its first
    picture. The test split of TinyImageNet is its labelled validation split; that of scikit-learn's digits is their
    last 797 rows.

    Parameters
    ----------
    source : str or Path
        One of `NAMES`, or a folder of images.
    split : {"train", "test"}
    size : int, optional
        Height and width in pixels (bilinear with antialiasing, of a folder's images the middle square); by default
        that of the data set, for folders 32.
    root : path, optional
        Where archives (``<root>/<name>/``) and parsed images (``<root>/<name>-<size>/``) are kept: by default
        `repsim_utils.datasets.cache.default_root`.

    Returns
    -------
    Images

    Raises
    ------
    ValueError
        If the split or size is none.
    DataError
        If a download fails, a file has another checksum, a folder is not laid out as above, an image is broken, or
        `root` cannot be written.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    size = _size(source, size)
    if source == "digits":
        return _digits(split, size)
    root = Path(cache.default_root() if root is None else root)
    name = str(source) if source in NAMES else f"folder-{fingerprint(source, size)}"
    folder = root / f"{name}-{size}"

    def make(made: Path) -> dict[str, Any]:
        return _make(source, name, root / name if source in NAMES else Path(source).expanduser(), made, size)

    return cache.kept(folder, lambda: _read(folder, split, size), make, lock=name)


def contact_sheet(images: Images, n: int) -> Image.Image:
    """The first n images of every class, one row a class, at twice their size."""
    rows = [images.images[torch.nonzero(images.labels == c)[:n, 0]] for c in range(len(images.classes))]
    height, width = images.images.shape[2:]
    sheet = torch.full((3, height * len(rows), width * n), 255, dtype=torch.uint8)
    for i, row in enumerate(rows):
        sheet[:, i * height : (i + 1) * height, : width * len(row)] = row.permute(1, 2, 0, 3).flatten(2)
    picture = Image.fromarray(sheet.permute(1, 2, 0).numpy())
    return picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST)


def fingerprint(source: str | Path, size: int | None = None) -> str:
    """What the pixels of `load` come from: the same text for the same images, such as ``"cifar100@eb9058c3-32"``.

    For a folder, 16 hexadecimal digits of the SHA-256 of the names and contents of its images, and the size. Contents
    are read again only if a name, a length or a time of modification has changed.

    Raises
    ------
    DataError
        If a folder is not laid out as `load` says.
    """
    size = _size(source, size)
    if source in NAMES:
        sums = [DIGITS_SHA256] if source == "digits" else _sums(str(source))
        digest = sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()
        return f"{source}@{digest[:8]}-{size}"
    folder = Path(source).expanduser().absolute()
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; data sets known by name are {', '.join(NAMES)}")
    paths = sorted(path for listed in listing(folder)[1].values() for path, _ in listed)
    return files.digest([contents(folder, paths), size])[:16]


def _sums(name: str) -> list[str]:
    from repsim_utils.datasets.archives import archives_of

    return [archive.md5 for archive in archives_of(name)]


def _size(source: str | Path, size: int | None) -> int:
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    return size or (ABOUT[str(source)].size if source in NAMES else FOLDER_SIZE)


# What is kept on disk


def _read(folder: Path, split: str, size: int) -> Images:
    """A split as it was kept, held against the manifest; raises one of `files.DAMAGE`."""
    names = f"{split}-images.npy", f"{split}-labels.npy"
    manifest = files.manifest_of(folder, VERSION, *names)
    images = np.load(folder / names[0], mmap_mode="r", allow_pickle=False)
    labels = np.load(folder / names[1], allow_pickle=False)
    if images.shape != (len(labels), 3, size, size) or (images.dtype, labels.dtype) != (np.uint8, np.int64):
        raise ValueError(f"{names[0]} holds {images.dtype} {images.shape}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writ", UserWarning)
        tensor = torch.from_numpy(images)
    return Images(tensor, torch.from_numpy(labels), tuple(manifest["classes"]))


def _make(source: str | Path, name: str, files_in: Path, folder: Path, size: int) -> dict[str, Any]:
    """Parse both splits into a folder, and unpack beside it; what the manifest says of them."""
    from repsim_utils.datasets.archives import known_parts

    known = source in NAMES
    classes, parts = known_parts(name, files_in, folder.parent) if known else in_folder(files_in)
    for split, (images, labels) in parts.items():
        bar = tqdm(images, f"{files_in.name} {split}", len(labels), unit="image", delay=2)
        rows, shape = (_pixels(image, size) for image in bar), (len(labels), 3, size, size)
        _write_npy(folder / f"{split}-images.npy", rows, shape)
        _write_npy(folder / f"{split}-labels.npy", labels, labels.shape)
    if not known and name != f"folder-{fingerprint(source, size)}":
        raise DataError(f"{files_in} changed while it was read; load it again")
    return {"version": VERSION, "classes": classes}


def _write_npy(path: Path, rows: Iterable[NDArray[Any]], shape: tuple[int, ...]) -> None:
    """Write an array row by row, so that it never needs to fit into memory: int64 labels or uint8 images."""
    descr = np.lib.format.dtype_to_descr(np.dtype(np.int64 if len(shape) == 1 else np.uint8))
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
        for row in rows:
            file.write(row.tobytes())
        file.flush()
        os.fsync(file.fileno())


def _digits(split: str, size: int) -> Images:
    """scikit-learn's digits: the first 1,000 rows are "train", the last 797 "test"."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError("digits come with scikit-learn: pip install scikit-learn") from None
    pixels, labels = load_digits(return_X_y=True)
    rows = slice(ABOUT["digits"].n_train) if split == "train" else slice(ABOUT["digits"].n_train, None)
    grey = np.rint(pixels[rows].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    images = np.stack([_pixels(Image.fromarray(image), size) for image in grey])
    return Images(torch.from_numpy(images), torch.from_numpy(labels[rows].astype(np.int64)), tuple("0123456789"))


def _pixels(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """The middle square of an image: uint8 (3, size, size)."""
    rgb = image.convert("RGB")
    if rgb.size != (size, size):
        rgb = ImageOps.fit(rgb, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(rgb).transpose(2, 0, 1)
