"""What the two models of a pair divide, and what is held out of it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from repsim_utils.datasets import color_shape_digit, vision
from repsim_utils.datasets.cache import DataError
from repsim_utils.datasets.color_shape_digit import N_COMBINATIONS, ColorShapeDigit, class_names
from repsim_utils.datasets.vision import Images
from repsim_utils.experiments.common import LEAST_PROBE, Frozen, one_spelling
from repsim_utils.experiments.engine import Model, Pair, Row
from repsim_utils.overlap import ClassSplit, Split, split_by_class, split_by_example
from repsim_utils.store import Store

log = logging.getLogger(__name__)
DRAWN = "color_shape_digit"  # the data set that needs no download
LEAST_CLASSES = 4  # of which two models that divide classes get two each
GROUPS = ("common_classes", "classes_seen_by_one", "classes_seen_by_none")
By = Literal["example", "class", "task"]
Mode = Literal["constrained", "unconstrained"]


class Data(Frozen):
    """What the two models of a pair divide, and what is held out; a bare text is read as the source.

    `source` is ``color_shape_digit``, a name of `repsim_utils.datasets.vision.NAMES`, or a folder of images in class
    folders. `n_per_class` bounds the images of a class that the models divide (None: all). ColorShapeDigit, whose
    images each seed draws anew, has as many as `n_per_class` says; its classes are combinations of `factors`.
    """

    source: str = Field(min_length=1)
    n_per_class: int | None = Field(default=None, ge=1)
    size: int | None = Field(default=None, ge=16)
    difficulty: float = Field(default=1.0, ge=0, le=1)
    factors: tuple[str, ...] = ("shape", "digit")

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {"source": str(value)} if isinstance(value, str | Path) else value

    @model_validator(mode="after")
    def _drawn_evenly(self) -> Data:
        if self.source == DRAWN and (self.n_per_class is None or self.n_per_class % self.combinations):
            raise ValueError(
                f"n_per_class of {DRAWN} must be a multiple of {self.combinations}, its combinations a class"
            )
        return self

    @field_validator("source")
    @classmethod
    def _in_one_spelling(cls, source: str) -> str:
        return absolute(source)

    @property
    def n_classes(self) -> int:
        """Classes of ColorShapeDigit."""
        return len(class_names(*self.factors))

    @property
    def combinations(self) -> int:
        """Combinations of shape, digit and color in a class of ColorShapeDigit."""
        return N_COMBINATIONS // self.n_classes

    @property
    def pixels(self) -> int:
        """Height and width of an image."""
        if self.source == DRAWN:
            return self.size or 28
        return self.size or (vision.ABOUT[self.source].size if self.source in vision.ABOUT else vision.FOLDER_SIZE)

    @property
    def name(self) -> str:
        """The source, or the name of the folder."""
        return name_of(self.source)


def absolute(source: str) -> str:
    """The name of a data set, or a folder in one spelling."""
    return one_spelling(source, (DRAWN, *vision.NAMES))


def name_of(source: str) -> str:
    """What tables call a source."""
    return source if source in (DRAWN, *vision.NAMES) else Path(source).resolve().name


def as_probe(source: str, size: int) -> Data:
    """A data set on which models of other data are measured, at their size in pixels."""
    if source == DRAWN:
        return Data(source=source, size=size, n_per_class=N_COMBINATIONS)
    return Data(source=source).model_copy(update={"size": size})  # which may be small: digits have 8


def fingerprint(data: Data) -> str:
    """What the pixels and labels depend on, beside the configuration."""
    if data.source == DRAWN:
        return f"{DRAWN}-{color_shape_digit.VERSION}"
    return f"{vision.fingerprint(data.source, data.size)}-{vision.VERSION}"


def check(data: Data, n_test: int | None, known: str, *, least_classes: int) -> None:
    """Refuse, before anything is trained, what could not be divided or measured."""
    if data.source == DRAWN or data.source in vision.ABOUT:
        drawn = data.source == DRAWN
        n_classes = len(class_names(*data.factors)) if drawn else vision.ABOUT[data.source].n_classes
        n = n_classes * (n_test or LEAST_PROBE)
    else:
        train, test = _loaded(data, "train", known), held_out(data, n_test, 0, known)
        n_classes, n = len(train.classes), len(test.labels)
        counts = (torch.bincount(images.labels, minlength=n_classes).tolist() for images in (train, test))
        for name, has, held in zip(train.classes, *counts, strict=True):
            if has < 2 or held < 1:
                raise ValueError(
                    f"class {name} of {data.name} has {has} image(s) to train on and {held} held out; "
                    "two models need at least 2 and 1"
                )
    if n_classes < least_classes:
        raise ValueError(f"{data.name} has {n_classes} classes; two models that divide them need {least_classes}")
    if n < LEAST_PROBE:
        raise ValueError(
            f"{data.name} has {n} held-out images, and a probe needs {LEAST_PROBE}: give more of each class"
        )


@lru_cache(maxsize=4)
def divided(data: Data, seed: int, known: str) -> Images:
    """Images that the two models of a seed divide, if they are still those of the fingerprint."""
    if data.source == DRAWN:
        assert data.n_per_class is not None
        return _drawn(data, "train", data.n_per_class, seed)
    images = _loaded(data, "train", known)
    return images if data.n_per_class is None else subset(images, _some(images.labels, data.n_per_class, seed))


@lru_cache(maxsize=4)
def held_out(data: Data, n_test: int | None, seed: int, known: str) -> Images:
    """Images that no model of a seed has seen, `n_test` of every class; likewise."""
    if data.source == DRAWN:
        _unchanged(data, known)
        return _drawn(data, "test", n_test or 10 * data.combinations, seed)
    images = _loaded(data, "test", known)
    return images if n_test is None else subset(images, _some(images.labels, n_test, seed))


def counts(data: Data, seed: int, known: str) -> tuple[int, ...]:
    """Images of each class that two models divide, known without reading any unless they are of a folder."""
    if data.source == DRAWN:
        return (data.n_per_class or 0,) * len(class_names(*data.factors))
    if data.source in vision.ABOUT:
        about = vision.ABOUT[data.source]
        return (min(about.n_train // about.n_classes, data.n_per_class or about.n_train),) * about.n_classes
    return tuple(torch.bincount(divided(data, seed, known).labels).tolist())


def _loaded(data: Data, split: str, known: str) -> Images:
    images = vision.load(data.source, split, size=data.size)
    _unchanged(data, known)
    return images


def _unchanged(data: Data, known: str) -> None:
    if fingerprint(data) != known:
        raise DataError(f"{data.source} has changed since this run began; run it again")


def _drawn(data: Data, split: str, n_per_class: int, seed: int) -> Images:
    n = max(1, n_per_class // data.combinations)
    drawn = ColorShapeDigit(n, split=split, seed=seed, size=data.pixels, difficulty=data.difficulty)
    labels, names = drawn.labels(*data.factors)
    return Images(drawn.images, labels, names)


def _some(labels: Tensor, n: int, seed: int) -> NDArray[np.int64]:
    """Indices of at most n samples of each class, sorted."""
    rng, array = np.random.default_rng(seed), labels.numpy()
    return np.sort(np.concatenate([rng.permutation(np.flatnonzero(array == c))[:n] for c in np.unique(array)]))


def subset(images: Images, index: NDArray[np.int64]) -> Images:
    """Some of the images, by their indices."""
    rows = torch.from_numpy(index)
    return Images(images.images[rows], images.labels[rows], images.classes)


def evenly(images: Images, classes: Iterable[int], n: int) -> Images:
    """At most n images: as many of each class as of the others, if it has them."""
    wanted = sorted(classes)
    rows = torch.nonzero(torch.isin(images.labels, torch.tensor(wanted)))[:, 0]
    return subset(images, rows.numpy()[_some(images.labels[rows], max(1, n // len(wanted)), 0)])


class Part(Model):
    """What one of two models is trained on: some images of every class, some classes, or a task on all images.

    With `by` ``task``, which needs ColorShapeDigit, both models see all images, and each predicts its `factors`.
    """

    which: Literal[1, 2]
    by: By
    overlap: float
    mode: Mode = "constrained"
    data: Data
    fingerprint: str
    factors: tuple[str, ...] | None = None

    @property
    def dataset(self) -> str:
        """The name of the data set."""
        return self.data.name

    @property
    def own_seed(self) -> int:
        """The two models of a pair start from other weights and see their batches in another order."""
        return 2 * self.seed + self.which - 1

    def pool(self) -> Images:
        """Images that the two models of a seed divide."""
        return divided(self.data, self.seed, self.fingerprint)

    def split(self) -> Split:
        """What the two models are trained on, as indices into the pool; see `repsim_utils.overlap`."""
        labels = self.pool().labels.numpy()
        if self.by == "task":
            return Split(np.arange(len(labels)), np.arange(len(labels)), 1.0)
        function = split_by_example if self.by == "example" else split_by_class
        return function(labels, self.overlap, seed=self.seed, mode=self.mode)

    def label_map(self) -> dict[int, int]:
        """New label of every class that the model is trained on."""
        if self.factors is not None:
            return joined(self.data.factors, self.factors)
        parts = self.split()
        if isinstance(parts, ClassSplit):
            return parts.label_map_first if self.which == 1 else parts.label_map_second
        return {label: label for label in range(len(self.pool().classes))}

    def own(self) -> tuple[Tensor, Tensor]:
        """What the model is trained on: images uint8 (n, 3, h, w), and its own numbers of their classes, int64 (n,)."""
        parts = self.split()
        mine = subset(self.pool(), parts.first if self.which == 1 else parts.second)
        return relabelled(mine, self.label_map())

    def counts(self) -> tuple[int, int]:
        """How many classes it tells apart and how many images it sees, known without reading any but of folders."""
        of_classes = counts(self.data, self.seed, self.fingerprint)
        if self.by == "task":
            return len(class_names(*(self.factors or self.data.factors))), sum(of_classes)
        return _seen(self.by, self.mode, self.overlap, self.which, of_classes)


@lru_cache(maxsize=1024)
def _seen(by: str, mode: str, overlap: float, which: int, counts: tuple[int, ...]) -> tuple[int, int]:
    """Classes and images that a model sees, given the number of images of each class."""
    labels = np.repeat(np.arange(len(counts)), counts)
    if by == "example":
        parts = split_by_example(labels, overlap, seed=0, mode=mode)
        return len(counts), len(parts.first if which == 1 else parts.second)
    split = split_by_class(labels, overlap, seed=0, mode=mode)
    return len(split.classes_first), len(split.first if which == 1 else split.second)


@lru_cache(maxsize=64)
def joined(given: tuple[str, ...], wanted: tuple[str, ...]) -> dict[int, int]:
    """From classes of ColorShapeDigit by some factors to those by fewer of them, or in another order."""
    numbers = {name: i for i, name in enumerate(class_names(*wanted))}
    where = [given.index(factor) for factor in wanted]
    classes = (name.split(" ") for name in class_names(*given))
    return {i: numbers[" ".join(values[j] for j in where)] for i, values in enumerate(classes)}


def relabelled(images: Images, names: dict[int, int]) -> tuple[Tensor, Tensor]:
    """Images of some classes, with their new labels."""
    known = torch.isin(images.labels, torch.tensor(sorted(names)))
    labels = torch.tensor([names[label] for label in images.labels[known].tolist()])
    return images.images[known], labels


class Measured(Pair):
    """A pair that is measured on held-out images: `n_test` of every class, at most `n_probe` a probe.

    Of the groups of classes that both, one or none has seen, a probe takes `probe_classes`, the same ones at every
    overlap (None: all that there are).
    """

    first: Part
    second: Part
    n_test: int | None
    probe_classes: int | None

    def columns(self, store: Store) -> Row:
        """With the overlap of what the models really saw."""
        return super().columns(store) | {"realised_overlap": self.second.split().overlap}

    def held_out(self) -> Images:
        """Images that no model of the pair's seed has seen, `n_test` of every class."""
        member = self.second
        return held_out(member.data, self.n_test, member.seed, member.fingerprint)

    def groups(self, n: int | None = None) -> dict[str, list[int]]:
        """Classes that both, exactly one and none of the two models have seen.

        With `n`, as many of each group: the same classes at every overlap (in constrained mode) at which the group has
        that many, half of those seen by one from each model.
        """
        parts, apart = self.second.split(), self.second.model_copy(update={"overlap": 0.0}).split()
        assert isinstance(parts, ClassSplit) and isinstance(apart, ClassSplit)
        first, second = set(parts.classes_first.tolist()), set(parts.classes_second.tolist())
        order = apart.label_map_first | apart.label_map_second  # in which classes become common

        def some(classes: set[int], count: int | None, last: bool = False) -> list[int]:
            return sorted(classes, key=lambda c: (order.get(c, len(order)), c), reverse=last)[:count]

        half = None if n is None else n // 2
        lone = some(first - second, half) + some(second - first, half)
        every = set(range(len(self.second.pool().classes)))
        return dict(
            zip(GROUPS, (some(first & second, n, True), lone, some(every - first - second, n, True)), strict=True)
        )

    def own_probes(self, n: int) -> dict[str, Tensor]:
        """Held-out images uint8 (n, 3, h, w) of all classes and, where classes are divided, of each group of them.

        A group without classes is left out, and so is, with a warning, a probe of fewer than `LEAST_PROBE` images.
        """
        images = self.held_out()
        found = {self.second.dataset: evenly(images, range(len(images.classes)), n)}
        if self.second.by == "class":
            groups = self.groups(self.probe_classes)
            if self.probe_classes is not None:  # and as published: all of a group, whose number follows the overlap
                groups |= {f"{name}_all": classes for name, classes in self.groups().items()}
            found |= {name: evenly(images, classes, n) for name, classes in groups.items() if classes}
        return self.enough({name: some.images for name, some in found.items()})

    def enough(self, probes: dict[str, Tensor]) -> dict[str, Tensor]:
        """Probes that have `LEAST_PROBE` images; the others are named in a warning."""
        for name in [name for name, images in probes.items() if len(images) < LEAST_PROBE]:
            n, about = len(probes.pop(name)), f"{self.second.dataset} at overlap {self.second.split().overlap:.2g}"
            log.warning("probe %s of %s is left out: it has %d images and needs %d", name, about, n, LEAST_PROBE)
        return probes


Some = TypeVar("Some", bound=Part)


def couples(kind: type[Some], overlaps: Iterable[float], **common: Any) -> list[tuple[float, Some, Some]]:
    """Two models at each overlap; in constrained mode the first is the same at all of them, and so trained once."""
    constrained = common["mode"] == "constrained"
    return [
        (x, kind(which=1, overlap=0.0 if constrained else x, **common), kind(which=2, overlap=x, **common))
        for x in overlaps
    ]
