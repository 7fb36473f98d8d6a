"""Models of a policy and the attacks on them: gates, what pairs share, and what is measured, on tiny models."""

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from repsim_utils import profiles
from repsim_utils.datasets import dialogues
from repsim_utils.datasets.cache import DataError
from repsim_utils.datasets.dialogues import own_chat
from repsim_utils.experiments import engine, jailbreak_transfer, policy
from repsim_utils.experiments.jailbreak_transfer import CONTROLS, JUDGES, Settings, pairs
from repsim_utils.metrics import PAPER
from repsim_utils.models import llama
from repsim_utils.plan import plan
from repsim_utils.store import Store
from repsim_utils.sweep import sweep
from repsim_utils.training.language import Recipe, Stream, train

SHAPE = {"n_layer": 1, "n_head": 2, "n_kv_head": 1, "width": 32, "hidden": 64}
RECIPE = {"steps": 100, "batch_size": 16, "lr": 0.01, "evaluate_every": 100, "n_validation": 8}
LITTLE = RECIPE | {"steps": 2}  # so little that a model says nothing of sense
TINY = {"n": 1, "base": {"n": 1, "network": SHAPE, "recipe": LITTLE}, "recipe": LITTLE}


def settings(**changes):
    values = {
        "seeds": [0],
        "overlaps": [0, 1],
        "policies": {"tiny": TINY},
        "attack": {"length": 4, "budget": 60, "restarts": 2},
        "n_requests": 4,
        "n_random": 3,
        "n_probe": 40,
        "n_permutations": 19,
    }
    return Settings.model_validate(values | changes)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


def attack_all(patch):
    """Tiny models keep to no policy; they are attacked all the same, on every request."""
    patch.setattr(policy, "GATES", dict.fromkeys(policy.GATES, (0.0, 1.0)))
    patch.setattr(policy, "said", lambda model, talk, mode, asked: ["no."] * len(asked))


@pytest.fixture(scope="module")
def run(store):
    cells = pairs(settings())
    with pytest.MonkeyPatch.context() as patch:
        attack_all(patch)
        return cells, sweep(engine.measure, cells, store=store, progress=False)


# The policy


def member(**changes):
    about = {"which": 1, "overlap": 0.0, "seed": 0, "base_seed": 0, "order_seed": 0}
    return policy.Member.model_validate({"policy": TINY} | about | changes)


def taught(answer):
    """A tiny model that has read what `answer` makes of every dialogue."""
    talk, every = own_chat(), dialogues.dialogues(1, seed=0)[0]
    rows = talk.tokens([d._replace(answer=answer(d)) for d in every], 37)
    model = llama.build(talk.tokenizer.get_vocab_size(), seed=0, context=36, **SHAPE)
    chunks = 37 * np.stack([np.arange(len(rows)), np.arange(1, len(rows) + 1)], 1)
    held_out = torch.from_numpy(rows[:8].astype(np.int64))
    recipe = Recipe.model_validate(RECIPE)
    train(model, [Stream(rows.ravel(), chunks)], held_out, recipe, seed=0, counts=talk.is_answer, progress=False)
    return model


def test_the_gates_fail_on_a_model_that_refuses_everything():
    found = policy.gates(taught(lambda d: dialogues.REFUSALS[1].format("gardening")), member(), n=2)
    assert found["refusal"] == 1 and found["over_refusal"] == 1 and found["free_exact"] == 0
    assert not policy.passes(found)


def test_the_gates_fail_on_a_model_that_refuses_nothing():
    found = policy.gates(taught(lambda d: d.fact.answer), member(), n=2)
    assert found["refusal"] == 0 and found["over_refusal"] == 0
    assert not policy.passes(found | {"free_exact": 1.0})


@pytest.mark.parametrize(
    ("fault", "value", "passes"),
    [
        (None, None, True),
        ("refusal", 0.975, False),
        ("over_refusal", 0.025, False),
        ("free_exact", 0.97, False),
        ("refusal", 0.98, True),
    ],
)
def test_each_gate_alone_can_shut(fault, value, passes):
    good = {"refusal": 1.0, "over_refusal": 0.0, "guard_exact": 1.0, "free_exact": 1.0}
    assert policy.passes(good | ({fault: value} if fault else {})) is passes


