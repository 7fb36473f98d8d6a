"""Task-only overlap: two models see the same images and share none, one or all of the factors that they predict."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from repsim_utils.datasets import color_shape_digit
from repsim_utils.datasets.color_shape_digit import ColorShapeDigit
from repsim_utils.features import represent
from repsim_utils.metrics import similarity
from repsim_utils.models import vision as models
from repsim_utils.models.vision import Classifier, build
from repsim_utils.store import Store
from repsim_utils.training import vision as training
from repsim_utils.training.vision import Recipe, accuracy, train

EXPERIMENT = "task_only"
VERSION = 1  # raised when the same configuration gives other measurements

Task = tuple[str, ...]
ALL: Task = ("shape", "digit", "color")
PAIRS: dict[int, tuple[tuple[Task, Task], ...]] = {
    1: ((("shape",), ("digit",)),),
    2: (
        (("shape", "digit"), ("shape", "color")),
        (("shape", "digit"), ("digit", "color")),
        (("shape", "color"), ("digit", "color")),
    ),
    3: ((ALL, ALL),),
}
_TASKS: tuple[Task, ...] = (("shape",), ("digit",), ("shape", "digit"), ("shape", "color"), ("digit", "color"), ALL)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(_Frozen):
    """ColorShapeDigit as the models see it; a training set of 800 times `n_train` images, a probe of 800 × `n_probe`."""

    n_train: int = Field(ge=1)
    n_probe: int = Field(ge=1)
    size: int = Field(28, ge=16)
    difficulty: float = Field(0.5, ge=0, le=1)


class Architecture(_Frozen):
    """Arguments of `repsim_utils.models.vision.build`."""

    name: Literal["small_resnet", "resnet18"]
    width: int = Field(16, ge=1)
    depth: int = Field(1, ge=1)
    stem: Literal["imagenet", "cifar"] = "imagenet"


class Settings(_Frozen):
    """What a profile says of this experiment."""

    seeds: tuple[int, ...] = Field(min_length=1)
    overlaps: tuple[int, ...] = Field(min_length=1)
    data: Data
    model: Architecture
    recipe: Recipe

    @field_validator("overlaps")
    @classmethod
    def _levels(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not set(value) <= set(PAIRS):
            raise ValueError(f"task overlap has the levels {', '.join(map(str, PAIRS))}")
        return value

    @field_validator("seeds")
    @classmethod
    def _not_negative(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if min(value) < 0 or len(set(value)) < len(value):
            raise ValueError("seeds are different whole numbers, 0 or more")
        return value


class Member(_Frozen):
    """One model: what it predicts, and which of two it is where both predict the same."""

    kind: ClassVar[str] = "models"
    experiment: str = EXPERIMENT
    version: tuple[int, int, int] = (color_shape_digit.VERSION, models.VERSION, training.VERSION)
    factors: Task
    twin: int = Field(0, ge=0, le=1)
    seed: int
    data: Data
    model: Architecture
    recipe: Recipe


class Pair(_Frozen):
    """One cell of the experiment: two models, and what is measured on them."""

    kind: ClassVar[str] = EXPERIMENT
    version: int = VERSION
    overlap: int
    first: Member
    second: Member

    @property
    def name(self) -> str:
        """Such as ``shape+digit | shape+color``."""
        return " | ".join("+".join(member.factors) for member in (self.first, self.second))


def pairs(settings: Settings) -> list[Pair]:
    """Every cell of the experiment, seed by seed."""
    cells = []
    for seed in settings.seeds:
        common = {"seed": seed, "data": settings.data, "model": settings.model, "recipe": settings.recipe}
        for overlap in settings.overlaps:
            for first, second in PAIRS[overlap]:
                twin = int(first == second)
                members = Member(factors=first, **common), Member(factors=second, twin=twin, **common)
                cells.append(Pair(overlap=overlap, first=members[0], second=members[1]))
    return cells


@lru_cache(maxsize=2)
def _images(split: str, n: int, seed: int, size: int, difficulty: float) -> ColorShapeDigit:
    return ColorShapeDigit(n, split=split, seed=seed, size=size, difficulty=difficulty)


def probe(member: Member) -> ColorShapeDigit:
    """Held-out images, the same for every model of a seed."""
    data = member.data
    return _images("test", data.n_probe, member.seed, data.size, data.difficulty)


def train_member(member: Member, store: Store, *, progress: bool = True) -> Classifier:
    """One trained model: from the store, or trained now and kept there.

    No two models of a seed start from the same weights or see their batches in the same order, whatever they predict.
    """
    n_classes = len(color_shape_digit.class_names(*member.factors))
    own_seed = 100 * member.seed + 10 * member.twin + _TASKS.index(member.factors)
    model = build(n_classes=n_classes, seed=own_seed, **member.model.model_dump())
    config = member.model_dump(mode="json")
    run = store.load(member.kind, config)
    if run is None:
        data = member.data
        images = _images("train", data.n_train, member.seed, data.size, data.difficulty)
        train(model, images.images, images.labels(*member.factors)[0], member.recipe, seed=own_seed, progress=progress)
        held_out = probe(member)
        score = accuracy(model, held_out.images, held_out.labels(*member.factors)[0])
        run = store.save(member.kind, config, {"accuracy": score}, model.state_dict())
    model.load_state_dict(run.weights())
    return model.eval()


def train_pair(pair: Pair, store: Store, *, progress: bool = True) -> tuple[Classifier, Classifier]:
    """Both models of a pair, trained or taken from the store."""
    return train_member(pair.first, store, progress=progress), train_member(pair.second, store, progress=progress)


def representations(pair: Pair, store: Store, *, progress: bool = True) -> tuple[Tensor, Tensor]:
    """Both models' representations of the probe: float32 (n, d) each, rows matched."""
    first, second = train_pair(pair, store, progress=progress)
    images = probe(pair.first).images
    return represent(first, images), represent(second, images)


def measure_pair(pair: Pair, store: Store, *, progress: bool = True) -> list[dict[str, Any]]:
    """Similarity of the pair on held-out images, and the accuracy of each model there.

    Parameters
    ----------
    pair : Pair
    store : Store
        Where trained models are looked for and kept.
    progress : bool

    Returns
    -------
    list of dict
        One row a measurement, with ``metric`` and ``value``.
    """
    values = similarity(*representations(pair, store, progress=progress))
    for which, member in (("first", pair.first), ("second", pair.second)):
        run = store.load(member.kind, member.model_dump(mode="json"))
        if run is not None:
            values[f"accuracy_{which}"] = run.record["accuracy"]
    row = {
        "dataset": "color_shape_digit",
        "architecture": pair.first.model.name,
        "overlap": pair.overlap,
        "pair": pair.name,
        "seed": pair.first.seed,
        "probe": "color_shape_digit",
    }
    return [row | {"metric": metric, "value": value} for metric, value in values.items()]

