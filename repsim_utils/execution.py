"""Execute notebooks side by side, one single-threaded kernel a core, and none again that nothing has changed for."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import joblib
import nbformat
import papermill
from joblib.externals.loky import get_reusable_executor
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from repsim_utils import files

log = logging.getLogger(__name__)
PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class Failure:
    """Where a chapter failed."""

    chapter: str
    cell: int | None
    message: str

    def __str__(self) -> str:
        where = "" if self.cell is None else f", cell {self.cell}"
        return f"{self.chapter}{where}: {self.message}"


@dataclass(frozen=True)
class Task:
    """A notebook to execute.

    Attributes
    ----------
    source, output : Path
        The notebook, and where its executed copy is to lie.
    kept : Path
        Where a copy that succeeded is kept for the next time; its key lies beside it.
    folder : Path
        In which the kernel runs.
    parameters : dict
        What is put in place of the notebook's own.
    name : str
        As reports have it.
    """

    source: Path
    output: Path
    kept: Path
    folder: Path
    parameters: dict[str, Any]
    name: str


def run(tasks: Iterable[Task], *, fresh: bool = False, jobs: int | None = None) -> list[Failure]:
    """Execute notebooks, or take them from what is kept where everything they depend on is as it was.

    Parameters
    ----------
    tasks : iterable of `Task`
    fresh : bool
        Take nothing from what is kept.
    jobs : int, optional
        How many kernels run at a time, which share the cores' threads; by default as many as there are cores.

    Returns
    -------
    list of Failure
        What failed, in the order of `tasks`; everything else was executed nevertheless.
    """
    tasks = list(tasks)
    everything = _environment(tasks[0].folder) if tasks else {}
    keys = {task.name: _key(task, everything) for task in tasks}
    left = [task for task in tasks if fresh or not _take(task, keys[task.name])]
    log.info("%d of %d chapters are unchanged, %d are executed", len(tasks) - len(left), len(tasks), len(left))
    left = sorted(reversed(left), key=_last_duration, reverse=True)  # the longest first; late chapters take longer
    failures = {}
    outcomes = _side_by_side(left, jobs or joblib.cpu_count())
    for task, outcome in tqdm(outcomes, desc="chapters", unit="chapter", total=len(left), disable=not left):
        if isinstance(outcome, Failure):
            log.error("%s", outcome)
            failures[task.name] = outcome
        else:
            log.info("%s took %.0f s", task.name, outcome)
            unchanged = keys[task.name] == _key(task, _environment(task.folder))
            _keep(task, keys[task.name] if unchanged else None, outcome)  # else it may be of what was written meanwhile
    return [failures[task.name] for task in tasks if task.name in failures]


def _side_by_side(tasks: list[Task], jobs: int) -> Iterator[tuple[Task, Failure | float]]:
    """Outcomes as they come; an interrupt ends the processes, and their kernels with them."""
    if not tasks:
        return
    work = joblib.Parallel(n_jobs=jobs, batch_size=1, return_as="generator_unordered")
    yield from work(joblib.delayed(_execute)(task) for task in tasks)
    get_reusable_executor().shutdown()  # processes that are left idle would have the environment of today


def _environment(root: Path) -> dict[str, Any]:
    """What every chapter depends on: the package, its tables, the pinned requirements, Python, what is installed.

    A kernel that runs in a checkout imports the package from there.
    """
    here = (root / PACKAGE.name).is_dir()
    sums = _sums(root / PACKAGE.name if here else PACKAGE) | _sums(root / "data" if here else files.data_folder())
    if (requirements := root / "requirements.txt").is_file():
        sums["requirements.txt"] = files.sha256(requirements)
    installed = sorted({f"{found.name}=={found.version}" for found in metadata.distributions()})
    return {"files": sums, "python": sys.version, "installed": installed, "data": os.environ.get("REPSIM_DATA")}


def _sums(folder: Path) -> dict[str, str]:
    """Checksums of a folder's files, by name, without what is only for readers and what Python compiled."""
    names = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".md", ".pyc"))
    return {f"{folder.name}/{path.relative_to(folder)}": files.sha256(path) for path in names}


def _key(task: Task, everything: dict[str, Any]) -> str | None:
    """Hash of all that decides what a notebook shows; None if it reads a file or folder of the user's."""
    if not task.source.is_file() or _is_path(task.parameters, task.folder):
        return None
    about = {"notebook": files.sha256(task.source), "parameters": task.parameters, "everything": everything}
    return hashlib.sha256(files.canonical_json(about)).hexdigest()


def _is_path(value: Any, folder: Path) -> bool:
    """Whether some text within a value names what is on disk, as ``-p data /a/folder`` does."""
    if isinstance(value, dict):
        return any(_is_path(part, folder) for part in value.values())
    if isinstance(value, list | tuple):
        return any(_is_path(part, folder) for part in value)
    try:
        return isinstance(value, str) and bool(value) and (folder / Path(value).expanduser()).exists()
    except (OSError, RuntimeError, ValueError):  # too long a name, an unknown user
        return False


def _about(task: Task) -> dict[str, Any]:
    """What is written beside a kept notebook; empty if that is missing or damaged."""
    try:
        about = json.loads(task.kept.with_suffix(".json").read_bytes())
        return {"key": about["key"], "sha256": about["sha256"], "seconds": float(about["seconds"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _last_duration(task: Task) -> float:
    return _about(task).get("seconds", float("inf"))


def _take(task: Task, key: str | None) -> bool:
    """Put a kept notebook in place, if it is whole and of this key."""
    about = _about(task)
    if key is None or about.get("key") != key:
        return False
    if not task.kept.is_file() or files.sha256(task.kept) != about["sha256"]:
        log.warning("%s as it was kept is damaged, and is executed again", task.name)
        return False
    task.output.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(task.kept, task.output)
    return True


def _keep(task: Task, key: str | None, seconds: float) -> None:
    """Keep an executed notebook; what is written beside it comes last, so that a part is never taken for the whole."""
    files.write(task.kept, task.output.read_bytes())
    about = {"key": key, "sha256": files.sha256(task.kept), "seconds": seconds}
    files.write(task.kept.with_suffix(".json"), files.canonical_json(about))


def _execute(task: Task) -> tuple[Task, Failure | float]:
    """Execute a notebook, and say how it failed or how many seconds it took."""
    start = time.perf_counter()
    task.output.parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            str(task.source),
            str(task.output),
            task.parameters,
            kernel_name="python3",
            cwd=str(task.folder),
            progress_bar=False,
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
        )
        failure = _tidy(task)
    except PapermillExecutionError as error:
        failure = Failure(task.name, error.cell_index, f"{error.ename}: {error.evalue}")
    except Exception as error:  # a kernel that died, a file that is no notebook
        failure = Failure(task.name, None, f"{type(error).__name__}: {error}")
    if failure:
        return task, failure
    return task, time.perf_counter() - start


def _tidy(task: Task) -> Failure | None:
    """Drop progress bars, name the parameters of the run, and notice an error output that did not stop it."""
    notebook = nbformat.read(task.output, as_version=4)
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        if any(output.output_type == "error" for output in cell.outputs):
            return Failure(task.name, index, "the cell holds an error output")
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.source = cell.source.replace("# Parameters", "# Parameters of this run")
            cell.metadata["tags"] = [*cell.metadata["tags"], "hide-input"]
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    files.write(task.output, nbformat.writes(notebook).encode())
    return None
