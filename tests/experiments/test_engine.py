"""The engine: what keys depend on, what is registered, and that each model is trained once."""

import ast
import inspect
import sys
from importlib import import_module

import pytest

from repsim_utils import profiles
from repsim_utils.experiments import EXPERIMENTS, engine
from repsim_utils.store import key


def cells(name):
    settings = profiles.load("smoke", name)
    return EXPERIMENTS[name].pairs(settings)


def keyed(cell):
    """Everything that has a key: the cell, and the models that it needs."""
    return [cell, *engine.models([cell])]


def declared():
    """Modules that some class of the experiments depends on."""
    return sorted({m.__name__ for name in EXPERIMENTS for one in keyed(cells(name)[0]) for m in one.depends})


@pytest.mark.parametrize("module", declared())
def test_a_raised_version_moves_the_keys_of_what_depends_on_it_and_no_other(module, monkeypatch):
    every = {name: cells(name)[0] for name in EXPERIMENTS}
    before = {name: [key(one.config()) for one in keyed(cell)] for name, cell in every.items()}
    monkeypatch.setattr(import_module(module), "VERSION", 1_000)
    for name, cell in every.items():
        for one, then in zip(keyed(cell), before[name], strict=True):
            inside = [one, *engine.models([one])]  # a configuration holds those of the models that it needs
            depends = any(module in (m.__name__ for m in part.depends) for part in inside)
            assert (key(one.config()) != then) == depends, (name, type(one).__name__)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_whatever_has_a_version_and_is_imported_is_depended_on(name):
    """An experiment's module that imports what has a VERSION has a class that declares it."""
    cell = cells(name)[0]
    modules = {sys.modules[type(one).__module__] for one in keyed(cell)}
    depended = {m.__name__ for one in keyed(cell) for m in one.depends}
    for module in modules:
        for imported in imports(module):
            if hasattr(sys.modules.get(imported), "VERSION") and not imported.startswith("repsim_utils.datasets"):
                assert imported in depended, (module.__name__, imported)


def imports(module):
    """Modules of the package that a module imports, or imports from."""
    found = set()
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("repsim_utils"):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name in sys.modules}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_no_two_models_or_cells_of_an_experiment_have_one_key(name):
    every = cells(name)
    assert len({key(cell.config()) for cell in every}) == len(every)
    models = list(engine.models(every))
    assert len({key(model.config()) for model in models}) == len(models)
    assert {cell.kind for cell in every} == {name}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_configuration_survives_the_way_to_a_worker(name):
    import pickle

    for one in keyed(cells(name)[0]):
        again = pickle.loads(pickle.dumps(one))
        assert again == one and again.config() == one.config()
