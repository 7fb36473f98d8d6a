"""Overlap in language: what the two models of a pair read and are measured on, and tiny runs from end to end."""

import os

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError

from repsim_utils import metrics, profiles
from repsim_utils.datasets import corpora, text
from repsim_utils.datasets.cache import DataError
from repsim_utils.experiments import engine, language, reading
from repsim_utils.experiments.language import DATASET, TASK, Settings, pairs, prepare
from repsim_utils.experiments.reading import ALL, GROUPS
from repsim_utils.metrics import PAPER, PUBLISHED
from repsim_utils.plan import cost, plan
from repsim_utils.published import published as theirs
from repsim_utils.store import Store, key
from repsim_utils.sweep import sweep
from tests.datasets.test_corpora import COLUMNS, place
from tests.words import NETWORK, RECIPE, end_last, folder, folders, sentences

SIX = [0, 1 / 3, 2 / 3, 1]


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("data")
        patch.setenv("REPSIM_DATA", str(root))
        yield root


@pytest.fixture(scope="module")
def six(tmp_path_factory):
    return folders(tmp_path_factory.mktemp("six"), n=6, files=16)


def settings(sources, **changes):
    values = {
        "seeds": [0],
        "overlaps": [0, 0.5, 1],
        "corpora": sources,
        "vocabulary": 300,
        "n_chunks": 8,
        "models": {"gpt": {"network": NETWORK, "recipe": RECIPE}},
        "n_probe": 60,
        "n_permutations": 19,
    }
    return Settings.model_validate(values | changes)


def tokens_read(stream):
    return np.concatenate([stream.tokens[a:b] for a, b in stream.chunks])


def named(config):
    return key(config.model_dump(mode="json"))


@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 1])
def test_realised_overlap_of_chunks_is_the_one_asked_for(six, overlap):
    (cell,) = pairs(settings(six, divided=six[:1], overlaps=[overlap]), DATASET)
    chunks = [{tuple(chunk) for one in member.streams() for chunk in one.chunks} for member in cell.needs()]
    assert len(chunks[0]) == len(chunks[1]) == 4
    assert len(chunks[0] & chunks[1]) / len(chunks[0]) == overlap == cell.second.split().overlap
    lengths = {b - a for some in chunks for a, b in some}
    assert len(lengths) == 1 and min(lengths) > NETWORK["context"]


@pytest.mark.parametrize("overlap", SIX)
def test_realised_overlap_of_corpora_is_the_one_asked_for(six, overlap):
    (cell,) = pairs(settings(six, overlaps=[overlap]), TASK)
    read = [[tokens_read(stream).tobytes() for stream in member.streams()] for member in cell.needs()]
    assert len(read[0]) == len(read[1]) == 3
    assert len(set(read[0]) & set(read[1])) / 3 == pytest.approx(overlap) == pytest.approx(cell.second.split().overlap)


@pytest.mark.parametrize("kind", [DATASET, TASK])
def test_no_held_out_file_is_in_a_training_set(six, kind):
    """Of text, not of tokens: every word of these files is drawn, so a sentence tells where it comes from."""
    for cell in pairs(settings(six), kind):
        decode = reading.library(cell.first.text, cell.first.fingerprint).tokenizer.decode
        read = "".join(decode(stream.tokens.tolist()) for member in cell.needs() for stream in member.streams())
        held_out = "".join(decode(s.tokens.tolist()) for s in cell.first.held_out(cell.first.divided))
        sentences_there = [sentence.strip() for sentence in held_out.split(".") if len(sentence) > 30]
        assert len(sentences_there) > 20 and not [sentence for sentence in sentences_there if sentence in read]


def test_the_first_model_is_the_same_at_every_overlap(six):
    for kind in (DATASET, TASK):
        cells = pairs(settings(six, divided=six[:1] if kind == DATASET else None, seeds=[0, 1]), kind)
        assert len({named(cell.first) for cell in cells}) == 2 and len({named(cell.second) for cell in cells}) == 6
        assert len({named(cell) for cell in cells}) == 6


def test_groups_of_corpora_are_those_of_the_split_and_the_same_along_the_curve(six):
    for seed in range(4):
        cells = pairs(settings(six, seeds=[seed], overlaps=SIX), TASK)
        fixed = {}
        for cell, common in zip(cells, range(4), strict=True):
            parts = cell.second.split()
            groups = cell.groups()
            assert set(groups["common_corpora"]) == set(parts.first) & set(parts.second)
            assert set(groups["corpora_seen_by_one"]) == set(parts.first) ^ set(parts.second)
            assert set(groups["corpora_seen_by_none"]) == set(six) - set(parts.first) - set(parts.second)
            assert [len(groups[name]) for name in GROUPS] == [common, 6 - 2 * common, common]
            for name, some in cell.groups(1).items():
                assert set(some) <= set(groups[name]) and len(some) == {0: 0}.get(
                    len(groups[name]), 2 if name == "corpora_seen_by_one" else 1
                )
                if some:
                    assert fixed.setdefault(name, some) == some
            one = cell.groups(1)["corpora_seen_by_one"]
            assert not one or sorted(name in parts.first for name in one) == [False, True]


