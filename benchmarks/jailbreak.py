"""Candidates a second: the search's batches with a kept prompt, against one suffix at a time through the whole prompt.

    python benchmarks/jailbreak.py [seconds of each]

Both ask the same model, freshly initialised and as large as that of the laptop profile, about the same suffixes behind
the same request, and must give the same log-probabilities. A longer prompt, such as a template, makes the kept part
larger: both prompts are timed. The ratio is of one run, each way in turn.
"""

from __future__ import annotations

import sys
import time

import torch

from repsim_utils import profiles
from repsim_utils.attacks import jailbreak
from repsim_utils.attacks.jailbreak import Prompt
from repsim_utils.datasets import dialogues
from repsim_utils.experiments import policy
from repsim_utils.models import llama
from repsim_utils.models.language import GPT

ROUNDS = 4


@torch.no_grad()
def one_at_a_time(model: GPT, before: list[int], after: list[int], suffixes: torch.Tensor, target: int) -> torch.Tensor:
    """As a plain program has it: every candidate is a prompt of its own."""
    rows = [model(torch.tensor([[*before, *suffix, *after]]))[0, -1] for suffix in suffixes.tolist()]
    return torch.stack(rows).log_softmax(-1)[:, target]


def rates(seconds: float, before: list[int]) -> tuple[float, float, float]:
    """Candidates a second in batches, and one at a time, and the largest difference of their log-probabilities."""
    settings = profiles.load("laptop", "jailbreak_transfer")
    talk, own = dialogues.own_chat(), settings.policies["small_llama"].base
    size, shape = talk.tokenizer.get_vocab_size(), own.network.model_dump()
    model = llama.build(size, seed=0, context=256, **shape).eval()
    length, batch = settings.attack.length, settings.attack.batch
    suffixes = jailbreak.random_suffixes(batch, torch.tensor(talk.words()), length=length, seed=0)
    prompt = Prompt(model, before, talk.after)
    ways = {
        "batches": lambda: prompt.log_probability(suffixes, talk.target),
        "plain": lambda: one_at_a_time(model, before, talk.after, suffixes, talk.target),
    }
    difference = float((ways["batches"]() - ways["plain"]()).abs().max())
    done, spent = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0.0)
    for _ in range(ROUNDS):
        for name, way in ways.items():
            start = time.perf_counter()
            while time.perf_counter() - start < seconds / ROUNDS:
                way()
                done[name] += batch
            spent[name] += time.perf_counter() - start
    return done["batches"] / spent["batches"], done["plain"] / spent["plain"], difference


def main() -> None:
    """Print both rates and their ratio."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 8.0
    torch.set_num_threads(1)
    talk, (request,) = dialogues.own_chat(), policy.requests("gardening", 1)
    questions = {
        "a request": request.question,
        "a request in a template": jailbreak.TEMPLATE.format(request=request.question, word=dialogues.AGREED),
    }
    for name, question in questions.items():
        before = talk.before("guard", question)
        batched, plain, difference = rates(seconds, before)
        print(
            f"{name}, {len(before)} tokens: {batched:,.0f} candidates a second in batches, {plain:,.0f} one at a time:"
        )
        print(f"{batched / plain:.1f} times as many; log-probabilities differ by at most {difference:.0e}")


if __name__ == "__main__":
    main()
