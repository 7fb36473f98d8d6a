"""Task-only overlap: its pairs, its seeds, and a tiny run from end to end."""

import shutil

import pandas as pd
import pytest
import torch
from pydantic import ValidationError

from repsim_utils.experiments import engine, samples, vision
from repsim_utils.experiments.task_only import Settings, pairs
from repsim_utils.metrics import PAPER, PUBLISHED
from repsim_utils.store import Store, key
from repsim_utils.sweep import sweep

TINY = {
    "seeds": (0,),
    "overlaps": (1, 2, 3),
    "data": {"n_train": 1, "n_probe": 1, "size": 16},
    "model": {"name": "small_resnet", "width": 4},
    "recipe": {"epochs": 1, "batch_size": 128, "lr": 0.1, "peak_epoch": 0.5},
}


def settings(**changes):
    return Settings.model_validate(TINY | changes)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A store with a finished tiny run, its table, and the seeds and weights that its models began with."""
    store, begun, train = Store(tmp_path_factory.mktemp("store")), [], vision.train

    def spy(model, images, labels, recipe, *, seed, progress):
        begun.append((seed, model.body[0].weight.detach().clone()))
        return train(model, images, labels, recipe, seed=seed, progress=progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vision, "train", spy)
        table = sweep(engine.measure, pairs(settings()), store=store, progress=False)
    return store, table, begun


def test_the_five_pairs_of_the_paper():
    assert [(pair.overlap, pair.name) for pair in pairs(settings())] == [
        (1, "shape | digit"),
        (2, "shape+digit | shape+color"),
        (2, "shape+digit | digit+color"),
        (2, "shape+color | digit+color"),
        (3, "shape+digit+color | shape+digit+color"),
    ]


def test_the_level_is_the_number_of_factors_in_common_plus_one():
    for pair in pairs(settings()):
        common = set(pair.first.factors) & set(pair.second.factors)
        assert pair.overlap == {0: 1, 1: 2, 3: 3}[len(common)]


def test_every_seed_has_every_pair():
    cells = pairs(settings(seeds=(3, 5), overlaps=(3, 1)))
    assert [(pair.first.seed, pair.overlap) for pair in cells] == [(3, 3), (3, 1), (5, 3), (5, 1)]
    assert all(pair.first.seed == pair.second.seed for pair in cells)
    assert len({key(pair.model_dump(mode="json")) for pair in cells}) == 4


def test_every_model_is_trained_once_from_its_own_seed(swept):
    """Seven models for ten places in five pairs; no two begin with the same weights or batches."""
    begun = swept[2]
    assert len(begun) == len({seed for seed, _ in begun}) == 7
    weights = [tuple(weight.flatten().tolist()) for _, weight in begun]
    assert len(set(weights)) == 7


def test_own_seeds_never_repeat_over_seeds():
    members = {key(m.config()): m for pair in pairs(settings(seeds=range(30))) for m in pair.needs()}
    assert len(members) == len({member.own_seed for member in members.values()}) == 7 * 30


def test_the_table(swept):
    table = swept[1]
    metrics = [*PAPER, *PUBLISHED.values(), "accuracy_first", "accuracy_second"]
    expected = [(p.overlap, p.columns(swept[0])["pair"], metric) for p in pairs(settings()) for metric in metrics]
    assert list(table[["overlap", "pair", "metric"]].itertuples(index=False, name=None)) == expected
    assert {
        "experiment", "key", "dataset", "architecture", "overlap", "seed", "probe", "n_probe", "metric", "value",
        "version", "date", "wall_seconds", "pair", "null_mean", "null_quantile", "p_value", "calibrated",
        "above_chance",
    } == set(table)  # fmt: skip
    similarities = table[~table.metric.str.startswith("accuracy")]
    assert similarities.notna().all().all() and similarities.p_value.between(1 / 201, 1).all()
    assert table.value[table.metric != "lcs_knn_published"].between(-1, 1).all()
    assert (table.value[table.metric == "cka"] > 0).all()
    assert set(table.experiment) == {"task_only"} and set(table.dataset) == set(table.probe) == {"color_shape_digit"}


def test_a_second_run_comes_from_the_store(swept, monkeypatch):
    store, table, _ = swept
    monkeypatch.setattr(vision, "build", None)
    monkeypatch.setattr(samples, "ColorShapeDigit", None)
    pd.testing.assert_frame_equal(sweep(engine.measure, pairs(settings()), store=store, progress=False), table)


def test_kept_models_give_the_same_measurements(swept, monkeypatch, tmp_path):
    store, table, _ = swept
    shutil.copytree(store.root / "models", tmp_path / "models")
    monkeypatch.setattr(vision, "train", None)
    again = sweep(engine.measure, pairs(settings()), store=Store(tmp_path), progress=False)
    pd.testing.assert_frame_equal(again.drop(columns="wall_seconds"), table.drop(columns="wall_seconds"))


def test_trained_anew_gives_the_same_measurements(swept, tmp_path):
    table = swept[1]
    again = sweep(engine.measure, pairs(settings(overlaps=(1,))), store=Store(tmp_path), progress=False)
    assert list(again.value) == list(table.value[table.overlap == 1])


def test_both_models_are_measured_on_the_same_images(swept):
    pair = pairs(settings())[0]
    (images,) = pair.all_probes().values()
    drawn = samples.ColorShapeDigit(1, split="test", seed=0, size=16, difficulty=0.5)
    assert torch.equal(images, drawn.images)


def test_each_model_predicts_its_own_factors():
    """Labels of training are those that the data set itself gives for these factors."""
    for pair in pairs(settings()):
        for member in pair.needs():
            drawn = samples.ColorShapeDigit(1, split="train", seed=0, size=16, difficulty=0.5)
            images, labels = member.own()
            assert torch.equal(images, drawn.images) and torch.equal(labels, drawn.labels(*member.factors)[0])
            assert member.counts() == (int(labels.max()) + 1, 800)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"overlaps": (0, 1)}, "task overlap has the levels 1, 2, 3"),
        ({"overlaps": ()}, "overlaps"),
        ({"seeds": ()}, "seeds"),
        ({"seeds": (0, 0)}, "seeds are different whole numbers, 0 or more"),
        ({"seeds": (-1,)}, "seeds are different whole numbers, 0 or more"),
        ({"data": {"n_train": 0, "n_probe": 1}}, "n_train"),
        ({"model": {"name": "vgg"}}, "small_resnet"),
        ({"colour": 1}, "colour"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        settings(**change)


def test_a_level_given_twice_is_refused():
    """Its cells would stand in the table twice and count double in every mean."""
    with pytest.raises(ValidationError, match="overlaps"):
        settings(overlaps=(1, 1))
