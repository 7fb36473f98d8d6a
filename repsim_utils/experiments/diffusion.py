"""Overlap in generative models: two diffusion models share samples of every class, or whole classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from repsim_utils import features, metrics
from repsim_utils import overlap as splitting
from repsim_utils.experiments import drawings, samples, vision
from repsim_utils.experiments.common import Declared, Frozen, Overlaps, Seeds, check_choice, similarities
from repsim_utils.experiments.engine import Fitted, Model, Row, experiment, load, trained
from repsim_utils.experiments.samples import LEAST_CLASSES, Data, Measured, Mode, Part
from repsim_utils.experiments.vision import Trainee
from repsim_utils.features import draw_noise, represent_noisy
from repsim_utils.metrics import PAPER, similarity
from repsim_utils.metrics.inputs import platonic
from repsim_utils.models import diffusion as models
from repsim_utils.models.diffusion import TIMESTEPS, Denoiser, build, sample
from repsim_utils.plan import Size
from repsim_utils.store import Run, Store
from repsim_utils.training import diffusion as training
from repsim_utils.training.diffusion import Recipe, train

VERSION = 2  # raised when the same pair gives other measurements
Kind = Literal["dataset_overlap_diffusion", "task_overlap_diffusion"]
DATASET: Kind = "dataset_overlap_diffusion"
TASK: Kind = "task_overlap_diffusion"
SUMMARY = ("dataset", "architecture", "probe", "view", "metric", "overlap")
VIEWS = ("as published", "not preprocessed", "standardised", "without the first direction")
CONTROLS = ("untrained", "other noise", "other images")
OTHER_NOISE = 20_000  # is added to a seed


class Network(Frozen):
    """Arguments of `repsim_utils.models.diffusion.build`."""

    width: int = Field(ge=8)
    multipliers: tuple[int, ...] = Field(min_length=1)
    depth: int = Field(1, ge=1)
    attention: int = Field(1, ge=0)
    groups: int = Field(8, ge=1)
    schedule: models.Schedule = "linear"


class DiffusionTrainee(Frozen):
    """A network and its recipe."""

    network: Network
    recipe: Recipe


class Drawing(Frozen):
    """How a model draws: `n_per_class` images of each class that it knows, in `steps` of DDIM, with `guidance`.

    `at` are shares of the training after which it draws one of each class as well. Drawings are judged beside `n_real`
    held-out images of each class (None: all).
    """

    n_per_class: int = Field(ge=2)
    n_real: int | None = Field(None, ge=4)
    steps: int = Field(50, ge=1, le=TIMESTEPS)
    guidance: float = Field(3.0, ge=0)
    at: tuple[float, ...] = ()


class Judge(Trainee):
    """The classifier that says what samples show; it is trained on `n_per_class` real images that no model sees.

    Of data sets that are not drawn anew, on half of their training images.
    """

    n_per_class: int | None = Field(None, ge=2)


def _of_diffusion(values: tuple[int, ...]) -> tuple[int, ...]:
    if not values or not all(0 <= value < TIMESTEPS for value in values) or len(set(values)) < len(values):
        raise ValueError(f"timesteps are different whole numbers from 0 to {TIMESTEPS - 1}, at least one")
    return values


Timesteps = Annotated[tuple[int, ...], AfterValidator(_of_diffusion)]


class Settings(Declared):
    """What a profile says of an experiment on overlap in diffusion models.

    A pair is measured on held-out images (`n_test` a class; None: all; at most `n_probe` a probe), each with noise of a
    timestep of its own; and layer by layer at each of `timesteps`. See `repsim_utils.experiments.vision.Settings`.
    """

    seeds: Seeds
    overlaps: Overlaps
    mode: Mode = "constrained"
    data: Data
    models: dict[str, DiffusionTrainee] = Field(min_length=1)
    architectures: tuple[str, ...] | None = Field(None, min_length=1)
    drawing: Drawing
    judge: Judge
    timesteps: Timesteps
    n_test: int | None = Field(None, ge=1)
    n_probe: int = Field(10_000, ge=30)
    probe_classes: int | None = Field(None, ge=2)
    n_permutations: int = Field(200, ge=19)

    @model_validator(mode="after")
    def _known(self) -> Settings:
        check_choice(self.architectures, self.models)
        for name in self.architectures or self.models:
            options = self.models[name].network.model_dump(exclude={"depth", "schedule"})
            models.check(self.data.pixels, **options)
        return self


class Member(Part):
    """One model: what it is trained on, how, and how it draws; the judge says of what."""

    depends = (splitting, models, training, drawings, features)
    network: Network
    recipe: Recipe
    drawing: Drawing
    judge: vision.Member

    def needs(self) -> tuple[Model, ...]:
        """The judge of what the model draws."""
        return (self.judge,)

    def build(self, store: Store | None = None) -> Denoiser:
        """The network before its training."""
        network = self.network.model_dump()
        return build(self.counts()[0], seed=self.own_seed, size=self.data.pixels, **network)

    def fit(self, network: Denoiser, store: Store, *, progress: bool) -> Fitted:
        """Train the network and let it draw; a training that was killed goes on from its last checkpoint.

        Beside the averaged weights, ``samples`` are uint8 (n, 3, h, w), as many of each class, and ``pictures.STEP``
        one of each class, drawn after so many steps.
        """
        images, labels = self.own()
        drawing, classes = self.drawing, torch.arange(self.counts()[0])
        how: dict[str, Any] = {
            "size": self.data.pixels,
            "seed": self.seed,
            "steps": drawing.steps,
            "guidance": drawing.guidance,
        }
        history = train(
            network,
            images,
            labels,
            self.recipe,
            seed=self.own_seed,
            checkpoint=store.checkpoint(self.kind, self.config()),
            draw=lambda now: sample(now, classes, **how),
            draw_at=tuple(round(share * self.recipe.steps) for share in drawing.at),
            progress=progress,
        )
        asked = classes.repeat(drawing.n_per_class)
        drawn = sample(network, asked, **how)
        record = {"n_train": len(labels), "curve": history.curve} | self._quality(drawn, asked, store)
        pictures = {f"pictures.{step}": picture for step, picture in history.pictures.items()}
        return Fitted(record, network.state_dict() | {"samples": drawn} | pictures)

    def _quality(self, drawn: Tensor, asked: Tensor, store: Store) -> dict[str, float]:
        """How good drawings are; held-out images are those of classes that the model knows."""
        known = sorted((new, old) for old, new in self.label_map().items())
        numbers = torch.tensor([old for _, old in known])
        test = samples.held_out(self.data, self.drawing.n_real, self.seed, self.fingerprint)
        real = torch.isin(test.labels, numbers)
        judge = load(self.judge, store, progress=False)
        return drawings.quality(judge, drawn, numbers[asked], test.images[real], test.labels[real])

    def size(self) -> Size:
        """What training takes, known without the data unless they are a folder."""
        network = {"n_classes": self.counts()[0], "size": self.data.pixels} | self.network.model_dump()
        return Size(self.dataset, network, self.recipe.steps * self.recipe.batch_size, 1, self.data.pixels)


class DiffusionPair(Measured):
    """One cell of an experiment: two models, and what is measured on them."""

    depends = (drawings, features, metrics)
    first: Member
    second: Member
    timesteps: tuple[int, ...]
    n_probe: int
    n_permutations: int

    def rows(self, first: Denoiser, second: Denoiser, store: Store) -> Iterator[Row]:
        """Similarity on every probe, layer by layer and at single timesteps; how good drawings are, and whose.

        Columns are ``probe, n_probe, view, metric, value``; of similarities as published ``null_mean, p_value``; of
        others ``layer`` and ``timestep``. Views are those of `VIEWS`, then `CONTROLS`: two models before their
        training; other noise for the second model, of the same timesteps; and other images, too.
        """
        seed = self.second.seed
        for name, images in self.own_probes(self.n_probe).items():
            x, y = (represent_noisy(model, images, seed=seed)["last"] for model in (first, second))
            found = [
                {"view": VIEWS[0]} | one for one in similarities(x, y, n_permutations=self.n_permutations, seed=seed)
            ]
            if name == self.second.dataset:
                found += _seen_otherwise(x, y, draw_noise(images, seed=seed)[1])
                found += _by_layer(first, second, images, self)
                found += _controls(x, second, images, self)
                found += _with_other_noise(first, second, images, self)
            yield from ({"probe": name, "n_probe": len(images)} | one for one in found)
        for which, member in (("first", self.first), ("second", self.second)):
            run = trained(member, store)
            measured = {name: run.record[name] for name in ("agreement", "agreement_real", "frechet", "frechet_real")}
            for name, value in (measured | copies(self, member, run)).items():
                yield {"probe": "samples", "view": "drawings", "metric": f"{name}_{which}", "value": value}


def gallery(cells: Iterable[DiffusionPair], store: Store) -> Tensor:
    """What models draw, one row for each model: uint8 (rows, classes, 3, h, w).

    First the first model of the first cell, at the steps of its `drawing` at which it was looked at; then the first
    model of every seed, when trained.
    """
    firsts: dict[int, Member] = {}
    for cell in cells:
        firsts.setdefault(cell.first.seed, cell.first)
    runs = [trained(member, store).weights() for member in firsts.values()]
    steps = sorted(int(name.split(".")[1]) for name in runs[0] if name.startswith("pictures."))
    n_classes = len(runs[0]["samples"]) // next(iter(firsts.values())).drawing.n_per_class
    rows = [runs[0][f"pictures.{step}"] for step in steps] + [run["samples"][:n_classes] for run in runs]
    return torch.stack(rows)


# Of models that know different classes no common picture is made.
@experiment(TASK, by=SUMMARY, prepare=vision.prepare)
@experiment(DATASET, by=SUMMARY, prepare=vision.prepare, gallery=gallery)
def pairs(settings: Settings, kind: Kind) -> list[DiffusionPair]:
    """Every cell of an experiment, seed by seed."""
    data = settings.data
    known = samples.fingerprint(data)
    samples.check(data, settings.n_test, known, least_classes=LEAST_CLASSES if kind == TASK else 1)
    measured = settings.model_dump(include={"timesteps", "n_test", "n_probe", "probe_classes", "n_permutations"})
    cells = []
    for name in settings.architectures or settings.models:
        for seed in settings.seeds:
            common: dict[str, Any] = {"by": "example" if kind == DATASET else "class", "mode": settings.mode}
            common |= {"seed": seed, "data": data, "fingerprint": known, "judge": _judge(settings, seed)}
            common |= {"drawing": settings.drawing} | dict(settings.models[name])
            for overlap, first, second in samples.couples(Member, settings.overlaps, **common):
                about: dict[str, Any] = {
                    "kind": kind,
                    "architecture": name,
                    "overlap": overlap,
                    "first": first,
                    "second": second,
                }
                cells.append(DiffusionPair(**about, **measured))
    return cells


def _judge(settings: Settings, seed: int) -> vision.Member:
    """The classifier of a seed, trained on images that no model of that seed sees."""
    how, data = settings.judge, settings.data
    return vision.Member(
        by="example",
        which=1,
        overlap=0.0,
        seed=drawings.JUDGE_SEED + seed,
        data=data.model_copy(update={"n_per_class": how.n_per_class or data.n_per_class}),
        fingerprint=samples.fingerprint(data),
        network=how.network,
        recipe=how.recipe,
    )


def _seen_otherwise(x: Tensor, y: Tensor, timesteps: Tensor) -> list[dict[str, Any]]:
    """The paper's metrics on what is left of the last activation when it is prepared otherwise, and its spectrum."""
    from scipy.stats import spearmanr

    rows = []
    for view in VIEWS[1:]:
        found = similarity(prepared(x, view), prepared(y, view), PAPER, preprocess=None)
        rows += [{"view": view, "metric": name, "value": value} for name, value in found.items()]
    for which, one in (("first", x), ("second", y)):
        ready = platonic(one.double())
        variances, along = spectrum(ready), first_direction(ready)[0]
        about_spectrum = {
            "first_direction": variances[0],
            "dimensions": 1 / variances.square().sum(),
            "follows_noise": abs(spearmanr(along, timesteps).statistic),
        }
        for name, value in about_spectrum.items():
            rows.append({"view": VIEWS[0], "metric": f"{name}_{which}", "value": float(value)})
    return rows


