"""Time and memory of the paper's eight metrics: the package, the literal definitions, and the bare products below both.

Every line is measured in a process of its own, on two random float32 representations of 512 features. Memory is the
peak above what the process held with its inputs made, as Linux counts it. The definitions are those that the tests
hold the package against (`tests/metrics/literal.py`), in float64 as the package is. "Bare" is what finding neighbours
takes at the least: blocks of x @ x.T and y @ y.T in float32, and the ten largest entries of each row.

`python benchmarks/metrics.py` (about 15 minutes), or `python benchmarks/metrics.py 1000 2000` for these sizes only.
"""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from repsim_utils import metrics  # noqa: E402
from repsim_utils.metrics.inputs import as_pair  # noqa: E402
from tests.metrics import literal  # noqa: E402

D = 512
BOTH, LARGE = (1_000, 2_000, 5_000, 10_000), (20_000, 50_000, 100_000)
NEIGHBORS = [name for name, metric in metrics.METRICS.items() if "k" in metric.options]


def inputs(n):
    """Two related representations, float32."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, D, generator=generator)
    y = torch.empty_like(x)
    mix = torch.randn(D, D, generator=generator) / D**0.5
    for rows in range(0, n, 1000):
        y[rows : rows + 1000] = x[rows : rows + 1000] @ mix + torch.randn(min(1000, n - rows), D, generator=generator)
    return x, y


def by_definition(x, y):
    """The eight metrics, one after the other, each from the features."""
    literal.products = lambda x: x @ x.T  # faster than row by row
    x, y = literal.platonic(x.numpy()), literal.platonic(y.numpy())
    return {name: float(getattr(literal, name)(x, y)) for name in metrics.PAPER}


def bare(x, y, k=10, block=512):
    """Products in blocks, and the largest entries of each row."""
    products = torch.empty(block, len(x))
    for values in (x, y):
        for start in range(0, len(values), block):
            rows = values[start : start + block]
            torch.mm(rows, values.T, out=products[: len(rows)])
            products[: len(rows)].topk(k, dim=1)


def permutations(x, y):
    """Seconds of one evaluation and of 200 permutations, by neighbour metric."""
    seconds = {}
    for name in NEIGHBORS:
        start = time.perf_counter()
        metric = metrics.METRICS[name]
        first, second = (metric.prepare(values, **metric.options) for values in as_pair(x, y))
        score = metric.score
        score(first, second)
        evaluation = time.perf_counter() - start
        start = time.perf_counter()
        for _ in range(200):
            score(first, second.permuted(torch.randperm(len(x))))
        seconds[name] = (evaluation, time.perf_counter() - start)
    return seconds


TASKS = {
    "eight": metrics.similarity,
    "cka": lambda x, y: metrics.similarity(x, y, ["cka"]),
    "mutual_knn": lambda x, y: metrics.similarity(x, y, ["mutual_knn"]),
    "literal": by_definition,
    "bare": bare,
    "permutations": permutations,
}


def memory(field):
    """A field of this process's status, in bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def measure(task, n):
    """In a fresh process: seconds, bytes above the inputs, and what the task returned."""
    finished = subprocess.run([sys.executable, __file__, "--one", task, str(n)], capture_output=True, text=True)
    if finished.returncode:
        sys.exit(finished.stderr)
    return json.loads(finished.stdout)


def one(task, n):
    """The body of that process."""
    if task in ("eight", "cka", "mutual_knn", "permutations"):
        TASKS["eight" if task == "permutations" else task](*inputs(200))  # libraries are loaded and threads started
    x, y = inputs(n)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, start = memory("VmRSS"), time.perf_counter()
    result = TASKS[task](x, y)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "bytes": memory("VmHWM") - before, "result": result}))


def main(sizes):
    """Print the tables of the README."""
    print(f"{torch.get_num_threads()} threads, d = {D}\n")
    print("| n | by definition | this package | times as fast | memory, by definition | memory, this package |")
    print("|---|---|---|---|---|---|")
    for n in [n for n in sizes if n <= max(BOTH)]:
        slow, ours = measure("literal", n), measure("eight", n)
        for name, value in slow["result"].items():
            if not math.isclose(value, ours["result"][name], rel_tol=1e-6):
                sys.exit(f"{name} differs at n = {n}: {value} by definition, {ours['result'][name]} here")
        ratio = slow["seconds"] / ours["seconds"]
        sides = [f"{m['seconds']:.2f} s" for m in (slow, ours)]
        held = [f"{m['bytes'] / 2**20:,.0f} MiB" for m in (slow, ours)]
        print(f"| {n:,} | {sides[0]} | {sides[1]} | {ratio:.0f} | {held[0]} | {held[1]} |", flush=True)
    print("\n| n | CKA alone | mutual k-NN alone | all eight | bare products and top-k | eight / bare | memory |")
    print("|---|---|---|---|---|---|---|")
    times = {}
    for n in [n for n in sizes if n >= max(BOTH)]:
        rows = {task: measure(task, n) for task in ("cka", "mutual_knn", "eight", "bare")}
        times[n] = {task: row["seconds"] for task, row in rows.items()}
        ratio = times[n]["eight"] / times[n]["bare"]
        cells = " | ".join(f"{seconds:.2f} s" for seconds in times[n].values())
        print(f"| {n:,} | {cells} | {ratio:.2f} | {rows['eight']['bytes'] / 2**20:,.0f} MiB |", flush=True)
    if len(times) > 1:
        first, last = min(times), max(times)
        growth = {t: np.log(times[last][t] / times[first][t]) / np.log(last / first) for t in ("cka", "mutual_knn")}
        print(
            f"\nFrom n = {first:,} to {last:,} CKA grows as n^{growth['cka']:.2f}, "
            f"mutual k-NN as n^{growth['mutual_knn']:.2f}."
        )
    if max(BOTH) in sizes:
        print(f"\nAt n = {max(BOTH):,}, 200 permutations take as long as so many evaluations:")
        for name, (evaluation, many) in measure("permutations", max(BOTH))["result"].items():
            print(f"  {name:18} {many / evaluation:.2f} ({many:.2f} s; one evaluation {evaluation:.2f} s)")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], int(sys.argv[3]))
    else:
        main([int(argument) for argument in sys.argv[1:]] or [*BOTH, *LARGE])
