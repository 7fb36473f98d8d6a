"""Overlap in generative models: two diffusion models share samples of every class, or whole classes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import AfterValidator, Field, model_validator
from scipy.stats import spearmanr
from torch import Tensor

from repsim_utils import overlap as splitting
from repsim_utils.experiments import drawings, samples, vision
from repsim_utils.experiments.common import Declared, Frozen, Overlaps, Seeds, check_choice, similarities
from repsim_utils.experiments.samples import Data
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
    mode: Literal["constrained", "unconstrained"] = "constrained"
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


class Member(vision.Part):
    """One model: what it is trained on, how, and how it draws; the judge says of what."""

    kind: Literal["models"] = "models"
    version: tuple[int, int, int, int] = (splitting.VERSION, models.VERSION, training.VERSION, drawings.VERSION)
    network: Network
    recipe: Recipe
    drawing: Drawing
    judge: vision.Member

    @property
    def members(self) -> tuple[vision.Member]:
        """The judge must have been trained before a model's samples are judged."""
        return (self.judge,)


class Pair(Frozen):
    """One cell of an experiment: two models, and what is measured on them."""

    kind: Kind
    version: int = VERSION
    architecture: str
    overlap: float
    first: Member
    second: Member
    timesteps: tuple[int, ...]
    n_test: int | None
    n_probe: int
    probe_classes: int | None
    n_permutations: int
    probes: tuple[str, ...] = Field((), exclude=True)  # of other data sets, which the images of a pair may come from
    probe_fingerprints: tuple[str, ...] = Field((), exclude=True)

    @property
    def members(self) -> tuple[Member, Member]:
        """Models that must have been trained before the pair is measured."""
        return self.first, self.second


def pairs(settings: Settings, kind: Kind) -> list[Pair]:
    """Every cell of an experiment, seed by seed."""
    data = settings.data
    print_of = samples.fingerprint(data)
    samples.check(data, settings.n_test, print_of, least_classes=vision.LEAST_CLASSES if kind == TASK else 1)
    measured = settings.model_dump(include={"timesteps", "n_test", "n_probe", "probe_classes", "n_permutations"})
    cells = []
    for name in settings.architectures or settings.models:
        for seed in settings.seeds:
            of_judge: dict[str, Any] = {"by": "example", "which": 1, "overlap": 0.0, "mode": "constrained"}
            apart = {"data": data.model_copy(update={"n_per_class": settings.judge.n_per_class or data.n_per_class})}
            of_judge |= {"seed": drawings.JUDGE_SEED + seed, "fingerprint": print_of} | apart
            judge = vision.Member(network=settings.judge.network, recipe=settings.judge.recipe, **of_judge)
            common: dict[str, Any] = {"by": "example" if kind == DATASET else "class", "mode": settings.mode}
            common |= {"seed": seed, "data": data, "fingerprint": print_of, "judge": judge}
            common |= {"drawing": settings.drawing} | dict(settings.models[name])
            for overlap in settings.overlaps:
                # In constrained mode the first model's half is the same at every overlap, and it is trained once.
                alone = 0.0 if settings.mode == "constrained" else overlap
                first, second = Member(which=1, overlap=alone, **common), Member(which=2, overlap=overlap, **common)
                cells.append(
                    Pair(kind=kind, architecture=name, overlap=overlap, first=first, second=second, **measured)
                )
    return cells


