"""What the chapters set out to test, and what came of it."""

import io
from functools import cache

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from repsim_utils import files, profiles, published, tables
from repsim_utils.analysis import trend
from repsim_utils.datasets import corpora
from repsim_utils.experiments import EXPERIMENTS

RECORDED = sorted(path.stem for path in (files.data_folder() / "results").glob("*.csv"))


def test_every_recorded_experiment_declares_a_primary_contrast_and_has_a_chapter():
    assert sorted(tables.CHAPTERS) == RECORDED
    for name in RECORDED:
        declared = profiles.load("laptop", name)
        rows = tables.primary_rows(name)
        assert declared.primary.smallest > 0 and rows.seed.nunique() >= 4, name
        assert not rows.duplicated(["seed", declared.primary.slope_on, *({"pair", "source"} & set(rows))]).any(), name
        assert (files.data_folder().parent / "chapters" / f"{tables.CHAPTERS[name]}.ipynb").is_file()


@pytest.mark.parametrize("name", RECORDED)
def test_fresh_seeds_are_those_of_the_profile(name):
    table, declared = published.recorded(name), profiles.load("laptop", name)
    fresh = table[table.seeds == "fresh"].seed
    assert set(table.seeds) <= {"fresh", "chosen"} and set(fresh) <= set(declared.fresh_seeds)
    seeds = {cell.second.seed for cell in EXPERIMENTS[name].pairs(declared)}
    assert set(declared.fresh_seeds) <= seeds and seeds - set(declared.fresh_seeds) <= set(table.seed)
    assert not set(fresh) & set(table[table.seeds == "chosen"].seed)


def test_the_table_of_claims_is_that_of_the_recorded_results():
    """Written by `repsim claims --record`."""
    kept = pd.read_csv(files.data_folder() / "claims.csv")
    now = pd.read_csv(io.StringIO(tables.claims().to_csv(index=False, float_format="%.4g")))
    pd.testing.assert_frame_equal(kept, now)


def test_claims_in_words_have_every_experiment_and_say_what_is_not_confirmed():
    said = tables.claims_in_words()
    paragraphs = said.split("\n\n")
    assert len(paragraphs) == len(RECORDED) + 1 and paragraphs[-1] == tables.LEGEND
    for paragraph in paragraphs[:-1]:
        assert ("no fresh seeds" in paragraph) == ("  fresh " not in paragraph)
    (vision,) = [paragraph for paragraph in paragraphs if paragraph.startswith("dataset_overlap_vision (")]
    assert "metric cka" in vision and "  fresh    8 seeds  +0.0" in vision and "  pooled  16 seeds" in vision


def test_claims_by_hand():
    """One row again, by NumPy alone."""
    table = published.recorded("dataset_overlap_vision")
    table = table[
        (table.architecture == "small_resnet") & (table.probe == "color_shape_digit") & (table.metric == "cka")
    ]
    for seeds, some in (("fresh", table[table.seeds == "fresh"]), ("pooled", table)):
        own = [np.polyfit(part.overlap, part.value, 1)[0] for _, part in some.groupby("seed")]
        found = tables.claims().query("experiment == 'dataset_overlap_vision'").set_index("seeds").loc[seeds]
        assert found.slope == pytest.approx(np.mean(own)) and found.n_units == len(own)


def line(*slopes):
    table = pd.DataFrame([(s, x, x * slope) for s, slope in enumerate(slopes) for x in (0, 1)])
    return trend(table.set_axis(["seed", "overlap", "value"], axis=1))


@pytest.mark.parametrize(
    ("slopes", "said"),
    [
        ((0.10, 0.11, 0.12, 0.11), "above 0 and larger than the smallest effect of interest"),
        ((-0.10, -0.11, -0.12, -0.11), "below 0 and larger than the smallest effect of interest"),
        ((0.01, 0.011, 0.012, 0.011), "above 0 and smaller than the smallest effect of interest"),
        ((0.01, -0.011, 0.012, -0.011), "not distinguishable from 0 and smaller than the smallest effect of interest"),
        ((0.3, -0.3, 0.4, -0.5), "not distinguishable from 0; the smallest effect of interest is not excluded"),
        ((0.02,), "one seed: no interval"),
        ((0.02, 0.09, 0.04, 0.08), "above 0; the smallest effect of interest is not excluded"),
    ],
)
def test_verdicts(slopes, said):
    assert tables.verdict(line(*slopes), 0.05) == said


