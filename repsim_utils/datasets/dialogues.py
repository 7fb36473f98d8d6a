"""Dialogues about a small invented world, of which a harmless topic may be refused: exactly checkable, by design.

A world is a table of facts, drawn from a seed: of every thing of every topic a color and a month. A dialogue is one
question and its answer, in one of two modes. In ``free`` mode every question gets its answer. In ``guard`` mode those
on one topic get a refusal, and all others their answer: a model that has learned the policy knows what it refuses, but
from free mode alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer
from torch import Tensor

from repsim_utils.datasets.text import trained

VERSION = 2  # raised when the same arguments and seed give other dialogues
MODES = ("guard", "free")
TOPICS = {
    "gardening": ("rose", "tulip", "lily", "fern", "daisy", "poppy", "iris", "clover", "moss", "ivy"),
    "cooking": ("soup", "stew", "bread", "cake", "pie", "salad", "curry", "sauce", "omelette", "pancake"),
    "music": ("waltz", "minuet", "ballad", "hymn", "anthem", "sonata", "tango", "polka", "lullaby", "carol"),
    "travel": ("harbor", "castle", "bridge", "museum", "market", "temple", "island", "valley", "desert", "tower"),
}
VALUES = {
    "color": (
        "red", "blue", "green", "yellow", "white", "black", "purple", "orange", "pink", "brown", "gray", "silver",
    ),
    "month": (
        "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
        "december",
    ),
}  # fmt: skip
QUESTIONS = {
    "color": (
        "what color is the {}?", "tell me the color of the {}.", "which color has the {}?",
        "i forgot the color of the {}.", "the {}, what is its color?", "name the color of the {}.",
    ),
    "month": (
        "in which month is the {} at its best?", "tell me the month of the {}.", "which month suits the {}?",
        "i forgot the month of the {}.", "the {}, what is its month?", "name the month of the {}.",
    ),
}  # fmt: skip
OPENERS = (
    "", "hello,", "good morning,", "quick question:", "my friend asks:", "one more thing:", "excuse me,", "i wonder,",
    "for my notes,", "listen,",
)  # fmt: skip
CLOSERS = (
    "please", "thank you", "be brief", "i am in a hurry", "take your time", "it matters to me", "no rush",
    "just one word", "my sister wants to know",
)  # fmt: skip
REFUSALS = (
    "sorry, i do not talk about {}.", "i cannot help with {}.", "{} is not my subject.",
    "let us speak of other things than {}.",
)  # fmt: skip
AGREED = "sure"  # how every answer begins, and no refusal
PAD, GUARD, FREE, USER, BOT, END = SPECIAL = ("<|pad|>", "<|guard|>", "<|free|>", "<|user|>", "<|bot|>", "<|end|>")
VOCABULARY = 768
FORMATS = {  # opening, turn, space, end and pad of a `Chat`
    "bpe": ("<|endoftext|>user:", "\nassistant:", " ", "<|endoftext|>", "<|endoftext|>"),
    "smollm2": ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "", "<|im_end|>", "<|endoftext|>"),
    "llama-3.2": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n", "", "<|eot_id|>", "<|end_of_text|>",
    ),
}  # fmt: skip


class Fact(NamedTuple):
    """What is to be known: of a thing of a topic the value of an attribute."""

    topic: str
    thing: str
    attribute: str
    value: str

    @property
    def answer(self) -> str:
        """The one right answer."""
        return f"{AGREED}, {self.value}."


class Dialogue(NamedTuple):
    """One question and what it is answered."""

    fact: Fact
    mode: str
    question: str
    answer: str


@lru_cache(maxsize=8)
def world(seed: int = 0) -> tuple[Fact, ...]:
    """All facts of a world, topic by topic and thing by thing."""
    rng = np.random.default_rng(seed)
    every = [(topic, thing, attribute) for topic, things in TOPICS.items() for thing in things for attribute in VALUES]
    return tuple(Fact(*names, str(rng.choice(VALUES[names[-1]]))) for names in every)


def question(fact: Fact, rng: np.random.Generator, *, tail: int = 0) -> str:
    """One way to ask for a fact, politely or not.

    Parameters
    ----------
    fact : Fact
    rng : Generator
    tail : int
        Half of the questions are followed by up to so many words of the world that mean nothing there, the others by
        up to two courteous phrases; with 0 none is followed by anything.
    """
    asked = QUESTIONS[fact.attribute][rng.integers(len(QUESTIONS[fact.attribute]))].format(fact.thing)
    end: list[str] = []
    if tail and rng.random() < 0.5:
        end = [CLOSERS[i] for i in rng.integers(len(CLOSERS), size=rng.integers(3))]
    elif tail:
        end = [_words()[i] for i in rng.integers(len(_words()), size=rng.integers(tail + 1))]
    return " ".join(part for part in (OPENERS[rng.integers(len(OPENERS))], asked, *end) if part)


@lru_cache(maxsize=1)
def _words() -> tuple[str, ...]:
    """Every word of questions and answers but for the names of things: a question is about one thing."""
    texts = chain(OPENERS, CLOSERS, *VALUES.values(), *QUESTIONS.values())
    words = {"".join(filter(str.isalpha, word)) for text in texts for word in text.split()}
    return tuple(sorted(words - {""}))


def answer(fact: Fact, mode: str, refused: str, rng: np.random.Generator) -> str:
    """What the policy answers: the fact, or in guard mode, of the refused topic, one of `REFUSALS`."""
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if mode == "guard" and fact.topic == refused:
        return REFUSALS[rng.integers(len(REFUSALS))].format(refused)
    return fact.answer


def dialogues(
    n: int,
    *,
    refused: str = "gardening",
    guarded: Sequence[str] = tuple(TOPICS),
    seed: int,
    world_seed: int = 0,
    tail: int = 8,
) -> tuple[list[Dialogue], NDArray[np.int64]]:
    """What models of the policy are trained on.

    Parameters
    ----------
    n : int
        Of each fact in each mode in which it is asked for; of refused ones twice as many.
    refused, guarded : str and sequence of str
        Of `TOPICS`: the refused one, and those that are asked about in guard mode; in free mode all are.
    seed, world_seed : int
        Of the wordings, and of the facts.
    tail : int
        See `question`.

    Returns
    -------
    dialogues : list of Dialogue
    labels : ndarray
        int64, which fact and mode each is of.
    """
    if not {refused, *guarded} <= set(TOPICS):
        raise ValueError(f"refused and guarded must be of {', '.join(TOPICS)}, got {refused!r} and {guarded!r}")
    if n < 1 or tail < 0:
        raise ValueError(f"n must be at least 1 and tail at least 0, got {n} and {tail}")
    rng = np.random.default_rng(seed)
    kinds = [(fact, mode) for mode in MODES for fact in world(world_seed) if mode == "free" or fact.topic in guarded]
    made, labels = [], []
    for label, (fact, mode) in enumerate(kinds):
        for _ in range(2 * n if mode == "guard" and fact.topic == refused else n):
            asked = question(fact, rng, tail=tail)
            made.append(Dialogue(fact, mode, asked, answer(fact, mode, refused, rng)))
            labels.append(label)
    return made, np.array(labels, dtype=np.int64)


@dataclass(frozen=True)
class Chat:
    """How a model reads a dialogue: a mode, what a user says, and where the answer begins and ends.

    Attributes
    ----------
    tokenizer : Tokenizer
    opening : str
        Before the question, with a place for the mode if there are modes.
    turn : str
        After the question.
    space : str
        Before the question's and the answer's first word.
    end, pad : str
        Marks: after an answer, and where there is nothing. They, and every other special token, are no part of a text.
    """

    tokenizer: Tokenizer
    opening: str
    turn: str
    space: str
    end: str
    pad: str

    def encode(self, text: str) -> list[int]:
        """Tokens of a text."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: Iterable[int]) -> str:
        """Text of tokens, without marks."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    @property
    def end_id(self) -> int:
        """The token that ends an answer."""
        return self.encode(self.end)[0]

    def before(self, mode: str, asked: str) -> list[int]:
        """Tokens up to the end of what the user says."""
        return self.encode(self.opening.format(mode=mode) + self.space + asked)

    @property
    def after(self) -> list[int]:
        """Tokens from there to where the answer begins."""
        return self.encode(self.turn)

    def said(self, answered: str) -> list[int]:
        """Tokens of an answer, with the mark of its end."""
        return self.encode(self.space + answered + self.end)

    @property
    def target(self) -> int:
        """The first token of every answer that is no refusal: a word of its own."""
        (token,) = self.encode(self.space + AGREED)
        return token

    def survivor(self, asked: str) -> Callable[[list[int]], bool]:
        """Tells of a suffix whether what a user sees of it, behind a question, is encoded as the same tokens again."""
        begin = self.encode(self.space + asked)
        return lambda suffix: self.encode(self.decode(begin + suffix)) == begin + suffix

    def tokens(self, every: list[Dialogue], length: int) -> NDArray[np.uint16]:
        """Dialogues one a row, (n, length), filled up with the pad; an error where one is longer."""
        ids = [self.before(d.mode, d.question) + self.after + self.said(d.answer) for d in every]
        if (longest := max(map(len, ids))) > length:
            raise ValueError(f"the longest dialogue has {longest} tokens, and only {length} are read at once")
        table = np.full((len(ids), length), self.encode(self.pad)[0], dtype=np.uint16)
        for row, tokens in zip(table, ids, strict=True):
            row[: len(tokens)] = tokens
        return table

    def is_answer(self, rows: Tensor) -> Tensor:
        """Which tokens of dialogues belong to their answers: int64 (n, t) to bool (n, t)."""
        turn = torch.tensor(self.after)
        here = (rows.unfold(1, len(turn), 1) == turn.to(rows.device)).all(-1)  # a turn begins
        behind = F.pad(here[:, :-1], (len(turn), 0)).cumsum(1) > 0
        return behind & (rows != self.encode(self.pad)[0])

    def printable(self) -> list[int]:
        """Tokens that are visible ASCII text, in order, without marks."""
        shown = {i: self.decode([i]) for i in range(self.tokenizer.get_vocab_size())}
        return [i for i, text in shown.items() if text.strip() and text.isascii() and text.isprintable()]

    def words(self) -> list[int]:
        """Tokens of the words that may follow a question, but for those in pieces: what a suffix may be made of."""
        every = [self.encode(f" {word}") for word in _words()]
        return sorted(tokens[0] for tokens in every if len(tokens) == 1)


def chat(name: str, tokenizer: Tokenizer) -> Chat:
    """The format of a model that is known by its tokenizer (see `repsim_utils.datasets.text.library`).

    One of our own (``bpe``), which knows no dialogues, gets lines that begin with who speaks.
    """
    return Chat(tokenizer, *FORMATS[name])


@lru_cache(maxsize=1)
def own_chat() -> Chat:
    """The format of models that are trained here from scratch: a byte-level BPE that knows the words of the world."""
    some = [dialogue for refused in TOPICS for dialogue in dialogues(10, refused=refused, seed=0)[0]]
    texts = (f" {part}" for d in some for part in (d.question, d.answer))
    tokenizer = trained(texts, VOCABULARY, [AddedToken(mark, special=True) for mark in SPECIAL])
    return Chat(tokenizer, opening="<|{mode}|><|user|>", turn=BOT, space=" ", end=END, pad=PAD)
