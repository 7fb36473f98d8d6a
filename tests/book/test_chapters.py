"""The chapters as they stand in the repository, and how they answer a careless user."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

import repsim_utils
from repsim_utils import book, files, profiles

ROOT = Path(__file__).parents[2]
CHAPTERS = sorted((ROOT / "chapters").rglob("*.ipynb"))
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())


def _tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
class TestSource:
    def test_outputs_are_stripped(self, path):
        for cell in nbformat.read(path, as_version=4).cells:
            assert not cell.get("outputs") and not cell.get("execution_count")

    def test_setup_cell_names_the_address_and_version_of_the_book(self, path):
        (cell,) = _tagged(nbformat.read(path, as_version=4), "setup")
        assert f'REPOSITORY = "{CONFIG["repository"]["url"] or ""}"' in cell.source
        assert f"@v{repsim_utils.__version__}" in cell.source

    def test_parameters_are_settings_of_its_profile_section(self, path):
        (cell,) = _tagged(nbformat.read(path, as_version=4), "parameters")
        names = {line.split(" = ")[0] for line in cell.source.splitlines()}
        section = profiles.SECTIONS[path.stem]
        assert names - {"profile"} <= set(section.model_fields)
        assert all("#" in line for line in cell.source.splitlines())

    def test_cells_are_short(self, path):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                assert len(cell.source.splitlines()) <= 30

    def test_no_command_of_a_formula_is_a_line_break(self, path):
        """Of two backslashes in front of letters TeX makes a line break and plain letters, without an error."""
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "markdown":
                assert not re.search(r"\\\\[A-Za-z]", cell.source)

    def test_it_is_in_the_table_of_contents(self, path):
        assert path.relative_to(ROOT / "chapters") in book._chapters(ROOT)


def _papermill(tmp_path, *parameters):
    """Run the task-only chapter as the README says."""
    command = [sys.executable, "-m", "papermill", "chapters/causes/task_only.ipynb", str(tmp_path / "out.ipynb")]
    environment = os.environ | {"REPSIM_STORE": str(tmp_path / "store")}
    return subprocess.run(command + list(parameters), cwd=ROOT, env=environment, capture_output=True, text=True)


def test_an_unknown_profile_says_which_there_are(tmp_path):
    finished = _papermill(tmp_path, "-p", "profile", "huge")
    assert finished.returncode
    assert "unknown profile 'huge'; choose from laptop, paper, smoke" in finished.stderr


def test_a_bad_overlap_says_what_is_allowed(tmp_path):
    finished = _papermill(tmp_path, "-p", "profile", "smoke", "-p", "overlaps", "[4]")
    assert finished.returncode
    assert "task overlap has the levels 1, 2, 3, each at most once, got [4]" in finished.stderr


def _small_book(root, **sources):
    """A book of one-cell notebooks that borrow the profile section of a real chapter."""
    (root / "chapters").mkdir(parents=True)
    (root / "chapters" / "index.md").write_text("# A small book\n")
    for name, lines in sources.items():
        folder = root / "chapters" / name
        folder.mkdir()
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
        notebook.cells.append(nbformat.v4.new_markdown_cell(f"# {name}"))
        parameters = nbformat.v4.new_code_cell('profile = "smoke"\nseed = None')
        parameters.metadata["tags"] = ["parameters"]
        notebook.cells += [parameters, nbformat.v4.new_code_cell(lines)]
        nbformat.write(notebook, folder / "color_shape_digit.ipynb")
    toc = {"format": "jb-book", "root": "index", "chapters": [{"file": f"{n}/color_shape_digit"} for n in sources]}
    (root / "_toc.yml").write_text(yaml.safe_dump(toc))
    (root / "_config.yml").write_text((ROOT / "_config.yml").read_text())


def test_a_failing_chapter_is_named_with_its_cell_and_the_others_run(tmp_path):
    _small_book(tmp_path, one="1 / 0", two="print(profile, seed)")
    with pytest.raises(
        book.BookError, match=r"1 of 2 chapters failed(.|\n)*one/color_shape_digit.ipynb, cell \d: Zero"
    ):
        book.build(tmp_path, "smoke", {"seed": 5})
    executed = json.loads((tmp_path / "_build" / "executed" / "two" / "color_shape_digit.ipynb").read_text())
    assert any("smoke 5" in "".join(o.get("text", "")) for cell in executed["cells"] for o in cell.get("outputs", []))
    assert not (tmp_path / "_build" / "html").exists()


def test_an_unknown_parameter_stops_before_anything_runs(tmp_path):
    _small_book(tmp_path, one="1")
    with pytest.raises(ValueError, match=r"no chapter has the parameter sed; there is profile, seed"):
        book.build(tmp_path, "smoke", {"sed": 5})
    assert not (tmp_path / "_build").exists()


def test_one_process_at_a_time_builds_a_book(tmp_path):
    _small_book(tmp_path, one="1")
    with files.lock(tmp_path / "_build" / "lock"), pytest.raises(book.BookError, match="another process builds"):
        book.build(tmp_path, "smoke")


def test_warnings_are_errors(tmp_path):
    _small_book(tmp_path, one="1")
    (tmp_path / "chapters" / "index.md").write_text("# A small book\n\n{ref}`nowhere`\n")
    with pytest.raises(book.BookError, match="nowhere"):
        book.build(tmp_path, "smoke")


def test_building_writes_nothing_into_chapters(tmp_path):
    _small_book(tmp_path, one="print(1)")
    before = {path: path.read_bytes() for path in (tmp_path / "chapters").rglob("*") if path.is_file()}
    assert book.build(tmp_path, "smoke").is_file()
    assert {path: path.read_bytes() for path in (tmp_path / "chapters").rglob("*") if path.is_file()} == before
