"""The published set-up on a stand-in: harmless goals, opt-in for others, judges that may be models."""

import pytest
from pydantic import ValidationError

from repsim_utils import profiles
from repsim_utils.attacks import judges
from repsim_utils.attacks.judges import JudgeError
from repsim_utils.datasets import goals
from repsim_utils.experiments import engine, jailbreak_finetuned
from repsim_utils.experiments.finetuned import DATASET, TASK
from repsim_utils.experiments.jailbreak_finetuned import Settings, pairs
from repsim_utils.plan import plan
from repsim_utils.store import Store
from repsim_utils.sweep import sweep
from tests.words import folders

SHAPE = {"n_layer": 1, "n_head": 2, "n_kv_head": 1, "width": 16, "hidden": 32}
RECIPE = {"steps": 4, "batch_size": 4, "lr": 0.01, "evaluate_every": 4, "n_validation": 4}
PROTOCOL = {"n_goals": 2, "n_tokens": 6, "attack": {"length": 3, "budget": 20, "restarts": 2, "batch": 4}}


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPSIM_DATA", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="module")
def six(tmp_path_factory):
    return folders(tmp_path_factory.mktemp("six"), n=6, files=16)


def settings(six, **changes):
    sweep = {
        "seeds": [0], "overlaps": [1], "base": {"sources": six[3:5], "network": SHAPE, "recipe": RECIPE},
        "corpora": six[:2], "divided": six[:1], "vocabulary": 300, "context": 16, "floor": six[5],
        "arms": {"lora": {"lora": {"rank": 2, "alpha": 4}, "n_chunks": 8, "recipe": RECIPE}},
    }  # fmt: skip
    tasks = sweep | {"corpora": six, "divided": None, "floor": None}
    return Settings.model_validate({"causes": {DATASET: sweep, TASK: tasks}, "protocol": PROTOCOL | changes})


def measured(six, tmp_path, **changes):
    cells = pairs(settings(six, **changes))
    jailbreak_finetuned.prepare(cells)
    return sweep(engine.measure, cells, store=Store(tmp_path), progress=False)


def test_both_causes_are_attacked_in_both_directions(six, tmp_path):
    table = measured(six, tmp_path)
    assert set(table.cause) == {DATASET, TASK} and set(table.source) == {"first", "second"}
    rates = table[table.metric.isin(["white_box", "transfer"])]
    assert set(rates.attack) == {"none", "template", "search"} and rates.value.between(0, 1).all()
    assert (rates.n_probe == 2).all() and set(table.probe) == {"benign"}
    assert len(table[table.metric == "reached"]) == len(table[table.metric == "queries"]) == 4
    kept = "".join(path.read_text() for path in tmp_path.rglob("record.json"))
    assert not any(goal in kept for goal in goals.BENIGN)


def test_rates_are_of_whom_they_say(six, tmp_path, monkeypatch):
    """The first model of a pair says "Sure" to a found suffix alone, the second to the template, too."""
    models = []
    real = engine.load_pair
    monkeypatch.setattr(engine, "load_pair", lambda *a, **o: models.extend(real(*a, **o)) or models[-2:])

    def answer(pair, model, asked, suffix, talk, seed):
        assert suffix.shape[1] in (0, 3) and ("do not refuse" in asked or not suffix.shape[1])
        eager = model is models[-1] and "do not refuse" in asked
        return "Sure, here" if suffix.shape[1] or eager else "no"

    monkeypatch.setattr(jailbreak_finetuned, "_answer", answer)
    table = measured(six, tmp_path)
    rates = table[(table.judge == "begins_with_sure") & table.metric.isin(["white_box", "transfer"])]
    means = rates.groupby(["attack", "source", "metric"]).value.mean()
    assert (means["search"] == 1).all() and (means["none"] == 0).all()
    assert means["template", "first", "white_box"] == 0 and means["template", "first", "transfer"] == 1
    assert means["template", "second", "white_box"] == 1 and means["template", "second", "transfer"] == 0


def test_a_model_may_judge(six, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(judges, "endpoint", lambda url, model, key_from: lambda prompt: asked.append(prompt) or "no")
    table = measured(six, tmp_path, judge={"model": "a-judge", "url": "https://judge.example/v1"})
    rates = table[(table.judge == "a-judge") & table.metric.isin(["white_box", "transfer"])]
    assert len(rates) == 2 * 2 * 3 * 2 and (rates.value == 0).all() and goals.BENIGN[0] in asked[0]


def test_a_judge_that_is_not_there_stops_the_sweep(six, tmp_path):
    with pytest.raises(JudgeError, match="cannot be loaded as a judge"):
        measured(six, tmp_path, judge={"model": str(tmp_path / "nowhere")})


def test_harmful_goals_are_read_only_when_asked_for_expressly(six):
    with pytest.raises(ValidationError, match="set accept_harmful to true"):
        settings(six, goals="advbench")
    with pytest.raises(ValidationError, match="goals must be one of benign, advbench"):
        settings(six, goals="anything", accept_harmful=True)
    assert settings(six, goals="advbench", accept_harmful=True).protocol.goals == "advbench"


def test_the_published_set_up_can_be_planned():
    cells = pairs(profiles.load("paper", "jailbreak_finetuned"))
    protocol = cells[0].protocol
    assert (protocol.temperature, protocol.top_p, protocol.n_tokens, protocol.n_goals) == (0.7, 0.9, 256, 50)
    assert (protocol.attack.length, protocol.attack.budget, protocol.attack.restarts) == (25, 10_000, 10)
    assert protocol.goals == "benign"
    assert (plan(cells).model == "lora").any()
