"""Text by the name of its corpus: what a scientific Python holds already, what a hub holds, folders of one's own."""

from __future__ import annotations

import ast
import hashlib
import os
import re
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from repsim_utils import RepsimError, files, reason
from repsim_utils.datasets import cache
from repsim_utils.datasets.cache import DataError
from repsim_utils.datasets.folders import contents, readable

VERSION = 1  # raised when the same files give other documents
LONGEST = 50_000  # characters that are read of one file, so that no file is a corpus of its own
DOCUMENTED = ("numpy", "scipy", "sklearn", "pandas", "torch")  # packages whose docstrings are read
LEAST_DOCSTRING = 200  # characters
# Packages, and distributions, whose JavaScript, licences and markup are read: a fixed list, so that what else is
# installed changes no corpus. What is missing of it is left out, and makes another fingerprint.
PACKAGES = frozenset(
    """altair ast_serialize attrs beautifulsoup4 certifi cfgv charset_normalizer cloudpickle dask datasets dill
    distlib distributed docutils fastjsonschema fonttools greenlet h11 h5py httpcore2 httpx2 huggingface_hub hypothesis
    ipython jedi kiwisolver latexcodec linkify_it_py matplotlib mdit_py_plugins mpmath msgpack multiprocess mypy
    narwhals nbstripout networkx nodeenv numpy nvidia_cudnn_cu13 nvidia_curand nvidia_cusparselt_cu13 pandas papermill
    parso pathspec pexpect pillow playwright psutil ptyprocess pyarrow pydantic pydata_sphinx_theme pygments pyparsing
    python_dateutil pyzmq regex rich ruff scikit_image scikit_learn scipy sklearn sortedcontainers sphinx
    sphinx_book_theme sphinx_design sphinx_external_toc sphinx_togglebutton sqlalchemy stack_data sympy tabulate tblib
    threadpoolctl tifffile timm tokenizers torch torchvision tqdm transformers triton typer virtualenv wcwidth
    xxhash""".split()  # noqa: SIM905
)


class Document(NamedTuple):
    """One text, and the name by which the manifest tells it from others."""

    name: str
    text: str


class Hub(NamedTuple):
    """A data set of the Hugging Face hub: its files, and the column that holds the text.

    Where the text answers a question, the column `question` may be read before it: as pairs to fine-tune on.
    """

    path: str
    column: str
    config: str | None = None
    split: str = "train"
    data_files: str | None = None
    question: str | None = None


HUB = {
    "shakespeare": Hub("Trelis/tiny-shakespeare", "Text"),
    "tinystories": Hub("roneneldan/TinyStories", "text"),
    "tiny-webtext": Hub("nampdn-ai/tiny-webtext", "bot", data_files="train/en/*.parquet"),
    "tiny-textbooks": Hub("nampdn-ai/tiny-textbooks", "textbook"),
    "tiny-codes": Hub("nampdn-ai/tiny-codes", "response"),
    "tiny-codes-pairs": Hub("nampdn-ai/tiny-codes", "response", question="prompt"),
    "wikitext": Hub("Salesforce/wikitext", "text", config="wikitext-103-raw-v1"),
}
GOALS = {"advbench": Hub("walledai/AdvBench", "prompt")}  # no text to learn from: see `repsim_utils.datasets.goals`


def documents(source: str) -> Iterator[Document]:
    """Documents of a corpus, in an order that depends on their names alone.

    Parameters
    ----------
    source : str
        One of `INSTALLED`, which need no network; one of `HUB`, streamed from the hub unless its Parquet files lie in
        ``$REPSIM_DATA/hub/<name>/``; or a folder, all of whose files are UTF-8 text (hidden ones are left out).

    Raises
    ------
    DataError
        If the source is none of these, the hub cannot be reached, or a file is not text.
    """
    if source in INSTALLED:
        return _installed(source)
    return of_hub(source, HUB[source]) if source in HUB else _of_folder(source)


