"""ColorShapeDigit: what a row depends on, and whether its factors can be seen."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repsim_utils.datasets.color_shape_digit import (
    COLORS,
    DIGITS,
    FACTORS,
    SHAPES,
    ColorShapeDigit,
    class_names,
    combination_ids,
    render,
)

N = 300  # more than two of the chunks that are drawn together
SIZES = (28, 17)


def ids(n=N, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(len(values), (n,), generator=generator) for values in (SHAPES, DIGITS, COLORS)]


WHOLE = {size: render(*ids(), seed=3, size=size) for size in SIZES}


@pytest.mark.parametrize("size", SIZES)
@settings(max_examples=25)
@given(bounds=st.tuples(st.integers(0, N - 1), st.integers(1, 140)))
def test_a_slice_equals_the_whole(size, bounds):
    rows = slice(bounds[0], min(sum(bounds), N))
    part = render(*(values[rows] for values in ids()), seed=3, size=size, start=rows.start)
    assert torch.equal(part, WHOLE[size][rows])


@pytest.mark.parametrize("size", SIZES)
def test_rows_drawn_alone_and_backwards_are_the_same(size):
    for i in reversed(range(0, N, 7)):
        one = render(*(values[i : i + 1] for values in ids()), seed=3, size=size, start=i)
        assert torch.equal(one[0], WHOLE[size][i]), i


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_nothing(size, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(render(*ids(), seed=3, size=size), WHOLE[size])
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@given(st.integers(0, N - 1), st.integers(0, 2), st.integers(1, 7))
@settings(max_examples=30)
def test_changing_an_id_changes_that_row_and_no_other(row, factor, step):
    changed = ids()
    changed[factor][row] = (changed[factor][row] + step) % len((SHAPES, DIGITS, COLORS)[factor])
    images = render(*changed, seed=3)
    same = (images == WHOLE[28]).flatten(1).all(1)
    assert not same[row] and same.sum() == N - 1


def test_every_value_of_every_factor_shows():
    """All 800 images of one row's random numbers differ."""
    combinations = list(itertools.product(range(8), range(10), range(10)))
    images = [render([s], [d], [c], seed=0, difficulty=0) for s, d, c in combinations]
    assert len({image.numpy().tobytes() for image in images}) == 800


def test_seed_and_row_both_matter():
    one = [torch.tensor([value]) for value in (1, 2, 3)]
    images = [render(*one, seed=seed, start=start) for seed in (0, 1) for start in (0, 1)]
    assert len({image.numpy().tobytes() for image in images}) == 4


@pytest.mark.parametrize("size", [16, *SIZES, 64])
def test_type_and_shape(size):
    images = render([0, 7], [0, 9], [0, 9], seed=0, size=size)
    assert images.dtype == torch.uint8 and images.shape == (2, 3, size, size)


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    render(*ids(4), seed=0)
    assert torch.equal(before, torch.get_rng_state())


def test_splits_share_no_image():
    images = [
        image.numpy().tobytes()
        for split in ("train", "validation", "test")
        for image in ColorShapeDigit(2, split=split).images
    ]
    assert len(set(images)) == len(images) == 3 * 1600


def test_a_smaller_data_set_is_the_beginning_of_a_larger_one():
    small, large = (ColorShapeDigit(n, split="test", seed=5, size=16) for n in (1, 3))
    assert len(small) == 800 and len(large) == 2400
    assert torch.equal(small.images, large.images[:800])
    assert torch.equal(small.labels(*FACTORS)[0], large.labels(*FACTORS)[0][:800])


def test_every_combination_is_equally_often():
    data = ColorShapeDigit(2, split="train", size=16)
    assert data.shape.dtype == data.digit.dtype == data.color.dtype == torch.int64
    counts = torch.stack([data.shape, data.digit, data.color], 1).unique(dim=0, return_counts=True)[1]
    assert len(counts) == 800 and set(counts.tolist()) == {2}


