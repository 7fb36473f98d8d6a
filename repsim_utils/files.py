"""Files and folders that are whole or not there: the one way in which this package writes what it will read again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Any

import psutil
from filelock import BaseFileLock, FileLock

MANIFEST = "manifest.json"
DAMAGE = (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, KeyError, TypeError, AttributeError)
"""What reading something damaged may raise. Other errors of the system say only that it cannot be read now."""
_verified: set[tuple[Any, ...]] = set()  # files whose checksum this process has computed


def write(path: Path, content: bytes) -> None:
    """Write a file so that a kill or a full disk at any moment leaves the old one, the new one or none, never a part.

    Raises
    ------
    OSError
        If the file cannot be written; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=temporary_prefix(path), suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


@contextmanager
def making(folder: Path, keep: Callable[[], bool] = lambda: False) -> Iterator[Path]:
    """An empty folder, which gets the name `folder` once it is filled; after an exception or a kill, nothing does.

    What has that name by then is replaced, unless `keep` says that it stays. What lies beside the empty folder (in its
    ``parent``) is removed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.parent)
    with _beside(folder) as work:
        made = Path(work) / "made"
        made.mkdir()
        yield made
        os.chmod(made, 0o755)
        try:
            os.rename(made, folder)
        except OSError:  # something is there
            if keep():
                return
            discard(folder)
            os.rename(made, folder)
        _sync_folder(folder.parent)


def discard(path: Path) -> None:
    """Remove a file or folder, of which nobody sees a part meanwhile, unless another process was first."""
    with _beside(path) as work, suppress(FileNotFoundError):
        os.rename(path, Path(work) / path.name)


def _beside(path: Path) -> tempfile.TemporaryDirectory[str]:
    prefix = temporary_prefix(path)
    return tempfile.TemporaryDirectory(prefix=prefix, suffix=".tmp", dir=path.parent, ignore_cleanup_errors=True)


def temporary_prefix(path: Path) -> str:
    """Beginning of a temporary name beside `path`, which tells the machine and the process that it belongs to."""
    return f".{path.name}.{socket.gethostname()}.{os.getpid()}."


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders that processes of this machine left when they were killed."""
    here = f".{socket.gethostname()}."
    for path in folder.glob(f".*{here}*.tmp"):
        owner = path.name.rpartition(here)[2].partition(".")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make renames inside a folder survive a power cut."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(path: Path) -> BaseFileLock:
    """For one process at a time, and released by a kill: ``with lock(path): …``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path)


def sha256(path: Path) -> str:
    """Checksum of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(path: Path, checksum: str, n_bytes: int | None = None) -> None:
    """Hold a file against its length each time, and against its checksum once in each process.

    Raises
    ------
    ValueError, FileNotFoundError
        If it is another one, or none.
    """
    stat = path.stat()
    if n_bytes not in (None, stat.st_size):
        raise ValueError(f"{path.name} has {stat.st_size} bytes instead of {n_bytes}")
    stamp = (path, stat.st_ino, stat.st_size, stat.st_mtime_ns, checksum)
    if stamp not in _verified:
        if sha256(path) != checksum:
            raise ValueError(f"{path.name} does not match its checksum")
        _verified.add(stamp)


def seal(folder: Path, **about: Any) -> None:
    """Write a manifest of the files in a folder, with what else is to be known of them."""
    sums = {path.name: {"n_bytes": path.stat().st_size, "sha256": sha256(path)} for path in folder.iterdir()}
    write(folder / MANIFEST, canonical_json(about | {"files": sums}))


def manifest_of(folder: Path, version: int | list[int], *names: str) -> dict[str, Any]:
    """The manifest of a folder, after some of its files were held against it; raises one of `DAMAGE`."""
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
    if manifest["version"] != version:
        raise ValueError(f"it is of version {manifest['version']}")
    for name in names:
        verify(folder / name, manifest["files"][name]["sha256"], manifest["files"][name]["n_bytes"])
    return manifest


def canonical_json(value: Any) -> bytes:
    """The same bytes for the same value, whatever the order of its keys; NaN is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def user_folder(variable: str, *below: str) -> Path:
    """The folder that an environment variable names, or else one in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(variable) or Path(cache, *below))


def data_folder() -> Path:
    """The shipped tables: ``data/`` of the repository, or its copy inside an installed package."""
    packaged = Path(str(resources.files("repsim_utils"))) / "data"
    return packaged if packaged.is_dir() else Path(__file__).parents[1] / "data"