def fingerprint(source: str) -> str:
    """The same text for the same documents: of files, a hash of their names and contents; of the hub, its address."""
    if source in HUB and not _placed(source):
        return files.canonical_json(HUB[source]).decode()
    root, paths = _files(source)
    lines = (f"{name} {digest}\n" for name, digest in contents(root, paths))
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def _files(source: str) -> tuple[Path, list[Path]]:
    """The files of a corpus, in the order in which they are read, and the folder that their names begin at."""
    if source in INSTALLED:
        root, wanted = INSTALLED[source].root(), INSTALLED[source].paths
    else:
        root = _placed(source) or Path(source).expanduser().absolute()
        wanted = _visible
        if not root.is_dir():
            known = ", ".join((*INSTALLED, *HUB))
            raise DataError(f"there is no folder {root}; corpora known by name are {known}")
    try:
        found = sorted(wanted(root), key=lambda path: hashlib.sha256(str(path.relative_to(root)).encode()).digest())
    except UnicodeEncodeError as error:
        raise DataError(f"the name of a file in {root} is not UTF-8: rename {error.object!r}") from None
    if not found:
        raise DataError(f"{source}: there is no file to read in {root}")
    return root, found


def _visible(root: Path) -> list[Path]:
    return [path for path in _within([root]) if not any(part[0] == "." for part in path.relative_to(root).parts)]


def _within(folders: Iterable[Path], *suffixes: str) -> list[Path]:
    """Files in folders, and in theirs, of some suffixes or of any."""
    walked = (level for folder in folders for level in os.walk(folder))
    paths = (Path(here, name) for here, _, names in walked for name in names if name.endswith(suffixes or ""))
    return [path for path in paths if (not suffixes or path.suffix in suffixes) and path.is_file()]


def _of_folder(folder: str) -> Iterator[Document]:
    root, paths = _files(folder)
    for path in paths:
        yield Document(str(path.relative_to(root)), read_text(path))


@readable()
def read_text(path: Path) -> str:
    """A text file.

    Raises
    ------
    DataError
        If it cannot be read, or is not UTF-8 text.
    """
    try:
        content = path.read_bytes()
        if b"\0" in content:
            raise UnicodeError
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeError:
        raise DataError(f"{path} is not text in UTF-8: convert it, or take it out of the folder") from None


# What is installed


class Installed(NamedTuple):
    """A corpus of installed files: where they lie, which they are, and what is text in one."""

    about: str
    root: Callable[[], Path]
    paths: Callable[[Path], list[Path]]
    text: Callable[[str], str] = lambda content: content


def _installed(name: str) -> Iterator[Document]:
    corpus = INSTALLED[name]
    root, paths = _files(name)
    for path in paths:
        try:
            text = corpus.text(read_text(path))
        except DataError:  # some installed files are in old encodings
            continue
        if text.strip():
            yield Document(str(path.relative_to(root)), text[:LONGEST])


def _packages() -> Path:
    """The folder of installed packages that this one's own libraries lie in."""
    return Path(str(resources.files("numpy"))).parent


def _listed(root: Path) -> list[Path]:
    """Folders of the listed packages and of their metadata."""
    folders = (path for path in root.iterdir() if path.is_dir())
    return [path for path in folders if path.name.removesuffix(".dist-info").partition("-")[0].lower() in PACKAGES]


def _standard_library(root: Path) -> list[Path]:
    """Modules of the standard library, without its tests and what is installed beside it."""
    left_out = {"site-packages", "dist-packages", "test", "tests", "encodings", "pydoc_data", "ensurepip"}
    return [path for path in _within([root], ".py") if not left_out & set(path.relative_to(root).parts)]


def _licences(root: Path) -> list[Path]:
    names = re.compile(r"(licen[cs]e|copying|notice|eula|third.?party)", re.IGNORECASE)
    metadata = (folder for folder in _listed(root) if folder.suffix == ".dist-info")
    return [path for path in _within(metadata) if names.search(str(path.relative_to(root)))]


