"""Notebooks run side by side, and none again that nothing has changed for; tiny ones, which need no torch."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import joblib
import nbformat
import psutil
import pytest

from repsim_utils import execution
from repsim_utils.execution import Task


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    """A small package in place of this one, so that a test may change it."""
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "module.py").write_text("1\n")
    monkeypatch.setattr(execution, "PACKAGE", folder)
    return folder


def _task(root, name, code="", **parameters):
    """A notebook that leaves a line in a file each time it is run."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    first = nbformat.v4.new_code_cell("value = 0", id="first", metadata={"tags": ["parameters"]})
    note = f'with open("{name}.runs", "a") as file:\n    print(value, file=file)\n{code}'
    notebook.cells = [first, nbformat.v4.new_code_cell(note, id="second")]
    path = root / "chapters" / f"{name}.ipynb"
    path.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, path)
    file = path.name
    return Task(path, root / "executed" / file, root / "kept" / file, root, parameters, file)


def _runs(root, name):
    path = root / f"{name}.runs"
    return path.read_text().splitlines() if path.exists() else []


def _key(task):
    return execution._key(task, execution._environment(task.folder))


def _printed(task):
    (cell,) = [c for c in nbformat.read(task.output, as_version=4).cells if c.get("outputs")]
    return cell.outputs[0].text


def test_what_has_not_changed_is_taken_from_what_is_kept(tmp_path):
    tasks = [_task(tmp_path, "a", "print(6 * 7)"), _task(tmp_path, "b")]
    assert execution.run(tasks, jobs=2) == []
    before = tasks[0].output.read_bytes()
    tasks[0].output.unlink()
    _task(tmp_path, "b", "1")
    assert execution.run(tasks, jobs=2) == []
    assert len(_runs(tmp_path, "a")) == 1 and len(_runs(tmp_path, "b")) == 2
    assert tasks[0].output.read_bytes() == before and _printed(tasks[0]) == "42\n"


def test_fresh_executes_all(tmp_path):
    task = _task(tmp_path, "a")
    for n in (1, 2):
        assert execution.run([task], fresh=True) == []
        assert len(_runs(tmp_path, "a")) == n


def test_whatever_a_notebook_depends_on_changes_its_key(tmp_path, package, monkeypatch):
    def installed():
        monkeypatch.setattr(execution.metadata, "distributions", lambda: [])

    changes = {
        "notebook": lambda: _task(tmp_path, "a", "1"),
        "package": lambda: (package / "module.py").write_text("2\n"),
        "profile": lambda: (package / "small.yaml").write_text("a: 1\n"),
        "requirements": lambda: (tmp_path / "requirements.txt").write_text("torch==2.3\n"),
        "what is installed": installed,
    }
    task = _task(tmp_path, "a")
    seen = [_key(task)]
    for what, change in changes.items():
        change()
        assert _key(task) not in seen, what
        seen.append(_key(task))


def test_a_changed_package_has_it_executed_again(tmp_path, package):
    task = _task(tmp_path, "a")
    for content in ("1\n", "2\n"):
        (package / "module.py").write_text(content)
        assert execution.run([task]) == [] == execution.run([task])
    assert len(_runs(tmp_path, "a")) == 2


def test_data_decide_and_what_is_only_for_readers_does_not(tmp_path, package, monkeypatch):
    data = tmp_path / "data"
    (data / "results").mkdir(parents=True)
    monkeypatch.setattr(execution.files, "data_folder", lambda: data)
    before = execution._environment(tmp_path)
    (package / "README.md").write_text("words")
    assert execution._environment(tmp_path) == before
    (data / "results" / "table.csv").write_text("a\n1\n")
    assert execution._environment(tmp_path) != before


def test_other_parameters_have_it_executed_again(tmp_path):
    for value in (1, 1, 2):
        execution.run([_task(tmp_path, "a", value=value)])
    assert _runs(tmp_path, "a") == ["1", "2"]


def test_what_is_changed_during_its_execution_is_not_kept(tmp_path, package):
    task = _task(tmp_path, "a", f'open("{package}/module.py", "w").write("3")')
    assert execution.run([task]) == []
    (package / "module.py").write_text("1\n")
    assert execution.run([task]) == []
    assert len(_runs(tmp_path, "a")) == 2


def test_a_kernel_in_a_checkout_imports_the_package_from_there(tmp_path, package):
    (tmp_path / package.name).mkdir(exist_ok=True)
    task = _task(tmp_path, "a")
    before = _key(task)
    (tmp_path / package.name / "module.py").write_text("4\n")
    assert _key(task) != before


