"""Representations: of a model on a probe, or from a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repsim_utils.models.device import device
from repsim_utils.models.diffusion import TIMESTEPS, Denoiser, as_pixels
from repsim_utils.models.language import GPT
from repsim_utils.models.vision import Classifier, as_float

VERSION = 1  # raised when the same input gives another result
SUFFIXES = (".npy", ".npz", ".safetensors", ".parquet")


@torch.no_grad()
def represent(model: Classifier, images: Tensor, *, batch_size: int = 500) -> Tensor:
    """Penultimate representation of every image.

    Parameters
    ----------
    model : Classifier
    images : Tensor
        uint8 (n, 3, h, w), the probe.
    batch_size : int

    Returns
    -------
    Tensor
        float32 (n, d), on the CPU.
    """
    model.to(device()).eval()
    return torch.cat([model.represent(as_float(batch)).cpu() for batch in images.split(batch_size)])


def draw_noise(images: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
    """Noise for images (n, 3, h, w), float32 of the same shape, and a timestep for each, int64 (n,) from 0 to 999."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(images.shape, generator=generator)
    return noise, torch.randint(TIMESTEPS, (len(images),), generator=generator)


@torch.no_grad()
def represent_noisy(
    model: Denoiser,
    images: Tensor,
    *,
    seed: int,
    timestep: int | Tensor | None = None,
    layers: bool = False,
    batch_size: int = 200,
) -> dict[str, Tensor]:
    """What a diffusion model makes of noisy images of no class: the same noise for every model of the same seed.

    Parameters
    ----------
    model : Denoiser
    images : Tensor
        uint8 (n, 3, h, w), the probe.
    seed : int
        Of the noise, and of the timesteps. See `draw_noise`.
    timestep : int or Tensor, optional
        Of all images, from 0 to 999, or int64 (n,), of each; by default each has its own, drawn at random.
    layers : bool
        Of every block, too; else of the last activation alone. See `Denoiser.represent`.
    batch_size : int

    Returns
    -------
    dict
        From the name of a layer to float32 (n, d), on the CPU.

    Raises
    ------
    ValueError
        If the images are not such, or a timestep is out of range.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be uint8 (n, 3, h, w), got {images.dtype} {tuple(images.shape)}")
    where = device()
    model.to(where).eval()
    noise, drawn = draw_noise(images, seed=seed)
    when = drawn if timestep is None else torch.as_tensor(timestep).expand(len(images))
    if len(when) and not 0 <= int(when.min()) <= int(when.max()) < TIMESTEPS:
        raise ValueError(f"timestep must be from 0 to {TIMESTEPS - 1}, got {int(when.min())} to {int(when.max())}")
    batches = []
    for part, some_noise, steps in zip(*(values.split(batch_size) for values in (images, noise, when)), strict=True):
        steps = steps.to(where)
        noisy = model.noisy(as_pixels(part.to(where)), some_noise.to(where), steps)
        batches.append({name: x.cpu() for name, x in model.represent(noisy, steps, layers=layers).items()})
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


@torch.no_grad()
def represent_text(model: GPT, tokens: Tensor, *, layers: bool = False, batch_size: int = 50) -> list[Tensor]:
    """Mean over positions of hidden states, for every window of text.

    Parameters
    ----------
    model : GPT
    tokens : Tensor
        int64 (n, t), the probe.
    layers : bool
        Of every layer, from the embedding to the last; else of the last alone. See `GPT.represent`.
    batch_size : int

    Returns
    -------
    list of Tensor
        One a layer, float32 (n, d), on the CPU.
    """
    model.to(device()).eval()
    batches = [model.represent(batch.to(device()), layers=layers) for batch in tokens.split(batch_size)]
    return [torch.cat([state.cpu() for state in states]) for states in zip(*batches, strict=True)]


@torch.no_grad()
def represent_prompts(model: GPT, prompts: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Last hidden states of prompts of any length.

    Parameters
    ----------
    model : GPT
    prompts : sequence of sequence of int
        Tokens of each.

    Returns
    -------
    dict
        ``mean`` over positions, and of the ``last`` one, where an answer would begin: float32 (n, d), on the CPU.
    """
    model.to(device()).eval()
    rows: list[tuple[Tensor, Tensor]] = [(torch.empty(0), torch.empty(0))] * len(prompts)
    for length in sorted({len(prompt) for prompt in prompts}):
        alike = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
        tokens = torch.tensor([list(prompts[i]) for i in alike], device=device())
        states = model.body(tokens, use_cache=False).last_hidden_state.float().cpu()
        for i, state in zip(alike, states, strict=True):
            rows[i] = state.mean(0), state[-1]
    return {name: torch.stack(column) for name, column in zip(("mean", "last"), zip(*rows, strict=True), strict=True)}


def load(source: str | Path) -> Tensor | NDArray[Any]:
    """A representation from a file: one row a sample.

    Parameters
    ----------
    source : str or Path
        A .npy file; a .npz, .safetensors or .parquet file, followed by a colon and a name where it holds several arrays
        (``features.npz:layer4``). A Parquet file holds one feature a column, or a column of lists. Nothing in a file is
        executed: pickled objects are refused.

    Returns
    -------
    ndarray or Tensor
        As stored; its shape and values are for the metrics to check.

    Raises
    ------
    ValueError
        If there is no such file or array, or it cannot be read as one of these formats.
    """
    path, name = _split(str(source))
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: not one of the formats {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise ValueError(f"{path}: this is a folder" if path.is_dir() else f"{path}: there is no such file")
    try:
        arrays = _READERS[path.suffix](path)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: cannot be read as {path.suffix} ({reason})") from None
    if name is None and len(arrays) > 1:
        raise ValueError(f"{path} holds several arrays; name one: {', '.join(f'{path}:{key}' for key in arrays)}")
    if (name is not None and name not in arrays) or not arrays:
        raise ValueError(f"{path} holds no {name or 'array'}; there is {', '.join(arrays) or 'nothing'}")
    return arrays[name] if name is not None else next(iter(arrays.values()))


def _split(source: str) -> tuple[Path, str | None]:
    """Path and name of the array; a colon within a path is part of it."""
    path, colon, name = source.rpartition(":")
    return (Path(path), name) if colon and Path(path).suffix in SUFFIXES else (Path(source), None)


def _read_npz(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(path))


def _read_parquet(path: Path) -> dict[str, Any]:
    """Columns of lists, each an array; or all columns of numbers as one."""
    import pandas as pd

    table = pd.read_parquet(path)
    lists = {str(name): np.stack(list(column)) for name, column in table.items() if column.dtype == object}
    return lists or {"columns": table.to_numpy()}


_READERS = {
    ".npy": lambda path: {"array": np.load(path, allow_pickle=False)},
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".parquet": _read_parquet,
}
