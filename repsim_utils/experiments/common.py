"""What settings of experiments have in common: frozen, with seeds, overlaps and architectures that are checked."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from repsim_utils.metrics import PAPER, PUBLISHED, report
from repsim_utils.models.vision import NAMES

LEAST_PROBE = 30  # samples; metrics that look at ten neighbors or ten dimensions say nothing with fewer


class Frozen(BaseModel):
    """A configuration: it cannot change, and it knows its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _known_model(name: str) -> str:
    if name not in NAMES:
        raise ValueError(f"must be one of {', '.join(NAMES)}")
    return name


def _different_seeds(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ValueError("seeds are different whole numbers, 0 or more")
    return seeds


Seeds = Annotated[tuple[int, ...], Field(min_length=1), AfterValidator(_different_seeds)]


def _between_0_and_1(values: tuple[float, ...]) -> tuple[float, ...]:
    if not all(0 <= value <= 1 for value in values) or len(set(values)) < len(values):
        raise ValueError("overlaps are different numbers between 0 and 1")
    return values


Overlaps = Annotated[tuple[float, ...], Field(min_length=1), AfterValidator(_between_0_and_1)]


class Primary(Frozen):
    """The one contrast by which an experiment is judged: the slope on overlap of the recorded rows in `where`.

    A value of None in `where` selects rows in which that column is empty. `smallest` is the smallest effect of
    interest, a change of the measurement from overlap 0 to overlap 1 (from level to level in `task_only`). The slope is
    on another column where `slope_on` names one. With `against`, the contrast is an interaction: how much steeper the
    slope is than that of the rows which one finds when these values take the place of those in `where`.
    """

    where: dict[str, str | float | None] = Field(min_length=1)
    slope_on: str = "overlap"
    against: dict[str, str | float | None] = {}
    smallest: float = Field(gt=0)


class Declared(Frozen):
    """Settings with what an experiment declares before it is run; no key of the store depends on that.

    `fresh_seeds` are those of `seeds` that nobody had looked at when the recipe and `primary` were written down.
    """

    fresh_seeds: tuple[int, ...] = ()
    primary: Primary | None = None


def single(value: Any) -> Any:
    """One value as a list of one, for settings that hold several."""
    return value if isinstance(value, list | tuple) or value is None else [value]


def one_spelling(source: str, known: Container[str]) -> str:
    """A name that is known, or else a folder in one spelling, so that the same folder has the same key."""
    return source if source in known else str(Path(os.path.expanduser(source)).absolute())


def check_choice(chosen: tuple[str, ...] | None, known: Iterable[str]) -> None:
    """Refuse names of architectures that a profile does not have, or has twice."""
    known = list(known)
    if unknown := sorted(set(chosen or ()) - set(known)):
        raise ValueError(f"no architecture {', '.join(unknown)}; choose from {', '.join(known)}")
    if len(set(chosen or ())) < len(chosen or ()):
        raise ValueError(f"architectures must be different ones, got {', '.join(chosen or ())}")


def one_name_each(names: Iterable[str]) -> None:
    """Refuse what tables could not tell apart."""
    names = list(names)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"data sets and probes have different names; there are two {', '.join(twice)}")


def similarities(x: Any, y: Any, *, n_permutations: int, seed: int) -> list[dict[str, Any]]:
    """The paper's eight metrics with their chance levels, and the three that published tables define otherwise."""
    names = [*PAPER, *PUBLISHED.values()]
    found = report(x, y, names, intervals=False, n_permutations=n_permutations, seed=seed, strict=True)
    return [{key: row[key] for key in ("metric", "value", "null_mean", "p_value")} for row in found]


class Architecture(Frozen):
    """Arguments of `repsim_utils.models.vision.build`.

    A field that came later is left out of a run's key while it is at its default, so that older runs keep theirs.
    """

    name: Annotated[str, AfterValidator(_known_model)]
    width: int = Field(16, ge=1)
    depth: int = Field(1, ge=1)
    stem: str = Field("imagenet", pattern="^(imagenet|cifar)$")
    pretrained: bool = Field(False, exclude_if=lambda value: not value)
