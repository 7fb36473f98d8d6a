"""What an installed package holds."""

import tomllib
from pathlib import Path


def test_every_module_is_in_the_wheel():
    root = Path(__file__).parents[1]
    named = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = [".".join(file.parent.relative_to(root).parts) for file in root.glob("repsim_utils/**/__init__.py")]
    assert sorted(named) == sorted([*found, "repsim_utils.data", "repsim_utils.data.results"])
