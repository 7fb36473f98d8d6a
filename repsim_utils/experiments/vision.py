"""Overlap in vision: two classifiers share samples of every class (dataset overlap) or whole classes (task overlap)."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from torch import Tensor

from repsim_utils import overlap as splitting
from repsim_utils.datasets import vision
from repsim_utils.datasets.cache import DataError
from repsim_utils.datasets.vision import Images
from repsim_utils.experiments import samples
from repsim_utils.experiments.common import (
    LEAST_PROBE,
    Architecture,
    Declared,
    Frozen,
    Overlaps,
    Seeds,
    check_choice,
    one_name_each,
    similarities,
    single,
)
from repsim_utils.experiments.samples import Data
from repsim_utils.features import represent
from repsim_utils.models import vision as models
from repsim_utils.models.vision import Classifier, build
from repsim_utils.overlap import ClassSplit, Split, split_by_class, split_by_example
from repsim_utils.plan import Size
from repsim_utils.store import Run, Store
from repsim_utils.training import vision as training
from repsim_utils.training.vision import Recipe, accuracy, train

log = logging.getLogger(__name__)
VERSION = 1  # raised when the same pair gives other measurements
Kind = Literal["dataset_overlap_vision", "task_overlap_vision"]
DATASET: Kind = "dataset_overlap_vision"
TASK: Kind = "task_overlap_vision"
SUMMARY = ("dataset", "architecture", "probe", "metric", "overlap")
LEAST_CLASSES = 4  # of which two models get two each
GROUPS = ("common_classes", "classes_seen_by_one", "classes_seen_by_none")


class Trainee(Frozen):
    """A network and its recipe; `seeds` and `overlaps` stand in for those of all networks."""

    network: Architecture
    recipe: Recipe
    seeds: Seeds | None = None
    overlaps: Overlaps | None = None


def _known_probes(sources: tuple[str, ...]) -> tuple[str, ...]:
    for source in sources:
        if source not in vision.NAMES and not Path(source).is_dir():
            raise ValueError(f"probes are of {', '.join(vision.NAMES)}, or folders of images; got {source}")
    return sources


class Settings(Declared):
    """What a profile says of an experiment on overlap.

    `models` are named by what tables call them; `architectures` picks some of them (None: all). A pair is measured on
    held-out images (`n_test` a class; None: all) and on the data sets in `probes`, at most `n_probe` images each, if
    that is one of every class. Of classes that both, one or none of the models has seen, a probe takes `probe_classes`,
    the same ones at every overlap (None: all that there are).
    """

    seeds: Seeds
    overlaps: Overlaps
    mode: Literal["constrained", "unconstrained"] = "constrained"
    data: Annotated[tuple[Data, ...], BeforeValidator(single), Field(min_length=1)]
    models: dict[str, Trainee] = Field(min_length=1)
    architectures: tuple[str, ...] | None = Field(None, min_length=1)
    probes: Annotated[tuple[Annotated[str, AfterValidator(samples.absolute)], ...], AfterValidator(_known_probes)] = ()
    n_test: int | None = Field(None, ge=1)
    n_probe: int = Field(10_000, ge=20)
    probe_classes: int | None = Field(None, ge=2)
    n_permutations: int = Field(200, ge=19)

    @model_validator(mode="after")
    def _known(self) -> Settings:
        check_choice(self.architectures, self.models)
        one_name_each(data.name for data in self.data)
        for data in self.data:
            one_name_each(samples.name_of(source) for source in (data.source, *self.further(data)))
        return self

    def further(self, data: Data) -> tuple[str, ...]:
        """Probes that are not the data's own held-out images, on which pairs are measured anyway."""
        return tuple(name for name in self.probes if name != data.source)


class Part(Frozen):
    """What one of two models is trained on."""

    by: Literal["example", "class"]
    which: Literal[1, 2]
    overlap: float
    mode: Literal["constrained", "unconstrained"]
    seed: int
    data: Data
    fingerprint: str


class Member(Part):
    """One model: what it is trained on, and how."""

    kind: Literal["models"] = "models"
    version: tuple[int, int, int] = (splitting.VERSION, models.VERSION, training.VERSION)
    network: Architecture
    recipe: Recipe


class Pair(Frozen):
    """One cell of an experiment: two models, and what is measured on them."""

    kind: Kind
    version: int = VERSION
    architecture: str
    overlap: float
    first: Member
    second: Member
    probes: tuple[str, ...]
    probe_fingerprints: tuple[str, ...] = Field((), exclude_if=lambda value: not value)  # of folders among the probes
    n_test: int | None
    n_probe: int
    probe_classes: int | None
    n_permutations: int

    @property
    def members(self) -> tuple[Member, Member]:
        """Models that must have been trained before the pair is measured."""
        return self.first, self.second


