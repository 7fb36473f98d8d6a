"""Layer by layer: CKA of two ResNets here against pytorch-cka and torch-cka, with maps flattened and averaged.

Needs ``pip install --no-deps pytorch-cka==1.1.3 torch-cka==0.21`` (matplotlib and tqdm are there); with ``--target
FOLDER`` and ``PYTHONPATH=FOLDER`` they stay out of the environment of the book. Run with nothing beside it:
``python benchmarks/layers.py`` or, for 256 pictures, 6 layers and one round, ``python benchmarks/layers.py 256 6 1``.

Two of torchvision's ResNet-18 with random weights see pictures of ColorShapeDigit, in one order and in batches of 128.
Of all pairs of their convolutions and the layer `fc`, everybody gives the unbiased estimate: here of the whole sample,
of the others sums over batches, which is how they are used, and of pytorch-cka also with the whole sample as its one
batch, which is then the same estimate. Averaging is not something that the others know: their network has a module more
for each layer, through which the means pass. torch-cka runs without gradients, which it leaves to whoever calls it.

Every way is measured in a process of its own, in turns, and the median counts. Memory is the peak above what the
process held with pictures and networks made, as Linux counts it. "Exact" is the definition that the tests have
(`tests/metrics/literal.py`) in float64; it is the same for both, since `fc` has no positions.
"""

import importlib.util
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from repsim_utils.datasets.color_shape_digit import ColorShapeDigit  # noqa: E402
from repsim_utils.metrics import layerwise  # noqa: E402
from tests.metrics import literal  # noqa: E402

N, SIZE, BATCH, ROUNDS = 2048, 64, 128, 3
PEERS = {"cka": "pytorch-cka==1.1.3", "torch_cka": "torch-cka==0.21"}
WAYS = ("here", "pytorch-cka", "torch-cka", "pytorch-cka, one batch")


def pictures(n):
    """Pictures of all kinds, in no order."""
    drawn = ColorShapeDigit(-(-n // 800), split="test", size=SIZE).images
    order = torch.randperm(len(drawn), generator=torch.Generator().manual_seed(0))[:n]
    return (drawn[order] / 255 - 0.5) / 0.25


def network(seed):
    torch.manual_seed(seed)
    return resnet18(weights=None).eval()


def some_layers(count):
    """Names of the first and the last layer, and of some between."""
    names = [name for name, module in network(0).named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return [names[i] for i in np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int)]


class Averaged(nn.Module):
    """A network, and for each layer a module that returns the means of its maps."""

    def __init__(self, net, layers):
        super().__init__()
        self.net, self.mean = net, nn.ModuleDict({name.replace(".", "_"): nn.Identity() for name in layers})
        for name in layers:
            net.get_submodule(name).register_forward_hook(self.hook(self.mean[name.replace(".", "_")]))

    def hook(self, mean):
        def look(module, inputs, output):
            mean(output.mean((2, 3)) if output.ndim == 4 else output)

        return look

    def forward(self, x):
        return self.net(x)


def as_peers_take_it(pair, layers, pool):
    """Two networks, and the names of what gives their layers as the pool has them."""
    if pool == "flatten":  # what both do
        return pair, layers
    return [Averaged(net, layers) for net in pair], [f"mean.{name.replace('.', '_')}" for name in layers]


def here(pair, batches, layers, pool):
    return layerwise(*pair, batches, layers, pool=pool, metric="unbiased_cka").values


def pytorch_cka(pair, batches, layers, pool):
    from cka import compute_cka

    pair, names = as_peers_take_it(pair, layers, pool)
    return compute_cka(*pair, batches, layers=names, device="cpu", progress=False)[0].numpy()


@torch.no_grad()
def torch_cka(pair, batches, layers, pool):
    from torch_cka import CKA

    pair, names = as_peers_take_it(pair, layers, pool)
    cka = CKA(*pair, "first", "second", names, names, device="cpu")
    cka.compare(batches, batches)
    return cka.export()["CKA"].numpy()


def one(way, pool, n, count):
    """The body of a process: seconds, bytes, and the table."""
    images, layers, pair = pictures(n), some_layers(count), [network(0), network(1)]
    ways = {"here": here, "pytorch-cka": pytorch_cka, "torch-cka": torch_cka}
    run = ways[way.partition(",")[0]]
    run([network(2), network(3)], DataLoader(TensorDataset(images[:8]), 8), layers[-1:], pool)  # libraries are loaded
    batches = DataLoader(TensorDataset(images), n if way.endswith("one batch") else BATCH)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, start = memory("VmRSS"), time.perf_counter()
    table = run(pair, batches, layers, pool)
    seconds = time.perf_counter() - start
    print("\n" + json.dumps({"seconds": seconds, "bytes": memory("VmHWM") - before, "table": table.tolist()}))


def memory(field):
    """A field of this process's status, in bytes; what getrusage counts begins with the peak of its parent."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def exact(n):
    """Unbiased CKA of the last layers, by its definition."""
    images = pictures(n)
    with torch.no_grad():
        x, y = (torch.cat([network(seed)(batch) for batch in images.split(BATCH)]).double() for seed in (0, 1))
    return float(literal.unbiased_cka(*((values - values.mean(0)).numpy() for values in (x, y))))


def measure(*arguments):
    """In a fresh process."""
    command = [sys.executable, __file__, "--one", *map(str, arguments)]
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode:
        sys.exit(finished.stderr)
    return json.loads(finished.stdout.splitlines()[-1])


def main(n, count, rounds):
    """Print a table for each pool."""
    if absent := [wanted for module, wanted in PEERS.items() if importlib.util.find_spec(module) is None]:
        sys.exit(f"needs others to compare with: pip install --no-deps {' '.join(absent)}")
    layers, right = some_layers(count), exact(n)
    print(f"{n} pictures of {SIZE} pixels, {len(layers)} × {len(layers)} layers, {torch.get_num_threads()} threads;")
    print(f"median of {rounds} rounds; exact value of {layers[-1]}: {right:.6f}")
    for pool in ("flatten", "mean"):
        taken = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way in WAYS:
                taken[way].append(measure(way, pool, n, count))
        ours = statistics.median(m["seconds"] for m in taken["here"])
        print(f"\n| pool={pool!r} | seconds | times ours | memory | `{layers[-1]}` | off the exact value |")
        print("|---|---|---|---|---|---|")
        for way, some in taken.items():
            seconds, held = (statistics.median(m[what] for m in some) for what in ("seconds", "bytes"))
            value = some[0]["table"][-1][-1]
            cells = f"{seconds:.1f} | {seconds / ours:.2f} | {held / 2**20:,.0f} MiB | {value:.6f}"
            print(f"| {way} | {cells} | {abs(value - right):.0e} |", flush=True)
        tables = {way: np.array(some[0]["table"]) for way, some in taken.items()}
        for way in WAYS[1:]:
            print(f"{way}: at most {np.abs(tables[way] - tables['here']).max():.0e} from here, over all pairs")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], sys.argv[3], *map(int, sys.argv[4:]))
    else:
        given = [int(argument) for argument in sys.argv[1:]]
        main(*given, *(N, 99, ROUNDS)[len(given) :])
