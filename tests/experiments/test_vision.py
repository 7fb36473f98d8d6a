"""Overlap in vision: what the two models of a pair are trained and measured on, and tiny runs from end to end."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from repsim_utils.datasets import vision as datasets
from repsim_utils.datasets.color_shape_digit import render
from repsim_utils.datasets.vision import Images
from repsim_utils.experiments import engine, samples, vision
from repsim_utils.experiments.samples import GROUPS, Data
from repsim_utils.experiments.vision import DATASET, TASK, pairs
from repsim_utils.metrics import PAPER, PUBLISHED
from repsim_utils.store import Store, key
from repsim_utils.sweep import sweep
from tests.tiny import NETWORKS, settings

KINDS = (DATASET, TASK)
METRICS = (*PAPER, *PUBLISHED.values())
STEPS = (0, 0.2, 0.4, 0.6, 0.8, 1)


def named(config):
    return key(config.model_dump(mode="json"))


def as_set(images):
    """Images as bytes; that none is there twice is checked."""
    found = {image.numpy().tobytes() for image in images}
    assert len(found) == len(images)
    return found


class Run:
    """A store with a finished tiny run, its cells and table, and what each model began with."""

    def __init__(self, root, kind):
        self.store, self.kind, self.begun, current = Store(root), kind, {}, []
        self.cells = pairs(settings(seeds=[0], probe_classes=8), kind)
        fit, train = vision.Member.fit, vision.train

        def spy_fit(member, network, store, *, progress):
            current[:] = [member]
            return fit(member, network, store, progress=progress)

        def spy_train(model, images, labels, recipe, *, seed, progress):
            weight = model.body[0].weight.detach().clone()
            assert named(current[0]) not in self.begun  # each is trained once
            self.begun[named(current[0])] = (images.clone(), labels.clone(), seed, weight)
            return train(model, images, labels, recipe, seed=seed, progress=progress)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(vision.Member, "fit", spy_fit)
            patch.setattr(vision, "train", spy_train)
            self.table = sweep(engine.measure, self.cells, store=self.store, progress=False)

    def trainings(self):
        """Each cell with the two trainings behind it."""
        return [(cell, *(self.begun[named(member)] for member in cell.needs())) for cell in self.cells]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return {kind: Run(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.fixture(params=KINDS)
def run(request, runs):
    return runs[request.param]


# Cells and members


@pytest.mark.parametrize("kind", KINDS)
def test_every_data_set_network_seed_and_overlap_is_a_cell(kind):
    data = [{"source": "color_shape_digit", "n_per_class": 10}, {"source": "digits"}]
    cells = pairs(settings(data=data, architectures=None, seeds=[4, 2]), kind)
    found = [(p.second.data.source, p.architecture, p.second.seed, p.overlap) for p in cells]
    assert found == [
        (source, name, seed, overlap)
        for source in ("color_shape_digit", "digits")
        for name in NETWORKS
        for seed in (4, 2)
        for overlap in (0, 0.6, 1)
    ]
    assert len({named(cell) for cell in cells}) == len(cells)
    assert all(cell.kind == kind and cell.first.seed == cell.second.seed for cell in cells)
    assert {(cell.first.which, cell.second.which) for cell in cells} == {(1, 2)}


def test_a_network_may_have_its_own_seeds_and_overlaps():
    own = NETWORKS | {"small_vit": NETWORKS["small_vit"] | {"seeds": [7], "overlaps": [0.5]}}
    cells = pairs(settings(models=own, architectures=None), DATASET)
    assert [(c.second.seed, c.overlap) for c in cells if c.architecture == "small_vit"] == [(7, 0.5)]
    assert len([c for c in cells if c.architecture == "small_resnet"]) == 6


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_model_is_the_same_at_every_overlap_in_constrained_mode(kind):
    for seed in (0, 1):
        cells = [c for c in pairs(settings(overlaps=STEPS), kind) if c.first.seed == seed]
        assert len({named(c.first) for c in cells}) == 1 and len({named(c.second) for c in cells}) == 6
        assert len({tuple(c.second.split().first) for c in cells}) == 1
        np.testing.assert_array_equal(cells[0].first.split().first, cells[-1].second.split().first)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_model_follows_the_overlap_in_unconstrained_mode(kind):
    cells = pairs(settings(overlaps=STEPS, mode="unconstrained", seeds=[0]), kind)
    assert len({named(c.first) for c in cells}) == 6
    for cell in cells:
        for one, other in ((cell.first.split().first, cell.second.split().first),):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["constrained", "unconstrained"])
def test_sizes_and_overlap_of_the_training_sets(kind, mode):
    """Ten images of each of 80 classes: what a model gets of them follows from the overlap, by example or by class."""
    for cell in pairs(settings(overlaps=STEPS, mode=mode, seeds=[0]), kind):
        available = 10 if kind == DATASET else 80
        sizes = [n for n in range(available + 1) if 2 * n - round(cell.overlap * n) <= available]
        size = available // 2 if mode == "constrained" else sizes[-1]
        parts = cell.second.split()
        assert len(parts.first) == len(parts.second) == size * (800 // available)
        common = round(cell.overlap * size)
        assert len(set(parts.first) & set(parts.second)) == common * (800 // available)
        assert parts.overlap == common / size


def test_no_two_models_of_a_pair_share_a_seed():
    seeds = set()
    for seed in range(30):
        for cell in pairs(settings(seeds=[seed], overlaps=[0]), DATASET):
            seeds |= {member.own_seed for member in cell.needs()}
    assert len(seeds) == 60


@pytest.mark.parametrize("kind", KINDS)
def test_another_version_or_measurement_is_another_key_but_not_another_model(kind):
    (one,) = pairs(settings(seeds=[0], overlaps=[0.6]), kind)
    for change in (
        {"n_test": 9},
        {"n_probe": 80},
        {"probe_classes": 4},
        {"probes": ["digits"]},
        {"n_permutations": 29},
    ):
        (other,) = pairs(settings(seeds=[0], overlaps=[0.6], **change), kind)
        assert named(other) != named(one)
        assert list(map(named, other.needs())) == list(map(named, one.needs()))
    (hard,) = pairs(settings(seeds=[0], overlaps=[0.6], data=one.second.data.model_copy(update={"size": 32})), kind)
    assert {*map(named, hard.needs())}.isdisjoint(map(named, one.needs()))


# What models are trained on


def test_models_are_trained_on_as_many_images_as_wanted_in_common(run):
    for cell, first, second in run.trainings():
        mine, yours = as_set(first[0]), as_set(second[0])
        assert len(mine) == len(yours) == 400
        assert len(mine & yours) == round(cell.overlap * 400)


def test_every_model_is_trained_once(run):
    """The first model of a seed serves at every overlap."""
    assert len(run.begun) == 1 + 3
    recorded = {path.name for path in (run.store.root / "models").iterdir() if path.name[0] != "."}
    assert recorded == set(run.begun)


def test_the_models_of_a_pair_begin_with_other_weights_and_batches(run):
    for _, (_, _, seed, weight), (_, _, other_seed, other_weight) in run.trainings():
        assert seed != other_seed and not torch.equal(weight, other_weight)


def test_labels_are_those_of_the_images(run):
    """Common classes have one label in both models, and labels run from 0 without a gap."""
    for cell, (mine, labels, *_), (yours, other_labels, *_) in run.trainings():
        names = cell.first.label_map(), cell.second.label_map()
        n_classes = 80 if run.kind == DATASET else 40
        for member, images, found, new in zip(cell.needs(), (mine, yours), (labels, other_labels), names, strict=True):
            assert sorted(new.values()) == list(range(n_classes)) and set(found.tolist()) == set(range(n_classes))
            pool = member.pool()
            true = {image.numpy().tobytes(): int(label) for image, label in zip(pool.images, pool.labels, strict=True)}
            assert [new[true[image.numpy().tobytes()]] for image in images] == found.tolist()
        assert all(names[0][label] == names[1][label] for label in names[0].keys() & names[1].keys())


def test_classes_in_common_are_as_many_as_wanted():
    for cell in pairs(settings(overlaps=STEPS, seeds=[3]), TASK):
        first, second = cell.first.label_map(), cell.second.label_map()
        common = first.keys() & second.keys()
        assert len(first) == len(second) == 40 and len(common) == round(40 * cell.overlap)
        assert all(first[label] == second[label] for label in common)


def test_n_per_class_bounds_what_models_divide():
    data = {"source": "digits", "n_per_class": 20, "size": 16}
    (cell,) = pairs(settings(data=data, seeds=[0], overlaps=[0.5]), DATASET)
    images = cell.second.pool()
    assert images.images.shape == (200, 3, 16, 16) and torch.bincount(images.labels).tolist() == [20] * 10
    assert len(cell.second.split().first) == 100
    whole = as_set(datasets.load("digits", "train", size=16).images)
    other = cell.second.model_copy(update={"seed": 1})
    assert as_set(images.images) <= whole and as_set(other.pool().images) != as_set(images.images)


# Probes


def task_cells(n_classes=None, monkeypatch=None, **changes):
    """Cells on task overlap, of any number of classes with two images each."""
    if n_classes is not None:
        labels = torch.arange(n_classes).repeat(2)
        images = Images(
            torch.zeros(2 * n_classes, 3, 16, 16, dtype=torch.uint8), labels, tuple(map(str, range(n_classes)))
        )
        monkeypatch.setattr(samples, "divided", lambda *_: images)
    return pairs(settings(**{"overlaps": STEPS, "seeds": [0, 1, 2]} | changes), TASK)


@pytest.mark.parametrize("mode", ["constrained", "unconstrained"])
@pytest.mark.parametrize("n_classes", [2, 7, 10, 80])
def test_groups_are_a_partition_of_all_classes(n_classes, mode, monkeypatch):
    for cell in task_cells(n_classes, monkeypatch, mode=mode):
        groups = cell.groups()
        assert tuple(groups) == GROUPS
        assert sorted(c for classes in groups.values() for c in classes) == list(range(n_classes))
        first, second = set(cell.second.split().classes_first), set(cell.second.split().classes_second)
        assert set(groups["common_classes"]) == first & second
        assert set(groups["classes_seen_by_one"]) == first ^ second
        assert set(groups["classes_seen_by_none"]).isdisjoint(first | second)


@pytest.mark.parametrize("n_classes", [13, 40, 80])
@pytest.mark.parametrize("n", [2, 4, 8])
def test_groups_of_n_classes_are_the_same_ones_at_every_overlap(n_classes, n, monkeypatch):
    """Or all that there are; then they belong to those that there are at other overlaps."""
    by_seed = {}
    for cell in task_cells(n_classes, monkeypatch):
        whole, some = cell.groups(), cell.groups(n)
        for name in GROUPS:
            assert len(set(some[name])) == len(some[name]) == min(n, len(whole[name]))
            assert set(some[name]) <= set(whole[name])
            by_seed.setdefault((cell.second.seed, name), []).append(set(some[name]))
    for groups in by_seed.values():
        largest = max(groups, key=len)
        assert all(group <= largest for group in groups)
        assert n == 8 or len(largest) == n
    assert len({tuple(sorted(groups[1])) for (_, name), groups in by_seed.items() if name == GROUPS[1]}) > 1


def test_half_of_the_classes_seen_by_one_are_of_each_model():
    for cell in task_cells():
        lone = set(cell.groups(8)["classes_seen_by_one"])
        parts = cell.second.split()
        assert (
            len(lone & set(parts.classes_first))
            == len(lone & set(parts.classes_second))
            == (0 if cell.overlap == 1 else 4)
        )


def classes_of(images, cell):
    """Classes of held-out images, one an image."""
    held_out = cell.held_out()
    known = {image.numpy().tobytes(): int(label) for image, label in zip(held_out.images, held_out.labels, strict=True)}
    return [known[image.numpy().tobytes()] for image in images]


@pytest.mark.parametrize("probe_classes", [None, 8])
def test_probes_have_equally_many_images_of_each_of_their_classes(probe_classes):
    for cell in task_cells(seeds=[0], probe_classes=probe_classes):
        found = cell.all_probes()
        groups = cell.groups(probe_classes) | {"color_shape_digit": range(80)}
        if probe_classes is not None:
            groups |= {f"{name}_all": classes for name, classes in cell.groups().items()}
        assert set(found) == {name for name, classes in groups.items() if len(classes)}  # none is empty
        for name, images in found.items():
            assert images.dtype == torch.uint8 and images.shape[1:] == (3, 28, 28)
            counts = pd.Series(classes_of(images, cell)).value_counts()
            assert set(counts.index) == set(groups[name]) and counts.nunique() == 1
            assert 0 < len(images) <= cell.n_probe


def test_probes_of_n_classes_are_the_same_images_at_every_overlap():
    found = {}
    for cell in task_cells(seeds=[0], probe_classes=8):
        for name, images in cell.all_probes().items():
            found.setdefault(name, []).append(images)
    for name in GROUPS:
        assert len(found[name]) == 5 and all(torch.equal(images, found[name][0]) for images in found[name])
        assert len(found[name][0]) == 80
    assert len(found["color_shape_digit"]) == 6
    assert len({len(images) for images in found["common_classes_all"]}) > 1  # as published, these grow with the overlap


def test_a_probe_without_classes_is_left_out():
    for cell in task_cells(seeds=[0], probe_classes=4):
        absent = {0: {"common_classes", "classes_seen_by_none"}, 1: {"classes_seen_by_one"}}.get(cell.overlap, set())
        assert set(GROUPS) - set(cell.all_probes()) == absent
        assert {name for name in GROUPS if f"{name}_all" not in cell.all_probes()} == absent


def test_a_probe_has_n_probe_images_or_one_of_every_class():
    for n_probe, expected in ((20, 80), (100, 80), (160, 160)):
        (cell,) = pairs(settings(seeds=[0], overlaps=[0], n_probe=n_probe), DATASET)
        assert [len(images) for images in cell.all_probes().values()] == [expected]


def test_a_probe_that_is_too_small_is_left_out_with_a_warning(caplog):
    cells = task_cells(seeds=[0], overlaps=[0.6], probe_classes=2)
    assert not set(GROUPS) & set(cells[0].all_probes()) and "common_classes" not in cells[0].all_probes()
    assert (
        "probe common_classes of color_shape_digit at overlap 0.6 is left out: it has 20 images and needs 30"
        in caplog.text
    )


def test_dataset_overlap_is_measured_on_all_classes_and_on_further_data_sets():
    (cell,) = pairs(settings(seeds=[0], overlaps=[0.6], probes=["digits"], n_probe=80), DATASET)
    found = cell.all_probes()
    assert {name: tuple(images.shape) for name, images in found.items()} == {
        name: (80, 3, 28, 28) for name in ("color_shape_digit", "digits")
    }
    assert sorted(classes_of(found["color_shape_digit"], cell)) == list(range(80))
    digits = datasets.load("digits", "test", size=28)
    assert as_set(found["digits"]) <= {image.numpy().tobytes() for image in digits.images}


def test_drawn_images_are_a_probe_of_models_of_other_data(monkeypatch):
    of = settings(seeds=[3], overlaps=[1], data={"source": "digits", "size": 20}, probes=["color_shape_digit"])
    (cell,) = pairs(of, DATASET)
    found = cell.all_probes()
    drawn = samples.ColorShapeDigit(1, split="test", seed=3, size=20, difficulty=1.0)
    assert set(found) == {"digits", "color_shape_digit"} and len(found["color_shape_digit"]) == 160
    assert as_set(found["color_shape_digit"]) <= as_set(drawn.images)
    monkeypatch.setattr(samples.color_shape_digit, "VERSION", 99)
    (later,) = pairs(of, DATASET)
    assert named(later) != named(cell) and later.needs() == cell.needs()


def test_a_network_may_have_its_own_number_of_images():
    models = {name: NETWORKS["small_resnet"] | {"n_per_class": n} for name, n in (("few", 10), ("many", 40))}
    cells = pairs(settings(seeds=[0], models=models, architectures=None), vision.AMOUNT)
    assert [cell.second.counts() for cell in cells] == [(80, 400)] * 3 + [(80, 1600)] * 3
    assert {cell.architecture for cell in cells} == set(models) and all(cell.first.by == "example" for cell in cells)


@pytest.mark.parametrize("kind", [vision.PHOTOGRAPHS, vision.TASK_PHOTOGRAPHS])
def test_pictures_of_a_split_show_who_sees_what(kind):
    cells = pairs(settings(seeds=[0]), kind)
    shown, member = vision.gallery(cells, None), cells[1].second
    assert member.overlap == 0.6 and shown.shape == (3, 80, 3, 28, 28)
    pool, parts = member.pool(), member.split()
    sets = (
        set(parts.first) - set(parts.second),
        set(parts.first) & set(parts.second),
        set(parts.second) - set(parts.first),
    )
    for row, seen in zip(shown, sets, strict=True):
        there = {int(pool.labels[i]) for i in seen}
        for c, image in enumerate(row):
            of_class = [pool.images[i] for i in seen if pool.labels[i] == c]
            assert any(image.equal(one) for one in of_class) if c in there else (image == 255).all()


def test_no_model_has_seen_an_image_on_which_it_is_measured(run):
    for cell, first, second in run.trainings():
        seen = as_set(first[0]) | as_set(second[0])
        held_out = cell.held_out()
        assert seen.isdisjoint(as_set(held_out.images))
        for images in cell.all_probes().values():
            assert seen.isdisjoint(as_set(images))


def test_training_and_held_out_images_are_drawn_from_separate_streams():
    """The very same ids give other images."""
    (cell,) = pairs(settings(seeds=[5], overlaps=[0]), DATASET)
    train, test = cell.second.pool(), cell.held_out()
    ids = torch.arange(800) // 100, torch.arange(800) // 10 % 10, torch.arange(800) % 10
    for images, start in ((train, 0), (test, 2**41)):
        assert torch.equal(images.images, render(*ids, seed=5, difficulty=0.0, start=start))
    assert as_set(train.images).isdisjoint(as_set(test.images))
    assert as_set(train.images).isdisjoint(as_set(cell.second.model_copy(update={"seed": 6}).pool().images))


# Tables


def test_the_table(run):
    table = run.table
    assert {
        "experiment", "key", "dataset", "architecture", "overlap", "realised_overlap", "seed", "probe", "n_probe",
        "metric", "value", "version", "date", "wall_seconds", "null_mean", "p_value",
    } == set(table)  # fmt: skip
    expected = []
    for cell in run.cells:
        expected += [(cell.overlap, probe, metric) for probe in cell.all_probes() for metric in METRICS]
        expected += [(cell.overlap, "color_shape_digit", f"accuracy_{which}") for which in ("first", "second")]
    assert list(table[["overlap", "probe", "metric"]].itertuples(index=False, name=None)) == expected
    assert set(table.experiment) == {run.kind} and set(table.dataset) == {"color_shape_digit"}
    assert set(table.architecture) == {"small_resnet"} and set(table.seed) == {0}
    assert list(table.realised_overlap) == list(table.overlap)
    assert list(table.key) == [named(next(c for c in run.cells if c.overlap == o)) for o in table.overlap]


def test_only_the_chance_level_of_an_accuracy_is_missing(run):
    table, accuracies = run.table, run.table.metric.str.startswith("accuracy")
    holes = table.isna()
    assert not holes.drop(columns=["null_mean", "p_value"]).any().any()
    for column in ("null_mean", "p_value"):
        assert (holes[column] == accuracies).all()
    assert table.p_value[~accuracies].between(1 / 20, 1).all()
    assert table.value[table.metric != "lcs_knn_published"].between(-1, 1).all() and (table.value != -1).all()
    assert (table.value[table.metric == "cka"] > 0).all()


def test_groups_without_classes_have_no_rows(runs):
    by_overlap = runs[TASK].table.groupby("overlap").probe.unique().map(set)
    assert by_overlap[0] == {"color_shape_digit", "classes_seen_by_one", "classes_seen_by_one_all"}
    every = {name + suffix for name in GROUPS for suffix in ("", "_all")}
    assert by_overlap[0.6] == every | {"color_shape_digit"}
    assert by_overlap[1] == by_overlap[0.6] - {"classes_seen_by_one", "classes_seen_by_one_all"}
    assert set(runs[DATASET].table.probe) == {"color_shape_digit"}


def test_accuracy_is_over_the_classes_of_the_model(run):
    for cell in run.cells:
        rows = run.table[(run.table.overlap == cell.overlap) & run.table.metric.str.startswith("accuracy")]
        held_out = cell.held_out()
        models = engine.load_pair(cell, run.store, progress=False)
        for member, model, value, n in zip(cell.needs(), models, rows.value, rows.n_probe, strict=True):
            names, right = member.label_map(), []
            assert not model.training
            with torch.no_grad():
                guesses = model(held_out.images.float() / 255).argmax(1).tolist()
            for guess, label in zip(guesses, held_out.labels.tolist(), strict=True):
                if label in names:
                    right.append(guess == names[label])
            assert (value, n) == (pytest.approx(np.mean(right)), len(right))
            assert n == (800 if run.kind == DATASET else 400)


def test_a_second_sweep_comes_from_the_store(run, monkeypatch):
    for module, name in ((vision, "train"), (vision, "build"), (vision, "represent"), (samples, "held_out")):
        monkeypatch.setattr(module, name, None)
    cells = pairs(settings(seeds=[0], probe_classes=8), run.kind)
    again = sweep(engine.measure, cells, store=run.store, progress=False)
    pd.testing.assert_frame_equal(again, run.table)


def test_kept_models_give_the_same_measurements(run, monkeypatch, tmp_path):
    shutil.copytree(run.store.root / "models", tmp_path / "models")
    monkeypatch.setattr(vision, "train", None)
    again = sweep(engine.measure, run.cells, store=Store(tmp_path), progress=False)
    pd.testing.assert_frame_equal(again.drop(columns="wall_seconds"), run.table.drop(columns="wall_seconds"))


def test_trained_anew_gives_the_same_measurements(run, tmp_path):
    again = sweep(engine.measure, run.cells[1:2], store=Store(tmp_path), progress=False)
    assert list(again.value) == list(run.table.value[run.table.overlap == 0.6])


def test_kept_weights_of_a_pretrained_network_need_no_download(run, monkeypatch):
    asked, build = [], vision.build

    def spy(*args, download, **options):
        asked.append(download)
        return build(*args, download=download, **options)

    monkeypatch.setattr(vision, "build", spy)
    engine.load_pair(run.cells[0], run.store, progress=False)
    assert asked == [False, False]


# Settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"overlaps": [0, 1.1]}, r"overlaps\n.*overlaps are different numbers between 0 and 1"),
        ({"overlaps": [-0.1]}, r"overlaps\n.*overlaps are different numbers between 0 and 1"),
        ({"overlaps": [0.5, 0.5]}, r"overlaps\n.*overlaps are different numbers between 0 and 1"),
        ({"overlaps": [float("nan")]}, "overlaps"),
        ({"overlaps": []}, "overlaps"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, r"seeds\n.*seeds are different whole numbers, 0 or more"),
        ({"seeds": [-1]}, r"seeds\n.*seeds are different whole numbers, 0 or more"),
        ({"mode": "both"}, "mode"),
        ({"models": {}}, "models"),
        ({"data": []}, "data"),
        ({"data": ""}, "data.*source"),
        ({"data": {"source": "color_shape_digit", "n_per_class": 15}}, "n_per_class .* a multiple of 10, its comb"),
        ({"data": {"source": "color_shape_digit"}}, "n_per_class of color_shape_digit must be a multiple of 10"),
        ({"data": {"source": "color_shape_digit", "n_per_class": 50, "factors": ["shape"]}}, "a multiple of 100"),
        ({"data": {"source": "color_shape_digit", "n_per_class": 50, "factors": ["size"]}}, "factors must be one to"),
        ({"data": {"source": "digits", "size": 8}}, "size"),
        ({"architectures": ["vgg"]}, "no architecture vgg; choose from small_resnet, small_vit"),
        (
            {"models": {"mine": {"network": {"name": "vgg"}, "recipe": {}}}},
            r"models.mine.network.name\n.*small_resnet, ",
        ),
        ({"models": {"mine": NETWORKS["small_vit"] | {"seeds": [2, 2]}}, "architectures": None}, "models.mine.seeds"),
        ({"n_probe": 5}, "n_probe"),
        ({"probe_classes": 1}, "probe_classes"),
        ({"n_test": 0}, "n_test"),
        ({"colour": 1}, "colour"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ValidationError, match=f"(?s){message}"):
        settings(**change)


@pytest.mark.parametrize("overlaps", [[1.5], [0.5, 0.5], []])
def test_bad_overlaps_of_one_network_are_refused(overlaps):
    """As those of all networks; else they fail, or count double, once other cells have been trained."""
    with pytest.raises(ValidationError, match=r"models.small_resnet.overlaps"):
        settings(models={"small_resnet": NETWORKS["small_resnet"] | {"overlaps": overlaps}})


@pytest.mark.parametrize("change", [{"architectures": ["small_resnet"] * 2}, {"architectures": []}])
def test_architectures_are_different_ones(change):
    """Cells of one given twice would stand in the table twice and count double in every mean."""
    with pytest.raises(ValidationError, match="architectures"):
        settings(**change)


def test_a_probe_that_there_is_not_is_refused_before_anything_is_trained(monkeypatch):
    monkeypatch.setattr(vision, "train", None)
    with pytest.raises((ValidationError, datasets.DataError), match="nowhere"):
        engine.measure(pairs(settings(probes=["nowhere"]), DATASET)[0], Store(), progress=False)


def test_a_source_that_there_is_not_is_refused_at_once(tmp_path):
    with pytest.raises(
        datasets.DataError, match=r"there is no folder .*/nowhere; data sets known by name are fashion_mnist, cifar10,"
    ):
        pairs(settings(data=str(tmp_path / "nowhere")), DATASET)


@pytest.mark.parametrize("folder", ["/some/folder", Path("/some/folder")])
def test_bare_text_is_a_source(folder):
    assert settings(data=folder).data == settings(data=[folder]).data == (Data(source="/some/folder"),)
    assert settings(data=[folder, "cifar100"]).data == (Data(source="/some/folder"), Data(source="cifar100"))


def test_one_data_set_or_several():
    one, other = {"source": "cifar10", "n_per_class": 20}, {"source": "color_shape_digit", "n_per_class": 30}
    assert settings(data=one).data == settings(data=[one]).data == settings(data=Data(**one)).data == (Data(**one),)
    assert settings(data=[one, other, "svhn"]).data == (Data(**one), Data(**other), Data(source="svhn"))


def test_names_in_tables():
    assert Data(source="cifar100").name == "cifar100"
    assert Data(source="color_shape_digit", n_per_class=10).name == "color_shape_digit"
    assert Data(source="/some/where/birds/").name == "birds"


# A folder of images


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Four classes, with twelve images of each to train on and thirty held out."""
    monkeypatch.setenv("REPSIM_DATA", str(tmp_path / "data"))
    rng = np.random.default_rng(0)
    for part, n in (("train", 12), ("test", 30)):
        for k, name in enumerate(("ant", "bee", "cat", "dog")):
            (tmp_path / "animals" / part / name).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 120, (20, 16, 3), dtype=np.uint8)
                pixels[4 * k : 4 * k + 4] += 100
                Image.fromarray(pixels).save(tmp_path / "animals" / part / name / f"{i}.png")
    return tmp_path / "animals"


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_images_from_end_to_end(folder, tmp_path, kind):
    short = {"small_resnet": {"network": NETWORKS["small_resnet"]["network"],
                              "recipe": NETWORKS["small_resnet"]["recipe"] | {"batch_size": 8}}}  # fmt: skip
    changes = {"data": str(folder), "models": short, "seeds": [0], "overlaps": [0, 0.5, 1], "n_test": None}
    cells = pairs(settings(**changes), kind)
    table = sweep(engine.measure, cells, store=Store(tmp_path / "store"), progress=False)
    assert set(table.dataset) == {"animals"} and set(table.overlap) == {0, 0.5, 1}
    whole = table[table.probe == "animals"]
    assert list(whole.groupby("overlap").metric.agg(list)) == [[*METRICS, "accuracy_first", "accuracy_second"]] * 3
    assert set(whole.n_probe[whole.metric == "cka"]) == {120}
    groups = table[table.metric == "cka"].groupby("overlap").probe.agg(list)
    if kind == TASK:
        assert groups[0.5] == ["animals", *GROUPS]
    assert table.value.notna().all()
    size = cells[0].first.size()
    assert (size.dataset, size.n_train, size.length) == ("animals", 24, 32)
    assert size.network["n_classes"] == (4 if kind == DATASET else 2)