def _markup(root: Path) -> list[Path]:
    described = (folder / "METADATA" for folder in _listed(root))
    written = (path for path in _within(_listed(root), ".md", ".rst") if "licenses" not in path.parts)
    return [*written, *(path for path in described if path.is_file())]


def _described(content: str) -> str:
    """The description of a package, which follows the fields of its metadata; any other file as it is."""
    return content.partition("\n\n")[2] if content.startswith("Metadata-Version:") else content


def _docstrings(content: str) -> str:
    """The longer docstrings of a module, without the indentation that they share."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return ""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return "\n\n".join(text for text in found if text and len(text) >= LEAST_DOCSTRING)


def _not_minified(content: str) -> str:
    return content if len(content) < 100 * (1 + content.count("\n")) else ""


INSTALLED = {
    "python": Installed(
        "modules of Python's standard library", lambda: Path(sysconfig.get_path("stdlib")), _standard_library
    ),
    "docstrings": Installed(
        f"docstrings of {', '.join(DOCUMENTED)}",
        _packages,
        lambda root: _within([root / name for name in DOCUMENTED], ".py"),
        _docstrings,
    ),
    "cpp": Installed("C++ headers of torch", _packages, lambda root: _within([root / "torch/include"], ".h")),
    "javascript": Installed(
        "JavaScript in installed packages",
        _packages,
        lambda root: _within(_listed(root), ".js", ".mjs"),
        _not_minified,
    ),
    "licences": Installed("licences of installed packages", _packages, _licences),
    "markup": Installed("Markdown and reStructuredText of installed packages", _packages, _markup, _described),
}


# The hub


def _placed(source: str) -> Path | None:
    """The folder in which a hub's Parquet files were placed by hand, if there is one."""
    folder = cache.default_root() / "hub" / source
    return folder if source in HUB | GOALS and any(folder.glob("*.parquet")) else None


def of_hub(name: str, hub: Hub) -> Iterator[Document]:
    """Rows of a data set, streamed; lines of WikiText are joined to articles."""
    placed = _placed(name)
    try:
        import datasets

        if placed is not None:
            paths = [str(path) for path in sorted(placed.glob("*.parquet"))]
            rows = datasets.load_dataset("parquet", data_files=paths, split="train", streaming=True)
        else:
            options = {"name": hub.config, "split": hub.split, "data_files": hub.data_files, "streaming": True}
            rows = datasets.load_dataset(hub.path, token=os.environ.get("HF_TOKEN"), **options)
        columns = [column for column in (hub.question, hub.column) if column is not None]
        texts = ("\n\n".join(_cell(row, column, name) for column in columns) for row in rows)
        for i, text in enumerate(_articles(texts) if name == "wikitext" else texts):
            yield Document(f"{name}/{i}", text)
    except RepsimError:
        raise
    except Exception as error:
        if placed is not None:
            raise DataError(
                f"the Parquet files in {placed} cannot be read ({reason(error)}): place them anew"
            ) from None
        raise DataError(
            f"{name} cannot be read from the hub ({hub.path}: {reason(error)}). With a network, and $HF_TOKEN for "
            "gated data sets, the same command tries again; without, place its Parquet files in "
            f"{cache.default_root()}/hub/{name}"
        ) from None


def _cell(row: dict[str, object], column: str, name: str) -> str:
    if not isinstance(row.get(column, 0), str | None):
        raise DataError(f"{name} has no text in a column {column!r}; it has {', '.join(row)}")
    return str(row[column] or "")


def _articles(lines: Iterator[str]) -> Iterator[str]:
    """WikiText, one line a row, as articles: each begins with its title between single equals signs."""
    article: list[str] = []
    for line in lines:
        if re.fullmatch(r" = [^=].* = \n?", line) and article:
            yield "".join(article)
            article = []
        article.append(line or "\n")  # a blank line is an empty row
    if article:
        yield "".join(article)
