"""The command: what a user sees, exit codes, and what a wheel holds."""

import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from repsim_utils import __version__, cli, files, metrics, profiles, published
from repsim_utils.experiments import EXPERIMENTS, language, task_only, vision
from repsim_utils.store import key
from tests.tiny import NETWORKS
from tests.words import NETWORK, RECIPE, folders

ROOT = Path(__file__).parents[1]
TINY = {
    "data": "{n_train: 1, n_probe: 1, size: 16}",
    "model": "{name: small_resnet, width: 4}",
    "recipe": "{epochs: 1, batch_size: 128, lr: 0.1, peak_epoch: 0.5}",
    "overlaps": "[1, 3]",
}


@pytest.fixture
def repsim(monkeypatch, capsys):
    """Call the command in this process: (exit code, output, errors)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["repsim", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        return caught.value.code or 0, out, err

    return call


def tiny(form):
    """The settings in one of the two forms, and no worker but this process."""
    return [word for name, value in TINY.items() for word in ("-p", *form(name, value))] + ["--workers", "0"]


def two_words(name, value):
    return name, value


def one_word(name, value):
    return (f"{name}={value}",)


def test_version(repsim):
    assert repsim("version") == (0, f"{__version__}\n", "")


def test_module_runs_as_a_program():
    code = "from repsim_utils.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "run", "nothing"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == (
        f"repsim: unknown experiment 'nothing'; choose from {', '.join(EXPERIMENTS)}\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nothing"], "repsim: unknown experiment 'nothing'; choose from dataset_overlap_vision, task"),
        (["run", "task_only", "--profile", "tiny"], "unknown profile 'tiny'; choose from laptop, paper, smoke\n"),
        (["run", "task_only", "-p", "sead", "1"], "unknown setting sead of task_only; choose from seeds, overlaps"),
        (["run", "task_only", "-p", "sead=1"], "unknown setting sead of task_only; choose from seeds, overlaps"),
        (
            ["run", "task_only", "-p", "seeds", "[0, 1"],
            "task_only (smoke): seeds: must be a list such as [1, 2], got '[0, 1'",
        ),
        (["run", "task_only", "-p", "seeds", "[-1]"], "seeds are different whole numbers, 0 or more"),
        (["run", "task_only", "-p", "overlaps=[7]"], "task overlap has the levels 1, 2, 3, each at most once, got [7]"),
        (["run", "task_only", "-p", "seeds"], "-p seeds needs a value"),
        (["run", "task_only", "--record"], "only the laptop profile is recorded: use --profile laptop"),
        (
            ["run", "task_only", "--record", "--profile", "laptop", "--scheduler", "tcp://here:1"],
            "all cells of a seed are recorded on one machine: leave out --scheduler",
        ),
        (
            ["run", "task_only", "--record", "--profile", "laptop", "-p", "overlaps", "[1]"],
            "what is recorded has the settings of the laptop profile: leave out -p overlaps",
        ),
        (
            ["run", "task_only", "--record", "--profile", "laptop", "-p", "seeds", "[0, 99]"],
            "seeds [99] are not in the laptop profile, which alone is recorded",
        ),
    ],
)
def test_what_the_user_got_wrong_is_one_line_and_code_2(repsim, monkeypatch, arguments, message):
    monkeypatch.setattr(published, "record", None)
    monkeypatch.setattr(vision, "train", None)
    code, out, err = repsim(*arguments)
    assert code == 2 and message in err and out == ""
    assert err.startswith("repsim: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["walk"],
        ["run", "task_only", "--fast"],
        ["run", "task_only", "--workers", "-1"],
        ["data", "color-shape-digit"],
    ],
)
def test_what_typer_refuses_is_code_2(repsim, arguments):
    assert repsim(*arguments)[0] == 2


@pytest.mark.parametrize("form", [two_words, one_word])
def test_run_prints_a_summary(repsim, tmp_path, form):
    code, out, _ = repsim("run", "task_only", "--store", tmp_path / "here", *tiny(form))
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["metric", "overlap", "pair", "mean", "low", "high", "n"]
    assert (
        "_published" not in out
        and len(lines) == 1 + 2 * 10
        and all(line.split()[-3:] == ["-", "-", "1"] for line in lines[1:])
    )
    assert len(list((tmp_path / "here" / "task_only").iterdir())) == 2
    assert not (tmp_path / "default_store").exists()


def test_run_uses_the_store_of_the_environment(repsim, tmp_path, monkeypatch):
    assert repsim("run", "task_only", *tiny(two_words))[0] == 0
    assert len(list((tmp_path / "default_store" / "models").iterdir())) == 4
    monkeypatch.setattr(vision, "train", None)
    assert repsim("run", "task_only", *tiny(one_word))[0] == 0  # both forms mean the same, and all is there


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout without recorded results, and a laptop profile that is small."""
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr(files, "data_folder", lambda: tmp_path / "data")

    def load(profile, section, **changes):
        seeds = yaml.safe_load(str(changes.get("seeds", "[0, 5]")))
        return task_only.Settings(
            seeds=seeds, fresh_seeds=(5,), overlaps=(1, 3), data={"n_train": 1, "n_probe": 1, "size": 16},
            model={"name": "small_resnet", "width": 4},
            recipe={"epochs": 1, "batch_size": 128, "lr": 0.1, "peak_epoch": 0.5},
        )  # fmt: skip

    monkeypatch.setattr("repsim_utils.profiles.load", load)
    return tmp_path / "data" / "results" / "task_only.csv"