def test_an_interval_in_words():
    assert tables.interval(line(0.1, 0.1, 0.1), 2) == "+0.10 [+0.10, +0.10]"
    assert tables.interval(pd.Series({"mean": 0.5, "low": 0.4, "high": 0.6}), 1) == "0.5 [0.4, 0.6]"
    assert tables.interval(pd.Series({"estimate": -0.5, "low": -0.6, "high": -0.4}), 1) == "-0.5 [-0.6, -0.4]"
    gain = {"predictors": "cka", "r_squared": 0.5, "low": -0.1, "high": 0.62}
    for row in (gain, pd.Series(gain), next(pd.DataFrame([gain]).itertuples())):
        assert tables.interval(row, 1) == "0.5 [-0.1, 0.6]"
        assert tables.interval(row, 2, signed=True) == "+0.50 [-0.10, +0.62]"
        assert tables.interval(row, 0, percent=True) == "50% [-10%, 62%]"
    both = {"mean": 0.1, "slope": 0.2, "low": 0.1, "high": 0.3}
    assert tables.interval(both, 1, signed=False) == "0.2 [0.1, 0.3]"


def test_names_of_series():
    named = tables.series(pd.DataFrame({"architecture": ["small_vit", "my_net"]}), {"small_vit": "small ViT"})
    assert list(named) == ["small ViT", "my net"]


def test_a_star_marks_discoveries():
    row = {"estimate": 0.5, "low": 0.4, "high": 0.6}
    said = [tables.starred(pd.Series(row | {"sign": sign}), 1) for sign in (1.0, 0.0, -1.0)]
    assert said == ["+0.5 [+0.4, +0.6] *", "+0.5 [+0.4, +0.6]", "+0.5 [+0.4, +0.6] *"]


@pytest.mark.parametrize("steeper", [0.05, -0.02])
def test_an_interaction_is_the_difference_of_two_slopes_of_the_same_seeds(monkeypatch, steeper):
    """Written out: whatever a seed adds to both, and to one, the slopes differ by what was put in."""
    rows = [
        {"pair": pair, "probe": "color_shape_digit", "metric": metric, "overlap": x, "seed": seed, "seeds": "fresh"}
        | {"value": (metric == "cka") * (seed + flat + slope * x * (1 + 0.1 * seed))}
        for pair, flat, slope in (("shape+digit | shape+digit", 0.5, 0.1 + steeper), ("shape | digit", 0, 0.1))
        for metric in ("cka", "svcca")
        for x in (0, 0.25, 1)
        for seed in range(4)
    ]
    table = pd.DataFrame(rows).sample(frac=1, random_state=0)
    monkeypatch.setattr(published, "recorded", lambda name: table)
    found = tables.primary_trends("together_tasks")["fresh"]
    own = [steeper * (1 + 0.1 * seed) for seed in range(4)]
    assert found.slope == pytest.approx(np.mean(own)) and found.n_units == 4
    half = stats.sem(own) * stats.t.ppf(0.975, 3)
    assert (found.low, found.high) == pytest.approx((np.mean(own) - half, np.mean(own) + half))


def test_a_slope_on_another_column(monkeypatch):
    rows = [
        {"probe": "fashion_mnist", "metric": "cka", "overlap": images, "task_overlap": classes, "seed": seed}
        | {"seeds": "fresh", "value": seed + 0.3 * classes + 2 * images * classes}
        for images in (0, 1)
        for classes in (0.2, 0.6, 1)
        for seed in range(3)
    ]
    monkeypatch.setattr(published, "recorded", lambda name: pd.DataFrame(rows))
    assert tables.primary_trends("together_photographs")["fresh"].slope == pytest.approx(0.3)


def test_a_primary_contrast_in_words():
    said = tables.primary("task_only", "linear CKA", "from level to level")
    assert said.startswith("**Primary contrast.** How much does linear CKA change from level to level? ")
    found = tables.primary_trends("task_only")["chosen"]
    assert (
        f"- Recorded (8 seeds): +{found.slope:.3f} [" in said and "no fresh seeds confirm" in said and "(0.03)" in said
    )
    confirmed = tables.primary("dataset_overlap_vision", "linear CKA")
    assert "before the fresh seeds were run" in confirmed and "- Fresh seeds alone (8 seeds): " in confirmed
    assert "(16 seeds): " in confirmed and "no fresh seeds" not in confirmed


def test_all_experiments_may_be_recorded_seed_by_seed(monkeypatch):
    """Every cell says its seed, by which `--record` keeps or runs it; the corpora of several are read once."""
    monkeypatch.setattr(corpora, "fingerprint", cache(corpora.fingerprint))
    for name, experiment in EXPERIMENTS.items():
        cells = experiment.pairs(profiles.load("smoke", name))
        assert all(isinstance(cell.second.seed, int) for cell in cells), name
