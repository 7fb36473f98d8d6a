"""Overlap in language: two small GPTs share chunks of one corpus (dataset overlap) or whole corpora (task overlap)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from repsim_utils import features, metrics
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
from repsim_utils.experiments.engine import Fitted, Row, experiment
from repsim_utils.experiments.reading import Reader, ReadPair, Sources, Text, curve_rows, prepare
from repsim_utils.features import represent_text
from repsim_utils.metrics import PAPER, similarity
from repsim_utils.models import language as models
from repsim_utils.models.language import GPT, build
from repsim_utils.plan import Size
from repsim_utils.store import Store
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

    depends = (splitting, models, training)
    network: Network
    recipe: Recipe

    @property
    def context(self) -> int:
        """Tokens of a window."""
        return self.network.context

    def build(self, store: Store) -> GPT:
        """The network before its training."""
        return build(self.text.size, seed=self.own_seed, **self.network.model_dump())

    def fit(self, network: GPT, store: Store, *, progress: bool) -> Fitted:
        """Train the network on its part; the record has its curve of losses."""
        held_out = windows(self.held_out(), self.recipe.n_validation, self.context)
        history = train(network, self.streams(), held_out, self.recipe, seed=self.own_seed, progress=progress)
        return Fitted(history._asdict(), network.state_dict())

    def size(self) -> Size:
        """What training takes, known without the text."""
        network = {"vocabulary": self.text.size} | self.network.model_dump()
        return Size(self.dataset, network, self.recipe.steps * self.recipe.batch_size, 1, self.context)


class LanguagePair(ReadPair):
    """One cell of an experiment: two models, and what is measured on them."""

    depends = (features, metrics)
    first: Member
    second: Member

    def columns(self, store: Store) -> Row:
        """With the overlap of what the models really read, and what their tokens depend on."""
        realised = {"realised_overlap": self.second.split().overlap, "fingerprint": self.second.fingerprint}
        return super().columns(store) | realised

    def rows(self, first: GPT, second: GPT, store: Store) -> Iterator[Row]:
        """Similarity on every probe, with its chance level, and by layer; losses of each model.

        Columns are ``probe, n_probe, metric, value``. Similarities of the last layer also have ``null_mean, p_value``
        (see `repsim_utils.metrics.Calibrated`); those of earlier layers (0: the embedding) have ``layer``, and losses
        during training have ``step``.
        """
        for name, tokens in self.probes().items():
            about = {"probe": name, "n_probe": len(tokens)}
            layers = zip(*(represent_text(model, tokens, layers=True) for model in (first, second)), strict=True)
            *earlier, last = layers
            found = similarities(*last, n_permutations=self.n_permutations, seed=self.second.seed)
            yield from (about | row for row in found)
            for layer, (x, y) in enumerate(earlier):
                for metric, value in similarity(x, y, PAPER).items():
                    yield about | {"metric": metric, "value": value, "layer": layer}
        about = {"probe": self.second.dataset}
        for which, member, model in (("first", self.first, first), ("second", self.second, second)):
            for name, value in self.losses(member, model).items():
                yield about | {"metric": f"{name}_{which}", "value": value}
            yield from (about | row for row in curve_rows(member, which, store))

    def losses(self, member: Member, model: GPT) -> dict[str, float]:
        """A model's loss, in nats a token: on its own text, on what only the other has read, on held-out text.

        What only the other has read is missing where that is nothing.
        """
        theirs = self.shares().get("second_only" if member.which == 1 else "first_only")
        read = {"loss_own": member.streams()}
        if theirs is not None:
            read["loss_other"] = self.second.streams(theirs)
        read["loss_held_out"] = member.held_out()
        return {name: evaluate(model, windows(some, N_LOSS, member.context)) for name, some in read.items()}


@experiment(DATASET, TASK, by=SUMMARY, prepare=prepare)
def pairs(settings: Settings, kind: Kind) -> list[LanguagePair]:
    """Every cell of an experiment, seed by seed.

    Raises
    ------
    ValueError
        If corpora that two models divide are odd in number, or fewer than two.
    DataError
        If a corpus is a folder that cannot be read.
    """
    by: Literal["chunk", "corpus"] = "chunk" if kind == DATASET else "corpus"
    common: dict[str, Any] = settings.model_dump(include={"n_tokens", "n_chunks"})
    common |= {"by": by, "text": settings.text, "fingerprint": settings.text.fingerprint()}
    measured = settings.model_dump(include={"n_probe", "probe_corpora", "n_permutations"})
    cells = []
    for part in reading.divisions(settings.divided or settings.corpora, by):
        for name in settings.architectures or settings.models:
            common |= {"divided": part} | dict(settings.models[name])
            measured |= {"kind": kind, "architecture": name}
            for seed in settings.seeds:
                for overlap, first, second in reading.couples(Member, settings.overlaps, seed=seed, **common):
                    cells.append(LanguagePair(overlap=overlap, first=first, second=second, **measured))
    return cells
