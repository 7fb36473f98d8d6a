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
from repsim_utils.experiments.engine import Model, Pair, Row, trained
from repsim_utils.overlap import Split, split_by_chunk, split_by_corpus
from repsim_utils.store import Store
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


@lru_cache(maxsize=4)
def library(of: Text, known: str) -> Library:
    """The corpora of a text, if they are still those of the fingerprint; a process reads them once."""
    found = of.library()
    if found.fingerprint != known:
        raise DataError(f"a file of {', '.join(of.sources)} has changed since this run began; run it again")
    return found


class Reader(Model):
    """What decides which text one model of a pair reads: chunks of one corpus, or whole corpora."""

    by: Literal["chunk", "corpus"]
    which: Literal[1, 2]
    overlap: float
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

    def split(self) -> Split:
        """What the two models are trained on: chunks of the corpus, or names of corpora; see `repsim_utils.overlap`."""
        if self.by == "corpus":
            return split_by_corpus(self.divided, self.overlap, seed=self.seed)
        options = {"seed": self.seed, "n_chunks": self.n_chunks, "min_length": self.context + 1}
        try:
            return split_by_chunk(len(self._train(self.divided[0])), self.overlap, **options)
        except ValueError as error:
            raise DataError(f"{self.dataset} is too small to be divided: {error}") from None

    def part(self) -> Any:
        """Its own part of the split."""
        both = self.split()
        return both.first if self.which == 1 else both.second

    def _train(self, source: str) -> Any:
        return library(self.text, self.fingerprint).corpora[text.name_of(source)].train[: self.n_tokens]

    def streams(self, part: Any = None) -> list[Stream]:
        """What the model reads: parts of one corpus, or whole corpora; or another `part` of a split."""
        part = self.part() if part is None else part
        if self.by == "chunk":
            return [Stream(self._train(self.divided[0]), part)]
        found = [whole(self._train(source)) for source in part]
        for source, stream in zip(part, found, strict=True):
            if len(stream.tokens) <= self.context:
                raise DataError(f"{source} is too small: {len(stream.tokens)} tokens are fewer than a window has")
        return found

    def held_out(self, sources: Iterable[str] | None = None) -> list[Stream]:
        """Held-out text of some corpora; of those that the model reads, or reads part of, if none are named."""
        if sources is None:
            sources = self.divided if self.by == "chunk" else self.part()
        corpora = library(self.text, self.fingerprint).corpora
        return [whole(corpora[text.name_of(source)].validation) for source in sources]


class ReadPair(Pair):
    """A pair that is measured on held-out windows, at most `n_probe` a probe.

    Of the groups of corpora that both, one or none has read, a probe takes `probe_corpora` (of those read by one, as
    many of each model), the same ones at every overlap (None: all that there are).
    """

    first: Reader
    second: Reader
    n_probe: int
    probe_corpora: int | None
    n_permutations: int

    def shares(self) -> dict[str, Any]:
        """Chunks or corpora that only the first, only the second, both and neither reads; empty ones left out.

        Returns
        -------
        dict
            ``first_only, second_only, both, neither``: each int64 (n, 2) or a list of names, as `Reader.streams` takes
            them.
        """
        parts = self.second.split()
        every = self.second.model_copy(update={"overlap": 0.0}).split()  # the two halves of all that there is
        first, last = ({_hashable(part) for part in some} for some in (parts.first, parts.second))
        found: dict[str, list[Any]] = {name: [] for name in ("first_only", "second_only", "both", "neither")}
        for part in (*every.first, *every.second):
            mine, theirs = _hashable(part) in first, _hashable(part) in last
            name = "both" if mine and theirs else "first_only" if mine else "second_only" if theirs else "neither"
            found[name].append(part)
        by_chunk = self.second.by == "chunk"
        as_parts = (lambda some: np.array(sorted(map(_hashable, some)))) if by_chunk else sorted
        return {name: as_parts(some) for name, some in found.items() if some}

    def groups(self, n: int | None = None) -> dict[str, list[str]]:
        """Corpora that both, exactly one and none of the two models have read.

        With `n`, at most as many of each group, and of each model's own: the same corpora at every overlap at which
        there are that many.
        """
        reader, parts = self.second, self.second.split()
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

    @property
    def of(self) -> Reader:
        """The model whose corpora are measured on."""
        return self.second

    def probes(self) -> dict[str, Tensor]:
        """Held-out windows on which the pair is measured, int64 (n, context), by the name of the probe.

        A probe without corpora (those that both have read, where they share none) is left out, and so is, with a
        warning, one of fewer than `LEAST_PROBE` windows.
        """
        of = self.of
        if of.by == "chunk":
            others = [source for source in of.text.sources if source != of.divided[0]]
            wanted: dict[str, Iterable[str]] = {text.name_of(source): [source] for source in (*of.divided, *others)}
        else:
            groups = self.groups(self.probe_corpora)
            if self.probe_corpora is not None:  # and as published: all corpora of a group
                groups |= {f"{name}_all": sources for name, sources in self.groups().items()}
            wanted = {ALL: of.divided} | {name: sources for name, sources in groups.items() if sources}
        found = {
            name: windows(of.held_out(sources), self.n_probe, of.context)[:, :-1] for name, sources in wanted.items()
        }
        for name in [name for name, tokens in found.items() if len(tokens) < LEAST_PROBE]:
            n = len(found.pop(name))
            log.warning("probe %s is left out: it has %d windows and needs %d", name, n, LEAST_PROBE)
        return found


def curve_rows(member: Model, which: str, store: Store) -> list[Row]:
    """Losses during a model's training, on what it reads and on held-out text."""
    return [
        {"metric": f"{name}_curve_{which}", "value": point[name], "step": point["step"]}
        for point in trained(member, store).record["curve"]
        for name in ("train", "validation")
    ]


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


def read_all(readers: Iterable[Reader]) -> None:
    """Read and encode what models read, so that what is missing or too small is missed before training.

    Raises
    ------
    DataError
        If a corpus cannot be had, or is too small.
    """
    for reader in {reader.model_copy(update={"seed": 0}) for reader in readers}:
        reader.streams(None if reader.by == "chunk" else reader.divided)
        wanted = LEAST_PROBE * len(reader.divided)
        if len(windows(reader.held_out(reader.divided), wanted, reader.context)) < LEAST_PROBE:
            raise DataError(
                f"{reader.dataset} is too small: its held-out part has fewer than {LEAST_PROBE} windows of "
                f"{reader.context} tokens; give more text, or a shorter context"
            )


def prepare(cells: Iterable[Pair]) -> None:
    """Read and encode what cells need; see `read_all`."""
    read_all(member for cell in cells for member in cell.needs() if isinstance(member, Reader))


def _hashable(part: Any) -> Any:
    return part if isinstance(part, str) else tuple(part.tolist())
