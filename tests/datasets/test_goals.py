"""Collections of requests: harmless ones are here, others are read from files, and only when asked for expressly."""

import pandas as pd
import pytest

from repsim_utils.datasets import goals
from repsim_utils.datasets.cache import DataError


def placed(root, texts, column="prompt"):
    folder = root / "hub" / "advbench"
    folder.mkdir(parents=True)
    pd.DataFrame({column: texts, "target": [f"Sure, here is {text}" for text in texts]}).to_parquet(
        folder / "0.parquet"
    )


def test_ours_are_harmless_and_different():
    found = goals.load("benign", 50)
    assert found == list(goals.BENIGN) and len(set(found)) == len(found) >= 10
    assert goals.load("benign", 3) == found[:3]


def test_others_are_read_from_files_placed_by_hand(tmp_path, monkeypatch):
    monkeypatch.setenv("REPSIM_DATA", str(tmp_path))
    texts = [f"a stand-in for request {i}" for i in range(5)]
    placed(tmp_path, texts)
    assert goals.load("advbench", 3, accept_harmful=True) == texts[:3]


def test_nothing_is_read_without_consent(tmp_path, monkeypatch):
    monkeypatch.setenv("REPSIM_DATA", str(tmp_path))
    placed(tmp_path, ["a stand-in"])
    with pytest.raises(ValueError, match="set accept_harmful to true"):
        goals.load("advbench", 1)


def test_a_collection_that_cannot_be_had_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("REPSIM_DATA", str(tmp_path))
    placed(tmp_path, ["a stand-in"], column="text")
    with pytest.raises(DataError, match="advbench has no text in a column 'prompt'"):
        goals.load("advbench", 1, accept_harmful=True)
    with pytest.raises(ValueError, match="goals must be one of benign, advbench"):
        goals.load("harmless", 1)
