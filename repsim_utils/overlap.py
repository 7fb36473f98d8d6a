"""Index splits with a known overlap: which samples, classes, chunks or corpora each model of a pair is trained on.

Every function is a pure function of its arguments. At a fixed seed the first model's half is the same whatever the
overlap (in constrained mode): only the second model's half moves, so a sweep over overlaps trains the first model once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

VERSION = 1  # raised when the same arguments give another split
MODES = ("constrained", "unconstrained")


@dataclass(frozen=True, eq=False)
class Split:
    """What the two models of a pair are trained on.

    Attributes
    ----------
    first, second : ndarray or tuple of str
        Sample indices, chunks or corpora of each model; see the function that made the split.
    overlap : float
        Realised overlap, the shared part of what the first model sees: the size of D1 ∩ D2 over that of D1.
    """

    first: Any
    second: Any
    overlap: float


@dataclass(frozen=True, eq=False)
class ClassSplit(Split):
    """A split by class: also the classes of each model, and each model's new label of every class that it sees."""

    classes_first: NDArray[np.int64]
    classes_second: NDArray[np.int64]
    label_map_first: dict[int, int]
    label_map_second: dict[int, int]


def split_by_example(labels: ArrayLike, overlap: float, *, seed: int, mode: str = "constrained") -> Split:
    """Share a given part of the samples inside every class (dataset overlap).

    Each class is shuffled; both models get N of its samples, ``round(overlap * N)`` of them in common. N is
    ``n_class // 2`` in constrained mode, where the size of a training set does not depend on the overlap, and in
    unconstrained mode the largest N with ``2 N - round(overlap * N) <= n_class``. Halves are rounded to even.

    Parameters
    ----------
    labels : (n,) array of int
        Class of each sample.
    overlap : float
        Wanted overlap, in [0, 1].
    seed : int
    mode : {"constrained", "unconstrained"}

    Returns
    -------
    Split
        ``first`` and ``second`` are sorted int64 arrays of sample indices, of equal size in every class.

    Raises
    ------
    ValueError
        If the overlap is outside [0, 1], a class has too few samples for both models, or an argument is malformed.
    """
    labels = _check_labels(labels)
    _check(overlap, mode)
    rng = np.random.default_rng(seed)
    first, second = [], []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        size = _set_size(len(members), overlap, mode)
        if size == 0:
            raise ValueError(
                f"class {label} is too small: it has {len(members)} sample(s), and overlap {overlap} in {mode} "
                "mode needs at least 2"
            )
        mine, yours = _overlapping(members, size, round(overlap * size))
        first.append(mine)
        second.append(yours)
    return _index_split(np.concatenate(first), np.concatenate(second))


def split_by_class(labels: ArrayLike, overlap: float, *, seed: int, mode: str = "constrained") -> ClassSplit:
    """Share a given part of the classes, with all their samples (task and dataset overlap together).

    The classes are shuffled; each model sees N of them, ``round(overlap * N)`` in common, where N follows from the
    number of classes as it does from the size of a class in `split_by_example`. Each model's classes get new labels
    0 … N - 1, and a common class gets the same new label in both.

    Parameters
    ----------
    labels : (n,) array of int
        Class of each sample.
    overlap : float
        Wanted share of common classes, in [0, 1].
    seed : int
    mode : {"constrained", "unconstrained"}

    Returns
    -------
    ClassSplit
        ``first`` and ``second`` are sorted int64 arrays of sample indices. ``overlap`` counts samples, so it differs
        from the share of common classes where classes differ in size.

    Raises
    ------
    ValueError
        If the overlap is outside [0, 1], there are fewer than two classes, or an argument is malformed.
    """
    labels = _check_labels(labels)
    _check(overlap, mode)
    classes = np.random.default_rng(seed).permutation(np.unique(labels))
    size = _set_size(len(classes), overlap, mode)
    if size == 0:
        raise ValueError(f"labels need at least 2 classes to give each model its own, got {len(classes)}")
    common = round(overlap * size)
    mine, yours = _overlapping(classes, size, common)
    # `mine` ends with the common classes and `yours` begins with them: same position from the end, same label.
    yours = np.concatenate([yours[common:], yours[:common]])
    split = _index_split(np.flatnonzero(np.isin(labels, mine)), np.flatnonzero(np.isin(labels, yours)))
    return ClassSplit(
        split.first,
        split.second,
        split.overlap,
        np.sort(mine),
        np.sort(yours),
        {int(label): new for new, label in enumerate(mine)},
        {int(label): new for new, label in enumerate(yours)},
    )


