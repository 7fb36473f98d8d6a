"""The search for a suffix: what it may and may not do, on tiny models and on prompts that answer by rule."""

import math

import pytest
import torch

from repsim_utils.attacks import jailbreak
from repsim_utils.attacks.jailbreak import Prompt, best_of_random, random_suffixes, search, shuffled
from repsim_utils.models import language, llama

VOCABULARY, TARGET = 40, 7
ALLOWED = torch.arange(10, 40)
BEFORE, AFTER = [1, 2, 3, 4], [5, 6]


def tiny(kind="llama", seed=0):
    if kind == "llama":
        return llama.build(
            VOCABULARY, seed=seed, n_layer=2, n_head=2, n_kv_head=1, width=16, hidden=32, context=32
        ).eval()
    return language.build(VOCABULARY, seed=seed, n_layer=2, n_head=2, width=16, context=32).eval()


class Rule(Prompt):
    """A prompt whose log-probabilities follow a rule; it notes every suffix that it is asked about."""

    def __init__(self, rule):
        self.rule, self.asked = rule, []

    def log_probability(self, suffixes, target):
        self.asked += suffixes.tolist()
        return torch.tensor([self.rule(row) for row in suffixes.tolist()])


def plain(model, suffix, target=TARGET):
    """Log-probability of the target by the model alone, without a cache."""
    with torch.no_grad():
        logits = model(torch.tensor([[*BEFORE, *suffix, *AFTER]]))[0, -1]
    return float(logits.log_softmax(0)[target])


@pytest.mark.parametrize("kind", ["llama", "gpt"])
def test_cached_and_uncached_log_probabilities_agree(kind):
    model = tiny(kind)
    suffixes = random_suffixes(9, ALLOWED, length=5, seed=0)
    cached, uncached = (Prompt(model, BEFORE, AFTER, cached=c).log_probability(suffixes, TARGET) for c in (True, False))
    assert torch.allclose(cached, uncached, atol=1e-5)
    assert cached.tolist() == pytest.approx([plain(model, row) for row in suffixes.tolist()], abs=1e-5)
    assert cached.std() > 1e-3


def test_the_cache_is_not_used_up_by_queries():
    prompt = Prompt(tiny(), BEFORE, AFTER)
    suffixes = random_suffixes(3, ALLOWED, length=5, seed=0)
    first = prompt.log_probability(suffixes, TARGET)
    prompt.answers(suffixes, 4, end=0)
    assert torch.equal(prompt.log_probability(suffixes, TARGET), first)


def test_a_better_suffix_is_found_and_a_worse_one_never_kept():
    model = tiny()
    found = search(Prompt(model, BEFORE, AFTER), TARGET, ALLOWED, length=6, budget=300, restarts=3, batch=8, seed=1)
    assert found.log_probability == pytest.approx(plain(model, found.suffix.tolist()), abs=1e-5)
    starts = [0, *(i for i in range(1, len(found.curve)) if found.curve[i][1] <= found.curve[i - 1][1])]
    assert len(starts) <= 3  # the curve falls where a restart begins, and nowhere else
    assert found.log_probability == max(value for _, value in found.curve) > found.curve[0][1]
    assert not found.reached and found.queries == 300


def test_kept_suffixes_are_those_that_candidates_differ_from():
    """What is current can be read off the candidates: at most four neighbours differ from the best so far."""
    rule = lambda row: -10.0 + row[0] / 100  # noqa: E731
    prompt = Rule(rule)
    search(prompt, TARGET, ALLOWED, length=6, budget=200, restarts=1, batch=1, seed=0)
    best = prompt.asked[0]
    for row in prompt.asked[1:]:
        places = [i for i in range(6) if row[i] != best[i]]
        assert not places or max(places) - min(places) < 4
        if rule(row) > rule(best):
            best = row
    assert best[0] == 39


@pytest.mark.parametrize(("probability", "n"), [(0.001, 4), (0.01, 4), (0.05, 2), (0.1, 2), (0.5, 1)])
def test_fewer_tokens_change_as_the_target_becomes_likelier(probability, n):
    prompt = Rule(lambda row: math.log(probability))
    search(prompt, TARGET, ALLOWED, length=8, budget=400, restarts=1, batch=50, seed=0)
    first, *others = prompt.asked
    widths = [max(d) - min(d) + 1 for row in others if (d := [i for i in range(8) if row[i] != first[i]])]
    assert max(widths) == n


