"""The recorded results: what the chapters say of them, and that this code still makes them."""

import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from repsim_utils import analysis, charts, profiles, published
from repsim_utils.experiments import (
    adversarial_transfer,
    diffusion,
    engine,
    finetuned,
    jailbreak_transfer,
    language,
    policy,
    reading,
    samples,
    task_only,
    vision,
)
from repsim_utils.files import data_folder
from repsim_utils.metrics import PAPER, PUBLISHED
from repsim_utils.models import llama
from repsim_utils.store import Store, key
from repsim_utils.sweep import sweep

ATTACKS = [adversarial_transfer.EXPERIMENT, adversarial_transfer.PHOTOGRAPHS]
PHOTOGRAPHS = [vision.PHOTOGRAPHS, vision.TASK_PHOTOGRAPHS]
FINETUNED = [finetuned.DATASET, finetuned.GRID, finetuned.TASK]
FILES = sorted(path.stem for path in (data_folder() / "results").glob("*.csv"))


def rising(table, by):
    """How many groups rise with overlap, at a false-discovery rate of 5% over all of them."""
    return int((analysis.trends(table, by=by).sign > 0).sum())


def permuted(table, draw):
    """A table that could as well have been: in every seed, the overlaps of its pairs exchanged."""
    rng = np.random.default_rng(draw)
    parts = []
    for _, part in table.groupby(["architecture", "seed"]):
        there = part.overlap.dropna().unique()
        parts.append(part.assign(overlap=part.overlap.map(dict(zip(there, rng.permutation(there), strict=True)))))
    return pd.concat(parts)


def seldom(claim, table, draws=20):
    """Whether a claim fails on nearly all tables whose overlaps are exchanged within seeds: it can fail."""
    return sum(claim(permuted(table, draw)) for draw in range(draws)) <= draws // 5


def as_in_profile(table, cells):
    """The table holds every cell, but for fresh seeds that are declared and not run yet."""
    (experiment,) = table.experiment.unique()
    lacking = set(profiles.load("laptop", experiment).fresh_seeds) - set(table.seed)
    return set(table["key"]) == {key(c.model_dump(mode="json")) for c in cells if c.second.seed not in lacking}


def test_the_files_are_those_that_are_tested_here():
    sweeps = [
        f"{cause}_overlap_{kind}" for cause in ("dataset", "task") for kind in ("diffusion", "language", "vision")
    ]
    others = ["jailbreak_transfer", "task_only", *ATTACKS, vision.AMOUNT, *FINETUNED, *PHOTOGRAPHS]
    assert sorted([*sweeps, *others]) == FILES


def test_task_only_is_the_laptop_profile_of_this_code():
    table = published.recorded("task_only")
    cells = task_only.pairs(profiles.load("laptop", "task_only"))
    assert as_in_profile(table, cells)
    assert set(table["profile"]) == {"laptop"}
    assert not table.duplicated(["key", "metric"]).any()
    assert table["seed"].nunique() >= 6


def test_task_only_levels_are_apart_and_level_1_is_near_zero():
    table = published.recorded("task_only")
    cka = table[table.metric == "cka"]
    levels = analysis.mean_interval(cka)
    assert list(levels.overlap) == [1, 2, 3]
    assert (levels.high.to_numpy()[:-1] < levels.low.to_numpy()[1:]).all()
    assert (cka[cka.overlap == 1].value < 0.05).all()


@pytest.mark.recorded
def test_task_only_cell_comes_out_again(tmp_path):
    """The cheapest cell that can tell: both models of level 3, seed 0.

    Training amplifies rounding: with two threads a machine came out 0.041 below the recorded CKA, as far as recorded
    seeds are apart (0.69 to 0.73); level 2 reaches 0.50.
    """
    cells = task_only.pairs(profiles.load("laptop", "task_only", seeds=[0], overlaps=[3]))
    again = sweep(engine.measure, cells, store=Store(tmp_path), progress=False).set_index("metric")["value"]
    table = published.recorded("task_only")
    then = table[table["key"] == key(cells[0].model_dump(mode="json"))].set_index("metric")["value"]
    for name in ("cka", "unbiased_cka", "cknna", "mutual_knn", "lcs_knn", "edit_distance_knn", "cycle_knn"):
        assert again[name] == pytest.approx(then[name], abs=0.08), name
    for name in ("svcca", "svcca_published"):
        assert again[name] == pytest.approx(then[name], abs=0.1), name
    assert again["accuracy_first"] == pytest.approx(then["accuracy_first"], abs=0.03)
    assert again["accuracy_second"] == pytest.approx(then["accuracy_second"], abs=0.03)


OVERLAP = [vision.DATASET, vision.TASK]


@pytest.mark.parametrize("kind", [*OVERLAP, *PHOTOGRAPHS])
def test_overlap_in_vision_is_the_laptop_profile_of_this_code(kind):
    table = published.recorded(kind)
    cells = vision.pairs(profiles.load("laptop", kind), kind)
    assert as_in_profile(table, cells)
    assert set(table["profile"]) == {"laptop"} and not table.duplicated(["key", "probe", "metric"]).any()
    assert table["seed"].nunique() >= 8 and table["overlap"].nunique() >= 6 and table["architecture"].nunique() == 2
    assert (table["realised_overlap"] - table["overlap"]).abs().max() < 1e-6
    if kind in PHOTOGRAPHS:
        assert set(table.seeds) == {"fresh"} and table.seed.nunique() == 12
        table = table[table.overlap != 0.2]  # where one class is common and one is seen by none, later two
    sizes = table[table.metric == "cka"].groupby("probe").n_probe.nunique()
    assert (sizes[~sizes.index.str.endswith("_all")] == 1).all()


def fixed_probes(kind, network="small_resnet"):
    """Recorded CKA on the probes that stay the same along the curve."""
    table = published.recorded(kind)
    table = table[(table.metric == "cka") & (table.architecture == network)]
    return table[~table.probe.str.endswith("_all")]


def signs(table):
    """Slopes of CKA by network and probe, as one family."""
    return analysis.trends(table, by=["architecture", "probe"]).set_index(["architecture", "probe"]).sign


@pytest.mark.parametrize("kind", OVERLAP)
def test_cka_of_the_resnet_rises_with_overlap_on_every_probe(kind):
    """What the chapters say of all seeds, at a false-discovery rate over probes and networks."""
    table = pd.concat([fixed_probes(kind), fixed_probes(kind, "small_vit")])
    found = signs(table)
    assert (found["small_resnet"] > 0).all() and found["small_vit", "color_shape_digit"] > 0
    assert seldom(lambda table: rising(table, ["architecture", "probe"]) > 1, table)


def test_on_fresh_seeds_alone_shared_classes_show_in_both_networks_and_shared_images_in_one():
    fresh = {}
    for kind in OVERLAP:
        table = pd.concat([fixed_probes(kind), fixed_probes(kind, "small_vit")])
        fresh[kind] = signs(table[table.seeds == "fresh"])
    assert (fresh[vision.TASK].drop("digits", level="probe") > 0).all()
    assert (fresh[vision.TASK].xs("digits", level="probe") == 0).all()
    found = fresh[vision.DATASET]
    assert list(found.index[found > 0]) == [("small_resnet", "color_shape_digit")]


def test_the_rise_on_digits_rests_on_the_last_point():
    table = fixed_probes(vision.TASK)
    digits = table[table.probe == "digits"]
    whole, without = analysis.trend(digits), analysis.trend(digits[digits.overlap < 1])
    assert whole.low > 0 and without.low < 0 < without.high and without.slope < whole.slope / 2


@pytest.mark.parametrize(
    ("kind", "probe"), [(vision.DATASET, "color_shape_digit"), (vision.TASK, "classes_seen_by_one")]
)
def test_the_primary_contrast_in_vision_comes_out_on_fresh_seeds_alone(kind, probe):
    rows = fixed_probes(kind)
    fresh = rows[(rows.probe == probe) & (rows.seeds == "fresh")]
    found = analysis.trend(fresh)
    assert found.n_units == 8 and found.low > 0 and found.p < 0.05
    assert seldom(lambda table: analysis.trend(table).p < 0.05 and analysis.trend(table).slope > 0, fresh)


