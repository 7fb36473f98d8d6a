"""Fine-tuned language models: two copies of one base share chunks of one corpus, or whole corpora."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from torch import Tensor

from repsim_utils import metrics
from repsim_utils import overlap as splitting
from repsim_utils.datasets import text
from repsim_utils.experiments import changes, reading
from repsim_utils.experiments.common import (
    LEAST_PROBE,
    Declared,
    Frozen,
    Overlaps,
    Seeds,
    check_choice,
    one_name_each,
    single,
)
from repsim_utils.experiments.engine import Fitted, Model, Pair, Row, experiment, load, trained
from repsim_utils.experiments.reading import Reader, ReadPair, Source, Sources, Text
from repsim_utils.models import adapters, language, llama, smollm2
from repsim_utils.models.device import device
from repsim_utils.models.language import GPT
from repsim_utils.plan import Size
from repsim_utils.store import Store, key
from repsim_utils.training import language as training
from repsim_utils.training.language import Recipe, drawn, evaluate, train, whole, windows

VERSION = 1  # raised when the same pair gives other measurements
Kind = Literal["dataset_overlap_finetuned", "task_overlap_finetuned", "lora_grid"]
DATASET: Kind = "dataset_overlap_finetuned"
TASK: Kind = "task_overlap_finetuned"
GRID: Kind = "lora_grid"
Pairing = Literal["overlap", "floor"]
SUMMARY = ("dataset", "architecture", "probe", "view", "metric", "overlap")


class Shape(Frozen):
    """Arguments of `repsim_utils.models.llama.build`."""

    n_layer: int = Field(ge=1)
    n_head: int = Field(ge=1)
    n_kv_head: int = Field(ge=1)
    width: int = Field(ge=8)
    hidden: int = Field(ge=8)


class Pretraining(Frozen):
    """A base of our own: what it reads, and how."""

    sources: Annotated[Sources, BeforeValidator(single)]
    network: Shape
    recipe: Recipe


class Lora(Frozen):
    """Adapters of low rank; with `shared_init` both models of a pair begin with the same A."""

    rank: int = Field(32, ge=1, le=1024)
    alpha: int = Field(64, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    shared_init: bool = False


class Arm(Frozen):
    """One way to fine-tune: with adapters, or with all weights (`lora` null).

    Of each corpus at most `n_tokens` tokens are read (None: all), cut into `n_chunks` where a corpus is divided. Where
    a chunk is as long as one window, its windows are the chunks, and a model reads its own again and again; where all
    of a large corpus is divided, a short training hardly meets the same text twice. `overlaps` replaces those of the
    experiment. With `two_bases` the second model is tuned from a base of its own, trained from another seed.
    """

    lora: Lora | None
    recipe: Recipe
    n_tokens: int | None = Field(None, ge=1)
    n_chunks: int = Field(80, ge=2, multiple_of=2)
    overlaps: Overlaps | None = None
    two_bases: bool = False


def _known_base(base: Any) -> Any:
    if isinstance(base, str) and base not in llama.SHAPES:
        raise ValueError(
            f"base must be one of {', '.join(llama.SHAPES)}, or say how one is trained here (sources, network, recipe)"
        )
    return base


class Settings(Declared):
    """What a profile says of an experiment on fine-tuning.

    `corpora`, `divided`, `max_bytes`, `n_probe` and `probe_corpora` are as in `repsim_utils.experiments.language`. A
    model that others have made brings its own tokens; `vocabulary` is of a base of our own. With `floor`, the first
    model of a pair is also compared with one that was tuned on that corpus instead. Losses are taken on `n_loss`
    windows of what each model has or has not read, predictions compared on `n_predictions` windows of a probe.
    """

    seeds: Seeds
    overlaps: Overlaps
    base: Annotated[str | Pretraining, AfterValidator(_known_base)]
    corpora: Sources
    divided: Annotated[Sources | None, BeforeValidator(single)] = None
    vocabulary: int = Field(2048, ge=257, le=2**16)
    max_bytes: int | None = Field(None, ge=1)
    context: int = Field(ge=8)
    arms: dict[str, Arm] = Field(min_length=1)
    architectures: tuple[str, ...] | None = Field(None, min_length=1)
    floor: Source | None = None
    n_probe: int = Field(1000, ge=LEAST_PROBE)
    probe_corpora: int | None = Field(None, ge=1)
    n_loss: int = Field(100, ge=1)
    n_predictions: int = Field(50, ge=1)
    n_permutations: int = Field(200, ge=19)

    @model_validator(mode="after")
    def _known(self) -> Settings:
        check_choice(self.architectures, self.arms)
        one_name_each(text.name_of(source) for source in self.text.sources)
        if self.floor is not None and self.floor in (self.divided or ()):
            raise ValueError(f"floor must be a corpus that is not divided, got {self.floor}")
        if isinstance(self.base, str) and any(arm.two_bases for arm in self.arms.values()):
            raise ValueError(f"two_bases needs a base that is pretrained here, and there is one {self.base} only")
        return self

    @property
    def text(self) -> Text:
        """What is read and encoded together."""
        own = self.base.sources if isinstance(self.base, Pretraining) else ()
        further = (*(self.divided or ()), *own, *((self.floor,) if self.floor is not None else ()))
        sources = tuple(dict.fromkeys((*self.corpora, *further)))
        tokenizer = "bpe" if isinstance(self.base, Pretraining) else self.base
        tokenizer = "llama-3.2" if tokenizer.startswith("llama-3.2") else tokenizer
        return Text(sources=sources, tokenizer=tokenizer, vocabulary=self.vocabulary, max_bytes=self.max_bytes)


class Base(Model):
    """A base of our own, as it is trained and kept."""

    depends = (adapters, language, llama, training)
    text: Text
    fingerprint: str
    context: int
    pretraining: Pretraining
    seed: int = 0

    def build(self, store: Store) -> GPT:
        """The network before its training."""
        shape = self.pretraining.network.model_dump()
        return llama.build(self.text.size, seed=self.seed, context=self.context, **shape)

    def fit(self, network: GPT, store: Store, *, progress: bool) -> Fitted:
        """Train the network on all of its corpora."""
        corpora, recipe = reading.library(self.text, self.fingerprint).corpora, self.pretraining.recipe
        read = [corpora[text.name_of(source)] for source in self.pretraining.sources]
        held_out = windows([whole(one.validation) for one in read], recipe.n_validation, self.context)
        streams = [whole(one.train) for one in read]
        history = train(network, streams, held_out, recipe, seed=self.seed, progress=progress)
        return Fitted(history._asdict(), adapters.learned(network))

    def restore(self, weights: dict[str, Tensor], store: Store) -> GPT:
        """The network with weights that were kept."""
        return adapters.load(self.build(store), weights)


class Member(Reader):
    """One fine-tuned model."""

    depends = (splitting, adapters, language, llama, smollm2, training)
    base: str | Base
    length: int
    lora: Lora | None
    recipe: Recipe

    @property
    def context(self) -> int:
        """Tokens of a window."""
        return self.length

    def needs(self) -> tuple[Base, ...]:
        """The base, if it has to be trained first."""
        return (self.base,) if isinstance(self.base, Base) else ()

    def load_base(self, store: Store) -> GPT:
        """What the model is tuned from, not to be changed; a process loads it once."""
        if isinstance(self.base, str):
            return llama.load(self.base, context=self.length)
        return _own_base(self.base, str(store.root))

    def build(self, store: Store) -> GPT:
        """The base with what is to learn."""
        base = self.load_base(store)
        if self.lora is None:
            return adapters.with_all_weights(base)
        seed = self.seed if self.lora.shared_init else self.own_seed
        return adapters.with_adapters(base, seed=seed, **self.lora.model_dump(exclude={"shared_init"}))

    def fit(self, network: GPT, store: Store, *, progress: bool) -> Fitted:
        """Tune the network; only what has learned is kept.

        The record says, beside the losses, which windows were read: ``read`` is a list of [stream, start].
        """
        read, recipe = self.streams(), self.recipe
        held_out = windows(self.held_out(), recipe.n_validation, self.context)
        history = train(network, read, held_out, recipe, seed=self.own_seed, progress=progress)
        starts = np.concatenate([*drawn(read, recipe, self.context, seed=self.own_seed)]).tolist()
        return Fitted(history._asdict() | {"read": starts}, adapters.learned(network))

    def restore(self, weights: dict[str, Tensor], store: Store) -> GPT:
        """The base with what has learned."""
        return adapters.load(self.build(store), weights)

    def size(self) -> Size:
        """What tuning takes, known without the text and without the base; see `Size`."""
        own = self.base
        shape = llama.SHAPES[own] if isinstance(own, str) else own.pretraining.network.model_dump()
        network = {"vocabulary": self.text.size, "context": self.context} | shape
        n_windows = self.recipe.steps * self.recipe.batch_size
        if self.lora is None:
            return Size(self.dataset, network, n_windows, 1, self.context)
        kept = adapters.n_learned(shape, self.lora.rank)
        return Size(self.dataset, network, n_windows, 1, self.context, backward=1.0, kept=kept)

    def tokens_read(self, store: Store) -> dict[str, NDArray[np.bool_]]:
        """Which tokens of each corpus the model was trained on, by the name of the corpus."""
        sources = self.part() if self.by == "corpus" else self.divided
        found = {source: np.zeros(len(one.tokens), bool) for source, one in zip(sources, self.streams(), strict=True)}
        for which, start in trained(self, store, progress=False).record["read"]:
            found[sources[which]][start : start + self.context + 1] = True
        return found


@lru_cache(maxsize=2)
def _own_base(base: Base, root: str) -> GPT:
    return load(base, Store(Path(root)), progress=False).requires_grad_(False)


class TunedPair(ReadPair):
    """One cell of an experiment: two fine-tuned models, and what is measured on them.

    A pair whose `pairing` is ``floor`` has a second model that was tuned on another corpus instead.
    """

    depends = (changes, metrics)
    first: Member
    second: Member
    pairing: Pairing = "overlap"
    n_loss: int
    n_predictions: int

    @property
    def of(self) -> Member:
        """The model whose corpora are measured on."""
        return self.second if self.pairing == "overlap" else self.first

    def columns(self, store: Store) -> Row:
        """With the overlap of what was really read, and how the models were tuned."""
        arm = self.first
        about: Row = {"dataset": arm.dataset, "probe": arm.dataset, "architecture": self.architecture}
        about |= {"pairing": self.pairing, "seed": arm.seed}
        about |= {"overlap": self.overlap if self.pairing == "overlap" else None}
        about |= {"realised_overlap": self.realised_overlap(store), "fingerprint": arm.fingerprint}
        return about | {"rank": arm.lora.rank if arm.lora else None, "lr": arm.recipe.lr, "steps": arm.recipe.steps}

    def realised_overlap(self, store: Store) -> float:
        """The share of the tokens that the first model was really trained on that the second was trained on, too."""
        first, second = (member.tokens_read(store) for member in (self.first, self.second))
        common = sum(int((first[source] & second[source]).sum()) for source in set(first) & set(second))
        return common / sum(int(read.sum()) for read in first.values())

    def rows(self, first: GPT, second: GPT, store: Store) -> Iterator[Row]:
        """How alike two fine-tuned models are, and how alike is what fine-tuning changed.

        Columns are ``probe, view, metric, value``. The view is ``full`` (hidden states, as published), ``change`` (of
        hidden states, from the base), ``predictions``, ``weights`` or ``training``. Further columns, where they apply:
        ``n_probe``; ``layer`` (0: the embedding), where it is not the last or the mean of all; ``null_mean, p_value``;
        ``step`` of losses during training.
        """
        members = self.first, self.second
        bases = [member.load_base(store).to(device()) for member in members]
        names = [one if isinstance(one, str) else key(one.config()) for m in members for one in (m.base,)]
        names += [key(member.config()) for member in members]
        how = {"seed": self.first.seed, "n_permutations": self.n_permutations, "n_predictions": self.n_predictions}
        for name, tokens in self.probes().items():
            about = {"probe": name, "n_probe": len(tokens)}
            yield from (about | row for row in changes.probe_rows(names, bases, (first, second), tokens, **how))
        yield from changes.weight_rows(bases, (first, second))
        if self.pairing == "overlap":
            yield from self._loss_rows(first, second)
        for which, member in zip(changes.WHICH, members, strict=True):
            yield from ({"view": "training"} | row for row in reading.curve_rows(member, which, store))

    def _loss_rows(self, first: GPT, second: GPT) -> Iterator[Row]:
        """Losses on text that only the first, only the second, both and none of the two were given."""
        for share, parts in self.shares().items():
            some = windows(self.second.streams(parts), self.n_loss, self.first.context)
            for which, model in zip(changes.WHICH, (first, second), strict=True):
                yield {"view": "training", "metric": f"loss_on_{share}_{which}", "value": evaluate(model, some)}


def prepare(cells: Iterable[Pair]) -> None:
    """Read and encode what cells need, and look whether a base that others have made is there.

    Raises
    ------
    DataError
        If a corpus or the base cannot be had, or a corpus is too small.
    """
    cells = list(cells)
    members = [member for cell in cells for member in cell.needs() if isinstance(member, Member)]
    for name, length in {(member.base, member.length) for member in members if isinstance(member.base, str)}:
        llama.load(name, context=length)
    reading.prepare(cells)


@experiment(DATASET, TASK, GRID, by=SUMMARY, prepare=prepare)
def pairs(settings: Settings, kind: Kind) -> list[TunedPair]:
    """Every cell of an experiment, arm by arm and seed by seed.

    Raises
    ------
    ValueError
        If corpora that two models divide are odd in number, or fewer than two.
    DataError
        If a corpus is a folder that cannot be read.
    """
    by: Literal["chunk", "corpus"] = "corpus" if kind == TASK else "chunk"
    about: dict[str, Any] = {"text": settings.text, "fingerprint": settings.text.fingerprint()}
    own = settings.base
    base: Any = own if isinstance(own, str) else Base(**about, context=settings.context, pretraining=own)
    common = about | {"base": base, "length": settings.context, "by": by}
    names = {"n_probe", "probe_corpora", "n_loss", "n_predictions", "n_permutations"}
    measured: dict[str, Any] = settings.model_dump(include=names)
    cells = []
    for part in reading.divisions(settings.divided or settings.corpora, by):
        for name in settings.architectures or settings.arms:
            arm = settings.arms[name]
            of_model = {k: v for k, v in dict(arm).items() if k not in ("overlaps", "two_bases")}
            tuning, told = common | {"divided": part} | of_model, measured | {"kind": kind, "architecture": name}
            for seed in settings.seeds:
                found = reading.couples(Member, arm.overlaps or settings.overlaps, seed=seed, **tuning)
                if arm.two_bases:
                    other = {"base": base.model_copy(update={"seed": 1})}
                    found = [(x, first, second.model_copy(update=other)) for x, first, second in found]
                cells += [TunedPair(overlap=x, first=first, second=second, **told) for x, first, second in found]
                if settings.floor is not None and kind != TASK:
                    alien = found[0][2].model_copy(update={"overlap": 0.0, "divided": (settings.floor,)})
                    cells.append(TunedPair(pairing="floor", overlap=0.0, first=found[0][1], second=alien, **told))
    return cells
