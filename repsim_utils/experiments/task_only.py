"""Task-only overlap: two models see the same images and share none, one or all of the factors that they predict."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar

from pydantic import Field, field_validator
from torch import Tensor

from repsim_utils.datasets import color_shape_digit
from repsim_utils.datasets.color_shape_digit import N_COMBINATIONS, ColorShapeDigit
from repsim_utils.experiments.common import Architecture, Declared, Frozen, Seeds
from repsim_utils.features import represent
from repsim_utils.metrics import PAPER, PUBLISHED, report
from repsim_utils.models import vision as models
from repsim_utils.models.vision import Classifier, build
from repsim_utils.plan import Size
from repsim_utils.store import Run, Store
from repsim_utils.training import vision as training
from repsim_utils.training.vision import Recipe, accuracy, train

EXPERIMENT = "task_only"
PROBE = "color_shape_digit"
VERSION = 3  # raised when the same configuration gives other measurements

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


class Data(Frozen):
    """ColorShapeDigit as the models see it: images of each of the 800 combinations to train on and to measure on."""

    n_train: int = Field(ge=1)
    n_probe: int = Field(ge=1)
    size: int = Field(28, ge=16)
    difficulty: float = Field(0.5, ge=0, le=1)


class Settings(Declared):
    """What a profile says of this experiment."""

    seeds: Seeds
    overlaps: tuple[int, ...] = Field(min_length=1)
    data: Data
    model: Architecture
    recipe: Recipe

    @field_validator("overlaps")
    @classmethod
    def _levels(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not set(value) <= set(PAIRS) or len(set(value)) < len(value):
            raise ValueError(f"task overlap has the levels {', '.join(map(str, PAIRS))}, each at most once")
        return value


class Member(Frozen):
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


class Pair(Frozen):
    """One cell of the experiment: two models, and what is measured on them."""

    kind: ClassVar[str] = EXPERIMENT
    version: int = VERSION
    overlap: int
    first: Member
    second: Member

    @property
    def members(self) -> tuple[Member, Member]:
        """Models that must have been trained before the pair is measured."""
        return self.first, self.second

    @property
    def name(self) -> str:
        """Such as ``shape+digit | shape+color``."""
        return " | ".join("+".join(member.factors) for member in self.members)


def pairs(settings: Settings) -> list[Pair]:
    """Every cell of the experiment, seed by seed."""
    cells = []
    for seed in settings.seeds:
        for overlap in settings.overlaps:
            for first, second in PAIRS[overlap]:
                one, two = _member(settings, first, seed, 0), _member(settings, second, seed, int(first == second))
                cells.append(Pair(overlap=overlap, first=one, second=two))
    return cells


def _member(settings: Settings, factors: Task, seed: int, twin: int) -> Member:
    return Member(
        factors=factors, twin=twin, seed=seed, data=settings.data, model=settings.model, recipe=settings.recipe
    )


@lru_cache(maxsize=2)
def _images(split: str, n: int, seed: int, size: int, difficulty: float) -> ColorShapeDigit:
    return ColorShapeDigit(n, split=split, seed=seed, size=size, difficulty=difficulty)


def probe(member: Member) -> ColorShapeDigit:
    """Held-out images, the same for every model of a seed."""
    data = member.data
    return _images("test", data.n_probe, member.seed, data.size, data.difficulty)


def trained(member: Member, store: Store, *, progress: bool = True) -> Run:
    """The run of one model: from the store, or trained now and kept there, with its accuracy on the probe."""
    config = member.model_dump(mode="json")
    run = store.load(member.kind, config)
    if run is None:
        data = member.data
        images = _images("train", data.n_train, member.seed, data.size, data.difficulty)
        model = _build(member)
        labels, _ = images.labels(*member.factors)
        train(model, images.images, labels, member.recipe, seed=_own_seed(member), progress=progress)
        held_out = probe(member)
        score = accuracy(model, held_out.images, held_out.labels(*member.factors)[0])
        run = store.save(member.kind, config, {"accuracy": score}, model.state_dict())
    return run


def _own_seed(member: Member) -> int:
    """No two models of a seed start from the same weights or see their batches in the same order."""
    return 100 * member.seed + 10 * member.twin + _TASKS.index(member.factors)


def _build(member: Member) -> Classifier:
    n_classes = len(color_shape_digit.class_names(*member.factors))
    return build(n_classes=n_classes, seed=_own_seed(member), **member.model.model_dump())


def size(member: Member) -> Size:
    """What training a model takes."""
    network = {"n_classes": len(color_shape_digit.class_names(*member.factors))} | member.model.model_dump()
    n_train = N_COMBINATIONS * member.data.n_train
    return Size(PROBE, network, n_train, member.recipe.epochs, member.data.size)


def train_pair(pair: Pair, store: Store, *, progress: bool = True) -> tuple[Classifier, Classifier]:
    """Both models of a pair, trained or taken from the store, in evaluation mode."""
    models = []
    for member in pair.members:
        run = trained(member, store, progress=progress)
        model = _build(member)
        model.load_state_dict(run.weights())
        models.append(model.eval())
    return models[0], models[1]


def representations(pair: Pair, store: Store, *, progress: bool = True) -> tuple[Tensor, Tensor]:
    """Both models' representations of the probe: float32 (n, d) each, rows matched."""
    first, second = train_pair(pair, store, progress=progress)
    images = probe(pair.first).images
    return represent(first, images), represent(second, images)


def measure_pair(pair: Pair, store: Store, *, progress: bool = True) -> list[dict[str, Any]]:
    """Similarity of the pair on held-out images, calibrated, and the accuracy of each model there.

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
        One row a measurement, with ``metric`` and ``value``; similarities also with ``null_mean, null_quantile,
        p_value, calibrated, above_chance`` (see `repsim_utils.metrics.Calibrated`).
    """
    x, y = representations(pair, store, progress=progress)
    measured = report(x, y, [*PAPER, *PUBLISHED.values()], intervals=False, seed=pair.first.seed)
    for which, member in (("first", pair.first), ("second", pair.second)):
        accuracy = trained(member, store, progress=progress).record["accuracy"]
        measured.append({"metric": f"accuracy_{which}", "value": accuracy})
    row = {
        "dataset": PROBE,
        "architecture": pair.first.model.name,
        "overlap": pair.overlap,
        "pair": pair.name,
        "seed": pair.first.seed,
        "probe": PROBE,
    }
    return [row | one for one in measured]