def test_shared_photographs_show_by_every_metric_in_both_networks_and_not_on_drawn_images_by_cka():
    by = ["metric", "architecture", "probe"]
    table = published.recorded(vision.PHOTOGRAPHS)
    table = table[table.metric.isin(PAPER)]
    found = analysis.trends(table, by=by).set_index(by).sign
    drawn = found.index.get_level_values("probe") == "color_shape_digit"
    assert (found[~drawn] > 0).all() and (~drawn).sum() == 32 and (found[drawn].loc["cka"] == 0).all()
    cka = table[(table.metric == "cka") & (table.probe != "color_shape_digit")]
    assert seldom(lambda table: rising(table, by) > 1, cka)


@pytest.mark.parametrize(
    ("kind", "chapter", "probe", "said"),
    [
        (
            vision.PHOTOGRAPHS,
            "dataset_overlap_vision",
            "fashion_mnist",
            "from {:.2f} with no photograph in common to {:.2f}",
        ),
        (
            vision.TASK_PHOTOGRAPHS,
            "task_overlap_vision",
            "classes_seen_by_one",
            "{:.2f} without a common class and {:.2f}",
        ),
    ],
)
def test_the_ends_of_the_curve_are_those_of_the_chapter_s_first_sentences(kind, chapter, probe, said):
    rows = fixed_probes(kind)
    at = rows[rows.probe == probe].groupby("overlap").value.mean()
    text = Path(__file__).parents[1] / "chapters" / "causes" / f"{chapter}.ipynb"
    assert said.format(at.iloc[0], at.iloc[-1]) in text.read_text()


def of_several_classes(table):
    """Without probes of a single class, which are others: at overlap 0.2 one is common, and none knows one."""
    return table[~(table.probe.str.startswith(("common", "classes_seen_by_none")) & (table.overlap == 0.2))]


def test_shared_classes_of_photographs_show_nearly_everywhere_and_the_primary_contrast_is_not_decided():
    by = ["metric", "architecture", "probe"]
    table = of_several_classes(published.recorded(vision.TASK_PHOTOGRAPHS))
    table = table[table.metric.isin(PAPER) & ~table.probe.str.endswith("_all")]
    cka = table[table.metric == "cka"]
    sign = signs(cka)
    assert (
        sign["small_resnet"].drop("classes_seen_by_one").gt(0).all()
        and sign["small_resnet", "classes_seen_by_one"] == 0
    )
    assert sign["small_vit"].drop("color_shape_digit").gt(0).all() and sign["small_vit", "color_shape_digit"] == 0
    one = cka[(cka.architecture == "small_resnet") & (cka.probe == "classes_seen_by_one")]
    primary = analysis.trend(one)
    assert (
        primary.low < 0 < primary.high
        and primary.excluded > profiles.load("laptop", vision.TASK_PHOTOGRAPHS).primary.smallest
    )
    shown = analysis.trends(table[table.probe.isin(["fashion_mnist", "classes_seen_by_one"])], by=by).set_index(by).sign
    assert (shown.xs(("small_resnet", "classes_seen_by_one"), level=by[1:]) > 0).sum() == 6 and (shown >= 0).all()
    every = cka[(cka.architecture == "small_resnet") & (cka.probe == "fashion_mnist")]
    assert (
        analysis.trend(every).low
        > analysis.trend(fixed_probes(vision.PHOTOGRAPHS).query("probe == 'fashion_mnist'")).high
    )
    assert seldom(lambda table: rising(table, ["architecture", "probe"]) > 1, cka)


def test_the_primary_contrast_of_shared_photographs_stands_out_from_seeds():
    rows = fixed_probes(vision.PHOTOGRAPHS)
    rows = rows[rows.probe == "fashion_mnist"]
    found, spread = analysis.trend(rows), rows.groupby("overlap").value.std().mean()
    assert found.low > profiles.load("laptop", vision.PHOTOGRAPHS).primary.smallest and found.p == 2 / 2**12
    assert found.slope > 5 * spread and rows[rows.overlap == 0].value.mean() > 10 * found.slope
    vit, drawn = fixed_probes(vision.PHOTOGRAPHS, "small_vit"), fixed_probes(vision.DATASET)
    theirs = published.published_slopes("dataset_overlap_vision").query("metric == 'cka' and training == 'scratch'")
    theirs = theirs[theirs.probe == theirs.dataset].slope.min()
    vit = analysis.trend(vit[vit.probe == "fashion_mnist"])
    assert vit.low < theirs < vit.high and theirs / 2 < found.slope < theirs
    drawn = analysis.trend(drawn[drawn.probe == "color_shape_digit"])
    assert drawn.slope < found.slope


def gains():
    """What sharing all photographs adds to CKA: a row for each seed, width and number of photographs a class."""
    table = published.recorded(vision.AMOUNT)
    size = table.architecture.str.extract(r"(?P<n>\d+) a class, width (?P<width>\d+)").astype(int)
    table = pd.concat([table, size], axis=1)
    rows = table[table.metric == "cka"].pivot(index=["seed", "width", "n"], columns="overlap", values="value")
    gain = (rows[1] - rows[0]).rename("value").reset_index()
    return gain.assign(decades=np.log10(gain.n)), table


def test_the_amount_of_photographs_is_the_laptop_profile_of_this_code():
    table = published.recorded(vision.AMOUNT)
    assert as_in_profile(table, vision.pairs(profiles.load("laptop", vision.AMOUNT), vision.AMOUNT))
    assert set(table.seed) == set(profiles.load("laptop", vision.AMOUNT).fresh_seeds) and set(table.seeds) == {"fresh"}
    assert not table.duplicated(["key", "metric"]).any()


def test_sharing_all_photographs_shows_whatever_their_number_and_fades_with_it():
    gain, table = gains()
    primary = gain[(gain.n == 3000) & (gain.width == 32)]
    assert (primary.value > profiles.load("laptop", vision.AMOUNT).primary.smallest).all() and len(primary) == 6
    family = analysis.trends(table[table.metric == "cka"], by=["architecture"])
    assert len(family) == 12 and (family.sign > 0).all()
    falls = analysis.trends(gain, by=["width"], x="decades")
    assert (falls.sign < 0).all() and set(falls.width) == {16, 32}
    ends = [analysis.trends(gain[part], by=["width"], x="decades") for part in (gain.n <= 100, gain.n >= 100)]
    assert (ends[0].sign == 0).all() and (ends[1].sign < 0).all()  # "up to a hundred no change shows"
    few, many = (gain[gain.n == n].groupby("width").value.mean() for n in (100, 3000))
    assert (many / few).between(0.3, 0.55).all()  # "a third to a half"
    assert analysis.paired(gain, "width", 32, 16).low.item() > 0
    rng = np.random.default_rng(0)
    shuffled = [
        gain.assign(decades=gain.groupby(["seed", "width"]).decades.transform(rng.permutation)) for _ in range(20)
    ]
    assert sum((analysis.trends(t, by=["width"], x="decades").sign < 0).all() for t in shuffled) <= 2


def test_a_probe_that_changes_along_the_curve_bends_it():
    table = published.recorded(vision.TASK)
    table = table[(table.metric == "cka") & (table.architecture == "small_resnet")]
    gaps = {probe: probe_gap(table, probe) for probe in samples.GROUPS}
    assert gaps["classes_seen_by_one"].low > 0
    assert gaps["common_classes"].high < 0 and gaps["classes_seen_by_none"].high < 0


