"""A user's own models and files of features: represented on a probe, and rows matched by sample."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm

from repsim_utils import features, files, metrics
from repsim_utils.datasets.probes import TEXT, Probe
from repsim_utils.models import named
from repsim_utils.models.device import device
from repsim_utils.models.named import Named

log = logging.getLogger(__name__)
FORMAT = 1  # of the files that `write` makes
OUTPUT = "output"
POOLS = ("mean", "flatten")
ALONE = 0.01  # of the largest value: more than rounding makes
ALL = ("*",)  # every layer that `repsim_utils.metrics.layerwise` takes by default


@dataclass(frozen=True)
class Represented:
    """What a model makes of samples.

    Attributes
    ----------
    source : str
        Model or file, as named by the user.
    layers : dict
        From the name of a layer to (n, d), rows in the order of `ids`; ``output`` is what the network itself returns.
    ids, checksums : tuple of str, optional
        Of the samples, see `repsim_utils.datasets.probes`; None of a file that does not say.
    about : dict
        What else is to be known: the probe, whether weights are trained, how positions were pooled.
    """

    source: str
    layers: dict[str, Any]
    ids: tuple[str, ...] | None = None
    checksums: tuple[str, ...] | None = None
    about: dict[str, str] = field(default_factory=dict)

    @property
    def output(self) -> Any:
        """The output, or else the last layer."""
        return self.layers.get(OUTPUT, list(self.layers.values())[-1])

    def __len__(self) -> int:
        return len(self.output)


def represent(
    source: str,
    probe: Probe,
    *,
    layers: Sequence[str] = (),
    untrained: bool = False,
    seed: int = 0,
    pool: str = "mean",
    batch_size: int = 32,
) -> Represented:
    """A model's representation of a probe, prepared as this model wants it.

    Parameters
    ----------
    source : str
        A model, see `repsim_utils.models.named.find`.
    probe : Probe
    layers : sequence of str
        Layers beside the output, by name; ``*`` stands for a part of a name between dots. `ALL` takes every layer that
        has a weight matrix and a row for each sample.
    untrained : bool
        With random weights, as a control.
    seed : int
        Of these.
    pool : {"mean", "flatten"}
        What becomes of positions and tokens, see `repsim_utils.metrics.layer_features`.
    batch_size : int
        Samples at a time.

    Returns
    -------
    Represented

    Raises
    ------
    ValueError
        If there is no such model or layer, or a layer has no row for each sample.
    DataError, WeightsError
        If a sample cannot be read, or weights cannot be had.
    """
    if pool not in POOLS:
        raise ValueError(f"pool must be {' or '.join(POOLS)}, got {pool!r}: a sample has one row")
    found = named.find(source, probe.kind, untrained=untrained, seed=seed)
    network = found.network
    names = [None] if tuple(layers) == ALL else _matching(network, layers)
    batches = (_moved(found.prepare(batch)) for batch in probe.batches(batch_size))
    total = -(-len(probe.ids) // batch_size)
    shown = tqdm(batches, desc=source, total=total, unit="batch", disable=None)
    (rows,) = metrics.layer_features((network,), shown, [[*names, ""]], pool=pool)
    _check_alone(source, found, probe, rows, set(names), pool)
    about = {"model": source, "weights": f"random, seed {seed}" if untrained else "trained", "probe": probe.name}
    about |= {"kind": probe.kind, "pool": pool}
    rows[OUTPUT] = rows.pop("")
    return Represented(source, rows, probe.ids, probe.checksums, about)


def _check_alone(
    source: str, found: Named, probe: Probe, rows: dict[str, Any], named: set[str | None], pool: str
) -> None:
    """Refuse what gives a sample another row alone than in its batch: padding that counts, or random numbers.

    Of the first samples it is the shortest, which is padded most. Layers that nobody has named are left out instead.
    """
    i = min(range(min(len(probe.ids), 8)), key=lambda i: len(probe.samples[i]) if probe.kind == TEXT else 0)
    (batch,) = probe.one(i)
    (alone,) = metrics.layer_features((found.network,), [_moved(found.prepare(batch))], [list(rows)], pool=pool)
    for name in list(rows):
        apart = float((alone[name][0] - rows[name][i]).abs().max() / rows[name].abs().max())
        if apart <= ALONE:
            continue
        told = f"gives {probe.ids[i]!r} another row alone than in a batch, by {apart:.0%} of the largest value"
        if not name or name in named:
            raise ValueError(
                f"{source}: {name or 'the model'} {told}: padding or random numbers count in it. With --batch-size 1 "
                "nothing is padded"
            )
        log.warning("%s: layer %s is left out, as it %s", source, name, told)
        del rows[name]
    if bool((rows[""] == rows[""][:1]).all()):
        raise ValueError(f"{source} gives every sample the same: look at its tokenizer or preprocessing")


def _matching(network: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Layers by their names, in the order of the network; ``*`` stands for what lies between dots."""
    return chosen([name for name, _ in network.named_modules() if name], patterns)


