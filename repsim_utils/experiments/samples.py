"""What the two models of a pair divide, and what is held out of it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

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

DRAWN = "color_shape_digit"  # the data set that needs no download


class Data(Frozen):
    """What the two models of a pair divide, and what is held out; a bare text is read as the source.

    `source` is ``color_shape_digit``, a name of `repsim_utils.datasets.vision.NAMES`, or a folder of images in class
    folders. `n_per_class` bounds the images of a class that the models divide (None: all). ColorShapeDigit, whose
    images each seed draws anew, has as many as `n_per_class` says; its classes are combinations of `factors`.
    """

    source: str = Field(min_length=1)
    n_per_class: int | None = Field(default=None, ge=2)
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
    def combinations(self) -> int:
        """Combinations of shape, digit and color in a class of ColorShapeDigit."""
        return N_COMBINATIONS // len(class_names(*self.factors))

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


def fingerprint(data: Data) -> str:
    """What the pixels and labels depend on, beside the configuration."""
    if data.source == DRAWN:
        return f"{DRAWN}-{color_shape_digit.VERSION}"
    return f"{vision.fingerprint(data.source, data.size)}-{vision.VERSION}"


def check(data: Data, n_test: int | None, print_of: str, *, least_classes: int) -> None:
    """Refuse, before anything is trained, what could not be divided or measured."""
    if data.source == DRAWN or data.source in vision.ABOUT:
        drawn = data.source == DRAWN
        n_classes = len(class_names(*data.factors)) if drawn else vision.ABOUT[data.source].n_classes
        n = n_classes * (n_test or LEAST_PROBE)
    else:
        train, test = _loaded(data, "train", print_of), held_out(data, n_test, 0, print_of)
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
def divided(data: Data, seed: int, print_of: str) -> Images:
    """Images that the two models of a seed divide, if they are still those of the fingerprint."""
    if data.source == DRAWN:
        assert data.n_per_class is not None
        return _drawn(data, "train", data.n_per_class, seed)
    images = _loaded(data, "train", print_of)
    return images if data.n_per_class is None else subset(images, _some(images.labels, data.n_per_class, seed))


@lru_cache(maxsize=4)
def held_out(data: Data, n_test: int | None, seed: int, print_of: str) -> Images:
    """Images that no model of a seed has seen, `n_test` of every class; likewise."""
    if data.source == DRAWN:
        return _drawn(data, "test", n_test or 10 * data.combinations, seed)
    images = _loaded(data, "test", print_of)
    return images if n_test is None else subset(images, _some(images.labels, n_test, seed))


def counts(data: Data, seed: int, print_of: str) -> tuple[int, ...]:
    """Images of each class that two models divide, known without reading any unless they are of a folder."""
    if data.source == DRAWN:
        return (data.n_per_class or 0,) * len(class_names(*data.factors))
    if data.source in vision.ABOUT:
        about = vision.ABOUT[data.source]
        return (min(about.n_train // about.n_classes, data.n_per_class or about.n_train),) * about.n_classes
    return tuple(torch.bincount(divided(data, seed, print_of).labels).tolist())


def _loaded(data: Data, split: str, print_of: str) -> Images:
    images = vision.load(data.source, split, size=data.size)
    if fingerprint(data) != print_of:
        raise DataError(f"{data.source} has changed since this run began; run it again")
    return images


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
