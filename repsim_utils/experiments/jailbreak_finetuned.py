"""The published set-up: fine-tuned models, a template and a suffix, sampled answers, judges by phrase or model.

The pairs are those of `finetuned`. Without a network or a GPU it runs on models of the same shape, with harmless goals.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from pydantic import Field, model_validator

from repsim_utils.attacks import jailbreak, judges
from repsim_utils.attacks.jailbreak import Prompt
from repsim_utils.attacks.judges import Judge
from repsim_utils.datasets import dialogues, goals
from repsim_utils.datasets.dialogues import Chat
from repsim_utils.experiments import finetuned, reading
from repsim_utils.experiments.common import Declared, Frozen
from repsim_utils.experiments.engine import Pair, Row, experiment
from repsim_utils.experiments.finetuned import Kind, Member
from repsim_utils.experiments.jailbreak_transfer import Attack
from repsim_utils.models.language import GPT
from repsim_utils.store import Store

EXPERIMENT = "jailbreak_finetuned"
VERSION = 1  # raised when the same pair gives other measurements
SUMMARY = ("cause", "dataset", "architecture", "attack", "judge", "metric", "overlap")
TARGET = "Sure"


class Endpoint(Frozen):
    """A language model as judge: at an OpenAI-compatible address, or of the hub (`url` null), in this process."""

    model: str = Field(min_length=1)
    url: str | None = None
    key_from: str = "OPENAI_API_KEY"

    def judge(self) -> Judge:
        """As others are called."""
        if self.url is None:
            return judges.language_model(judges.local(self.model))
        return judges.language_model(judges.endpoint(self.url, self.model, key_from=self.key_from))


class Protocol(Frozen):
    """How a pair is attacked: which goals, which search, how answers are drawn, and which model judges them.

    Goals other than ``benign`` are read only with `accept_harmful`.
    """

    goals: str = "benign"
    accept_harmful: bool = False
    n_goals: int = Field(50, ge=1)
    attack: Attack
    temperature: float = Field(0.7, ge=0)
    top_p: float = Field(0.9, gt=0, le=1)
    n_tokens: int = Field(256, ge=1)
    judge: Endpoint | None = None

    @model_validator(mode="after")
    def _asked_for(self) -> Protocol:
        if self.goals == "benign" or self.goals not in goals.NAMES or not self.accept_harmful:
            goals.load(self.goals, 1)  # says what is wrong, and reads nothing of the hub
        return self


class Settings(Declared):
    """What a profile says: sweeps of fine-tuned pairs, and how each pair is attacked."""

    causes: dict[Kind, finetuned.Settings] = Field(min_length=1)
    protocol: Protocol


class JailbreakPair(Pair):
    """One cell: two fine-tuned models, each attacked through the other."""

    depends = (jailbreak, judges, dialogues, goals)
    cause: Kind
    first: Member
    second: Member
    protocol: Protocol

    def columns(self, store: Store) -> Row:
        """With the sweep that the pair is of, and the goals."""
        return {"cause": self.cause, "probe": self.protocol.goals} | super().columns(store)

    def rows(self, first: GPT, second: GPT, store: Store) -> Iterator[Row]:
        """Attack each model through the other, and let judges say how often that worked; answers are not kept.

        Columns are ``attack, judge, source, metric, value, n_probe``. Attacks are ``none``, ``template`` and ``search``
        (template and suffix, as published). Metrics are ``white_box`` and ``transfer``, shares of all goals that a
        judge calls a success on the model that the suffix was found on and on the other; ``reached``, the share of
        searches that made "Sure" likely enough; ``queries``; ``agree`` and ``kappa`` of two judges.
        """
        tokenizer = reading.library(self.first.text, self.first.fingerprint).tokenizer
        talk = dialogues.chat(self.first.text.tokenizer, tokenizer)
        every: dict[str, Judge] = {"begins_with_sure": judges.begins_with(TARGET)}
        every["no_refusal_phrase"] = judges.no_refusal_phrase
        if self.protocol.judge is not None:
            every[self.protocol.judge.model] = self.protocol.judge.judge()
        for name, source, victim in (("first", first, second), ("second", second, first)):
            yield from ({"source": name} | row for row in _direction(self, source, victim, talk, every))


def prepare(cells: Iterable[JailbreakPair]) -> None:
    """Read what the models read, and the goals, before anything is trained."""
    cells = list(cells)
    finetuned.prepare(cells)
    for protocol in {cell.protocol for cell in cells}:
        _goals(protocol)


@experiment(EXPERIMENT, by=SUMMARY, prepare=prepare)
def pairs(settings: Settings) -> list[JailbreakPair]:
    """Every pair of every sweep, but for floors."""
    cells = []
    for cause, sweep in settings.causes.items():
        for pair in finetuned.pairs(sweep, cause):
            if pair.pairing == "overlap":
                about = {name: getattr(pair, name) for name in ("architecture", "overlap", "first", "second")}
                cells.append(JailbreakPair(kind=EXPERIMENT, cause=cause, protocol=settings.protocol, **about))
    return cells


@lru_cache(maxsize=4)
def _goals(protocol: Protocol) -> list[str]:
    return goals.load(protocol.goals, protocol.n_goals, accept_harmful=protocol.accept_harmful)


def _direction(
    pair: JailbreakPair, source: GPT, victim: GPT, talk: Chat, every: dict[str, Judge]
) -> list[dict[str, Any]]:
    """Rows of one direction."""
    wanted, found = _goals(pair.protocol), []
    said: dict[str, list[list[str]]] = {"none": [], "template": [], "search": []}
    nothing = torch.zeros((1, 0), dtype=torch.int64)
    for i, goal in enumerate(wanted):
        templated = jailbreak.TEMPLATE.format(request=goal, word=TARGET)
        found.append(_search(pair, source, templated, talk, i))
        ways = {"none": (goal, nothing), "template": (templated, nothing)}
        ways["search"] = templated, found[-1].suffix[None]
        for name, (asked, suffix) in ways.items():
            said[name].append([_answer(pair, model, asked, suffix, talk, i) for model in (source, victim)])
    rows: list[dict[str, Any]] = []
    for attack, answers in said.items():
        for metric, column in (("white_box", 0), ("transfer", 1)):
            told = judges.verdicts(every, [(g, a[column]) for g, a in zip(wanted, answers, strict=True)])
            rows += _rates(told, attack, metric)
    rows.append({"attack": "search", "metric": "reached", "value": float(np.mean([one.reached for one in found]))})
    rows.append({"attack": "search", "metric": "queries", "value": float(np.mean([one.queries for one in found]))})
    attacked = [(g, a) for g, both in zip(wanted, said["search"], strict=True) for a in both]
    for row in judges.agreement(judges.verdicts(every, attacked)).to_dict("records"):
        about = {"attack": "search", "judge": f"{row['first']}, {row['second']}", "n_probe": row["n"]}
        values = {name: float(row[name]) for name in ("agree", "kappa")}
        rows += [about | {"metric": name, "value": value} for name, value in values.items() if value == value]
    return rows


def _rates(told: Any, attack: str, metric: str) -> list[dict[str, Any]]:
    """Share of successes by judge, of answers of which it could tell."""
    rows = []
    for judge in told:
        clear = told[judge].dropna().astype(bool)
        if len(clear):
            row = {"attack": attack, "judge": judge, "metric": metric, "n_probe": len(clear)}
            rows.append(row | {"value": float(clear.mean())})
    return rows


def _search(pair: JailbreakPair, model: GPT, asked: str, talk: Chat, seed: int) -> jailbreak.Found:
    target = talk.encode(talk.space + TARGET)[0]
    options = pair.protocol.attack.model_dump() | {"survives": talk.survivor(asked), "seed": seed}
    prompt = Prompt(model, talk.before("", asked), talk.after)
    return jailbreak.search(prompt, target, torch.tensor(talk.printable()), **options)


def _answer(pair: JailbreakPair, model: GPT, asked: str, suffix: torch.Tensor, talk: Chat, seed: int) -> str:
    how = pair.protocol
    prompt = Prompt(model, talk.before("", asked), talk.after)
    options: dict[str, Any] = {"temperature": how.temperature, "top_p": how.top_p, "seed": seed}
    return talk.decode(prompt.answers(suffix, how.n_tokens, talk.end_id, **options)[0])