@pytest.mark.parametrize("factors", [f for r in (1, 2, 3) for f in itertools.permutations(FACTORS, r)])
def test_labels_and_their_names_agree(factors):
    data = ColorShapeDigit(1, split="train", size=16)
    labels, names = data.labels(*factors)
    values = {"shape": SHAPES, "digit": DIGITS, "color": COLORS}
    assert labels.dtype == torch.int64 and names == class_names(*factors)
    assert sorted(set(labels.tolist())) == list(range(len(names))) and len(set(names)) == len(names)
    for i in range(0, 800, 37):
        assert names[labels[i]] == " ".join(values[factor][getattr(data, factor)[i]] for factor in factors)


def test_combinations_follow_one_another():
    triples = torch.stack(combination_ids(torch.arange(1600)), 1)
    assert triples[:800].tolist() == [list(c) for c in itertools.product(range(8), range(10), range(10))]
    assert torch.equal(triples[:800], triples[800:])


def test_difficulty_raises_noise():
    """Neighbouring pixels of a corner, which is background, differ more and more."""
    noise = []
    for difficulty in (0, 0.25, 0.5, 0.75, 1):
        corner = ColorShapeDigit(1, split="test", difficulty=difficulty).images[:, :, :3, :3].double()
        noise.append(corner.diff(dim=3).abs().mean().item())
    assert noise == sorted(noise) and noise[-1] > 4 * noise[0]


def held_out_accuracy(features, factor, difficulty, n=2):
    """Of the nearest class mean, a classifier that nobody can blame for cleverness."""
    train, test = (ColorShapeDigit(n, split=split, difficulty=difficulty) for split in ("train", "test"))
    x, y = (features(data.images.double()).flatten(1) for data in (train, test))
    labels = train.labels(factor)[0]
    means = torch.stack([x[labels == label].mean(0) for label in labels.unique()])
    return (torch.cdist(y, means).argmin(1) == test.labels(factor)[0]).double().mean().item()


def edges(images):
    """Where color changes, whatever to."""
    down, across = images.diff(dim=2)[..., 1:].abs(), images.diff(dim=3)[:, :, 1:].abs()
    return (down + across).mean(1).clamp(max=40)


@pytest.mark.parametrize(
    ("factor", "features", "least"),
    [
        ("color", lambda images: images[:, :, 6:22, 6:22], 0.7),
        ("shape", edges, 0.4),
        ("digit", lambda images: edges(images)[:, 5:22, 5:22], 0.4),
    ],
)
def test_factors_are_visible(factor, features, least):
    assert held_out_accuracy(features, factor, difficulty=0) > least  # chance is 0.1, for shapes 0.125


def test_the_background_tells_nothing():
    assert held_out_accuracy(lambda images: images[:, :, :2], "color", difficulty=0.5) < 0.15
    assert held_out_accuracy(lambda images: images[:, :, :2], "digit", difficulty=0.5) < 0.15


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [8]}, r"shape ids must be between 0 and 7, got \[8\]"),
        ({"digit": [-1]}, r"digit ids must be between 0 and 9, got \[-1\]"),
        ({"color": [10]}, r"color ids must be between 0 and 9, got \[10\]"),
        ({"color": [1, 2]}, r"one id an image each, got \[1, 1, 2\]"),
        ({"difficulty": 1.5}, "difficulty must be between 0 .* and 1 .*got 1.5"),
        ({"difficulty": float("nan")}, "difficulty must be between .*got nan"),
        ({"size": 15}, "size must be at least 16 pixels, got 15"),
        ({"seed": -1}, "must not be negative, got -1 and 0"),
        ({"start": -1}, "must not be negative, got 0 and -1"),
    ],
)
def test_bad_arguments_of_render(change, message):
    arguments = {"shape": [0], "digit": [0], "color": [0], "seed": 0} | change
    with pytest.raises(ValueError, match=message):
        render(**arguments)


def test_bad_arguments_of_the_data_set():
    with pytest.raises(ValueError, match="n_per_combination must be at least 1, got 0"):
        ColorShapeDigit(0, split="train")
    with pytest.raises(ValueError, match=r"split must be one of .*'train'.*got 'dev'"):
        ColorShapeDigit(1, split="dev")
    for factors in ((), ("shape", "shape"), ("size",)):
        with pytest.raises(ValueError, match="factors must be one to three different ones of"):
            class_names(*factors)
