"""Data sets known by name: their published files, downloaded or placed by hand, and how they are parsed."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import socket
import zipfile
import zlib
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100, MNIST, SVHN, FashionMNIST
from torchvision.datasets.utils import calculate_md5, download_url

from repsim_utils.datasets.cache import DataError
from repsim_utils.datasets.folders import SPLITS, Part, decoded

_TORCHVISION: dict[str, Any] = {
    "fashion_mnist": FashionMNIST,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "mnist": MNIST,
    "svhn": SVHN,
}
TIMEOUT = 20.0  # seconds for which a server may stay silent


class Archive(NamedTuple):
    """A published file, its checksum, and where it can be had."""

    file: str
    md5: str
    urls: tuple[str, ...]


class Package(NamedTuple):
    """A package of Debian and Ubuntu with the published files of a data set: its name, and where it puts them.

    It has compressed them once more, so `md5` is of each file unpacked.
    """

    name: str
    folder: Path
    md5: dict[str, str]


FASHION_MNIST = Package(
    "dataset-fashion-mnist",
    Path("/usr/share/datasets/fashion-mnist"),
    {
        "train-images-idx3-ubyte.gz": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte.gz": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte.gz": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte.gz": "15d484375f8d13e6eb1aabb0c3f46965",
    },
)
TINY_IMAGENET = Archive(
    "tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de", ("http://cs231n.stanford.edu/tiny-imagenet-200.zip",)
)


def archives_of(name: str) -> list[Archive]:
    """Published files of a data set, with the checksums that torchvision knows."""
    if name in ("mnist", "fashion_mnist"):
        kind = _TORCHVISION[name]
        return [Archive(file, md5, tuple(mirror + file for mirror in kind.mirrors)) for file, md5 in kind.resources]
    if name == "svhn":
        return [Archive(file, md5, (url,)) for url, file, md5 in (SVHN.split_list[split] for split in SPLITS)]
    if name == "tinyimagenet":
        return [TINY_IMAGENET]
    cifar = _TORCHVISION[name]
    return [Archive(cifar.filename, cifar.tgz_md5, (cifar.url,))]


def known_parts(name: str, folder: Path, work: Path) -> tuple[tuple[str, ...], dict[str, Part]]:
    """Class names and splits of a data set whose archives are in `folder`, in a package, or are downloaded."""
    folder.mkdir(exist_ok=True)
    package = FASHION_MNIST if name == "fashion_mnist" else None
    found = {archive: _found(archive, folder, package) for archive in archives_of(name)}
    missing = [archive for archive, path in found.items() if path is None]
    for archive in missing:
        if tried := _download(archive, folder, work):
            wanted = ", ".join(f"{archive.file} (md5 {archive.md5})" for archive in missing)
            installed = f"Install a package: apt-get install {package.name}. Or place" if package else "Place"
            raise DataError(
                f"{name} could not be downloaded from {tried}. {installed} by hand in the folder {folder}: {wanted}. "
                "ColorShapeDigit (color_shape_digit) and digits need no download."
            )
    paths = [path or folder / archive.file for archive, path in found.items()]
    return _tiny_imagenet(paths[0]) if name == "tinyimagenet" else _torchvision(name, paths, work)


def _found(archive: Archive, folder: Path, package: Package | None) -> Path | None:
    """A published file, held against its checksum: in `folder`, or else where a package has put it."""
    path = folder / archive.file
    if path.exists():
        if (md5 := calculate_md5(path)) != archive.md5:
            raise DataError(
                f"{path} has md5 {md5}, expected was {archive.md5}: "
                "remove it to have it downloaded, or place the right file there"
            )
        return path
    if package is None or not (path := package.folder / archive.file).exists():
        return None
    try:
        with gzip.open(path) as file:
            md5 = hashlib.file_digest(file, "md5").hexdigest()  # type: ignore[arg-type]
    except (OSError, EOFError, zlib.error) as error:
        md5 = str(error)
    if md5 != package.md5[archive.file]:
        raise DataError(f"{path} is damaged ({md5}): apt-get install --reinstall {package.name}")
    return path


def _download(archive: Archive, folder: Path, work: Path) -> str:
    """Fetch a file by way of `work`, so that it is whole once it is in `folder`; else say what was tried."""
    tried, before = [], socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # torchvision sets none
    try:
        for url in archive.urls:
            try:
                download_url(url, work, archive.file, archive.md5)
            except (OSError, RuntimeError, HTTPException) as error:
                tried.append(f"{url} ({error})")
            else:
                os.replace(work / archive.file, folder / archive.file)
                return ""
    finally:
        socket.setdefaulttimeout(before)
    return " or ".join(tried)


def _torchvision(name: str, paths: list[Path], work: Path) -> tuple[tuple[str, ...], dict[str, Part]]:
    """Splits as torchvision parses them.

    It finds the archives in `work`, so it downloads nothing ("download" makes it extract), checks each md5 once more,
    and unpickles the batches of CIFAR only after it has checked theirs. Of MNIST and Fashion-MNIST it finds the files
    unpacked. What is extracted goes away with `work`.
    """
    kind, parts, classes = _TORCHVISION[name], {}, tuple("0123456789")
    raw = work / kind.__name__ / "raw" if issubclass(kind, MNIST) else work
    raw.mkdir(parents=True, exist_ok=True)
    for path in paths:
        if issubclass(kind, MNIST):
            with gzip.open(path) as packed, open(raw / path.stem, "wb") as file:
                shutil.copyfileobj(packed, file)
        else:
            (raw / path.name).symlink_to(path.absolute())
    for split in SPLITS:
        try:
            data = kind(work, split if name == "svhn" else split == "train", download=True)
        except RuntimeError as error:
            raise DataError(f"{name} in {paths[0].parent} cannot be read: {error}") from None
        labels = data.labels if name == "svhn" else data.targets
        parts[split] = Part((image for image, _ in data), np.asarray(labels, np.int64))
        classes = classes if name in ("mnist", "svhn") else tuple(data.classes)
    return classes, parts


def _tiny_imagenet(path: Path) -> tuple[tuple[str, ...], dict[str, Part]]:
    """Splits of TinyImageNet, read from the archive without unpacking it; classes in the order of wnids.txt."""
    top = "tiny-imagenet-200/"
    with zipfile.ZipFile(path) as archive:
        members = set(archive.namelist())
        wnids = archive.read(f"{top}wnids.txt").decode().split()
        words = archive.read(f"{top}words.txt").decode() if f"{top}words.txt" in members else ""
        lines = archive.read(f"{top}val/val_annotations.txt").decode().splitlines()
    names = dict(line.split("\t", 1) for line in words.splitlines())
    ids = {wnid: k for k, wnid in enumerate(wnids)}
    train = sorted(name for name in members if name.startswith(f"{top}train/") and name.endswith(".JPEG"))
    test = {f"{top}val/images/{file}": wnid for file, wnid, *_ in (line.split("\t") for line in lines)}
    parts = {
        "train": Part(_zipped(path, train), np.array([ids[name.split("/")[2]] for name in train])),
        "test": Part(_zipped(path, list(test)), np.array([ids[wnid] for wnid in test.values()])),
    }
    return tuple(names.get(wnid, wnid) for wnid in wnids), parts


def _zipped(path: Path, members: list[str]) -> Iterator[Image.Image]:
    with zipfile.ZipFile(path) as archive:
        for member in members:
            yield decoded(io.BytesIO(archive.read(member)), f"{path}/{member}")
