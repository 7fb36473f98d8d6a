"""The paper's numbers, and ours as recorded, as tidy tables: what the chapters draw beside a run of their own."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from repsim_utils import files

_NAMES = {  # experiments that the published table calls otherwise
    "task_only": "csd_task_only",
    "dataset_overlap_vision": "vision_dataset_overlap",
    "task_overlap_vision": "vision_task_overlap",
    "dataset_overlap_language": "nanogpt_dataset_overlap",
    "task_overlap_language": "nanogpt_task_overlap",
    "dataset_overlap_finetuned": "llm_dataset_overlap",
    "task_overlap_finetuned": "llm_task_overlap",
    "dataset_overlap_diffusion": "diffusion_dataset_overlap",
    "task_overlap_diffusion": "diffusion_task_overlap",
    "adversarial_transfer": "adversarial_dataset_overlap adversarial_task_overlap",
    "jailbreak_finetuned": "jailbreak_dataset_overlap jailbreak_task_overlap",
}


def published(experiment: str) -> pd.DataFrame:
    """Published means of one experiment (Li, Vu, Awofisayo, Wenger; released tables, CC BY-SA 4.0).

    Parameters
    ----------
    experiment : str
        Name of the experiment in this book, or in the published table.

    Returns
    -------
    DataFrame
        Columns experiment, model, training, dataset, probe, metric, overlap, mean, sd, n.

    Raises
    ------
    ValueError
        If nothing was published under this name.
    """
    table = pd.read_csv(files.data_folder() / "published_results.csv")
    rows = table[table.experiment.isin(_NAMES.get(experiment, experiment).split())]
    if rows.empty:
        raise ValueError(f"nothing published as {experiment!r}; there is {', '.join(sorted(set(table.experiment)))}")
    return rows.reset_index(drop=True)


def recorded(experiment: str) -> pd.DataFrame:
    """Our own results as recorded by ``repsim run EXPERIMENT --profile laptop --record``, one row a measurement.

    Raises
    ------
    FileNotFoundError
        If the experiment has not been recorded.
    """
    path = recorded_path(experiment)
    if not path.is_file():
        raise FileNotFoundError(f"{experiment} is not recorded: run repsim run {experiment} --profile laptop --record")
    return pd.read_csv(path, dtype={"key": str})


def recorded_path(experiment: str) -> Path:
    """Where an experiment's recorded results are."""
    return files.data_folder() / "results" / f"{experiment}.csv"


def check_recordable(experiment: str) -> Path:
    """Where `record` would write.

    Raises
    ------
    FileNotFoundError
        If the package is installed without its repository, so that there is nothing to record into.
    """
    path = recorded_path(experiment)
    if not path.parents[2].joinpath("pyproject.toml").is_file():
        raise FileNotFoundError(f"results are recorded in a checkout of the book, and {path.parents[2]} is none")
    return path


def record(table: pd.DataFrame, experiment: str) -> Path:
    """Write an experiment's recorded results; only ``repsim run … --record`` calls this. See `check_recordable`."""
    path = check_recordable(experiment)
    first = ["experiment", "key", "profile", "dataset", "architecture", "overlap", "pair", "seed", "probe", "metric"]
    last = ["value", "version", "date", "wall_seconds"]
    columns = [c for c in first if c in table] + [c for c in table if c not in first + last] + last
    files.write(path, table[columns].to_csv(index=False, float_format="%.6g", lineterminator="\n").encode())
    return path


def record_gallery(images: Tensor, experiment: str) -> Path:
    """Write pictures uint8 (rows, columns, 3, h, h) beside an experiment's recorded results, as one PNG; likewise."""
    path = check_recordable(experiment).with_suffix(".png")
    rows, columns, _, size, _ = images.shape
    whole = images.permute(0, 3, 1, 4, 2).reshape(rows * size, columns * size, 3)
    about, file = PngInfo(), io.BytesIO()
    about.add_text("size", str(size))
    Image.fromarray(whole.numpy()).save(file, "PNG", optimize=True, pnginfo=about)
    files.write(path, file.getvalue())
    return path


def recorded_gallery(experiment: str) -> Tensor:
    """Pictures that were recorded with an experiment's results: uint8 (rows, columns, 3, h, h).

    Raises
    ------
    FileNotFoundError
        If there are none.
    """
    with Image.open(recorded_path(experiment).with_suffix(".png")) as picture:
        size = int(picture.info["size"])
        whole = torch.from_numpy(np.array(picture))
    return whole.unflatten(0, (-1, size)).unflatten(2, (-1, size)).permute(0, 2, 4, 1, 3)
