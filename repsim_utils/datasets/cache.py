"""Data that are fetched or parsed once and kept: a folder of files with a manifest, whole or not there."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from repsim_utils import RepsimError, files

log = logging.getLogger(__name__)
Kept = TypeVar("Kept")


class DataError(RepsimError):
    """Data cannot be had; the message says why, and what to do."""


def default_root() -> Path:
    """``$REPSIM_DATA``, or ``repsim/data`` in the user's cache folder."""
    return files.user_folder("REPSIM_DATA", "repsim", "data")


def kept(
    folder: Path, read: Callable[[], Kept], make: Callable[[Path], dict[str, Any]], *, lock: str | None = None
) -> Kept:
    """What `read` finds in a folder; if it raises one of `files.DAMAGE`, the folder is made first.

    `make` fills an empty folder, may use that folder's parent meanwhile, and returns what the manifest is to say. One
    process at a time makes what has the name `lock` (by default that of the folder); the others wait, then read what
    it has made.

    Raises
    ------
    DataError
        If the folder cannot be read now, or its parent not be written.
    """
    try:
        with suppress(*files.DAMAGE):  # what is there and whole needs no lock, and no right to write
            return read()
        with files.lock(folder.parent / f".{lock or folder.name}.lock"):
            if folder.is_dir():
                try:
                    return read()
                except files.DAMAGE as error:
                    log.warning("%s is damaged or unfinished and is made again (%s)", folder, error)
            with files.making(folder) as made:
                files.seal(made, **make(made))
            return read()
    except OSError as error:
        raise DataError(
            f"the data folder {folder.parent} cannot be used ({error}): name another by $REPSIM_DATA"
        ) from None