def test_changed_images_are_another_run(folder):
    """And they are read again; a run that has begun on the old ones stops."""
    changes = {"data": str(folder), "seeds": [0], "overlaps": [0]}
    (one,), (same,) = pairs(settings(**changes), DATASET), pairs(settings(**changes), DATASET)
    before = one.first.pool().images.clone()
    Image.new("RGB", (16, 20)).save(folder / "train" / "ant" / "3.png")
    (other,) = pairs(settings(**changes), DATASET)
    assert named(one) == named(same) != named(other) and named(one.first) != named(other.first)
    after = other.first.pool().images
    changed = (before != after).any((1, 2, 3))
    assert changed.sum() == 1 and (after[changed] == 0).all()
    with pytest.raises(datasets.DataError, match="has changed since this run began"):
        one.model_copy(update={"n_test": 5}).held_out()


def test_a_folder_to_measure_on_is_known_by_its_images(folder, monkeypatch):
    changes = {"seeds": [0], "overlaps": [0], "n_probe": 60, "probes": [str(folder)]}
    monkeypatch.chdir(folder.parent)
    (one,), (same,) = pairs(settings(**changes), DATASET), pairs(settings(**changes | {"probes": ["animals"]}), DATASET)
    assert set(one.all_probes()) == {"color_shape_digit", "animals"} and one.all_probes()["animals"].shape == (
        60,
        3,
        28,
        28,
    )
    Image.new("RGB", (16, 20)).save(folder / "test" / "ant" / "3.png")
    (other,) = pairs(settings(**changes), DATASET)
    assert named(one) == named(same) != named(other) and one.first == other.first
    samples.held_out.cache_clear()  # another process
    with pytest.raises(datasets.DataError, match="animals has changed since this run began"):
        one.all_probes()


