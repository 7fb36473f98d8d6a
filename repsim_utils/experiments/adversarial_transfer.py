"""Adversarial examples that transfer: made on one model of a pair, tried on the other; the pairs of `vision`."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor, nn

from repsim_utils import features, metrics
from repsim_utils.attacks import adversarial, transfer
from repsim_utils.attacks.transfer import RATES, InClasses, Perturb, answers, attack_pair, gradient_cosine, rates
from repsim_utils.datasets.vision import Images
from repsim_utils.experiments import vision
from repsim_utils.experiments.common import Declared, Frozen, Overlaps, Seeds
from repsim_utils.experiments.engine import Model, Row, experiment, load, load_pair
from repsim_utils.experiments.samples import GROUPS, Data, Measured, evenly, fingerprint
from repsim_utils.experiments.vision import Kind, Member
from repsim_utils.models.vision import as_float
from repsim_utils.store import Store

log = logging.getLogger(__name__)
EXPERIMENT = "adversarial_transfer"
PHOTOGRAPHS = "adversarial_transfer_photographs"
VERSION = 1  # raised when the same pair gives other measurements
SUMMARY = ("cause", "dataset", "architecture", "probe", "attack", "epsilon", "metric", "overlap")
UNRELATED = "digits"  # what the control's source has learned
LEAST_RIGHT = 10  # images that both models classify correctly; a rate of fewer says nothing
SHARED = ("seeds", "overlaps", "architectures", "data")  # settings of both sweeps
CONTROLS = ("random_signs", "shuffled", "unrelated_source")


def _known(method: str) -> str:
    if method.lower() not in adversarial.METHODS:
        raise ValueError(f"attacks are {', '.join(adversarial.METHODS)}")
    return method.lower()


Method = Annotated[str, AfterValidator(_known)]
Epsilon = Annotated[float, Field(gt=0, le=255)]  # in units of 1/255


class Attack(Frozen):
    """Arguments of `repsim_utils.attacks.adversarial.attack`."""

    method: Method = "mi-fgsm"
    epsilon: Epsilon = 4
    steps: int | None = Field(default=None, ge=1)


class Cause(Frozen):
    """A sweep whose pairs are attacked, on `n_images` held-out images; `published` is the ε of the paper."""

    sweep: vision.Settings
    n_images: int = Field(ge=20)
    published: float = Field(gt=0)


class Settings(Declared):
    """What a profile says of attacks on the pairs of both sweeps in vision.

    `seeds`, `overlaps`, `architectures` and `data` replace those of the sweeps in `causes`. Every pair is attacked with
    `attack` at `epsilon` and, on its first probe, at each of `epsilons`, and with each of `methods` at `epsilon`.
    """

    causes: dict[Kind, Cause]
    seeds: Seeds | None = None
    overlaps: Overlaps | None = None
    architectures: tuple[str, ...] | None = None
    data: Any = None
    attack: Method = "mi-fgsm"
    epsilon: Epsilon = 4
    epsilons: tuple[Epsilon, ...] = ()
    methods: tuple[Method, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _in_sweeps(cls, value: Any) -> Any:
        """What replaces settings of the sweeps, put there, where it is checked; of data, what is not named stays."""
        if not isinstance(value, dict) or not isinstance(value.get("causes"), dict):
            return value
        changes = {name: value[name] for name in SHARED if value.get(name) is not None}
        causes = {}
        for kind, about in value["causes"].items():
            about = about if isinstance(about, dict) else about.model_dump()
            sweep = about["sweep"] | changes
            if isinstance(changes.get("data"), dict) and len(about["sweep"]["data"]) == 1:
                sweep["data"] = about["sweep"]["data"][0] | changes["data"]
            causes[kind] = about | {"sweep": sweep}
        return value | {"causes": causes}

    def attacks(self) -> tuple[Attack, ...]:
        """The primary attack first, then the others, each once."""
        several = [Attack(method=self.attack, epsilon=self.epsilon)]
        several += [Attack(method=self.attack, epsilon=epsilon) for epsilon in self.epsilons]
        several += [Attack(method=method, epsilon=self.epsilon) for method in self.methods]
        return tuple(dict.fromkeys(several))


class AttackedPair(Measured):
    """One cell: two models under attack, by each other and by a source that has nothing to do with them.

    `siblings` are all models of its sweep and seed. On `n_images` images every attack of `attacks` is tried, the
    primary one first, and `published` as the paper counts.
    """

    depends: ClassVar[tuple[ModuleType, ...]] = (adversarial, transfer)
    first: Member
    second: Member
    cause: Kind
    unrelated: Member
    siblings: tuple[Member, ...]
    attacks: tuple[Attack, ...]
    published: Attack
    n_images: int

    def needs(self) -> tuple[Model, ...]:
        """Both models, the source of the control, and all others of the sweep and seed."""
        return tuple(dict.fromkeys((self.first, self.second, self.unrelated, *self.siblings)))

    def columns(self, store: Store) -> Row:
        """With the sweep that the pair is of."""
        return {"cause": self.cause} | super().columns(store)

    def probes(self) -> dict[str, Images]:
        """Held-out images to be attacked, of classes that both models know; the first is the one that counts.

        Of a pair split by class that is the same few common classes at every overlap, and then, as published, all.
        """
        images = self.held_out()
        if self.cause not in vision.BY_CLASS:
            return {self.second.dataset: evenly(images, range(len(images.classes)), self.n_images)}
        name = GROUPS[0]
        groups = {name: self.groups(self.probe_classes)[name]}
        if self.probe_classes is not None:
            groups[f"{name}_all"] = self.groups()[name]
        return {name: evenly(images, classes, self.n_images) for name, classes in groups.items() if classes}

    def rows(self, first: nn.Module, second: nn.Module, store: Store) -> Iterator[Row]:
        """Attack the pair in every way that its configuration names.

        Columns are ``probe, n_probe, attack, epsilon, metric, value``, where `n_probe` counts the images and directions
        that the value is a mean of. Metrics are those of `rates`, of images that both models classify correctly;
        ``transfer_all_right``, of images that every model of this sweep and seed classifies correctly; ``raw_error``
        and ``raw_white_box`` of the attack ``published``, as the paper counts them, of all images; and without an
        attack ``clean_error``, ``both_right`` (a share) and ``gradient_cosine``. Controls stand under `attack`:
        ``random_signs``, ``shuffled`` (the primary attack's perturbations, each on another image) and
        ``unrelated_source``.
        """
        n_classes = len(self.held_out().classes)
        first, second = (
            InClasses(network, member.label_map(), n_classes).eval()
            for network, member in ((first, self.first), (second, self.second))
        )
        unrelated = load(self.unrelated, store)
        siblings = [InClasses(load(one, store), one.label_map(), n_classes).eval() for one in self.siblings]
        names = ("attack", "epsilon", "metric", "value", "n_probe")
        for i, (probe, chosen) in enumerate(self.probes().items()):
            images, labels = as_float(chosen.images), chosen.labels
            everywhere = torch.stack([answers(model, images) == labels for model in siblings]).all(0)
            found = _clean(first, second, images, labels)
            wanted = trials(self, unrelated)[: 1 if i else None]  # everything on the first probe alone
            if (n := round(found[1][3] * len(labels))) < LEAST_RIGHT:
                log.warning("%d of %d images are right on both models, too few to attack", n, len(labels))
                wanted = []
            for trial in wanted:
                found += _attacked(trial, first, second, images, labels, everywhere)
            found += _published(self, first, second, images, labels)
            for values in found:
                yield {"probe": probe} | dict(zip(names, values, strict=True))


class ComparedPair(AttackedPair):
    """One cell of which it is also measured how alike the two models are, on the very images that are attacked."""

    depends = (*AttackedPair.depends, features, metrics)

    def rows(self, first: Any, second: Any, store: Store) -> Iterator[Row]:
        """With the paper's eight metrics, of all images of a probe; under `attack` stands ``none``."""
        yield from super().rows(first, second, store)
        for probe, chosen in self.probes().items():
            x, y = (features.represent(network, chosen.images) for network in (first, second))
            about = {"probe": probe, "attack": "none", "epsilon": 0.0, "n_probe": len(chosen.images)}
            for name, value in metrics.similarity(x, y).items():
                yield about | {"metric": name, "value": value}


def _sweep(pair: vision.ImagePair) -> tuple[Any, ...]:
    return pair.architecture, pair.second.seed, pair.second.data


def _unrelated(member: Member) -> Member:
    """A model of the same network and recipe that has learned to tell real handwritten digits apart."""
    data = Data(source=UNRELATED, size=member.data.pixels)
    about = {"by": "example", "which": 1, "overlap": 0.0, "data": data, "fingerprint": fingerprint(data)}
    return member.model_copy(update=about)


def gallery(cells: Iterable[AttackedPair], store: Store) -> Tensor:
    """Images that fool both models, before and after the primary attack, and the change: uint8 (3, classes, 3, h, w).

    Of the first pair that shares all: the first image of each class that both models classify correctly and that, once
    it has been attacked on the first, neither does. A place is white where there is none. In the change gray is none,
    and ε is black or white.
    """
    cell = next(cell for cell in cells if cell.overlap == 1)
    first, second = load_pair(cell, store)
    chosen = next(iter(cell.probes().values()))
    images, labels = as_float(chosen.images), chosen.labels
    how = cell.attacks[0]
    changed = adversarial.attack(first, images, labels, **how.model_dump(), seed=cell.second.seed)
    fooled = torch.stack([(answers(m, images) == labels) & (answers(m, changed) != labels) for m in (first, second)])
    shown = torch.ones(3, len(chosen.classes), *images.shape[1:])
    for label in range(len(chosen.classes)):
        for i in (fooled.all(0) & (labels == label)).nonzero()[:1, 0]:
            change = (changed[i] - images[i]) * 255 / how.epsilon
            shown[:, label] = torch.stack([images[i], changed[i], (1 + change) / 2]).cpu()
    return (255 * shown.clamp(0, 1)).round().byte()


@experiment(PHOTOGRAPHS, by=SUMMARY, prepare=vision.prepare, gallery=gallery)
@experiment(EXPERIMENT, by=SUMMARY, prepare=vision.prepare)
def pairs(settings: Settings, kind: str = EXPERIMENT) -> list[AttackedPair]:
    """Every pair of both sweeps that has classes in common."""
    cells, cell = [], ComparedPair if kind == PHOTOGRAPHS else AttackedPair
    for cause, about in settings.causes.items():
        found = vision.pairs(about.sweep, cause)
        if cause in vision.BY_CLASS:  # an image whose class one of the two cannot name has no right answer
            found = [pair for pair in found if pair.overlap > 0]
        for pair in found:
            here = [other for other in found if _sweep(other) == _sweep(pair)]
            siblings = dict.fromkeys(member for other in here for member in (other.first, other.second))
            cells.append(
                cell(
                    kind=kind,
                    cause=cause,
                    attacks=settings.attacks(),
                    published=Attack(epsilon=about.published, steps=3),
                    n_images=about.n_images,
                    siblings=tuple(siblings),
                    unrelated=_unrelated(pair.first),
                    **pair.model_dump(include={"architecture", "overlap", "n_test", "probe_classes"}),
                    **{name: getattr(pair, name) for name in ("first", "second")},
                )
            )
    return cells


class Trial(NamedTuple):
    """One way to change images, and which of `rates` are of interest."""

    attack: str
    epsilon: float
    perturb: Perturb
    metrics: tuple[str, ...] = ("transfer",)


def trials(pair: AttackedPair, unrelated: nn.Module) -> list[Trial]:
    """The primary attack, the controls, and then the pair's other attacks."""
    seed, (primary, *others) = pair.second.seed, pair.attacks

    def by(attack: Attack) -> Perturb:
        return lambda model, x, y: adversarial.attack(model, x, y, **attack.model_dump(), seed=seed)

    def noise(attack: Attack) -> Trial:
        perturb: Perturb = lambda model, x, y: adversarial.random_signs(x, epsilon=attack.epsilon, seed=seed)  # noqa: E731
        return Trial("random_signs", attack.epsilon, perturb)

    made = _once(by(primary))
    found = [
        Trial(primary.method, primary.epsilon, made, RATES),
        noise(primary),
        Trial("shuffled", primary.epsilon, lambda model, x, y: adversarial.shuffled(x, made(model, x, y), seed=seed)),
        Trial("unrelated_source", primary.epsilon, lambda model, x, y: made(unrelated, x, answers(unrelated, x))),
    ]
    for attack in others:
        found.append(Trial(attack.method, attack.epsilon, by(attack), ("transfer", "white_box")))
        found += [noise(attack)] if attack.method == primary.method else []
    return found


def _once(perturb: Perturb) -> Perturb:
    """The same, but what a model's attack has made of images is remembered: two of the controls ask for it again."""
    kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def remembered(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if model not in kept or not torch.equal(kept[model][0], x):
            kept[model] = x, perturb(model, x, y)
        return kept[model][1]

    return remembered


Found = list[tuple[str, float, str, float, int]]


def _clean(first: nn.Module, second: nn.Module, images: Tensor, labels: Tensor) -> Found:
    """Rows without an attack."""
    right = [answers(model, images) == labels for model in (first, second)]
    both = right[0] & right[1]
    found = {"clean_error": 1 - float(torch.cat(right).double().mean()), "both_right": float(both.double().mean())}
    rows = [("none", 0.0, name, value, len(labels)) for name, value in found.items()]
    if both.any():
        cosine = gradient_cosine(first, second, images[both.to(images.device)], labels[both])
        rows.append(("none", 0.0, "gradient_cosine", cosine, int(both.sum())))
    return rows


def _attacked(
    trial: Trial, first: nn.Module, second: nn.Module, images: Tensor, labels: Tensor, everywhere: Tensor
) -> Found:
    """Rows of one attack; of the primary one also those of images that are right `everywhere`."""
    outcome = attack_pair(first, second, images, labels, trial.perturb)
    values = {name: value for name, value in rates(outcome).items() if name in trial.metrics}
    found = [(trial.attack, trial.epsilon, name, value, len(outcome.image)) for name, value in values.items()]
    if trial.metrics == RATES:
        both = outcome.among(everywhere)
        if (value := rates(both).get("transfer")) is not None:
            found.append((trial.attack, trial.epsilon, "transfer_all_right", value, len(both.image)))
    return found


def _published(pair: AttackedPair, first: nn.Module, second: nn.Module, images: Tensor, labels: Tensor) -> Found:
    """Rows as the paper counts: errors on attacked images, whether or not they were errors before."""
    how = pair.published

    def perturb(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return adversarial.attack(model, x, y, **how.model_dump(), seed=pair.second.seed)

    outcome = attack_pair(first, second, images, labels, perturb, only_right=False)
    found = rates(outcome)
    values = {"raw_error": found["transfer"], "raw_white_box": found["white_box"]}
    return [("published", how.epsilon, name, value, len(outcome.image)) for name, value in values.items()]