@pytest.mark.parametrize("value", ["a" * 300, "~nobody-here/x", "a\0b"])
def test_text_that_can_be_no_path_is_text(tmp_path, value):
    assert _key(_task(tmp_path, "a", value=value))


def test_what_reads_a_folder_of_the_users_is_always_executed(tmp_path):
    (tmp_path / "photos").mkdir()
    assert _key(_task(tmp_path, "a", value="elsewhere"))
    assert _key(_task(tmp_path, "a", value=[str(tmp_path / "photos")])) is None
    task = _task(tmp_path, "a", value={"source": "photos"})
    assert execution.run([task]) == [] == execution.run([task])
    assert len(_runs(tmp_path, "a")) == 2


def test_a_failure_stops_no_other_and_is_not_kept(tmp_path):
    tasks = [_task(tmp_path, "a", "1 / 0"), _task(tmp_path, "b"), _task(tmp_path, "c", "raise ValueError('no')")]
    tasks[1].source.with_name("d.ipynb").write_text("{")
    tasks.append(Task(tmp_path / "chapters" / "d.ipynb", tmp_path / "x", tmp_path / "y", tmp_path, {}, "d.ipynb"))
    for n in (1, 2):
        failures = execution.run(tasks, jobs=2)
        assert [str(failure) for failure in failures[:2]] == [
            "a.ipynb, cell 1: ZeroDivisionError: division by zero",
            "c.ipynb, cell 1: ValueError: no",
        ]
        assert len(failures) == 3 and failures[2].chapter == "d.ipynb"
        assert [len(_runs(tmp_path, name)) for name in "abc"] == [n, 1, n]
    assert "ZeroDivisionError" in tasks[0].output.read_text()


@pytest.mark.parametrize("which", ["notebook", "beside it"])
def test_what_is_damaged_is_executed_again(tmp_path, which):
    task = _task(tmp_path, "a", "print(42)")
    path = task.kept if which == "notebook" else task.kept.with_suffix(".json")
    execution.run([task])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert execution.run([task]) == [] and _printed(task) == "42\n"
    path.unlink()
    execution.run([task])
    assert len(_runs(tmp_path, "a")) == 3


def test_they_run_side_by_side_and_share_the_cores(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    meet = """
import os, pathlib, time
end = time.monotonic() + 60
while not pathlib.Path("{other}.runs").exists():
    assert time.monotonic() < end, "the other never came"
    time.sleep(0.01)
print(os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"])"""
    tasks = [_task(tmp_path, "a", meet.format(other="b")), _task(tmp_path, "b", meet.format(other="a"))]
    assert execution.run(tasks, jobs=2) == []
    threads = max(1, joblib.cpu_count() // 2)
    assert {_printed(task) for task in tasks} == {f"{threads} {threads}\n"}


def test_the_longest_of_the_last_time_comes_first(tmp_path):
    wait = "import time\ntime.sleep(value)"
    tasks = [_task(tmp_path, "a", wait, value=0), _task(tmp_path, "b", wait, value=2)]
    execution.run(tasks, jobs=1)
    assert execution._last_duration(tasks[1]) > execution._last_duration(tasks[0])
    execution.run(tasks, jobs=1, fresh=True)
    begun = {name: (tmp_path / f"{name}.runs").stat().st_mtime for name in "ab"}
    assert begun["b"] < begun["a"]


def test_control_c_ends_the_kernels(tmp_path):
    _task(tmp_path, "a", "import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))\ntime.sleep(300)")
    code = f"""
from pathlib import Path
from repsim_utils import execution
from repsim_utils.execution import Task
root = Path({str(tmp_path)!r})
if __name__ == "__main__":
    execution.run([Task(root / "chapters/a.ipynb", root / "out.ipynb", root / "kept.ipynb", root, {{}}, "a")])
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    hear = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # which is ignored where the tests run in background
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, preexec_fn=hear)
    _wait_for(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text())
    kernel = psutil.Process(int((tmp_path / "pid").read_text()))
    process.send_signal(signal.SIGINT)
    assert b"KeyboardInterrupt" in process.communicate(timeout=60)[1] and process.returncode
    _wait_for(lambda: not kernel.is_running() or kernel.status() == psutil.STATUS_ZOMBIE)
    assert not (tmp_path / "kept.ipynb").exists()


def _wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
