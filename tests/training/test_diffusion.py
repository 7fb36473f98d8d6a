"""Training of diffusion models: averaged weights, and going on after a kill to the very same weights."""

import logging
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from repsim_utils.models.diffusion import build, sample
from repsim_utils.training import diffusion
from repsim_utils.training.diffusion import Recipe, train

STEPS = 12
RECIPE = Recipe(steps=STEPS, batch_size=4, lr=0.01, warmup=2, ema=0.9)
IMAGES = torch.randint(256, (20, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
LABELS = torch.arange(20) % 3


def fresh():
    return build(3, seed=0, size=8, width=8, multipliers=(1, 2), groups=4)


def draw(model):
    return sample(model, torch.arange(3), size=8, seed=0, steps=2)


def run(model, checkpoint=None, recipe=RECIPE, **options):
    options = {"seed": 1, "draw": draw, "draw_at": (2, 8), "progress": False} | options
    return train(model, IMAGES, LABELS, recipe, checkpoint=checkpoint, checkpoint_every=0, **options)


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


class Killed(BaseException):
    """As if the process ended."""


def stopped_after(model, checkpoint, step, patch):
    """A training that comes to its end too early."""
    loss = diffusion._loss

    def ends(model, images, labels, recipe, seed, now):
        if now == step:
            raise Killed
        return loss(model, images, labels, recipe, seed, now)

    patch.setattr(diffusion, "_loss", ends)
    with pytest.raises(Killed):
        run(model, checkpoint)
    patch.setattr(diffusion, "_loss", loss)


def test_it_learns():
    model = fresh()
    history = run(model, recipe=RECIPE.model_copy(update={"steps": 60}))
    losses = [point["loss"] for point in history.curve]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert history.curve[-1]["step"] == 60 and not model.training
    assert set(history.pictures) == {2, 8} and history.pictures[2].shape == (3, 3, 8, 8)


@pytest.mark.parametrize("step", [4, 7, 11])
def test_a_stopped_training_comes_to_the_same_weights(tmp_path, monkeypatch, step):
    whole, path = fresh(), tmp_path / "some.safetensors"
    undisturbed = run(whole)
    stopped_after(fresh(), path, step, monkeypatch)
    assert path.is_file()
    begun, loss = [], diffusion._loss
    monkeypatch.setattr(diffusion, "_loss", lambda *given: begun.append(given[-1]) or loss(*given))
    again = fresh()
    resumed = run(again, path)
    assert begun[0] == step  # of every step there is a checkpoint
    assert same(again, whole)
    assert resumed.curve == undisturbed.curve
    assert resumed.pictures.keys() == undisturbed.pictures.keys()
    assert all(torch.equal(resumed.pictures[at], undisturbed.pictures[at]) for at in (2, 8))


KILLED = """
import sys, time, torch
from pathlib import Path
from repsim_utils.training import diffusion
from tests.training.test_diffusion import fresh, run
torch.set_num_threads(int(sys.argv[2]))
loss = diffusion._loss
diffusion._loss = lambda *given: time.sleep(0.2) or loss(*given)
run(fresh(), Path(sys.argv[1]))
"""


def test_a_killed_process_is_gone_on_from(tmp_path):
    """SIGKILL while it trains, at a moment of its own; what goes on ends as what was never disturbed."""
    path = tmp_path / "some.safetensors"
    threads = str(torch.get_num_threads())
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path), threads], env=os.environ)
    for _ in range(600):
        if path.is_file() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and path.is_file()
    whole, again = fresh(), fresh()
    run(whole)
    run(again, path)
    assert same(again, whole)


def test_a_damaged_checkpoint_is_named_and_training_begins_anew(tmp_path, monkeypatch, caplog):
    path = tmp_path / "some.safetensors"
    stopped_after(fresh(), path, 7, monkeypatch)
    path.write_bytes(path.read_bytes()[:-100])
    whole, again = fresh(), fresh()
    run(whole)
    with caplog.at_level(logging.WARNING):
        run(again, path)
    assert str(path) in caplog.text and same(again, whole)


def test_the_average_of_weights_is_what_is_left(monkeypatch):
    """By hand, from the weights after every step."""
    model, steps = fresh(), []
    update = diffusion._State.update

    def noted(state, loss):
        found = update(state, loss)
        steps.append([p.detach().clone() for p in state.parameters])
        return found

    monkeypatch.setattr(diffusion._State, "update", noted)
    history = run(model, draw_at=(8,))
    averages = []
    expected = steps[0]
    for i, now in enumerate(steps):
        if i:
            decay = min(RECIPE.ema, (1 + i) / (10 + i))
            expected = [decay * e + (1 - decay) * p for e, p in zip(expected, now, strict=True)]
        averages.append(expected)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(model.parameters(), averages[-1], strict=True))
    assert not all(torch.allclose(a, b, atol=1e-4) for a, b in zip(model.parameters(), steps[-1], strict=True))
    then = fresh()  # pictures on the way are of the average, too
    for parameter, value in zip(then.parameters(), averages[7], strict=True):
        parameter.data.copy_(value)
    assert (draw(then).int() - history.pictures[8].int()).abs().max() <= 1


def test_drawing_on_the_way_changes_nothing():
    looked, not_looked = fresh(), fresh()
    run(looked)
    run(not_looked, draw=None)
    assert same(looked, not_looked)


@pytest.mark.parametrize(("share", "told"), [(0.0, {0, 1, 2}), (1.0, {3})])
def test_label_dropout(monkeypatch, share, told):
    model, seen = fresh(), set()
    model.unet.class_embedding.register_forward_pre_hook(lambda module, given: seen.update(given[0].tolist()))
    run(model, recipe=RECIPE.model_copy(update={"label_dropout": share}), draw=None)
    assert seen == told


def test_seeds_differ_in_all_that_they_draw():
    losses = [diffusion._loss(fresh(), IMAGES, LABELS, RECIPE, seed, step).item() for seed in (0, 1) for step in (0, 1)]
    assert len(set(losses)) == 4


def test_the_rate_rises_and_falls():
    rates = [RECIPE.lr_at(step) for step in range(STEPS)]
    assert rates[0] < rates[1] < rates[2] == RECIPE.lr and rates[2:] == sorted(rates[2:], reverse=True)
    assert 0 < rates[-1] < 0.05 * RECIPE.lr


def test_errors():
    with pytest.raises(ValueError, match="got 20 images, 3 labels"):
        train(fresh(), IMAGES, LABELS[:3], RECIPE, seed=0, progress=False)
    with pytest.raises(ValueError, match=r"training diverged by step \d+: lower lr"):
        run(fresh(), recipe=RECIPE.model_copy(update={"lr": 1e30}), draw=None)
