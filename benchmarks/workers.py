"""Cells an hour: workers with one thread each, against one process with as many threads; both make the same cells.

Run with nothing beside it: ``python benchmarks/workers.py [WORKERS]`` (default: one a core).
"""

from __future__ import annotations

import os
import sys
import tempfile
import time

import torch

from repsim_utils import cluster, profiles
from repsim_utils.experiments import engine, vision
from repsim_utils.store import Store
from repsim_utils.sweep import sweep

SETTINGS = {"seeds": [0, 1, 2, 3], "overlaps": [0, 0.5, 1], "architectures": ["small_resnet"]}


def main() -> None:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else os.cpu_count() or 1
    cells = vision.pairs(profiles.load("laptop", vision.DATASET, **SETTINGS), vision.DATASET)
    n_models = len({repr(member) for cell in cells for member in cell.needs()})
    print(f"{len(cells)} cells of the laptop profile (small ResNet), {n_models} models; {n} cores")
    rates = {}
    for what in ("one process", "workers"):
        with tempfile.TemporaryDirectory() as folder, cluster.workers(0 if what == "one process" else n) as client:
            torch.set_num_threads(n)
            start = time.perf_counter()
            sweep(engine.measure, cells, train=engine.trained, store=Store(folder), client=client, progress=False)
            seconds = time.perf_counter() - start
        rates[what] = 3600 * len(cells) / seconds
        threads = f"1 process, {n} threads" if what == "one process" else f"{n} workers, 1 thread each"
        print(f"{threads:28} {seconds:6.1f} s   {rates[what]:6.0f} cells an hour")
    print(f"ratio {rates['workers'] / rates['one process']:.2f}")


if __name__ == "__main__":
    main()
