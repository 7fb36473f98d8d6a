"""The engine: what keys depend on, what is registered, and that each model is trained once."""

import ast
import inspect
import pickle
import pkgutil
import sys
from collections import defaultdict
from functools import lru_cache
from importlib import import_module

import pytest

import repsim_utils
from repsim_utils import profiles
from repsim_utils.datasets import corpora
from repsim_utils.experiments import EXPERIMENTS, engine
from repsim_utils.published import recorded_path
from repsim_utils.store import key

OVERLAP = {"dataset_overlap_vision", "task_overlap_vision"}
VISION = OVERLAP | {"task_only"}
DIFFUSION = {"dataset_overlap_diffusion", "task_overlap_diffusion"}
LANGUAGE = {"dataset_overlap_language", "task_overlap_language"}
FINETUNED = {"dataset_overlap_finetuned", "task_overlap_finetuned", "lora_grid"}
CHATS = {"jailbreak_transfer", "jailbreak_finetuned"}
ADVERSARIAL = {"adversarial_transfer"}
CROSSED = {"together_tasks", "together_classes"}
TUNED = FINETUNED | CHATS
READERS = LANGUAGE | TUNED
BOOK = VISION | DIFFUSION | READERS | ADVERSARIAL | CROSSED
DEPENDENT = {  # whose keys move when the VERSION of a module is raised
    "attacks.adversarial": ADVERSARIAL | CROSSED,
    "attacks.jailbreak": CHATS,
    "attacks.judges": CHATS,
    "attacks.transfer": ADVERSARIAL | CROSSED,
    "datasets.color_shape_digit": VISION | DIFFUSION | ADVERSARIAL | CROSSED,
    "datasets.corpora": READERS - {"jailbreak_transfer"},
    "datasets.dialogues": CHATS,
    "datasets.goals": {"jailbreak_finetuned"},
    "datasets.text": READERS,
    "datasets.vision": OVERLAP | ADVERSARIAL | CROSSED,  # further probes, and the source of a control
    "experiments.adversarial_transfer": ADVERSARIAL,
    "experiments.changes": FINETUNED,
    "experiments.diffusion": DIFFUSION,
    "experiments.drawings": DIFFUSION,
    "experiments.finetuned": FINETUNED,
    "experiments.jailbreak_finetuned": {"jailbreak_finetuned"},
    "experiments.jailbreak_transfer": {"jailbreak_transfer"},
    "experiments.language": LANGUAGE,
    "experiments.policy": {"jailbreak_transfer"},
    "experiments.task_only": {"task_only"},
    "experiments.together": CROSSED,
    "experiments.vision": VISION | CROSSED,
    "features": VISION | CROSSED | DIFFUSION | LANGUAGE | {"jailbreak_transfer"},
    "metrics": BOOK - ADVERSARIAL - {"jailbreak_finetuned"},
    "models.adapters": TUNED,
    "models.diffusion": DIFFUSION,
    "models.language": READERS,
    "models.llama": TUNED,
    "models.smollm2": TUNED,
    "models.vision": VISION | DIFFUSION | ADVERSARIAL | CROSSED,
    "overlap": BOOK,
    "training.diffusion": DIFFUSION,
    "training.language": READERS,
    "training.vision": VISION | DIFFUSION | ADVERSARIAL | CROSSED,
}


@lru_cache
def settings(name):
    return profiles.load("smoke", name)


def cells(name):
    return EXPERIMENTS[name].pairs(settings(name))


def keyed(cell):
    """Everything that has a key: the cell, and the models that it needs."""
    return [cell, *engine.models([cell])]


def with_version():
    """Modules of the package that have a VERSION."""
    every = (module.name for module in pkgutil.walk_packages(repsim_utils.__path__, "repsim_utils."))
    found = {name for name in every if hasattr(import_module(name), "VERSION")}
    return {name.removeprefix("repsim_utils.") for name in found}


def test_of_every_module_with_a_version_it_is_known_what_depends_on_it():
    added = {f"experiments.{name}" for name in set(EXPERIMENTS) - BOOK}  # of which the next tests take care
    assert with_version() - added == set(DEPENDENT)


def test_what_is_recorded_has_a_version(read_once):
    for name in EXPERIMENTS:
        if recorded_path(name).is_file():
            assert hasattr(sys.modules[type(cells(name)[0]).__module__], "VERSION")