def test_probes(six):
    cell = pairs(settings(six, divided=six[:1]), DATASET)[0]
    found = cell.probes()
    assert list(found) == [f"corpus{k}" for k in range(6)]
    cells = pairs(settings(six, overlaps=SIX, probe_corpora=1), TASK)
    every = {ALL, *GROUPS, *(f"{name}_all" for name in GROUPS)}
    for cell, missing in zip(cells, (("common", "none"), (), (), ("by_one",)), strict=True):
        found = cell.probes()
        assert set(found) == {name for name in every if not any(word in name for word in missing)}
        assert all(rows.shape == (len(rows), NETWORK["context"]) and 50 <= len(rows) <= 60 for rows in found.values())
    assert set(pairs(settings(six, overlaps=[1]), TASK)[0].probes()) == {ALL, GROUPS[0], GROUPS[2]}


@pytest.mark.parametrize("kind", [DATASET, TASK])
def test_each_loss_is_of_the_text_that_it_names(six, kind, tmp_path, monkeypatch):
    def within(rows, streams):
        chunks = [stream.tokens[a:b].tobytes() for stream in streams for a, b in stream.chunks]
        return [any(row.numpy().astype(np.uint16).tobytes() in chunk for chunk in chunks) for row in rows]

    def train(model, read, held_out, recipe, **options):
        seen.append(held_out)
        raise KeyboardInterrupt

    seen = []
    monkeypatch.setattr(language, "evaluate", lambda model, rows: seen.append(rows))
    monkeypatch.setattr(language, "train", train)
    (cell,) = pairs(settings(six, overlaps=[0.5 if kind == DATASET else 1 / 3]), kind)[:1]
    for member, other in (cell.needs(), cell.needs()[::-1]):
        seen.clear()
        assert list(cell.losses(member, None)) == ["loss_own", "loss_other", "loss_held_out"]
        with pytest.raises(KeyboardInterrupt):
            engine.trained(member, Store(tmp_path), progress=False)
        of_own, of_other, of_held_out, in_training = seen
        own, others = member.streams(), other.streams()
        assert all(within(of_own, own)) and all(within(of_other, others)) and not any(within(of_other, own))
        for rows in (of_held_out, in_training):
            assert all(within(rows, member.held_out()))
            assert not any(within(rows, [*own, *others]))
        assert min(map(len, seen)) >= 6


def test_a_probe_of_too_few_windows_is_left_out_with_a_warning(tmp_path, six, caplog):
    short = folder(tmp_path, "short", seed=9, files=4, n=2)
    cell = pairs(settings([six[0], str(short)], divided=six[:1]), DATASET)[0]
    assert list(cell.probes()) == ["corpus0"]
    assert "probe short is left out: it has" in caplog.text


