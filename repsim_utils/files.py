"""Files that are whole or not there: the one way in which this package writes what it will read again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any


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
    sync_folder(path.parent)


def temporary_prefix(path: Path) -> str:
    """Beginning of a temporary name beside `path`, which tells the machine and the process that it belongs to."""
    return f".{path.name}.{socket.gethostname()}.{os.getpid()}."


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders that processes of this machine left when they were killed."""
    for path in folder.glob(f".*.{socket.gethostname()}.*.tmp"):
        owner = path.name.split(f".{socket.gethostname()}.")[-1].split(".")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists() and Path("/proc").is_dir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Checksum of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> bytes:
    """The same bytes for the same value, whatever the order of its keys; NaN is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def data_folder() -> Path:
    """The shipped tables: ``data/`` of the repository, or its copy inside an installed package."""
    packaged = Path(str(resources.files("repsim_utils"))) / "data"
    return packaged if packaged.is_dir() else Path(__file__).parents[1] / "data"