@pytest.fixture(scope="module")
def read_once():
    """Files of corpora do not change while these tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpora, "fingerprint", lru_cache(corpora.fingerprint))
        yield {name: [key(one.config()) for one in keyed(cells(name)[0])] for name in EXPERIMENTS}


@pytest.mark.parametrize("module", DEPENDENT)
def test_a_raised_version_moves_the_keys_of_what_depends_on_it_and_no_other(module, read_once, monkeypatch):
    monkeypatch.setattr(import_module(f"repsim_utils.{module}"), "VERSION", 1_000)
    moved = {name for name in BOOK if key(cells(name)[0].config()) != read_once[name][0]}
    assert moved == DEPENDENT[module]


@pytest.mark.parametrize(
    ("module", "name", "kept"),
    [
        ("features", "dataset_overlap_diffusion", {"Member"}),  # how good its drawings are is in its record
        ("models.adapters", "lora_grid", {"Base", "Member"}),
        ("models.adapters", "jailbreak_transfer", {"Base", "Member", "Suffixes"}),
        ("attacks.jailbreak", "jailbreak_transfer", {"Suffixes"}),
    ],
)
def test_models_are_trained_again_where_what_is_kept_of_them_changes(module, name, kept, read_once, monkeypatch):
    monkeypatch.setattr(import_module(f"repsim_utils.{module}"), "VERSION", 1_000)
    every = zip(keyed(cells(name)[0])[1:], read_once[name][1:], strict=True)
    assert {type(one).__name__ for one, then in every if key(one.config()) != then} == kept


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_class_has_a_version_of_its_own(name, read_once, monkeypatch):
    for i, one in enumerate(keyed(cells(name)[0])):
        monkeypatch.setattr(type(one), "version", 2)
        assert key(keyed(cells(name)[0])[i].config()) != read_once[name][i]
        monkeypatch.undo()


@pytest.mark.parametrize(("module", "kept"), [("metrics", "Member"), ("attacks.judges", "Suffixes")])
def test_what_measures_does_not_make_models_be_trained_again(module, kept, read_once, monkeypatch):
    monkeypatch.setattr(import_module(f"repsim_utils.{module}"), "VERSION", 1_000)
    for name in EXPERIMENTS:
        for one, then in zip(keyed(cells(name)[0]), read_once[name], strict=True):
            assert type(one).__name__ != kept or key(one.config()) == then


# Modules of experiments of which are used, beside classes, cells and what fetches data: no measurement.
NOT_MEASURED = {
    ("adversarial_transfer", "vision"),
    ("together", "adversarial_transfer"),
    ("diffusion", "vision"),
    ("jailbreak_finetuned", "finetuned"),
}


def test_whatever_has_a_version_and_is_imported_is_depended_on(read_once):
    """An experiment's module that imports what has a VERSION has a class that declares it."""
    depended = defaultdict(set)
    for name in EXPERIMENTS:
        every = keyed(cells(name)[0])
        for module in {type(one).__module__ for one in every}:
            depended[module] |= {m.__name__.removeprefix("repsim_utils.") for one in every for m in one.modules()}
    for module, declared in depended.items():
        mine = module.rpartition(".")[2]
        wanted = {one for one in imports(sys.modules[module]) & set(DEPENDENT) if not one.startswith("datasets.")}
        wanted -= {f"experiments.{other}" for which, other in NOT_MEASURED if which == mine}
        assert wanted <= declared, mine


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_module_in_which_something_is_measured_is_depended_on(name, read_once):
    """Also by what inherits it."""
    cell = cells(name)[0]
    measures = next(kind for kind in type(cell).__mro__ if "rows" in vars(kind))
    modules = {sys.modules[kind.__module__] for kind in (measures, type(cell))}
    assert {module for module in modules if hasattr(module, "VERSION")} <= set(cell.modules())


def imports(module):
    """Modules of the package that a module imports, or imports from, without the package's name.

    Of experiments, classes say themselves what they depend on.
    """
    found = set()
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("repsim_utils"):
            names, source = {alias.name for alias in node.names}, import_module(node.module)
            classes = all(inspect.isclass(getattr(source, name, None)) for name in names)
            found |= {f"{node.module}.{name}" for name in names}
            found |= set() if classes and ".experiments." in node.module else {node.module}
    return {name.removeprefix("repsim_utils.") for name in found}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_no_two_models_or_cells_of_an_experiment_have_one_key(name, read_once):
    every = cells(name)
    assert len({key(cell.config()) for cell in every}) == len(every)
    models = list(engine.models(every))
    assert len({key(model.config()) for model in models}) == len(models)
    assert {cell.kind for cell in every} == {name}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_configuration_survives_the_way_to_a_worker(name, read_once):
    for one in keyed(cells(name)[0]):
        again = pickle.loads(pickle.dumps(one))
        assert again == one and again.config() == one.config()
