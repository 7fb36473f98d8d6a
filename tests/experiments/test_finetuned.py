"""Fine-tuned pairs: what they read, what is kept of them, and what is measured, on a tiny base of our own."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError

from repsim_utils import metrics, profiles
from repsim_utils.datasets.cache import DataError
from repsim_utils.experiments import changes, engine, finetuned, reading
from repsim_utils.experiments.finetuned import DATASET, GRID, TASK, Settings, pairs
from repsim_utils.metrics import PAPER, PUBLISHED
from repsim_utils.models import adapters, llama
from repsim_utils.plan import plan
from repsim_utils.store import Store
from repsim_utils.sweep import sweep
from tests.words import folders

SHAPE = {"n_layer": 2, "n_head": 2, "n_kv_head": 1, "width": 16, "hidden": 32}
TUNING = {"steps": 20, "batch_size": 8, "lr": 0.02, "evaluate_every": 10, "n_validation": 8}
LORA = {"rank": 2, "alpha": 4}
N_CHUNKS = 16


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPSIM_DATA", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="module")
def six(tmp_path_factory):
    return folders(tmp_path_factory.mktemp("six"), n=6, files=16)


def settings(six, **changes):
    values = {
        "seeds": [0],
        "overlaps": [0, 1],
        "base": {"sources": six[3:5], "network": SHAPE, "recipe": TUNING},
        "corpora": six[:2],
        "divided": six[:1],
        "vocabulary": 300,
        "context": 16,
        "arms": {"small": {"lora": LORA, "n_tokens": 17 * N_CHUNKS, "n_chunks": N_CHUNKS, "recipe": TUNING}},
        "n_probe": 30,
        "n_loss": 8,
        "n_predictions": 8,
        "n_permutations": 19,
    }
    return Settings.model_validate(values | changes)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def run(six, store):
    arms = settings(six).model_dump()["arms"] | {
        "large": {"lora": LORA, "recipe": TUNING | {"steps": 4}, "n_chunks": 8},
        "all weights": {"lora": None, "n_tokens": 17 * N_CHUNKS, "n_chunks": N_CHUNKS, "recipe": TUNING},
    }
    cells = pairs(settings(six, arms=arms, floor=six[5]), DATASET)
    cells = [cell for cell in cells if cell.pairing == "overlap" or cell.architecture == "large"]  # one floor will do
    finetuned.prepare(cells)
    return cells, sweep(engine.measure, cells, store=store, progress=False)


def of(cells, **wanted):
    (cell,) = [cell for cell in cells if all(getattr(cell, name) == value for name, value in wanted.items())]
    return cell


def test_realised_overlap_is_of_what_was_really_read(run, store):
    cells, table = run
    found = {(c.architecture, c.pairing, c.overlap): c.realised_overlap(store) for c in cells}
    for arm in ("small", "all weights"):  # each chunk is one window: 160 draws of 8 leave none out
        assert found[arm, "overlap", 0.0] == 0 and found[arm, "overlap", 1.0] == 1
    assert found["large", "overlap", 0.0] == 0 and 0 < found["large", "overlap", 1.0] < 0.7
    assert found["large", "floor", 0.0] == 0
    told = table[table.pairing == "overlap"].groupby(["architecture", "overlap"]).realised_overlap.first()
    assert told.to_dict() == {(a, o): value for (a, p, o), value in found.items() if p == "overlap"}


def test_the_log_names_the_windows_that_training_took(six, tmp_path, monkeypatch):
    (cell, _) = pairs(settings(six), DATASET)
    taken = []

    def spy(streams, places, context):
        taken.append(places)
        return real(streams, places, context)

    real = finetuned.training.take
    store = Store(tmp_path)
    engine.trained(cell.first.base, store, progress=False)
    monkeypatch.setattr(finetuned.training, "take", spy)
    record = engine.trained(cell.first, store, progress=False).record
    assert record["read"] == np.concatenate(taken).tolist() and len(record["read"]) == 160
    chunks = cell.first.split().first
    assert {start for _, start in record["read"]} == set(chunks[:, 0].tolist())
    (read,) = cell.first.tokens_read(store).values()
    assert read.sum() == 17 * N_CHUNKS / 2


def test_the_base_is_kept_once_and_adapters_alone_beside_it(run, store):
    cells, _ = run
    cell = of(cells, architecture="small", pairing="overlap", overlap=0.0)
    base = cell.first.load_base(store)
    n_base = sum(weight.numel() for weight in base.parameters())
    kept = engine.trained(cell.first, store).weights()
    assert sum(weight.numel() for weight in kept.values()) == adapters.n_learned(SHAPE, 2) < n_base
    again = engine.trained(cell.first.base, store).weights()
    assert all(torch.equal(weight, again[name]) for name, weight in base.named_parameters())
    members = {member.model_dump_json() for cell in cells for member in (*cell.needs(), cell.first.base)}
    assert len(list((store.root / "models").glob("*/record.json"))) == len(members) == 3 * (1 + 2) + 1 + 1


def test_rows(run):
    cells, table = run
    assert not table.duplicated(["key", "probe", "view", "metric", "layer", "step"]).any()
    assert set(table.view) == {"full", "change", "predictions", "weights", "training"}
    assert table.value.notna().all() and set(table.probe) == {f"corpus{k}" for k in (0, 1, 3, 4, 5)}
    last = table[table.layer.isna() & (table.probe == "corpus1") & table.p_value.notna()]
    for view in ("full", "change"):
        names = last[last.view == view].groupby("key").metric.apply(list)
        assert len(names) == len(cells) and all(one == [*PAPER, *PUBLISHED.values()] for one in names)
    layers = table[table.view.isin(["full", "change"]) & table.layer.notna()].groupby(["architecture", "view"]).layer
    assert {name: set(found) for name, found in layers} == {
        (arm, view): {1} if view == "change" and arm != "all weights" else {0, 1}
        for arm in ("small", "large", "all weights")
        for view in ("full", "change")
    }  # adapters leave the embedding as it is
    assert table[table.pairing == "floor"].overlap.isna().all()
    assert set(table[table.architecture == "all weights"]["rank"].isna()) == {True}


def test_values_are_those_of_the_models(run, store):
    cells, table = run
    cell = of(cells, architecture="small", pairing="overlap", overlap=1.0)
    first, second = engine.load_pair(cell, store, progress=False)
    base = cell.first.load_base(store)
    tokens = cell.probes()["corpus1"]
    with torch.no_grad():
        b, x, y = (model.body(tokens).last_hidden_state.mean(1) for model in (base, first, second))
        logits = [model(tokens[:8]) for model in (first, second)]
        loss = torch.nn.functional.cross_entropy(first(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    rows = table[(table.architecture == "small") & (table.pairing == "overlap") & (table.overlap == 1)]
    rows = rows[rows.layer.isna() & (rows.probe == "corpus1")].set_index(["view", "metric"]).value
    assert rows["full", "cka"] == pytest.approx(metrics.similarity(x, y, ["cka"])["cka"], abs=1e-4)
    assert rows["change", "cka"] == pytest.approx(metrics.similarity(x - b, y - b, ["cka"])["cka"], abs=1e-3)
    assert rows["predictions", "symmetric_kl"] == pytest.approx(metrics.symmetric_kl(*logits), rel=1e-3)
    assert rows["predictions", "loss_first"] == pytest.approx(float(loss), abs=1e-4)
    with torch.no_grad():
        b, x, y = (model.body(tokens).last_hidden_state[:, -1] for model in (base, first, second))
    assert rows["full", "cka_last_token"] == pytest.approx(metrics.similarity(x, y, ["cka"])["cka"], abs=1e-4)
    last = metrics.similarity(x - b, y - b, ["cka"])["cka"]
    assert rows["change", "cka_last_token"] == pytest.approx(last, abs=1e-3)


def observed(states):
    return changes.Observed([states], states, torch.zeros(len(states)))


def test_unrelated_changes_are_those_of_models_that_share_only_the_base():
    rng = torch.Generator().manual_seed(0)
    base, one, two = torch.randn(3, 200, 8, generator=rng)
    first = observed(base + 0.7 * one)
    for change, related in ((two, False), (one, True)):
        after = [first, observed(base + 0.7 * change)]
        told = {row["metric"]: row["value"] for row in changes._if_unrelated([observed(base)] * 2, after, 0)}
        for name in changes.SHUFFLED:
            found = metrics.similarity(after[0].states[0], after[1].states[0], [name])[name]
            if related:
                assert told[f"{name}_unrelated"] < 0.9 < found
            else:
                assert told[f"{name}_unrelated"] == pytest.approx(found, abs=0.05)


def test_a_leading_direction_hides_the_rest():
    """Two models alike in one large direction and in nothing else."""
    rng = torch.Generator().manual_seed(0)
    base, one, two = torch.randn(3, 200, 8, generator=rng)
    base[:, 0] *= 20
    one[:, 0] = two[:, 0] = base[:, 0]
    rows = changes._read_otherwise([observed(base)] * 2, [observed(one), observed(two)])
    told = {(row["view"], row["metric"]): row["value"] for row in rows}
    assert told["full", "leading_share_base"] > 0.9
    assert told["full", "cka_unclamped"] > 0.95 and told["full", "cka_without_leading"] < 0.2
    by_hand = metrics.cka(one, two)
    assert told["full", "cka_unclamped"] == pytest.approx(by_hand, abs=1e-4)


def test_the_manipulation_took(run):
    """A model knows what it was given, and not what only the other was given."""
    _, table = run
    rows = table[(table.architecture == "small") & (table.overlap == 0)].set_index("metric").value
    for which, own, other in (("first", "first", "second"), ("second", "second", "first")):
        assert rows[f"loss_on_{own}_only_{which}"] < rows[f"loss_on_{other}_only_{which}"]
    with_all = table[(table.architecture == "small") & (table.overlap == 1)].metric
    assert "loss_on_both_first" in set(with_all) and "loss_on_first_only_first" not in set(with_all)
    assert "loss_on_neither_first" in set(with_all)


def test_a_shared_beginning(six, store):
    lora = LORA | {"shared_init": True}
    arms = {"shared": {"lora": lora, "n_tokens": 17 * N_CHUNKS, "n_chunks": N_CHUNKS, "recipe": TUNING}}
    for cells, alike in ((pairs(settings(six, arms=arms), GRID), True), (pairs(settings(six), GRID), False)):
        first, second = (member.build(store) for member in cells[0].needs())
        a, b = (next(w for n, w in adapters.learned(model).items() if "lora_A" in n) for model in (first, second))
        assert torch.equal(a, b) == alike
        assert cells[0].first.own_seed != cells[0].second.own_seed


def test_two_bases(six, store):
    """What changed is told from each model's own base; the first model is that of pairs with one base."""
    small = {"lora": LORA, "n_tokens": 17 * N_CHUNKS, "n_chunks": N_CHUNKS, "recipe": TUNING}
    arms = {"small": small, "two": small | {"two_bases": True}}
    cells = pairs(settings(six, arms=arms, overlaps=[1]), GRID)
    one, two = (of(cells, architecture=name) for name in arms)
    assert one.first == two.first and one.second.base == one.first.base != two.second.base
    bases = [member.load_base(store) for member in two.needs()]
    assert not torch.equal(*(base.body.layers[0].mlp.up_proj.weight for base in bases))
    table = sweep(engine.measure, [two], store=store, progress=False)
    told = table[table.layer.isna() & (table.probe == "corpus1")].set_index(["view", "metric"]).value
    tokens, models = two.probes()["corpus1"], engine.load_pair(two, store, progress=False)
    with torch.no_grad():
        before, after = ([model.body(tokens).last_hidden_state.mean(1) for model in some] for some in (bases, models))
        logits = [(base(tokens[:8]), model(tokens[:8])) for base, model in zip(bases, models, strict=True)]
    x, y = (new - old for old, new in zip(before, after, strict=True))
    assert told["change", "cka"] == pytest.approx(metrics.similarity(x, y, ["cka"])["cka"], abs=1e-3)
    own = [metrics.symmetric_kl(*both) for both in logits]
    found = [told["predictions", f"symmetric_kl_base_{which}"] for which in changes.WHICH]
    assert found == pytest.approx(own, rel=1e-3)