@pytest.mark.parametrize("kind", [*OVERLAP, vision.TASK_PHOTOGRAPHS])
def test_accuracy_of_the_second_model_does_not_follow_the_overlap(kind):
    table = published.recorded(kind)
    moves = analysis.trends(table[table.metric == "accuracy_second"], by=["architecture"])
    assert ((moves.low < 0) & (moves.high > 0)).all()
    first = table[table.metric == "accuracy_first"]
    assert (first.groupby(["architecture", "seed"]).value.nunique() == 1).all()  # it says nothing of the overlap


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Models that several tests need are trained once."""
    return Store(tmp_path_factory.mktemp("store"))


@pytest.mark.recorded
@pytest.mark.parametrize("kind", [*OVERLAP, *PHOTOGRAPHS])
def test_a_cell_on_overlap_in_vision_comes_out_again(kind, store):
    """Everything in common, one seed. Threads and machines lead training elsewhere, though not far.

    Farthest on handwritten digits, which no model was trained on: in one run CKA there came out 0.105 above the
    recorded one; recorded seeds range over 0.11.
    """
    some = {"seeds": [200 if kind in PHOTOGRAPHS else 0], "overlaps": [1], "architectures": ["small_resnet"]}
    (cell,) = vision.pairs(profiles.load("laptop", kind, **some), kind)
    again = sweep(engine.measure, [cell], store=store, progress=False)
    table = published.recorded(kind)
    then = table[table["key"] == key(cell.model_dump(mode="json"))]
    both = again.merge(then, on=["probe", "metric"], suffixes=("", "_then"), validate="one_to_one")
    assert len(both) == len(again) == len(then)
    far = {"cka": 0.08, "unbiased_cka": 0.08, "svcca": 0.12, "mutual_knn": 0.06, "cycle_knn": 0.1}
    far |= {"accuracy_first": 0.08, "accuracy_second": 0.08}
    for row in both[both.metric.isin(far)].itertuples():
        allowed = 0.15 if row.probe == "digits" and "cka" in row.metric else far[row.metric]
        assert row.value == pytest.approx(row.value_then, abs=allowed), (row.probe, row.metric)


LANGUAGE = [language.DATASET, language.TASK]


def as_recorded(kind, monkeypatch, **wanted):
    """Cells of the laptop profile on the text of the recorded run, whatever is installed here."""
    (read,) = published.recorded(kind).fingerprint.unique()
    with monkeypatch.context() as patch:
        patch.setattr(language.Text, "fingerprint", lambda self: read)
        pairs = finetuned.pairs if kind in FINETUNED else language.pairs
        return pairs(profiles.load("laptop", kind, **wanted), kind)


def last_layer(kind, metrics=("cka",)):
    """Recorded similarities of the last layer."""
    table = published.recorded(kind)
    return table[table.metric.isin(metrics) & table.layer.isna() & table.step.isna()]


@pytest.mark.parametrize("kind", LANGUAGE)
def test_overlap_in_language_is_the_laptop_profile_of_this_code(kind, monkeypatch):
    table = published.recorded(kind)
    assert as_in_profile(table, as_recorded(kind, monkeypatch))
    assert set(table["profile"]) == {"laptop"}
    assert not table.duplicated(["key", "probe", "metric", "layer", "step"]).any()
    assert table["seed"].nunique() >= 6 and table["overlap"].nunique() == (6 if kind == language.DATASET else 4)
    assert (table["realised_overlap"] - table["overlap"]).abs().max() < 1e-6
    fixed = last_layer(kind)
    fixed = fixed[~fixed.probe.str.endswith("_all")]
    assert (fixed.groupby(["probe", "seed"]).n_probe.nunique() == 1).all()  # a small corpus has a few windows less


def test_models_of_dataset_overlap_know_their_own_text():
    """What the chapter says of the regime: own text is known, the other's is nearly as new as any."""
    table = published.recorded(language.DATASET)
    mean = table[table.step.isna()].groupby("metric").value.mean()
    for which in ("first", "second"):
        own, other, held_out = (mean[f"loss_{text}_{which}"] for text in ("own", "other", "held_out"))
        assert own + 1 < other < held_out < other + 0.8


def test_similarity_rises_with_dataset_overlap_in_language_by_every_metric_and_layer():
    own = published.recorded(language.DATASET)
    own = own[own.metric.isin(PAPER) & (own.probe == own.dataset) & own.step.isna()]
    own = own.assign(layer=own.layer.fillna(-1))
    found = analysis.trends(own, by=["metric", "layer"])
    assert len(found) == 8 * 5
    assert (found[found.metric == "cka"].sign > 0).all()
    assert (found[found.layer == -1].sign > 0).all()
    assert seldom(lambda table: rising(table, ["metric", "layer"]) > 20, own)


def slope_of_task_overlap(probe):
    """Of a family: the four probes that stay the same along the curve, or the three that do not."""
    table = last_layer(language.TASK)
    table = table[table.probe.str.endswith("_all") == probe.endswith("_all")]
    return analysis.trends(table, by=["probe"]).set_index("probe").loc[probe]


@pytest.mark.parametrize(
    "probe",
    ["all_corpora", "common_corpora", "corpora_seen_by_none", "corpora_seen_by_one_all", "corpora_seen_by_none_all"],
)
def test_cka_rises_with_task_overlap_in_language(probe):
    assert slope_of_task_overlap(probe).sign > 0


def probe_gap(table, probe):
    """How much steeper a slope is on all classes or corpora of a group than on the same ones, within seeds."""
    own = analysis.slopes(table[table.probe.isin([probe, f"{probe}_all"])], by=["probe"])
    return analysis.paired(own, "probe", f"{probe}_all", probe, y="slope").iloc[0]


def test_most_of_the_rise_on_corpora_read_by_one_is_of_the_probe():
    fixed, whole = (slope_of_task_overlap(f"corpora_seen_by_one{rest}") for rest in ("", "_all"))
    assert fixed.slope < whole.slope / 2 and fixed.low < 0
    assert probe_gap(last_layer(language.TASK), "corpora_seen_by_one").low > 0


@pytest.mark.recorded
@pytest.mark.parametrize("kind", LANGUAGE)
def test_a_cell_on_overlap_in_language_comes_out_again(kind, store, monkeypatch):
    """Everything in common, seed 0; only where the same text is installed: other versions say other things."""
    table = published.recorded(kind)
    (cell,) = language.pairs(profiles.load("laptop", kind, seeds=[0], overlaps=[1]), kind)
    if not os.environ.get("CI") and cell.first.fingerprint not in set(table.fingerprint):
        pytest.skip("other versions of packages are installed: their text is not that of the recorded run")
    again = sweep(engine.measure, [cell], store=store, progress=False)
    then = table[table["key"] == key(cell.model_dump(mode="json"))]
    index = ["probe", "metric", "layer", "step"]
    both = again.merge(then, on=index, suffixes=("", "_then"), validate="one_to_one")
    assert len(both) == len(again) == len(then)
    far = {"cka": 0.06, "unbiased_cka": 0.06, "mutual_knn": 0.06, "cknna": 0.06}
    far |= {name: 0.15 for name in both.metric.unique() if "loss" in name or "curve" in name}
    for row in both[both.metric.isin(far)].itertuples():
        assert row.value == pytest.approx(row.value_then, abs=far[row.metric]), (row.probe, row.metric, row.layer)


def tuned(kind, view, metric, **wanted):
    """Recorded rows of fine-tuned pairs: last layer, or all weights, on held-out text of what they divide."""
    table = published.recorded(kind)
    table = table[(table["view"] == view) & (table.metric == metric) & (table.probe == table.dataset)]
    for name, value in ({"pairing": "overlap"} | wanted).items():
        table = table[table[name] == value]
    return table[table.layer.isna() & table.step.isna()]


@pytest.mark.parametrize("kind", FINETUNED)
def test_fine_tuning_is_the_laptop_profile_of_this_code(kind, monkeypatch):
    table = published.recorded(kind)
    assert as_in_profile(table, as_recorded(kind, monkeypatch))
    assert set(table["profile"]) == {"laptop"}
    assert not table.duplicated(["key", "probe", "view", "metric", "layer", "step"]).any()
    assert table["seed"].nunique() >= (4 if kind == finetuned.TASK else 8)


def test_overlap_comes_out_on_a_small_corpus_alone_and_only_there_models_know_their_text():
    table = published.recorded(finetuned.DATASET)
    whole = table[table.overlap == 1].groupby("architecture").realised_overlap.mean()
    assert whole["small_corpus"] > 0.9 and whole["large_corpus"] < 0.06
    assert (table[table.overlap == 0].realised_overlap == 0).all()
    mean = table[table.overlap == 0].groupby(["architecture", "metric"]).value.mean()
    for which, other in (("first", "second"), ("second", "first")):
        gap = {
            a: mean[a, f"loss_on_{other}_only_{which}"] - mean[a, f"loss_on_{which}_only_{which}"] for a in whole.index
        }
        assert gap["small_corpus"] > 0.5 and abs(gap["large_corpus"]) < 0.15


MEASURES = [
    ("full", "cka"),
    ("change", "cka"),
    ("weights", "update_cosine"),
    ("predictions", "symmetric_kl"),
    ("predictions", "loss_change_correlation"),
]


def ends(measures, arm, change=lambda table: table):
    """Overlap 1 less overlap 0 within seeds, of several measures as one family."""
    tables = [change(tuned(finetuned.DATASET, *key, architecture=arm)) for key in measures]
    named = pd.concat([table.assign(measure="/".join(key)) for key, table in zip(measures, tables, strict=True)])
    return analysis.paired(named, "overlap", 1, 0, by=["measure"]).set_index("measure").loc[map("/".join, measures)]


