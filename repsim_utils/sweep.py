"""From a grid of configurations to one tidy table; what is finished stays on disk and is not computed again."""

from __future__ import annotations

import errno
import itertools
import logging
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

import pandas as pd
from tqdm import tqdm

from repsim_utils import RepsimError, __version__
from repsim_utils.store import Store, StoreError, key

log = logging.getLogger(__name__)


class Config(Protocol):
    """A frozen pydantic model that names the kind of its runs."""

    kind: Any

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """The configuration as plain data."""


class SweepError(RepsimError):
    """Some cells failed; the others are finished and kept.

    Attributes
    ----------
    failures : list of (config, str)
        Each failed configuration, with its traceback.
    table : DataFrame
        Rows of the cells that did not fail.
    """

    def __init__(self, failures: list[tuple[Any, str]], table: pd.DataFrame) -> None:
        self.failures, self.table = failures, table
        report = "\n\n".join(f"{config!r}\n{trace}" for config, trace in failures)
        super().__init__(
            f"{len(failures)} cell(s) failed, the rest is kept; the same command tries them again\n{report}"
        )


def grid(**axes: Iterable[Any]) -> list[dict[str, Any]]:
    """Every combination of the values of some axes, the last axis turning fastest."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def sweep(
    function: Callable[..., list[dict[str, Any]]],
    configs: Iterable[Any],
    *,
    store: Store | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Run a function on every configuration, or take its rows from the store.

    Parameters
    ----------
    function : callable
        ``function(config, store, progress=…)`` returns a list of rows.
    configs : iterable of `Config`
    store : Store, optional
        The default store if not given.
    progress : bool
        Show progress, with the time left.

    Returns
    -------
    DataFrame
        The rows of all cells, each with ``experiment, key, version, date, wall_seconds``. ``wall_seconds`` counts
        what the cell itself had to do: a model that was in the store already costs nothing.

    Raises
    ------
    SweepError
        If a cell failed; raised after all others have run.
    StoreError, OSError
        If the store cannot be written, or the disk is full; raised at once.
    """
    store = store if store is not None else Store()
    rows: list[Mapping[str, Any]] = []
    failures: list[tuple[Any, str]] = []
    for config in tqdm(list(configs), desc="cells", unit="cell", disable=not progress):
        try:
            rows += _cell(function, config, store, progress)
        except StoreError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise  # every other cell would fail as well, after all its work
            log.error("a cell failed and is reported at the end")
            failures.append((config, traceback.format_exc()))
    table = pd.DataFrame(rows)
    if failures:
        raise SweepError(failures, table)
    return table


def _cell(function: Callable[..., Any], config: Any, store: Store, progress: bool) -> list[dict[str, Any]]:
    plain = config.model_dump(mode="json")
    run = store.load(config.kind, plain)
    if run is None:
        store.check()
        start = time.perf_counter()
        rows = function(config, store, progress=progress)
        record = {
            "rows": rows,
            "version": __version__,
            "date": datetime.now(UTC).date().isoformat(),
            "wall_seconds": round(time.perf_counter() - start, 2),
        }
        run = store.save(config.kind, plain, record)
    about = {name: run.record[name] for name in ("version", "date", "wall_seconds")}
    return [{"experiment": config.kind, "key": key(plain)} | row | about for row in run.record["rows"]]
