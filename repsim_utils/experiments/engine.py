"""What all experiments are made of: models that are trained once, pairs that are measured, and a register of names.

An experiment is a module with its settings, its split and its rows: a subclass of `Model`, a subclass of `Pair`, and a
function from settings to pairs that `experiment` puts into the register. Commands, profiles and plans follow from it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from inspect import signature
from types import ModuleType
from typing import Any, ClassVar, NamedTuple, get_type_hints

from pydantic import computed_field
from torch import Tensor, nn

from repsim_utils.experiments.common import Declared, Frozen
from repsim_utils.models.device import device
from repsim_utils.plan import Size
from repsim_utils.store import Run, Store

Row = dict[str, Any]


class Keyed(Frozen):
    """A configuration whose JSON is its key in the store; with it change the versions of what its result depends on.

    `depends` names modules with a ``VERSION`` that the result of this class depends on, beside what it says of others.
    `version` is of the class itself: raised when what is written in it gives another result.
    """

    depends: ClassVar[tuple[ModuleType, ...]] = ()
    version: ClassVar[int] = 1

    @computed_field  # type: ignore[prop-decorator]
    @property
    def versions(self) -> dict[str, int]:
        """The ``VERSION`` of every module that the result depends on, by its name; and that of the class, from 2 on."""
        found = {module.__name__.removeprefix("repsim_utils."): module.VERSION for module in self.modules()}
        return found | ({type(self).__name__: self.version} if self.version > 1 else {})

    @classmethod
    def modules(cls) -> tuple[ModuleType, ...]:
        """Modules whose versions count."""
        return cls.depends

    def config(self) -> dict[str, Any]:
        """The configuration as plain data: what `repsim_utils.store.key` takes."""
        return self.model_dump(mode="json")

    def needs(self) -> tuple[Model, ...]:
        """Models that must be trained before this is."""
        return ()


class Fitted(NamedTuple):
    """What is kept of a training: a record of plain data, and tensors by name."""

    record: dict[str, Any]
    tensors: dict[str, Tensor] | None = None


class Model(Keyed):
    """One model of a pair: what it learns, and how.

    `which` of two it is decides, with the `seed`, on its weights and its batches, and on its part of what both divide.
    """

    kind: ClassVar[str] = "models"
    seed: int

    @property
    def dataset(self) -> str:
        """What tables call the data that a pair divides."""
        return self.size().dataset

    def build(self, store: Store) -> nn.Module:
        """The network before its training."""
        raise NotImplementedError

    def fit(self, network: Any, store: Store, *, progress: bool) -> Fitted:
        """Train the network, in place."""
        raise NotImplementedError

    def restore(self, weights: dict[str, Tensor], store: Store) -> nn.Module:
        """The network with weights that were kept."""
        network = self.build(store)
        network.load_state_dict({name: weights[name] for name in network.state_dict()})
        return network

    def size(self) -> Size:
        """What training takes, known without the data."""
        raise NotImplementedError


class Pair(Keyed):
    """One cell of an experiment: two models, and what is measured on them. `kind` is the name of the experiment.

    The ``VERSION`` of the module of a pair's class, and of classes from which it inherits, counts without being named.
    """

    kind: str
    architecture: str
    overlap: float
    first: Any
    second: Any

    def needs(self) -> tuple[Model, ...]:
        """Both models."""
        return self.first, self.second

    @classmethod
    def modules(cls) -> tuple[ModuleType, ...]:
        """With the modules in which it is written what is measured."""
        own = (sys.modules[kind.__module__] for kind in cls.__mro__ if issubclass(kind, Pair))
        return *cls.depends, *(module for module in own if hasattr(module, "VERSION"))

    def columns(self, store: Store) -> Row:
        """What every row says of the pair."""
        about = {"dataset": self.second.dataset, "architecture": self.architecture}
        return about | {"overlap": self.overlap, "seed": self.second.seed}

    def rows(self, first: Any, second: Any, store: Store) -> Iterable[Row]:
        """What is measured on two trained networks: a row each, with at least ``metric`` and ``value``."""
        raise NotImplementedError


def trained(model: Model, store: Store, *, progress: bool = True) -> Run:
    """The run of a model: from the store, or trained now and kept there."""
    config = model.config()
    run = store.load(model.kind, config)
    if run is None:
        fitted = model.fit(model.build(store), store, progress=progress)
        run = store.save(model.kind, config, *fitted)
        store.checkpoint(model.kind, config).unlink(missing_ok=True)
    return run


def load(model: Model, store: Store, *, progress: bool = True) -> Any:
    """The network of a model, trained or taken from the store, on the device in use and in evaluation mode."""
    return model.restore(trained(model, store, progress=progress).weights(), store).to(device()).eval()


def load_pair(pair: Pair, store: Store, *, progress: bool = True) -> tuple[Any, Any]:
    """Both networks of a pair; see `load`."""
    return load(pair.first, store, progress=progress), load(pair.second, store, progress=progress)


def measure(pair: Pair, store: Store, *, progress: bool = True) -> list[Row]:
    """Rows of a pair, whose models are trained or taken from the store; the pair's class says which.

    Parameters
    ----------
    pair : Pair
    store : Store
        Where trained models are looked for and kept.
    progress : bool
        Show the progress of trainings.
    """
    for model in pair.needs():
        trained(model, store, progress=progress)
    about = pair.columns(store)
    return [about | row for row in pair.rows(*load_pair(pair, store, progress=progress), store)]


class Experiment(NamedTuple):
    """An experiment as the command line, profiles and plans see it.

    Attributes
    ----------
    about : str
        What it is on, in one line: the first of its module's docstring.
    settings : type
        What a profile says of it.
    pairs : callable
        From settings to cells, seed by seed.
    by : tuple of str
        Columns by which a summary tells results apart.
    prepare : callable
        ``prepare(cells)`` fetches what they read, before anything is trained.
    gallery : callable, optional
        ``gallery(cells, store)``: pictures uint8 (rows, columns, 3, h, h), recorded beside the table.
    """

    about: str
    settings: type[Declared]
    pairs: Callable[[Any], list[Any]]
    by: tuple[str, ...]
    prepare: Callable[[Any], None]
    gallery: Callable[[Any, Store], Tensor] | None


EXPERIMENTS: dict[str, Experiment] = {}


def experiment(
    *names: str,
    by: tuple[str, ...],
    prepare: Callable[[Any], None] = lambda cells: None,
    gallery: Callable[[Any, Store], Tensor] | None = None,
) -> Callable[[Any], Any]:
    """Put a function ``pairs(settings)``, or of several names ``pairs(settings, kind)``, into the register."""

    def register(pairs: Any) -> Any:
        settings = get_type_hints(pairs)["settings"]
        about = (sys.modules[pairs.__module__].__doc__ or "").partition("\n")[0]
        for name in names:
            several = "kind" in signature(pairs).parameters
            function = partial(pairs, kind=name) if several else pairs
            EXPERIMENTS[name] = Experiment(about, settings, function, by, prepare, gallery)
        return pairs

    return register


def models(cells: Iterable[Keyed]) -> Iterator[Model]:
    """Every model that cells need, once, each after those that it needs."""
    seen: set[Model] = set()

    def walk(one: Keyed) -> Iterator[Model]:
        for model in one.needs():
            if model not in seen:
                seen.add(model)
                yield from walk(model)
                yield model

    for cell in cells:
        yield from walk(cell)