def test_the_puzzle():
    """CKA of full representations is near its ceiling at every overlap, and flat where the corpus is large."""
    everywhere = tuned(finetuned.DATASET, "full", "cka")
    assert everywhere.groupby(["architecture", "overlap"]).value.mean().min() > 0.97
    large = analysis.trend(everywhere[everywhere.architecture == "large_corpus"])
    assert large.low < 0 < large.high and large.excluded < 0.002


def test_all_measures_move_where_the_overlap_came_out():
    found = ends(MEASURES, "small_corpus")
    assert list(found.sign) == [1, 1, 1, -1, 1]
    change = [permuted(tuned(finetuned.DATASET, *key, architecture="small_corpus"), 0) for key in MEASURES]
    tables = iter(change)
    assert (ends(MEASURES, "small_corpus", lambda _: next(tables)).sign == 0).all()


def test_with_a_large_corpus_two_measures_move_a_little_and_none_after_correction():
    """Paired within seeds; the intervals of the two ends overlap, which says little."""
    found = ends(MEASURES, "large_corpus")
    alone = found.index[(found.low > 0) | (found.high < 0)]
    assert list(alone) == ["weights/update_cosine", "predictions/symmetric_kl"] and (found.sign == 0).all()
    small = ends(MEASURES, "small_corpus").estimate
    assert (found.estimate.abs() < 0.2 * small.abs()).all()
    weights = tuned(finetuned.DATASET, "weights", "update_cosine", architecture="large_corpus")
    at = analysis.mean_interval(weights).set_index("overlap")
    assert at.high[0] > at.low[1]


def test_what_of_the_likeness_is_owed_to_the_kind_of_text():
    """The ladder: unrelated changes, another kind of text, the same kind, the same text."""
    small = {"architecture": "small_corpus"}
    unrelated = tuned(finetuned.DATASET, "full", "cka_unrelated", **small).value.mean()
    floor = tuned(finetuned.DATASET, "full", "cka", pairing="floor", **small).value.mean()
    at = tuned(finetuned.DATASET, "full", "cka", **small).groupby("overlap").value.mean()
    assert unrelated < floor < at[0] < at[1]
    assert (at[0] - unrelated) / (at[1] - unrelated) > 0.8  # the larger part needs no text in common


def test_nearly_all_published_metrics_see_the_overlap():
    found = ends([("full", metric) for metric in PAPER], "small_corpus")
    assert list(found.index[found.sign != 1]) == ["full/cycle_knn"]


def test_weights_and_predictions_move_at_full_size():
    at = {
        name: tuned(finetuned.DATASET, *name, architecture="small_corpus").groupby("overlap").value.mean()
        for name in [("weights", "update_cosine"), ("predictions", "symmetric_kl")]
    }
    assert at["weights", "update_cosine"][1] > 2 * at["weights", "update_cosine"][0]
    assert at["predictions", "symmetric_kl"][1] < 0.4 * at["predictions", "symmetric_kl"][0]


def test_corpora_in_common_move_cka_little_and_hardly_a_sentence_is_read_by_both():
    """Four chosen seeds, then fresh ones: above 0 of all seeds, and far below what was published."""
    table = published.recorded(finetuned.TASK)
    cka = table[table["view"].eq("full") & table.metric.eq("cka") & table.layer.isna()]
    groups = cka[cka.probe.isin(reading.GROUPS)]
    slopes = analysis.trends(groups, by=["probe"]).set_index("probe")
    assert (slopes.sign > 0).all() and (slopes.high < 0.027).all()  # a tenth of the published slope on one probe
    assert seldom(lambda part: rising(part, ["probe"]) == len(reading.GROUPS), groups)
    assert table[table.overlap == 1].realised_overlap.mean() < 0.05


def grid_slopes(view, metric):
    return analysis.trends(tuned(finetuned.GRID, view, metric), by=["architecture"]).set_index("architecture")


def test_overlap_shows_in_every_arm_but_that_of_a_large_corpus_cut_finely():
    cka, cosine = grid_slopes("full", "cka"), grid_slopes("weights", "update_cosine")
    hidden = {"all text, fine cut"}
    assert set(cka[cka.sign <= 0].index) == hidden and cka.high["all text, fine cut"] > 0
    assert set(cosine[cosine.sign <= 0].index) == hidden | {"two bases"}
    table = published.recorded(finetuned.GRID)
    came = table[table.overlap == 1].groupby("architecture").realised_overlap.mean()
    assert came["all text"] < came["all text, fine cut"] < 0.15 and came["rank 16"] == 1


def test_without_a_shared_base_overlap_shows_less():
    own = analysis.slopes(tuned(finetuned.GRID, "full", "cka"), by=["architecture"])
    assert analysis.paired(own, "architecture", "two bases", "rank 16", y="slope").high.item() < 0


def test_small_changes_are_near_the_ceiling_but_rank_does_not_take_the_effect_away():
    size = tuned(finetuned.GRID, "change", "change_size_first").groupby("architecture").value.mean()
    cka = grid_slopes("full", "cka").slope
    arms = ["rank 1", "rank 4", "rank 16", "rank 64"]
    assert size[arms].is_monotonic_increasing and cka[arms].is_monotonic_increasing
    far = 1 - tuned(finetuned.GRID, "full", "cka").groupby(["architecture", "overlap"]).value.mean().unstack()
    removed = 1 - far[1] / far[0]
    assert removed[arms].between(0.4, 0.7).all()
    assert removed["rank 16"] < removed["shared start"] < removed["all weights"]
    assert max(removed["lr x 4"], removed["steps x 4"]) < removed["rank 16"]


@pytest.mark.recorded
@pytest.mark.parametrize("kind", FINETUNED)
def test_a_cell_of_fine_tuning_comes_out_again(kind, store, monkeypatch):
    """Everything in common, seed 0; of SmolLM2 where it has been fetched, of the grid always."""
    table = published.recorded(kind)
    arm = {finetuned.GRID: "rank 16", finetuned.TASK: "all_text"}.get(kind, "small_corpus")
    settings = profiles.load("laptop", kind, seeds=[0], overlaps=[1], architectures=[arm])
    if kind != finetuned.GRID and not (llama.place("smollm2") / "model.safetensors").is_file():
        pytest.skip("SmolLM2 is not here: `repsim models smollm2` fetches it")
    (cell,) = [cell for cell in finetuned.pairs(settings, kind) if cell.pairing == "overlap"]
    if not os.environ.get("CI") and cell.first.fingerprint not in set(table.fingerprint):
        pytest.skip("other versions of packages are installed: their text is not that of the recorded run")
    again = sweep(engine.measure, [cell], store=store, progress=False)
    then = table[table["key"] == key(cell.model_dump(mode="json"))]
    index = ["probe", "view", "metric", "layer", "step"]
    both = again.merge(then, on=index, suffixes=("", "_then"), validate="one_to_one")
    assert len(both) == len(again) == len(then)
    assert both.realised_overlap.to_numpy() == pytest.approx(both.realised_overlap_then.to_numpy(), abs=1e-6)
    for row in both[
        both.metric.isin(["cka", "unbiased_cka", "mutual_knn", "update_cosine", "loss_first"])
    ].itertuples():
        assert row.value == pytest.approx(row.value_then, abs=0.05), (row.probe, row.view, row.metric, row.layer)


MAIN = profiles.load("laptop", "adversarial_transfer").attacks()[0]
MAIN_ON_PHOTOGRAPHS = profiles.load("laptop", adversarial_transfer.PHOTOGRAPHS).attacks()[0]


def same_images(table):
    """Rows of attacks on the same images at every overlap: one common class of photographs is too few."""
    one_class = (table.cause == vision.TASK_PHOTOGRAPHS) & (table.overlap == 0.2)
    return table[(table.probe != "common_classes_all") & ~one_class]


def transfer(experiment=adversarial_transfer.EXPERIMENT, **wanted):
    """Recorded rows under the main attack."""
    table, main = same_images(published.recorded(experiment)), MAIN
    if experiment == adversarial_transfer.PHOTOGRAPHS:
        main = MAIN_ON_PHOTOGRAPHS
    for name, value in ({"attack": main.method, "epsilon": main.epsilon, "metric": "transfer"} | wanted).items():
        table = table[table[name] == value]
    return table


