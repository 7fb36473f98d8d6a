"""Overlap in vision: two classifiers share samples of every class (dataset overlap) or whole classes (task overlap)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from torch import Tensor

from repsim_utils import features, metrics
from repsim_utils import overlap as splitting
from repsim_utils.datasets import vision
from repsim_utils.experiments import samples
from repsim_utils.experiments.common import (
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
from repsim_utils.experiments.engine import Fitted, Pair, Row, experiment
from repsim_utils.experiments.samples import LEAST_CLASSES, Data, Mode, Part, relabelled
from repsim_utils.features import represent
from repsim_utils.models import vision as models
from repsim_utils.models.vision import Classifier, build
from repsim_utils.plan import Size
from repsim_utils.store import Store
from repsim_utils.training import vision as training
from repsim_utils.training.vision import Recipe, accuracy, train

VERSION = 1  # raised when the same pair gives other measurements
Kind = Literal[
    "dataset_overlap_vision",
    "task_overlap_vision",
    "dataset_overlap_photographs",
    "task_overlap_photographs",
    "amount_of_photographs",
]
DATASET: Kind = "dataset_overlap_vision"
TASK: Kind = "task_overlap_vision"
PHOTOGRAPHS: Kind = "dataset_overlap_photographs"
TASK_PHOTOGRAPHS: Kind = "task_overlap_photographs"
AMOUNT: Kind = "amount_of_photographs"
BY_CLASS = (TASK, TASK_PHOTOGRAPHS)  # the others share samples of every class
SUMMARY = ("dataset", "architecture", "probe", "metric", "overlap")


class Trainee(Frozen):
    """A network and its recipe; the rest stands in for what holds for all networks.

    `n_per_class` is that of the data.
    """

    network: Architecture
    recipe: Recipe
    seeds: Seeds | None = None
    overlaps: Overlaps | None = None
    n_per_class: int | None = Field(None, ge=2)


def _known_probes(sources: tuple[str, ...]) -> tuple[str, ...]:
    for source in sources:
        if source not in (samples.DRAWN, *vision.NAMES) and not Path(source).is_dir():
            known = ", ".join((samples.DRAWN, *vision.NAMES))
            raise ValueError(f"probes are of {known}, or folders of images; got {source}")
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
    mode: Mode = "constrained"
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


class Member(Part):
    """One model: what it is trained on, and how."""

    depends = (splitting, models, training)
    network: Architecture
    recipe: Recipe

    def build(self, store: Store, *, download: bool = True) -> Classifier:
        """The network before its training."""
        return build(n_classes=self.counts()[0], seed=self.own_seed, download=download, **self.network.model_dump())

    def fit(self, network: Classifier, store: Store, *, progress: bool) -> Fitted:
        """Train the network on the model's own images."""
        images, labels = self.own()
        train(network, images, labels, self.recipe, seed=self.own_seed, progress=progress)
        return Fitted({"n_train": len(labels)}, network.state_dict())

    def restore(self, weights: dict[str, Tensor], store: Store) -> Classifier:
        """The network with weights that were kept; pretrained ones are not fetched."""
        network = self.build(store, download=False)
        network.load_state_dict(weights)
        return network

    def size(self) -> Size:
        """What training takes, known without the data unless they are a folder."""
        n_classes, n_train = self.counts()
        network = {"n_classes": n_classes} | self.network.model_dump()
        return Size(self.dataset, network, n_train, self.recipe.epochs, self.data.pixels)


