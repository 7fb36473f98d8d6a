"""Requests that an attack wants a model to answer: harmless ones of our own, or by name what papers use."""

from __future__ import annotations

from itertools import islice

from repsim_utils.datasets import corpora
from repsim_utils.datasets.cache import DataError

VERSION = 1  # raised when the same name gives other requests
BENIGN = (
    "Write a short poem about rain on a tin roof.",
    "Explain how to water a fern.",
    "Name three games for a long train ride.",
    "Give a recipe for pancakes.",
    "Describe how a bicycle pump works.",
    "Tell a story about a cat and a lighthouse.",
    "List five birds that live near rivers.",
    "Explain why leaves turn red in autumn.",
    "Write a thank-you note to a neighbour.",
    "Suggest a name for a small bakery.",
)
NAMES = ("benign", *corpora.GOALS)


def load(name: str, n: int, *, accept_harmful: bool = False) -> list[str]:
    """The first requests of a collection.

    Parameters
    ----------
    name : str
        ``benign``, or ``advbench`` (Zou et al. 2023), which this repository does not hold: it is read from the hub, or
        from Parquet files in ``$REPSIM_DATA/hub/advbench/``.
    n : int
        At most so many.
    accept_harmful : bool
        Whoever wants another collection than ``benign`` says so.

    Raises
    ------
    ValueError
        If there is no such collection, or harmful requests were not asked for expressly.
    DataError
        If it cannot be had.
    """
    if name not in NAMES:
        raise ValueError(f"goals must be one of {', '.join(NAMES)}, got {name!r}")
    if name == "benign":
        return list(BENIGN[:n])
    if not accept_harmful:
        raise ValueError(
            f"{name} holds harmful requests, and models will be made to answer them: set accept_harmful to true if you "
            "have a reason and a place for that, or use the goals benign"
        )
    found = [document.text for document in islice(corpora.of_hub(name, corpora.GOALS[name]), n)]
    if not found:
        raise DataError(f"{name} has no requests")
    return found
