"""Whether single models of `together_tasks` learn their tasks: accuracy on their own and on new images, and seconds.

No pair is compared, so nothing of what the experiment asks is seen. ``OMP_NUM_THREADS=1 python benchmarks/tasks.py``
"""

from __future__ import annotations

import time

from repsim_utils import profiles
from repsim_utils.experiments import together
from repsim_utils.experiments.samples import relabelled
from repsim_utils.store import Store
from repsim_utils.training.vision import accuracy

SEED = 300  # for this alone; the experiment has others
TASKS = ["shape | digit", "digit | shape", "shape+digit | shape+color", "shape+color | shape+digit"]
TASKS += ["shape+digit+color | shape+digit+color"]  # the first model of each is trained


def main() -> None:
    settings = profiles.load("laptop", "together_tasks", seeds=[SEED], overlaps=[0], tasks=TASKS)
    print("task               classes  images  own    new    seconds")
    for pair in together.pairs(settings, together.TASKS):
        member, store = pair.first, Store()
        network, start = member.build(store), time.perf_counter()
        member.fit(network, store, progress=False)
        seconds = time.perf_counter() - start
        own = accuracy(network, *member.own())
        new = accuracy(network, *relabelled(pair.held_out(), member.label_map()))
        n_classes, n = member.counts()
        print(f"{'+'.join(member.factors or ()):18} {n_classes:7} {n:7}  {own:.3f}  {new:.3f} {seconds:8.1f}")


if __name__ == "__main__":
    main()
