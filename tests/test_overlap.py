"""The splits, held against their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repsim_utils.overlap import (
    MODES,
    split_by_chunk,
    split_by_class,
    split_by_class_and_example,
    split_by_corpus,
    split_by_example,
)

OVERLAPS = st.one_of(st.floats(0, 1), st.sampled_from([0, 0.1, 0.2, 0.3, 0.5, 0.58, 0.7, 1]))
SEEDS = st.integers(0, 2**32)
SPLITTERS = (
    lambda overlap: split_by_example([0] * 10, overlap, seed=0),
    lambda overlap: split_by_class(range(10), overlap, seed=0),
    lambda overlap: split_by_chunk(800, overlap, seed=0),
    lambda overlap: split_by_corpus("abcdef", overlap, seed=0),
)


@st.composite
def some_labels(draw, least_classes=1):
    """Classes of unequal size, 2 samples or more, in any order, with ids that are neither dense nor positive."""
    ids = draw(st.lists(st.integers(-5, 10**6), unique=True, min_size=least_classes, max_size=9))
    sizes = draw(st.lists(st.integers(2, 25), min_size=len(ids), max_size=len(ids)))
    return np.random.default_rng(draw(SEEDS)).permutation(np.repeat(ids, sizes))


def set_size(available, overlap, mode):
    """N by its definition, from all numbers that there are."""
    if mode == "constrained":
        return available // 2
    return max(n for n in range(available + 1) if 2 * n - round(overlap * n) <= available)


def assert_index_array(indices, n):
    assert isinstance(indices, np.ndarray) and indices.dtype == np.int64 and indices.ndim == 1
    assert (np.diff(indices) > 0).all() and indices[0] >= 0 and indices[-1] < n


@given(some_labels(), OVERLAPS, SEEDS, st.sampled_from(MODES))
def test_by_example_shares_the_right_number_in_every_class(labels, overlap, seed, mode):
    split = split_by_example(labels, overlap, seed=seed, mode=mode)
    assert_index_array(split.first, len(labels))
    assert_index_array(split.second, len(labels))
    for label in np.unique(labels):
        members = set(np.flatnonzero(labels == label))
        first, second = members & set(split.first), members & set(split.second)
        size = set_size(len(members), overlap, mode)
        assert len(first) == len(second) == size
        assert len(first & second) == round(overlap * size)
    assert split.overlap == len(set(split.first) & set(split.second)) / len(split.first)


@given(some_labels(least_classes=2), OVERLAPS, SEEDS, st.sampled_from(MODES))
def test_by_class_shares_the_right_number_of_classes(labels, overlap, seed, mode):
    split = split_by_class(labels, overlap, seed=seed, mode=mode)
    size = set_size(len(np.unique(labels)), overlap, mode)
    for classes, indices in ((split.classes_first, split.first), (split.classes_second, split.second)):
        assert_index_array(indices, len(labels))
        assert classes.dtype == np.int64 and len(classes) == size and (np.diff(classes) > 0).all()
        np.testing.assert_array_equal(indices, np.flatnonzero(np.isin(labels, classes)))  # with all their samples
    common = set(split.classes_first) & set(split.classes_second)
    assert len(common) == round(overlap * size)
    assert split.overlap == len(set(split.first) & set(split.second)) / len(split.first)


@given(some_labels(least_classes=2), OVERLAPS, SEEDS, st.sampled_from(MODES))
def test_by_class_gives_common_classes_the_same_label(labels, overlap, seed, mode):
    split = split_by_class(labels, overlap, seed=seed, mode=mode)
    maps = split.label_map_first, split.label_map_second
    for new, classes in zip(maps, (split.classes_first, split.classes_second), strict=True):
        assert set(new) == set(classes) and sorted(new.values()) == list(range(len(classes)))
    assert all(maps[0][label] == maps[1][label] for label in maps[0].keys() & maps[1].keys())


@given(some_labels(least_classes=2), OVERLAPS, OVERLAPS, SEEDS)
def test_first_does_not_depend_on_the_overlap_in_constrained_mode(labels, one, other, seed):
    for split in (split_by_example, split_by_class):
        np.testing.assert_array_equal(split(labels, one, seed=seed).first, split(labels, other, seed=seed).first)
    maps = [split_by_class(labels, overlap, seed=seed).label_map_first for overlap in (one, other)]
    assert maps[0] == maps[1]  # or the first model would have to be trained again
    chunks = [split_by_chunk(1000, overlap, seed=seed, n_chunks=20).first for overlap in (one, other)]
    np.testing.assert_array_equal(*chunks)
    assert split_by_corpus("abcdef", one, seed=seed).first == split_by_corpus("abcdef", other, seed=seed).first


@given(some_labels(least_classes=2), OVERLAPS, SEEDS, st.sampled_from(MODES))
def test_same_seed_same_split(labels, overlap, seed, mode):
    for split in (split_by_example, split_by_class):
        one, two = (split(labels, overlap, seed=seed, mode=mode) for _ in range(2))
        np.testing.assert_array_equal(one.first, two.first)
        np.testing.assert_array_equal(one.second, two.second)
    np.testing.assert_array_equal(*(split_by_chunk(999, overlap, seed=seed).second for _ in range(2)))
    assert len({split_by_corpus("abcdef", overlap, seed=seed).second for _ in range(2)}) == 1


def test_another_seed_gives_another_split():
    labels = np.repeat(range(20), 20)
    assert (split_by_example(labels, 0.5, seed=0).first != split_by_example(labels, 0.5, seed=1).first).any()
    assert set(split_by_class(labels, 0.5, seed=0).classes_first) != set(
        split_by_class(labels, 0.5, seed=1).classes_first
    )
    assert (split_by_chunk(8000, 0.5, seed=0).first != split_by_chunk(8000, 0.5, seed=1).first).any()
    assert len({split_by_corpus("abcdef", 0, seed=seed).first for seed in range(20)}) > 5


def test_splits_leave_the_global_random_state_alone():
    before = np.random.get_state()[1].copy()
    for split in SPLITTERS:
        split(0.5)
    np.testing.assert_array_equal(before, np.random.get_state()[1])


@given(st.integers(1, 60), st.integers(1, 50), st.integers(0, 49), st.floats(0, 1), SEEDS)
def test_by_chunk(half, length, rest, overlap, seed):
    n_tokens = 2 * half * length + min(rest, 2 * half - 1)
    split = split_by_chunk(n_tokens, overlap, seed=seed, n_chunks=2 * half)
    for chunks in (split.first, split.second):
        assert chunks.shape == (half, 2) and chunks.dtype == np.int64
        assert (chunks[:, 1] - chunks[:, 0] == length).all()
        assert (chunks[:, 0] % length == 0).all() and (np.diff(chunks[:, 0]) > 0).all()  # equal or disjoint
        assert chunks.min() >= 0 and chunks.max() <= n_tokens
    common = {*map(tuple, split.first)} & {*map(tuple, split.second)}
    assert len(common) in {int(overlap * half), int(overlap * half + 1e-9)}
    assert split.overlap == len(common) / half


def test_by_chunk_counts_hundredths_exactly():
    """In floating point ``int(0.58 * 50)`` is 28."""
    for hundredths in range(101):
        split = split_by_chunk(200, hundredths / 100, seed=0, n_chunks=100)
        assert round(split.overlap * 50) == hundredths * 50 // 100, hundredths


@pytest.mark.parametrize("common", range(4))
def test_by_corpus_thirds_as_published(common):
    names = ("shakespeare", "stories", "webtext", "textbooks", "codes", "wikitext")
    for seed in range(10):
        split = split_by_corpus(names, common / 3, seed=seed)
        assert len(split.first) == len(split.second) == 3 and len(set(split.first) & set(split.second)) == common
        assert split.overlap == common / 3
        for part in (split.first, split.second):
            assert isinstance(part, tuple) and sorted(part, key=names.index) == list(part)


@given(st.integers(1, 10), OVERLAPS, SEEDS)
def test_by_corpus(half, overlap, seed):
    split = split_by_corpus([f"corpus {i}" for i in range(2 * half)], overlap, seed=seed)
    assert len(set(split.first)) == len(set(split.second)) == half
    assert len(set(split.first) & set(split.second)) == round(overlap * half) == round(split.overlap * half)


@pytest.mark.parametrize("overlap", [-0.01, 1.01, float("nan"), float("inf"), "0.5", True])
@pytest.mark.parametrize("split", SPLITTERS)
def test_overlap_outside_its_range_is_an_error(split, overlap):
    with pytest.raises(ValueError, match=r"overlap must be a number between 0 and 1, got"):
        split(overlap)


@pytest.mark.parametrize("split", [split_by_example, split_by_class])
class TestErrors:
    def test_mode(self, split):
        with pytest.raises(ValueError, match=r"mode must be one of .*constrained.*got 'loose'"):
            split([0, 0, 1, 1], 0.5, seed=0, mode="loose")

    @pytest.mark.parametrize("labels", [[], [[0, 1], [1, 0]], [0.0, 1.0], ["a", "b"], 3])
    def test_labels(self, split, labels):
        with pytest.raises(ValueError, match=r"labels must be a non-empty 1-d array of integers, got .* of shape"):
            split(labels, 0.5, seed=0)


def test_a_class_that_is_too_small_is_named():
    with pytest.raises(ValueError, match=r"class 7 is too small: it has 1 sample"):
        split_by_example([3, 3, 7], 0.5, seed=0)
    with pytest.raises(ValueError, match=r"at least 2 classes .* got 1"):
        split_by_class([3, 3, 3], 0.5, seed=0)


def test_one_sample_is_enough_if_it_is_shared():
    split = split_by_example([3, 7], 1.0, seed=0, mode="unconstrained")
    assert list(split.first) == list(split.second) == [0, 1]


@pytest.mark.parametrize("n_chunks", [-2, 0, 1, 7])
def test_chunks_must_be_even(n_chunks):
    with pytest.raises(ValueError, match=f"n_chunks must be even and at least 2.*got {n_chunks}"):
        split_by_chunk(1000, 0.5, seed=0, n_chunks=n_chunks)


def test_a_stream_that_is_too_short_is_an_error():
    with pytest.raises(ValueError, match="n_tokens = 79 makes 80 chunks of 0 tokens, shorter than min_length = 1"):
        split_by_chunk(79, 0.5, seed=0)
    with pytest.raises(ValueError, match="10 tokens, shorter than min_length = 11"):
        split_by_chunk(800, 0.5, seed=0, min_length=11)
    assert len(split_by_chunk(880, 0.5, seed=0, min_length=11).first) == 40


@pytest.mark.parametrize("names", [[], ["a"], ["a", "b", "c"], ["a", "b", "a", "c"]])
def test_corpora_must_be_even_and_different(names):
    with pytest.raises(ValueError, match="names must be an even number of different corpora"):
        split_by_corpus(names, 0.5, seed=0)


@pytest.mark.parametrize("classes", [0.2, 0.6, 1.0])
@pytest.mark.parametrize("examples", [0.0, 0.5, 1.0])
def test_classes_and_their_examples_are_shared_apart_from_each_other(classes, examples):
    """Sets by their definition: 5 of 10 classes a model, 12 of 24 samples a class, whatever is in common."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 24))
    split = split_by_class_and_example(labels, classes, examples, seed=3)
    first, second = ({label: set() for label in range(10)} for _ in "ab")
    for mine, index in ((first, split.first), (second, split.second)):
        for i in index:
            mine[labels[i]].add(i)
    common = [label for label in range(10) if first[label] and second[label]]
    assert len(common) == round(5 * classes) and all(
        split.label_map_first[c] == split.label_map_second[c] for c in common
    )
    for mine, known in ((first, split.classes_first), (second, split.classes_second)):
        assert [len(mine[label]) for label in known] == [12] * 5 and sum(map(len, mine.values())) == 60
    assert all(len(first[label] & second[label]) == 12 * examples for label in common)
    assert split.overlap == pytest.approx(round(5 * classes) / 5 * examples)
    alone = split_by_class_and_example(labels, 0, 0, seed=3)
    assert (split.first == alone.first).all() and split.label_map_first == alone.label_map_first
    assert (split.classes_second == split_by_class(labels, classes, seed=3).classes_second).all()
