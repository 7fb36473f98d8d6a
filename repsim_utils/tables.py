"""How numbers are shown: what each chapter set out to test, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from repsim_utils import files, profiles, published
from repsim_utils.analysis import Trend, trend

CHAPTERS = {  # in which an experiment is shown
    "task_only": "causes/task_only",
    "dataset_overlap_photographs": "causes/dataset_overlap_vision",
    "amount_of_photographs": "causes/dataset_overlap_vision",
    "dataset_overlap_vision": "causes/dataset_overlap_vision",
    "task_overlap_photographs": "causes/task_overlap_vision",
    "task_overlap_vision": "causes/task_overlap_vision",
    "dataset_overlap_language": "causes/dataset_overlap_language",
    "task_overlap_language": "causes/task_overlap_language",
    "dataset_overlap_finetuned": "causes/finetuned_llm",
    "task_overlap_finetuned": "causes/finetuned_llm",
    "dataset_overlap_diffusion": "causes/diffusion",
    "task_overlap_diffusion": "causes/diffusion",
    "adversarial_transfer_photographs": "consequences/adversarial_transfer",
    "adversarial_transfer": "consequences/adversarial_transfer",
    "jailbreak_transfer": "consequences/jailbreak_transfer",
    "lora_grid": "beyond/why_lora_hides_overlap",
}
LEGEND = """\
A slope is the change from overlap 0 to 1 (in task_only, from level to level), with a 95% interval over seeds; "minus
that of" is how much steeper it is than another. p is by sign flips, and cannot be below 2 / 2^seeds. "fresh" seeds
were run after the contrast and the smallest effect of interest had been written down, "chosen" ones before; "pooled"
are both. "Larger" goes by the 95% interval, "smaller" by two one-sided tests at 5%. repsim claims --csv has every
number."""
SEEDS = {"fresh": ("fresh",), "chosen": ("chosen",), "pooled": ("fresh", "chosen")}
SEEDS_IN_WORDS = {
    "fresh": "Fresh seeds alone",
    "chosen": "Recorded",
    "pooled": "With those on which the recipe was chosen",
}


def primary_rows(experiment: str) -> pd.DataFrame:
    """Recorded rows of an experiment's primary contrast (`repsim_utils.experiments.common.Primary`).

    Of an interaction, `value` is the difference of two rows of the same seed.
    """
    primary = profiles.load("laptop", experiment).primary
    rows = where(published.recorded(experiment), primary.where)
    if not primary.against:
        return rows
    same = ["seed", primary.slope_on]
    other = where(published.recorded(experiment), primary.where | primary.against)
    both = rows.merge(other[[*same, "value"]], on=same, suffixes=("", "_against"), validate="one_to_one")
    return both.assign(value=both["value"] - both.pop("value_against"))


def where(table: pd.DataFrame, wanted: Mapping[str, Any]) -> pd.DataFrame:
    """Rows that have a value in each of some columns; None stands for one that is missing."""
    for column, value in wanted.items():
        table = table[table[column].isna() if value is None else table[column] == value]
    return table


def primary_trends(experiment: str) -> dict[str, Trend]:
    """The primary contrast of an experiment: on its fresh seeds, its chosen ones, and, where it has both, pooled."""
    table = primary_rows(experiment)
    there = set(table["seeds"])
    some = SEEDS if len(there) == 2 else {name: SEEDS[name] for name in there}
    on = profiles.load("laptop", experiment).primary.slope_on
    return {name: trend(table[table["seeds"].isin(kinds)], x=on) for name, kinds in some.items()}


def claims() -> pd.DataFrame:
    """Every experiment's primary contrast, as it came out on fresh seeds, on chosen ones, and on all.

    Returns
    -------
    DataFrame
        Columns chapter, experiment, contrast (the rows of which the slope on overlap is taken), smallest (effect of
        interest), seeds (``fresh``, ``chosen`` or ``pooled``), slope, low, high (95% interval over seeds), p
        (sign flips), excluded (equivalence bound at 5%), n_units (seeds), n (rows) and verdict.
    """
    rows = []
    for experiment, chapter in CHAPTERS.items():
        primary = profiles.load("laptop", experiment).primary
        contrast = _in_words(primary.where) + (f", minus that of {_in_words(primary.against)}" * bool(primary.against))
        about = {"chapter": chapter, "experiment": experiment, "contrast": contrast, "smallest": primary.smallest}
        for seeds, found in primary_trends(experiment).items():
            names = ("slope", "low", "high", "p", "excluded", "n_units", "n")
            values = {name: asdict(found)[name] for name in names}
            rows.append(about | {"seeds": seeds} | values | {"verdict": verdict(found, primary.smallest)})
    return pd.DataFrame(rows)


def _in_words(where: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in where.items() if value is not None)


def claims_in_words() -> str:
    """`claims`, an experiment a paragraph, and how to read it."""
    paragraphs = []
    for (experiment, chapter, contrast, smallest), rows in claims().groupby(
        ["experiment", "chapter", "contrast", "smallest"], sort=False
    ):
        on = profiles.load("laptop", str(experiment)).primary.slope_on
        lines = [f"{experiment} (chapters/{chapter}): slope on {on} of {contrast}; smallest effect {smallest:g}"]
        for row in rows.itertuples():
            lines.append(f"  {row.seeds:7}{row.n_units:3} seeds  {interval(row, 4)}  p {row.p:.3g}  {row.verdict}")
        if set(rows["seeds"]) == {"chosen"}:
            lines.append("  no fresh seeds confirm it")
        paragraphs.append("\n".join(lines))
    return "\n\n".join([*paragraphs, LEGEND])


def record_claims() -> Path:
    """Write `claims` to ``data/claims.csv``; only ``repsim claims --record`` calls this."""
    published.check_recordable("claims")
    path = files.data_folder() / "claims.csv"
    files.write(path, claims().to_csv(index=False, float_format="%.4g", lineterminator="\n").encode())
    return path


def verdict(found: Trend, smallest: float) -> str:
    """What an interval says of 0, and of the smallest effect of interest."""
    if not np.isfinite(found.low):
        return "one seed: no interval"
    side = "above 0" if found.low > 0 else "below 0" if found.high < 0 else "not distinguishable from 0"
    if max(found.low, -found.high) > smallest:
        return f"{side} and larger than the smallest effect of interest"
    if found.excluded < smallest:
        return f"{side} and smaller than the smallest effect of interest"
    return f"{side}; the smallest effect of interest is not excluded"


def primary(experiment: str, what: str, when: str = "when overlap goes from 0 to 1") -> str:
    """An experiment's primary contrast and what came of it, as Markdown.

    Parameters
    ----------
    experiment : str
    what : str
        The measurement in words, such as ``linear CKA of the small ResNet on new images``.
    when : str
        What is compared.
    """
    declared: Any = profiles.load("laptop", experiment)
    digits = 4 if declared.primary.smallest < 0.01 else 3
    found = primary_trends(experiment)
    written = "after the recorded seeds had been looked at; no fresh seeds confirm the answer."
    if "fresh" in found:
        written = "before the fresh seeds were run."
        found.pop("chosen", None)
    lines = [
        f"**Primary contrast.** How much does {what} change {when}? This question, and the smallest change that we "
        f"would care about ({declared.primary.smallest:g}), were written down {written} Everything else "
        "of this experiment is secondary.\n"
    ]
    for seeds, line in found.items():
        p = f"p = {line.p:.3g}" if line.p >= 1e-4 else "p < 0.0001"
        lines.append(
            f"- {SEEDS_IN_WORDS[seeds]} ({line.n_units} seeds): {interval(line, digits)}, {p}; "
            f"{verdict(line, declared.primary.smallest)}."
        )
    return "\n".join(lines)


def interval(row: Any, digits: int = 3, *, signed: bool | None = None, percent: bool = False) -> str:
    """A slope, an estimate, a mean or an R² with its interval, as ``value [low, high]``.

    Parameters
    ----------
    row : Series, named tuple, dict or Trend
        Has low, high and one of slope, estimate, mean and r_squared, the first of which counts.
    digits : int
        Decimals.
    signed : bool, optional
        Whether numbers that are not negative have a plus; by default, slopes and estimates do.
    percent : bool
        Each number in percent, as of a share.
    """
    known = dict(row) if isinstance(row, (dict, pd.Series)) else row._asdict() if hasattr(row, "_asdict") else vars(row)
    name = next(name for name in ("slope", "estimate", "mean", "r_squared") if name in known)
    sign = "+" if (name in ("slope", "estimate") if signed is None else signed) else ""
    value, low, high = (f"{known[end]:{sign}.{digits}{'%' if percent else 'f'}}" for end in (name, "low", "high"))
    return f"{value} [{low}, {high}]"


def starred(row: Any, digits: int = 3) -> str:
    """`interval` of a row of a family of tests, with a star where it is a discovery (`repsim_utils.analysis`)."""
    return interval(row, digits) + (" *" if row.sign else "")


def series(table: pd.DataFrame, names: Mapping[str, str]) -> pd.Series:
    """Names of architectures, as figures show them: those that are given, others with spaces for underscores."""
    return table["architecture"].map(lambda name: names.get(name, name.replace("_", " ")))