@pytest.mark.parametrize("experiment", ATTACKS)
def test_adversarial_transfer_is_the_laptop_profile_of_this_code(experiment):
    table = published.recorded(experiment)
    cells = adversarial_transfer.pairs(profiles.load("laptop", experiment), experiment)
    assert as_in_profile(table, cells)
    assert set(table["profile"]) == {"laptop"}
    assert not table.duplicated(["key", "probe", "attack", "epsilon", "metric"]).any()
    trained = {
        key(member.model_dump(mode="json"))
        for kind in (OVERLAP if experiment == adversarial_transfer.EXPERIMENT else PHOTOGRAPHS)
        for pair in vision.pairs(profiles.load("laptop", kind), kind)
        for member in pair.needs()
    }
    wanted = {key(member.model_dump(mode="json")) for cell in cells for member in cell.needs()[:2]}
    assert wanted <= trained  # the pairs of both sweeps: nothing is trained again
    assert (table.value[table.metric == "unmoved"] == 0).all()


CASES = [(cause, network) for cause in OVERLAP for network in ("small_resnet", "small_vit")]


def of_cases(table, by):
    """Slopes on overlap as one family, by case and what else tells them apart."""
    return analysis.trends(table, by=["cause", "architecture", *by]).set_index(["cause", "architecture", *by])


def test_transfer_rises_with_overlap_and_controls_do_not():
    """What the chapter says, at a false-discovery rate over the figure and over the table."""
    kinds = pd.concat([transfer(), *(transfer(attack=control) for control in adversarial_transfer.CONTROLS)])
    found = of_cases(kinds, ["attack"]).sign.unstack("attack")
    assert (found[MAIN.method] > 0).all() and (found[list(adversarial_transfer.CONTROLS)] == 0).all().all()
    lowest = transfer().groupby(["cause", "architecture", "overlap"]).value.mean().groupby(level=[0, 1]).min()
    means = kinds[kinds.attack != MAIN.method].groupby(["cause", "architecture", "attack"]).value.mean()
    assert (means.groupby(level=[0, 1]).max() < 0.3 * lowest).all()
    metrics = ["transfer", "transfer_all_right", "transfer_given_fooled", "same_mistake"]
    found = of_cases(pd.concat(transfer(metric=metric) for metric in metrics), ["metric"])
    assert (found.sign > 0).all()
    assert transfer(metric="white_box").groupby(["cause", "architecture"]).value.mean().min() > 0.95
    assert transfer().value.mean() < 0.5


def test_transfer_rises_in_every_case_on_fresh_seeds_alone():
    rows = transfer()
    assert (of_cases(rows[rows.seeds == "fresh"], []).sign > 0).all()


def test_the_primary_contrast_of_transfer_comes_out_on_fresh_seeds_alone():
    """The primary contrast, declared before these seeds were run; exchanged overlaps make it fail."""
    rows = transfer(cause=vision.DATASET, architecture="small_resnet")
    fresh = rows[rows.seeds == "fresh"]
    assert fresh.seed.nunique() == 8 and analysis.trend(fresh).low > 0 and analysis.trend(fresh).p < 0.05
    assert seldom(lambda table: analysis.trend(table).p < 0.05 and analysis.trend(table).slope > 0, fresh)


def recorded_pairs(cause, network):
    """Transfer, gradient cosine and each similarity on the same classes at every overlap, one row a pair."""
    index = ["overlap", "seed"]
    of = {"cause": cause, "architecture": network}
    probe = "color_shape_digit" if cause == vision.DATASET else "common_classes"
    table = published.recorded(cause)
    table = table[(table.probe == probe) & (table.architecture == network) & table.metric.isin(PAPER)]
    found = table.pivot_table(index=index, columns="metric", values="value")
    found["transfer"] = transfer(**of).set_index(index).value
    clean = published.recorded("adversarial_transfer")
    clean = clean[(clean.cause == cause) & (clean.architecture == network) & (clean.metric == "gradient_cosine")]
    found["gradients"] = clean[clean.probe != "common_classes_all"].set_index(index).value
    return found.dropna(subset=["transfer"]).reset_index()


@pytest.mark.parametrize(("cause", "network"), CASES)
def test_gradients_predict_transfer_best_and_similarity_does_too(cause, network):
    """Within seeds: across seeds, whose classes differ, CKA seemed to predict nothing under task overlap."""
    pairs = recorded_pairs(cause, network)
    told = analysis.prediction(pairs, {n: [n] for n in (*PAPER, "gradients")}, y="transfer").set_index("predictors")
    assert told.r_squared.idxmax() == "gradients" and told.low["gradients"] > 0
    assert told.r_squared["cka"] > 0
    found = analysis.correlation(pairs, "cka", "transfer")
    assert found["low"] > 0
    rng = np.random.default_rng(0)  # the same similarities, given to other pairs of their seed
    other = pairs.assign(cka=pairs.groupby("seed").cka.transform(lambda values: rng.permutation(values)))
    assert analysis.correlation(other, "cka", "transfer")["low"] < 0


@pytest.mark.parametrize(("cause", "network"), CASES)
def test_beside_overlap_gradients_add_to_the_prediction_and_cka_does_not_in_the_resnet(cause, network):
    sets = {"overlap": ["overlap"], "cka": ["overlap", "cka"], "gradients": ["overlap", "gradients"]}
    gain = analysis.prediction(recorded_pairs(cause, network), sets, y="transfer", beside="overlap")
    gain = gain.set_index("predictors")
    assert gain.low["gradients"] > 0 and gain.low["cka"] < 0
    if network == "small_resnet":
        assert gain.high["cka"] < 0.02  # a null with a bound


def test_most_of_the_effect_goes_along_with_gradients_and_little_with_cka():
    parts = pd.concat(
        analysis.mediation(recorded_pairs(*case), mediator=name, y="transfer").assign(case="/".join(case), through=name)
        for case in CASES
        for name in ("gradients", "cka")
    )
    parts = parts.set_index(["through", "effect", "case"]).sort_index()
    shares = parts.estimate["gradients", "direct"] / parts.estimate["gradients", "total"]
    assert (parts.low["gradients", "indirect"] > 0).all() and shares.between(0.2, 0.35).all()
    assert (parts.estimate["cka", "direct"] / parts.estimate["cka", "total"] > 0.6).all()
    assert (parts.low["cka", "indirect"] < 0).sum() == 3
    left = parts.loc["gradients", "direct"]
    assert (left.estimate > 0).all() and (analysis.discoveries(left).sign == 0).all()


CASES_OF_PHOTOGRAPHS = [(cause, network) for cause in PHOTOGRAPHS for network in ("small_resnet", "small_vit")]


def attacked_photographs(cause, network):
    """Transfer, gradient cosine and each similarity, all on the attacked photographs: one row a pair."""
    table = same_images(published.recorded(adversarial_transfer.PHOTOGRAPHS))
    table = table[(table.cause == cause) & (table.architecture == network)]
    clean = table[(table.attack == "none")].pivot_table(index=["overlap", "seed"], columns="metric", values="value")
    clean["transfer"] = transfer(adversarial_transfer.PHOTOGRAPHS, cause=cause, architecture=network).set_index(
        ["overlap", "seed"]
    )["value"]
    return clean.rename(columns={"gradient_cosine": "gradients"}).reset_index()


def test_the_primary_contrast_of_transfer_on_photographs():
    rows = transfer(adversarial_transfer.PHOTOGRAPHS, cause=vision.PHOTOGRAPHS, architecture="small_resnet")
    found = analysis.trend(rows)
    assert set(rows.seeds) == {"fresh"} and rows.seed.nunique() == 12 and found.p == 2 / 2**12
    assert found.low > profiles.load("laptop", adversarial_transfer.PHOTOGRAPHS).primary.smallest
    assert seldom(lambda table: analysis.trend(table).p < 0.05 and analysis.trend(table).slope > 0, rows)
    at = rows.groupby("overlap").value.mean()
    assert 2.5 < at[1] / at[0] < 3.5
    drawn = analysis.trend(transfer(cause=vision.DATASET, architecture="small_resnet"))
    assert found.low > drawn.high  # about twice as much as on drawn images