RECORD = "run", "task_only", "--profile", "laptop", "--record", "--workers", "0"


def test_record_writes_the_whole_laptop_table_and_what_is_there_is_not_run_again(repsim, checkout, monkeypatch):
    code, out, _ = repsim(*RECORD)
    assert code == 0 and out.startswith(f"recorded in {checkout}\n")
    table = published.recorded("task_only")
    assert set(table.profile) == {"laptop"}
    assert set(zip(table.seed, table.seeds, strict=True)) == {(0, "chosen"), (5, "fresh")}
    before = checkout.read_bytes()
    monkeypatch.setattr(vision, "train", None)  # nothing of it is in the other store, and nothing is run
    assert repsim(*RECORD, "--store", checkout.parent / "other")[0] == 0 and checkout.read_bytes() == before


def test_seeds_are_recorded_one_by_one_and_a_seed_is_recorded_whole(repsim, checkout):
    assert repsim(*RECORD, "-p", "seeds", "[5]")[0] == 0
    assert set(published.recorded("task_only").seed) == {5}
    assert repsim(*RECORD, "-p", "seeds", "[0]")[0] == 0
    table = published.recorded("task_only")
    assert list(dict.fromkeys(table.seed)) == [0, 5]  # in the order of the profile
    cells = task_only.pairs(profiles.load("laptop", "task_only"))
    assert published.unrecorded(cells, "task_only") == []
    checkout.unlink()
    published.record(table[table["key"] != table["key"].iloc[-1]], "task_only", cells)  # a cell of seed 5 is lost
    assert published.unrecorded(cells, "task_only") == [cell for cell in cells if cell.second.seed == 5]


def test_a_seed_keeps_its_label_and_is_not_lost_when_the_recipe_changes(repsim, checkout):
    assert repsim(*RECORD)[0] == 0
    table, cells = published.recorded("task_only"), task_only.pairs(profiles.load("laptop", "task_only"))
    published.record(table.head(0), "task_only", cells, fresh_seeds=[0, 5])  # declared after the event
    assert set(published.recorded("task_only").query("seed == 0").seeds) == {"chosen"}
    before = checkout.read_bytes()
    longer = [
        cell.model_copy(
            update={
                which: getattr(cell, which).model_copy(
                    update={"recipe": cell.first.recipe.model_copy(update={"epochs": 2})}
                )
                for which in ("first", "second")
            }
        )
        for cell in cells
    ]
    keys = {key(cell.model_dump(mode="json")) for cell in longer if cell.second.seed == 0}
    again = table[table.seed == 0].assign(key=[sorted(keys)[0]] * int((table.seed == 0).sum()))
    with pytest.raises(ValueError, match=r"seeds \[5\] were recorded in another configuration: record all seeds"):
        published.record(again, "task_only", longer)
    assert checkout.read_bytes() == before


def test_rows_of_cells_that_are_no_longer_in_the_profile_are_dropped(repsim, checkout):
    assert repsim(*RECORD)[0] == 0
    table, cells = published.recorded("task_only"), task_only.pairs(profiles.load("laptop", "task_only"))
    published.record(table.head(0), "task_only", [cell for cell in cells if cell.second.seed == 5])
    assert set(published.recorded("task_only").seed) == {5}


