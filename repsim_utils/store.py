"""Results on disk, found again by the configuration that they came from.

``<root>/<kind>/<key>/`` holds ``config.json``, ``record.json`` and, where a model was trained,
``weights.safetensors``. The key is a hash of the configuration. A run is written under a temporary name and renamed
when it is whole, so that two processes may work on one store.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from repsim_utils import RepsimError, files

log = logging.getLogger(__name__)
WEIGHTS = "weights.safetensors"


class StoreError(RepsimError):
    """The store cannot be written to at all."""


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes
    ----------
    path : Path
        Its folder.
    record : dict
        What was measured.
    """

    path: Path
    record: dict[str, Any]

    def weights(self) -> dict[str, torch.Tensor]:
        """The trained weights, by name; an empty dict of a run with which none were kept."""
        kept = json.loads((self.path / "record.json").read_bytes())["sha256"]
        return load_file(self.path / WEIGHTS) if WEIGHTS in kept else {}


def key(config: Mapping[str, Any]) -> str:
    """Name of a configuration: the first 16 hexadecimal digits of the SHA-256 of its canonical JSON."""
    return files.digest(config)[:16]


def default_root() -> Path:
    """``$REPSIM_STORE``, or ``repsim`` in the user's cache folder."""
    return files.user_folder("REPSIM_STORE", "repsim")


class Store:
    """A folder of finished runs.

    Parameters
    ----------
    root : path, optional
        `default_root` if not given; made when the first run is saved.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = Path(root) if root is not None else default_root()

    def check(self) -> None:
        """Make sure, before hours of work, that a run could be kept.

        Raises
        ------
        StoreError
            If the folder cannot be made or written to.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as error:
            raise StoreError(
                f"the store {self.root} cannot be written ({error.strerror}): "
                "name a folder that can, with --store or $REPSIM_STORE"
            ) from None

    def has(self, kind: str, config: Mapping[str, Any]) -> bool:
        """Whether a run of this configuration is there, whole or damaged."""
        return (self.root / kind / key(config) / "record.json").is_file()

    def checkpoint(self, kind: str, config: Mapping[str, Any]) -> Path:
        """Where a training that is not finished keeps what it has; who keeps its result removes that."""
        return self.root / "checkpoints" / f"{kind}-{key(config)}.safetensors"

    def load(self, kind: str, config: Mapping[str, Any]) -> Run | None:
        """The run of this configuration, or None if there is none.

        A damaged run is named in a warning, removed and counts as missing.

        Raises
        ------
        OSError
            If it may be whole and only cannot be read now: no permission, too many open files, a failing disk.
        """
        path = self.root / kind / key(config)
        if not path.is_dir():
            return None
        try:
            return Run(path, _read(path, config))
        except files.DAMAGE as error:
            log.warning("damaged run %s is computed again (%s)", path, error)
            files.discard(path)
            return None

    def save(
        self,
        kind: str,
        config: Mapping[str, Any],
        record: dict[str, Any],
        weights: dict[str, torch.Tensor] | None = None,
    ) -> Run:
        """Keep a finished run; if another process has kept the same one meanwhile, that one stands.

        Raises
        ------
        OSError
            If it cannot be written (a full disk, say); nothing is left behind.
        """
        path = self.root / kind / key(config)
        with files.making(path, keep=lambda: self.load(kind, config) is not None) as folder:
            contents = {"config.json": files.canonical_json(config)}
            if weights is not None:
                tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
                contents[WEIGHTS] = save(tensors)
            sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
            whole = {"record": record, "sha256": sums}
            contents["record.json"] = files.canonical_json(whole | {"checksum": files.digest(whole)})
            for name, content in contents.items():
                files.write(folder / name, content)
        return Run(path, json.loads(files.canonical_json(record)))


def _read(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The record in a run's folder, after every file in it was held against its checksum."""
    whole = json.loads((path / "record.json").read_bytes())
    if whole.pop("checksum") != files.digest(whole):
        raise ValueError("record.json does not match its checksum")
    for name, checksum in whole["sha256"].items():
        files.verify(path / name, checksum)
    if (path / "config.json").read_bytes() != files.canonical_json(config):
        raise ValueError("config.json is of another configuration")
    return whole["record"]
