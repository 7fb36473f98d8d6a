"""Attacks on the pairs of the two sweeps in vision: which cells there are, what is trained, and what a row says."""

import pandas as pd
import pytest
from pydantic import ValidationError

from repsim_utils import profiles
from repsim_utils.attacks.transfer import RATES
from repsim_utils.experiments import adversarial_transfer as transfer
from repsim_utils.experiments import engine, vision
from repsim_utils.experiments.adversarial_transfer import Attack, Settings, pairs
from repsim_utils.experiments.vision import DATASET, TASK
from repsim_utils.features import represent
from repsim_utils.metrics import PAPER
from repsim_utils.store import Store, key
from repsim_utils.sweep import sweep
from tests import tiny
from tests.metrics import literal

LEARNS = {
    "small_resnet": {
        "network": {"name": "small_resnet", "width": 8},
        "recipe": {"epochs": 10, "batch_size": 80, "lr": 0.02, "peak_epoch": 1, "optimizer": "adamw"},
    }
}


def settings(**changes):
    data = {"source": "color_shape_digit", "n_per_class": 30, "size": 20, "difficulty": 0.0}
    base = tiny.settings(overlaps=[0, 0.6, 1], seeds=[0], models=LEARNS, data=data)
    causes = {
        kind: {"sweep": base.model_dump() | {"probe_classes": n}, "n_images": 240, "published": 2}
        for kind, n in ((DATASET, None), (TASK, 8))
    }
    values = {"causes": causes, "epsilon": 8, "epsilons": [2, 8], "methods": ["fgsm", "mi-fgsm"]}
    return Settings.model_validate(values | changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"))
    cells = pairs(settings(overlaps=[0, 0.6]))
    return store, cells, sweep(engine.measure, cells, train=engine.trained, store=store, progress=False)


def test_cells():
    """Of task overlap 0 there is none: no class has an answer that both models could give."""
    cells = pairs(settings())
    wanted = [(DATASET, 0), (DATASET, 0.6), (DATASET, 1), (TASK, 0.6), (TASK, 1)]
    assert [(cell.cause, cell.overlap) for cell in cells] == wanted
    assert cells[0].attacks == (Attack(epsilon=8), Attack(epsilon=2), Attack(method="fgsm", epsilon=8))
    assert cells[0].published == Attack(epsilon=2, steps=3)


def test_the_pairs_are_those_of_the_sweeps():
    """Nothing but the control's source has to be trained anew, one for each network and seed."""
    for kind in (DATASET, TASK):
        theirs = {member for pair in vision.pairs(settings().causes[kind].sweep, kind) for member in pair.needs()}
        cells = [cell for cell in pairs(settings()) if cell.cause == kind]
        assert {member for cell in cells for member in (cell.first, cell.second, *cell.siblings)} <= theirs
    (unrelated,) = {cell.unrelated for cell in pairs(settings())}
    assert unrelated.data.source == "digits" and unrelated.data.size == 20
    assert unrelated.network == pairs(settings())[0].first.network


def test_siblings_are_all_models_of_a_seed_that_can_answer():
    first, *_, last = pairs(settings(seeds=[0, 1]))
    assert len(first.siblings) == 4 and {member.seed for member in first.siblings} == {0}  # one first, three second
    assert len(last.siblings) == 3 and {member.overlap for member in last.siblings} == {0, 0.6, 1}
    assert {member.which for member in last.siblings if member.overlap == 0} == {1}


def test_overrides_reach_the_sweeps():
    cells = pairs(settings(seeds=[4], overlaps=[1], attack="pgd"))
    assert [(cell.cause, cell.second.seed, cell.overlap) for cell in cells] == [(DATASET, 4, 1), (TASK, 4, 1)]
    assert cells[0].attacks[0] == Attack(method="pgd", epsilon=8)
    with pytest.raises(ValidationError, match="no architecture vgg"):
        pairs(settings(architectures=["vgg"]))
    with pytest.raises(ValueError, match="attacks are fgsm"):
        settings(attack="cw").attacks()
    with pytest.raises(ValueError, match="greater than 0"):
        settings(epsilon=0).attacks()


def test_images_are_held_out_and_of_common_classes():
    cells = pairs(settings())
    assert [list(cell.probes()) for cell in cells[2:4]] == [
        ["color_shape_digit"],
        ["common_classes", "common_classes_all"],
    ]
    for cell in cells[3:]:
        names = [member.label_map() for member in (cell.first, cell.second)]
        for name, chosen in cell.probes().items():
            classes = set(chosen.labels.tolist())
            assert classes <= set(names[0]) & set(names[1])
            assert (len(classes) == 8) == (name == "common_classes") and len(chosen.labels) == min(
                240, 10 * len(classes)
            )
    few = [set(cell.probes()["common_classes"].labels.tolist()) for cell in cells[3:]]
    assert few[0] == few[1]  # the same at every overlap


def test_rows(run):
    _, cells, table = run
    assert len(cells) == table["key"].nunique() == 3
    first = table[table.probe != "common_classes_all"]
    wanted = {("none", name) for name in ("clean_error", "both_right", "gradient_cosine")}
    wanted |= {("published", name) for name in ("raw_error", "raw_white_box")}
    wanted |= {("mi-fgsm", name) for name in (*RATES, "transfer_all_right")}
    wanted |= {(name, "transfer") for name in ("fgsm", *transfer.CONTROLS)} | {("fgsm", "white_box")}
    for _, rows in first.groupby("key"):
        assert set(zip(rows.attack, rows.metric, strict=True)) == wanted
        both = rows[rows.metric == "both_right"].iloc[0]
        primary = rows[(rows.attack == "mi-fgsm") & (rows.epsilon == 8)].set_index("metric")
        assert (primary.n_probe.drop("transfer_all_right") == 2 * round(both.value * both.n_probe)).all()
        assert 0 < primary.n_probe["transfer_all_right"] <= primary.n_probe["transfer"]
        assert primary.value.white_box > primary.value.transfer and primary.value.unmoved == 0
        noise = rows[(rows.attack == "random_signs")].set_index("epsilon").value
        assert set(noise.index) == {2, 8} and noise[8] < primary.value.transfer
    assert table[table.metric != "gradient_cosine"].value.between(0, 1).all()
    assert table[table.metric == "gradient_cosine"].value.between(-1, 1).all()
    assert set(table[table.probe == "common_classes_all"].attack) == {"none", "mi-fgsm", "published"}
    assert not table.duplicated(["key", "probe", "attack", "epsilon", "metric"]).any()


def test_attacked_pairs_on_photographs_are_compared_on_the_attacked_images(run):
    """Beside what the others have, by the definitions of `tests.metrics.literal`, and under keys of their own."""
    store, cells, table = run
    _, compared, _ = pairs(settings(overlaps=[0, 0.6]), transfer.PHOTOGRAPHS)
    found = pd.DataFrame(engine.measure(compared, store, progress=False))
    alike = found[found.metric.isin(PAPER)]
    others = found.drop(alike.index)
    pd.testing.assert_series_equal(others.value, table[table["key"] == key(cells[1].config())].value, check_index=False)
    assert compared.kind == transfer.PHOTOGRAPHS and list(alike.metric) == list(PAPER)
    images = compared.probes()["color_shape_digit"].images
    x, y = (literal.platonic(represent(network, images)) for network in engine.load_pair(compared, store))
    values = alike.set_index("metric").value
    assert values.cka == pytest.approx(literal.cka(x, y), abs=1e-5)
    assert values.mutual_knn == pytest.approx(literal.mutual_knn(x, y), abs=1e-9)
    assert set(alike.n_probe) == {len(images)} and set(alike.attack) == {"none"}


def test_the_gallery_shows_images_that_fool_both(run):
    store, cells, _ = run
    cell = cells[1].model_copy(update={"overlap": 1.0})  # the same two models, as if they shared all
    shown = transfer.gallery([*cells[:1], cell], store).float()
    chosen = cell.probes()["color_shape_digit"]
    assert shown.shape == (3, len(chosen.classes), 3, 20, 20)
    there = (shown[0] != 255).flatten(1).any(1)
    assert there.any() and (shown[:, ~there] == 255).all()
    images, attacked, change = shown[:, there]
    assert ((attacked - images).abs() <= 8).all() and (
        change - (255 + (attacked - images) * 255 / 8) / 2
    ).abs().max() < 17
    for network in engine.load_pair(cell, store):
        assert (transfer.answers(network, images / 255).cpu() == there.nonzero()[:, 0]).all()
        assert (
            transfer.answers(network, attacked / 255).cpu() != there.nonzero()[:, 0]
        ).float().mean() > 0.9  # rounded


def test_nothing_is_computed_twice(run, monkeypatch):
    store, cells, table = run
    monkeypatch.setattr(vision, "train", None)
    again = sweep(engine.measure, cells, train=engine.trained, store=store, progress=False)
    pd.testing.assert_frame_equal(again, table)
    rows = engine.measure(cells[0], store, progress=False)
    expected = table[table["key"] == table["key"].iloc[0]]
    assert [row["value"] for row in rows] == expected.value.tolist()


def test_the_published_rate_counts_clean_errors(run):
    """It is at least the rate of clean errors, less the few that the attack happens to put right."""
    _, _, table = run
    wide = table.pivot_table(index=["key", "probe"], columns="metric", values="value")
    assert (wide.raw_error > wide.clean_error - 0.05).all() and (wide.raw_white_box > wide.raw_error).all()


def test_too_few_right_answers_are_told(tmp_path, caplog):
    """A model that has learned nothing: what needs no right answer is there, the rest is missing."""
    lazy = LEARNS["small_resnet"] | {"recipe": LEARNS["small_resnet"]["recipe"] | {"epochs": 1, "lr": 1e-6}}
    sweep_of = settings().causes[DATASET].sweep.model_dump() | {"models": {"small_resnet": lazy}}
    cells = pairs(settings(causes={DATASET: {"sweep": sweep_of, "n_images": 80, "published": 1}}, overlaps=[0]))
    table = sweep(engine.measure, cells, store=Store(tmp_path), progress=False)
    assert "of 80 images are right on both models, too few to attack" in caplog.text
    assert set(table.attack) == {"none", "published"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attack": "magic"}, "attack: attacks are fgsm, i-fgsm, mi-fgsm, .*, got 'magic'$"),
        ({"methods": "[fgsm, magic]"}, r"methods.1: attacks are fgsm, .*, got 'magic'$"),
        ({"epsilon": 0}, "epsilon: Input should be greater than 0, got 0$"),
        ({"epsilons": "[4, 300]"}, r"epsilons.1: Input should be less than or equal to 255, got 300$"),
        (
            {"overlaps": "[2]"},
            r"transfer \(smoke\): overlaps: overlaps are different numb.*, got \[2\]$",
        ),
        ({"architectures": "[vgg]"}, "sweep: no architecture vgg; choose from small_resnet, small_vit$"),
        ({"causes": 3}, "causes: Input should be a valid dictionary, got 3"),
    ],
)
def test_wrong_settings_are_told_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        profiles.load("smoke", "adversarial_transfer", **changes)
    assert "\n" not in str(caught.value)


def test_what_is_said_of_both_sweeps_is_so_in_both():
    changes = {"data": "{difficulty: 0.5}", "seeds": [3], "architectures": ["small_vit"], "attack": "PGD"}
    settings = profiles.load("smoke", "adversarial_transfer", **changes)
    assert settings.attacks()[0].method == "pgd"
    before = profiles.load("smoke", "dataset_overlap_vision").data[0]
    for cell in pairs(settings):
        assert cell.second.data == before.model_copy(update={"difficulty": 0.5})
        assert (cell.second.seed, cell.architecture) == (3, "small_vit")
