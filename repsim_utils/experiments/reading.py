"""What language models of a pair read, and are measured on: chunks of one corpus, or whole corpora."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field
from torch import Tensor

from repsim_utils.datasets import corpora, text
from repsim_utils.datasets.cache import DataError
from repsim_utils.datasets.text import Library
from repsim_utils.experiments.common import LEAST_PROBE, Frozen, one_spelling, single
from repsim_utils.overlap import Split, split_by_chunk, split_by_corpus
from repsim_utils.training.language import Stream, whole, windows

log = logging.getLogger(__name__)
GROUPS = ("common_corpora", "corpora_seen_by_one", "corpora_seen_by_none")
ALL = "all_corpora"

Source = Annotated[
    str, Field(min_length=1), AfterValidator(lambda source: one_spelling(source, {*corpora.INSTALLED, *corpora.HUB}))
]
Sources = Annotated[tuple[Source, ...], BeforeValidator(single), Field(min_length=1)]


class Text(Frozen):
    """Corpora that are read together, and how they are encoded; see `repsim_utils.datasets.text.library`."""

    sources: tuple[str, ...]
    tokenizer: Annotated[str, AfterValidator(text.check_tokenizer)]
    vocabulary: int
    max_bytes: int | None

    def library(self) -> Library:
        """The corpora, encoded."""
        return text.library(**self.model_dump())

    def fingerprint(self) -> str:
        """What the tokens depend on, beside the configuration."""
        about = self.model_dump(exclude={"sources"})
        if self.tokenizer != "bpe":
            about.pop("vocabulary")
        return text.fingerprint(self.sources, **about)

    @property
    def size(self) -> int:
        """Number of different tokens."""
        return self.vocabulary if self.tokenizer == "bpe" else text.READY[self.tokenizer].size


class Reader(Frozen):
    """What decides which text one model of a pair reads."""

    by: Literal["chunk", "corpus"]
    which: Literal[1, 2]
    overlap: float
    seed: int
    text: Text
    fingerprint: str
    divided: tuple[str, ...]
    n_tokens: int | None
    n_chunks: int

    @property
    def context(self) -> int:
        """Tokens of a window."""
        raise NotImplementedError

    @property
    def own_seed(self) -> int:
        """The two models of a pair start from other weights and read their windows in another order."""
        return 2 * self.seed + self.which - 1

    @property
    def dataset(self) -> str:
        """What tables call what the pair divides."""
        return text.name_of(self.divided[0]) if self.by == "chunk" else f"{len(self.divided)}_corpora"


Some = TypeVar("Some", bound=Reader)


def divisions(sources: Sequence[str], by: Literal["chunk", "corpus"]) -> list[tuple[str, ...]]:
    """What pairs divide, in turn: each corpus by chunks, or all corpora among the two models.

    Raises
    ------
    ValueError
        If corpora that two models divide are odd in number, or fewer than two.
    """
    if by == "chunk":
        return [(source,) for source in sources]
    split_by_corpus(sources, 0.0, seed=0)
    return [tuple(sources)]


def couples(kind: type[Some], overlaps: Iterable[float], **common: Any) -> list[tuple[float, Some, Some]]:
    """Two models at each overlap; the first is the same at all of them, and so trained once."""
    first = kind(which=1, overlap=0.0, **common)
    return [(overlap, first, kind(which=2, overlap=overlap, **common)) for overlap in overlaps]


def prepare(readers: Iterable[Reader]) -> None:
    """Read and encode what models read, so that what is missing or too small is missed before training.

    Raises
    ------
    DataError
        If a corpus cannot be had, or is too small.
    """
    for reader in {reader.model_copy(update={"seed": 0}) for reader in readers}:
        streams(reader, None if reader.by == "chunk" else reader.divided)
        wanted = LEAST_PROBE * len(reader.divided)
        if len(windows(held_out(reader, reader.divided), wanted, reader.context)) < LEAST_PROBE:
            raise DataError(
                f"{reader.dataset} is too small: its held-out part has fewer than {LEAST_PROBE} windows of "
                f"{reader.context} tokens; give more text, or a shorter context"
            )


def library(run: Any) -> Library:
    """The corpora of what has a `text` and its `fingerprint`, if they are still those; a process reads them once."""
    return _library(run.text, run.fingerprint)


@lru_cache(maxsize=4)
def _library(of: Text, print_of: str) -> Library:
    found = of.library()
    if found.fingerprint != print_of:
        raise DataError(f"a file of {', '.join(of.sources)} has changed since this run began; run it again")
    return found


def split(reader: Reader) -> Split:
    """What the two models are trained on: chunks of the corpus, or names of corpora; see `repsim_utils.overlap`."""
    if reader.by == "corpus":
        return split_by_corpus(reader.divided, reader.overlap, seed=reader.seed)
    length = reader.context + 1
    tokens = _train(reader, reader.divided[0])
    try:
        return split_by_chunk(
            len(tokens), reader.overlap, seed=reader.seed, n_chunks=reader.n_chunks, min_length=length
        )
    except ValueError as error:
        raise DataError(f"{reader.dataset} is too small to be divided: {error}") from None


def _train(reader: Reader, source: str) -> Any:
    return library(reader).corpora[text.name_of(source)].train[: reader.n_tokens]


def streams(reader: Reader, part: Any = None) -> list[Stream]:
    """What a model reads: parts of one corpus, or whole corpora; or another `part` of a split, such as the other's."""
    if part is None:
        both = split(reader)
        part = both.first if reader.which == 1 else both.second
    if reader.by == "chunk":
        return [Stream(_train(reader, reader.divided[0]), part)]
    found = [whole(_train(reader, source)) for source in part]
    for source, stream in zip(part, found, strict=True):
        if len(stream.tokens) <= reader.context:
            raise DataError(f"{source} is too small: {len(stream.tokens)} tokens are fewer than a window has")
    return found


