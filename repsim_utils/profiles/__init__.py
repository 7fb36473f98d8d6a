"""Profiles: how large every experiment and chapter is for a first look, for a CPU, and as published."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model, field_validator

from repsim_utils.experiments import EXPERIMENTS
from repsim_utils.experiments.common import Declared, single
from repsim_utils.experiments.samples import Data
from repsim_utils.metrics import PAPER


class Gallery(BaseModel):
    """Chapter `color_shape_digit`: how much of the data set it draws, and which split it shows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(ge=0)
    difficulty: float = Field(ge=0, le=1)
    overlap: float = Field(ge=0, le=1)


class FirstSplit(BaseModel):
    """Chapter `splitting`: which split it begins with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(ge=0)
    overlap: float = Field(ge=0, le=1)


class Corpora(BaseModel):
    """Chapter `text_corpora`: what it reads, how it encodes it, and which splits it shows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpora: Annotated[tuple[str, ...], BeforeValidator(single), Field(min_length=1)]
    tokenizer: Literal["bpe", "gpt2"] = "bpe"
    vocabulary: int = Field(2048, ge=257, le=2**16)
    max_bytes: int | None = Field(None, ge=1)
    seed: int = Field(ge=0)
    overlap: float = Field(ge=0, le=1)

    def reading(self) -> dict[str, Any]:
        """Arguments of `repsim_utils.datasets.text.library`."""
        return {"sources": self.corpora} | self.model_dump(include={"tokenizer", "vocabulary", "max_bytes"})


class Simulation(BaseModel):
    """Chapters on metrics: how much they simulate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(ge=0)
    draws: int = Field(ge=2)


class OwnModels(BaseModel):
    """Chapter `your_own_models`: on how many images it compares networks, and how often rows are shuffled."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int = Field(ge=50)
    permutations: int = Field(ge=19)


class Overview(BaseModel):
    """Chapter `what_drives_similarity`: the metric that it begins with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str

    @field_validator("metric")
    @classmethod
    def _of_the_paper(cls, metric: str) -> str:
        if metric not in PAPER:
            raise ValueError(f"must be one of {', '.join(PAPER)}")
        return metric


CHAPTERS: dict[str, type[BaseModel]] = {
    "kernels": Simulation,
    "neighbourhoods": Simulation,
    "subspaces_and_shapes": Simulation,
    "significance": Simulation,
    "color_shape_digit": Gallery,
    "splitting": FirstSplit,
    "text_corpora": Corpora,
    "your_own_models": OwnModels,
    "what_drives_similarity": Overview,
    "finetuned_llm": EXPERIMENTS["dataset_overlap_finetuned"].settings,  # chapters that show experiments of other names
    "why_lora_hides_overlap": EXPERIMENTS["lora_grid"].settings,
    "together": EXPERIMENTS["together_tasks"].settings,
    "diffusion": EXPERIMENTS["dataset_overlap_diffusion"].settings,
}
SECTIONS: dict[str, Any] = CHAPTERS | {name: experiment.settings for name, experiment in EXPERIMENTS.items()}
# One profile, checked: an unknown section is an error, and so is an unknown or a missing key of one.
_FIELDS: dict[str, Any] = {name: (settings | None, None) for name, settings in SECTIONS.items()}
Profile: Any = create_model("Profile", __config__=ConfigDict(frozen=True, extra="forbid"), **_FIELDS)


PATHS = ("data", "source", "corpora", "divided", "floor", "probes")  # settings that may be paths


def names() -> list[str]:
    """Profiles that there are."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.yaml"))


def load(profile: str, section: str, **overrides: Any) -> Any:
    """Settings of one experiment or chapter.

    Parameters
    ----------
    profile : str
        See `names`.
    section : str
        Name of the experiment or chapter.
    **overrides
        Settings to be replaced; None leaves what the profile says, text is read as YAML, as in ``seeds="[0, 1]"``.
        Of a group, what is not named stays as it is: ``recipe="{epochs: 2}"``; so in groups within groups. Text for
        one of `PATHS` counts as it is written, whatever YAML makes of ``#``, ``: `` or ``no``, if there is such a
        path, or if it is neither null nor in brackets, braces or quotes.

    Returns
    -------
    BaseModel
        Frozen.

    Raises
    ------
    ValueError
        If the profile, the section or a key is unknown, or a value not allowed; the message says what is.
    """
    if profile not in names():
        raise ValueError(f"unknown profile {profile!r}; choose from {', '.join(names())}")
    if section not in SECTIONS:
        raise ValueError(f"unknown experiment {section!r}; choose from {', '.join(SECTIONS)}")
    text = (Path(__file__).parent / f"{profile}.yaml").read_text()
    try:
        settings = getattr(Profile.model_validate(yaml.safe_load(text)), section)
        if settings is None:
            raise ValueError(f"profile {profile} has no section {section}")
        allowed = [name for name in type(settings).model_fields if name not in Declared.model_fields]
        changes = {name: _parse(name, value) for name, value in overrides.items() if value is not None}
        unknown = sorted(set(changes) - set(allowed))
        if unknown:
            raise ValueError(f"unknown setting {', '.join(unknown)} of {section}; choose from {', '.join(allowed)}")
        return type(settings).model_validate(_merge(settings.model_dump(), changes))
    except ValidationError as error:
        raise ValueError(f"{section} ({profile}): {explain(error)}") from None