def chosen(there: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Names that match a pattern, in their order; of a pattern that matches none, a ValueError."""
    found: set[str] = set()
    for pattern in patterns:
        shape = re.compile(re.escape(pattern).replace(r"\*", "[^.]*"))
        some = {name for name in there if shape.fullmatch(name)}
        if not some:
            outer = ", ".join(name for name in there if name.count(".") < 2)
            raise ValueError(f"no layer {pattern}; there is {outer}, and what is within them")
        found |= some
    return [name for name in there if name in found]


def _moved(batch: Any) -> Any:
    """A batch on the device."""
    if isinstance(batch, Tensor):
        return batch.to(device())
    return {name: values.to(device()) for name, values in batch.items()}


def write(represented: Represented, path: Path) -> None:
    """Write representations as safetensors, with the ids of the samples beside them; whole, or not at all.

    Raises
    ------
    ValueError
        If the name does not end in ``.safetensors``.
    OSError
        If the file cannot be written.
    """
    check_name(path)
    told = represented.about | {
        "repsim": json.dumps(FORMAT),
        "layers": json.dumps(list(represented.layers)),
        "ids": json.dumps(represented.ids),
        "checksums": json.dumps(represented.checksums),
    }
    tensors = {name: torch.as_tensor(x).contiguous() for name, x in represented.layers.items()}
    files.write(path, save(tensors, metadata=told))


def check_name(path: Path) -> None:
    """Refuse a name that `write` would, before anything is computed."""
    if path.suffix.lower() != ".safetensors":
        raise ValueError(f"{path}: features are written as safetensors: let the name end in .safetensors")
    if path.is_dir():
        raise ValueError(f"{path}: this is a folder")


def read(source: str, *, layers: Sequence[str] = ()) -> Represented:
    """Features from a file; of one that `write` made, with its ids and, if wanted, all of its layers.

    Parameters
    ----------
    source : str
        As `repsim_utils.features.load` has it.
    layers : sequence of str
        Of a .safetensors or .npz file with several arrays, those beside the output, as of `represent`.

    Returns
    -------
    Represented

    Raises
    ------
    ValueError
        As `repsim_utils.features.load`.
    """
    path, name = features.split(source)
    about = _metadata(path)
    ids, checksums = (tuple(json.loads(about[key])) if key in about else None for key in ("ids", "checksums"))
    if name is None and "layers" in about and not layers:
        name = OUTPUT
    names = json.loads(about["layers"]) if "layers" in about else features.names(path)
    wanted = [name]
    if layers and name is None and names:
        some = names if tuple(layers) == ALL else chosen([one for one in names if one != OUTPUT], layers)
        wanted = [*(one for one in some if one != OUTPUT), *([OUTPUT] if OUTPUT in names else [])]
    found = {one or OUTPUT: features.load(f"{path}:{one}" if one else path) for one in wanted}
    plain = {key: value for key, value in about.items() if key not in ("repsim", "layers", "ids", "checksums")}
    return Represented(source, found, ids, checksums, plain)


def _metadata(path: Path) -> dict[str, str]:
    """What `write` has told of a file; nothing of another one."""
    if path.suffix.lower() != ".safetensors" or not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt") as opened:
            told: dict[str, str] = opened.metadata() or {}
    except (OSError, SafetensorError):
        return {}  # which `features.load` says
    return told if "repsim" in told else {}


def gather(
    sources: Sequence[str],
    probe: Probe | None = None,
    *,
    layers: Sequence[str] = (),
    untrained: bool = False,
    control: bool = True,
    pool: str = "mean",
    batch_size: int = 32,
) -> tuple[list[Represented], list[Represented]]:
    """Models and files, their rows matched; and, where all are models, networks of their shapes with random weights.

    Parameters
    ----------
    sources : sequence of str
        Models and files of features.
    probe : Probe, optional
        Needed for models.
    layers, pool, batch_size
        As of `represent`.
    untrained : bool
        The models themselves with random weights, those of seeds 0, 1, 2 …
    control : bool
        Whether to make the control, which has the seeds after these.

    Returns
    -------
    tuple of list of Represented
        In the order of `sources`; the second list is empty without a control.

    Raises
    ------
    ValueError
        As `represent`, `read` and `matched`, or if the probe is missing or of no use.
    """
    models = [source for source in sources if named.is_model(source)]
    if models and probe is None:
        raise ValueError(
            f"{models[0]} is a model and needs samples: add --probe with a folder of pictures or a file of text"
        )
    if probe is not None and not models:
        raise ValueError("the probe is for models, and these are files of features: leave out --probe")
    options: Any = {"layers": layers, "pool": pool, "batch_size": batch_size}
    found: list[Represented] = []
    for i, source in enumerate(sources):
        if probe is not None and named.is_model(source):
            found.append(represent(source, probe, untrained=untrained, seed=i, **options))
        else:
            found.append(read(source, layers=layers))
    for i, source in enumerate(sources):
        for other in sources[:i]:
            features.check_order(other, source)
    controls = []
    if control and probe is not None and len(models) == len(sources):
        after = len(sources) if untrained else 0
        controls = [represent(one, probe, untrained=True, seed=after + i, **options) for i, one in enumerate(sources)]
    labels: list[str] = []
    for source in sources:
        tries = (source, *(f"{source} ({n})" for n in range(2, len(sources) + 2)))
        labels.append(
            next(label for label in tries if label not in labels and (label == source or label not in sources))
        )
    found = [replace(one, source=label) for one, label in zip(found, labels, strict=True)]
    return matched(found), controls


def matched(several: Sequence[Represented]) -> list[Represented]:
    """The same samples in the same order, that of the first that names them; by their ids where there are some.

    Raises
    ------
    ValueError
        If two do not have the same samples, or one sample holds something else in another; the message names it.
    """
    first = next((one for one in several if one.ids is not None), several[0])
    found = []
    for other in several:
        if other is first or first.ids is None:
            found.append(other)
            continue
        if other.ids is None:
            told = "%s does not name its samples: its rows count as those of %s, in that order"
            log.warning(told, other.source, first.source)
            found.append(other)
            continue
        _check_samples(first, other)
        place = {name: i for i, name in enumerate(other.ids)}
        order = [place[name] for name in first.ids]
        rows = {name: x[order] for name, x in other.layers.items()}
        found.append(replace(other, layers=rows, ids=first.ids, checksums=first.checksums))
    return found


def _check_samples(first: Represented, other: Represented) -> None:
    """Refuse two that are not of the same samples."""
    a, b = (dict(zip(one.ids or (), one.checksums or (), strict=True)) for one in (first, other))
    for here, there, one, two in ((a, b, first, other), (b, a, other, first)):
        if lacking := [name for name in here if name not in there]:
            raise ValueError(
                f"{two.source} lacks {len(lacking)} of the {len(here)} samples of {one.source}, such as "
                f"{lacking[0]!r}: represent the same probe with both"
            )
    if changed := [name for name in a if a[name] != b[name]]:
        raise ValueError(
            f"{len(changed)} samples hold something else in {other.source} than in {first.source}, such as "
            f"{changed[0]!r}: represent the same probe with both"
        )