def spectrum(x: Tensor) -> Tensor:
    """Shares of the variance along principal directions, the largest first: (n, d) to (min(n, d),)."""
    variances = torch.linalg.svdvals(x - x.mean(0)).square()
    return variances / variances.sum()


def first_direction(x: Tensor) -> tuple[Tensor, Tensor]:
    """Where rows (n, d) lie along the direction of largest variance, (n,), and the direction, (d,)."""
    centered = x - x.mean(0)
    direction = torch.linalg.svd(centered, full_matrices=False).Vh[0]
    return centered @ direction, direction


def prepared(x: Tensor, view: str) -> Tensor:
    """A representation (n, d) as one of `VIEWS` has it, in float64.

    `as published` clamps and normalises rows, `not preprocessed` leaves it as it is, `standardised` brings every
    column to mean 0 and variance 1, `without the first direction` takes the direction of largest variance out of what
    `as published` leaves.
    """
    x = x.double()
    if view == "not preprocessed":
        return x
    if view == "standardised":
        return (x - x.mean(0)) / x.std(0).clamp(min=1e-12)
    x = platonic(x)
    if view == "without the first direction":
        return x - x.mean(0) - torch.outer(*first_direction(x))
    return x


def _by_layer(first: Denoiser, second: Denoiser, images: Tensor, pair: DiffusionPair) -> list[dict[str, Any]]:
    """The paper's metrics of every layer at single timesteps, and at one drawn for each image."""
    rows = []
    for timestep in (None, *pair.timesteps):
        options: dict[str, Any] = {"seed": pair.second.seed, "timestep": timestep, "layers": True}
        x, y = (represent_noisy(model, images, **options) for model in (first, second))
        for layer in x:
            about = {"view": VIEWS[0], "layer": layer} | ({} if timestep is None else {"timestep": timestep})
            found = similarity(x[layer], y[layer], PAPER)
            rows += [about | {"metric": name, "value": value} for name, value in found.items()]
    return rows