def split_by_class_and_example(labels: ArrayLike, classes: float, examples: float, *, seed: int) -> ClassSplit:
    """Share a given part of the classes, and a given part of the samples of classes in common: both overlaps apart.

    The classes are divided as by `split_by_class`. Of each of its classes a model gets half of the samples, and of a
    common class the two halves have `examples` in common, as by `split_by_example`. The size of a training set depends
    on neither overlap, and the first model's set is the same whatever they are.

    Parameters
    ----------
    labels : (n,) array of int
        Class of each sample.
    classes : float
        Wanted share of common classes, in [0, 1].
    examples : float
        Wanted share of common samples in a common class, in [0, 1].
    seed : int

    Returns
    -------
    ClassSplit
        ``overlap`` counts samples of all classes.

    Raises
    ------
    ValueError
        As `split_by_class` and `split_by_example`.
    """
    by_class = split_by_class(labels, classes, seed=seed)
    by_example = split_by_example(labels, examples, seed=seed)
    first = np.intersect1d(by_class.first, by_example.first, assume_unique=True)
    second = np.intersect1d(by_class.second, by_example.second, assume_unique=True)
    return replace(by_class, **vars(_index_split(first, second)))


def split_by_chunk(n_tokens: int, overlap: float, *, seed: int, n_chunks: int = 80, min_length: int = 1) -> Split:
    """Share a given part of the chunks of one token stream (dataset overlap for text).

    The stream is cut into equal chunks; up to ``n_chunks - 1`` tokens at its end belong to none. Each model gets half
    of the chunks, ``int(overlap * n_chunks / 2)`` of them in common.

    Parameters
    ----------
    n_tokens : int
        Length of the stream.
    overlap : float
        Wanted overlap, in [0, 1].
    seed : int
    n_chunks : int
        Even number of chunks.
    min_length : int
        Least length of a chunk in tokens: a training window and its shifted target must fit into it.

    Returns
    -------
    Split
        ``first`` and ``second`` are int64 arrays (n_chunks / 2, 2) of [start, stop), sorted by start.

    Raises
    ------
    ValueError
        If the overlap is outside [0, 1], the number of chunks is odd, or the stream too short.
    """
    _check(overlap)
    if not isinstance(n_chunks, int | np.integer) or n_chunks < 2 or n_chunks % 2:
        raise ValueError(f"n_chunks must be even and at least 2, so that each model gets half, got {n_chunks}")
    length = n_tokens // n_chunks
    if min_length < 1 or length < min_length:
        raise ValueError(
            f"n_tokens = {n_tokens} makes {n_chunks} chunks of {length} tokens, shorter than min_length = {min_length} "
            "(which must be positive); use a longer text, fewer chunks or a shorter context"
        )
    half = n_chunks // 2
    common = int(overlap * half + 1e-9)  # 0.58 * 50 must count as 29, although floating point makes it 28.999…
    order = np.random.default_rng(seed).permutation(n_chunks)
    mine, yours = (np.sort(part) * length for part in _overlapping(order, half, common))
    first, second = (np.stack([part, part + length], axis=1).astype(np.int64) for part in (mine, yours))
    return Split(first, second, common / half)


def split_by_corpus(names: Sequence[str], overlap: float, *, seed: int) -> Split:
    """Share a given part of the corpora (task and dataset overlap for text).

    The corpora are shuffled; each model gets half of them, ``round(overlap * n / 2)`` in common.

    Parameters
    ----------
    names : sequence of str
        An even number of different names.
    overlap : float
        Wanted overlap, in [0, 1].
    seed : int

    Returns
    -------
    Split
        ``first`` and ``second`` are tuples of names, in the order in which `names` has them.

    Raises
    ------
    ValueError
        If the overlap is outside [0, 1], or the names repeat or are odd in number.
    """
    _check(overlap)
    names = list(names)
    if not names or len(names) % 2 or len(set(names)) < len(names):
        raise ValueError(
            f"names must be an even number of different corpora, so that each model gets half; got {names}"
        )
    half = len(names) // 2
    common = round(overlap * half)
    order = np.random.default_rng(seed).permutation(len(names))
    first, second = (tuple(names[i] for i in np.sort(part)) for part in _overlapping(order, half, common))
    return Split(first, second, common / half)


def _overlapping(order: NDArray[Any], size: int, common: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Two runs of `size` items in `order`: the last `common` of the first run are the first of the second."""
    return order[:size], order[size - common : 2 * size - common]


def _set_size(available: int, overlap: float, mode: str) -> int:
    """How many of `available` items each model gets."""
    if mode == "constrained":
        return available // 2
    size = available
    while 2 * size - round(overlap * size) > available:
        size -= 1
    return size


def _index_split(first: NDArray[Any], second: NDArray[Any]) -> Split:
    first, second = np.sort(first).astype(np.int64), np.sort(second).astype(np.int64)
    return Split(first, second, len(np.intersect1d(first, second, assume_unique=True)) / len(first))


def _check(overlap: float, mode: str = "constrained") -> None:
    if isinstance(overlap, bool) or not isinstance(overlap, Real) or not 0 <= overlap <= 1:
        raise ValueError(f"overlap must be a number between 0 and 1, got {overlap!r}")
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, got {mode!r}")


def _check_labels(labels: ArrayLike) -> NDArray[Any]:
    array = np.asarray(labels)
    if array.ndim != 1 or not len(array) or array.dtype.kind not in "iu":
        raise ValueError(f"labels must be a non-empty 1-d array of integers, got {array.dtype} of shape {array.shape}")
    return array
