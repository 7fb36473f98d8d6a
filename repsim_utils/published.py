"""The paper's numbers, and ours as recorded, as tidy tables: what the chapters draw beside a run of their own."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from repsim_utils import files
from repsim_utils.store import key

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
        Its name in this book or in the published table; a ValueError if nothing was published under it.

    Returns
    -------
    DataFrame
        Columns experiment, model, training, dataset, probe, metric, overlap, mean, sd, n.
    """
    return _rows("published_results", experiment)


def published_slopes(experiment: str) -> pd.DataFrame:
    """Slopes on overlap of one experiment, computed from the released tables as `repsim_utils.analysis.trend` does it.

    Parameters
    ----------
    experiment : str
        As for `published`.

    Returns
    -------
    DataFrame
        Columns experiment, model, training, dataset, probe, metric, slope, low, high (95% t interval over seeds),
        n_seeds, n_pairs, n_levels, r_squared, mutual_information. For ``csd_task_only`` overlap runs from 0 (level 1)
        to 1 (level 3).
    """
    return _rows("published_slopes", experiment)


def published_regressions() -> pd.DataFrame:
    """The authors' own R² and mutual information (nats) of CKA and overlap: columns experiment, probe and both."""
    return pd.read_csv(files.data_folder() / "published_regressions.csv")


def _rows(name: str, experiment: str) -> pd.DataFrame:
    table = pd.read_csv(files.data_folder() / f"{name}.csv")
    rows = table[table.experiment.isin(_NAMES.get(experiment, experiment).split())]
    if rows.empty:
        raise ValueError(f"nothing published as {experiment!r}; there is {', '.join(sorted(set(table.experiment)))}")
    return rows.reset_index(drop=True)


def recorded(experiment: str) -> pd.DataFrame:
    """Our own results as recorded by ``repsim run EXPERIMENT --profile laptop --record``, one row a measurement.

    A FileNotFoundError says that there are none.
    """
    path = recorded_path(experiment)
    if not path.is_file():
        raise FileNotFoundError(f"{experiment} is not recorded: run repsim run {experiment} --profile laptop --record")
    return pd.read_csv(path, dtype={"key": str})


def recorded_path(experiment: str) -> Path:
    """Where an experiment's recorded results are."""
    return files.data_folder() / "results" / f"{experiment}.csv"


def check_recordable(experiment: str) -> Path:
    """Where `record` would write; a FileNotFoundError if the package is installed without its repository."""
    path = recorded_path(experiment)
    if not path.parents[2].joinpath("pyproject.toml").is_file():
        raise FileNotFoundError(f"results are recorded in a checkout of the book, and {path.parents[2]} is none")
    return path


def unrecorded(cells: Iterable[Any], experiment: str) -> list[Any]:
    """Those of an experiment's cells that are to be run before it is recorded.

    A model comes out a little otherwise on another machine, so the cells of one seed are recorded together: where one
    of them is missing, or has another configuration by now, all cells of that seed are in the list.
    """
    cells = list(cells)
    there = set(recorded(experiment)["key"]) if recorded_path(experiment).is_file() else set()
    lacking = {cell.second.seed for cell in cells if key(cell.model_dump(mode="json")) not in there}
    return [cell for cell in cells if cell.second.seed in lacking]


def record(table: pd.DataFrame, experiment: str, cells: Iterable[Any], *, fresh_seeds: Collection[int] = ()) -> Path:
    """Write an experiment's recorded results; only ``repsim run … --record`` calls this. See `check_recordable`.

    Parameters
    ----------
    table : DataFrame
        What was run now; may be empty.
    experiment : str
    cells : iterable
        All cells of the experiment. Of these, what was recorded earlier and is not in `table` stays, with its label;
        rows of seeds that the experiment no longer has go.
    fresh_seeds : collection of int
        Seeds whose new rows the column `seeds` calls ``fresh``; others are ``chosen``.

    Raises
    ------
    ValueError
        If seeds were recorded in another configuration and are not run again now: their rows would be lost.
    """
    path = check_recordable(experiment)
    keys = {key(cell.model_dump(mode="json")): cell.second.seed for cell in cells}
    parts = []
    if len(table):
        label = table["seed"].isin(list(fresh_seeds)).map({True: "fresh", False: "chosen"})
        parts.append(table.assign(seeds=label))
    if path.is_file():
        before = recorded(experiment)
        before = before[~before["key"].isin(set(table["key"]) if len(table) else ())]
        outdated = before[~before["key"].isin(list(keys))]["seed"]
        if lost := sorted(set(outdated) & set(keys.values()) - set(table["seed"] if len(table) else ())):
            raise ValueError(f"seeds {lost} were recorded in another configuration: record all seeds, without -p")
        parts.append(before if "seeds" in before else before.assign(seeds="chosen"))
    table = pd.concat(parts, ignore_index=True)
    order = list(keys)
    table = table[table["key"].isin(order)].sort_values("key", key=lambda k: k.map(order.index), kind="stable")
    first = ["experiment", "key", "profile", "dataset", "architecture", "overlap", "pair", "seed", "seeds"]
    first += ["probe", "metric"]
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
    """Pictures recorded with an experiment's results, uint8 (rows, columns, 3, h, h); or a FileNotFoundError."""
    with Image.open(recorded_path(experiment).with_suffix(".png")) as picture:
        size = int(picture.info["size"])
        whole = torch.from_numpy(np.array(picture))
    return whole.unflatten(0, (-1, size)).unflatten(2, (-1, size)).permute(0, 2, 4, 1, 3)
