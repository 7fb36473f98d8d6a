"""Data that are fetched or parsed once and kept: a folder of files with a manifest, whole or not there."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from repsim_utils import RepsimError, files

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
DAMAGE = (OSError, ValueError, KeyError, TypeError)  # what reading a damaged cache may raise
Kept = TypeVar("Kept")
_verified: set[tuple[Any, ...]] = set()  # files whose checksum this process has computed


class DataError(RepsimError):
    """Data cannot be had; the message says why, and what to do."""


def default_root() -> Path:
    """``$REPSIM_DATA``, or ``repsim/data`` in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("REPSIM_DATA") or Path(cache) / "repsim" / "data")


def kept(folder: Path, read: Callable[[], Kept], make: Callable[[], None], *, lock: str | None = None) -> Kept:
    """What `read` finds in a folder; if it raises one of `DAMAGE`, `make` makes the folder first.

    One process at a time makes what has the name `lock` (by default that of the folder); the others wait, then read
    what it has made.

    Raises
    ------
    DataError
        If the folder's parent cannot be used.
    """
    with suppress(*DAMAGE):  # what is there and whole needs no lock, and no right to write
        return read()
    root = folder.parent
    try:
        with _lock(root, lock or folder.name):
            if folder.is_dir():
                try:
                    return read()
                except DAMAGE as error:
                    log.warning("%s is damaged or unfinished and is made again (%s)", folder, error)
            make()
            return read()
    except OSError as error:
        raise DataError(f"the data folder {root} cannot be used ({error}): name another by $REPSIM_DATA") from None


@contextmanager
def _lock(root: Path, name: str) -> Iterator[None]:
    root.mkdir(parents=True, exist_ok=True)
    with open(root / f".{name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, also by a kill
        yield


@contextmanager
def making(folder: Path) -> Iterator[Path]:
    """A temporary folder in which to make what `seal` then puts in the place of `folder`; removed in any case."""
    files.remove_leftovers(folder.parent)
    with tempfile.TemporaryDirectory(prefix=files.temporary_prefix(folder), suffix=".tmp", dir=folder.parent) as work:
        yield Path(work)


def seal(made: Path, folder: Path, **about: Any) -> None:
    """Write a manifest of the files in `made`, with what else is to be known of them, and rename it to `folder`."""
    sums = {path.name: {"n_bytes": path.stat().st_size, "sha256": files.sha256(path)} for path in made.iterdir()}
    files.write(made / MANIFEST, files.canonical_json(about | {"files": sums}))
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(made, folder)
    files.sync_folder(folder.parent)


def manifest_of(folder: Path, version: int | list[int], *names: str) -> dict[str, Any]:
    """The manifest of a folder, after some of its files were held against it; raises one of `DAMAGE`."""
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
    if manifest["version"] != version:
        raise ValueError(f"it is of version {manifest['version']}")
    for name in names:
        _verify(folder / name, **manifest["files"][name])
    return manifest


def _verify(path: Path, n_bytes: int, sha256: str) -> None:
    """Hold a file against its length each time, and against its checksum once in each process."""
    stat = path.stat()
    if stat.st_size != n_bytes:
        raise ValueError(f"{path.name} has {stat.st_size} bytes instead of {n_bytes}")
    stamp = (path, stat.st_ino, stat.st_mtime_ns, sha256)
    if stamp not in _verified:
        if files.sha256(path) != sha256:
            raise ValueError(f"{path.name} does not match its checksum")
        _verified.add(stamp)
