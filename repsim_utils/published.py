"""The paper's numbers, and ours as recorded, as tidy tables."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from repsim_utils import files

_NAMES = {"task_only": "csd_task_only"}  # experiments that the published table calls otherwise


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
    rows = table[table.experiment == _NAMES.get(experiment, experiment)]
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
