"""A small grid of real pairs, and functions that workers can import."""

import os
import time

from repsim_utils.experiments import engine
from repsim_utils.experiments.vision import Settings

NETWORKS = {
    "small_resnet": {
        "network": {"name": "small_resnet", "width": 4},
        "recipe": {"epochs": 1, "batch_size": 40, "lr": 0.1, "peak_epoch": 0.5},
    },
    "small_vit": {
        "network": {"name": "small_vit", "width": 32},
        "recipe": {"epochs": 1, "batch_size": 40, "lr": 0.001, "peak_epoch": 0.5, "optimizer": "adamw"},
    },
}


def settings(**changes):
    """One network, two seeds and three overlaps unless told otherwise."""
    values = {
        "seeds": [0, 1],
        "overlaps": [0, 0.6, 1],
        "data": {"source": "color_shape_digit", "n_per_class": 10, "difficulty": 0.0},
        "models": NETWORKS,
        "architectures": ["small_resnet"],
        "n_test": 10,
        "n_probe": 160,
        "n_permutations": 19,
    }
    return Settings.model_validate(values | changes)


def note(store, what):
    """One line for each call, in a file beside the store."""
    with open(f"{store.root}.notes", "a") as notes:
        notes.write(f"{what} {os.getpid()}\n")


def noted(store, what):
    """Lines of `note` about this."""
    with open(f"{store.root}.notes") as notes:
        return [line for line in notes if line.startswith(what)]


def train(member, store, *, progress):
    """Train a model, slowly enough to be killed meanwhile."""
    note(store, f"train {member.seed} {member.which} {member.overlap}")
    time.sleep(0.3)
    return engine.trained(member, store, progress=progress)


def measure(pair, store, *, progress):
    """Measure a pair whose models are there."""
    assert all(store.has(member.kind, member.config()) for member in pair.needs())
    note(store, f"measure {pair.second.seed} {pair.overlap}")
    return engine.measure(pair, store, progress=progress)


def measure_some(pair, store, *, progress):
    """As `measure`, but one cell fails."""
    if pair.overlap == 0.6 and pair.second.seed == 1:
        raise ZeroDivisionError("not this one")
    return measure(pair, store, progress=progress)


def measure_nothing(pair, store, *, progress):
    """As quick as can be."""
    return [{"seed": pair.second.seed, "overlap": pair.overlap}]


def measure_never(pair, store, *, progress):
    """As quick to fail."""
    raise ZeroDivisionError("not at all")


def train_some(member, store, *, progress):
    """As `train`, but one model of two cells fails."""
    if member.which == 1 and member.seed == 1:
        raise ZeroDivisionError("not this model")
    return train(member, store, progress=progress)