def test_pictures_are_recorded_beside_the_table(repsim, monkeypatch):
    kept, small = [], profiles.load("smoke", "dataset_overlap_diffusion", overlaps=[1])
    pictures = torch.zeros(1, 1, 3, 4, 4, dtype=torch.uint8)
    quick = EXPERIMENTS["dataset_overlap_diffusion"]._replace(
        gallery=lambda cells, store: pictures,
        by=("metric",),
    )
    row = {"metric": "cka", "overlap": 1, "seed": 0, "value": 1.0}
    monkeypatch.setattr("repsim_utils.experiments.engine.measure", lambda pair, store, *, progress: [row])
    monkeypatch.setitem(EXPERIMENTS, "dataset_overlap_diffusion", quick)
    monkeypatch.setattr("repsim_utils.profiles.load", lambda *_, **__: small)
    monkeypatch.setattr(published, "record", lambda table, experiment, cells, fresh_seeds: "there")
    monkeypatch.setattr(published, "unrecorded", lambda cells, experiment: cells)
    monkeypatch.setattr(published, "record_gallery", lambda images, name: kept.append((images, name)) or "beside it")
    options = "--profile", "laptop", "--record", "--workers", "0"
    code, out, _ = repsim("run", "dataset_overlap_diffusion", *options)
    assert code == 0 and out.startswith("recorded in there\nrecorded in beside it\n")
    assert kept == [(pictures, "dataset_overlap_diffusion")]


VISION = [
    *("-p", "seeds=[0]", "-p", "overlaps=[0, 1]", "-p", f"models={json.dumps(NETWORKS)}", "-p", "n_permutations=19"),
    *("-p", "architectures=[small_resnet]", "-p", "data={n_per_class: 10}", "-p", "n_test=10", "-p", "probes=[]"),
]


@pytest.mark.parametrize("kind", [vision.DATASET, vision.TASK])
def test_status_and_results_before_and_after_a_run(repsim, kind):
    before = repsim("status", kind, *VISION)
    assert before[0] == 0 and "cells   0 of 2 measured\nmodels  0 of 3 trained\n" in before[1]
    code, out, err = repsim("results", kind, *VISION)
    assert code == 1 and out == "" and f"no cell of {kind} (smoke, as changed) is in" in err and "`repsim run`" in err
    ran = repsim("run", kind, *VISION, "--workers", "0")
    assert ran[0] == 0
    assert "cells   2 of 2 measured\nmodels  3 of 3 trained\n" in repsim("status", kind, *VISION)[1]
    assert repsim("results", kind, *VISION)[1] == ran[1]
    table = pd.read_csv(io.StringIO(repsim("results", kind, *VISION, "--csv")[1]))
    assert set(table.overlap) == {0, 1} and set(table.profile) == {"smoke"} and set(table.experiment) == {kind}
    assert ran[1].split()[:8] == ["dataset", "architecture", "probe", "metric", "overlap", "mean", "low", "high"]


