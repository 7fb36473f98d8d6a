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


def test_the_template_has_a_place_for_the_request():
    assert jailbreak.TEMPLATE.format(request="what color is it?", word="sure").startswith("what color is it?")
