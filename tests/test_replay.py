"""The first steps of every recipe of the laptop profile give what they gave: tighter and quicker than whole cells."""

import json
import os

import pytest

from repsim_utils.datasets.archives import FASHION_MNIST
from repsim_utils.experiments import reading
from repsim_utils.models import llama
from tests import replay

WRITTEN = json.loads(replay.WRITTEN.read_text())
RECIPES = replay.recipes()


def test_every_recipe_is_written_down():
    assert list(WRITTEN) == list(RECIPES)


@pytest.fixture
def recipe(name):
    """A recipe whose text has been read and encoded, which on a new machine takes longer than its first steps."""
    if "photographs" in name and "CI" not in os.environ and not FASHION_MNIST.folder.is_dir():
        pytest.skip("needs the package dataset-fashion-mnist")
    bases = [getattr(model, "base", None) for model in RECIPES[name][1]]
    if llama.SMOLLM2 in bases and not llama.place(llama.SMOLLM2).is_dir():
        pytest.skip("needs SmolLM2: repsim models smollm2")
    for model in RECIPES[name][1]:
        if isinstance(model, reading.Reader):
            reading.library(model.text, model.fingerprint)
    return RECIPES[name]


@pytest.mark.parametrize("name", RECIPES)
def test_first_steps_come_out_again(name, recipe):
    found, then = replay.replayed(*recipe), WRITTEN[name]
    for losses, before in zip(found["losses"], then["losses"], strict=True):
        assert losses == pytest.approx(before, abs=1e-3)
    assert found["cka"] == pytest.approx(then["cka"], abs=1e-3)