@pytest.mark.parametrize("kind", [vision.DATASET, vision.TASK])
def test_a_folder_of_images_goes_all_the_way(repsim, tmp_path, monkeypatch, kind):
    """As a stranger would: one folder of pictures for each class, all sizes and formats, and nothing else said."""
    monkeypatch.setenv("REPSIM_DATA", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for number, name in enumerate(("birds", "cars", "dogs", "trees")):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for i in range(60):
            pixels = rng.integers(0, 90, (24 + i, 40, 3), dtype=np.uint8) + np.uint8(50 * number)
            Image.fromarray(pixels).save(tmp_path / "mine" / name / f"{i}.{('png', 'jpg')[i % 2]}")
    code, out, err = repsim("run", kind, "-p", f"data={tmp_path / 'mine'}", "--workers", "0")
    assert code == 0, err
    assert re.search(r"mine +small_resnet +mine +cka +1\.000 +\d\.\d{3}", out)
    assert re.search(r"mine +small_vit +digits +mutual_knn +0\.000 +\d\.\d{3}", out)


@pytest.mark.parametrize("kind", [language.DATASET, language.TASK])
def test_folders_of_text_go_all_the_way(repsim, tmp_path, monkeypatch, kind):
    """As a stranger would, with a smaller network to be quick; corpora by name are not needed."""
    monkeypatch.setenv("REPSIM_DATA", str(tmp_path / "cache"))
    sources = folders(tmp_path, n=6, files=12)
    models = {"tiny": {"network": NETWORK, "recipe": RECIPE}}
    small = ["-p", f"corpora={json.dumps(sources)}", "-p", f"models={json.dumps(models)}", "-p", "n_permutations=19"]
    small += ["-p", "architectures=[tiny]"]
    small += ["-p", "vocabulary=300", "-p", "n_chunks=8", "-p", "n_tokens=null", "--workers", "0"]
    small += ["-p", f"divided={sources[2]}"] if kind == language.DATASET else []
    code, out, err = repsim("run", kind, *small)
    assert code == 0, err
    name, probe = ("corpus2", "corpus5") if kind == language.DATASET else ("6_corpora", "corpora_seen_by_none")
    assert re.search(rf"{name} +tiny +{probe} +cka +1\.000 +\d\.\d{{3}}", out)
    assert re.search(rf"{name} +tiny +{name} +loss_own_first +1\.000 +\d\.\d{{3}}", out)
    assert "curve" not in out and len(re.findall(rf" {probe} +cka +1\.000", out)) == 1  # no row of a step or layer
    (sources_folder := Path(sources[0]) / "7.txt").write_bytes(b"\xff\xfe not text")
    code, out, err = repsim("run", kind, *small)
    assert code == 1 and out == "" and err.startswith(f"repsim: {sources_folder} is not text in UTF-8")
    assert err.count("\n") == 1


def test_plan_adds_up(repsim):
    code, out, _ = repsim(
        "plan", "dataset_overlap_vision", "--profile", "laptop", "--gpu", "h100", "--utilisation", "0.5"
    )
    assert code == 0
    heading, *rows = [line.split() for line in out.split("\n\n")[0].splitlines()]
    assert heading[:6] == ["dataset", "model", "cells", "models", "samples", "epochs"] and len(rows) == 2
    assert sum(int(row[2]) for row in rows) == 192 and sum(int(row[3]) for row in rows) == 224
    assert "together 192 cells and 224 models" in out and "on one h100 that reaches 50% of 494 TFLOP/s" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "task_only", "--gpu", "abacus"], "unknown gpu 'abacus'; choose from v100"),
        (["plan", "task_only", "--utilisation", "1.5"], "utilisation must be above 0 and at most 1, got 1.5"),
        (["status", "nothing"], "unknown experiment 'nothing'"),
        (["run", vision.DATASET, "-p", "data=/no/such/folder"], "there is no folder /no/such/folder"),
        (["run", vision.DATASET, "-p", "overlaps=[0, 1.2]"], "overlaps are different numbers between 0 and 1"),
        (
            ["run", language.DATASET, "-p", "divided=/no/such/folder"],
            "there is no folder /no/such/folder; corpora known",
        ),
        (["run", language.TASK, "-p", "corpora=[python, cpp, markup]"], "names must be an even number of different"),
        (["run", vision.TASK, "-p", "architectures=[vgg]"], "no architecture vgg; choose from small_resnet, small_vit"),
    ],
)
def test_what_experiments_refuse_is_one_line(repsim, arguments, message):
    code, out, err = repsim(*arguments)
    assert code in (1, 2) and out == "" and message in err
    assert err.startswith("repsim: ") and err.count("\n") == 1