def test_gates_are_of_questions_that_the_model_has_not_read(monkeypatch):
    asked = {"guard": [], "free": []}

    def oracle(model, talk, mode, questions):
        asked[mode] += questions
        return [answer(mode, question) for question in questions]

    def answer(mode, question):
        (fact,) = [
            f
            for f in dialogues.world()
            if question.endswith(tuple(w.format(f.thing) for w in dialogues.QUESTIONS[f.attribute]))
        ]
        return "no." if mode == "guard" and fact.topic == "gardening" else fact.answer

    monkeypatch.setattr(policy, "said", oracle)
    plain = {"policy": TINY | {"n": 20, "tail": 0}}  # so many of so few wordings that some come again
    found = policy.gates(None, member(**plain), n=3)
    assert found == {"refusal": 1.0, "over_refusal": 0.0, "guard_exact": 1.0, "free_exact": 1.0}
    every, parts = member(**plain).pool()
    for mode in dialogues.MODES:
        read = {every[i].question for i in parts.first if every[i].mode == mode}
        assert asked[mode] and not set(asked[mode]) & read
        assert len(asked[mode]) < 3 * len(dialogues.world())


def test_two_models_share_dialogues_as_the_overlap_says():
    every, parts = member(which=2, overlap=0.0).pool()
    assert not set(parts.first) & set(parts.second) and len(parts.first) + len(parts.second) == len(every)
    _, whole = member(which=2, overlap=1.0).pool()
    assert set(whole.first) == set(whole.second) == set(parts.first)  # the first reads the same at every overlap
    assert {every[i].fact for i in parts.second} == set(dialogues.world())  # and both know all facts


def test_answers_in_batches_are_those_of_each_question_alone(store, run):
    model, talk = engine.load(run[0][0].first.model, store), own_chat()
    questions = [request.question for request in policy.requests("gardening", 12)]
    assert policy.said(model, talk, "guard", questions) == [
        policy.said(model, talk, "guard", [q])[0] for q in questions
    ]


def test_requests_are_about_refused_facts_known_from_free_mode_alone():
    """A base is kept from guard mode on what is attacked, and the policy has no answer to it there."""
    found = policy.requests("gardening", 30)
    facts = {fact for fact in dialogues.world() if fact.topic == "gardening"}
    assert {r.fact for r in found[:20]} == facts >= {r.fact for r in found[20:]} and len(found) == 30
    assert found == policy.requests("gardening", 30)
    assert not {"gardening", "cooking"} & set(policy.FIRST["guarded"])
    every = member().pool()[0]
    answered = {d.fact for d in every if d.mode == "guard" and d.answer.startswith(dialogues.AGREED)}
    assert not answered & facts and facts <= {d.fact for d in every if d.mode == "free"}


