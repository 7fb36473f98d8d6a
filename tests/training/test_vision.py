"""Training and augmentation of image classifiers."""

import pytest
import torch
from pydantic import ValidationError

from repsim_utils.models.vision import build
from repsim_utils.training.vision import Recipe, accuracy, augment, train

PLAIN = {"epochs": 3, "batch_size": 32, "lr": 0.1, "peak_epoch": 1}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_images(n=64, size=12, low=0, high=255):
    return torch.randint(low, high + 1, (n, 3, size, size), generator=generator(1), dtype=torch.uint8)


def augmented(images, seed=0, **changes):
    return augment(images, Recipe(**PLAIN, **changes), generator(seed))


def easy_task(n=256):
    """Two classes: the left half is brighter, or the right half is."""
    labels = torch.arange(n) % 2
    images = random_images(n, 16, 0, 150)
    images[labels == 0, :, :, :8] += 100
    images[labels == 1, :, :, 8:] += 100
    return images, labels


def small_model(seed=0):
    return build("small_resnet", 2, seed=seed, width=4)


def test_nothing_on_changes_nothing():
    images = random_images()
    assert torch.equal(augmented(images), images / 255)


def test_augmentation_gives_floats_in_0_1_and_leaves_the_images():
    images = random_images()
    before = images.clone()
    result = augmented(images, flip=True, translate=3, jitter=0.5, cutout=5)
    assert result.dtype == torch.float32 and result.shape == images.shape and torch.equal(images, before)
    assert result.min() >= 0 and result.max() <= 1


def test_translate_moves_by_whole_pixels_and_repeats_the_edge():
    images, reach = random_images(300), 2
    padded = torch.nn.functional.pad(images / 255, [reach] * 4, mode="replicate")
    shifts = [(r, c) for r in range(2 * reach + 1) for c in range(2 * reach + 1)]
    moved = torch.stack([padded[:, :, r : r + 12, c : c + 12] for r, c in shifts])
    matches = (moved == augmented(images, translate=reach)).flatten(2).all(2)
    assert (matches.sum(0) == 1).all()  # each image was moved in exactly one way
    assert (matches.sum(1) > 0).all()  # and every way occurs


def test_flip_mirrors_about_half_of_the_images():
    images = random_images(300)
    result = augmented(images, flip=True)
    kept, mirrored = ((result == x / 255).flatten(1).all(1) for x in (images, images.flip(3)))
    assert (kept ^ mirrored).all() and 100 < kept.sum() < 200


def test_jitter_is_brightness_contrast_and_saturation():
    """The factors are found again from the pixels, then the literal definition must give every pixel."""
    strength, images = 0.2, random_images(100, low=90, high=165)  # far from the clamp
    pixels, result = images.double() / 255, augmented(images, jitter=strength).double()
    grey = pixels.mean(1, keepdim=True)
    factors = []
    for x, g, y in zip(pixels, grey.expand_as(pixels), result, strict=True):
        design = torch.stack([x.flatten(), g.flatten(), torch.ones(x.numel(), dtype=torch.double)], 1)
        a, b, constant = torch.linalg.lstsq(design, y.flatten(), driver="gelsd").solution.tolist()
        brightness = a + b + constant / x.mean().item()
        factors.append((brightness, (a + b) / brightness, a / (a + b)))
    factors = torch.tensor(factors, dtype=torch.double)
    brightness, contrast, saturation = factors.T.reshape(3, -1, 1, 1, 1)
    expected = brightness * pixels
    mean = expected.mean((1, 2, 3), keepdim=True)
    expected = mean + contrast * (expected - mean)
    grey = expected.mean(1, keepdim=True)
    expected = grey + saturation * (expected - grey)
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=0)
    assert (factors - 1).abs().max() < strength + 1e-4
    assert (factors.std(0) > strength / 3).all()  # each varies over its range, from image to image
    assert torch.corrcoef(factors.T).triu(1).abs().max() < 0.4


def test_jitter_is_clamped():
    for level in (0, 255):
        result = augmented(torch.full((50, 3, 4, 4), level, dtype=torch.uint8), jitter=0.5)
        assert result.min() >= 0 and result.max() <= 1


def test_cutout_is_one_square_hole_that_may_reach_over_the_edge():
    holes = augmented(torch.zeros(400, 3, 12, 12, dtype=torch.uint8), cutout=4) == 0.5
    assert (holes == holes[:, :1]).all()  # in all channels
    rows, columns = holes[:, 0].any(2), holes[:, 0].any(1)
    heights, widths = rows.sum(1), columns.sum(1)
    assert (holes[:, 0].sum((1, 2)) == heights * widths).all()  # a rectangle
    inner = ~(rows[:, [0, -1]].any(1) | columns[:, [0, -1]].any(1))
    assert set(heights[inner].tolist()) == set(widths[inner].tolist()) == {4}
    assert set(heights.tolist()) == set(widths.tolist()) == {1, 2, 3, 4}
    assert holes[:, 0].any(0).all()  # every pixel is hit at times