class TestTinyRun:
    @pytest.fixture(scope="class", params=[DATASET, TASK])
    @classmethod
    def run(cls, request, tmp_path_factory, six):
        changes = {"divided": six[:1]} if request.param == DATASET else {"overlaps": SIX, "probe_corpora": 1}
        cells, store = pairs(settings(six, **changes), request.param), Store(tmp_path_factory.mktemp("store"))
        return cells, sweep(engine.measure, cells, store=store, progress=False), store

    def test_every_metric_on_every_probe_and_layer(self, run):
        cells, table, _ = run
        for cell in cells:
            rows = table[table.key == named(cell)]
            last = rows[rows.null_mean.notna()]
            earlier = rows[rows.layer.notna()]
            for name, tokens in cell.probes().items():
                one = last[last.probe == name]
                assert list(one.metric) == [*PAPER, *PUBLISHED.values()] and set(one.n_probe) == {len(tokens)}
                assert (one.layer.isna() & one.step.isna() & one.value.notna() & one.p_value.between(0, 1)).all()
                assert earlier[earlier.probe == name].groupby("layer").metric.apply(list).to_dict() == {
                    layer: list(PAPER) for layer in range(NETWORK["n_layer"])
                }
        assert not table.duplicated(["key", "probe", "metric", "layer", "step"]).any()
        assert set(table.fingerprint) == {cells[0].first.fingerprint}

    def test_values_are_those_of_the_two_models(self, run):
        cells, table, store = run
        first, second = engine.load_pair(cells[-1], store, progress=False)
        name, tokens = next(iter(cells[-1].probes().items()))
        with torch.no_grad():
            x, y = (model.body(tokens).last_hidden_state.mean(1) for model in (first, second))
        wanted = metrics.similarity(x, y, ["cka"])["cka"]
        rows = table[(table.key == named(cells[-1])) & (table.probe == name) & (table.metric == "cka")]
        assert rows[rows.layer.isna()].value.item() == pytest.approx(wanted, abs=1e-4)

    def test_losses_and_curves(self, run):
        cells, table, store = run
        for cell in cells:
            rows = table[(table.key == named(cell)) & table.metric.str.contains("loss|curve")]
            curves = rows[rows.step.notna()]
            assert curves.groupby("metric").step.apply(list).to_dict() == {
                f"{part}_curve_{which}": [2, 3] for part in ("train", "validation") for which in ("first", "second")
            }
            finals = rows[rows.step.isna()].set_index("metric").value
            other = {"loss_other_first", "loss_other_second"} & set(finals.index)
            assert len(other) == (0 if cell.overlap == 1 else 2)
            assert len(finals) == 4 + len(other) and finals.between(4, 7).all()
            last = curves[(curves.metric == "validation_curve_second") & (curves.step == 3)].value.item()
            kept = engine.trained(cell.second, store, progress=False).record["curve"][-1]["validation"]
            assert last == pytest.approx(kept)

    def test_it_is_all_in_the_store(self, run, monkeypatch):
        cells, table, store = run
        monkeypatch.setattr(language, "train", None)
        again = sweep(engine.measure, cells, store=store, progress=False)
        pd.testing.assert_frame_equal(again, table)


def test_the_two_models_of_a_pair_begin_apart_and_read_in_another_order(six, tmp_path, monkeypatch):
    """Even with everything in common."""
    (cell,) = pairs(settings(six, divided=six[:1], overlaps=[1]), DATASET)
    seeds, begun = [], []

    def spy(model, read, held_out, recipe, *, seed, progress):
        seeds.append(seed)
        begun.append(model.body.wte.weight.detach().clone())
        return language.training.train(model, read, held_out, recipe, seed=seed, progress=progress)

    monkeypatch.setattr(language, "train", spy)
    engine.load_pair(cell, Store(tmp_path), progress=False)
    assert len(set(seeds)) == 2 and not torch.equal(*begun)


def test_text_that_changes_while_a_run_goes_on_stops_it(tmp_path, monkeypatch):
    source = folder(tmp_path, "own", seed=3, files=16)
    (cell,) = pairs(settings([str(source)], overlaps=[0]), DATASET)
    (source / "0.txt").write_text("\n\n".join(sentences(991, 12)))
    with pytest.raises(DataError, match="has changed since this run began; run it again"):
        engine.trained(cell.first, Store(tmp_path / "store"), progress=False)


def test_what_is_too_small_is_told_before_training(tmp_path):
    little = str(folder(tmp_path, "little", seed=4, files=3, n=2))
    with pytest.raises(DataError, match=r"little is too small to be divided: .* shorter than min_length = 17"):
        prepare(pairs(settings([little], n_chunks=80), DATASET))
    with pytest.raises(DataError, match="little is too small: its held-out part has fewer than 30 windows of 16 tok"):
        prepare(pairs(settings([little], n_chunks=2), DATASET))
    tiny = [str(folder(tmp_path, f"tiny{k}", seed=5 + k, files=2, n=1)) for k in range(2)]
    network = NETWORK | {"context": 400}
    with pytest.raises(DataError, match=r"is too small: .* tokens are fewer than a window has"):
        prepare(pairs(settings(tiny, models={"gpt": {"network": network, "recipe": RECIPE}}), TASK))


@pytest.mark.parametrize("n", [2, 4, 6])
def test_any_even_number_of_corpora_is_ready_to_be_divided(six, n):
    prepare(pairs(settings(six[:n], overlaps=[0, 1]), TASK))