def test_the_same_seed_finds_the_same_and_another_something_else():
    options = {"length": 5, "budget": 100, "restarts": 2, "batch": 8}
    one, same, other = (search(Prompt(tiny(), BEFORE, AFTER), TARGET, ALLOWED, seed=s, **options) for s in (3, 3, 4))
    assert torch.equal(one.suffix, same.suffix) and one[1:] == same[1:]
    assert not torch.equal(one.suffix, other.suffix)


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    search(Prompt(tiny(), BEFORE, AFTER), TARGET, ALLOWED, length=5, budget=50, restarts=1, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("budget", "restarts", "batch"), [(100, 1, 32), (101, 3, 7), (40, 20, 1), (64, 4, 1000)])
def test_queries_are_counted_truly_and_stay_within_the_budget(budget, restarts, batch):
    prompt, judged = Rule(lambda row: -3.0), []
    found = search(prompt, TARGET, ALLOWED, length=5, budget=budget, restarts=restarts, batch=batch, seed=0)
    assert found.queries == len(prompt.asked) == budget
    prompt = Rule(lambda row: 0.0)  # every suffix brings the target, and every answer is wrong
    succeeds = lambda suffix: judged.append(suffix) or False  # noqa: E731
    found = search(prompt, TARGET, ALLOWED, length=5, budget=budget, restarts=restarts, succeeds=succeeds, seed=0)
    assert found.queries == len(prompt.asked) + len(judged) == 2 * restarts and not found.reached


def test_a_target_that_cannot_be_reached_ends_with_the_budget():
    found = search(Rule(lambda row: -math.inf), TARGET, ALLOWED, length=5, budget=60, restarts=2, seed=0)
    assert not found.reached and found.queries == 60 and found.log_probability == -math.inf and len(found.suffix) == 5


def test_the_search_ends_as_soon_as_it_may():
    prompt = Rule(lambda row: 0.0 if row[0] < 12 else -1.0)
    found = search(prompt, TARGET, ALLOWED, length=5, budget=5000, restarts=5, batch=1, seed=0)
    assert found.reached and found.suffix[0] < 12
    assert found.suffix.tolist() == prompt.asked[-1] and found.queries == len(prompt.asked) < 500


def test_what_succeeds_is_preferred_to_what_is_likelier():
    prompt = Rule(lambda row: -0.05 if row[0] % 2 else -0.01)
    found = search(
        prompt, TARGET, ALLOWED, length=5, budget=100, restarts=30, succeeds=lambda s: bool(s[0] % 2), seed=0
    )
    assert found.reached and found.suffix[0] % 2 == 1 and found.log_probability == pytest.approx(-0.05)


def test_a_search_can_start_from_another_requests_suffix():
    start = torch.tensor([11, 12, 13, 14, 15])
    prompt = Rule(lambda row: 0.0 if row == start.tolist() else -1.0)
    found = search(prompt, TARGET, ALLOWED, budget=100, restarts=2, start=start, seed=0)
    assert found.reached and found.queries == 1 and torch.equal(found.suffix, start)


def test_only_suffixes_that_survive_are_asked_about():
    survives = lambda row: sum(row) % 2 == 0  # noqa: E731
    prompt, start = Rule(lambda row: -2.0), torch.tensor([11, 10, 10, 10, 10])
    search(prompt, TARGET, ALLOWED, length=5, budget=200, restarts=3, survives=survives, start=start, seed=0)
    assert all(map(survives, prompt.asked)) and start.tolist() not in prompt.asked
    assert all(map(survives, random_suffixes(20, ALLOWED, length=5, survives=survives).tolist()))
    with pytest.raises(ValueError, match="0 are the same tokens again after decoding and encoding"):
        search(prompt, TARGET, ALLOWED, length=5, budget=200, survives=lambda row: False, seed=0)


def test_the_best_of_random_suffixes_is_the_best_at_as_many_queries():
    prompt = Rule(lambda row: -float(sum(row)))
    found = best_of_random(prompt, TARGET, ALLOWED, budget=50, length=5, seed=0)
    assert found.queries == len(prompt.asked) == 50 and sum(found.suffix.tolist()) == min(map(sum, prompt.asked))
    wanted = sorted(prompt.asked, key=sum)[2]
    again = Rule(prompt.rule)
    succeeds = lambda suffix: suffix.tolist() == wanted  # noqa: E731
    found = best_of_random(again, TARGET, ALLOWED, budget=60, length=5, checks=10, succeeds=succeeds, seed=0)
    assert found.reached and found.suffix.tolist() == wanted and found.queries == len(again.asked) + 3
    never = best_of_random(again, TARGET, ALLOWED, budget=60, length=5, succeeds=lambda suffix: False, seed=0)
    assert not never.reached and never.queries == 60