def trained(member: Any, store: Store, *, progress: bool = True) -> Run:
    """The run of one model, or of a judge: from the store, or trained now and kept there, with what it draws.

    Beside the averaged weights, ``samples`` are uint8 (n, 3, h, w), as many of each class, and ``pictures.STEP`` one of
    each class, drawn after so many steps. A training that was killed goes on from its last checkpoint.
    """
    if isinstance(member, vision.Member):
        return vision.trained(member, store, progress=progress)
    config = member.model_dump(mode="json")
    run = store.load(member.kind, config)
    if run is not None:
        return run
    images, labels = own(member)
    model, drawing = fresh(member), member.drawing
    classes = torch.arange(len(vision.label_map(member)))
    how = {"size": member.data.pixels, "seed": member.seed, "steps": drawing.steps, "guidance": drawing.guidance}
    checkpoint = store.checkpoint(member.kind, config)
    history = train(
        model,
        images,
        labels,
        member.recipe,
        seed=_own_seed(member),
        checkpoint=checkpoint,
        draw=lambda now: sample(now, classes, **how),
        draw_at=tuple(round(share * member.recipe.steps) for share in drawing.at),
        progress=progress,
    )
    asked = classes.repeat(drawing.n_per_class)
    drawn = sample(model, asked, **how)
    record = {"n_train": len(labels), "curve": history.curve} | _quality(member, drawn, asked, store)
    pictures = {f"pictures.{step}": picture for step, picture in history.pictures.items()}
    run = store.save(member.kind, config, record, model.state_dict() | {"samples": drawn} | pictures)
    checkpoint.unlink(missing_ok=True)
    return run


def own(member: Member) -> tuple[Tensor, Tensor]:
    """What a model is trained on: images, and its own numbers of their classes."""
    parts, images = vision.split(member), vision.pool(member)
    mine = samples.subset(images, parts.first if member.which == 1 else parts.second)
    return vision.relabelled(mine, vision.label_map(member))


def _quality(member: Member, drawn: Tensor, asked: Tensor, store: Store) -> dict[str, float]:
    """Drawings in the eyes of the judge, which has seen all classes and knows them by their numbers in the data."""
    known = sorted((new, old) for old, new in vision.label_map(member).items())
    numbers = torch.tensor([old for _, old in known])
    test = samples.held_out(member.data, member.drawing.n_real, member.seed, member.fingerprint)
    real = torch.isin(test.labels, numbers)
    judge = vision.trained_model(member.judge, store, progress=False)
    return drawings.quality(judge, drawn, numbers[asked], test.images[real], test.labels[real])


def _own_seed(member: Member) -> int:
    """The two models of a pair start from other weights and see their batches in another order."""
    return 2 * member.seed + member.which - 1


def fresh(member: Member) -> Denoiser:
    """A model before its training."""
    n_classes, size = len(vision.label_map(member)), member.data.pixels
    return build(n_classes, seed=_own_seed(member), size=size, **member.network.model_dump())


def size(member: Any) -> Size:
    """What training a model takes, known without the data unless they are a folder."""
    if isinstance(member, vision.Member):
        return vision.size(member)
    network = {"n_classes": vision.counts(member)[0], "size": member.data.pixels} | member.network.model_dump()
    n_drawn = member.recipe.steps * member.recipe.batch_size
    return Size(member.data.name, network, n_drawn, 1, member.data.pixels)


def trained_model(member: Member, store: Store, *, progress: bool = True) -> tuple[Denoiser, Run]:
    """A model with its averaged weights, trained or taken from the store, in evaluation mode; and its run."""
    run = trained(member, store, progress=progress)
    model, weights = fresh(member), run.weights()
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return model.eval(), run


def measure_pair(pair: Pair, store: Store, *, progress: bool = True) -> list[dict[str, Any]]:
    """Similarity of the pair on every probe, layer by layer and at single timesteps; how good drawings are, and whose.

    Parameters
    ----------
    pair : Pair
    store : Store
        Where trained models are looked for and kept.
    progress : bool

    Returns
    -------
    list of dict
        One row a measurement: ``probe, n_probe, view, metric, value``; of similarities as published ``null_mean,
        p_value``; of others ``layer`` and ``timestep``. Views are those of `VIEWS`, then `CONTROLS`: two models before
        their training; other noise for the second model, of the same timesteps; and other images, too.
    """
    (first, run_first), (second, run_second) = (trained_model(one, store, progress=progress) for one in pair.members)
    seed, data = pair.second.seed, pair.second.data
    rows: list[dict[str, Any]] = []
    for name, images in vision.probes(pair).items():
        x, y = (represent_noisy(model, images, seed=seed)["last"] for model in (first, second))
        about = {"probe": name, "n_probe": len(images)}
        found = similarities(x, y, n_permutations=pair.n_permutations, seed=seed)
        rows += [about | {"view": VIEWS[0]} | one for one in found]
        if name == data.name:
            rows += [about | one for one in _seen_otherwise(x, y, draw_noise(images, seed=seed)[1])]
            rows += [about | one for one in _by_layer(first, second, images, pair)]
            rows += [about | one for one in _controls(x, second, images, pair)]
            rows += [about | one for one in _with_other_noise(first, second, images, pair)]
    for which, run in (("first", run_first), ("second", run_second)):
        member = getattr(pair, which)
        measured = {name: run.record[name] for name in ("agreement", "agreement_real", "frechet", "frechet_real")}
        measured |= copies(pair, member, run)
        rows += [
            {"probe": "samples", "view": "drawings", "metric": f"{name}_{which}", "value": value}
            for name, value in measured.items()
        ]
    about = {"dataset": data.name, "architecture": pair.architecture, "overlap": pair.overlap, "seed": seed}
    return [about | {"realised_overlap": vision.split(pair.second).overlap} | row for row in rows]


