"""Fine-tuned language models: two copies of one base share chunks of one corpus, or whole corpora."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

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
    single,
)
from repsim_utils.experiments.reading import Reader, Source, Sources, Text
from repsim_utils.models import adapters, llama
from repsim_utils.models.language import GPT
from repsim_utils.plan import Size
from repsim_utils.store import Run, Store
from repsim_utils.training import language as training
from repsim_utils.training.language import Recipe, Stream, drawn, train, whole, windows

VERSION = 1  # raised when the same pair gives other measurements
Kind = Literal["dataset_overlap_finetuned", "task_overlap_finetuned", "lora_grid"]
DATASET: Kind = "dataset_overlap_finetuned"
TASK: Kind = "task_overlap_finetuned"
GRID: Kind = "lora_grid"
Pairing = Literal["overlap", "floor"]


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


class Base(Frozen):
    """A base of our own, as it is trained and kept; a field that came later is left out of keys at its default."""

    kind: Literal["models"] = "models"
    version: tuple[int, int] = (llama.VERSION, training.VERSION)
    text: Text
    fingerprint: str
    context: int
    pretraining: Pretraining
    seed: int = Field(0, exclude_if=lambda value: value == 0)


class Member(Reader):
    """One fine-tuned model."""

    kind: Literal["models"] = "models"
    version: tuple[int, int, int] = (splitting.VERSION, adapters.VERSION, training.VERSION)
    base: str | Base
    length: int
    lora: Lora | None
    recipe: Recipe

    @property
    def context(self) -> int:
        """Tokens of a window."""
        return self.length

    @property
    def members(self) -> tuple[Base, ...]:
        """The base, if it has to be trained first."""
        return (self.base,) if isinstance(self.base, Base) else ()


class Pair(Frozen):
    """One cell of an experiment: two fine-tuned models, and what is measured on them."""

    kind: Kind
    version: int = VERSION
    architecture: str
    pairing: Pairing = "overlap"
    overlap: float
    first: Member
    second: Member
    n_probe: int
    probe_corpora: int | None
    n_loss: int
    n_predictions: int
    n_permutations: int

    @property
    def members(self) -> tuple[Member, Member]:
        """Models that must have been trained before the pair is measured."""
        return self.first, self.second


def pairs(settings: Settings, kind: Kind) -> list[Pair]:
    """Every cell of an experiment, arm by arm and seed by seed.

    Raises
    ------
    ValueError
        If corpora that two models divide are odd in number, or fewer than two.
    DataError
        If a corpus is a folder that cannot be read.
    """
    by: Literal["chunk", "corpus"] = "corpus" if kind == TASK else "chunk"
    parts = reading.divisions(settings.divided or settings.corpora, by)
    about: dict[str, Any] = {"text": settings.text, "fingerprint": settings.text.fingerprint()}
    own = settings.base
    base: Any = own if isinstance(own, str) else Base(**about, context=settings.context, pretraining=own)
    common = about | {"base": base, "length": settings.context, "by": by}
    names = {"n_probe", "probe_corpora", "n_loss", "n_predictions", "n_permutations"}
    measured: dict[str, Any] = settings.model_dump(include=names)
    cells = []
    for part in parts:
        for name in settings.architectures or settings.arms:
            arm = settings.arms[name]
            of_model = {k: v for k, v in dict(arm).items() if k not in ("overlaps", "two_bases")}
            tuning = common | {"divided": part} | of_model
            for seed in settings.seeds:
                told: dict[str, Any] = measured | {"kind": kind, "architecture": name}
                found = reading.couples(Member, arm.overlaps or settings.overlaps, seed=seed, **tuning)
                if arm.two_bases:
                    other = {"base": base.model_copy(update={"seed": 1})}
                    found = [(x, first, second.model_copy(update=other)) for x, first, second in found]
                cells += [Pair(overlap=x, first=first, second=second, **told) for x, first, second in found]
                if settings.floor is not None and kind != TASK:
                    alien = found[0][2].model_copy(update={"overlap": 0.0, "divided": (settings.floor,)})
                    cells.append(Pair(pairing="floor", overlap=0.0, first=found[0][1], second=alien, **told))
    return cells


def prepare(cells: Iterable[Pair]) -> None:
    """Read and encode what cells need, and look whether a base that others have made is there.

    Raises
    ------
    DataError
        If a corpus or the base cannot be had, or a corpus is too small.
    """
    members = [member for cell in cells for member in cell.members]
    for name, length in {(member.base, member.length) for member in members if isinstance(member.base, str)}:
        llama.load(name, context=length)
    reading.prepare(members)


def trained(member: Member | Base, store: Store, *, progress: bool = True) -> Run:
    """The run of one model: from the store, or trained now and kept there; of a fine-tuned one only what has learned.

    The record says, beside the losses, which windows were read: ``read`` is a list of [stream, start].
    """
    config = member.model_dump(mode="json")
    run = store.load(member.kind, config)
    if run is None:
        model, seed = _untrained(member, store)
        recipe, read, held_out = _text_of(member)
        history = train(
            model, read, windows(held_out, recipe.n_validation, model.context), recipe, seed=seed, progress=progress
        )
        record: dict[str, Any] = history._asdict()
        if isinstance(member, Member):
            record["read"] = np.concatenate([*drawn(read, recipe, model.context, seed=seed)]).tolist()
        run = store.save(member.kind, config, record, adapters.learned(model))
    return run


def _text_of(member: Member | Base) -> tuple[Recipe, list[Stream], list[Stream]]:
    """Recipe, text to read and text to validate on."""
    if isinstance(member, Member):
        return member.recipe, reading.streams(member), reading.held_out(member)
    own = member.pretraining
    corpora = [reading.library(member).corpora[text.name_of(source)] for source in own.sources]
    return own.recipe, [whole(one.train) for one in corpora], [whole(one.validation) for one in corpora]


def _untrained(member: Member | Base, store: Store) -> tuple[GPT, int]:
    """A model as it is before training, and the seed of its training."""
    if isinstance(member, Base):
        shape = member.pretraining.network.model_dump()
        return llama.build(member.text.size, seed=member.seed, context=member.context, **shape), member.seed
    base = base_of(member, store)
    if member.lora is None:
        return adapters.with_all_weights(base), member.own_seed
    seed = member.seed if member.lora.shared_init else member.own_seed
    options = member.lora.model_dump(exclude={"shared_init"})
    return adapters.with_adapters(base, seed=seed, **options), member.own_seed


def base_of(member: Member, store: Store) -> GPT:
    """The base of a fine-tuned model, not to be changed; a process loads it once."""
    if isinstance(member.base, str):
        return llama.load(member.base, context=member.length)
    return _own_base(member.base, str(store.root))


@lru_cache(maxsize=2)
def _own_base(base: Base, root: str) -> GPT:
    store = Store(Path(root))
    run = trained(base, store, progress=False)
    return adapters.load(_untrained(base, store)[0], run.weights()).requires_grad_(False).eval()


def trained_model(member: Member, store: Store, *, progress: bool = True) -> GPT:
    """A model, fine-tuned or taken from the store, in evaluation mode."""
    run = trained(member, store, progress=progress)
    return adapters.load(_untrained(member, store)[0], run.weights()).eval()


def train_pair(pair: Pair, store: Store, *, progress: bool = True) -> tuple[GPT, GPT]:
    """Both models of a pair, fine-tuned or taken from the store, in evaluation mode."""
    first, second = (trained_model(member, store, progress=progress) for member in pair.members)
    return first, second


def tokens_read(member: Member, store: Store) -> dict[str, NDArray[np.bool_]]:
    """Which tokens of each corpus a model was trained on, by the name of the corpus."""
    sources = member.divided
    if member.by == "corpus":
        both = reading.split(member)
        sources = both.first if member.which == 1 else both.second
    streams = reading.streams(member)
    found = {source: np.zeros(len(stream.tokens), bool) for source, stream in zip(sources, streams, strict=True)}
    for which, start in trained(member, store, progress=False).record["read"]:
        found[sources[which]][start : start + member.context + 1] = True
    return found


def realised_overlap(pair: Pair, store: Store) -> float:
    """The share of the tokens that the first model was really trained on that the second was trained on, too."""
    first, second = (tokens_read(member, store) for member in pair.members)
    common = sum(int((first[source] & second[source]).sum()) for source in set(first) & set(second))
    return common / sum(int(read.sum()) for read in first.values())


def size(member: Member) -> Size:
    """What tuning a model takes, known without the text and without the base; see `Size`."""
    own = member.base
    shape = llama.SHAPES[own] if isinstance(own, str) else own.pretraining.network.model_dump()
    network = {"vocabulary": member.text.size, "context": member.context} | shape
    n_windows = member.recipe.steps * member.recipe.batch_size
    if member.lora is None:
        return Size(member.dataset, network, n_windows, 1, member.context)
    kept = adapters.n_learned(shape, member.lora.rank)
    return Size(member.dataset, network, n_windows, 1, member.context, backward=1.0, kept=kept)
