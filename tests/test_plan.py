"""What an experiment would take, held against known networks and sums made by hand."""

import socket

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import torchvision

from repsim_utils import plan as planning
from repsim_utils import profiles
from repsim_utils.experiments import EXPERIMENTS, adversarial_transfer, samples, vision
from repsim_utils.models.vision import RESNETS, VITS, build
from repsim_utils.plan import GPUS, Size, cost, plan
from tests import tiny

PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "vit_tiny_patch16_224": 5_717_416,
    "vit_small_patch32_224": 22_878_952,
    "vit_base_patch32_224": 88_224_232,
    "vit_large_patch32_224": 306_535_400,
}
COLUMNS = (
    "dataset", "model", "cells", "models", "samples", "epochs", "parameters", "gflops", "pflops", "disk_gb", "hours",
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing is looked up or downloaded."""

    def refuse(*args, **options):
        raise AssertionError("the network was asked")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_of_known_networks(name, pretrained):
    assert cost(224, name=name, n_classes=1000, pretrained=pretrained)[0] == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_they_are_the_networks_of_torchvision_and_timm(name):
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)() if name in RESNETS else timm.create_model(name, num_classes=1000)
    assert sum(p.numel() for p in theirs.parameters()) == cost(224, name=name, n_classes=1000)[0]


def test_every_large_network_is_held_against_a_known_one():
    assert set(PARAMETERS) == {*RESNETS, *VITS}


@pytest.mark.parametrize(
    ("name", "gmacs"), [("resnet18", 1.81), ("resnet50", 4.09), ("resnet152", 11.51), ("vit_base_patch32_224", 4.41)]
)
def test_operations_are_twice_the_known_multiply_adds(name, gmacs):
    assert cost(224, name=name, n_classes=1000)[1] / 1e9 == pytest.approx(2 * gmacs, rel=0.03)


def small_resnet_by_hand(pixels, width, n_classes):
    """Multiply-adds of its convolutions, shortcuts and head, at depth 1."""
    side = -(-pixels // 2)
    macs = side**2 * width * 3 * 9
    channels = width
    for stage in range(3):
        n_out = width * 2**stage
        side = side if stage == 0 else -(-side // 2)
        macs += side**2 * n_out * 9 * (channels + n_out)
        macs += side**2 * n_out * channels if stage else 0
        channels = n_out
    return macs + channels * n_classes


@pytest.mark.parametrize(("pixels", "width", "n_classes"), [(28, 16, 80), (32, 4, 7), (17, 8, 10)])
def test_operations_of_the_small_network_by_hand(pixels, width, n_classes):
    network = {"name": "small_resnet", "width": width, "n_classes": n_classes}
    parameters, flops = cost(pixels, **network)
    assert flops == 2 * small_resnet_by_hand(pixels, width, n_classes)
    assert parameters == sum(p.numel() for p in build(**network, seed=0).parameters())


def test_twice_the_pixels_are_four_times_the_operations():
    """But for the head; transformers and pretrained networks resize what they are given."""
    body = [cost(p, name="resnet18", n_classes=1, stem="cifar")[1] - 2 * 512 for p in (32, 64)]
    assert body[1] == 4 * body[0]
    for network in ({"name": "small_vit", "width": 32}, {"name": "resnet18", "pretrained": True}):
        assert cost(32, n_classes=10, **network) == cost(64, n_classes=10, **network)


def test_counting_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    cost(30, name="small_resnet", n_classes=10, width=5)
    assert torch.equal(before, torch.get_rng_state())


def planned(name="dataset_overlap_vision", gpu="a100", utilisation=0.25, **changes):
    cells = vision.pairs(tiny.settings(**changes), name)
    return plan(cells, gpu=gpu, utilisation=utilisation)


def test_a_plan_by_hand():
    """Two seeds and three overlaps: the first model of a seed is one model, whatever the overlap."""
    row = planned().iloc[0]
    parameters, flops = cost(28, name="small_resnet", width=4, n_classes=80)
    assert list(row.index) == list(COLUMNS)
    assert (row.dataset, row.model) == ("color_shape_digit", "small_resnet")
    assert (row.cells, row.models, row.samples, row.epochs) == (6, 2 + 6, 400, 1)
    assert (row.parameters, row.gflops) == (parameters, flops / 1e9)
    assert row.pflops == pytest.approx(8 * 400 * 3 * flops / 1e15)
    assert row.disk_gb == pytest.approx(8 * parameters * 4 / 1e9)
    assert row.hours == pytest.approx(8 * 400 * 3 * flops / (156e12 * 0.25) / 3600)


def test_models_of_a_class_split_predict_half_of_the_classes():
    row = planned("task_overlap_vision").iloc[0]
    assert row.parameters == cost(28, name="small_resnet", width=4, n_classes=40)[0]
    assert (row.cells, row.models, row.samples) == (6, 8, 400)


def test_a_model_in_many_cells_counts_once():
    cells = vision.pairs(tiny.settings(), vision.DATASET)
    once, twice = plan(cells), plan(cells * 2)
    pd.testing.assert_frame_equal(once.drop(columns="cells"), twice.drop(columns="cells"))
    assert list(twice.cells) == [12]
    unconstrained = planned(mode="unconstrained")  # where the first model follows the overlap, too
    assert list(unconstrained.models) == [12]


def test_every_network_and_data_set_has_a_row():
    data = [{"source": "color_shape_digit", "n_per_class": n, "factors": ["shape"]} for n in (100, 200)]
    table = planned(architectures=["small_vit", "small_resnet"], data=[data[0], {"source": "digits"}])
    names = list(table[["dataset", "model"]].itertuples(index=False, name=None))
    assert names == [(d, m) for d in ("color_shape_digit", "digits") for m in ("small_vit", "small_resnet")]
    assert planned(data=data[1]).pflops.item() == pytest.approx(2 * planned(data=data[0]).pflops.item())


def test_a_network_is_named_as_in_tables():
    """Two trainees may share a network: their trainings are not one row."""
    short = tiny.NETWORKS["small_resnet"]
    models = {"short": short, "long": short | {"recipe": short["recipe"] | {"epochs": 5}}}
    table = planned(models=models, architectures=["short", "long"])
    assert list(table.model) == ["short", "long"]
    assert list(table.epochs) == [1, 5] and list(table.cells) == [6, 6]


def test_hours_scale_inversely_with_utilisation_and_speed():
    full, half = planned(utilisation=1.0), planned(utilisation=0.5)
    assert half.hours.item() == pytest.approx(2 * full.hours.item())
    for gpu, speed in GPUS.items():
        assert planned(gpu=gpu).hours.item() * speed == pytest.approx(planned(gpu="a100").hours.item() * GPUS["a100"])
    pd.testing.assert_frame_equal(full.drop(columns="hours"), half.drop(columns="hours"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gpu": "abacus"}, "unknown gpu 'abacus'; choose from v100, t4, a100, "),
        ({"utilisation": 0}, r"utilisation must be above 0 and at most 1, got 0"),
        ({"utilisation": 1.01}, r"utilisation must be above 0 and at most 1, got 1.01"),
        ({"utilisation": float("nan")}, r"utilisation must be above 0 and at most 1, got nan"),
    ],
)
def test_errors(change, message):
    with pytest.raises(ValueError, match=message):
        planned(**change)


def paper(name, **changes):
    experiment = EXPERIMENTS[name]
    cells = experiment.pairs(profiles.load("paper", name, **changes))
    return cells, plan(cells)


def assert_finite_and_positive(table):
    numbers = table.select_dtypes("number")
    assert list(table) == list(COLUMNS) and len(numbers.columns) == len(COLUMNS) - 2
    assert np.isfinite(numbers.to_numpy(float)).all() and (numbers > 0).all().all()


def test_the_paper_on_task_only():
    """Ten seeds of five pairs, made of seven models; 800,000 images, 20 epochs."""
    cells, table = paper("task_only")
    assert_finite_and_positive(table)
    row = table.iloc[0]
    assert len(table) == 1 and len(cells) == row.cells == 50
    assert (row.models, row.samples, row.epochs, row.model) == (70, 800_000, 20, "resnet18")
    flops = sum(
        n * cost(28, name="resnet18", n_classes=c)[1] for c, n in ((8, 1), (10, 1), (80, 2), (100, 1), (800, 2))
    )
    assert row.pflops == pytest.approx(10 * 3 * flops * 800_000 * 20 / 1e15)


DRAWN = {"source": "color_shape_digit", "n_per_class": 10, "factors": ["shape", "digit", "color"]}  # of 1,000: quicker


@pytest.mark.parametrize(
    ("name", "overlaps", "n_classes"), [("dataset_overlap_vision", 11, 100), ("task_overlap_vision", 6, 50)]
)
def test_the_paper_on_resnet18_from_scratch(name, overlaps, n_classes):
    cells, table = paper(name, architectures=["resnet18_scratch"], data=[{"source": "cifar100"}, DRAWN])
    assert_finite_and_positive(table)
    assert list(table.dataset) == ["cifar100", "color_shape_digit"]
    assert list(table.cells) == [10 * overlaps] * 2 and len(cells) == 20 * overlaps
    assert list(table.models) == [10 * (overlaps + 1)] * 2 and list(table.epochs) == [50, 50]
    assert list(table.samples) == [25_000, 4_000]
    row, (parameters, flops) = table.iloc[0], cost(32, name="resnet18", stem="cifar", n_classes=n_classes)
    assert (row.parameters, row.gflops) == (parameters, flops / 1e9)


@pytest.mark.parametrize(("name", "overlaps"), [("dataset_overlap_vision", 11), ("task_overlap_vision", 6)])
def test_the_paper_on_overlap_in_vision(name, overlaps, monkeypatch):
    """Nine networks on two data sets, none of which is loaded; to be quick, every network is counted at 224 pixels."""
    monkeypatch.setattr(planning, "cost", lambda pixels, *, name, **rest: cost(224, name=name, n_classes=1000))
    for loader in ("divided", "held_out", "ColorShapeDigit"):
        monkeypatch.setattr(samples, loader, None)
    cells, table = paper(name)
    assert_finite_and_positive(table)
    assert table.cells.sum() == len(cells) == 2 * (10 * overlaps + 8 * 4 * 6)
    assert table.models.sum() == 2 * (10 * (overlaps + 1) + 8 * 4 * 7)
    images = table.groupby("dataset", sort=False).samples.unique().map(list).to_dict()
    assert images == {"cifar100": [25_000], "tinyimagenet": [50_000]}
    rest = table[~table.model.str.startswith("resnet18")]
    assert list(rest.model) == [*RESNETS[1:], *VITS] * 2
    assert set(rest.cells) == {4 * 6} and set(rest.models) == {4 * 7} and set(rest.epochs) == {5}
    assert list(rest.parameters) == [PARAMETERS[model] for model in rest.model]


@pytest.mark.parametrize("name", ["dataset_overlap_vision", "task_overlap_vision"])
def test_resnet18_from_scratch_and_pretrained_are_planned_apart(name):
    table = paper(name, data=[{"source": "cifar100"}], architectures=["resnet18_scratch", "resnet18"])[1]
    assert list(table.model) == ["resnet18_scratch", "resnet18"] and list(table.epochs) == [50, 5]


def test_task_only_says_its_size():
    member = EXPERIMENTS["task_only"].pairs(profiles.load("paper", "task_only"))[0].first
    size = member.size()
    assert isinstance(size, Size) and (size.network["name"], *size[2:5]) == ("resnet18", 800_000, 20, 28)


def test_attacks_need_the_pairs_of_both_sweeps_and_a_source_that_reads_digits():
    settings = profiles.load("smoke", "adversarial_transfer", architectures=["small_resnet"])
    table = plan(adversarial_transfer.pairs(settings))
    assert table.set_index("dataset")[["cells", "models"]].T.to_dict() == {
        "color_shape_digit": {"cells": 4, "models": 6},  # the task sweep has no cell, and no second model, at overlap 0
        "digits": {"cells": 0, "models": 1},
    }


@pytest.mark.parametrize(
    ("name", "n_overlaps", "n_classes"), [("dataset_overlap_diffusion", 5, 10), ("task_overlap_diffusion", 6, 5)]
)
def test_the_paper_on_diffusion(name, n_overlaps, n_classes):
    """Four seeds; a step is a batch of images, and judges are not counted."""
    cells, table = paper(name)
    assert_finite_and_positive(table)
    (row,) = table.itertuples()
    (trainee,) = profiles.load("paper", name).models.values()
    network = {"n_classes": n_classes, "size": 32} | trainee.network.model_dump()
    parameters, flops = cost(32, **network)
    assert len(cells) == row.cells == 4 * n_overlaps and row.models == 4 * (1 + n_overlaps)
    assert row.samples == trainee.recipe.steps * trainee.recipe.batch_size and row.parameters == parameters
    assert row.pflops == pytest.approx(row.models * 3 * flops * row.samples / 1e15)