def held_out(reader: Reader, sources: Iterable[str] | None = None) -> list[Stream]:
    """Held-out text of some corpora; of those that the model reads, or reads part of, if none are named."""
    if sources is None:
        parts = split(reader)
        sources = reader.divided if reader.by == "chunk" else parts.first if reader.which == 1 else parts.second
    return [whole(library(reader).corpora[text.name_of(source)].validation) for source in sources]


def shares(second: Reader) -> dict[str, Any]:
    """Chunks or corpora that only the first, only the second, both and none of two models read; empty ones left out.

    Parameters
    ----------
    second : Reader
        The second of the pair.

    Returns
    -------
    dict
        ``first_only, second_only, both, neither``: each int64 (n, 2) or a list of names, as `streams` takes them.
    """
    parts = split(second)
    every = split(second.model_copy(update={"overlap": 0.0}))  # the two halves of all that there is
    first, last = ({_hashable(part) for part in some} for some in (parts.first, parts.second))
    found: dict[str, list[Any]] = {name: [] for name in ("first_only", "second_only", "both", "neither")}
    for part in (*every.first, *every.second):
        mine, theirs = _hashable(part) in first, _hashable(part) in last
        name = "both" if mine and theirs else "first_only" if mine else "second_only" if theirs else "neither"
        found[name].append(part)
    as_parts = (lambda some: np.array(sorted(map(_hashable, some)))) if second.by == "chunk" else sorted
    return {name: as_parts(some) for name, some in found.items() if some}


def corpus_groups(reader: Reader, n: int | None = None) -> dict[str, list[str]]:
    """Corpora that both, exactly one and none of two models have read, given the second model of the pair.

    With `n`, at most as many of each group, and of each model's own: the same corpora at every overlap at which there
    are that many.
    """
    parts = split(reader)
    steps = range(len(parts.first) + 1)
    at = [split_by_corpus(reader.divided, step / len(parts.first), seed=reader.seed) for step in steps]
    # The number of common corpora at which a corpus is no longer read by exactly one model.
    leaves = {
        name: next((k for k in steps if (name in at[k].first) == (name in at[k].second)), len(steps))
        for name in reader.divided
    }

    def some(names: Iterable[str], count: int | None, last: bool = False) -> list[str]:
        return sorted(sorted(names), key=lambda name: leaves[name], reverse=last)[:count]

    first, second = set(parts.first), set(parts.second)
    lone = some(first - second, n, True) + some(second - first, n, True)
    none = set(reader.divided) - first - second
    return dict(zip(GROUPS, (some(first & second, n), lone, some(none, n)), strict=True))


def probes(second: Reader, n_probe: int, probe_corpora: int | None = None) -> dict[str, Tensor]:
    """Held-out windows on which the pair is measured, int64 (n, context), by the name of the probe.

    A probe without corpora (those that both have read, where they share none) is left out, and so is, with a warning,
    one of fewer than `LEAST_PROBE` windows.
    """
    if second.by == "chunk":
        others = [source for source in second.text.sources if source != second.divided[0]]
        wanted: dict[str, Iterable[str]] = {text.name_of(source): [source] for source in (*second.divided, *others)}
    else:
        groups = corpus_groups(second, probe_corpora)
        if probe_corpora is not None:  # and as published: all corpora of a group
            groups |= {f"{name}_all": sources for name, sources in corpus_groups(second).items()}
        wanted = {ALL: second.divided} | {name: sources for name, sources in groups.items() if sources}
    found = {
        name: windows(held_out(second, sources), n_probe, second.context)[:, :-1] for name, sources in wanted.items()
    }
    for name in [name for name, tokens in found.items() if len(tokens) < LEAST_PROBE]:
        n = len(found.pop(name))
        log.warning("probe %s is left out: it has %d windows and needs %d", name, n, LEAST_PROBE)
    return found


def _hashable(part: Any) -> Any:
    return part if isinstance(part, str) else tuple(part.tolist())