def test_settings_say_what_is_wrong(six, tmp_path):
    with pytest.raises(ValueError, match="names must be an even number of different corpora"):
        pairs(settings(six[:5]), TASK)
    with pytest.raises(ValidationError, match="there are two corpus0"):
        settings([six[0], str(folder(tmp_path, "corpus0", seed=1))])
    with pytest.raises(ValidationError, match="width must be a multiple of n_head = 3"):
        settings(six, models={"gpt": {"network": NETWORK | {"n_head": 3}, "recipe": RECIPE}})
    with pytest.raises(ValidationError, match="there are two corpus0"):
        settings(six, divided=[six[0], six[0]])
    with pytest.raises(ValidationError):
        settings(six, divided=[])
    with pytest.raises(ValidationError, match="no architecture gru; choose from gpt"):
        settings(six, architectures=["gru"])
    with pytest.raises(ValidationError, match="multiple of 2"):
        settings(six, n_chunks=3)
    with pytest.raises(DataError, match=r"there is no folder .*nowhere; corpora known by name are python"):
        pairs(settings([str(tmp_path / "nowhere")]), DATASET)


def test_a_folder_has_one_spelling(six, monkeypatch):
    monkeypatch.chdir(os.path.dirname(six[0]))
    assert settings(["corpus0"]).corpora == (six[0],) == settings("corpus0").corpora
    assert settings(["python"], divided="corpus0").text.sources == ("python", six[0])


# As published


@pytest.fixture
def stand_ins(data):
    """For each data set of the hub, a file in its own columns; and for GPT-2's tokenizer one of the same kind."""
    for k, name in enumerate(COLUMNS):
        if not (data / "hub" / name).is_dir():
            texts = ["\n\n".join(sentences(50 * k + i, 6)) for i in range(40)]
            if name == "wikitext":
                texts = [line for i, one in enumerate(texts) for line in (f" = Title {i} = \n", f" {one} \n")]
            place(data, name, texts)
    tokenizer = text.trained(["\n".join(sentences(k, 40)) for k in range(20)], 600)
    tokenizer = end_last(tokenizer)
    (data / "hub" / "gpt2").mkdir(exist_ok=True)
    (data / "hub" / "gpt2" / "tokenizer.json").write_text(tokenizer.to_str())


@pytest.mark.parametrize("kind", [DATASET, TASK])
def test_the_whole_pipeline_of_the_paper_profile_on_stand_ins(kind, stand_ins, tmp_path, monkeypatch):
    """All of it but the sizes: its corpora in their columns, GPT-2's tokens, its overlaps and probes."""
    monkeypatch.setitem(text.READY, "gpt2", text.READY["gpt2"]._replace(size=600, mark_id=599))
    paper = profiles.load("paper", kind)
    assert set(paper.corpora) <= set(corpora.HUB) and paper.tokenizer == "gpt2"
    (name, model), *_ = paper.models.items()
    small = {"network": model.network.model_dump() | NETWORK, "recipe": model.recipe.model_dump() | RECIPE}
    changes = {"models": {name: small}, "seeds": [0], "n_probe": 60, "n_permutations": 19, "n_chunks": 8}
    cells = pairs(profiles.load("paper", kind, **changes), kind)
    prepare(cells)
    table = sweep(engine.measure, cells, store=Store(tmp_path), progress=False)
    published = theirs(kind)
    assert table.key.nunique() == len(cells) == (2 * 6 if kind == DATASET else 4)
    assert set(published.probe) <= set(table.probe)
    assert kind == TASK or set(table.dataset) == set(published.dataset)
    assert table.value[table.metric == "cka"].notna().all()


def test_the_plan_of_the_paper():
    """Two corpora, six seeds, six overlaps: 72 cells, 84 models; six corpora, four overlaps: 24 and 30."""
    for kind, n_cells, n_models, parameters, steps in (
        (DATASET, 72, 84, 30_044_544, 10_000),
        (TASK, 24, 30, 123_849_984, 20_000),
    ):
        cells = pairs(profiles.load("paper", kind), kind)
        table = plan(cells)
        assert table.cells.sum() == len(cells) == n_cells and table.models.sum() == n_models
        assert set(table.parameters) == {parameters} and set(table.samples) == {steps * 256}
        per_token = 2 * parameters  # a multiplication and an addition for each weight; attention comes on top
        assert (table.gflops * 1e9 / 256).between(0.98 * per_token, 1.25 * per_token).all()
        flops = table.gflops.iloc[0] * 1e9
        assert table.pflops.sum() == pytest.approx(3 * flops * steps * 256 * n_models / 1e15)


def test_operations_of_a_network_by_hand():
    """Products of a block, attention's two, and the logits; embeddings are looked up."""
    v, n_layer, width, t = 100, 2, 16, 8
    _, flops = cost(t, vocabulary=v, n_layer=n_layer, n_head=2, width=width, context=t)
    block = 2 * t * (3 * width**2 + width**2 + 8 * width**2) + 2 * 2 * t * t * width
    assert flops == n_layer * block + 2 * t * width * v
