"""Overlap in language: two small GPTs share chunks of one corpus (dataset overlap) or whole corpora (task overlap)."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from torch import Tensor

from repsim_utils import overlap as splitting
from repsim_utils.datasets import corpora, text
from repsim_utils.datasets.cache import DataError
from repsim_utils.datasets.text import Library
from repsim_utils.experiments.common import (
    LEAST_PROBE,
    Frozen,
    Overlaps,
    Seeds,
    check_choice,
    one_name_each,
    one_spelling,
    similarities,
    single,
)
from repsim_utils.features import represent_text
from repsim_utils.metrics import PAPER, similarity
from repsim_utils.models import language as models
from repsim_utils.models.language import GPT, build
from repsim_utils.overlap import Split, split_by_chunk, split_by_corpus
from repsim_utils.plan import Size
from repsim_utils.store import Run, Store
from repsim_utils.training import language as training
from repsim_utils.training.language import Recipe, Stream, evaluate, train, whole, windows

log = logging.getLogger(__name__)
VERSION = 1  # raised when the same pair gives other measurements
Kind = Literal["dataset_overlap_language", "task_overlap_language"]
DATASET: Kind = "dataset_overlap_language"
TASK: Kind = "task_overlap_language"
SUMMARY = ("dataset", "architecture", "probe", "metric", "overlap")
GROUPS = ("common_corpora", "corpora_seen_by_one", "corpora_seen_by_none")
ALL = "all_corpora"
N_LOSS = 100  # windows on which a loss is taken


Source = Annotated[
    str, Field(min_length=1), AfterValidator(lambda source: one_spelling(source, {*corpora.INSTALLED, *corpora.HUB}))
]
Sources = Annotated[tuple[Source, ...], BeforeValidator(single), Field(min_length=1)]


class Text(Frozen):
    """Corpora that are read together, and how they are encoded; see `repsim_utils.datasets.text.library`."""

    sources: tuple[str, ...]
    tokenizer: Literal["bpe", "gpt2"]
    vocabulary: int
    max_bytes: int | None

    def library(self) -> Library:
        """The corpora, encoded."""
        return text.library(**self.model_dump())

    def fingerprint(self) -> str:
        """What the tokens depend on, beside the configuration."""
        about = self.model_dump(exclude={"sources"})
        if self.tokenizer == "gpt2":
            about.pop("vocabulary")
        return text.fingerprint(self.sources, **about)

    @property
    def size(self) -> int:
        """Number of different tokens."""
        return self.vocabulary if self.tokenizer == "bpe" else text.GPT2_SIZE


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


class Settings(Frozen):
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


class Member(Frozen):
    """One model: what it is trained on, and how."""

    kind: Literal["models"] = "models"
    version: tuple[int, int, int] = (splitting.VERSION, models.VERSION, training.VERSION)
    by: Literal["chunk", "corpus"]
    which: Literal[1, 2]
    overlap: float
    seed: int
    text: Text
    fingerprint: str
    divided: tuple[str, ...]
    n_tokens: int | None
    n_chunks: int
    network: Network
    recipe: Recipe

    @property
    def dataset(self) -> str:
        """What tables call what the pair divides."""
        return text.name_of(self.divided[0]) if self.by == "chunk" else f"{len(self.divided)}_corpora"


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
    divided = settings.divided or settings.corpora
    if kind == TASK:
        split_by_corpus(divided, 0.0, seed=0)
    common: dict[str, Any] = settings.model_dump(include={"n_tokens", "n_chunks"})
    common |= {"by": "chunk" if kind == DATASET else "corpus", "text": settings.text}
    common |= {"fingerprint": settings.text.fingerprint()}
    measured = settings.model_dump(include={"n_probe", "probe_corpora", "n_permutations"})
    cells = []
    for part in [(source,) for source in divided] if kind == DATASET else [divided]:
        for name in settings.architectures or settings.models:
            common |= {"divided": part} | dict(settings.models[name])
            for seed in settings.seeds:
                first = Member(which=1, overlap=0.0, seed=seed, **common)  # the same at every overlap: trained once
                for overlap in settings.overlaps:
                    second = Member(which=2, overlap=overlap, seed=seed, **common)
                    cells.append(
                        Pair(kind=kind, architecture=name, overlap=overlap, first=first, second=second, **measured)
                    )
    return cells


def prepare(cells: Iterable[Pair]) -> None:
    """Read and encode what cells need, so that what is missing or too small is missed before training.

    Raises
    ------
    DataError
        If a corpus cannot be had, or is too small.
    """
    for member in {member.model_copy(update={"seed": 0}) for cell in cells for member in cell.members}:
        streams(member, None if member.by == "chunk" else member.divided)
        wanted = LEAST_PROBE * len(member.divided)
        if len(windows(_held_out(member, member.divided), wanted, member.network.context)) < LEAST_PROBE:
            raise DataError(
                f"{member.dataset} is too small: its held-out part has fewer than {LEAST_PROBE} windows of "
                f"{member.network.context} tokens; give more text, or a shorter context"
            )


def library(member: Member) -> Library:
    """The corpora of a run, if they are still those that it began with; a process reads them once."""
    return _library(member.text, member.fingerprint)


@lru_cache(maxsize=4)
def _library(of: Text, print_of: str) -> Library:
    found = of.library()
    if found.fingerprint != print_of:
        raise DataError(f"a file of {', '.join(of.sources)} has changed since this run began; run it again")
    return found


def split(member: Member) -> Split:
    """What the two models are trained on: chunks of the corpus, or names of corpora; see `repsim_utils.overlap`."""
    if member.by == "corpus":
        return split_by_corpus(member.divided, member.overlap, seed=member.seed)
    length = member.network.context + 1
    tokens = _train(member, member.divided[0])
    try:
        return split_by_chunk(
            len(tokens), member.overlap, seed=member.seed, n_chunks=member.n_chunks, min_length=length
        )
    except ValueError as error:
        raise DataError(f"{member.dataset} is too small to be divided: {error}") from None


def _train(member: Member, source: str) -> Any:
    return library(member).corpora[text.name_of(source)].train[: member.n_tokens]


def streams(member: Member, part: Any = None) -> list[Stream]:
    """What a model reads: parts of one corpus, or whole corpora; or another `part` of a split, such as the other's."""
    if part is None:
        both = split(member)
        part = both.first if member.which == 1 else both.second
    if member.by == "chunk":
        return [Stream(_train(member, member.divided[0]), part)]
    found = [whole(_train(member, source)) for source in part]
    for source, stream in zip(part, found, strict=True):
        if len(stream.tokens) <= member.network.context:
            raise DataError(f"{source} is too small: {len(stream.tokens)} tokens are fewer than a window has")
    return found