class ImagePair(samples.Measured):
    """One cell of an experiment: two classifiers, and what is measured on them.

    `probes` are further data sets, `probe_fingerprints` those of folders and of ColorShapeDigit among them.
    """

    depends: ClassVar[tuple[ModuleType, ...]] = (vision, features, metrics)  # `vision`: further probes
    first: Member
    second: Member
    probes: tuple[str, ...] = ()
    probe_fingerprints: tuple[str, ...] = ()
    n_probe: int
    n_permutations: int

    def all_probes(self) -> dict[str, Tensor]:
        """Images on which the pair is measured, uint8 (n, 3, h, w), by the name of the probe."""
        found, prints = self.own_probes(self.n_probe), iter(self.probe_fingerprints)
        for name in self.probes:
            data = samples.as_probe(name, self.second.data.pixels)
            known = next(prints) if name not in vision.NAMES else samples.fingerprint(data)
            n_test = self.n_probe // data.n_classes if name == samples.DRAWN else None
            other = samples.held_out(data, n_test, self.second.seed, known)
            found[samples.name_of(name)] = samples.evenly(other, range(len(other.classes)), self.n_probe).images
        return self.enough(found)

    def rows(self, first: Classifier, second: Classifier, store: Store) -> Iterable[Row]:
        """Similarity on every probe with its chance level, and each model's accuracy on its own classes.

        Columns are ``probe, n_probe, metric, value``, and of similarities ``null_mean, p_value`` (see
        `repsim_utils.metrics.Calibrated`).
        """
        for name, images in self.all_probes().items():
            for found in self.alike(represent(first, images), represent(second, images)):
                yield {"probe": name, "n_probe": len(images)} | found
        test = self.held_out()
        for which, member, network in (("first", self.first, first), ("second", self.second, second)):
            images, labels = relabelled(test, member.label_map())
            score = accuracy(network, images, labels)
            about = {"probe": self.second.dataset, "n_probe": len(images)}
            yield about | {"metric": f"accuracy_{which}", "value": score}

    def alike(self, x: Tensor, y: Tensor) -> list[Row]:
        """Similarities of two representations (n, d)."""
        return similarities(x, y, n_permutations=self.n_permutations, seed=self.second.seed)


def prepare(cells: Iterable[Pair]) -> None:
    """Fetch and parse what cells read, so that what is missing is missed before hours of training.

    Raises
    ------
    DataError
        If a data set cannot be had.
    """
    wanted = set()
    for cell in cells:
        for member in cell.needs():
            if isinstance(member, Part) and member.data.source != samples.DRAWN:
                wanted |= {(member.data.source, split, member.data.size) for split in ("train", "test")}
        if isinstance(cell, ImagePair):
            wanted |= {(name, "test", cell.second.data.pixels) for name in cell.probes if name != samples.DRAWN}
    for source, split, size in sorted(wanted, key=str):
        vision.load(source, split, size=size)


def gallery(cells: Iterable[ImagePair], store: Store) -> Tensor:
    """Images of a cell at overlap 0.6, or else of the first that shares some: uint8 (3, classes, 3, h, w).

    One image of each class that only the first model sees, that both see, and that only the second sees: a row each.
    A place is white where there is none.
    """
    shared = [cell.second for cell in cells if 0 < cell.overlap < 1]
    member = next((one for one in shared if one.overlap == 0.6), shared[0])
    pool, parts = member.pool(), member.split()
    one, two = parts.first, parts.second
    size = member.data.pixels
    shown = torch.full((3, len(pool.classes), 3, size, size), 255, dtype=torch.uint8)
    for row, seen in enumerate((np.setdiff1d(one, two), np.intersect1d(one, two), np.setdiff1d(two, one))):
        labels, first = np.unique(pool.labels[seen].numpy(), return_index=True)
        shown[row, labels] = pool.images[seen[first]]
    return shown


@experiment(PHOTOGRAPHS, TASK_PHOTOGRAPHS, by=SUMMARY, prepare=prepare, gallery=gallery)
@experiment(DATASET, TASK, AMOUNT, by=SUMMARY, prepare=prepare)
def pairs(settings: Settings, kind: Kind) -> list[ImagePair]:
    """Every cell of an experiment, seed by seed."""
    cells = []
    for data in settings.data:
        known, further = samples.fingerprint(data), settings.further(data)
        samples.check(data, settings.n_test, known, least_classes=LEAST_CLASSES if kind in BY_CLASS else 1)
        others = [samples.as_probe(name, data.pixels) for name in further if name not in vision.NAMES]
        prints = tuple(map(samples.fingerprint, others))
        measured = settings.model_dump(include={"n_test", "n_probe", "probe_classes", "n_permutations"})
        measured |= {"kind": kind, "probes": further, "probe_fingerprints": prints}
        for name in settings.architectures or settings.models:
            model = settings.models[name]
            for seed in model.seeds or settings.seeds:
                common: dict[str, Any] = {"by": "class" if kind in BY_CLASS else "example", "mode": settings.mode}
                some = {"n_per_class": model.n_per_class} if model.n_per_class else {}
                common |= {"seed": seed, "data": data.model_copy(update=some), "fingerprint": known}
                common |= {"network": model.network, "recipe": model.recipe}
                for overlap, first, second in samples.couples(Member, model.overlaps or settings.overlaps, **common):
                    about: dict[str, Any] = {"architecture": name, "overlap": overlap, "first": first, "second": second}
                    cells.append(ImagePair(**about, **measured))
    return cells
