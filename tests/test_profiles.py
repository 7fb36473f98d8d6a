"""Profiles are checked on load, and say what is allowed."""

import re
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from repsim_utils import profiles
from repsim_utils.datasets.vision import ABOUT
from repsim_utils.models.vision import RESNETS, VITS

SMOKE = yaml.safe_load((Path(profiles.__file__).parent / "smoke.yaml").read_text())


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Put a profile called `own` in place of the shipped ones."""
    monkeypatch.setattr(profiles, "__file__", str(tmp_path / "__init__.py"))
    return lambda content: (tmp_path / "own.yaml").write_text(yaml.safe_dump(content))


VISION = ("dataset_overlap_vision", "task_overlap_vision")


def test_there_are_three():
    assert profiles.names() == ["laptop", "paper", "smoke"]


def holds(loaded, written):
    """Whether everything that a file says is there; what it leaves out has a default."""
    if isinstance(written, dict):
        return all(name in loaded and holds(loaded[name], value) for name, value in written.items())
    if isinstance(written, list):
        return len(loaded) == len(written) and all(map(holds, loaded, written))
    return loaded == written


WRITTEN = {
    name: yaml.safe_load((Path(profiles.__file__).parent / f"{name}.yaml").read_text()) for name in profiles.names()
}


def test_everything_can_be_tried_and_all_that_was_published_is_in_all_profiles():
    ours = {name for name in WRITTEN["laptop"] if name.endswith("_photographs")}
    assert set(WRITTEN["smoke"]) == set(profiles.SECTIONS) and set(WRITTEN["paper"]) >= set(WRITTEN["laptop"]) - ours


@pytest.mark.parametrize(("profile", "section"), [(name, part) for name in WRITTEN for part in WRITTEN[name]])
def test_all_load(profile, section):
    settings = profiles.load(profile, section)
    written = WRITTEN[profile][section]
    left_out = {"optimizer": "sgd", "pretrained": False}  # of a dump, where they are at their default
    assert holds(settings.model_dump(mode="json"), without(written, left_out))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(settings, next(iter(type(settings).model_fields)), 0)


def without(content, defaults):
    """What a file says, as a dump has it: no defaults of some kinds, and a list of the one data set."""
    if isinstance(content, dict):
        kept = {k: without(v, defaults) for k, v in content.items() if k not in defaults or v != defaults[k]}
        several = "timesteps" not in kept  # where a pair's data are one of several sets
        return kept | {k: [v] for k, v in kept.items() if k == "data" and "source" in v and several}
    return content


def test_the_paper_profile_is_the_paper_on_task_only():
    settings = profiles.load("paper", "task_only")
    recipe = settings.recipe
    assert len(settings.seeds) == 10 and settings.data.n_train * 800 == 800_000 and settings.model.name == "resnet18"
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.peak_epoch) == (20, 512, 0.5, 10)
    assert (recipe.momentum, recipe.weight_decay, recipe.label_smoothing) == (0.9, 5e-4, 0.1)
    assert (recipe.translate, recipe.cutout, recipe.flip) == (2, 4, True)


@pytest.mark.parametrize("section", VISION)
def test_the_paper_profile_is_the_paper_on_overlap_in_vision(section):
    settings = profiles.load("paper", section)
    assert settings.mode == "constrained" and settings.architectures is None
    assert settings.n_test is None and settings.probes == ("mnist", "svhn", "cifar10")
    assert settings.seeds == (0, 1, 2, 3) and settings.overlaps == (0, 0.2, 0.4, 0.6, 0.8, 1)
    assert [data.source for data in settings.data] == ["cifar100", "tinyimagenet"]
    assert all(data.n_per_class is data.size is None for data in settings.data)
    assert [ABOUT[data.source].size for data in settings.data] == [32, 64]
    assert list(settings.models) == ["resnet18_scratch", *RESNETS, *VITS]


@pytest.mark.parametrize("section", VISION)
def test_the_paper_profile_on_resnet18_from_scratch(section):
    settings = profiles.load("paper", section)
    trainee = settings.models["resnet18_scratch"]
    network, recipe = trainee.network, trainee.recipe
    assert (network.name, network.stem, network.pretrained) == ("resnet18", "cifar", False)
    assert trainee.seeds == tuple(range(10))
    overlaps = trainee.overlaps or settings.overlaps
    assert overlaps == tuple(k / 10 for k in range(0, 11, 1 if section == "dataset_overlap_vision" else 2))
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.peak_epoch) == (50, 512, 0.5, 10)
    assert (recipe.optimizer, recipe.momentum, recipe.weight_decay, recipe.label_smoothing) == ("sgd", 0.9, 5e-4, 0.1)
    assert (recipe.flip, recipe.translate, recipe.cutout) == (True, 8, 10) and recipe.jitter > 0


@pytest.mark.parametrize("section", VISION)
@pytest.mark.parametrize("name", [*RESNETS, *VITS])
def test_the_paper_profile_on_pretrained_networks(section, name):
    trainee = profiles.load("paper", section).models[name]
    recipe = trainee.recipe
    assert (trainee.network.name, trainee.network.stem, trainee.network.pretrained) == (name, "imagenet", True)
    assert trainee.seeds is None and trainee.overlaps is None  # four, and steps of 0.2, as all
    assert (recipe.epochs, recipe.peak_epoch, recipe.batch_size) == (5, 1, 256)
    expected = ("sgd", 0.2, 5e-4) if name in RESNETS else ("adamw", 3e-4, 0.05)
    assert (recipe.optimizer, recipe.lr, recipe.weight_decay) == expected


@pytest.mark.parametrize("section", VISION)
@pytest.mark.parametrize("profile", ["smoke", "laptop"])
def test_small_profiles_need_neither_network_nor_gpu(profile, section):
    settings = profiles.load(profile, section)
    assert {data.source for data in settings.data} | set(settings.probes) <= {"color_shape_digit", "digits"}
    assert all(trainee.network.name.startswith("small_") for trainee in settings.models.values())
    assert len(settings.seeds) >= (8 if profile == "laptop" else 1)
    if section == "task_overlap_vision":
        assert settings.probe_classes


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
        ({"model": "{name: vgg}"}, r"model.name: must be one of small_resnet, small_vit, resnet18, .*, got 'vgg'"),
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
        message = f"unknown experiment '{section}'; choose from kernels, .*, dataset_overlap_vision, .*, task_only, "
        with pytest.raises(ValueError, match=message):
            profiles.load("smoke", section)


def test_a_missing_or_unknown_key_of_a_profile_is_named(write):
    write(SMOKE)
    assert profiles.load("own", "task_only").seeds == (0,)
    without = {name: value for name, value in SMOKE["task_only"].items() if name != "recipe"}
    for content, message in (
        (SMOKE | {"task_only": without}, "task_only.recipe: Field required"),
        (SMOKE | {"task_only": SMOKE["task_only"] | {"sedes": [1]}}, r"task_only.sedes: .*not permitted, got \[1\]"),
        (SMOKE | {"astrology": {}}, "astrology: .*not permitted"),
    ):
        write(content)
        with pytest.raises(ValueError, match=message):
            profiles.load("own", "task_only")
    write({"task_only": SMOKE["task_only"]})
    with pytest.raises(ValueError, match="profile own has no section color_shape_digit"):
        profiles.load("own", "color_shape_digit")


def test_a_group_given_in_part_keeps_the_rest():
    whole, part = profiles.load("smoke", "task_only"), profiles.load("smoke", "task_only", recipe="{epochs: 9}")
    assert part.recipe == whole.recipe.model_copy(update={"epochs": 9})


@pytest.mark.parametrize("section", VISION)
def test_a_group_within_groups_given_in_part_keeps_the_rest(section):
    whole = profiles.load("smoke", section)
    part = profiles.load("smoke", section, models="{small_resnet: {recipe: {epochs: 3}}}")
    changed, unchanged = part.models["small_resnet"], whole.models["small_resnet"]
    assert changed.recipe == unchanged.recipe.model_copy(update={"epochs": 3})
    assert changed.network == unchanged.network and list(part.models) == list(whole.models)
    assert part.models["small_vit"] == whole.models["small_vit"]
    assert part.model_dump(exclude={"models"}) == whole.model_dump(exclude={"models"})


def test_a_list_replaces_and_bare_text_is_a_source():
    load = profiles.load
    assert [d.source for d in load("smoke", "dataset_overlap_vision", data="/my/photos").data] == ["/my/photos"]
    assert [d.source for d in load("smoke", "dataset_overlap_vision", data="[cifar10, svhn]").data] == [
        "cifar10",
        "svhn",
    ]
    (drawn,) = load("paper", "task_overlap_vision", data="{source: color_shape_digit, n_per_class: 20}").data
    assert (drawn.n_per_class, drawn.factors) == (20, ("shape", "digit"))
    assert load("smoke", "dataset_overlap_vision", architectures="[small_vit]").architectures == ("small_vit",)


ODD = [
    "my clothes #1",
    "a: b",
    "plain",
    "set #2",
    "2024",
    "1e3",
    "0x10",
    "1_000",
    "2024-13-01",
    "2024-01-02",
    "no",
    "Yes",
]
ODD += [
    "null",
    "~x",
    "[v2] birds",
    "[v2]",
    "[0, 1]",
    "{old}",
    "{a: b}",
    "*.best",
    "*best",
    "@work",
    "'quoted'",
    '"two"',
]
ODD += [
    "a, b",
    "-",
    "- a",
    "?",
    "? a",
    "!tag",
    "&anchor x",
    "| x",
    "> x",
    "%x",
    "`x",
    "--- x",
    "C:\\Users\\me",
    "日本 #1",
]
ODD += ["[a] #b]", "source: a", ".5", "a=b", "#1"]


def source(**data):
    return profiles.load("smoke", "dataset_overlap_vision", **data).data[0].source


@pytest.mark.parametrize("name", ODD)
def test_a_folder_that_there_is_counts_as_it_is_written(name, tmp_path, monkeypatch):
    """By itself and within braces; of a whole path, and relative to here."""
    monkeypatch.chdir(tmp_path)
    for wanted in ("v2", "a", "my clothes", "set", "birds", "x", "old", "quoted", name):  # what YAML might make of it
        (tmp_path / wanted).mkdir(exist_ok=True)
    folder = str(tmp_path / name)
    assert source(data=name) == folder
    (data,) = profiles.load("smoke", "dataset_overlap_vision", data=f"{{source: {folder}, size: 64}}").data
    assert (data.source, data.size) == (folder, 64)
    text = profiles.load("smoke", "dataset_overlap_language", divided=name, corpora=folder)
    assert text.divided == text.corpora == (folder,)


@pytest.mark.parametrize("name", [name for name in ODD if name not in ("null", "[v2]", "[0, 1]", "{old}", "{a: b}")])
def test_a_folder_that_there_is_not_is_never_another(name, tmp_path, monkeypatch):
    """Its full spelling is kept, to be refused once it is looked for, or refused at once."""
    monkeypatch.chdir(tmp_path)
    for other in ("v2", "a", "my clothes", "set", "x", "1000", "1000.0", "16", "False", "b", "best"):
        (tmp_path / other).mkdir()
    if name in ("'quoted'", '"two"', "source: a"):  # YAML that says what it is
        assert source(data=name) == str(tmp_path / name.split(": ")[-1].strip("'\""))
    elif name == "[v2] birds":
        with pytest.raises(ValueError, match=re.escape(f"there is no path {name!r}")):
            source(data=name)
    else:
        assert source(data=name) == str(tmp_path / name)


def test_yaml_keeps_its_meaning(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert source(data='"birds #2"') == str(tmp_path / "birds #2")
    assert source(data='{source: "birds #2"}') == str(tmp_path / "birds #2")
    assert source(data="source: svhn") == source(data="svhn") == source(data="\n- svhn\n- cifar10\n") == "svhn"
    assert profiles.load("smoke", "dataset_overlap_language", divided="null").divided is None
    numbers = profiles.load("smoke", "dataset_overlap_vision", data="[2024, no, 1e3]").data
    assert [data.name for data in numbers] == ["2024", "no", "1e3"]
    assert profiles.load("smoke", "dataset_overlap_vision", data="size: 64").data[0].size == 64
    (tmp_path / "[0, 3]").mkdir()
    assert profiles.load("smoke", "task_only", seeds="[0, 3]").seeds == (0, 3)  # seeds are no path


@pytest.mark.parametrize("given", ["{source: birds #2, size: 64}", "{source: set: final}", "{source: [v2] birds}"])
def test_a_path_in_braces_that_there_is_not_is_refused(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for other in ("birds", "set", "v2"):
        (tmp_path / other).mkdir()
    told = f"data: there is no path {given!r}, and as YAML it cannot be read; put a path in quotes"
    with pytest.raises(ValueError, match=re.escape(told)):
        source(data=given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"overlaps": "[0, 2]"}, r"smoke\): overlaps: overlaps are different numbers between 0 and 1, got \[0, 2\]"),
        ({"data": "{source: color_shape_digit, n_per_class: 15}"}, r"data.0: n_per_class of .* multiple of 10"),
        ({"architectures": "[vgg]"}, "no architecture vgg; choose from small_resnet, small_vit"),
        (
            {"models": "{small_resnet: {network: {name: vgg}}}"},
            "models.small_resnet.network.name: must be one of small_re",
        ),
        (
            {"models": "{small_resnet: {recipe: {peak_epoch: 99}}}"},
            "models.small_resnet.recipe: peak_epoch must not be",
        ),
        ({"models": "{mine: {network: {name: small_vit}}}"}, "models.mine.recipe: Field required"),
        (
            {"recipe": "{epochs: 1}"},
            "unknown setting recipe of dataset_overlap_vision; choose from seeds, overlaps, mode",
        ),
    ],
)
def test_bad_overrides_of_overlap_in_vision_say_what_is_allowed(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        profiles.load("smoke", "dataset_overlap_vision", **change)
    assert "\n" not in str(caught.value)