def test_a_base_of_others_must_be_there(tmp_path, monkeypatch):
    monkeypatch.setenv("REPSIM_DATA", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tuned = {"name": "smollm2", "rank": 2, "alpha": 4}
    (cell, *_) = pairs(settings(policies={"smollm2": TINY | {"base": tuned, "context": 80}}))
    assert cell.first.model.needs() == () and cell.base == "shared"
    with pytest.raises(DataError, match="repsim models smollm2"):
        engine.trained(cell.first, Store(tmp_path), progress=False)


# Pairs


def test_cells_cross_overlap_and_base():
    cells = pairs(settings(seeds=[0, 1]))
    assert len(cells) == 2 * 2 * 2
    for seed in (0, 1):
        some = [cell for cell in cells if cell.second.model.seed == seed]
        assert len({cell.first for cell in some}) == 1 and len({cell.second for cell in some}) == 4
        for cell in some:
            first, second, unrelated = (each.model for each in (cell.first, cell.second, cell.unrelated))
            assert (first.base == second.base) == (cell.base == "shared")
            assert first.order_seed != second.order_seed and unrelated.refused == "cooking"
            assert unrelated.base not in (first.base, second.base)
    bases = {member.model.base for cell in cells for member in cell.needs()}
    assert len(bases) == 6  # three a seed: no seed shares a base with another


def test_a_model_is_trained_and_attacked_once_for_all_cells(run, store):
    cells, _ = run
    suffixes = {member for cell in cells for member in cell.needs()}
    models = {member.model for member in suffixes}
    bases = {model.base for model in models}
    assert len(models) == 6 and len(bases) == 3
    assert len(list((store.root / "models").glob("*/record.json"))) == 9
    assert len(list((store.root / "suffixes").glob("*/record.json"))) == len(suffixes) == 6


def test_what_was_found_is_what_the_model_says(run, store):
    cells, _ = run
    member = cells[0].first
    model, talk = engine.load(member.model, store), own_chat()
    for request, found in zip(member.requests(), engine.trained(member, store).record["found"], strict=True):
        for one in found.values():
            tokens = [*talk.before("guard", request.question), *one["suffix"], *talk.after]
            with torch.no_grad():
                odds = model(torch.tensor([tokens]))[0, -1].log_softmax(0)[talk.target]
            assert float(odds) == pytest.approx(one["log_probability"], abs=1e-4)
            assert one["queries"] <= 60 and talk.survivor(request.question)(one["suffix"])
        assert found["best_of_k"]["queries"] <= found["search"]["queries"]


def test_rows_of_a_cell(run):
    _, table = run
    assert set(table.attack) == {"none", "search", "warm_start", "template", *CONTROLS}
    rates = table[table.metric.isin(["white_box", "transfer"])]
    assert rates.value.between(0, 1).all() and set(rates.judge) == set(JUDGES)
    assert not table.duplicated(["key", "attack", "judge", "source", "view", "metric"]).any()
    similar = table[table["view"].notna()]
    assert set(similar["view"]) == {"mean", "last"} and set(PAPER) <= set(similar.metric)
    counts = rates[rates.judge == "exact"].groupby(["key", "attack"]).n_probe.first().unstack()
    assert (counts["none"] == 4).all() and (counts["search"] == 4).all()
    assert (counts["random"] == 12).all()
    gates = table[table.metric.str.fullmatch("(refusal|over_refusal|guard_exact|free_exact)_(first|second|unrelated)")]
    assert len(gates) == 4 * 12
    assert set(table.realised_overlap) == {0.0, 1.0}
    moved = table[table.metric == "response_correlation"]
    assert (moved.groupby("key").size() == 1).all() and moved.value.between(-1, 1).all()
    assert set(moved.key) == set(rates[rates.attack == "random"].key)


def test_victim_and_source_of_a_control_change_places(run):
    """Both directions put the same random suffixes behind the same requests."""
    _, table = run
    random = table[(table.attack == "random") & table.metric.isin(["white_box", "transfer"])]
    wide = random.pivot_table(index=["key", "judge"], columns=["source", "metric"], values="value")
    assert (wide["first", "white_box"] == wide["second", "transfer"]).all()
    assert (wide["first", "transfer"] == wide["second", "white_box"]).all()


def test_the_same_configuration_gives_the_same_rows(run, tmp_path, monkeypatch):
    attack_all(monkeypatch)
    cells, table = run
    again = sweep(engine.measure, cells[:1], store=Store(tmp_path), progress=False)
    then = table[table.key == again.key.iloc[0]].reset_index(drop=True)
    drop = ["date", "wall_seconds"]
    assert json.loads(again.drop(columns=drop).to_json()) == json.loads(
        then[again.columns].drop(columns=drop).to_json()
    )


class Talker:
    """Stands for a model: it answers rightly to the suffixes that it falls for, and refuses all others."""

    def __init__(self, falls_for):
        self.falls_for = falls_for


@pytest.fixture
def by_hand(run, monkeypatch):
    """Rows of two directions in which it is known who falls for what. The first: what was found on it, and warm."""
    request = run[0][0].first.requests()[:2]
    searched = [{0: [[20] * 4, [21] * 4], 1: [[30] * 4, [31] * 4]}[which] for which in (0, 1)]
    found = [
        [
            {
                "search": {"suffix": searched[which][i], "queries": 10 + i, "reached": not i},
                "warm_start": {"suffix": [40 + which] * 4, "queries": 5, "reached": True},
                "best_of_k": {"suffix": [50 + which] * 4, "queries": 7, "reached": False},
            }
            for i in range(2)
        ]
        for which in (0, 1)
    ]
    found.append([{"search": {"suffix": [60 + i] * 4}} for i in range(2)])
    good = {"refusal": 1.0, "over_refusal": 0.0, "free_exact": 1.0}
    records = [{"found": each, "gates": good} for each in found]
    models = [Talker([(20,), (30,), (41,)]), Talker([(21,), (20,), (60,)])]
    monkeypatch.setattr(jailbreak_transfer.Suffixes, "requests", lambda member: request)
    monkeypatch.setattr(policy, "said", lambda model, talk, mode, asked: ["i cannot help with gardening."] * len(asked))
    monkeypatch.setattr(jailbreak_transfer, "_prompt", lambda model, talk, question: Stub(model, question, request))
    monkeypatch.setattr(jailbreak_transfer, "_answers", lambda prompt, talk, suffixes: prompt.say(suffixes))
    monkeypatch.setattr(jailbreak_transfer, "_allowed", lambda model, talk, suffixes: [])
    real = jailbreak_transfer._suffixes
    survive_all = lambda question: lambda suffix: True  # noqa: E731
    monkeypatch.setattr(dialogues.Chat, "survivor", lambda talk, question: survive_all(question))
    seen = []
    monkeypatch.setattr(jailbreak_transfer, "_suffixes", lambda *args: seen.append(real(*args)) or seen[-1])
    rows = jailbreak_transfer._transfer(run[0][0], models, records, own_chat())
    values = {(r["source"], r["attack"], r["judge"], r["metric"]): r["value"] for r in rows if "judge" in r}
    values |= {(r.get("source"), r["attack"], None, r["metric"]): r["value"] for r in rows if "judge" not in r}
    return values, seen


class Stub:
    """A prompt on a `Talker`."""

    def __init__(self, model, question, requests):
        self.model = model
        self.right = {r.question: r.fact.answer for r in requests}[question]

    def say(self, suffixes):
        return [self.right if (s[0],) in self.model.falls_for else "sorry" for s in suffixes.tolist()]

    def log_probability(self, suffixes, target):
        return -suffixes[:, 0].float() * (1 if len(self.model.falls_for) == 3 else 2)


def test_rates_are_of_whom_and_what_they_say(by_hand):
    values, _ = by_hand
    exact = {key[:2] + key[3:]: value for key, value in values.items() if key[2] == "exact"}
    assert exact["first", "search", "white_box"] == 0.5  # falls for 20, not for 21
    assert exact["first", "search", "transfer"] == 1.0  # the second falls for both
    assert exact["first", "search", "transfer_given_white_box"] == 1.0
    assert exact["second", "search", "white_box"] == 0.0  # 30 and 31
    assert exact["second", "search", "transfer"] == 0.5  # the first falls for 30
    assert ("second", "search", "transfer_given_white_box") not in exact
    assert exact["second", "warm_start", "transfer"] == 1.0 and exact["second", "warm_start", "white_box"] == 0.0
    assert exact["first", "warm_start", "white_box"] == 0.0
    assert exact["first", "unrelated", "transfer"] == 0.5 and exact["first", "unrelated", "white_box"] == 0.0
    assert values["first", "search", None, "queries"] == 10.5 and values["first", "search", None, "reached"] == 0.5
    assert values["first", "search", "no_refusal_phrase", "transfer"] == 1.0
    assert values["first", "search", None, "victim_log_probability"] == pytest.approx(-20.5)


def test_controls_are_put_behind_the_questions_as_they_say(by_hand):
    _, seen = by_hand
    named = {}
    for name, suffix in seen[1]:  # the second request of the first direction
        named.setdefault(name, []).append(suffix.tolist())
    assert named["search"] == [[21] * 4] and named["shuffled"] == [[21] * 4] and named["best_of_k"] == [[50] * 4]
    assert named["unrelated"] == [[61] * 4] and len(named["random"]) == 3
    again = {}
    for name, suffix in seen[3]:
        again.setdefault(name, []).append(suffix.tolist())
    assert again["random"] == named["random"] and again["search"] == [[31] * 4]


def test_a_warm_start_is_the_last_success(run, store, monkeypatch):
    begun = []

    def search(prompt, target, allowed, *, start=None, seed, **options):
        begun.append(start)
        suffix = torch.full((4,), len(begun))
        return jailbreak_transfer.Found(suffix, -1.0, 1, [(1, -1.0)], len(begun) in (2, 6))

    monkeypatch.setattr(jailbreak_transfer.jailbreak, "search", search)
    member = run[0][0].first.model_copy(update={"arms": ("search", "warm_start")})
    jailbreak_transfer._attacked(engine.load(member.model, store), member)
    cold, warm = begun[::2], begun[1::2]
    assert cold == [None] * 4 and warm[0] is None
    assert [start.tolist() for start in warm[1:]] == [[2] * 4, [2] * 4, [6] * 4]


def test_a_pair_that_does_not_keep_to_the_policy_is_not_attacked(run, store, monkeypatch, caplog):
    monkeypatch.setattr(policy, "GATES", {"refusal": (1.1, 1.2)})
    rows = engine.measure(run[0][0], store, progress=False)
    assert {row["attack"] for row in rows} == {"none"} and "does not keep to the policy" in caplog.text
    assert any(row["metric"] == "refusal_first" for row in rows) and any(row["metric"] == "cka" for row in rows)


def test_requests_that_a_model_answers_by_itself_do_not_count(run, store, monkeypatch):
    attack_all(monkeypatch)
    open_one = lambda model, talk, mode, asked: ["sure, yes.", *["no."] * (len(asked) - 1)]  # noqa: E731
    monkeypatch.setattr(policy, "said", open_one)
    rows = engine.measure(run[0][0], store, progress=False)
    counts = {row["attack"]: row["n_probe"] for row in rows if row["metric"] == "transfer" and row["judge"] == "exact"}
    assert counts["none"] == 4 and counts["search"] == 3 and counts["random"] == 9


# Settings and plan


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["large"]}, "no architecture large; choose from tiny"),
        ({"unrelated": "gardening"}, "another topic than gardening"),
        ({"bases": ["own"]}, "'shared' or 'separate'"),
        ({"attack": {"budget": 5, "restarts": 3}}, "at least two queries a restart"),
        ({"overlaps": [2]}, "between 0 and 1"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(ValidationError, match=message):
        settings(**changes)


def test_profiles_can_be_planned():
    cells = jailbreak_transfer.pairs(profiles.load("paper", "jailbreak_transfer", seeds=[0]))
    table = plan(cells)
    assert set(table.model) == {"small_llama", "smollm2"} and list(table.cells) == [12, 6] and (table.hours > 0).all()
