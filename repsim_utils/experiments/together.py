"""Two causes at once: tasks or classes in common, crossed with images in common; similarity and transfer of attacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import product
from types import ModuleType
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, BeforeValidator, Field
from torch import Tensor

from repsim_utils import overlap as splitting
from repsim_utils.attacks import adversarial, transfer
from repsim_utils.attacks.transfer import answers
from repsim_utils.datasets.color_shape_digit import FACTORS as ALL
from repsim_utils.datasets.color_shape_digit import class_names
from repsim_utils.experiments import samples, vision
from repsim_utils.experiments.adversarial_transfer import Attack
from repsim_utils.experiments.common import Declared, Overlaps, Seeds, single
from repsim_utils.experiments.engine import Row, experiment
from repsim_utils.experiments.samples import Data, joined
from repsim_utils.models.vision import as_float
from repsim_utils.overlap import Split, split_by_class_and_example, split_by_example
from repsim_utils.store import Store

VERSION = 1  # raised when the same pair gives other measurements
Kind = Literal["together_tasks", "together_classes", "together_photographs"]
TASKS: Kind = "together_tasks"
CLASSES: Kind = "together_classes"
PHOTOGRAPHS: Kind = "together_photographs"
Task = tuple[str, ...]
STRATA: Task = ("shape", "digit")  # images are divided inside each of these classes, whatever is predicted


def factors(pair: str) -> tuple[Task, Task]:
    """What both models predict, from a name such as ``shape+digit | shape+color``."""
    tasks = [tuple(task.strip().split("+")) for task in pair.split("|")]
    if len(tasks) != 2 or not all(task and set(task) <= set(ALL) and len(set(task)) == len(task) for task in tasks):
        raise ValueError(f"tasks are such as shape+digit | shape+color, of {', '.join(ALL)}; got {pair!r}")
    return tasks[0], tasks[1]


def _known_tasks(pairs: tuple[str, ...]) -> tuple[str, ...]:
    if len({factors(pair) for pair in pairs}) < len(pairs):
        raise ValueError("tasks must be different ones")
    return pairs


class Settings(Declared):
    """What a profile says: tasks or classes in common, crossed with `overlaps`, the share of images in common.

    `tasks` is for ``together_tasks`` what the two models predict (see `factors`), `task_overlaps` for the others the
    share of a model's classes that the other one learns, too. Of the held-out images `n_images`, drawn at random, are
    attacked.
    """

    seeds: Seeds
    tasks: Annotated[tuple[str, ...], AfterValidator(_known_tasks)] = ()
    task_overlaps: Overlaps | None = None
    overlaps: Overlaps
    data: Annotated[tuple[Data, ...], BeforeValidator(single), Field(min_length=1)]
    models: dict[str, vision.Trainee] = Field(min_length=1)
    attack: Attack
    n_test: int | None = Field(None, ge=1)
    n_probe: int = Field(ge=20)
    n_images: int = Field(ge=20)
    probe_classes: int | None = Field(None, ge=2)
    n_permutations: int = Field(200, ge=19)


class Member(vision.Member):
    """One model. `overlap` is that of images if it learns `factors`, else of classes, with `shared` of their images."""

    shared: float = 0.0

    def divided(self, labels: NDArray[np.int64]) -> Split:
        """What the two models are trained on, given the class of every image."""
        if self.factors is None:
            return split_by_class_and_example(labels, self.overlap, self.shared, seed=self.seed)
        strata = joined(self.data.factors, STRATA)
        return split_by_example(np.vectorize(strata.get)(labels), self.overlap, seed=self.seed)

    def split(self) -> Split:
        """What the two models are trained on, as indices into the pool."""
        return self.divided(self.pool().labels.numpy())

    def counts(self) -> tuple[int, int]:
        """How many classes it tells apart and how many images it sees."""
        return _counts(self)


@lru_cache(maxsize=1024)
def _counts(member: Member) -> tuple[int, int]:
    counts = samples.counts(member.data, member.seed, member.fingerprint)
    parts = member.divided(np.repeat(np.arange(len(counts)), counts))
    n = len(parts.first if member.which == 1 else parts.second)
    return len(member.label_map()) if member.factors is None else len(class_names(*member.factors)), n


class CrossedPair(vision.ImagePair):
    """One cell: two models that share tasks or classes, and images; how alike they are, and what attacks do."""

    depends: ClassVar[tuple[ModuleType, ...]] = (*vision.ImagePair.depends, splitting, adversarial, transfer)
    first: Member
    second: Member
    task_overlap: float
    attack: Attack
    n_images: int

    def columns(self, store: Store) -> Row:
        """With the share of the first model's task that is in common, and of all of its images."""
        about: Row = {"task_overlap": self.task_overlap} | super().columns(store)
        about["images_in_common"] = about.pop("realised_overlap")
        if self.second.factors is not None:
            about["pair"] = " | ".join("+".join(member.factors or ()) for member in (self.first, self.second))
        return about

    def rows(self, first: Any, second: Any, store: Store) -> Iterator[Row]:
        """Similarity and accuracy as of `vision.ImagePair`, then what attacks on each model do to the other.

        Of these, columns are ``probe, n_probe, attack, metric, value``, means over both directions. ``changed`` is the
        share of images for which the other model answers otherwise than before, ``source_changed`` that of the attacked
        model itself. ``transfer`` is the former among images that both classify correctly, each for its own task, of
        classes that both know; it is missing where there are fewer than `samples.LEAST_PROBE`.
        """
        yield from super().rows(first, second, store)
        every = self.held_out()
        drawn = np.random.default_rng(self.second.seed).permutation(len(every.labels))[: self.n_images]
        chosen = samples.subset(every, np.sort(drawn))
        images = as_float(chosen.images)
        before = [answers(model, images) for model in (first, second)]
        right = [
            torch.tensor([member.label_map().get(label, -1) for label in chosen.labels.tolist()]) == found
            for member, found in zip((self.first, self.second), before, strict=True)
        ]
        both = right[0] & right[1]
        for name, made in self.attacked((first, second), images, before).items():
            after = [[answers(model, x) for model in (first, second)] for x in made]  # by source, then by who answers
            moved = [[b != a for a, b in zip(before, found, strict=True)] for found in after]
            values = {
                "changed": torch.cat([moved[0][1], moved[1][0]]),
                "source_changed": torch.cat([moved[0][0], moved[1][1]]),
                "transfer": torch.cat([moved[0][1][both], moved[1][0][both]]),
            }
            for metric, share in values.items():
                if len(share) >= 2 * samples.LEAST_PROBE:
                    about = {"probe": self.second.dataset, "n_probe": len(share), "attack": name}
                    yield about | {"metric": metric, "value": float(share.double().mean())}

    def attacked(self, models: Any, images: Tensor, before: list[Tensor]) -> dict[str, list[Tensor]]:
        """Images against each model's own answers, and, as a control, with random signs; by name, a tensor a model."""
        how, seed = self.attack, self.second.seed
        made = [
            adversarial.attack(model, images, own, **how.model_dump(), seed=seed)
            for model, own in zip(models, before, strict=True)
        ]
        noise = adversarial.random_signs(images, epsilon=how.epsilon, seed=seed)
        return {how.method: made, "random_signs": [noise, noise]}


