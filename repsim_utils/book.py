"""Execute the chapters that have changed, then build the pages from the executed copies.

Nothing is written into ``chapters/``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import altair
import papermill
import torch
import vl_convert
import yaml
from filelock import Timeout

from repsim_utils import RepsimError, execution, files, profiles
from repsim_utils.execution import Task


class BookError(RepsimError):
    """A chapter failed, or the pages could not be built."""


def build(
    root: Path,
    profile: str,
    parameters: Mapping[str, Any] | None = None,
    *,
    fresh: bool = False,
    jobs: int | None = None,
) -> Path:
    """Execute the chapters of ``_toc.yml`` that have changed and build the HTML.

    Parameters
    ----------
    root : Path
        Checkout of the book.
    profile : str
        Fills the chapters' parameters.
    parameters : mapping, optional
        Overrides; each must be a parameter of at least one chapter, and goes to the chapters that have it.
    fresh : bool
        Execute also what has not changed.
    jobs : int, optional
        How many chapters run at a time; by default as many as there are cores, or one where there is a GPU.

    Returns
    -------
    Path
        ``_build/html/index.html``.

    Raises
    ------
    BookError
        If a chapter failed (all others were executed nevertheless), Jupyter Book had a warning, or another process
        builds this book.
    ValueError
        If the profile or a parameter is unknown.
    """
    root = root.resolve()
    if not (root / "_toc.yml").is_file():
        raise BookError(f"{root} holds no book (no _toc.yml); run this in a checkout, or name one with --root")
    notebooks = [chapter for chapter in _chapters(root) if chapter.suffix == ".ipynb"]
    filled = _fill(root, notebooks, profile, dict(parameters or {}))
    try:
        alone = files.lock(root / "_build" / "lock").acquire(timeout=0)
    except Timeout:
        raise BookError(f"another process builds the book in {root}; wait until it has ended") from None
    with alone:
        return _html(root, _executed(root, filled, fresh, jobs))


def _executed(root: Path, filled: dict[Path, dict[str, Any]], fresh: bool, jobs: int | None) -> Path:
    """The folder with the executed chapters."""
    executed = root / "_build" / "executed"
    shutil.rmtree(executed, ignore_errors=True)
    ignore = shutil.ignore_patterns("*.ipynb", ".ipynb_checkpoints")
    shutil.copytree(root / "chapters", executed, ignore=ignore)
    kept = root / "_build" / "kept"
    tasks = [
        Task(root / "chapters" / name, executed / name, kept / name, root, parameters, str(name))
        for name, parameters in filled.items()
    ]
    failures = execution.run(tasks, fresh=fresh, jobs=jobs or (1 if torch.cuda.is_available() else None))
    if failures:
        report = "\n".join(f"  {failure}" for failure in failures)
        raise BookError(f"{len(failures)} of {len(filled)} chapters failed (executed copies: {executed}):\n{report}")
    return executed


def _chapters(root: Path) -> list[Path]:
    """Files of the table of contents, in order, relative to ``chapters/``."""
    toc = yaml.safe_load((root / "_toc.yml").read_text())
    entries = [toc["root"]]
    parts = toc.get("parts", [{"chapters": toc.get("chapters", [])}])
    entries += [chapter["file"] for part in parts for chapter in part["chapters"]]
    found = []
    for entry in entries:
        matches = [path for suffix in (".ipynb", ".md") if (path := root / "chapters" / f"{entry}{suffix}").is_file()]
        if not matches:
            raise BookError(f"_toc.yml names {entry}, and there is no such chapter")
        found.append(matches[0].relative_to(root / "chapters"))
    return found


def _fill(root: Path, notebooks: list[Path], profile: str, overrides: dict[str, Any]) -> dict[Path, dict[str, Any]]:
    """Parameters of every notebook: the profile's section of the same name, then the overrides."""
    known = {chapter: set(papermill.inspect_notebook(str(root / "chapters" / chapter))) for chapter in notebooks}
    every = set().union(*known.values()) if known else set()
    unknown = sorted(set(overrides) - every)
    if unknown:
        raise ValueError(f"no chapter has the parameter {', '.join(unknown)}; there is {', '.join(sorted(every))}")
    filled = {}
    for chapter, names in known.items():
        mine = {name: value for name, value in overrides.items() if name in names}
        settings = profiles.load(profile, chapter.stem, **mine).model_dump(mode="json")
        filled[chapter] = {name: value for name, value in settings.items() if name in names} | {"profile": profile}
    return filled


def _html(root: Path, executed: Path) -> Path:
    """Run Jupyter Book with warnings as errors; scripts that charts need are written beside the executed chapters."""
    vega = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed; window.vega = vega; window.vl = vegaLite;")
    versions = {
        "vega_version": altair.VEGA_VERSION,
        "vegalite_version": altair.VEGALITE_VERSION,
        "vegaembed_version": altair.VEGAEMBED_VERSION,
    }
    script = f"(function () {{\n{vega}\n}})();\nwindow.VEGA_DEBUG = {json.dumps(versions)};"
    files.write(executed / "_static" / "vega.js", script.encode())
    for name in ("_toc.yml", "_config.yml"):
        shutil.copy(root / name, executed / name)
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(executed)]
    command += ["--path-output", str(root), "--warningiserror", "--keep-going", "--all"]
    shutil.rmtree(root / "_build" / "html", ignore_errors=True)
    finished = subprocess.run(command, env=os.environ | {"PYTHONWARNINGS": "ignore"}, capture_output=True, text=True)
    page = root / "_build" / "html" / "index.html"
    if finished.returncode or not page.is_file():
        raise BookError(f"Jupyter Book failed:\n{finished.stdout[-3000:]}\n{finished.stderr[-5000:]}")
    return page