def explain(error: ValidationError) -> str:
    """A validation error in one line: where, what is wrong, what was given."""
    errors = error.errors()
    inner = [e for e in errors if e["type"] != "too_short" or len(errors) == 1]  # of a list whose entries are refused
    told: dict[tuple[str, str], str] = {}  # the same of several places, once: of the outermost
    for e in sorted(inner, key=lambda e: len(e["loc"])):
        where, got = ".".join(map(str, e["loc"])), "" if isinstance(e["input"], dict) else f", got {e['input']!r}"
        what = f"{where}: {_plain(e)}{got}" if where else _plain(e)
        told.setdefault((where if e["type"] == "missing" else _plain(e), got), what)
    return "; ".join(told.values())


def _plain(error: Any) -> str:
    if error["type"] == "too_short":
        return "must have an entry"
    if error["type"] == "tuple_type":
        return "must be a list such as [1, 2]"
    return str(error["msg"]).removeprefix("Value error, ")


def _merge(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Settings with changes; a group that is given in part keeps the rest of its settings."""
    merged = settings | changes
    for name, new in changes.items():
        old = settings.get(name)
        old = old[0] if isinstance(old, tuple) and len(old) == 1 else old  # a list of one group is that group
        if isinstance(old, dict) and isinstance(new, dict):
            merged[name] = _merge(old, new)
    return merged


def _parse(name: str, value: Any) -> Any:
    """A setting that is given as text: YAML, or a path as it is written."""
    if not isinstance(value, str) or (name in PATHS and _exists(value)):
        return value
    text = _with_quotes(value)
    try:
        node, found = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # the latter of a date such as 2024-13-01
        if name in PATHS and value.lstrip()[:1] in ("{", "["):
            told = f"{name}: there is no path {value!r}, and as YAML it cannot be read"
            raise ValueError(f'{told}; put a path in quotes: {{source: "/my/photos #2"}}') from None
        return value  # refused below, with what is allowed
    if name in PATHS and not _is_yaml(text, node, found):
        return value.strip()
    return _as_written(found, yaml.load(text, yaml.BaseLoader), name in PATHS)


def _exists(path: str) -> bool:
    return os.path.exists(os.path.expanduser(path))


def _with_quotes(text: str) -> str:
    """YAML in braces, with quotes around a source that is a path which there is."""
    head, key, rest = text.partition("source:")
    for end in [i for i, letter in enumerate(rest) if letter in ",}"][::-1]:
        path = rest[:end].strip()
        if head.lstrip()[:1] == "{" and path and _exists(path):
            return f"{head}{key} {json.dumps(path, ensure_ascii=False)}{rest[end:]}"
    return text


def _is_yaml(text: str, node: Any, found: Any) -> bool:
    """Whether text that could be a path is YAML from its beginning to its end, and nothing that a path looks like."""
    if not text.strip() or "\n" in text.strip():
        return True
    if node is None or text[node.start_mark.index : node.end_mark.index].strip() != text.strip():
        return False
    if isinstance(node, yaml.ScalarNode):
        return node.style is not None or found is None
    return bool(node.flow_style) or (isinstance(found, dict) and set(found) <= set(Data.model_fields))


def _as_written(found: Any, spelled: Any, path: bool) -> Any:
    """What YAML makes of a text, but paths as they are spelled: no, 2024 and 1e3 are folders there."""
    if isinstance(found, dict) and isinstance(spelled, dict) and len(found) == len(spelled):
        pairs = zip(found.items(), spelled.values(), strict=True)
        return {key: _as_written(value, text, key in PATHS) for (key, value), text in pairs}
    if isinstance(found, list):
        return [_as_written(value, text, path) for value, text in zip(found, spelled, strict=True)]
    return spelled if path and isinstance(spelled, str) and (found is not None or _exists(spelled)) else found