def test_augmentation_follows_its_generator():
    options = {"flip": True, "translate": 2, "jitter": 0.1, "cutout": 3}
    images, before = random_images(), torch.get_rng_state()
    one, same, other = (augmented(images, seed=seed, **options) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(before, torch.get_rng_state())


def test_an_easy_task_is_learnt():
    images, labels = easy_task()
    model = small_model()
    before = accuracy(model, images[192:], labels[192:])
    trained = train(model, images[:192], labels[:192], Recipe(**PLAIN), seed=0, progress=False)
    assert trained is model and not model.training
    assert accuracy(model, images[192:], labels[192:]) > max(0.95, before)


def test_same_seed_same_model():
    images, labels = easy_task(96)
    recipe = Recipe(**PLAIN | {"epochs": 2}, translate=1, jitter=0.1, cutout=2, flip=True)
    before = torch.get_rng_state()
    models = [train(small_model(), images, labels, recipe, seed=seed, progress=False) for seed in (5, 5, 6)]
    one, same, other = (model.state_dict() for model in models)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])
    assert torch.equal(before, torch.get_rng_state())


def test_the_learning_rate_rises_to_one_peak_and_falls(monkeypatch):
    rates, step = [], torch.optim.SGD.step

    def spy(self, *args, **options):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **options)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    images, labels = easy_task(64)
    recipe = Recipe(epochs=4, batch_size=16, lr=0.2, peak_epoch=1)
    train(small_model(), images, labels, recipe, seed=0, progress=False)
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, *(0.2 * (1 - i / 12) for i in range(12))])


@pytest.mark.parametrize("batch_size", [1, 7, 500])
def test_accuracy_counts_every_image_once(batch_size):
    images, labels = easy_task(30)
    model = small_model().eval()
    guesses = model(images / 255).argmax(1)
    assert accuracy(model, images, labels, batch_size=batch_size) == pytest.approx((guesses == labels).double().mean())


def test_fewer_images_than_a_batch_are_one_batch():
    images, labels = easy_task(20)
    few, exact = (
        train(small_model(), images, labels, Recipe(**PLAIN | {"batch_size": size}), seed=0, progress=False)
        for size in (32, 20)
    )
    assert all(torch.equal(a, b) for a, b in zip(few.parameters(), exact.parameters(), strict=True))
    before = small_model()
    assert not any(torch.equal(a, b) for a, b in zip(few.parameters(), before.parameters(), strict=True))


def test_errors():
    images, labels = easy_task(40)
    for n_images, n_labels in ((40, 39), (1, 1)):
        with pytest.raises(ValueError, match=f"and as many labels; got {n_images} images, {n_labels} labels"):
            train(small_model(), images[:n_images], labels[:n_labels], Recipe(**PLAIN), seed=0, progress=False)
    with pytest.raises(ValueError, match=r"training diverged in epoch \d: the loss is nan; lower lr = 1e\+20"):
        train(small_model(), images, labels, Recipe(**PLAIN | {"lr": 1e20, "peak_epoch": 0.5}), seed=0, progress=False)


@pytest.mark.parametrize(
    "change",
    [{"epochs": 0}, {"batch_size": 1}, {"lr": 0}, {"momentum": 1}, {"jitter": 1}, {"translate": -1}, {"dropout": 0.1}],
)
def test_bad_recipes_are_refused(change):
    with pytest.raises(ValidationError, match=next(iter(change))):
        Recipe(**PLAIN | change)


def test_adamw_is_adamw():
    """One step of each optimiser, by hand: AdamW's first step has the size of the learning rate in every weight."""
    images, labels = easy_task(32)
    plain = PLAIN | {"epochs": 1, "batch_size": 16, "lr": 0.01, "peak_epoch": 0.5, "weight_decay": 0, "momentum": 0}
    for optimizer in ("sgd", "adamw"):
        model, before = small_model(), small_model()
        train(model, images, labels, Recipe(**plain, optimizer=optimizer), seed=0, progress=False)
        moved = [
            float((a - b).detach().abs().max()) for a, b in zip(model.parameters(), before.parameters(), strict=True)
        ]
        # two steps: the first with rate 0, the second at the peak
        assert all(size <= 0.0101 for size in moved) or optimizer == "sgd"
        assert (max(moved) == pytest.approx(0.01, rel=0.3)) == (optimizer == "adamw")


def test_the_optimizer_is_in_the_key_only_where_it_is_not_sgd():
    assert "optimizer" not in Recipe(**PLAIN).model_dump(mode="json")
    assert Recipe(**PLAIN, optimizer="adamw").model_dump(mode="json")["optimizer"] == "adamw"


def test_a_peak_after_the_last_epoch_is_refused():
    with pytest.raises(ValidationError, match="peak_epoch"):
        Recipe(**PLAIN | {"epochs": 1, "peak_epoch": 3})
