"""Task-only overlap: two models see the same images and share none, one or all of the factors that they predict."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator
from torch import Tensor

from repsim_utils import features, metrics
from repsim_utils.experiments import samples, vision
from repsim_utils.experiments.common import Architecture, Declared, Frozen, Seeds
from repsim_utils.experiments.engine import Row, experiment
from repsim_utils.metrics import PAPER, PUBLISHED, report
from repsim_utils.store import Store
from repsim_utils.training.vision import Recipe

EXPERIMENT = "task_only"
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


class Member(vision.Member):
    """One model: what it predicts, and which of two it is where both predict the same."""

    factors: Task

    @property
    def own_seed(self) -> int:
        """No two models of a seed start from the same weights or see their batches in the same order."""
        return 100 * self.seed + 10 * (self.which - 1) + _TASKS.index(self.factors)


class TaskPair(vision.ImagePair):
    """One cell: two models that see the same images."""

    depends = (features, metrics)
    overlap: int  # a level
    first: Member
    second: Member

    @property
    def name(self) -> str:
        """Such as ``shape+digit | shape+color``."""
        return " | ".join("+".join(member.factors) for member in (self.first, self.second))

    def columns(self, store: Store) -> Row:
        """With what both predict; what they see is the same."""
        about = super().columns(store)
        about.pop("realised_overlap")
        return about | {"pair": self.name}

    def alike(self, x: Tensor, y: Tensor) -> list[Row]:
        """Similarities with all of `repsim_utils.metrics.Calibrated`."""
        how: dict[str, Any] = {"n_permutations": self.n_permutations, "seed": self.second.seed}
        return report(x, y, [*PAPER, *PUBLISHED.values()], intervals=False, strict=True, **how)


@experiment(EXPERIMENT, by=("metric", "overlap", "pair"))
def pairs(settings: Settings) -> list[TaskPair]:
    """Every cell of the experiment, seed by seed."""
    about = settings.data
    data = samples.Data(
        source=samples.DRAWN, n_per_class=about.n_train, size=about.size, difficulty=about.difficulty, factors=ALL
    )
    common: dict[str, Any] = {"by": "task", "overlap": 1.0, "data": data, "fingerprint": samples.fingerprint(data)}
    common |= {"network": settings.model, "recipe": settings.recipe}
    measured: dict[str, Any] = {
        "n_test": about.n_probe,
        "probe_classes": None,
        "n_probe": about.n_probe * data.n_classes,
    }
    measured |= {"kind": EXPERIMENT, "architecture": settings.model.name, "n_permutations": 200}
    cells = []
    for seed in settings.seeds:
        for level in settings.overlaps:
            for tasks in PAIRS[level]:
                # Where they predict different things, both are what any pair with that task has as its first model.
                second = 2 if tasks[0] == tasks[1] else 1
                both = [Member(seed=seed, which=1, factors=tasks[0], **common)]
                both += [Member.model_validate({"seed": seed, "which": second, "factors": tasks[1]} | common)]
                cells.append(TaskPair(overlap=level, first=both[0], second=both[1], **measured))
    return cells