def test_a_folder_has_one_spelling(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert settings(data="animals").data == settings(data=f"{folder}/").data == settings(data=folder).data


def test_names_that_tables_could_not_tell_apart_are_refused(tmp_path):
    for place in ("a", "b"):
        (tmp_path / place / "animals").mkdir(parents=True)
    both = [str(tmp_path / place / "animals") for place in ("a", "b")]
    for changes in ({"data": both}, {"data": both[0], "probes": both[1:]}, {"data": ["digits", "digits"]}):
        with pytest.raises(ValueError, match="data sets and probes have different names; there are two"):
            settings(**changes)


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_that_cannot_be_divided_or_measured_is_named(folder, kind):
    def found(**changes):
        return pairs(settings(data=str(folder), seeds=[0], overlaps=[0], **changes), kind)

    for image in sorted((folder / "train" / "bee").iterdir())[1:]:
        image.unlink()
    with pytest.raises(ValueError, match=r"class bee of animals has 1 image\(s\) to train on and 30 held out; two mod"):
        found(n_test=None)
    shutil.copytree(folder / "train" / "ant", folder / "train" / "bee", dirs_exist_ok=True)
    assert found(n_test=None)
    shutil.rmtree(folder / "test" / "cat")
    with pytest.raises(ValueError, match=r"class cat of animals has 12 image\(s\) to train on and 0 held out"):
        found(n_test=None)


def test_classes_are_too_few_to_divide(folder):
    for part in ("train", "test"):
        shutil.rmtree(folder / part / "dog")
    changes = {"data": str(folder), "seeds": [0], "overlaps": [0]}
    assert pairs(settings(**changes), DATASET)
    with pytest.raises(ValueError, match="animals has 3 classes; two models that divide them need 4"):
        pairs(settings(**changes), TASK)


def test_data_are_not_measured_on_twice():
    (cell,) = pairs(settings(data="digits", probes=["digits"], seeds=[0], overlaps=[0]), DATASET)
    assert cell.probes == () and set(cell.all_probes()) == {"digits"}


def test_what_cells_read_is_fetched_before_anything_is_trained(folder, monkeypatch):
    loaded = []
    monkeypatch.setattr(datasets, "load", lambda *args, **options: loaded.append((*args, options["size"])))
    cells = pairs(settings(data=["digits", {"source": "color_shape_digit", "n_per_class": 10}], probes=["mnist"]), TASK)
    vision.prepare(cells)
    assert loaded == [
        ("digits", "test", None), ("digits", "train", None), ("mnist", "test", 28), ("mnist", "test", 8)
    ]  # fmt: skip


def test_too_few_images_to_measure_on_are_refused_before_anything_is_trained(folder, monkeypatch):
    """Twelve images of each class alone: a fifth is held out, which is too few for ten nearest neighbours."""
    monkeypatch.setattr(vision, "train", None)
    with pytest.raises(ValueError, match="train has 8 held-out images, and a probe needs 30: give more of each class"):
        pairs(settings(data=str(folder / "train"), seeds=[0], overlaps=[0], n_test=None), DATASET)
