"""The experiment that CONTRIBUTING.md adds in three files: added to a copy of the package, run and planned."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import repsim_utils

PACKAGE = Path(repsim_utils.__file__).parent
CONTRIBUTING = PACKAGE.parent / "CONTRIBUTING.md"


def block(language):
    (found,) = re.findall(rf"```{language}\n(.*?)```", CONTRIBUTING.read_text(), re.DOTALL)
    return found


@pytest.fixture(scope="module")
def repsim(tmp_path_factory):
    """The command of a copy of the package to which the experiment was added."""
    folder = tmp_path_factory.mktemp("copy")
    copy = folder / "repsim_utils"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(PACKAGE.parent / "data", folder / "data")
    (copy / "experiments" / "shared_labels.py").write_text(block("python"))
    register = copy / "experiments" / "__init__.py"
    register.write_text(register.read_text().replace("MODULES = (", 'MODULES = (\n    "shared_labels",'))
    with (copy / "profiles" / "smoke.yaml").open("a") as profile:
        profile.write(block("yaml"))
    environment = os.environ | {"PYTHONPATH": str(folder), "REPSIM_STORE": str(folder / "store")}

    def call(*arguments):
        command = [sys.executable, "-c", "from repsim_utils.cli import main; main()", *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def test_it_has_fewer_than_60_lines_of_code():
    assert sum(1 for line in block("python").splitlines() if line.strip()) < 60


@pytest.mark.parametrize("rules", [["check"], ["format", "--check"]])
def test_it_is_as_the_package_wants_it(rules):
    command = [sys.executable, "-m", "ruff", *rules, "--stdin-filename", PACKAGE / "experiments" / "shared_labels.py"]
    assert subprocess.run([*command, "-"], input=block("python"), text=True, cwd=PACKAGE.parent).returncode == 0


def test_commands_know_it(repsim):
    assert re.search(r"^shared_labels +Shared labels: two classifiers see the same images", repsim("experiments"), re.M)


def test_it_is_planned(repsim):
    assert re.search(r"color_shape_digit\s+small_resnet", repsim("plan", "shared_labels", "--profile", "smoke"))


def test_it_runs_and_models_are_trained_once(repsim):
    table = repsim("run", "shared_labels", "--workers", "0")
    found = {float(overlap): float(mean) for overlap, mean in re.findall(r"cka +([01]\.000) +(\S+)", table)}
    assert set(found) == {0, 1} and found[0] < found[1]  # on labels drawn at random nothing is learned
    assert "models  3 of 3 trained" in repsim("status", "shared_labels")