def _held_out(member: Member, sources: Iterable[str]) -> list[Stream]:
    return [whole(library(member).corpora[text.name_of(source)].validation) for source in sources]


def trained(member: Member, store: Store, *, progress: bool = True) -> Run:
    """The run of one model: from the store, or trained now and kept there, with its curve of losses."""
    config = member.model_dump(mode="json")
    run = store.load(member.kind, config)
    if run is None:
        model, read = _build(member), streams(member)
        held_out = windows(_held_out(member, _own(member)), member.recipe.n_validation, member.network.context)
        history = train(model, read, held_out, member.recipe, seed=_own_seed(member), progress=progress)
        run = store.save(member.kind, config, history._asdict(), model.state_dict())
    return run


def _own(member: Member) -> Iterable[str]:
    """Corpora that a model reads, or reads part of."""
    parts = split(member)
    return member.divided if member.by == "chunk" else parts.first if member.which == 1 else parts.second


def _own_seed(member: Member) -> int:
    """The two models of a pair start from other weights and read their windows in another order."""
    return 2 * member.seed + member.which - 1


def _build(member: Member) -> GPT:
    return build(member.text.size, seed=_own_seed(member), **member.network.model_dump())


def size(member: Member) -> Size:
    """What training a model takes, known without the text."""
    network = {"vocabulary": member.text.size} | member.network.model_dump()
    n_windows = member.recipe.steps * member.recipe.batch_size
    return Size(member.dataset, network, n_windows, 1, member.network.context)


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


