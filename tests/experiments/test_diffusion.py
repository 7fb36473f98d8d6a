"""Overlap in diffusion models: what is trained, drawn and measured, in tiny runs from end to end."""

from functools import partial

import pandas as pd
import pytest
import torch

from repsim_utils.experiments import diffusion, engine
from repsim_utils.experiments.diffusion import (
    CONTROLS,
    DATASET,
    TASK,
    VIEWS,
    first_direction,
    gallery,
    pairs,
    prepared,
    spectrum,
)
from repsim_utils.features import draw_noise, represent_noisy
from repsim_utils.metrics import PAPER, PUBLISHED
from repsim_utils.models.diffusion import Denoiser, sample
from repsim_utils.store import Store, key
from repsim_utils.sweep import sweep

KINDS = (DATASET, TASK)
LAYERS = ["down 1", "down 2", "middle", "up 1", "up 2", "last"]
SETTINGS = {
    "seeds": [0],
    "overlaps": [0, 0.5, 1],
    "data": {"source": "color_shape_digit", "factors": ["shape"], "n_per_class": 100, "size": 16, "difficulty": 0.0},
    "models": {
        "small_unet": {
            "network": {"width": 8, "multipliers": [1, 2], "groups": 4},
            "recipe": {"steps": 4, "batch_size": 8, "lr": 0.001, "ema": 0.5},
        }
    },
    "drawing": {"n_per_class": 2, "steps": 2, "at": [0.5], "n_real": 100},
    "judge": {
        "network": {"name": "small_resnet", "width": 8},
        "recipe": {"epochs": 1, "batch_size": 64, "lr": 0.1, "peak_epoch": 0.5},
    },
    "timesteps": [100, 900],
    "n_test": 100,
    "n_probe": 64,
    "probe_classes": 2,
    "n_permutations": 19,
}


def settings(**changes):
    return diffusion.Settings.model_validate(SETTINGS | changes)


def named(config):
    return key(config.model_dump(mode="json"))


