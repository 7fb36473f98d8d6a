"""Images of ColorShapeDigit per second: whole batches against one image at a time, in one run.

`python benchmarks/render.py [rounds]`
"""

import statistics
import sys
import time

import torch

from repsim_utils.datasets.color_shape_digit import combination_ids, render

N_BATCH, N_SINGLE, PAPER = 40_000, 500, 800_000


def main(rounds: int) -> None:
    """Time both ways in turns and print medians, their ratio, and the time for the paper's 800,000 images."""
    batch = combination_ids(torch.arange(N_BATCH))
    render(*batch, seed=0)
    rates: dict[str, list[float]] = {"batch": [], "one by one": []}
    for _ in range(rounds):
        start = time.perf_counter()
        render(*batch, seed=0)
        rates["batch"].append(N_BATCH / (time.perf_counter() - start))
        start = time.perf_counter()
        for i in range(N_SINGLE):
            render(*(ids[i : i + 1] for ids in batch), seed=0, start=i)
        rates["one by one"].append(N_SINGLE / (time.perf_counter() - start))
    fast, slow = (statistics.median(values) for values in rates.values())
    print(f"batch       {fast:7.0f} images/s   {PAPER / fast:.0f} s for {PAPER:,} images")
    print(f"one by one  {slow:7.0f} images/s   the batch is {fast / slow:.0f} times as fast")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
