"""Text as tokens: nothing twice, nothing in both parts, whole on disk or made again."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from repsim_utils.datasets import text
from repsim_utils.datasets.cache import DataError
from repsim_utils.datasets.text import END, Cleaner, cleared, library
from tests.words import end_last, folder, folders, sentences

LONG = "A paragraph that has more than enough letters to be known again."


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("REPSIM_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def decoded(found, tokens):
    return found.tokenizer.decode(tokens.tolist(), skip_special_tokens=False).split(END)[1:]


def test_a_paragraph_is_known_by_its_letters():
    clean = Cleaner()
    assert clean(f"{LONG}\n\nshort\n\n{LONG}") == f"{LONG}\n\nshort"
    assert clean(f"# {LONG.upper()} 2024\n\nshort") == "short"  # short ones are everyone's
    assert clean(f"{LONG}\n\n") == ""


def test_a_paragraph_most_of_whose_lines_are_known_is_left_out():
    clean = Cleaner()
    lines = [line * 3 for line in ("first line here ", "second one ", "another third ", "the very last ")]
    clean("\n".join(lines))
    assert clean("\n".join([*lines[:3], "a new line that nobody has read yet"])) == ""
    half = "\n".join([*lines[:2], "some new line that nobody has read yet", "and another that is just as new here"])
    assert clean(half) == half


def test_parts_are_of_whole_files_and_share_no_paragraph(tmp_path):
    for source in (folder(tmp_path, "own", seed=1, files=30), "licences"):
        parts = {"train": [], "validation": []}
        for split, document in cleared(str(source), Cleaner()):
            parts[split].append(document)
        names = [{document.name for document in part} for part in parts.values()]
        assert all(names) and not names[0] & names[1]
        marks = [
            {Cleaner._marks(p)[0] for d in part for p in d.text.split("\n\n") if Cleaner._marks(p)}
            for part in parts.values()
        ]
        assert all(marks) and not marks[0] & marks[1]
        sizes = [sum(len(document.text.encode()) for document in part) for part in parts.values()]
        assert 0.15 < sizes[1] / sum(sizes) < 0.35


def test_tokens_give_back_the_text_and_the_manifest_counts_it(tmp_path):
    sources = folders(tmp_path, 2)
    found = library(sources, vocabulary=400)
    seen = set()
    for source, (name, corpus) in zip(sources, found.corpora.items(), strict=True):
        for split in ("train", "validation"):
            tokens = getattr(corpus, split)
            assert isinstance(tokens, np.memmap) and tokens.dtype == np.uint16 and not tokens.flags.writeable
            texts = decoded(found, tokens)
            about = corpus.about[split]
            assert (len(texts), len(tokens)) == (about["documents"], about["tokens"])
            assert sum(len(one.encode()) for one in texts) == about["bytes"]
            assert len(about["files"]) == about["documents"]
            seen |= set(texts)
        assert corpus.about["source"] == source and name == os.path.basename(source)
    assert seen == {Path(source, f"{k}.txt").read_text().strip() for source in sources for k in range(8)}


def test_the_same_files_make_the_same_tokens_anywhere(tmp_path):
    sources = folders(tmp_path, 2)
    one, other = (library(sources, vocabulary=300, root=tmp_path / root) for root in ("one", "other"))
    assert one.fingerprint == other.fingerprint and one.tokenizer.to_str() == other.tokenizer.to_str()
    for name in one.corpora:
        assert np.array_equal(one.corpora[name].train, other.corpora[name].train)
    assert library(sources, vocabulary=301).fingerprint != one.fingerprint
    assert library(sources[::-1], vocabulary=300).fingerprint != one.fingerprint


def test_reading_stops_at_the_bound(tmp_path):
    source = str(folder(tmp_path, "own", seed=1))
    whole, half = (library([source], vocabulary=300, max_bytes=n).corpora["own"].about for n in (None, 4000))
    sizes = [sum(about[split]["bytes"] for split in ("train", "validation")) for about in (whole, half)]
    assert 4000 <= sizes[1] < sizes[0]


def test_what_is_kept_is_not_read_again_and_what_is_damaged_is_made_again(tmp_path, monkeypatch, caplog):
    source = str(folder(tmp_path, "own", seed=1))
    first = library([source], vocabulary=300)
    tokens = np.array(first.corpora["own"].train)
    (kept,) = (tmp_path / "data").glob("text-*")
    with monkeypatch.context() as patch:
        patch.setattr(text, "_make", None)
        assert np.array_equal(library([source], vocabulary=300).corpora["own"].train, tokens)
    for damage in (b"", (kept / "own-train.npy").read_bytes()[:-1] + b"\xff"):
        (kept / "own-train.npy").unlink()
        (kept / "own-train.npy").write_bytes(damage)
        assert np.array_equal(library([source], vocabulary=300).corpora["own"].train, tokens)
        assert "is damaged or unfinished and is made again" in caplog.text
        caplog.clear()
    about = json.loads((kept / "manifest.json").read_bytes())["corpora"]["own"]
    assert about["train"]["tokens"] == len(tokens)


def test_a_file_that_changes_makes_another_library(tmp_path):
    source = folder(tmp_path, "own", seed=1)
    before = library([str(source)], vocabulary=300)
    (source / "new.txt").write_text("\n\n".join(sentences(77, 5)))
    assert library([str(source)], vocabulary=300).fingerprint != before.fingerprint


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path, monkeypatch):
    source, make = folder(tmp_path, "own", seed=1), text._make

    def slow(*args):
        (source / "0.txt").write_text("\n\n".join(sentences(78, 5)))
        return make(*args)

    monkeypatch.setattr(text, "_make", slow)
    with pytest.raises(DataError, match="changed while it was read; run it again"):
        library([str(source)], vocabulary=300)
    assert not list((tmp_path / "data").glob("text-*"))


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    source = str(folder(tmp_path, "own", seed=1))

    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(text.np, "save", full)
    with pytest.raises(DataError, match=r"No space left on device.*name another by \$REPSIM_DATA"):
        library([source], vocabulary=300)
    assert not [path for path in (tmp_path / "data").iterdir() if path.is_dir()]


def test_a_killed_process_leaves_nothing_that_reads_as_whole(tmp_path, data):
    source = str(folder(tmp_path, "own", seed=1))
    program = (
        "import numpy, time\nfrom repsim_utils.datasets import text\nsave = numpy.save\n"
        "def slow(*a, **o):\n    save(*a, **o)\n    print('saved', flush=True)\n    time.sleep(60)\n"
        f"text.np.save = slow\ntext.library([{source!r}], vocabulary=300)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "saved\n"
        process.kill()
    assert not list(data.glob("text-*"))  # half a library is not in place
    assert len(library([source], vocabulary=300).corpora["own"].train) > 100
    assert not list(data.glob(".text-*.tmp"))  # what the killed one left is gone


def test_a_corpus_that_is_too_small_is_told(tmp_path):
    source = folder(tmp_path, "own", seed=1, files=1)
    with pytest.raises(DataError, match="own has text in one file only, and whole files are held out: split it"):
        library([str(source)], vocabulary=300)
    (source / "0.txt").write_text("\n \n")
    with pytest.raises(DataError, match=r"own is too small: of 0 document\(s\) .* none is left for train"):
        library([str(source)], vocabulary=300)


def test_bad_arguments_are_told(tmp_path):
    source = str(folder(tmp_path, "own", seed=1))
    with pytest.raises(ValueError, match="vocabulary must be from 257 to 65,536 tokens, got 256"):
        library([source], vocabulary=256)
    with pytest.raises(ValueError, match="sources must be corpora of different names, got none"):
        library([])
    with pytest.raises(ValueError, match="of different names"):
        library([source, str(folder(tmp_path / "other", "own", seed=2))])


def test_gpt2s_tokenizer_from_its_place_and_without(tmp_path, data, monkeypatch):
    source = str(folder(tmp_path, "own", seed=1))

    def refuse(*args, **options):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(text, "Tokenizer", type("Offline", (), {"from_pretrained": refuse, "from_file": refuse}))
    place = data / "hub" / "gpt2" / "tokenizer.json"
    with pytest.raises(DataError, match=re.escape(f"place its tokenizer.json at {place}")):
        library([source], tokenizer="gpt2")
    monkeypatch.undo()
    monkeypatch.setenv("REPSIM_DATA", str(data))
    place.parent.mkdir(parents=True)
    place.write_text(Tokenizer(models.BPE()).to_str())
    with pytest.raises(DataError, match=r"is not the tokenizer of gpt2, which has 50,257 tokens and <.endoftext.> as"):
        library([source], tokenizer="gpt2")
    monkeypatch.setitem(text.READY, "gpt2", text.READY["gpt2"]._replace(size=500, mark_id=499))
    place.write_text(end_last(text.trained(sentences(1, 50), 500)).to_str())  # the same kind of file
    assert library([source], tokenizer="gpt2").tokenizer.token_to_id(END) == 499
