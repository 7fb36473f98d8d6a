"""Samples of a user's own on which models are to be compared: a folder of pictures, or lines of text."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from repsim_utils.datasets import folders
from repsim_utils.datasets.cache import DataError

log = logging.getLogger(__name__)
PICTURES, TEXT = "pictures", "text"
OTHER_FORMATS = (".csv", ".tsv", ".json", ".parquet", ".npy", ".npz", ".safetensors", ".gz", ".zip", ".pdf", ".docx")


class Probe(NamedTuple):
    """Samples, in an order of their own.

    Attributes
    ----------
    name : str
        Folder or file, as given.
    kind : {"pictures", "text"}
    ids : tuple of str
        Of each sample: the path of a picture within the folder, ``line 3`` of a text, or the ``id`` of a JSON line.
    checksums : tuple of str
        Of what each sample holds.
    samples : tuple
        A path for each picture, a string for each text.
    """

    name: str
    kind: str
    ids: tuple[str, ...]
    checksums: tuple[str, ...]
    samples: tuple[Any, ...]

    def one(self, i: int) -> list[list[Any]]:
        """A batch of sample `i` alone."""
        return list(self._replace(ids=self.ids[i : i + 1], samples=self.samples[i : i + 1]).batches(1))

    def batches(self, size: int) -> Iterator[list[Any]]:
        """Lists of `size` pictures or texts, the last one shorter."""
        for start in range(0, len(self.samples), size):
            some = self.samples[start : start + size]
            yield [_opened(path) for path in some] if self.kind == PICTURES else list(some)


def read(path: str | Path) -> Probe:
    """The samples in a folder of pictures or a file of text.

    Parameters
    ----------
    path : str or Path
        A folder, of which all pictures count, in folders within it, too, sorted by their paths; a file with one text a
        line; or a ``.jsonl`` file with a string a line, or an object that has ``text`` and may have ``id``.

    Returns
    -------
    Probe

    Raises
    ------
    DataError
        If there are not at least two samples, or one cannot be read; the message names it.
    """
    place = Path(path)
    if place.is_dir():
        return _of_pictures(place, str(path))
    if not place.is_file():
        raise DataError(f"{place}: there is no such folder of pictures or file of text")
    texts = _json_lines(place) if place.suffix.lower() in (".jsonl", ".ndjson") else _lines(place)
    _check_size(place, len(texts))
    checksums = tuple(_checksum(text.encode()) for text in texts.values())
    return Probe(str(path), TEXT, tuple(texts), checksums, tuple(texts.values()))


@folders.readable()
def _of_pictures(folder: Path, name: str) -> Probe:
    paths = folders.pictures(folder)
    _check_size(folder, len(paths))
    ids = tuple(path.relative_to(folder).as_posix() for path in paths)
    return Probe(name, PICTURES, ids, tuple(_checksum(path.read_bytes()) for path in paths), tuple(paths))


def _check_size(place: Path, n: int) -> None:
    if n < 2:
        raise DataError(f"{place}: a probe needs at least two samples, and here is {n}")


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _opened(path: Path) -> Image.Image:
    return folders.decoded(path, str(path))


@folders.readable()
def _text(path: Path) -> list[str]:
    """Lines of a file in UTF-8, whatever system it was written on."""
    if path.suffix.lower() in (*OTHER_FORMATS, *folders.SUFFIXES):
        raise DataError(
            f"{path}: a probe is a folder of pictures, a file with one text a line, or a .jsonl file whose lines have "
            '"text"; write one of these'
        )
    try:
        whole = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(f"{path}: line {line} is not UTF-8 ({error.reason}): save the file as UTF-8") from None
    return whole.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _lines(path: Path) -> dict[str, str]:
    """Texts by the numbers of their lines, without blank ones."""
    lines = _text(path)
    texts = {f"line {i}": line for i, line in enumerate(lines, 1) if line.strip()}
    if blank := len(lines) - len(texts) - (not lines[-1]):
        log.warning("%s: %d blank lines are left out", path, blank)
    return texts


def _json_lines(path: Path) -> dict[str, str]:
    """Texts by their ids, or else by the numbers of their lines."""
    texts: dict[str, str] = {}
    for i, line in enumerate(_text(path), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}: line {i} is not JSON ({error.msg})") from None
        text = found.get("text") if isinstance(found, dict) else found
        if not isinstance(text, str) or not text.strip() or re.search("[\ud800-\udfff]", text):
            raise DataError(f'{path}: line {i} has no text: it must be a string, or an object with "text"')
        name = str(found["id"]) if isinstance(found, dict) and "id" in found else f"line {i}"
        if name in texts:
            raise DataError(f"{path}: line {i} has the id {name!r}, which another line has, too")
        texts[name] = text
    return texts
