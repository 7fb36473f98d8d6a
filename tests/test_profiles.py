"""Profiles are checked on load, and say what is allowed."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from repsim_utils import profiles

SMOKE = yaml.safe_load((Path(profiles.__file__).parent / "smoke.yaml").read_text())


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Put a profile called `own` in place of the shipped ones."""
    monkeypatch.setattr(profiles, "__file__", str(tmp_path / "__init__.py"))
    return lambda content: (tmp_path / "own.yaml").write_text(yaml.safe_dump(content))


def test_there_are_three():
    assert profiles.names() == ["laptop", "paper", "smoke"]


@pytest.mark.parametrize("profile", ["smoke", "laptop", "paper"])
@pytest.mark.parametrize("section", profiles.Profile.model_fields)
def test_all_load(profile, section):
    settings = profiles.load(profile, section)
    text = (Path(profiles.__file__).parent / f"{profile}.yaml").read_text()
    for name, value in yaml.safe_load(text)[section].items():
        loaded = settings.model_dump(mode="json")[name]
        assert loaded | value == loaded if isinstance(value, dict) else loaded == value
    with pytest.raises(ValidationError, match="frozen"):
        setattr(settings, next(iter(type(settings).model_fields)), 0)


def test_the_paper_profile_is_the_paper():
    settings = profiles.load("paper", "task_only")
    recipe = settings.recipe
    assert len(settings.seeds) == 10 and settings.data.n_train * 800 == 800_000 and settings.model.name == "resnet18"
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.peak_epoch) == (20, 512, 0.5, 10)
    assert (recipe.momentum, recipe.weight_decay, recipe.label_smoothing) == (0.9, 5e-4, 0.1)
    assert (recipe.translate, recipe.cutout, recipe.flip) == (2, 4, True)


def test_overrides():
    load = profiles.load
    assert load("smoke", "task_only", seeds="[0, 3]").seeds == load("smoke", "task_only", seeds=(0, 3)).seeds == (0, 3)
    assert load("smoke", "task_only", seeds=None, overlaps="[2]").model_dump() == load(
        "smoke", "task_only"
    ).model_dump() | {"overlaps": (2,)}
    assert load("smoke", "color_shape_digit", difficulty="0.25").difficulty == 0.25


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sead": "1"}, "unknown setting sead of task_only; choose from seeds, overlaps, data, model, recipe"),
        ({"seeds": "[0, 1"}, r"task_only \(smoke\): seeds: .*got '\[0, 1'"),
        ({"seeds": "[0, -1]"}, r"task_only \(smoke\): seeds: seeds are different whole numbers, 0 or more"),
        ({"seeds": ""}, r"task_only \(smoke\): seeds: .*got None"),
        ({"overlaps": "[4]"}, r"overlaps: task overlap has the levels 1, 2, 3, each at most once, got \[4\]"),
        ({"seeds": "3"}, r"seeds: must be a list such as \[1, 2\], got 3"),
        ({"seeds": "[a]"}, r"smoke\): seeds.0: Input should be a valid integer[^;]*$"),
        ({"recipe": "{epoch: 1}"}, r"recipe.epoch: Extra inputs are not permitted"),
        ({"model": "{name: vgg}"}, r"model.name: .*'small_resnet' or 'resnet18', got 'vgg'"),
    ],
)
def test_bad_overrides_say_what_is_allowed(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        profiles.load("smoke", "task_only", **change)
    assert "\n" not in str(caught.value)


def test_unknown_names_say_what_there_is():
    with pytest.raises(ValueError, match="unknown profile 'tiny'; choose from laptop, paper, smoke"):
        profiles.load("tiny", "task_only")
    for section in ("task_onli", "model_dump"):
        with pytest.raises(
            ValueError, match=f"unknown experiment '{section}'; choose from kernels, .*, color_shape_digit, task_only"
        ):
            profiles.load("smoke", section)


def test_a_missing_or_unknown_key_of_a_profile_is_named(write):
    write(SMOKE)
    assert profiles.load("own", "task_only").seeds == (0,)
    without = {name: value for name, value in SMOKE["task_only"].items() if name != "recipe"}
    for content, message in (
        (SMOKE | {"task_only": without}, "task_only.recipe: Field required"),
        (SMOKE | {"task_only": SMOKE["task_only"] | {"sedes": [1]}}, r"task_only.sedes: .*not permitted, got \[1\]"),
        (SMOKE | {"diffusion": {}}, "diffusion: .*not permitted"),
        ({"task_only": SMOKE["task_only"]}, "color_shape_digit: Field required"),
    ):
        write(content)
        with pytest.raises(ValueError, match=message):
            profiles.load("own", "task_only")


def test_a_group_given_in_part_keeps_the_rest():
    whole, part = profiles.load("smoke", "task_only"), profiles.load("smoke", "task_only", recipe="{epochs: 9}")
    assert part.recipe == whole.recipe.model_copy(update={"epochs": 9})