def test_failures_are_code_1(repsim, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("the cell broke")

    monkeypatch.setattr("repsim_utils.experiments.engine.measure", broken)
    code, _, err = repsim("run", "task_only", *tiny(one_word))
    assert code == 1 and "2 cell(s) failed" in err and "ZeroDivisionError: the cell broke" in err


def test_a_stop_is_code_130(repsim, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("repsim_utils.sweep.sweep", stopped)
    code, _, err = repsim("run", "task_only")
    assert code == 130 and "Traceback" not in err


def test_data(repsim, tmp_path):
    command = ["data", "color-shape-digit", "--out", tmp_path / "csd", "--n-train", "1", "--size", "16"]
    code, out, _ = repsim(*command)
    assert code == 0 and "every shard matches its checksum" in out
    assert json.loads((tmp_path / "csd" / "manifest.json").read_text())["n_images"]["train"] == 800
    assert repsim(*command, "--verify")[0] == 0
    (tmp_path / "csd" / "train-00000.npy").write_bytes(b"damaged")
    code, _, err = repsim(*command, "--verify")
    assert code == 1 and "train-00000.npy is missing or damaged" in err and "Traceback" not in err
    assert repsim(*command)[0] == 0  # mends it
    code, _, err = repsim(*command, "--seed", "1")
    assert code == 2 and "holds another data set" in err


def test_figure(repsim, tmp_path):
    code, _, _ = repsim("figure", "--out", tmp_path / "figure.svg")
    assert code == 0 and "<svg" in (tmp_path / "figure.svg").read_text()


def test_a_wheel_of_the_repository_holds_its_tables(tmp_path):
    """Built from a copy, as git has it, so that nothing that lies about gets in."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / "copy" / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-cache-dir", "-w"]
    built = subprocess.run([*command, tmp_path, "."], cwd=tmp_path / "copy", capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("repsim_utils-*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"repsim_utils/profiles/{name}.yaml" for name in ("smoke", "laptop", "paper")}
    wanted |= {"repsim_utils/data/published_results.csv", "repsim_utils/data/README.md"}
    wanted |= {f"repsim_utils/data/results/{path.name}" for path in (ROOT / "data" / "results").glob("*.csv")}
    wanted |= {str(path.relative_to(ROOT)) for path in (ROOT / "repsim_utils").rglob("*.py")}
    assert wanted <= held
    assert not [name for name in held if name.startswith(("tests", "chapters", "benchmarks", "data/"))]


class TestCompare:
    @pytest.fixture
    def files(self, tmp_path):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(90, 6)).astype(np.float32)
        paths = tmp_path / "a.npy", tmp_path / "b.safetensors"
        np.save(paths[0], x)
        y = torch.from_numpy(x @ rng.normal(size=(6, 9)).astype(np.float32))
        save_file({"features": y}, paths[1])
        return (*paths, x, y)

    def test_table(self, repsim, files):
        code, out, err = repsim("compare", *files[:2])
        lines = out.splitlines()
        assert (code, err) == (0, "")
        assert lines[0].split() == ["metric", "value", "low", "high"]
        assert [line.split()[0] for line in lines[1:]] == list(metrics.PAPER)
        expected = metrics.similarity(*files[2:])
        for line in lines[1:]:
            name, value, low, high = line.split()
            assert float(value) == pytest.approx(expected[name], abs=6e-5)
            assert float(low) <= float(value) <= float(high)

    def test_json_with_chance_levels(self, repsim, files):
        options = ["--metric", "cka", "--metric", "mutual_knn", "--calibrate", "--json", "--raw", "--k", 5]
        code, out, _ = repsim("compare", *files[:2], *options, "--permutations", 39)
        rows = json.loads(out)
        assert code == 0
        assert rows == metrics.report(*files[2:], ["cka", "mutual_knn"], k=5, preprocess=None, n_permutations=39)
        assert rows[0]["p_value"] == 1 / 40

    def test_careless_users_get_one_line_and_code_2(self, repsim, files, tmp_path):
        a, b, x, _ = files
        np.save(tmp_path / "short.npy", x[:-1])
        x[3, 2] = np.nan
        np.save(tmp_path / "nan.npy", x)
        np.save(tmp_path / "flat.npy", x[:, 0])
        np.save(tmp_path / "words.npy", np.array([["a", "b"]] * 90))
        for arguments, message in (
            (
                (tmp_path / "short.npy", b),
                f"got 89 and 90: give the same samples to both (x is {tmp_path}/short.npy",
            ),
            ((a, tmp_path / "nan.npy"), "y must be finite, got NaN or infinite values"),
            ((tmp_path / "flat.npy", b), "x must be a matrix with one row a sample, got shape (90,)"),
            ((tmp_path / "words.npy", b), "x must hold real numbers, got <U1"),
            ((tmp_path / "none.npy", b), "none.npy: there is no such file"),
            ((ROOT / "README.md", b), "README.md: not one of the formats"),
            ((a, b, "--metric", "ckaa"), "unknown metric ckaa; choose from cka"),
            ((a, b, "--k", 90), "k must be at least 1 and less than the number of rows, got k=90 with 90 rows"),
            ((a, b, "--calibrate", "--permutations", 5), "needs at least 19 permutations, got 5"),
        ):
            code, out, err = repsim("compare", *arguments)
            assert (code, out) == (2, "")
            assert err.startswith("repsim: ") and message in err and err.count("\n") == 1

    def test_what_cannot_be_computed_is_named_under_the_table(self, repsim, tmp_path):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(18, 32))
        paths, pair = (tmp_path / "a.npy", tmp_path / "b.npy"), (x, x + rng.normal(size=(18, 32)))
        for path, values in zip(paths, pair, strict=True):
            np.save(path, values)
        others = [name for name in metrics.PAPER if name != "svcca"]
        wanted = metrics.similarity(*pair, others)
        code, out, err = repsim("compare", *paths)
        lines = out.splitlines()
        assert (code, err) == (0, "") and len(lines) == 1 + 7 + 1
        for line, name in zip(lines[1:8], others, strict=True):
            assert line.split()[0] == name and float(line.split()[1]) == pytest.approx(wanted[name], abs=6e-5)
        assert lines[8].startswith("svcca is left out: x and y vary in 10 and 10 directions, too many for 18 rows")
        code, out, _ = repsim("compare", *paths, "--metric", "svcca", "--metric", "cka", "--json")
        svcca, cka = json.loads(out)
        assert code == 0 and svcca["value"] is None and svcca["reason"] in lines[8]
        assert cka["value"] == wanted["cka"] and "reason" not in cka
        code, out, err = repsim("compare", *paths, "--metric", "svcca", "--metric", "cca")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "at least 3 canonical correlations" in err and "at least 17 canonical correlations" in err

    def test_a_value_without_an_interval_is_printed(self, repsim, tmp_path):
        x = np.random.default_rng(0).normal(size=(11, 32))
        np.save(tmp_path / "a.npy", x)
        code, out, _ = repsim("compare", tmp_path / "a.npy", tmp_path / "a.npy", "--metric", "mutual_knn")
        assert code == 0 and out.splitlines()[1].split() == ["mutual_knn", "1.0000", "-", "-"]
        assert out.splitlines()[2].startswith("mutual_knn: no interval: with k=10, 11 rows are too few")

    def test_hints_name_options_that_there_are(self, repsim, tmp_path):
        rng = np.random.default_rng(0)
        sparse, zero, x = (
            np.maximum(rng.normal(size=(50, 64)) - 1.9, 0),
            rng.normal(size=(50, 8)),
            rng.normal(size=(50, 64)),
        )
        zero[7] = 0
        for name, values in (("sparse", sparse), ("zero", zero), ("x", x), ("few", x[:11])):
            np.save(tmp_path / f"{name}.npy", values)
        for pair, options, hint in (
            (("sparse", "x"), [], "clamping there leaves nothing: use --raw (x is"),
            (
                ("zero", "x"),
                ["--metric", "rsa", "--raw"],
                "leave it out of both files, or name other metrics with --metric",
            ),
            (("x", "x"), ["--metric", "cca"], "use more rows, or name other metrics with --metric"),
            (("few", "few"), ["--metric", "mutual_knn"], "take a smaller --k"),
            (("x", "x"), ["--calibrate", "--permutations", 5], "the threshold needs at least 19 permutations"),
        ):
            _, out, err = repsim("compare", *(tmp_path / f"{name}.npy" for name in pair), *options)
            assert hint in out + err
            assert not [said for said in cli.HINTS if said in out + err]
            assert not re.search("preprocess=|dissimilarity=|components|alpha=|no interval$", out + err)
        known = repsim("compare", "--help")[1]
        assert all(option in known for option in ("--raw", "--metric", "--k", "--permutations"))

    def test_tables_whose_samples_are_in_another_order_are_refused(self, repsim, tmp_path):
        x = np.random.default_rng(0).normal(size=(30, 3))
        frame = pd.DataFrame(x, columns=list("abc"))
        ids = np.random.default_rng(1).permutation(30)
        first, second = tmp_path / "a.parquet", tmp_path / "b.parquet"
        for one in (
            frame.assign(id=ids),
            frame.assign(name=[f"s{i}" for i in ids]),
            frame.set_index(pd.Index(ids, name="i")),
        ):
            one.to_parquet(first)
            one[::-1].to_parquet(second)
            code, out, err = repsim("compare", first, second, "--metric", "cka")
            assert (code, out) == (2, "") and "have other samples in row 0, by their column " in err
            one.to_parquet(second)
            code, out, _ = repsim("compare", first, second, "--metric", "cka")
            assert code == 0 and out.splitlines()[1].split()[:2] == ["cka", "1.0000"]
        frame.assign(id=ids)[::-1].to_parquet(second)
        assert repsim("compare", f"{first}:a,b,c", f"{second}:a,b,c", "--metric", "cka")[0] == 0  # by their place


class TestModels:
    """`repsim represent`, and `repsim compare` on models: offline, with models in folders."""

    @pytest.fixture
    def two(self, other_models):
        return other_models / "gpt2", other_models / "t5"

    def test_features_with_ids_that_compare_matches(self, repsim, two, texts, tmp_path):
        out = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
        backwards = tmp_path / "backwards.jsonl"
        lines = texts.read_text().splitlines()
        rows = [json.dumps({"id": f"line {i + 1}", "text": line}) for i, line in enumerate(lines)]
        backwards.write_text("\n".join(rows[::-1]))
        for model, probe, path in zip(two, (texts, backwards), out, strict=True):
            code, printed, _ = repsim("represent", model, probe, "--out", path)
            assert (code, printed) == (0, f"{path}: output 12 x 16\n")
        code, printed, _ = repsim("compare", *out, "--json", "--metric", "cka", "--metric", "mutual_knn", "--k", 3)
        value = json.loads(printed)[0]
        again = json.loads(repsim("compare", *two, "--probe", texts, "--json", "--metric", "cka")[1])[0]
        assert code == 0 and value["value"] == pytest.approx(again["value"], abs=1e-6)
        assert again["untrained"] != again["value"]
        code, printed, err = repsim("represent", two[0], texts, "--out", tmp_path / "a.npy")
        assert (code, printed) == (2, "") and "let the name end in .safetensors" in err

    def test_layers_and_a_page_that_needs_no_network(self, repsim, two, texts, tmp_path):
        page = tmp_path / "report.html"
        code, printed, _ = repsim("compare", *two, "--probe", texts, "--layers", "--html", page, "--permutations", 39)
        assert (
            code == 0 and "cka of layers, best pair: " in printed and "cka of layers of untrained networks" in printed
        )
        assert printed.endswith(f"the page is {page}\n")
        text = page.read_text()
        head = text[: text.index("<script>")]
        assert "what 95% stay below, when samples are matched at random" in head and "svcca is left out" in head
        assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", head) and text.count("vegaEmbed('#") == 3

    def test_several_are_a_matrix(self, repsim, other_models, texts):
        sources = [other_models / name for name in ("gpt2", "t5", "roberta")]
        code, printed, _ = repsim("compare", *sources, "--probe", texts, "--metric", "unbiased_cka", "--no-control")
        lines = printed.splitlines()
        assert (
            code == 0 and len(lines) == 1 + 1 + 3 + 1 + 1 + 3 and sorted(lines[1].split()) == sorted(map(str, sources))
        )
        diagonal = [line.split()[1 + i] for i, line in enumerate(lines[2:5])]
        assert diagonal == ["1.000"] * 3

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["{gpt2}", "{t5}"], "is a model and needs samples: add --probe"),
            (["{gpt2}"], "two or more are compared: name another file or model"),
            (["{gpt2}", "{t5}", "--probe", "{gpt2}/nothing"], "there is no such folder of pictures or file of text"),
            (["{gpt2}", "{vit}", "--probe", "{texts}"], "does not read text: give a folder of pictures as the probe"),
            (["{gpt2}", "{t5}", "--probe", "{texts}", "--layers", "--layer", "h.0"], "leave one out"),
            (["{gpt2}", "{t5}", "{gpt2}", "--probe", "{texts}", "--layers"], "layers are compared of two: name two"),
            (
                ["{gpt2}", "{t5}", "--probe", "{texts}", "--html", "{gpt2}"],
                "this is a folder; name a file for the page",
            ),
            (["timm:resnet118", "{vit}", "--probe", "{pictures}"], "timm has no model resnet118; is it resnet18"),
        ],
    )
    def test_careless_users_get_one_line(self, repsim, other_models, texts, pictures, arguments, message):
        places = {name: other_models / name for name in ("gpt2", "t5", "vit")} | {"texts": texts, "pictures": pictures}
        code, printed, err = repsim("compare", *(one.format(**places) for one in arguments))
        assert code in (1, 2) and printed == "" and message in err
        assert err.splitlines()[-1].startswith("repsim: ")
