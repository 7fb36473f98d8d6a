"""Overlap in language: two small GPTs share chunks of one corpus (dataset overlap) or whole corpora (task overlap)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor

from repsim_utils import overlap as splitting
from repsim_utils.datasets import text
from repsim_utils.experiments import reading
from repsim_utils.experiments.common import (
    LEAST_PROBE,
    Declared,
    Frozen,
    Overlaps,
    Seeds,
    check_choice,
    one_name_each,
    similarities,
    single,
)
from repsim_utils.experiments.reading import Reader, Sources, Text
from repsim_utils.features import represent_text
from repsim_utils.metrics import PAPER, similarity
from repsim_utils.models import language as models
from repsim_utils.models.language import GPT, build
from repsim_utils.plan import Size
from repsim_utils.store import Run, Store
from repsim_utils.training import language as training
from repsim_utils.training.language import Recipe, evaluate, train, windows

VERSION = 1  # raised when the same pair gives other measurements
Kind = Literal["dataset_overlap_language", "task_overlap_language"]
DATASET: Kind = "dataset_overlap_language"
TASK: Kind = "task_overlap_language"
SUMMARY = ("dataset", "architecture", "probe", "metric", "overlap")
N_LOSS = 100  # windows on which a loss is taken


class Network(Frozen):
    """Arguments of `repsim_utils.models.language.build`."""

    n_layer: int = Field(ge=1)
    n_head: int = Field(ge=1)
    width: int = Field(ge=8)
    context: int = Field(ge=8)
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _heads_fit(self) -> Network:
        if self.width % self.n_head:
            raise ValueError(f"width must be a multiple of n_head = {self.n_head}, got {self.width}")
        return self


class Trainee(Frozen):
    """A network and its recipe."""

    network: Network
    recipe: Recipe


class Settings(Declared):
    """What a profile says of an experiment on overlap in text.

    `corpora` are read and encoded together, with those in `divided` that are not among them. Dataset overlap divides
    the chunks of each corpus in `divided` in turn, and the others are further probes; task overlap divides the corpora
    in `divided` among the two models (None: all, in both cases). Of each corpus at most `n_tokens` tokens are trained
    on (None: all). A pair is measured on at most `n_probe` held-out windows a probe; of corpora that both, one or none
    of the models has read, a probe takes `probe_corpora` (of those read by one, as many of each model), the same ones
    at every overlap (None: all that there are).
    """

    seeds: Seeds
    overlaps: Overlaps
    corpora: Sources
    divided: Annotated[Sources | None, BeforeValidator(single)] = None
    tokenizer: Literal["bpe", "gpt2"] = "bpe"
    vocabulary: int = Field(2048, ge=257, le=2**16)
    max_bytes: int | None = Field(None, ge=1)
    n_tokens: int | None = Field(None, ge=1)
    n_chunks: int = Field(80, ge=2, multiple_of=2)
    models: dict[str, Trainee] = Field(min_length=1)
    architectures: tuple[str, ...] | None = Field(None, min_length=1)
    n_probe: int = Field(1000, ge=LEAST_PROBE)
    probe_corpora: int | None = Field(None, ge=1)
    n_permutations: int = Field(200, ge=19)

    @model_validator(mode="after")
    def _known(self) -> Settings:
        check_choice(self.architectures, self.models)
        one_name_each(text.name_of(source) for source in self.text.sources)
        one_name_each(text.name_of(source) for source in self.divided or ())
        return self

    @property
    def text(self) -> Text:
        """What is read and encoded together."""
        further = (source for source in self.divided or () if source not in self.corpora)
        fields = self.model_dump(include={"tokenizer", "vocabulary", "max_bytes"})
        return Text(sources=(*self.corpora, *further), **fields)


class Member(Reader):
    """One model: what it is trained on, and how."""

    kind: Literal["models"] = "models"
    version: tuple[int, int, int] = (splitting.VERSION, models.VERSION, training.VERSION)
    network: Network
    recipe: Recipe

    @property
    def context(self) -> int:
        """Tokens of a window."""
        return self.network.context


class Pair(Frozen):
    """One cell of an experiment: two models, and what is measured on them."""

    kind: Kind
    version: int = VERSION
    architecture: str
    overlap: float
    first: Member
    second: Member
    n_probe: int
    probe_corpora: int | None
    n_permutations: int

    @property
    def members(self) -> tuple[Member, Member]:
        """Models that must have been trained before the pair is measured."""
        return self.first, self.second


def pairs(settings: Settings, kind: Kind) -> list[Pair]:
    """Every cell of an experiment, seed by seed.

    Raises
    ------
    ValueError
        If corpora that two models divide are odd in number, or fewer than two.
    DataError
        If a corpus is a folder that cannot be read.
    """
    by: Literal["chunk", "corpus"] = "chunk" if kind == DATASET else "corpus"
    parts = reading.divisions(settings.divided or settings.corpora, by)
    common: dict[str, Any] = settings.model_dump(include={"n_tokens", "n_chunks"})
    common |= {"by": by, "text": settings.text, "fingerprint": settings.text.fingerprint()}
    measured = settings.model_dump(include={"n_probe", "probe_corpora", "n_permutations"})
    cells = []
    for part in parts:
        for name in settings.architectures or settings.models:
            common |= {"divided": part} | dict(settings.models[name])
            for seed in settings.seeds:
                for overlap, first, second in reading.couples(Member, settings.overlaps, seed=seed, **common):
                    cells.append(
                        Pair(kind=kind, architecture=name, overlap=overlap, first=first, second=second, **measured)
                    )
    return cells


def prepare(cells: Iterable[Pair]) -> None:
    """Read and encode what cells need; see `repsim_utils.experiments.reading.prepare`."""
    reading.prepare(member for cell in cells for member in cell.members)


def trained(member: Member, store: Store, *, progress: bool = True) -> Run:
    """The run of one model: from the store, or trained now and kept there, with its curve of losses."""
    config = member.model_dump(mode="json")
    run = store.load(member.kind, config)
    if run is None:
        model, read = _build(member), reading.streams(member)
        held_out = windows(reading.held_out(member), member.recipe.n_validation, member.context)
        history = train(model, read, held_out, member.recipe, seed=member.own_seed, progress=progress)
        run = store.save(member.kind, config, history._asdict(), model.state_dict())
    return run


def _build(member: Member) -> GPT:
    return build(member.text.size, seed=member.own_seed, **member.network.model_dump())


def size(member: Member) -> Size:
    """What training a model takes, known without the text."""
    network = {"vocabulary": member.text.size} | member.network.model_dump()
    n_windows = member.recipe.steps * member.recipe.batch_size
    return Size(member.dataset, network, n_windows, 1, member.context)


def trained_model(member: Member, store: Store, *, progress: bool = True) -> GPT:
    """A model, trained or taken from the store, in evaluation mode."""
    run = trained(member, store, progress=progress)
    model = _build(member)
    model.load_state_dict(run.weights())
    return model.eval()


def train_pair(pair: Pair, store: Store, *, progress: bool = True) -> tuple[GPT, GPT]:
    """Both models of a pair, trained or taken from the store, in evaluation mode."""
    first, second = (trained_model(member, store, progress=progress) for member in pair.members)
    return first, second


def probes(pair: Pair) -> dict[str, Tensor]:
    """Held-out windows on which the pair is measured; see `repsim_utils.experiments.reading.probes`."""
    return reading.probes(pair.second, pair.n_probe, pair.probe_corpora)


def measure_pair(pair: Pair, store: Store, *, progress: bool = True) -> list[dict[str, Any]]:
    """Similarity of the pair on every probe, with its chance level, and by layer; losses of each model.

    Parameters
    ----------
    pair : Pair
    store : Store
        Where trained models are looked for and kept.
    progress : bool

    Returns
    -------
    list of dict
        One row a measurement: ``probe, n_probe, metric, value``. Similarities of the last layer also have ``null_mean,
        p_value`` (see `repsim_utils.metrics.Calibrated`); those of earlier layers (0: the embedding) have ``layer``,
        and losses during training have ``step``.
    """
    first, second = train_pair(pair, store, progress=progress)
    rows: list[dict[str, Any]] = []
    for name, tokens in probes(pair).items():
        about = {"probe": name, "n_probe": len(tokens)}
        *earlier, last = zip(*(represent_text(model, tokens, layers=True) for model in (first, second)), strict=True)
        found = similarities(*last, n_permutations=pair.n_permutations, seed=pair.second.seed)
        rows += [about | row for row in found]
        for layer, (x, y) in enumerate(earlier):
            values = similarity(x, y, PAPER)
            rows += [about | {"metric": metric, "value": v, "layer": layer} for metric, v in values.items()]
    for which, member, model in zip(("first", "second"), pair.members, (first, second), strict=True):
        for name, value in losses(pair, member, model).items():
            rows.append({"probe": pair.second.dataset, "metric": f"{name}_{which}", "value": value})
        for point in trained(member, store, progress=progress).record["curve"]:
            for name in ("train", "validation"):
                row = {"metric": f"{name}_curve_{which}", "value": point[name], "step": point["step"]}
                rows.append({"probe": pair.second.dataset} | row)
    about = {"dataset": pair.second.dataset, "architecture": pair.architecture, "overlap": pair.overlap}
    about |= {"seed": pair.second.seed, "realised_overlap": reading.split(pair.second).overlap}
    about |= {"fingerprint": pair.second.fingerprint}
    return [about | row for row in rows]


def losses(pair: Pair, member: Member, model: GPT) -> dict[str, float]:
    """A model's loss, in nats a token: on its own text, on the text that only the other has read, on held-out text.

    What only the other has read is missing where that is nothing.
    """
    theirs = reading.shares(pair.second).get("second_only" if member.which == 1 else "first_only")
    read = {"loss_own": reading.streams(member)}
    if theirs is not None:
        read["loss_other"] = reading.streams(pair.second, theirs)
    read["loss_held_out"] = reading.held_out(member)
    return {name: evaluate(model, windows(some, N_LOSS, member.context)) for name, some in read.items()}
