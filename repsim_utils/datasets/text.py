"""Corpora as token streams: read once, cleared of what is there twice, divided by document, encoded, kept on disk."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

from repsim_utils import files
from repsim_utils.datasets import cache, corpora
from repsim_utils.datasets.cache import DataError
from repsim_utils.datasets.corpora import Document

VERSION = 1  # raised when the same documents give other tokens
END = "<|endoftext|>"  # before every document
TRAIN_TO_HELD_OUT = 3  # a document is for validation while that part has less than a third of the bytes of the other
LEAST_LETTERS = 20  # of a line or paragraph that may count as known; shorter ones are everyone's
SPLITS = ("train", "validation")
Tokens = NDArray[np.uint16] | NDArray[np.uint32]  # the latter where tokens are more than 65,536


class Ready(NamedTuple):
    """A tokenizer made by others: where it lies on the hub, its size, and the mark between documents."""

    path: str
    size: int
    mark: str
    mark_id: int


READY = {
    "gpt2": Ready("gpt2", 50_257, END, 50_256),
    "smollm2": Ready("HuggingFaceTB/SmolLM2-135M-Instruct", 49_152, END, 0),
    "llama-3.2": Ready("meta-llama/Llama-3.2-1B-Instruct", 128_256, "<|end_of_text|>", 128_001),
}


class Corpus(NamedTuple):
    """One corpus, encoded: both parts are read-only memory maps; `about` is its entry in the manifest."""

    train: Tokens
    validation: Tokens
    about: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Library:
    """Corpora by name, and the tokenizer that encoded them.

    Attributes
    ----------
    corpora : dict of str to Corpus
    tokenizer : Tokenizer
    fingerprint : str
        The same for the same documents, tokenizer and rules.
    """

    corpora: dict[str, Corpus]
    tokenizer: Tokenizer
    fingerprint: str


def name_of(source: str) -> str:
    """What tables call a corpus: its name, or that of its folder."""
    return source if source in corpora.INSTALLED or source in corpora.HUB else Path(source).resolve().name


def library(
    sources: Sequence[str],
    *,
    tokenizer: str = "bpe",
    vocabulary: int = 2048,
    max_bytes: int | None = None,
    root: str | Path | None = None,
) -> Library:
    """Read, clear, divide and encode corpora; the second time, take them from disk.

    Documents are read in a fixed order. A paragraph is left out if its letters were read before, in any of the corpora,
    or if more than half of its longer lines were. What is left of a document is for validation if less than a quarter
    of the bytes are so far: no file is in both parts, and no longer paragraph of one part is in the other.

    Parameters
    ----------
    sources : sequence of str
        See `repsim_utils.datasets.corpora.documents`. The first keep what several have.
    tokenizer : str
        ``bpe``, a byte-level BPE trained on the training documents of all sources; or one of `READY`, fetched from the
        hub unless its ``tokenizer.json`` lies in ``$REPSIM_DATA/hub/<tokenizer>/``.
    vocabulary : int
        Size of the BPE, from 257 (bytes and the mark before documents) to 65,536.
    max_bytes : int, optional
        A corpus is read until so many bytes are kept.
    root : path, optional
        Where tokens are kept: by default `repsim_utils.datasets.cache.default_root`.

    Returns
    -------
    Library

    Raises
    ------
    ValueError
        If sources repeat, or tokenizer or vocabulary are none.
    DataError
        If a source cannot be had, is not text, or has no text left for one of the two parts.
    """
    if not sources or len({name_of(source) for source in sources}) < len(sources):
        raise ValueError(f"sources must be corpora of different names, got {', '.join(sources) or 'none'}")
    if not 257 <= vocabulary <= 2**16:
        raise ValueError(f"vocabulary must be from 257 to {2**16:,} tokens, got {vocabulary}")
    check_tokenizer(tokenizer)
    about: dict[str, Any] = {"tokenizer": tokenizer, "max_bytes": max_bytes}
    about |= {"vocabulary": vocabulary} if tokenizer == "bpe" else {}
    digest = fingerprint(sources, **about)
    folder = Path(root) if root is not None else cache.default_root()
    folder = folder / f"text-{digest}"

    def make(made: Path) -> dict[str, Any]:
        manifest = _make(made, sources, about)
        if fingerprint(sources, **about) != digest:
            raise DataError(f"a file of {', '.join(sources)} changed while it was read; run it again")
        return manifest | {"version": [VERSION, corpora.VERSION]}

    return cache.kept(folder, lambda: _read(folder, digest), make)


def check_tokenizer(name: str) -> str:
    """The name, if there is such a tokenizer; else a ValueError that says which there are."""
    if name != "bpe" and name not in READY:
        raise ValueError(f"tokenizer must be one of bpe, {', '.join(READY)}; got {name!r}")
    return name


def fingerprint(sources: Sequence[str], **about: Any) -> str:
    """16 hexadecimal digits that change with what is read of the sources, and how."""
    about = {name: value for name, value in about.items() if value is not None}
    contents = [[name_of(source), corpora.fingerprint(source)] for source in sources]
    whole = [VERSION, corpora.VERSION, contents, about]
    return hashlib.sha256(files.canonical_json(whole)).hexdigest()[:16]


# Reading


class Cleaner:
    """Leaves out what was read before: paragraphs by their letters, and those most of whose lines are known."""

    def __init__(self) -> None:
        self._known: set[int] = set()

    def __call__(self, text: str) -> str:
        """The text without known paragraphs; what is left is known from now on."""
        kept = []
        for paragraph in re.split(r"\n\s*\n", text):
            marks = self._marks(paragraph)
            known = sum(mark in self._known for mark in marks[1:])
            if not (marks and marks[0] in self._known) and (not known or 2 * known <= len(marks) - 1):
                kept.append(paragraph.strip("\n"))
            self._known.update(marks)
        return "\n\n".join(part for part in kept if part.strip())

    @staticmethod
    def _marks(paragraph: str) -> list[int]:
        """Of the letters of a paragraph, if there are enough, and of each line that has enough."""
        letters = [re.sub(r"[\W\d_]+", "", text.lower()) for text in (paragraph, *paragraph.splitlines())]
        enough = (text for text in letters if len(text) >= LEAST_LETTERS)
        return [int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") for text in enough]


def cleared(source: str, cleaner: Cleaner, max_bytes: int | None = None) -> Iterator[tuple[str, Document]]:
    """Part ("train" or "validation") and what is left of each document, until enough bytes are kept."""
    n_bytes = dict.fromkeys(SPLITS, 0)
    for name, text in corpora.documents(source):
        left = cleaner(text)
        if not left:
            continue
        split = SPLITS[TRAIN_TO_HELD_OUT * n_bytes["validation"] < n_bytes["train"]]
        n_bytes[split] += len(left.encode())
        yield split, Document(name, left)
        if max_bytes is not None and sum(n_bytes.values()) >= max_bytes:
            return


def _make(folder: Path, sources: Sequence[str], about: dict[str, Any]) -> dict[str, Any]:
    """Write tokens and tokenizer into a folder; what the manifest says of them."""
    cleaner, texts, entries = Cleaner(), {}, {}
    tokenizer = None if about["tokenizer"] == "bpe" else ready(about["tokenizer"])  # before hours of reading
    for source in sources:
        bar = tqdm(cleared(source, cleaner, about["max_bytes"]), f"read {name_of(source)}", unit="document", delay=2)
        parts: dict[str, list[Document]] = {split: [] for split in SPLITS}
        for split, document in bar:
            parts[split].append(document)
        if missing := [split for split in SPLITS if not parts[split]]:
            n = sum(map(len, parts.values()))
            if n == 1:
                raise DataError(
                    f"{source} has text in one file only, and whole files are held out: split it into several"
                )
            raise DataError(
                f"{source} is too small: of {n} document(s) with text that is not elsewhere, none is left for "
                f"{missing[0]}"
            )
        texts[name_of(source)] = parts
    mark = END if tokenizer is None else READY[about["tokenizer"]].mark
    everything = (document.text for parts in texts.values() for document in parts["train"])
    tokenizer = tokenizer or _trained(everything, about["vocabulary"])
    for source in sources:
        name = name_of(source)
        entry: dict[str, Any] = {"source": source, "fingerprint": corpora.fingerprint(source)}
        for split, found in texts[name].items():
            tokens = _encoded(tokenizer, found, mark)
            np.save(folder / f"{name}-{split}.npy", tokens, allow_pickle=False)
            entry[split] = {
                "documents": len(found),
                "bytes": sum(len(document.text.encode()) for document in found),
                "tokens": len(tokens),
            }
            if source not in corpora.HUB:  # whose rows have no names
                entry[split]["files"] = [document.name for document in found]
        entries[name] = entry
    files.write(folder / "tokenizer.json", tokenizer.to_str().encode())
    return {"corpora": entries} | about


def _encoded(tokenizer: Tokenizer, found: list[Document], mark: str) -> Tokens:
    """One stream of tokens, a mark before every document."""
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 2**16 else np.uint32
    parts = []
    for start in range(0, len(found), 500):
        texts = [document.text for document in found[start : start + 500]]
        batch = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        parts += [np.array([tokenizer.token_to_id(mark), *encoding.ids], dtype) for encoding in batch]
    return np.concatenate(parts)


def _trained(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def ready(name: str) -> Tokenizer:
    """A tokenizer of `READY`; raises DataError if it cannot be had."""
    told, placed = READY[name], cache.default_root() / "hub" / name / "tokenizer.json"
    try:
        if placed.is_file():
            tokenizer = Tokenizer.from_file(str(placed))
        else:
            tokenizer = Tokenizer.from_pretrained(told.path, token=os.environ.get("HF_TOKEN"))
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        fetched = "`repsim models smollm2` fetches it with the model; or " if name == "smollm2" else ""
        raise DataError(
            f"the tokenizer of {name} cannot be had ({reason}): {fetched}place its tokenizer.json at {placed}, or "
            "choose tokenizer bpe"
        ) from None
    if (tokenizer.get_vocab_size(), tokenizer.token_to_id(told.mark)) != (told.size, told.mark_id):
        raise DataError(
            f"{placed} is not the tokenizer of {name}, which has {told.size:,} tokens and {told.mark} as token "
            f"{told.mark_id:,}"
        )
    tokenizer.no_truncation()
    return tokenizer


def _read(folder: Path, digest: str) -> Library:
    """What was kept, held against the manifest; raises one of `files.DAMAGE`."""
    manifest = files.manifest_of(folder, [VERSION, corpora.VERSION], "tokenizer.json")
    found = {}
    for name, about in manifest["corpora"].items():
        names = [f"{name}-{split}.npy" for split in SPLITS]
        files.manifest_of(folder, [VERSION, corpora.VERSION], *names)
        train, held_out = (np.load(folder / file, mmap_mode="r", allow_pickle=False) for file in names)
        if any(part.dtype not in (np.uint16, np.uint32) or part.ndim != 1 for part in (train, held_out)):
            raise ValueError(f"tokens of {name} are not a stream of uint16 or uint32")
        found[name] = Corpus(train, held_out, about)
    return Library(found, _tokenizer(str(folder / "tokenizer.json")), digest)


@lru_cache(maxsize=4)
def _tokenizer(path: str) -> Tokenizer:
    return Tokenizer.from_file(path)
