"""Folders of small texts, each with words of its own, and tiny language models."""

import json

import numpy as np
from tokenizers import Tokenizer

NETWORK = {"n_layer": 2, "n_head": 2, "width": 16, "context": 16}
RECIPE = {"steps": 3, "batch_size": 4, "lr": 0.01, "evaluate_every": 2, "n_validation": 8}


def sentences(seed, n, length=12):
    """Sentences that no other seed has: every word is drawn, letter by letter."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(rng.choice(letters[seed % 5 :: 2], rng.integers(3, 9))) for _ in range(n * length)]
    return [" ".join(words[i * length : (i + 1) * length]) + "." for i in range(n)]


def folder(root, name, *, seed, files=8, n=12):
    """A folder of text files, each of some paragraphs."""
    (root / name).mkdir(parents=True, exist_ok=True)
    for k in range(files):
        (root / name / f"{k}.txt").write_text("\n\n".join(sentences(100 * seed + k, n)) + "\n")
    return root / name


def folders(root, n=6, **options):
    """Several, of different words."""
    return [str(folder(root, f"corpus{k}", seed=k, **options)) for k in range(n)]


def end_last(tokenizer):
    """The same tokens with the mark before documents as the last, as GPT-2's tokenizer has it."""
    told = json.loads(tokenizer.to_str())
    n = len(told["model"]["vocab"])
    told["model"]["vocab"] = {t: i - 1 if i else n - 1 for t, i in told["model"]["vocab"].items()}
    told["added_tokens"][0]["id"] = n - 1
    return Tokenizer.from_str(json.dumps(told))