def test_transfer_rises_on_photographs_and_controls_account_for_little():
    """As the chapter says, at a false-discovery rate over the figure."""
    kinds = {name: transfer(adversarial_transfer.PHOTOGRAPHS, attack=name) for name in adversarial_transfer.CONTROLS}
    main = transfer(adversarial_transfer.PHOTOGRAPHS)
    found = of_cases(pd.concat([main, *kinds.values()]), ["attack"])
    signs = found.sign.unstack("attack")
    assert (signs[MAIN_ON_PHOTOGRAPHS.method] > 0).all()
    assert (signs[list(kinds)] > 0).sum().to_dict() == {"random_signs": 0, "shuffled": 2, "unrelated_source": 0}
    slopes = found.slope.unstack("attack")
    falls = slopes[list(kinds)][signs[list(kinds)] < 0].stack().dropna()
    assert len(falls) == 1 and falls.abs().max() < 0.02
    share = slopes[list(kinds)].abs().max(axis=1) / slopes[MAIN_ON_PHOTOGRAPHS.method]
    assert share[vision.PHOTOGRAPHS].between(0.045, 0.065).all()  # "a twentieth", and below "a quarter"
    assert share[vision.TASK_PHOTOGRAPHS].between(0.22, 0.26).all()
    assert (slopes[list(kinds)].abs().max(axis=1) < 0.26 * slopes[MAIN_ON_PHOTOGRAPHS.method]).all()
    others = [transfer(adversarial_transfer.PHOTOGRAPHS, attack=name) for name in ("fgsm", "pgd", "di-fgsm")]
    assert (of_cases(pd.concat([main, *others]), ["attack"]).sign > 0).all()
    white = transfer(adversarial_transfer.PHOTOGRAPHS, metric="white_box").groupby(["cause", "architecture"])
    assert white.value.mean().min() > 0.95


@pytest.mark.parametrize(("cause", "network"), CASES_OF_PHOTOGRAPHS)
def test_beside_overlap_gradients_add_to_the_prediction_on_photographs_and_cka_does_not(cause, network):
    """Under dataset overlap; under task overlap, with two classes to attack, nothing is decided."""
    sets = {"overlap": ["overlap"], "cka": ["overlap", "cka"], "gradients": ["overlap", "gradients"]}
    pairs = attacked_photographs(cause, network)
    gain = analysis.prediction(pairs, sets, y="transfer", beside="overlap").set_index("predictors")
    if cause == vision.PHOTOGRAPHS:
        assert gain.low["gradients"] > 0 > gain.low["cka"] and gain.high["cka"] < 0.03
        parts = analysis.mediation(pairs, mediator="gradients", y="transfer").set_index("effect")
        assert parts.estimate["indirect"] > 0.8 * parts.estimate["total"] and parts.low["direct"] < 0
        parts = analysis.mediation(pairs, mediator="cka", y="transfer").set_index("effect")
        assert parts.low["indirect"] < 0 and parts.estimate["direct"] > 0.5 * parts.estimate["total"]
    else:
        assert (gain.low[["cka", "gradients"]] < 0).all() and (gain.high - gain.low)[["cka", "gradients"]].min() > 0.2
    assert analysis.correlation(pairs, "cka", "transfer")["low"] > 0


def test_what_the_chapter_of_attacks_says_in_words():
    """Numbers that stand in its text, not in its outputs."""
    text = (Path(__file__).parents[1] / "chapters" / "consequences" / "adversarial_transfer.ipynb").read_text()
    at = transfer(adversarial_transfer.PHOTOGRAPHS, cause=vision.PHOTOGRAPHS, architecture="small_resnet")
    at = at.groupby("overlap").value.mean()
    assert f"it works on {at[0]:.0%} of photographs" in text and f"share all of them on {at[1]:.0%}" in text
    table = published.recorded(adversarial_transfer.PHOTOGRAPHS)
    clean = table[(table.attack == "none") & (table.probe != "common_classes_all")]
    n = clean.pivot_table(index="cause", columns="metric", values="n_probe", aggfunc="mean")
    left_out = 1 - n.gradient_cosine / n.cka
    assert left_out[vision.PHOTOGRAPHS] == pytest.approx(1 / 4, abs=0.03)
    assert left_out[vision.TASK_PHOTOGRAPHS] == pytest.approx(1 / 6, abs=0.03)


def test_what_overlap_0_2_would_change_in_the_attacks():
    """The pairs that the chapter leaves out, as declared: slopes, and in how many cases CKA goes with transfer."""
    table = published.recorded(adversarial_transfer.PHOTOGRAPHS)
    table = table[(table.cause == vision.TASK_PHOTOGRAPHS) & (table.probe == "common_classes")]
    main = table[(table.attack == MAIN_ON_PHOTOGRAPHS.method) & (table.epsilon == MAIN_ON_PHOTOGRAPHS.epsilon)]
    main = main[main.metric == "transfer"]
    slopes = [analysis.trend(main[main.architecture == name]).slope for name in ("small_resnet", "small_vit")]
    assert [round(slope, 2) for slope in slopes] == [0.21, 0.19]
    known = table[(table.attack == "none") & (table.metric == "cka")]
    both = main.merge(known, on=["architecture", "overlap", "seed"], suffixes=("", "_cka"))
    found = [analysis.correlation(rows, "value_cka", "value")["low"] > 0 for _, rows in both.groupby("architecture")]
    assert found == [False, True]


@pytest.mark.parametrize("network", ["small_resnet", "small_vit"])
def test_photographs_do_not_show_the_riddle(network):
    table = published.recorded(adversarial_transfer.PHOTOGRAPHS)
    table = table[(table.probe == "common_classes_all") & (table.architecture == network)]
    attack, epsilon = MAIN_ON_PHOTOGRAPHS.method, MAIN_ON_PHOTOGRAPHS.epsilon
    rates = table[(table.attack == attack) & (table.epsilon == epsilon) & (table.metric == "transfer")]
    means = [part.groupby("overlap").value.mean() for part in (rates, table[table.metric == "cka"])]
    assert means[0].corr(means[1]) > 0.3 and means[0][0.4:].corr(means[1][0.4:]) > 0.3


@pytest.mark.parametrize("network", ["small_resnet", "small_vit"])
def test_the_riddle_of_common_classes_is_one_of_the_probe(network):
    """On all common classes CKA and transfer move apart from overlap to overlap, on the same eight together."""
    table = published.recorded("adversarial_transfer")
    table = table[(table.attack == MAIN.method) & (table.epsilon == MAIN.epsilon) & (table.metric == "transfer")]
    table = table[(table.cause == vision.TASK) & (table.architecture == network)]
    alike = published.recorded(vision.TASK)
    alike = alike[(alike.metric == "cka") & (alike.architecture == network)]
    for probe, sign in (("common_classes_all", -1), ("common_classes", 1)):
        means = [part[part.probe == probe].groupby("overlap").value.mean() for part in (table, alike)]
        assert sign * means[0].corr(means[1]) > 0.3


@pytest.mark.recorded
def test_a_cell_of_attacks_comes_out_again(store):
    """The pair trained above, everything in common. What its siblings get right is another question."""
    options = {"seeds": [0], "overlaps": [1], "architectures": ["small_resnet"]}
    cell = adversarial_transfer.pairs(profiles.load("laptop", "adversarial_transfer", **options))[0]
    again = sweep(engine.measure, [cell], store=store, progress=False)
    table = published.recorded("adversarial_transfer")
    then = table[(table.cause == cell.cause) & (table.overlap == 1) & (table.seed == 0)]
    then = then[then.architecture == "small_resnet"]
    both = again.merge(then, on=["probe", "attack", "epsilon", "metric"], suffixes=("", "_then"), validate="one_to_one")
    assert len(both) == len(again) == len(then)
    for row in both[both.metric != "transfer_all_right"].itertuples():
        assert row.value == pytest.approx(row.value_then, abs=0.1), (row.attack, row.epsilon, row.metric)


def jailbreaks(metric, attack="search", judge="exact", **wanted):
    """Recorded rows of one measurement."""
    table = published.recorded("jailbreak_transfer")
    table = table[(table.metric == metric) & (table.attack == attack)]
    table = table if judge is None else table[table.judge == judge]
    for name, value in wanted.items():
        table = table[table[name] == value]
    return table


def test_jailbreak_transfer_is_the_laptop_profile_of_this_code():
    table = published.recorded("jailbreak_transfer")
    cells = jailbreak_transfer.pairs(profiles.load("laptop", "jailbreak_transfer"))
    assert as_in_profile(table, cells)
    assert set(table["profile"]) == {"laptop"}
    assert not table.duplicated(["key", "attack", "judge", "source", "view", "metric"]).any()
    assert (table.groupby(["base", "overlap"]).seed.nunique() >= 20).all()