def pairs(settings: Settings, kind: Kind) -> list[Pair]:
    """Every cell of an experiment, seed by seed."""
    cells = []
    for data in settings.data:
        print_of = samples.fingerprint(data)
        samples.check(data, settings.n_test, print_of, least_classes=LEAST_CLASSES if kind == TASK else 1)
        further = settings.further(data)
        prints = tuple(vision.fingerprint(name, data.pixels) for name in further if name not in vision.NAMES)
        for name in settings.architectures or settings.models:
            model = settings.models[name]
            for seed in model.seeds or settings.seeds:
                for overlap in model.overlaps or settings.overlaps:
                    common: dict[str, Any] = {"by": "example" if kind == DATASET else "class", "mode": settings.mode}
                    common |= {"seed": seed, "data": data, "fingerprint": print_of}
                    common |= {"network": model.network, "recipe": model.recipe}
                    # In constrained mode the first model's half is the same at every overlap, and it is trained once.
                    alone = 0.0 if settings.mode == "constrained" else overlap
                    first, second = Member(which=1, overlap=alone, **common), Member(which=2, overlap=overlap, **common)
                    measured = settings.model_dump(include={"n_test", "n_probe", "probe_classes", "n_permutations"})
                    measured |= {"probes": further, "probe_fingerprints": prints}
                    cells.append(
                        Pair(kind=kind, architecture=name, overlap=overlap, first=first, second=second, **measured)
                    )
    return cells


def prepare(cells: Iterable[Any]) -> None:
    """Fetch and parse what cells read, so that what is missing is missed before hours of training.

    Raises
    ------
    DataError
        If a data set cannot be had.
    """
    wanted = set()
    for cell in cells:
        for data in {member.data for member in cell.members if member.data.source != samples.DRAWN}:
            wanted |= {(data.source, split, data.size) for split in ("train", "test")}
        wanted |= {(name, "test", cell.second.data.pixels) for name in getattr(cell, "probes", ())}
    for source, split, size in sorted(wanted, key=str):
        vision.load(source, split, size=size)


def pool(member: Part) -> Images:
    """Images that the two models of a seed divide."""
    return samples.divided(member.data, member.seed, member.fingerprint)


def held_out(pair: Any) -> Images:
    """Images that no model of a pair's seed has seen, `n_test` of every class."""
    return samples.held_out(pair.second.data, pair.n_test, pair.second.seed, pair.second.fingerprint)


def split(member: Part) -> Split:
    """What the two models are trained on, as indices into the pool; see `repsim_utils.overlap`."""
    function = split_by_example if member.by == "example" else split_by_class
    return function(pool(member).labels.numpy(), member.overlap, seed=member.seed, mode=member.mode)


def label_map(member: Part) -> dict[int, int]:
    """New label of every class that the model is trained on."""
    parts = split(member)
    if isinstance(parts, ClassSplit):
        return parts.label_map_first if member.which == 1 else parts.label_map_second
    return {label: label for label in range(len(pool(member).classes))}


def relabelled(images: Images, names: dict[int, int]) -> tuple[Tensor, Tensor]:
    """Images of some classes, with their new labels."""
    known = torch.isin(images.labels, torch.tensor(sorted(names)))
    labels = torch.tensor([names[int(label)] for label in images.labels[known]])
    return images.images[known], labels


def trained(member: Member, store: Store, *, progress: bool = True) -> Run:
    """The run of one model: from the store, or trained now and kept there."""
    config = member.model_dump(mode="json")
    run = store.load(member.kind, config)
    if run is None:
        parts, images = split(member), pool(member)
        mine = samples.subset(images, parts.first if member.which == 1 else parts.second)
        model = _build(member)
        train(model, *relabelled(mine, label_map(member)), member.recipe, seed=_own_seed(member), progress=progress)
        run = store.save(member.kind, config, {"n_train": len(mine.labels)}, model.state_dict())
    return run


def _own_seed(member: Member) -> int:
    """The two models of a pair start from other weights and see their batches in another order."""
    return 2 * member.seed + member.which - 1


def _build(member: Member, *, download: bool = True) -> Classifier:
    n_classes, seed = len(label_map(member)), _own_seed(member)
    return build(n_classes=n_classes, seed=seed, download=download, **member.network.model_dump())


def size(member: Member) -> Size:
    """What training a model takes, known without the data unless they are a folder."""
    n_classes, n_train = counts(member)
    network = {"n_classes": n_classes} | member.network.model_dump()
    return Size(member.data.name, network, n_train, member.recipe.epochs, member.data.pixels)


def counts(member: Part) -> tuple[int, int]:
    """How many classes and images a model sees."""
    of_classes = samples.counts(member.data, member.seed, member.fingerprint)
    return _seen(member.by, member.mode, member.overlap, member.which, of_classes)


@lru_cache(maxsize=1024)
def _seen(by: str, mode: str, overlap: float, which: int, counts: tuple[int, ...]) -> tuple[int, int]:
    """Classes and images that a model sees, given the number of images of each class."""
    labels = np.repeat(np.arange(len(counts)), counts)
    if by == "example":
        parts = split_by_example(labels, overlap, seed=0, mode=mode)
        return len(counts), len(parts.first if which == 1 else parts.second)
    parts = split_by_class(labels, overlap, seed=0, mode=mode)
    return len(parts.classes_first), len(parts.first if which == 1 else parts.second)


