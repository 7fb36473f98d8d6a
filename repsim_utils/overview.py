"""Every effect of overlap, ours and published, as one table: what the chapter on what drives similarity draws."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from repsim_utils import profiles, tables
from repsim_utils.analysis import discoveries, effects
from repsim_utils.metrics import PAPER, PUBLISHED
from repsim_utils.published import published, published_slopes, recorded

KEYS = ["source", "seeds", "cause", "modality", "experiment", "network", "dataset", "probe", "metric"]
SIZES = ["change", "low", "high", "q", "sign", "least", "most", "start", "end", "chance"]
SIZES += ["share", "share_low", "share_high", "spread", "deviations", "n"]
TRANSFER = ("transfer", "transfer_error_rate", "transfer_asr")  # of attacks, as ours and as published
NAMES = {  # of networks and their training
    "small_resnet": "small ResNet",
    "small_vit": "small ViT",
    "small_gpt": "small GPT",
    "small_unet": "small UNet",
    "small_llama": "small Llama",
    "small_corpus": "SmolLM2, little text",
    "large_corpus": "SmolLM2, much text",
    "all_text": "SmolLM2, six corpora",
}


class Shown(NamedTuple):
    """An experiment of this book: what its models share, and in which modality."""

    cause: str
    modality: str


VISION, TEXT, TUNED, DRAWING = "vision", "language", "fine-tuned language", "diffusion"
SAMPLES, TOGETHER = "samples", "classes or corpora with their samples"
EXPERIMENTS = {
    "task_only": Shown("task alone", VISION),
    "dataset_overlap_photographs": Shown(SAMPLES, VISION),
    "dataset_overlap_vision": Shown(SAMPLES, VISION),
    "amount_of_photographs": Shown(SAMPLES, VISION),
    "task_overlap_photographs": Shown(TOGETHER, VISION),
    "task_overlap_vision": Shown(TOGETHER, VISION),
    "dataset_overlap_language": Shown(SAMPLES, TEXT),
    "task_overlap_language": Shown(TOGETHER, TEXT),
    "dataset_overlap_finetuned": Shown(SAMPLES, TUNED),
    "lora_grid": Shown(SAMPLES, TUNED),
    "task_overlap_finetuned": Shown(TOGETHER, TUNED),
    "dataset_overlap_diffusion": Shown(SAMPLES, DRAWING),
    "task_overlap_diffusion": Shown(TOGETHER, DRAWING),
    "adversarial_transfer_photographs": Shown(SAMPLES, VISION),
    "adversarial_transfer": Shown(SAMPLES, VISION),
    "jailbreak_transfer": Shown(SAMPLES, TEXT),
}


FEW = 0.2  # the overlap at which two networks with five classes of photographs share one class


def _left_out(rows: pd.DataFrame) -> pd.Series:
    """Rows on one class of photographs, where the same probe has two and more classes at other overlaps."""
    probe = rows["probe"].str.startswith(("common_classes", "classes_seen_by_none"))
    return probe & (rows["overlap"] == FEW) & (rows["dataset"] == "fashion_mnist")


@lru_cache(maxsize=1)
def every_effect() -> pd.DataFrame:
    """Effects of overlap in all recorded experiments, and in all published ones.

    Returns
    -------
    DataFrame
        Columns source (``recorded`` or ``published``), seeds (``fresh`` or ``all``), cause (what models share),
        modality, experiment, network, dataset, probe and metric, and change to n as of `repsim_utils.analysis.effects`.
        Of published tables neither single pairs nor chance levels are known: chance counts as 0, and the interval of
        the share is that of the change alone. Published series that lack pairs are left out: a seed without its highest
        level would count with another slope. So are rows on a single class of photographs, at overlap 0.2, where the
        same probe has several classes at all others. Metrics are the paper's eight, and rates of transfer.
    """
    ours = [_recorded(experiment) for experiment in EXPERIMENTS if experiment in tables.CHAPTERS]
    theirs = [_published(experiment) for experiment in sorted(set(_published_names()))]
    return pd.concat([*ours, *theirs], ignore_index=True)[[*KEYS, *SIZES]]


def _recorded(experiment: str) -> pd.DataFrame:
    """Of one experiment, in the rows that its primary contrast is of, whatever network, probe and metric."""
    primary = profiles.load("laptop", experiment).primary
    chosen = ("cause", "architecture", "probe", "metric")
    where = {name: value for name, value in primary.where.items() if name not in chosen}
    rows = tables.where(recorded(experiment), where)
    rows = rows[rows["metric"].isin([*PAPER, *TRANSFER])]
    rows = rows[~_left_out(rows)]
    rows = rows.assign(null_mean=rows.get("null_mean", np.nan))
    by = [name for name in ("cause", "dataset", "architecture", "probe", "metric") if name in rows]
    kinds = {"all": rows} | ({"fresh": rows[rows["seeds"] == "fresh"]} if "fresh" in set(rows["seeds"]) else {})
    if not (rows["seeds"] != "fresh").any():
        kinds.pop("all")
    found = pd.concat(effects(some, by=by).assign(seeds=seeds) for seeds, some in kinds.items())
    about = EXPERIMENTS[experiment]
    whole = found.pop("cause").str.startswith("task") if "cause" in found else pd.Series(False, index=found.index)
    found["cause"] = np.where(whole, TOGETHER, about.cause)
    prefix = "small Llama, " if experiment == "lora_grid" else ""
    found["network"] = prefix + found.pop("architecture").replace(NAMES)
    return found.assign(source="recorded", experiment=experiment, modality=about.modality)


def _published_names() -> list[str]:
    """Experiments of the published tables, as this book calls them."""
    return [name for name in (*EXPERIMENTS, "jailbreak_finetuned") if _has_published(name)]


def _has_published(experiment: str) -> bool:
    try:
        return bool(len(published(experiment)))
    except ValueError:
        return False


def _published(experiment: str) -> pd.DataFrame:
    """Of one experiment, from its slopes and its means."""
    same = ["experiment", "model", "training", "dataset", "probe", "metric"]
    means = published(experiment).sort_values("overlap")
    means = means[means["metric"].isin([*PAPER, *PUBLISHED, *TRANSFER])]
    spread = means.assign(v=means["sd"] ** 2 * (means["n"] - 1), f=means["n"] - 1).groupby(same)[["v", "f"]].sum()
    ends = means.groupby(same).agg(
        start=("mean", "first"), end=("mean", "last"), least=("overlap", "min"), most=("overlap", "max")
    )
    ends["spread"] = np.sqrt(spread["v"] / spread["f"])
    rows = published_slopes(experiment).merge(ends.reset_index(), on=same, validate="one_to_one")
    whole_series = rows.groupby(["experiment", "n_seeds", "n_levels"])["n_pairs"].transform("max")
    rows = rows[rows["n_pairs"] == whole_series].reset_index(drop=True)
    span = np.where(rows["experiment"] == "csd_task_only", 1.0, rows["most"] - rows["least"])
    sizes = {name: rows[column] * span for name, column in (("change", "slope"), ("low", "low"), ("high", "high"))}
    found = rows.assign(**sizes, chance=0.0, n=rows["n_seeds"], deviations=sizes["change"] / rows["spread"])
    if not set(found["metric"]) & set(PAPER):  # rates, which have no ceiling that chance lies below
        found = found.assign(chance=np.nan)
    for name, column in (("share", "change"), ("share_low", "low"), ("share_high", "high")):
        found[name] = found[column] / (found["end"] - found["chance"])
    error = (found["high"] - found["low"]) / 2 / stats.t.ppf(0.975, found["n"] - 1)
    found["p_t"] = 2 * stats.t.sf((found["change"] / error).abs(), found["n"] - 1)  # that of its t interval
    found = discoveries(found)
    whole = rows["experiment"].str.contains("task") & (rows["experiment"] != "csd_task_only")
    about = EXPERIMENTS.get(experiment, Shown(SAMPLES, TUNED))
    network = rows["model"] + np.where(rows["training"] == "pretrained", ", pretrained", "")
    found = found.assign(network=network, cause=np.where(whole, TOGETHER, about.cause), modality=about.modality)
    return found.assign(source="published", seeds="all", experiment=experiment)
