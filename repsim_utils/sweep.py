"""From a grid of configurations to one tidy table; what is finished stays on disk and is not computed again.

Cells run one after another in this process, or on the workers of a Dask client. Every worker reads and writes the one
store, which must lie where all of them see it.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import pandas as pd
import torch
from tqdm import tqdm

from repsim_utils import RepsimError, __version__, files
from repsim_utils.store import Run, Store, StoreError, key

log = logging.getLogger(__name__)
Rows = list[dict[str, Any]]
_one_at_a_time = threading.Lock()  # a worker with several threads gives them all to one cell


class Config(Protocol):
    """A frozen pydantic model that names the kind of its runs, and the models that it needs."""

    kind: Any

    def needs(self) -> tuple[Any, ...]:
        """Configurations of models that must be trained first; they may have needs of their own."""

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
        alike: dict[str, list[str]] = {}
        for config, trace in failures:
            alike.setdefault(trace, []).append(repr(config))
        report = "\n\n".join("\n".join([*configs, trace]) for trace, configs in alike.items())
        told = f"{len(failures)} cell(s) failed, the rest is kept; the same command tries them again"
        super().__init__(f"{told}\n{report}")


def grid(**axes: Iterable[Any]) -> list[dict[str, Any]]:
    """Every combination of the values of some axes, the last axis turning fastest."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def sweep(
    function: Callable[..., Rows],
    configs: Iterable[Any],
    *,
    train: Callable[..., Any] | None = None,
    store: Store | None = None,
    client: Any = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Run a function on every configuration, or take its rows from the store.

    Parameters
    ----------
    function : callable
        ``function(config, store, progress=…)`` returns a list of rows.
    configs : iterable of `Config`
    train : callable, optional
        ``train(member, store, progress=…)`` trains a model that a configuration `needs` and keeps it. Workers need it
        so that a model of several cells is trained once, before them.
    store : Store, optional
        The default store if not given.
    client : distributed.Client, optional
        Whose workers do the work; by default this process does.
    progress : bool
        Show progress, with the time left.

    Returns
    -------
    DataFrame
        The rows of all cells in the order of `configs`, each with ``experiment, key, version, date, wall_seconds``.
        ``wall_seconds`` counts what the cell itself had to do: a model that was in the store already costs nothing.

    Raises
    ------
    SweepError
        If a cell failed; raised after all others have run.
    RepsimError, OSError
        If the store cannot be written, data cannot be had, or the disk is full; raised at once.
    """
    store = store if store is not None else Store()
    configs = list(configs)
    rows = [_finished(config, store) for config in configs]
    left = {i: configs[i] for i, done in enumerate(rows) if done is None}
    failures: list[tuple[Any, str]] = []
    if left:
        store.check()
        for i, outcome in (_here if client is None else _there)(function, train, left, store, client, progress):
            if isinstance(outcome, Failure):
                failures.append((configs[i], outcome))
            else:
                rows[i] = outcome
    table = _table(rows)
    if failures:
        raise SweepError(sorted(failures, key=lambda failure: configs.index(failure[0])), table)
    return table


def collect(configs: Iterable[Any], store: Store | None = None) -> pd.DataFrame:
    """Rows of the cells that are in the store; nothing is computed. See `sweep`."""
    store = store if store is not None else Store()
    return _table([_finished(config, store) for config in configs])


def _table(rows: list[Rows | None]) -> pd.DataFrame:
    return pd.DataFrame([row for done in rows if done for row in done])


def _finished(config: Any, store: Store) -> Rows | None:
    run = store.load(config.kind, config.model_dump(mode="json"))
    return None if run is None else _rows(config, run)


class Failure(str):
    """Traceback of a cell that failed."""


def _here(
    function: Any, train: Any, configs: Mapping[int, Any], store: Store, client: None, progress: bool
) -> Iterable[tuple[int, Rows | Failure]]:
    """Outcomes of cells that run one after another in this process."""
    for i in tqdm(configs, desc="cells", unit="cell", disable=not progress):
        try:
            yield i, _cell(function, configs[i], store, progress)
        except Exception as error:
            _stop_at_once(error)
            yield i, _failed([traceback.format_exc()])


def _there(
    function: Any, train: Any, configs: Mapping[int, Any], store: Store, client: Any, progress: bool
) -> Iterable[tuple[int, Rows | Failure]]:
    """Outcomes of cells as the workers of a Dask client finish them: models first, then what is measured on them."""
    from distributed import as_completed

    shared = str(store.root.resolve()), _mark(store.root)  # a scheduler may have other stores' runs, too
    models: dict[str, Any] = {}
    cells: dict[Any, int] = {}

    def submit(member: Any) -> Any:
        """The future of a model, after those of the models that it begins with."""
        name = f"model-{key(member.model_dump(mode='json'))}-{shared[1]}"
        if name not in models:
            needed = [submit(earlier) for earlier in member.needs()]
            models[name] = client.submit(_train_there, train, member, *shared, needed, key=name, pure=False)
        return models[name]

    for i, config in configs.items():
        needed = [submit(member) for member in config.needs() if train is not None]
        name = f"cell-{key(config.model_dump(mode='json'))}-{shared[1]}"
        cells[client.submit(_cell_there, function, config, *shared, needed, key=name, pure=False)] = i
    bar = tqdm(total=len(models) + len(cells), desc="models and cells", unit="run", disable=not progress)
    try:
        for future in as_completed([*models.values(), *cells], loop=client.loop):
            bar.update()
            error = future.exception() if future.status != "finished" else None
            if error is not None:
                _stop_at_once(error)
            if future not in cells:
                continue
            if error is None:
                yield cells[future], future.result()
            else:
                yield cells[future], _failed(traceback.format_exception(type(error), error, future.traceback()))
    finally:
        bar.close()
        for future in (*models.values(), *cells):
            future.release()  # not `cancel`, which takes a key from other sweeps of this client, even from later ones
        client.sync(asyncio.sleep, 0)  # until all are released: another sweep may ask for the same keys at once


def _mark(root: Path) -> str:
    """Name of a file that tells this folder from others of its name, on machines that do not share it."""
    place = root / ".seen-by-all"
    if not place.is_dir():
        with files.making(place, keep=place.is_dir) as made:
            (made / uuid4().hex).touch()
    (mark,) = place.iterdir()
    return f"{place.name}/{mark.name}"


def _failed(trace: list[str]) -> Failure:
    log.error("a cell failed and is reported at the end")
    return Failure("".join(trace))


def _stop_at_once(error: BaseException) -> None:
    """Raise what every other cell would meet as well, after all its work."""
    if isinstance(error, RepsimError) or (isinstance(error, OSError) and error.errno == errno.ENOSPC):
        raise error


def _train_there(train: Callable[..., Any], member: Any, root: str, mark: str, needed: list[None]) -> None:
    with _one_at_a_time:
        train(member, _shared_store(root, mark), progress=False)


def _cell_there(function: Callable[..., Rows], config: Any, root: str, mark: str, needed: list[None]) -> Rows:
    with _one_at_a_time:
        return _cell(function, config, _shared_store(root, mark), progress=False)


def _shared_store(root: str, mark: str) -> Store:
    """The store, on a worker: with all threads that the worker was given for this one cell."""
    from distributed import get_worker

    worker = get_worker()
    torch.set_num_threads(int(os.environ.get("REPSIM_THREADS") or worker.state.nthreads))
    if not Path(root, mark).exists():
        raise StoreError(
            f"the worker {worker.address} does not see the store {root}: "
            "name a folder, with --store, on a file system that all machines share"
        )
    return Store(root)


def _cell(function: Callable[..., Rows], config: Any, store: Store, progress: bool) -> Rows:
    """Rows of a cell that is not in the store yet, kept there."""
    start = time.perf_counter()
    record: dict[str, Any] = {"rows": function(config, store, progress=progress), "version": __version__}
    record["date"] = datetime.now(UTC).date().isoformat()
    record["wall_seconds"] = round(time.perf_counter() - start, 2)
    return _rows(config, store.save(config.kind, config.model_dump(mode="json"), record))


def _rows(config: Any, run: Run) -> Rows:
    about = {name: run.record[name] for name in ("version", "date", "wall_seconds")}
    first = {"experiment": config.kind, "key": key(config.model_dump(mode="json"))}
    return [first | row | about for row in run.record["rows"]]
