"""Where text comes from: what is installed, what a hub would give, folders, and what is wrong with them."""

import os
import re
import socket
import time

import pandas as pd
import pytest

from repsim_utils.datasets import corpora
from repsim_utils.datasets.cache import DataError
from repsim_utils.datasets.corpora import HUB, INSTALLED, documents, fingerprint

COLUMNS = {  # of each data set on the hub, as its page lists them
    "shakespeare": ["Text"],
    "tinystories": ["text"],
    "tiny-webtext": ["human", "bot"],
    "tiny-textbooks": ["source", "s", "len", "idx", "textbook"],
    "tiny-codes": [
        "prompt", "main_topic", "subtopic", "adjective", "action_verb", "scenario", "target_audience",
        "programming_language", "common_sense_topic", "idx", "response",
    ],
    "wikitext": ["text"],
}  # fmt: skip
COLUMNS["tiny-codes-pairs"] = COLUMNS["tiny-codes"]


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("REPSIM_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def offline(monkeypatch):
    """A network that refuses every call, and remembers none."""

    def refuse(*args, **options):
        raise OSError("Network is unreachable")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the attempts of the library


def place(data, name, texts, column=None):
    """A stand-in for a data set of the hub, in the layout of its columns."""
    columns = {each: [f"not {each}"] * len(texts) for each in COLUMNS[name]} | {column or HUB[name].column: texts}
    if HUB[name].question is not None:
        columns[HUB[name].question] = [f"Question {i}?" for i in range(len(texts))]
    (data / "hub" / name).mkdir(parents=True)
    pd.DataFrame(columns).to_parquet(data / "hub" / name / "train-00000-of-00001.parquet")


@pytest.mark.parametrize(
    ("name", "sign"),
    [
        ("python", r"^(import|from) \w+"),
        ("docstrings", r"^(Parameters|Returns|Args)"),
        ("cpp", r"^(#include|#pragma once|namespace)"),
        ("javascript", r"(function\s*\w*\(|const \w+ =|var \w+)"),
        ("licences", r"(?i)(licen[cs]e|copyright)"),
        ("markup", r"(?m)^(#+ |\.\. |```|===|---)"),
    ],
)
def test_installed_text_is_what_its_name_says(name, sign):
    found = [document for _, document in zip(range(12), documents(name), strict=False)]
    assert len(found) == 12 and len({document.name for document in found}) == 12
    assert sum(bool(re.search(sign, document.text, re.MULTILINE)) for document in found) >= 8
    assert all(0 < len(document.text) <= corpora.LONGEST for document in found)


def test_what_else_is_installed_changes_no_corpus(tmp_path):
    for name in ("numpy", "stranger"):
        for path in (f"{name}/web/a.js", f"{name}/readme.md", f"{name}-1.0.dist-info/licenses/LICENSE"):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text("text")
        (tmp_path / f"{name}-1.0.dist-info" / "METADATA").write_text("text")
    found = [path for name in ("javascript", "licences", "markup") for path in INSTALLED[name].paths(tmp_path)]
    assert len(found) == 4 and all(path.relative_to(tmp_path).parts[0].startswith("numpy") for path in found)


def test_docstrings_are_read_without_their_indentation():
    module = 'def f():\n    """Line one.\n\n    ' + "word " * 50 + '.\n    """\n\n\ndef g():\n    """Short."""\n'
    assert INSTALLED["docstrings"].text(module) == "Line one.\n\n" + "word " * 50 + "."
    assert INSTALLED["docstrings"].text("def broken(:") == ""


def test_a_folder_is_read_in_an_order_of_names_alone(tmp_path):
    for name in ("b/two.txt", "a/one.md", ".hidden/no.txt", "a/.no"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}\r\nsecond line")
    first = list(documents(str(tmp_path)))
    assert {document.name for document in first} == {"b/two.txt", "a/one.md"}
    assert all("\r" not in document.text for document in first)
    before = fingerprint(str(tmp_path))
    (tmp_path / "a" / "one.md").write_text("other text")
    assert fingerprint(str(tmp_path)) != before
    assert [document.name for document in documents(str(tmp_path))] == [document.name for document in first]


def test_a_file_that_is_not_text_is_named(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0\0")
    with pytest.raises(DataError, match=r"picture.png is not text in UTF-8: convert it, or take it out"):
        list(documents(str(tmp_path)))
    (tmp_path / "picture.png").write_bytes("Grüße".encode("latin-1"))
    with pytest.raises(DataError, match="not text in UTF-8"):
        list(documents(str(tmp_path)))


def test_a_name_that_is_not_utf8_is_told(tmp_path):
    (tmp_path / os.fsdecode(b"gr\xfcn.txt")).write_text("words")
    with pytest.raises(DataError, match=r"the name of a file in .* is not UTF-8: rename 'gr\\udcfcn.txt'"):
        list(documents(str(tmp_path)))


def test_a_folder_may_bear_the_name_of_a_corpus(tmp_path, monkeypatch):
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "one.txt").write_text("my own")
    monkeypatch.chdir(tmp_path)
    assert [document.text for document in documents("./python")] == ["my own"]


def test_a_row_without_text_is_empty(data):
    place(data, "tinystories", ["one", None, "two"])
    assert [document.text for document in documents("tinystories")] == ["one", "", "two"]


def test_what_is_no_corpus_is_told(tmp_path):
    with pytest.raises(DataError, match=r"there is no folder .*nowhere; corpora known by name are python, docstrings"):
        documents(str(tmp_path / "nowhere")).__next__()
    with pytest.raises(DataError, match="there is no file to read"):
        fingerprint(str(tmp_path))


@pytest.mark.parametrize("name", [name for name in HUB if name != "wikitext"])
def test_each_data_set_of_the_hub_in_its_own_columns(name, data):
    texts = [f"Text {i} of {name}." for i in range(5)]
    place(data, name, texts)
    asked = [f"Question {i}?\n\n" if name == "tiny-codes-pairs" else "" for i in range(5)]
    assert [document.text for document in documents(name)] == [q + text for q, text in zip(asked, texts, strict=True)]
    assert len(fingerprint(name)) == 16 and fingerprint(name) == fingerprint(name)


def test_wikitext_is_joined_to_articles(data):
    lines = ["", " = One = \n", "", " First . \n", " = = Section = = \n", " More . \n", " = Two = \n", " Second . \n"]
    place(data, "wikitext", lines)
    found = [document.text for document in documents("wikitext")]
    assert found == ["\n", " = One = \n\n First . \n = = Section = = \n More . \n", " = Two = \n Second . \n"]


def test_another_layout_is_told(data):
    place(data, "tinystories", ["text"], column="story")
    frame = pd.read_parquet(data / "hub" / "tinystories").drop(columns="text")
    frame.to_parquet(data / "hub" / "tinystories" / "train-00000-of-00001.parquet")
    with pytest.raises(DataError, match=r"tinystories has no text in a column 'text'; it has story"):
        list(documents("tinystories"))


def test_a_broken_file_is_told(data):
    (data / "hub" / "tinystories").mkdir(parents=True)
    (data / "hub" / "tinystories" / "train.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"the Parquet files in .*/hub/tinystories cannot be read .*: place them anew"):
        list(documents("tinystories"))


@pytest.mark.parametrize("name", HUB)
def test_without_a_network_the_message_says_where_files_belong(name, data, offline, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(DataError) as told:
        list(documents(name))
    assert f"place its Parquet files in {data}/hub/{name}" in str(told.value) and "hf_secret" not in str(told.value)
    assert HUB[name].path in fingerprint(name)
