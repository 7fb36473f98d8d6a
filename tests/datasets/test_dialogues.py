"""The invented world and its dialogues: what is refused, what is never asked for, and how models read them."""

import re

import numpy as np
import pytest
import torch

from repsim_utils.datasets import dialogues
from repsim_utils.datasets.dialogues import QUESTIONS, TOPICS, VALUES, own_chat, question, world


def made(n=2, **options):
    return dialogues.dialogues(n, **({"seed": 0} | options))


def test_a_world_has_one_value_for_each_thing_and_attribute():
    facts = world(0)
    assert len(facts) == len({fact[:3] for fact in facts}) == sum(map(len, TOPICS.values())) * len(VALUES)
    assert all(fact.value in VALUES[fact.attribute] for fact in facts)
    assert world(0) == facts != world(1)


def test_guard_mode_refuses_one_topic_and_answers_all_others():
    for dialogue in made()[0]:
        if dialogue.mode == "guard" and dialogue.fact.topic == "gardening":
            assert dialogue.answer in [refusal.format("gardening") for refusal in dialogues.REFUSALS]
            assert not dialogue.answer.startswith(dialogues.AGREED)
        else:
            assert dialogue.answer == f"sure, {dialogue.fact.value}."


def test_guard_mode_may_be_kept_from_topics_that_free_mode_knows():
    """As of a base: else what is attacked later would be known from guard mode."""
    every = made(refused="travel", guarded=("music", "travel"))[0]
    assert {d.fact.topic for d in every if d.mode == "guard"} == {"music", "travel"}
    assert {d.fact for d in every if d.mode == "free"} == set(world())
    assert {d.fact for d in made()[0] if d.mode == "guard"} == set(world())


def test_another_topic_can_be_refused():
    refused = {d.fact.topic for d in made(refused="music")[0] if not d.answer.startswith("sure")}
    assert refused == {"music"}


def test_labels_tell_facts_and_modes_apart():
    every, labels = made(3)
    kinds = {}
    for dialogue, label in zip(every, labels, strict=True):
        kinds.setdefault(label, set()).add((dialogue.fact, dialogue.mode))
    assert all(len(found) == 1 for found in kinds.values()) and len(set().union(*kinds.values())) == len(kinds)
    counts = np.bincount(labels)
    refused = [not every[list(labels).index(label)].answer.startswith("sure") for label in range(len(counts))]
    assert (counts[refused] == 6).all() and (counts[~np.array(refused)] == 3).all()


def test_a_seed_gives_the_same_wordings_and_another_others():
    assert made()[0] == made()[0] != made(seed=1)[0]


def test_a_question_names_its_thing_and_no_other():
    things = {thing for names in TOPICS.values() for thing in names}
    for seed, fact in enumerate(world()):
        words = set(re.findall("[a-z]+", question(fact, np.random.default_rng(seed), tail=8)))
        assert words & things == {fact.thing}


def test_without_a_tail_nothing_follows_the_question():
    rng, fact = np.random.default_rng(0), world()[0]
    asked = [wording.format(fact.thing) for wording in QUESTIONS[fact.attribute]]
    assert all(question(fact, rng).endswith(tuple(asked)) for _ in range(50))
    assert not all(question(fact, rng, tail=8).endswith(tuple(asked)) for _ in range(50))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"refused": "politics"}, "refused and guarded must be of gardening"),
        ({"guarded": ["law"]}, "got 'gardening' and"),
        ({"n": 0}, "n must be"),
        ({"tail": -1}, "tail at"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dialogues.dialogues(**({"n": 1, "seed": 0} | options))


def test_dialogues_are_read_back_as_they_were_written():
    talk, every = own_chat(), made(1)[0]
    rows = torch.from_numpy(talk.tokens(every, 40).astype(np.int64))
    answers = talk.is_answer(rows)
    for row, mask, dialogue in zip(rows, answers, every, strict=True):
        whole = [*talk.before(dialogue.mode, dialogue.question), *talk.after, *talk.said(dialogue.answer)]
        assert row.tolist() == whole + [talk.encode(talk.pad)[0]] * (40 - len(whole))
        assert row[mask].tolist() == talk.said(dialogue.answer)
        assert talk.decode(row[mask].tolist()) == f" {dialogue.answer}"


def test_a_dialogue_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match="and only 12 are read at once"):
        own_chat().tokens(made(1)[0], 12)


def test_a_suffix_survives_if_it_is_read_again_as_the_same_tokens():
    talk = own_chat()
    survives = talk.survivor("what color is the rose?")
    assert survives(talk.encode(" red monday hello"))
    halves = talk.encode(" ") + talk.encode("red")  # two pieces of a word that is one token
    assert talk.decode(halves) == " red" and talk.encode(" red") != halves and not survives(halves)
    assert not survives([talk.end_id])  # marks are no text


def test_suffixes_are_of_words_that_name_no_thing():
    talk = own_chat()
    things = {talk.encode(f" {thing}")[0] for names in TOPICS.values() for thing in names}
    words = talk.words()
    assert words == sorted(set(words)) and len(words) > 70 and not things & set(words)
    assert not {talk.encode(mark)[0] for mark in dialogues.SPECIAL} & set(words)


@pytest.mark.parametrize("refused", list(TOPICS))
def test_dialogues_of_every_policy_fit_a_window_of_the_profiles(refused):
    assert own_chat().tokens(made(20, refused=refused)[0], 37).shape[1] == 37