class Run:
    def __init__(self, root, kind):
        self.store, self.kind, self.cells = Store(root), kind, pairs(settings(), kind)
        self.table = sweep(engine.measure, self.cells, store=self.store, progress=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return {kind: Run(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.fixture(params=KINDS)
def run(request, runs):
    return runs[request.param]


def test_the_first_model_is_trained_once_and_the_judge_sees_other_images(run):
    assert len({named(cell.first) for cell in run.cells}) == 1 and len({named(cell.second) for cell in run.cells}) == 3
    judge = run.cells[0].first.judge
    assert {named(cell.second.judge) for cell in run.cells} == {named(judge)}
    of_judge, of_models = ({i.numpy().tobytes() for i in m.pool().images} for m in (judge, run.cells[0].first))
    assert not of_judge & of_models
    assert not list(run.store.root.glob("checkpoints/*"))  # all are finished


def test_models_are_trained_on_their_part(run):
    for cell in run.cells:
        for member in cell.needs():
            images, labels = member.own()
            assert len(images) == 400
            n_classes = 8 if run.kind == DATASET else 4
            assert labels.bincount().tolist() == [400 // n_classes] * n_classes
            model, kept = engine.load(member, run.store), engine.trained(member, run.store)
            assert model.null == n_classes and kept.record["n_train"] == 400


def test_samples_and_pictures_are_of_the_averaged_weights_that_are_kept(run):
    """What is measured are these weights too: `measure` takes them from `load`."""
    member = run.cells[0].first
    model, kept = engine.load(member, run.store), engine.trained(member, run.store)
    n_classes = len(member.label_map())
    how = {"size": 16, "seed": 0, "steps": 2, "guidance": 3.0}
    asked = torch.arange(n_classes).repeat(2)
    assert torch.equal(kept.weights()["samples"], sample(model, asked, **how))
    assert kept.weights()["pictures.2"].shape == (n_classes, 3, 16, 16)


def test_weights_that_are_kept_are_averages(tmp_path, monkeypatch):
    kept = []
    copy_to = diffusion.training._State.averaged
    monkeypatch.setattr(
        diffusion.training._State, "averaged", lambda state, draw: kept.append(state) or copy_to(state, draw)
    )
    run = engine.trained(run_cell(), Store(tmp_path), progress=False)
    (state,) = kept
    weights = run.weights()
    names = [name for name, _ in state.model.named_parameters()]
    for name, shadow in zip(names, state.ema.shadow_params, strict=True):
        assert torch.equal(weights[name], shadow)


def run_cell():
    return pairs(settings(), DATASET)[0].first


def test_a_stopped_training_is_gone_on_from_in_the_store(run, tmp_path, monkeypatch):
    store, member = Store(tmp_path), run.cells[0].first
    loss = diffusion.training._loss

    def ends(*given):
        if given[-1] == 3:
            raise KeyboardInterrupt
        return loss(*given)

    monkeypatch.setattr(diffusion.training, "_loss", ends)
    monkeypatch.setattr(diffusion, "train", partial(diffusion.train, checkpoint_every=0))
    with pytest.raises(KeyboardInterrupt):
        engine.trained(member, store, progress=False)
    (path,) = (tmp_path / "checkpoints").iterdir()
    assert path == store.checkpoint(member.kind, member.model_dump(mode="json"))
    begun = []
    monkeypatch.setattr(diffusion.training, "_loss", lambda *given: begun.append(given[-1]) or loss(*given))
    again = engine.trained(member, store, progress=False).weights()
    assert begun == [3] and not path.is_file()
    then = engine.trained(member, run.store).weights()
    assert again.keys() == then.keys() and all(torch.equal(again[name], then[name]) for name in then)


def test_both_models_see_the_same_noise(run):
    """Their networks are given the very same numbers, of the very same timesteps."""
    cell = run.cells[0]
    images = cell.held_out().images[:50]
    given = []
    for member in cell.needs():
        model = engine.load(member, run.store)
        model.unet.register_forward_pre_hook(
            lambda module, args, kwargs: given.append((*args, kwargs["class_labels"])), with_kwargs=True
        )
        represent_noisy(model, images, seed=3)
        assert (given[-1][2] == model.null).all()
    (x, t, _), (y, s, _) = given
    assert torch.equal(x, y) and torch.equal(t, s) and len(t.unique()) > 40
    represent_noisy(model, images, seed=4)
    assert not torch.equal(given[2][0], x) and not torch.equal(given[2][1], t)


def test_measuring_gives_both_models_one_seed_but_for_controls(run, monkeypatch):
    asked = []
    for controls in ("_controls", "_with_other_noise"):
        monkeypatch.setattr(diffusion, controls, lambda *_: [])
    monkeypatch.setattr(
        diffusion,
        "represent_noisy",
        lambda model, images, **options: (
            asked.append((len(images), options)) or represent_noisy(model, images, **options)
        ),
    )
    engine.measure(run.cells[0], run.store, progress=False)
    assert asked and asked[0::2] == asked[1::2]
    assert {options["seed"] for _, options in asked} == {0}


def test_controls_keep_the_timesteps_and_change_the_noise_and_the_images(run, monkeypatch):
    asked, pair = [], run.cells[0]
    models = [engine.load(one, run.store) for one in pair.needs()]
    probe = pair.held_out().images[:64]
    timesteps = draw_noise(probe, seed=0)[1]

    def spy(model, images, **options):
        asked.append((model, images, options))
        return represent_noisy(model, images, **options)

    monkeypatch.setattr(diffusion, "represent_noisy", spy)
    x = represent_noisy(models[0], probe, seed=0)["last"]
    rows = pd.DataFrame(diffusion._controls(x, models[1], probe, pair))
    assert list(dict.fromkeys(rows["view"])) == list(CONTROLS)
    *new, (_, same, noise), (_, others, too) = asked
    for (model, images, options), member in zip(new, pair.needs(), strict=True):
        untrained = member.build().state_dict()
        assert all(torch.equal(value, untrained[name]) for name, value in model.state_dict().items())
        assert images is probe and options == {"seed": 0}
    for options in (noise, too):
        assert options["seed"] != 0 and torch.equal(options["timestep"], timesteps)
    assert same is probe and not torch.equal(others, probe)
    assert {i.numpy().tobytes() for i in others} == {i.numpy().tobytes() for i in probe}
    asked.clear()
    diffusion._with_other_noise(*models, probe, pair)
    assert [(options["seed"] == 0, options["timestep"]) for _, _, options in asked] == [
        *((True, 100), (False, 100)),
        *((True, 900), (False, 900)),
    ]


def test_a_timestep_may_be_given(run):
    model = engine.load(run.cells[0].first, run.store)
    images = run.cells[0].held_out().images[:10]
    seen = []
    model.noisy = lambda images, noise, steps: seen.append(steps) or Denoiser.noisy(model, images, noise, steps)
    represent_noisy(model, images, seed=0, timestep=7)
    represent_noisy(model, images, seed=0, timestep=torch.arange(10))
    assert seen[0].tolist() == [7] * 10 and seen[1].tolist() == list(range(10))


def test_what_cannot_be_represented(run):
    model = engine.load(run.cells[0].first, run.store)
    images = run.cells[0].held_out().images[:4]
    with pytest.raises(ValueError, match=r"images must be uint8 \(n, 3, h, w\), got torch.float32"):
        represent_noisy(model, images.float() / 255, seed=0)
    with pytest.raises(ValueError, match=r"images must be uint8 .* \(4, 1, 16, 16\)"):
        represent_noisy(model, images[:, :1], seed=0)
    with pytest.raises(ValueError, match="timestep must be from 0 to 999, got 1000"):
        represent_noisy(model, images, seed=0, timestep=1000)


def test_rows(run):
    table = run.table
    whole = table[table.probe == "color_shape_digit"]
    published = whole[(whole["view"] == VIEWS[0]) & whole.layer.isna()]
    of_models = {
        f"{name}_{which}"
        for name in ("first_direction", "dimensions", "follows_noise")
        for which in ("first", "second")
    }
    assert set(published.metric) == {*PAPER, *PUBLISHED.values(), *of_models}
    assert published.null_mean.notna().sum() == 3 * (len(PAPER) + len(PUBLISHED))
    for view in VIEWS[1:]:
        assert set(whole.metric[whole["view"] == view]) == set(PAPER)
    for view in CONTROLS:
        assert set(whole.metric[(whole["view"] == view) & whole.layer.isna()]) == set(PAPER)
    grid = whole[whole.layer.notna()]
    assert len(grid[grid["view"] == "other noise"]) == 3 * len(PAPER) * 2
    grid = grid[grid["view"] == VIEWS[0]]
    assert len(grid) == 3 * len(PAPER) * len(LAYERS) * 3 and set(grid.layer) == set(LAYERS)
    assert set(grid.timestep.dropna()) == {100, 900}
    last = grid[(grid.layer == "last") & grid.timestep.isna() & (grid.metric == "cka")]
    assert last.value.tolist() == pytest.approx(published.value[published.metric == "cka"].tolist(), abs=1e-9)
    assert not table.duplicated(["key", "probe", "view", "layer", "timestep", "metric"]).any()
    assert set(table.probe) >= ({"common_classes", "classes_seen_by_one"} if run.kind == TASK else set())
    assert table.value.notna().all()


def test_copies_are_of_sets_that_are_there(run):
    drawn = run.table[run.table.probe == "samples"]
    shares = drawn[drawn.metric.str.startswith("nearest")]
    for which in ("first", "second"):
        mine = shares[shares.metric.str.endswith(which)]
        assert mine.groupby("overlap").value.sum().tolist() == pytest.approx([1, 1, 1])
        sets = mine.groupby("overlap").metric.agg(lambda names: {name.split("_")[1] for name in names})
        assert sets.tolist() == [{"own", "unseen"}, {"shared", "own", "unseen"}, {"shared", "unseen"}]
    assert set(drawn.metric) >= {"agreement_first", "frechet_second", "frechet_real_second", "agreement_real_first"}


def test_prepared_and_spectrum():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, generator=generator) + 10 * torch.randn(60, 1, generator=generator)
    assert spectrum(x).sum() == pytest.approx(1) and spectrum(x)[0] > 0.9
    assert torch.equal(prepared(x, "not preprocessed"), x.double())
    standard = prepared(x, "standardised")
    assert torch.allclose(standard.mean(0), torch.zeros(5).double(), atol=1e-9)
    assert torch.allclose(standard.std(0), torch.ones(5).double())
    along, direction = first_direction(x)
    assert along.var() / x.var(0).sum() == pytest.approx(float(spectrum(x)[0]), rel=1e-4)
    assert torch.allclose(along, (x - x.mean(0)) @ direction) and direction.norm() == pytest.approx(1, rel=1e-5)
    whole, rest = prepared(x, "as published"), prepared(x, "without the first direction")
    assert torch.allclose(spectrum(rest)[:-1], spectrum(whole)[1:] / spectrum(whole)[1:].sum(), atol=1e-6)


def test_gallery_shows_a_training_and_then_a_model_of_every_seed(runs):
    store, cells = runs[DATASET].store, pairs(settings(seeds=[0, 1], overlaps=[0.5, 1]), DATASET)
    found = gallery(cells, store)
    assert found.shape == (1 + 2, 8, 3, 16, 16) and found.dtype == torch.uint8
    one, other = (engine.trained(cells[i].first, store).weights() for i in (0, 2))
    assert torch.equal(found[0], one["pictures.2"])
    assert torch.equal(found[1], one["samples"][:8]) and torch.equal(found[2], other["samples"][:8])
    assert not torch.equal(found[1], found[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timesteps": [1000]}, "timesteps are different whole numbers from 0 to 999"),
        ({"timesteps": []}, "at least one"),
        ({"data": SETTINGS["data"] | {"size": 17}}, "size must be a multiple of 2 for 2 stages, got 17"),
        ({"architectures": ["unet"]}, "no architecture unet; choose from small_unet"),
    ],
)
def test_errors(change, message):
    with pytest.raises(ValueError, match=message):
        settings(**change)


def test_the_table_is_the_same_from_the_store(run):
    again = sweep(engine.measure, run.cells, store=run.store, progress=False)
    pd.testing.assert_frame_equal(again, run.table)