def test_task_overlap(six, store):
    arms = {"all": {"lora": LORA, "recipe": TUNING}}
    wanted = settings(six, corpora=six, divided=None, arms=arms, overlaps=[1 / 3], probe_corpora=1)
    (cell,) = pairs(wanted, TASK)
    table = sweep(engine.measure, [cell], store=store, progress=False)
    assert {reading.ALL, *reading.GROUPS} <= set(table.probe)
    assert 0 < table.realised_overlap[0] < 1 / 2
    assert {"loss_on_both_first", "loss_on_first_only_second", "loss_on_neither_second"} <= set(table.metric)


def test_workers_train_the_base_before_what_is_tuned_on_it(six, tmp_path):
    from repsim_utils import cluster

    cells = pairs(settings(six, overlaps=[1]), DATASET)
    store = Store(tmp_path / "store")
    with cluster.workers(2, None) as client:
        there = sweep(engine.measure, cells, train=engine.trained, store=store, client=client, progress=False)
    assert len(list((store.root / "models").glob("*/record.json"))) == 3
    here = sweep(engine.measure, cells, store=Store(tmp_path / "other"), progress=False)
    pd.testing.assert_series_equal(there.value, here.value, atol=1e-3, rtol=1e-3)


def test_what_cannot_be_is_told(six, monkeypatch, tmp_path):
    with pytest.raises(ValidationError, match=r"base must be one of smollm2, llama-3.2-1b-instruct"):
        settings(six, base="gpt-5")
    with pytest.raises(ValidationError, match="floor must be a corpus that is not divided"):
        settings(six, floor=six[0])
    two = {"two": {"lora": LORA, "recipe": TUNING, "two_bases": True}}
    with pytest.raises(ValidationError, match="two_bases needs a base that is pretrained here"):
        settings(six, base="smollm2", arms=two)
    with pytest.raises(ValidationError, match=r"no architecture big; choose from small"):
        settings(six, architectures=["big"])
    monkeypatch.setenv("REPSIM_DATA", str(tmp_path))
    llama.load.cache_clear()
    with pytest.raises(DataError, match="`repsim models smollm2` fetches it"):
        finetuned.prepare(pairs(settings(six, base="smollm2"), DATASET))


def test_the_plan_of_the_paper():
    """Llama-3.2 1B, 3B, 11B: parameters, and adapters of rank 32 on all seven maps."""
    for name, parameters, kept in (
        ("llama-3.2-1b-instruct", 1_235_814_400, 22_544_384),
        ("llama-3.2-3b-instruct", 3_212_749_824, 48_627_712),
        ("llama-3.2-11b-vision-instruct", 8_030_261_248, 83_886_080),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reading.Text, "fingerprint", lambda self: "")
            cells = pairs(profiles.load("paper", DATASET, base=name), DATASET)
        (row,) = plan(cells).to_dict("records")
        assert (row["cells"], row["models"], row["parameters"]) == (24, 28, parameters)
        assert row["disk_gb"] == pytest.approx(28 * kept * 4 / 1e9)
        assert json.loads(cells[0].first.model_dump_json())["text"]["tokenizer"] == "llama-3.2"