def _controls(x: Tensor, second: Denoiser, images: Tensor, pair: DiffusionPair) -> list[dict[str, Any]]:
    """How alike last activations are for other reasons than what models have learned of images."""
    seed = pair.second.seed
    timesteps = draw_noise(images, seed=seed)[1]
    others = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))]
    new = [represent_noisy(one.build(), images, seed=seed)["last"] for one in (pair.first, pair.second)]
    options: dict[str, Any] = {"seed": OTHER_NOISE + seed, "timestep": timesteps}
    seen = [(new[0], new[1]), *((x, represent_noisy(second, given, **options)["last"]) for given in (images, others))]
    return [
        {"view": view, "metric": name, "value": value}
        for view, (a, b) in zip(CONTROLS, seen, strict=True)
        for name, value in similarity(a, b, PAPER).items()
    ]


def _with_other_noise(first: Denoiser, second: Denoiser, images: Tensor, pair: DiffusionPair) -> list[dict[str, Any]]:
    """The paper's metrics of the last activation at single timesteps, with other noise for the second model."""
    rows, seed = [], pair.second.seed
    for timestep in pair.timesteps:
        x = represent_noisy(first, images, seed=seed, timestep=timestep)["last"]
        y = represent_noisy(second, images, seed=OTHER_NOISE + seed, timestep=timestep)["last"]
        about = {"view": "other noise", "layer": "last", "timestep": timestep}
        rows += [about | {"metric": name, "value": value} for name, value in similarity(x, y, PAPER).items()]
    return rows


def copies(pair: DiffusionPair, member: Member, run: Run) -> dict[str, float]:
    """Where the training image nearest to a model's drawings is: see `repsim_utils.experiments.drawings.nearest`.

    Among those that it shares with the other model, its own, and as many that neither has seen, of the same classes;
    a set that is empty is left out. And the share of drawings that are copies: see
    `repsim_utils.experiments.drawings.copied`.
    """
    indices = [pair.first.split().first, pair.second.split().second]
    mine, others = indices if member.which == 1 else indices[::-1]
    images, test = member.pool().images, pair.held_out()
    known = torch.isin(test.labels, torch.tensor(list(member.label_map())))
    sets = {
        "shared": images[torch.from_numpy(np.intersect1d(mine, others))],
        "own": images[torch.from_numpy(np.setdiff1d(mine, others))],
        "unseen": test.images[known],
    }
    drawn = run.weights()["samples"]
    found = drawings.nearest(drawn, {name: one for name, one in sets.items() if len(one)})
    copied, chance = drawings.copied(drawn, images[torch.from_numpy(mine)], sets["unseen"])
    return {f"nearest_{name}": share for name, share in found.items()} | {"copied": copied, "copied_chance": chance}