def trained_model(member: Member, store: Store, *, progress: bool = True) -> Classifier:
    """A model, trained or taken from the store, in evaluation mode."""
    run = trained(member, store, progress=progress)
    model = _build(member, download=False)
    model.load_state_dict(run.weights())
    return model.eval()


def train_pair(pair: Pair, store: Store, *, progress: bool = True) -> tuple[Classifier, Classifier]:
    """Both models of a pair, trained or taken from the store, in evaluation mode."""
    first, second = (trained_model(member, store, progress=progress) for member in pair.members)
    return first, second


def probes(pair: Any) -> dict[str, Tensor]:
    """Images on which the pair is measured, uint8 (n, 3, h, w), by the name of the probe.

    A probe without images (classes that both have seen, where they share none) is left out, and so is, with a warning,
    one of fewer than `LEAST_PROBE`.
    """
    member = pair.second
    images = held_out(pair)
    by_name = {member.data.name: samples.evenly(images, range(len(images.classes)), pair.n_probe)}
    if member.by == "class":
        groups = class_groups(member, pair.probe_classes)
        if pair.probe_classes is not None:  # and as published: all classes of a group, whose number follows the overlap
            groups |= {f"{name}_all": classes for name, classes in class_groups(member).items()}
        by_name |= {name: samples.evenly(images, classes, pair.n_probe) for name, classes in groups.items() if classes}
    prints = iter(pair.probe_fingerprints)
    for name in pair.probes:
        other = vision.load(name, "test", size=member.data.pixels)
        if name not in vision.NAMES and vision.fingerprint(name, member.data.pixels) != next(prints):
            raise DataError(f"{name} has changed since this run began; run it again")
        by_name[samples.name_of(name)] = samples.evenly(other, range(len(other.classes)), pair.n_probe)
    chosen = {name: some.images for name, some in by_name.items()}
    for name in [name for name, some in chosen.items() if len(some) < LEAST_PROBE]:
        n, about = len(chosen.pop(name)), f"{member.data.name} at overlap {split(member).overlap:.2g}"
        log.warning("probe %s of %s is left out: it has %d images and needs %d", name, about, n, LEAST_PROBE)
    return chosen


def class_groups(member: Part, n: int | None = None) -> dict[str, list[int]]:
    """Classes that both, exactly one and none of two models have seen, given the second model of the pair.

    With `n`, as many of each group: the same classes at every overlap (in constrained mode) at which the group has that
    many, half of those seen by one from each model.
    """
    parts = split(member)
    assert isinstance(parts, ClassSplit)
    first, second = set(parts.classes_first.tolist()), set(parts.classes_second.tolist())
    apart = split(member.model_copy(update={"overlap": 0.0}))  # the order in which classes become common
    assert isinstance(apart, ClassSplit)
    order = apart.label_map_first | apart.label_map_second

    def some(classes: set[int], count: int | None, last: bool = False) -> list[int]:
        return sorted(classes, key=lambda c: (order.get(c, len(order)), c), reverse=last)[:count]

    half = None if n is None else n // 2
    lone = some(first - second, half) + some(second - first, half)
    every = set(range(len(pool(member).classes)))
    return dict(zip(GROUPS, (some(first & second, n, True), lone, some(every - first - second, n, True)), strict=True))


def measure_pair(pair: Pair, store: Store, *, progress: bool = True) -> list[dict[str, Any]]:
    """Similarity of the pair on every probe with its chance level, and each model's accuracy on its own classes.

    The metrics are the paper's eight, and the three of them that published tables define otherwise as published.

    Parameters
    ----------
    pair : Pair
    store : Store
        Where trained models are looked for and kept.
    progress : bool

    Returns
    -------
    list of dict
        One row a measurement: ``probe, n_probe, metric, value``, and of similarities ``null_mean, p_value`` (see
        `repsim_utils.metrics.Calibrated`).
    """
    pair_of_models = train_pair(pair, store, progress=progress)
    seed, data = pair.second.seed, pair.second.data
    rows: list[dict[str, Any]] = []
    for name, images in probes(pair).items():
        x, y = (represent(model, images) for model in pair_of_models)
        found = similarities(x, y, n_permutations=pair.n_permutations, seed=seed)
        rows += [{"probe": name, "n_probe": len(images)} | one for one in found]
    test = held_out(pair)
    for which, member, model in zip(("first", "second"), pair.members, pair_of_models, strict=True):
        images, labels = relabelled(test, label_map(member))
        score = accuracy(model, images, labels)
        rows.append({"probe": data.name, "n_probe": len(images), "metric": f"accuracy_{which}", "value": score})
    about = {"dataset": data.name, "architecture": pair.architecture, "overlap": pair.overlap, "seed": seed}
    return [about | {"realised_overlap": split(pair.second).overlap} | row for row in rows]
