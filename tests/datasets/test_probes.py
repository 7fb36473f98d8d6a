"""Samples of a user's own: every one counts once, has an id, and what is left out is said."""

import hashlib
import json

import pytest

from repsim_utils.datasets import probes
from repsim_utils.datasets.cache import DataError
from tests.others import TEXTS


def test_pictures_are_sorted_by_path_and_others_are_counted(pictures, tmp_path, caplog):
    found = probes.read(pictures)
    names = sorted([f"{i}.png" for i in range(12) if i != 5] + ["more/5.png"])
    assert (found.kind, found.ids) == ("pictures", tuple(names)) and not caplog.messages
    assert found.checksums[0] == hashlib.sha256((pictures / names[0]).read_bytes()).hexdigest()[:16]
    batches = list(found.batches(5))
    assert [len(batch) for batch in batches] == [5, 5, 2] and batches[0][0].size == (24, 20)
    for name in ("a.png", "b.JPG"):
        (tmp_path / name).write_bytes((pictures / "0.png").read_bytes())
    (tmp_path / "notes.txt").write_text("no picture")
    assert probes.read(tmp_path).ids == ("a.png", "b.JPG")
    assert caplog.messages == [f"{tmp_path}: 2 images are read, and left out are 1 .txt files"]


def test_a_broken_picture_is_named(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"a\.png cannot be read as an image"):
        list(probes.read(tmp_path).batches(2))


def test_lines_of_any_system_are_texts_without_blank_ones(texts, tmp_path, caplog):
    found = probes.read(texts)
    assert (found.kind, list(found.samples), found.ids[2]) == ("text", TEXTS, "line 3") and not caplog.messages
    path = tmp_path / "from windows.txt"
    path.write_bytes("\ufeffone\r\n\r\n t\u2028wo \r\n".encode())
    found = probes.read(path)
    assert dict(zip(found.ids, found.samples, strict=True)) == {"line 1": "one", "line 3": " t\u2028wo "}
    assert caplog.messages == [f"{path}: 1 blank lines are left out"]


def test_json_lines_have_ids_of_their_own(tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_text("\n".join(map(json.dumps, ["one", {"text": "two", "id": 7}, {"text": "three\nlines"}])))
    found = probes.read(path)
    assert found.ids == ("line 1", "7", "line 3") and found.samples == ("one", "two", "three\nlines")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"one\ntw\xff\n", r"line 2 is not UTF-8 \(invalid start byte\): save the file as UTF-8"),
        ("a.txt", b"one\n\n", "a probe needs at least two samples, and here is 1"),
        ("a.csv", b"a,b\n", "a probe is a folder of pictures, a file with one text a line, or a .jsonl file"),
        ("a.png", b"", "a probe is a folder of pictures"),
        ("a.jsonl", b'"one"\n{"text": ', "line 2 is not JSON"),
        ("a.jsonl", b'"one"\n{"words": "two"}', "line 2 has no text: it must be a string, or an object with"),
        ("a.jsonl", b'"one"\n"\\ud800 two"', "line 2 has no text"),
        ("a.jsonl", b'{"text": "a", "id": 1}\n{"text": "b", "id": 1}', "line 2 has the id '1', which another line has"),
    ],
)
def test_what_is_no_probe_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        probes.read(tmp_path / name)


def test_a_probe_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="there is no such folder of pictures or file of text"):
        probes.read(tmp_path / "nothing")