def _seen_otherwise(x: Tensor, y: Tensor, timesteps: Tensor) -> list[dict[str, Any]]:
    """The paper's metrics on what is left of the last activation when it is prepared otherwise, and its spectrum."""
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
    centred = x - x.mean(0)
    direction = torch.linalg.svd(centred, full_matrices=False).Vh[0]
    return centred @ direction, direction


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


def _by_layer(first: Denoiser, second: Denoiser, images: Tensor, pair: Pair) -> list[dict[str, Any]]:
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


def _controls(x: Tensor, second: Denoiser, images: Tensor, pair: Pair) -> list[dict[str, Any]]:
    """How alike last activations are for other reasons than what models have learned of images."""
    seed = pair.second.seed
    timesteps = draw_noise(images, seed=seed)[1]
    others = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))]
    new = [represent_noisy(fresh(one), images, seed=seed)["last"] for one in pair.members]
    options: dict[str, Any] = {"seed": OTHER_NOISE + seed, "timestep": timesteps}
    seen = [(new[0], new[1]), *((x, represent_noisy(second, given, **options)["last"]) for given in (images, others))]
    return [
        {"view": view, "metric": name, "value": value}
        for view, (a, b) in zip(CONTROLS, seen, strict=True)
        for name, value in similarity(a, b, PAPER).items()
    ]


def _with_other_noise(first: Denoiser, second: Denoiser, images: Tensor, pair: Pair) -> list[dict[str, Any]]:
    """The paper's metrics of the last activation at single timesteps, with other noise for the second model."""
    rows, seed = [], pair.second.seed
    for timestep in pair.timesteps:
        x = represent_noisy(first, images, seed=seed, timestep=timestep)["last"]
        y = represent_noisy(second, images, seed=OTHER_NOISE + seed, timestep=timestep)["last"]
        about = {"view": "other noise", "layer": "last", "timestep": timestep}
        rows += [about | {"metric": name, "value": value} for name, value in similarity(x, y, PAPER).items()]
    return rows


def copies(pair: Pair, member: Member, run: Run) -> dict[str, float]:
    """Where the training image nearest to a model's drawings is: see `repsim_utils.experiments.drawings.nearest`.

    Among those that it shares with the other model, its own, and as many that neither has seen, of the same classes;
    a set that is empty is left out. And the share of drawings that are copies: see
    `repsim_utils.experiments.drawings.copied`.
    """
    indices = [vision.split(pair.first).first, vision.split(pair.second).second]
    mine, others = indices if member.which == 1 else indices[::-1]
    images, test = vision.pool(member).images, vision.held_out(pair)
    known = torch.isin(test.labels, torch.tensor(list(vision.label_map(member))))
    sets = {
        "shared": images[torch.from_numpy(np.intersect1d(mine, others))],
        "own": images[torch.from_numpy(np.setdiff1d(mine, others))],
        "unseen": test.images[known],
    }
    drawn = run.weights()["samples"]
    found = drawings.nearest(drawn, {name: one for name, one in sets.items() if len(one)})
    copied, chance = drawings.copied(drawn, images[torch.from_numpy(mine)], sets["unseen"])
    return {f"nearest_{name}": share for name, share in found.items()} | {"copied": copied, "copied_chance": chance}


def gallery(cells: Iterable[Pair], store: Store) -> Tensor:
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