def _by_task(pair: str, images: float, **common: Any) -> tuple[float, Member, Member]:
    """Share of the first model's factors that the second predicts, too, and both models."""
    one, two = factors(pair)
    first = Member(which=1, by="example", overlap=0.0, factors=one, **common)
    return (
        len({*one} & {*two}) / len(one),
        first,
        first.model_copy(update={"which": 2, "overlap": images, "factors": two}),
    )


def _by_class(classes: float, images: float, **common: Any) -> tuple[float, Member, Member]:
    """Share of classes in common, and both models."""
    first = Member(which=1, by="class", overlap=0.0, **common)
    return classes, first, first.model_copy(update={"which": 2, "overlap": classes, "shared": images})


@experiment(TASKS, by=("pair", *vision.SUMMARY), prepare=vision.prepare)
@experiment(CLASSES, PHOTOGRAPHS, by=("task_overlap", *vision.SUMMARY), prepare=vision.prepare)
def pairs(settings: Settings, kind: Kind) -> list[CrossedPair]:
    """Every cell of the experiment, seed by seed; the first model is the same for all that share its task."""
    tasks = settings.tasks if kind == TASKS else settings.task_overlaps
    if not tasks:
        raise ValueError(f"{kind} needs {'tasks' if kind == TASKS else 'task_overlaps'}")
    measured = settings.model_dump(include={"n_test", "n_probe", "probe_classes", "n_permutations", "n_images"})
    measured |= {"kind": kind, "attack": settings.attack}
    couple: Callable[..., tuple[float, Member, Member]] = _by_task if kind == TASKS else _by_class
    cells = []
    for data in settings.data:
        if kind == TASKS and (data.source != samples.DRAWN or data.factors != ALL):
            raise ValueError(f"{kind} needs {samples.DRAWN} with the factors {', '.join(ALL)}")
        known = samples.fingerprint(data)
        samples.check(data, settings.n_test, known, least_classes=samples.LEAST_CLASSES)
        for (name, model), seed in product(settings.models.items(), settings.seeds):
            common: dict[str, Any] = {"seed": seed, "data": data, "fingerprint": known}
            common |= {"network": model.network, "recipe": model.recipe}
            for task, images in product(tasks, settings.overlaps):
                share, first, second = couple(task, images, **common)
                about: dict[str, Any] = {"architecture": name, "task_overlap": share, "overlap": images}
                cells.append(CrossedPair(first=first, second=second, **about, **measured))
    return cells