def test_no_pair_was_attacked_of_which_a_model_fails_a_gate():
    table = published.recorded("jailbreak_transfer")
    attacked = set(jailbreaks("transfer").key)
    for cell, rows in table.groupby("key"):
        gates = rows.set_index("metric").value
        passed = [policy.passes({g: gates[f"{g}_{which}"] for g in policy.GATES}) for which in ("first", "second")]
        assert (cell in attacked) == all(passed)
    assert (jailbreaks("transfer").groupby(["base", "overlap"]).seed.nunique() >= 20).all()


def rate(metric, attack="search", **wanted):
    """Mean and interval over seeds by what is shared."""
    found = analysis.mean_interval(jailbreaks(metric, attack, **wanted), by=["base", "overlap"])
    return found.set_index(["base", "overlap"])


def test_suffixes_pass_on_where_the_base_is_shared_and_hardly_otherwise():
    found, random = rate("transfer"), rate("transfer", "random")
    assert found.low["shared", 0] > found.high["separate", 0] and found.low["shared", 1] > found.high["separate", 1]
    for overlap in (0, 1):
        assert found.low["shared", overlap] > random.high["shared", overlap]
        assert abs(found["mean"]["separate", overlap] - random["mean"]["separate", overlap]) < 0.04
    worked = rate("white_box")
    assert (worked["mean"] > 0.5).all() and worked.low.max() < worked.high.min()  # no level is easier to search
    assert random.low.max() < random.high.min()  # nor are its victims weaker


def gain(more, less, attack="search"):
    """Difference of transfer rates within seeds."""
    table = jailbreaks("transfer", attack)
    level = list(zip(table.base, table.overlap, strict=True))
    return analysis.paired(table.assign(level=level), "level", more, less)


def test_sharing_a_base_adds_more_than_sharing_dialogues():
    base = [gain(("shared", x), ("separate", x)) for x in (0, 1)]
    dialogues = gain(("shared", 1), ("shared", 0))
    assert all(found.low[0] > 0 for found in base)
    assert dialogues.low[0] > 0
    assert gain(("shared", 1), ("shared", 0), "shuffled").low[0] > 0
    apart = gain(("separate", 1), ("separate", 0))
    assert apart.low[0] < 0 < apart.high[0]
    assert dialogues.estimate[0] < min(found.estimate[0] for found in base)


def test_a_shuffled_suffix_passes_on_nearly_as_well_though_it_works_less_where_it_was_found():
    apart = [rate(metric)["mean"] - rate(metric, "shuffled")["mean"] for metric in ("white_box", "transfer")]
    assert apart[0].min() > 0.1 and apart[1].abs().max() < 0.08


def test_suffixes_do_not_break_a_model_and_phrases_mistake_refusals():
    allowed = jailbreaks("allowed_exact")
    assert allowed.value.mean() > 0.9
    assert jailbreaks("transfer", "none", "no_refusal_phrase").value.mean() > 0.45
    assert jailbreaks("transfer", "none").value.mean() < 0.02
    precision = jailbreaks("precision", judge="no_refusal_phrase, exact").value.mean()
    assert precision < 0.6 < 0.8 < jailbreaks("precision", judge="begins_with_sure, exact").value.mean()


def one_way():
    """Transfer, one row a direction, with what is held fixed and every similarity."""
    pair, rows = ["seed", "base", "overlap"], ["seed", "base", "overlap", "source"]
    table = published.recorded("jailbreak_transfer")
    named = {
        "transfer": jailbreaks("transfer"),
        "white_box": jailbreaks("white_box"),
        "fragility": jailbreaks("victim_log_probability", "random", judge=None),
    }
    wide = pd.concat({name: part.set_index(rows).value for name, part in named.items()}, axis=1).dropna().reset_index()
    alike = table[table.metric.isin(PAPER) & table["view"].notna()]
    alike = alike.assign(metric=alike.metric + alike["view"]).pivot_table(index=pair, columns="metric", values="value")
    alike["response"] = jailbreaks("response_correlation", "random", judge=None).set_index(pair).value
    wide = wide.merge(alike.reset_index(), on=pair)
    shared = (wide.base == "shared").astype(float)
    return wide.assign(shared=shared, both=shared * wide.overlap), list(alike.columns)


def test_sharing_dialogues_survives_four_looks_and_neither_part_shows_it_alone():
    """Twenty seeds were planned, twelve added after a look, in three steps: Bonferroni for four looks."""
    shared = jailbreaks("transfer", base="shared")
    first, later, all_ = (
        analysis.trend(shared[shared.seed.isin(some)]) for some in (range(20), range(20, 32), range(32))
    )
    assert first.low < 0 < first.high and later.low < 0 < later.high
    assert all_.low > 0 and max(all_.p, all_.p_t) < 0.05 / 4
    assert seldom(lambda table: analysis.trend(table).p < 0.05 / 4, shared)


def test_responses_predict_transfer_beyond_the_base_and_similarity_does_not_for_sure():
    data, measures = one_way()
    given = ["fragility", "white_box"]

    def family(given):
        rows = {
            name: analysis.mediation(data, mediator=name, y="transfer", given=given).set_index("effect").loc["mediator"]
            for name in measures
        }
        return analysis.discoveries(pd.DataFrame(rows).T.astype(float))

    free, held = family(given), family([*given, "shared", "both"])
    assert len(measures) == 17 and (free.sign > 0).all()
    assert list(held.index[held.sign != 0]) == ["response"]
    assert set(held.index[held.low > 0]) == {"response", "ckalast", "unbiased_ckalast"}
    sets = {"without": ["overlap", *given, "shared", "both"]}
    sets["with"] = [*sets["without"], "response"]
    told = analysis.prediction(data, sets, y="transfer").set_index("predictors").r_squared
    assert told["with"] > told["without"] + 0.08


@pytest.mark.recorded
def test_a_jailbreak_cell_comes_out_again(store):
    """Base and dialogues shared, seed 0, all of its models trained and attacked again."""
    options = {"seeds": [0], "overlaps": [1], "bases": ["shared"]}
    (cell,) = jailbreak_transfer.pairs(profiles.load("laptop", "jailbreak_transfer", **options))
    again = sweep(engine.measure, [cell], store=store, progress=False)
    assert "judge" in again, "a model trained here does not pass its gates: the pair is not attacked"
    table = published.recorded("jailbreak_transfer")
    then = table[table["key"] == key(cell.model_dump(mode="json"))]
    index = ["attack", "judge", "source", "view", "metric"]
    both = again.merge(then, on=index, suffixes=("", "_then"))
    assert len(again) > 0.9 * len(then)
    far = {"cka": 0.1, "mutual_knn": 0.1, "white_box": 0.35, "refusal_first": 0.02, "free_exact_second": 0.02}
    for row in both[both.metric.isin(far) & both.judge.isin(["exact", float("nan")])].itertuples():
        assert row.value == pytest.approx(row.value_then, abs=far[row.metric]), (row.attack, row.source, row.metric)
    mean = both[(both.judge == "exact") & (both.attack == "search")].groupby("metric")[["value", "value_then"]].mean()
    assert mean.value["transfer"] == pytest.approx(mean.value_then["transfer"], abs=0.35)


DIFFUSION = [diffusion.DATASET, diffusion.TASK]
AT = ["key", "probe", "view", "layer", "timestep", "metric"]


def drawn(kind):
    table = published.recorded(kind)
    return table[table.probe == "samples"]


def of_last(kind, view, *, one_timestep=False, probe="color_shape_digit", metrics=PAPER):
    """Similarities of the last activation: with a timestep of its own for each image, or with one for all."""
    table = published.recorded(kind)
    table = table[table.metric.isin(metrics) & (table.probe == probe) & (table["view"] == view)]
    return table[(table.layer == "last") & table.timestep.notna()] if one_timestep else table[table.layer.isna()]


def apart(kind, view, metric="cka", **wanted):
    """Mean of a similarity of pairs at overlap 0."""
    rows = of_last(kind, view, **wanted)
    return rows[(rows.overlap == 0) & (rows.metric == metric)].value.mean()


def over_seeds(table, by):
    """Slopes as one family of tests."""
    return analysis.trends(table, by=by).set_index(by)


@pytest.mark.parametrize("kind", DIFFUSION)
def test_overlap_in_diffusion_is_the_laptop_profile_of_this_code(kind):
    table = published.recorded(kind)
    cells = diffusion.pairs(profiles.load("laptop", kind), kind)
    assert as_in_profile(table, cells)
    assert set(table["profile"]) == {"laptop"} and not table.duplicated(["key", *AT]).any()
    assert table["seed"].nunique() >= 6 and (table["realised_overlap"] - table["overlap"]).abs().max() < 1e-6


