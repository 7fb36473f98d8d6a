"""Two causes at once: what models share, cell by cell, and what attacks on each do to the other."""

import numpy as np
import pytest
import torch

from repsim_utils import profiles
from repsim_utils.attacks import adversarial
from repsim_utils.experiments import engine, samples, together
from repsim_utils.models.vision import as_float
from repsim_utils.store import Store, key
from repsim_utils.sweep import sweep

KINDS = (together.TASKS, together.CLASSES)
SMALL = {
    "models": "{small_resnet: {network: {width: 8}, recipe: {epochs: 6, peak_epoch: 1}}}",
    "attack": "{steps: 1}",
    "n_images": 200,
}


def cells(kind, **changes):
    return together.pairs(profiles.load("smoke", kind, **SMALL | changes), kind)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A store, and for each of two experiments its cells and their table."""
    store = Store(tmp_path_factory.mktemp("store"))
    some = {"tasks": '["shape | digit", "digit | digit"]'}, {"task_overlaps": [1]}
    found = {}
    for kind, changes in zip(KINDS, some, strict=True):
        here = cells(kind, **changes)
        found[kind] = here, sweep(engine.measure, here, store=store, progress=False)
    return store, found


def test_every_task_meets_every_share_of_images():
    found = [(cell.columns(Store("."))["pair"], cell.task_overlap, cell.overlap) for cell in cells(together.TASKS)]
    tasks = {"shape | digit": 0, "shape+digit | shape+color": 0.5, "shape+digit | shape+digit": 1}
    tasks["shape+digit+color | shape+digit+color"] = 1
    assert found == [(pair, share, images) for pair, share in tasks.items() for images in (0, 1)]


def test_of_tasks_the_images_in_common_are_those_that_were_asked_for_and_the_first_model_is_one():
    images = {}
    for cell in cells(together.TASKS, overlaps=[0, 0.25, 1], data="{n_per_class: 4}"):
        first, second = cell.first.split(), cell.second.split()
        shared = len(np.intersect1d(first.first, second.second)) / len(first.first)
        assert shared == cell.overlap and len(second.second) == 1600
        images.setdefault(cell.first, []).append(tuple(second.second))
        strata = samples.joined(cell.first.data.factors, ("shape", "digit"))
        counts = np.bincount([strata[label] for label in cell.first.pool().labels[first.first].tolist()])
        assert (counts == 20).all() and len(counts) == 80
    assert sorted(len(set(found)) for found in images.values()) == [3, 3, 3]  # two pairs begin with shape+digit


@pytest.mark.parametrize("kind", KINDS)
def test_size_and_classes_are_known_without_images(kind):
    members = {member for cell in cells(kind) for member in cell.needs()}
    told = {member: member.counts() for member in members}
    for member, (n_classes, n) in told.items():
        images, labels = member.own()
        assert len(images) == n and labels.max() < n_classes
        assert len(set(labels.tolist())) == n_classes or n_classes == 800  # of which some have no image here


def test_classes_and_images_in_common_are_apart():
    for cell in cells(together.CLASSES, overlaps=[0, 0.5, 1]):
        parts = cell.second.split()
        assert len(np.intersect1d(parts.classes_first, parts.classes_second)) == 40 * cell.task_overlap
        about = cell.columns(Store("."))
        assert about["images_in_common"] == pytest.approx(cell.task_overlap * cell.overlap)
        assert "realised_overlap" not in about and "pair" not in about
        groups = cell.groups(8)
        assert [len(groups[name]) for name in samples.GROUPS] == ([8, 8, 8] if cell.task_overlap < 1 else [8, 0, 8])


@pytest.mark.parametrize("kind", KINDS)
def test_the_table(swept, kind):
    here, table = swept[1][kind]
    assert list(dict.fromkeys(table.key)) == [key(cell.config()) for cell in here]
    assert not table.duplicated(["key", "probe", "attack", "metric"]).any()
    attacks = table[table.attack.notna()]
    assert set(attacks.attack) == {"mi-fgsm", "random_signs"} and attacks.value.between(0, 1).all()
    assert set(attacks.metric) >= {"changed", "source_changed"}
    by = attacks[attacks.metric == "source_changed"].groupby("attack").value.mean()
    assert by["mi-fgsm"] > by["random_signs"]
    assert {"cka", "mutual_knn", "accuracy_first", "accuracy_second"} <= set(table.metric[table.attack.isna()])


@pytest.mark.parametrize("kind", KINDS)
def test_what_attacks_do_image_by_image(swept, kind):
    """Both rates written out for one cell: who is attacked, who answers, and on which images that counts."""
    store, found = swept
    here, table = found[kind]
    cell = here[-1]
    models = engine.load_pair(cell, store)
    every = cell.held_out()
    index = np.sort(np.random.default_rng(cell.second.seed).permutation(len(every.labels))[: cell.n_images])
    x, labels = as_float(every.images[index]), every.labels[index].tolist()
    maps = [member.label_map() for member in (cell.first, cell.second)]
    changed, transfer = [], []
    with torch.no_grad():
        before = [model(x).argmax(1) for model in models]
    for source, victim in ((0, 1), (1, 0)):
        made = adversarial.attack(models[source], x, before[source], method="mi-fgsm", epsilon=8, steps=1)
        with torch.no_grad():
            after = models[victim](made).argmax(1)
        for i, label in enumerate(labels):
            changed.append(bool(after[i] != before[victim][i]))
            if all(label in maps[m] and before[m][i] == maps[m][label] for m in (0, 1)):
                transfer.append(changed[-1])
    rows = table[(table.key == key(cell.config())) & (table.attack == "mi-fgsm")].set_index("metric")
    assert rows.value["changed"] == pytest.approx(np.mean(changed), abs=1e-12) and rows.n_probe["changed"] == 400
    if len(transfer) >= 60:
        assert rows.value["transfer"] == pytest.approx(np.mean(transfer), abs=1e-12)
        assert rows.n_probe["transfer"] == len(transfer)
    else:
        assert "transfer" not in rows.index


def test_transfer_is_measured_where_both_have_learned_enough(swept):
    rates = swept[1][together.TASKS][1]
    assert "transfer" in set(rates.metric)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (
            together.TASKS,
            {"tasks": "[shape]"},
            r"tasks are such as shape\+digit \| shape\+color, of shape, digit, color",
        ),
        (together.TASKS, {"tasks": '["shape | size"]'}, "tasks are such as"),
        (together.TASKS, {"tasks": '["shape | digit", "shape|digit"]'}, "tasks must be different ones"),
        (together.TASKS, {"tasks": "[]"}, "together_tasks needs tasks"),
        (
            together.TASKS,
            {"data": "{factors: [shape, digit], n_per_class: 20}"},
            "with the factors shape, digit, color",
        ),
        (together.TASKS, {"data": "digits"}, "needs color_shape_digit"),
    ],
)
def test_what_cannot_be_crossed_is_refused(kind, changes, message):
    with pytest.raises(ValueError, match=message):
        cells(kind, **changes)