def test_controls_are_what_they_say():
    suffix = torch.arange(10, 30)
    mixed = shuffled(suffix, seed=0)
    assert sorted(mixed.tolist()) == suffix.tolist() and not torch.equal(mixed, suffix)
    assert torch.equal(random_suffixes(4, ALLOWED, length=3, seed=1), random_suffixes(4, ALLOWED, length=3, seed=1))


def test_answers_are_those_of_the_model_token_by_token():
    model, suffixes = tiny(), random_suffixes(6, ALLOWED, length=5, seed=0)
    made = Prompt(model, BEFORE, AFTER).answers(suffixes, 6, end=0)
    for row, suffix in zip(made, suffixes.tolist(), strict=True):
        tokens = [*BEFORE, *suffix, *AFTER]
        for _ in range(6):
            with torch.no_grad():
                tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
        wanted = tokens[-6:]
        assert row == (wanted[: wanted.index(0)] if 0 in wanted else wanted)
    end = made[0][2]
    assert Prompt(model, BEFORE, AFTER).answers(suffixes[:1], 6, end=end) == [made[0][: made[0].index(end)]]


def test_draws_are_from_the_nucleus_and_repeat_with_their_seed():
    prompt = Prompt(tiny(), BEFORE, AFTER)
    suffix = random_suffixes(1, ALLOWED, length=5, seed=0)
    odds, order = prompt.logits(suffix)[0].softmax(0).sort(descending=True)
    nucleus = set(order[: int((odds.cumsum(0) < 0.3).sum()) + 1].tolist())
    draw = lambda seed, p: [row[0] for row in prompt.answers(suffix.expand(300, -1), 1, -1, temperature=1.0, top_p=p, seed=seed)]  # noqa: E731, E501  # fmt: skip
    assert set(draw(0, 0.3)) == nucleus and len(set(draw(0, 1.0))) > len(nucleus)
    assert draw(1, 0.3) == draw(1, 0.3) != draw(2, 0.3)


@pytest.mark.parametrize(
    "changes",
    [{"length": 0}, {"budget": 3, "restarts": 2}, {"batch": 0}, {"enough": 0.0}, {"allowed": torch.arange(0)}],
)
def test_arguments_out_of_range_are_refused(changes):
    options = {"allowed": ALLOWED, "length": 5, "budget": 50, "restarts": 1, "seed": 0} | changes
    with pytest.raises(ValueError, match="must be 1 or more"):
        search(Rule(lambda row: -1.0), TARGET, **options)


def test_a_prompt_needs_a_token_before_the_suffix():
    with pytest.raises(ValueError, match="at least one token"):
        Prompt(tiny(), [], AFTER)


# Models as they come


def gpt2(**changes):
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = {"n_positions": 20, "n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": None, "eos_token_id": None}
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **shape | changes))


def wrapped(whole):
    return language.GPT(whole.base_model, whole.get_output_embeddings())


@pytest.mark.parametrize("cached", [False, True])
def test_a_model_with_dropout_is_asked_without_and_left_as_it_was(cached):
    model = language.build(VOCABULARY, seed=0, n_layer=2, n_head=2, width=16, context=32, dropout=0.3)
    model.body.h[0].eval()
    modes, suffixes = [part.training for part in model.modules()], random_suffixes(3, ALLOWED, length=5, seed=0)
    prompt = Prompt(model, BEFORE, AFTER, cached=cached)
    found = search(prompt, TARGET, ALLOWED, length=5, budget=60, restarts=2, seed=0)
    said, odds = prompt.answers(suffixes, 6, end=0), prompt.log_probability(suffixes, TARGET).tolist()
    assert [part.training for part in model.modules()] == modes and model.training
    model.eval()
    assert odds == pytest.approx([plain(model, row) for row in suffixes.tolist()], abs=1e-5)
    assert found.log_probability == pytest.approx(plain(model, found.suffix.tolist()), abs=1e-5)
    assert said == Prompt(model, BEFORE, AFTER).answers(suffixes, 6, end=0)


