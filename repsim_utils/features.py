"""Representations: of a model on a probe, or from a file."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from repsim_utils import columns, reason
from repsim_utils.columns import ChoiceError
from repsim_utils.models.device import device
from repsim_utils.models.diffusion import TIMESTEPS, Denoiser, as_pixels
from repsim_utils.models.language import GPT
from repsim_utils.models.vision import Classifier, as_float

VERSION = 1  # raised when the same model and probe, or the same file, give another representation
SUFFIXES = (".npy", ".npz", ".safetensors", ".parquet")
PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".joblib")


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
        If the images are not such, or of a size that the network cannot halve, or a timestep is none.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be uint8 (n, 3, h, w), got {images.dtype} {tuple(images.shape)}")
    parts = 2 ** (len(model.unet.down_blocks) - 1)
    if not len(images) or images.shape[2] % parts or images.shape[3] % parts:
        told = f"images must be one or more, with sides that are multiples of {parts} for this network"
        raise ValueError(f"{told}; got {tuple(images.shape)}")
    where = device()
    model.to(where).eval()
    noise, drawn = draw_noise(images, seed=seed)
    when = drawn if timestep is None else torch.as_tensor(timestep).expand(len(images))
    if when.is_floating_point() or when.is_complex() or when.dtype == torch.bool:
        raise ValueError(f"timestep must be a whole number, got {timestep!r} ({when.dtype})")
    if not 0 <= int(when.min()) <= int(when.max()) < TIMESTEPS:
        raise ValueError(f"timestep must be from 0 to {TIMESTEPS - 1}, got {int(when.min())} to {int(when.max())}")
    batches = []
    for part in zip(*(values.split(batch_size) for values in (images, noise, when)), strict=True):
        some, some_noise, steps = (values.to(where) for values in part)
        noisy = model.noisy(as_pixels(some), some_noise, steps)
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
    found: dict[int, Tensor] = {}
    for length in sorted({len(prompt) for prompt in prompts}):
        alike = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
        tokens = torch.tensor([list(prompts[i]) for i in alike], device=device())
        found |= zip(alike, model.body(tokens, use_cache=False).last_hidden_state.float().cpu(), strict=True)
    states = [found[i] for i in range(len(prompts))]
    return {"mean": torch.stack([x.mean(0) for x in states]), "last": torch.stack([x[-1] for x in states])}


def load(source: str | Path) -> Tensor | NDArray[Any]:
    """A representation from a file: one row a sample.

    Parameters
    ----------
    source : str or Path
        A .npy file; a .npz, .safetensors or .parquet file, followed by a colon and a name where it holds several arrays
        (``features.npz:layer4``). A Parquet file holds one feature a column, or a column of lists, which may be named:
        ``table.parquet:f0,f1``, ``table.parquet:embedding``. Columns that are not named and may be no features (text,
        a number of the sample or a label among fractions) are left out, and a warning says which. Nothing in a file is
        executed: pickled objects are refused.

    Returns
    -------
    ndarray or Tensor
        As stored; its shape and values are for the metrics to check.

    Raises
    ------
    ValueError
        If there is no such file or array, it cannot be read as one of these formats, or it is unclear which columns are
        meant; the message says what to write.
    """
    path, name = split(str(source))
    kind = path.suffix.lower()
    if kind in PICKLED:
        raise ValueError(f"{path}: not one of the formats {', '.join(SUFFIXES)}; {_converted(path)}")
    if kind not in SUFFIXES:
        raise ValueError(f"{path}: not one of the formats {', '.join(SUFFIXES)}; save it with numpy.save")
    if not path.is_file():
        raise ValueError(f"{path}: this is a folder" if path.is_dir() else f"{path}: there is no such file")
    try:
        if kind == ".parquet":
            return columns.features(pq.ParquetFile(path).read(), str(path), name)
        return _array(path, kind, name)
    except ChoiceError:
        raise
    except Exception as error:
        told = "; it holds Python objects: save numbers, x.astype('float32')" if "Object arrays" in str(error) else ""
        raise ValueError(f"{path}: cannot be read as {kind} ({reason(error)}){told}") from None


def load_pair(first: str | Path, second: str | Path) -> tuple[Any, Any]:
    """Two representations of the same samples, as `load` has each.

    Raises
    ------
    ValueError
        As `load`, or if both are tables whose rows are the same samples in another order.
    """
    pair = load(first), load(second)
    check_order(first, second)
    return pair


def check_order(first: str | Path, second: str | Path) -> None:
    """Refuse two Parquet files whose rows are the same samples in another order; see `columns.check_order`."""
    (path, name), (other, other_name) = split(str(first)), split(str(second))
    if path.suffix.lower() == other.suffix.lower() == ".parquet" and name is other_name is None:
        tables = pq.ParquetFile(path).read(), pq.ParquetFile(other).read()
        columns.check_order(tables, (str(path), str(other)))


def names(path: Path) -> list[str]:
    """Arrays in a .npz or .safetensors file; none of another one, or of one that cannot be read."""
    found: list[str] = []
    with suppress(Exception):  # broken files raise all sorts, which `load` says
        if path.suffix.lower() == ".safetensors":
            with safe_open(path, framework="pt") as opened:
                found = list(opened.keys())
        elif path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                found = list(archive.files)
    return found


def split(source: str) -> tuple[Path, str | None]:
    """Path and name of the array; a colon may be part of either, and what there is decides."""
    cuts = [i for i, letter in enumerate(source) if letter == ":"]
    known = [i for i in cuts if Path(source[:i]).suffix.lower() in (*SUFFIXES, *PICKLED)]
    there = [i for i in known if Path(source[:i]).is_file()]
    if Path(source).is_file() or not known or (not there and Path(source).suffix.lower() in SUFFIXES):
        return Path(source), None
    cut = (there or known)[0]
    return Path(source[:cut]), source[cut + 1 :]


def _converted(path: Path) -> str:
    """How a file of torch becomes one that nothing is executed of."""
    read = f"x = torch.load({path.name!r}, weights_only=True, map_location='cpu')"
    save = f"numpy.save({path.stem + '.npy'!r}, x.detach().double().numpy())"
    return f"such a file can execute code. Convert it (of a dict, one of its tensors): {read}; {save}"


def _array(path: Path, kind: str, name: str | None) -> Tensor | NDArray[Any]:
    """The array of this name, or the only one."""
    with ExitStack() as stack:
        if kind == ".safetensors":
            opened: Any = stack.enter_context(safe_open(path, framework="pt"))
            return opened.get_tensor(_chosen(path, list(opened.keys()), name))
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            _chosen(path, ["array"], name)
            return found
        stack.enter_context(found)
        return found[_chosen(path, found.files, name)]


def _chosen(path: Path, names: list[str], name: str | None) -> str:
    if name is None and len(names) > 1:
        raise ChoiceError(f"{path} holds several arrays; name one: {', '.join(f'{path}:{key}' for key in names)}")
    if (name is not None and name not in names) or not names:
        raise ChoiceError(f"{path} holds no {name or 'array'}; there is {', '.join(names) or 'nothing'}")
    return names[0] if name is None else name