def corpus_groups(member: Member, n: int | None = None) -> dict[str, list[str]]:
    """Corpora that both, exactly one and none of two models have read, given the second model of the pair.

    With `n`, at most as many of each group, and of each model's own: the same corpora at every overlap at which there
    are that many.
    """
    parts = split(member)
    steps = range(len(parts.first) + 1)
    at = [split_by_corpus(member.divided, step / len(parts.first), seed=member.seed) for step in steps]
    # The number of common corpora at which a corpus is no longer read by exactly one model.
    leaves = {
        name: next((k for k in steps if (name in at[k].first) == (name in at[k].second)), len(steps))
        for name in member.divided
    }

    def some(names: Iterable[str], count: int | None, last: bool = False) -> list[str]:
        return sorted(sorted(names), key=lambda name: leaves[name], reverse=last)[:count]

    first, second = set(parts.first), set(parts.second)
    lone = some(first - second, n, True) + some(second - first, n, True)
    none = set(member.divided) - first - second
    return dict(zip(GROUPS, (some(first & second, n), lone, some(none, n)), strict=True))


def probes(pair: Pair) -> dict[str, Tensor]:
    """Held-out windows on which the pair is measured, int64 (n, context), by the name of the probe.

    A probe without corpora (those that both have read, where they share none) is left out, and so is, with a warning,
    one of fewer than `LEAST_PROBE` windows.
    """
    member = pair.second
    if member.by == "chunk":
        others = [source for source in member.text.sources if source != member.divided[0]]
        wanted: dict[str, Iterable[str]] = {text.name_of(source): [source] for source in (*member.divided, *others)}
    else:
        groups = corpus_groups(member, pair.probe_corpora)
        if pair.probe_corpora is not None:  # and as published: all corpora of a group
            groups |= {f"{name}_all": sources for name, sources in corpus_groups(member).items()}
        wanted = {ALL: member.divided} | {name: sources for name, sources in groups.items() if sources}
    found = {
        name: windows(_held_out(member, sources), pair.n_probe, member.network.context)[:, :-1]
        for name, sources in wanted.items()
    }
    for name in [name for name, tokens in found.items() if len(tokens) < LEAST_PROBE]:
        n = len(found.pop(name))
        log.warning("probe %s is left out: it has %d windows and needs %d", name, n, LEAST_PROBE)
    return found


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
    about |= {"seed": pair.second.seed, "realised_overlap": split(pair.second).overlap}
    about |= {"fingerprint": pair.second.fingerprint}
    return [about | row for row in rows]


def losses(pair: Pair, member: Member, model: GPT) -> dict[str, float]:
    """A model's loss, in nats a token: on its own text, on the text that only the other has read, on held-out text.

    What only the other has read is missing where that is nothing.
    """
    both = split(pair.second)
    own, other = (both.first, both.second) if member.which == 1 else (both.second, both.first)
    mine = {_hashable(part) for part in own}
    theirs = [part for part in other if _hashable(part) not in mine]
    read = {"loss_own": streams(pair.second, own)}
    if theirs:
        read["loss_other"] = streams(pair.second, np.array(theirs) if member.by == "chunk" else theirs)
    read["loss_held_out"] = _held_out(member, _own(member))
    context = member.network.context
    return {name: evaluate(model, windows(some, N_LOSS, context)) for name, some in read.items()}


def _hashable(part: Any) -> Any:
    return part if isinstance(part, str) else tuple(part.tolist())