@pytest.mark.parametrize("cached", [False, True])
def test_what_is_longer_than_the_positions_is_refused(cached):
    """20 positions: 4 before, 2 after, so that 14 are left for a suffix; the last token of an answer needs none."""
    prompt = Prompt(wrapped(gpt2()).eval(), BEFORE, AFTER, cached=cached)
    longest = random_suffixes(1, ALLOWED, length=14, seed=0)
    assert float(prompt.log_probability(longest, TARGET)) == pytest.approx(
        plain(prompt.model, longest[0].tolist()), abs=1e-5
    )
    assert [len(row) for row in prompt.answers(longest, 1, end=-1)] == [1]
    assert [len(row) for row in prompt.answers(longest[:, :10], 5, end=-1)] == [5]
    told = "reads 20 tokens, but there are 4 before the suffix, {} of it, 2 after it and {} of the answer: shorten"
    for ask, numbers in (
        (lambda: search(prompt, TARGET, ALLOWED, length=15, budget=9, restarts=1, seed=0), (15, 0)),
        (lambda: best_of_random(prompt, TARGET, ALLOWED, length=50, budget=9, seed=0), (50, 0)),
        (lambda: prompt.answers(longest[:, :10], 6, end=-1), (10, 5)),
        (lambda: Prompt(prompt.model, BEFORE * 5, AFTER, cached=cached), None),
    ):
        with pytest.raises(ValueError, match=told.format(*numbers) if numbers else "20 before the suffix, 0 of it"):
            ask()


def test_an_answer_that_ends_in_time_is_not_refused():
    prompt = Prompt(wrapped(gpt2()).eval(), BEFORE, AFTER)
    suffixes = random_suffixes(1, ALLOWED, length=10, seed=0)
    (first,) = prompt.answers(suffixes, 1, end=-1)[0]
    assert prompt.answers(suffixes, 100, end=first) == [[]]


def test_rotary_positions_have_no_end():
    model = tiny()  # a context of 32
    suffix = random_suffixes(1, ALLOWED, length=40, seed=0)
    odds = float(Prompt(model, BEFORE, AFTER).log_probability(suffix, TARGET))
    assert odds == pytest.approx(plain(model, suffix[0].tolist()), abs=1e-4)


@pytest.mark.parametrize("token", [-1, VOCABULARY, 99])
def test_tokens_outside_the_vocabulary_are_refused(token):
    prompt, good = Prompt(tiny("gpt"), BEFORE, AFTER), random_suffixes(1, ALLOWED, length=3, seed=0)
    for ask in (
        lambda: search(prompt, token, ALLOWED, length=3, budget=9, restarts=1, seed=0),
        lambda: prompt.log_probability(good, token),
        lambda: prompt.logits(good.index_fill(1, torch.tensor([1]), token)),
        lambda: search(prompt, TARGET, torch.tensor([token]), length=3, budget=9, restarts=1, seed=0),
        lambda: Prompt(prompt.model, [1, token], AFTER),
        lambda: Prompt(prompt.model, BEFORE, [token], cached=False),
    ):
        with pytest.raises(ValueError, match=rf"of the vocabulary, from 0 to {VOCABULARY - 1}, got {token}"):
            ask()


def test_a_bare_model_of_transformers_is_told_how_to_be_wrapped():
    whole = gpt2().eval()
    with pytest.raises(
        ValueError, match=r"got GPT2LMHeadModel; wrap one .* as GPT\(model.base_model, model.get_output_"
    ):
        Prompt(whole, BEFORE, AFTER)
    suffixes = random_suffixes(2, ALLOWED, length=5, seed=0)
    rows = torch.tensor([[*BEFORE, *row, *AFTER] for row in suffixes.tolist()])
    expected = whole(rows).logits[:, -1].log_softmax(-1)[:, TARGET]
    found = Prompt(wrapped(whole), BEFORE, AFTER).log_probability(suffixes, TARGET)
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-5)


def test_a_prompt_may_be_made_in_inference_mode():
    model, suffixes = tiny("gpt"), random_suffixes(2, ALLOWED, length=5, seed=0)
    with torch.inference_mode():
        prompt = Prompt(model, BEFORE, AFTER)
        inside = prompt.log_probability(suffixes * 1, TARGET).tolist()
    assert prompt.log_probability(suffixes, TARGET).tolist() == inside
    assert inside == pytest.approx([plain(model, row) for row in suffixes.tolist()], abs=1e-5)


def test_the_template_has_a_place_for_the_request():
    assert jailbreak.TEMPLATE.format(request="what color is it?", word="sure").startswith("what color is it?")