def test_samples_show_what_was_asked_for():
    for kind in DIFFUSION:
        agreement = drawn(kind)[drawn(kind).metric.isin(["agreement_first", "agreement_second"])]
        (mean,) = analysis.mean_interval(agreement.assign(all=0), by=["all"]).itertuples()
        assert mean.low > 0.8, kind
    cells = diffusion.pairs(profiles.load("laptop", diffusion.DATASET), diffusion.DATASET)
    pictures, drawing = published.recorded_gallery(diffusion.DATASET), cells[0].first.drawing
    assert pictures.shape == (len(drawing.at) + len({cell.first.seed for cell in cells}), 10, 3, 16, 16)


def test_shared_samples_do_not_show_and_shared_classes_do_by_five_metrics():
    tables = {kind: of_last(kind, "as published") for kind in DIFFUSION}
    found = {kind: over_seeds(table, ["metric"]) for kind, table in tables.items()}
    assert (found[diffusion.DATASET].sign == 0).all() and not (found[diffusion.TASK].sign < 0).any()
    seen = found[diffusion.TASK]
    assert set(seen.index[seen.sign > 0]) == set(PAPER) - {"cka", "unbiased_cka", "cknna"}
    assert seldom(lambda table: rising(table, ["metric"]) >= 5, tables[diffusion.TASK])
    bound = found[diffusion.DATASET].excluded
    assert bound["mutual_knn"] < 0.02 and bound["cka"] < 0.06  # what a null of six seeds is worth
    variant = over_seeds(of_last(diffusion.TASK, "as published", metrics=["cknna_published"]), ["metric"])
    assert variant.low.item() > 0


def test_cka_is_as_high_for_other_images_of_the_same_noise_levels():
    kind = diffusion.TASK
    assert apart(kind, "as published") > 0.8
    assert apart(kind, "other images") == pytest.approx(apart(kind, "as published"), abs=0.02)
    assert apart(kind, "other images", "mutual_knn") < apart(kind, "as published", "mutual_knn") / 2
    assert 0.4 < apart(kind, "untrained") < 0.6
    table = published.recorded(kind)
    (rank,) = analysis.mean_interval(
        table[table.metric.str.startswith("follows_noise")].assign(all=0), by=["all"]
    ).itertuples()
    assert rank.low > 0.7


def test_with_one_timestep_what_is_alike_at_much_noise_is_the_noise():
    for kind in DIFFUSION:
        same, other = (
            of_last(kind, view, one_timestep=True, metrics=["cka"]) for view in ("as published", "other noise")
        )
        same, other = (rows[rows.overlap == 0].groupby("timestep").value.mean() for rows in (same, other))
        assert (
            same.max() < 0.5 and other[900] < 0.05 < 0.3 < same[900] and other[10] == pytest.approx(same[10], abs=0.02)
        )


def test_preparing_features_does_not_help_cka_and_equal_noise_does():
    views = {view: apart(diffusion.TASK, view) for view in diffusion.VIEWS}
    assert views.pop("without the first direction") < 0.4 and min(views.values()) > 0.8
    assert apart(diffusion.DATASET, "without the first direction") > 0.5
    for view, least in (("as published", 0.12), ("other noise", 0.1)):
        found = over_seeds(of_last(diffusion.TASK, view, one_timestep=True), ["metric"])
        assert found.low.cka > least
        assert over_seeds(of_last(diffusion.DATASET, view, one_timestep=True), ["metric"]).low.cka < 0
    small = over_seeds(of_last(diffusion.TASK, "standardised"), ["metric"])
    assert small.slope.cka < 0.05
    assert over_seeds(of_last(diffusion.TASK, "not preprocessed"), ["metric"]).slope.cka < 0.05


def test_shared_classes_show_in_the_network_and_shared_samples_do_not():
    places, counts = ["metric", "layer", "timestep"], {}
    for kind in DIFFUSION:
        table = published.recorded(kind)
        table = table[table.timestep.notna() & table.metric.isin(PAPER) & (table["view"] == "as published")]
        found = over_seeds(table, places)
        counts[kind] = (found.sign > 0).groupby("metric").sum(), (found.sign < 0).groupby("metric").sum()
        parts = over_seeds(table.assign(part=table.layer.str.split().str[0]), ["metric", "part"])
        if kind == diffusion.DATASET:
            assert ((parts.low < 0) & (parts.high > 0)).all()
        else:
            assert parts.slope.unstack("part").loc["mutual_knn"].idxmax() == "up"
    above, below = counts[diffusion.TASK]
    assert (above >= 48 / 5).all() and (below == 0).all()
    assert (counts[diffusion.DATASET][0] == 0).all() and (counts[diffusion.DATASET][1] == 0).all()


def test_slopes_on_all_classes_of_a_group_are_of_the_probe():
    def slopes(probe):
        metrics = [PUBLISHED.get(name, name) for name in PAPER if name != "edit_distance_knn"]
        return over_seeds(of_last(diffusion.TASK, "as published", probe=probe, metrics=metrics), ["metric"])

    fixed, growing = slopes("common_classes"), slopes("common_classes_all")
    assert ((fixed.low < 0) & (fixed.high > 0)).all() and (growing.slope < 0).all()
    neighbours = ["cknna_published", "mutual_knn", "cycle_knn", "lcs_knn_published"]
    assert (growing.high[neighbours] < 0).all()
    assert (slopes("classes_seen_by_one").slope < slopes("classes_seen_by_one_all").slope).all()
    theirs = {kind: published.published_slopes(kind).set_index(["probe", "metric"]).slope for kind in DIFFUSION}
    assert (theirs[diffusion.TASK]["common_classes"][["cknna", "mutual_knn", "cycle_knn", "lcs_knn"]] < 0).all()
    samples = over_seeds(
        of_last(diffusion.DATASET, "as published", metrics=["cknna_published", "mutual_knn"]), ["metric"]
    )
    there = theirs[diffusion.DATASET]["cifar10_train"]
    assert samples.high.cknna_published < there.cknna and samples.high.mutual_knn < there.mutual_knn


def test_samples_are_a_little_nearer_to_training_images_and_few_are_copies():
    near = drawn(diffusion.DATASET)
    near = near[near.metric.str.startswith("nearest")].assign(found=lambda t: t.metric.str.split("_").str[1])
    rates = analysis.mean_interval(near, by=["overlap", "found"]).set_index(["overlap", "found"])["mean"]
    assert 0.5 < rates[0, "own"] < 0.6 and 0.5 < rates[1, "shared"] < 0.6
    copied = drawn(diffusion.DATASET).query("metric.str.startswith('copied')")
    assert len(copied) > 0 and (copied.value == 0).all()
    assert rates[0.5, "own"] == pytest.approx(rates[0.5, "shared"], abs=0.03) and 0.2 < rates[0.5, "unseen"] < 1 / 3


@pytest.mark.recorded
@pytest.mark.parametrize("kind", DIFFUSION)
def test_a_cell_of_diffusion_comes_out_again(kind, store):
    """Everything in common, seed 0, both models and the judge trained again."""
    (cell,) = diffusion.pairs(profiles.load("laptop", kind, seeds=[0], overlaps=[1]), kind)
    again = sweep(engine.measure, [cell], store=store, progress=False)
    table = published.recorded(kind)
    then = table[table["key"] == key(cell.model_dump(mode="json"))]
    both = again.merge(then, on=AT, suffixes=("", "_then"), validate="one_to_one")
    assert len(both) == len(again) == len(then)
    far = {"cka": 0.15, "mutual_knn": 0.1, "agreement_first": 0.15, "agreement_second": 0.15}
    for row in both[both.metric.isin(far)].itertuples():
        assert row.value == pytest.approx(row.value_then, abs=far[row.metric]), (row.probe, row.layer, row.timestep)


def test_main_figure_is_drawn_from_the_recorded_table(tmp_path):
    chart = charts.task_overlap(published.recorded("task_only"), published.published("task_only"))
    chart.save(str(tmp_path / "figure.svg"))
    kept = data_folder().parent / "chapters" / "images" / "task_overlap.svg"
    drawn, there = (re.sub(r"clip\d+", "clip", path.read_text()) for path in (tmp_path / "figure.svg", kept))
    assert drawn == there, "the picture is not of the recorded table: make figure"
