"""Sweeps on workers: the same table as in one process, whatever happens to a worker."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch

from repsim_utils import cli, cluster
from repsim_utils.experiments import engine, vision
from repsim_utils.store import Store, StoreError
from repsim_utils.sweep import SweepError, _mark, _shared_store, _train_there, sweep
from tests import tiny

CELLS = vision.pairs(tiny.settings(), kind=vision.DATASET)
N_MODELS = 8  # of two seeds: one first model, and a second one at each of three overlaps


def comparable(table):
    return table.drop(columns=["date", "wall_seconds"])


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The table of one process, as single-threaded as a worker."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return comparable(
            sweep(engine.measure, CELLS, store=Store(tmp_path_factory.mktemp("reference")), progress=False)
        )
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def client():
    with cluster.workers(2) as client:
        yield client


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def on(client, store, measure=tiny.measure, train=tiny.train, cells=CELLS):
    return sweep(measure, cells, train=train, store=store, client=client, progress=False)


def test_two_workers_share_the_work_and_train_each_model_once(client, store, reference):
    pd.testing.assert_frame_equal(comparable(on(client, store)), reference)
    trained = tiny.noted(store, "train")
    assert len(trained) == len({line.rsplit(" ", 1)[0] for line in trained}) == N_MODELS
    processes = {line.split()[-1] for line in trained}
    assert len(processes) == 2 and str(os.getpid()) not in processes
    assert len(list(store.root.glob(".seen*"))) == 1


def test_what_is_finished_is_not_sent_to_a_worker(client, store):
    table = on(client, store, cells=CELLS[:3])
    n = len(tiny.noted(store, ""))
    whole = on(client, store)
    again = tiny.noted(store, "")[n:]
    assert len([line for line in again if line.startswith("measure")]) == len(CELLS) - 3
    pd.testing.assert_frame_equal(whole[: len(table)], table)


@pytest.fixture
def mortal():
    """Two workers, of which one may be killed."""
    with cluster.workers(2) as client:
        yield client


def test_one_of_two_workers_is_killed_in_mid_sweep(mortal, store, reference):
    killed = []

    def kill_one():
        wait_until(lambda: list((store.root / vision.DATASET).glob("[0-9a-f]*")))
        killed.append(int(tiny.noted(store, "train")[-1].split()[-1]))  # one that has just begun a model
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    table = on(mortal, store)
    killer.join()
    pd.testing.assert_frame_equal(comparable(table), reference)
    notes = tiny.noted(store, "train")
    lost = max(i for i, line in enumerate(notes) if line.split()[-1] == str(killed[0]))
    what = notes[lost].rsplit(" ", 1)[0]
    assert what in [line.rsplit(" ", 1)[0] for line in notes[lost + 1 :]]  # another worker trained it


def test_a_failed_cell_is_reported_with_its_configuration_and_the_others_run(client, store):
    with pytest.raises(SweepError) as caught:
        on(client, store, measure=tiny.measure_some)
    ((config, trace),) = caught.value.failures
    assert (config.second.seed, config.overlap) == (1, 0.6)
    assert "ZeroDivisionError: not this one" in trace and "tiny.py" in trace
    assert repr(config) in str(caught.value) and caught.value.table["key"].nunique() == len(CELLS) - 1
    assert on(client, store)["key"].nunique() == len(CELLS)


def test_what_failed_runs_again_at_once(client, store):
    """An outcome of the sweep before, which is let go at its end, never reaches the next one."""
    for i in range(10):
        where = Store(store.root / str(i))
        with pytest.raises(SweepError) as caught:  # holds on to the sweep's futures
            on(client, where, measure=tiny.measure_never, train=None)
        assert len(caught.value.failures) == len(CELLS)
        with pytest.raises(SweepError):
            on(client, where, measure=tiny.measure_never, train=None)
        assert on(client, where, measure=tiny.measure_nothing, train=None)["key"].nunique() == len(CELLS)


def test_a_sweep_that_ends_leaves_another_on_the_same_client_its_work(client, store):
    """Both want the models and cells of the first overlap; the first to end wants no more."""
    few, tables = [cell for cell in CELLS if cell.overlap == 0], {}
    threads = [
        threading.Thread(target=lambda cells=cells: tables.update({len(cells): on(client, store, cells=cells)}))
        for cells in (few, CELLS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {wanted: table["key"].nunique() for wanted, table in tables.items()} == {len(few): len(few), 6: 6}
    assert len(tiny.noted(store, "train")) == N_MODELS and len(tiny.noted(store, "measure")) == len(CELLS)


def test_all_who_begin_at_once_agree_on_a_mark(tmp_path):
    for i in range(30):
        root, barrier, marks = tmp_path / str(i), threading.Barrier(8), set()
        root.mkdir()

        def take(root=root, barrier=barrier, marks=marks):
            barrier.wait()
            marks.add(_mark(root))

        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (mark,) = marks
        assert (root / mark).is_file() and [path.name for path in root.iterdir()] == [".seen-by-all"]


def test_a_failed_model_fails_its_cells_with_one_traceback(client, store):
    with pytest.raises(SweepError) as caught:
        on(client, store, train=tiny.train_some)
    assert [config.second.seed for config, _ in caught.value.failures] == [1, 1, 1]
    assert str(caught.value).count("ZeroDivisionError: not this model") == 1
    assert caught.value.table["key"].nunique() == 3


def test_a_store_that_a_worker_does_not_see_is_refused(client, tmp_path):
    task = client.submit(_train_there, tiny.train, CELLS[0].first, str(tmp_path), "no-such-mark", [], pure=False)
    with pytest.raises(StoreError, match=r"does not see the store .*: name a folder, with --store"):
        task.result()


def test_two_stores_on_one_scheduler_and_one_store_twice(client, store, tmp_path):
    """Each store gets its own runs; who shares a store shares the work, whoever ends first."""
    other, tables = Store(tmp_path / "other"), {}

    def run(name, where):
        tables[name] = comparable(on(client, where, cells=CELLS[:3]))

    runs = [("one", store), ("two", other), ("again", Store(store.root))]
    threads = [threading.Thread(target=run, args=each) for each in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pd.testing.assert_frame_equal(tables["one"], tables["two"])
    pd.testing.assert_frame_equal(tables["one"], tables["again"])
    assert len(list((other.root / vision.DATASET).iterdir())) == 3 and len(tiny.noted(other, "train")) == 4
    assert len(tiny.noted(store, "train")) == 4 and len(list(store.root.glob(".seen*"))) == 1


def test_workers_take_cards_in_turn(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for visible, expected in (("", ["0", "1", "0"]), ("4,7", ["4", "7", "4"])):
        for name, card in enumerate(expected):
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
            cluster._take_card(name)
            assert os.environ["CUDA_VISIBLE_DEVICES"] == card


def _threads(given, root, mark):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPSIM_THREADS", given)
        _shared_store(root, mark)
        return torch.get_num_threads()


def test_a_worker_has_the_threads_it_was_given(client, tmp_path):
    """A SLURM job says so in its script, since Dask's own threads run cells."""
    for given, expected in (("2", 2), ("", 1)):
        assert client.submit(_threads, given, str(tmp_path), _mark(tmp_path), pure=False).result() == expected


def test_no_workers_is_this_process():
    with cluster.workers(0) as client:
        assert client is None
    with pytest.raises(ValueError, match="0 or more, got -1"), cluster.workers(-1):
        pass


def test_no_scheduler_is_said():
    with (
        pytest.raises(
            cluster.ClusterError,
            match=r"no scheduler answers at tcp://127\.0\.0\.1:9 \(.*\); start one: dask scheduler",
        ),
        cluster.workers(scheduler="tcp://127.0.0.1:9"),
    ):
        pass


SETTINGS = ["-p", "seeds=[0]", "-p", "architectures=[small_resnet]", "-p", "n_permutations=19", "-p", "probes=[]"]
SETTINGS += ["-p", "data={n_per_class: 10}", "-p", "n_probe=200"]


def command(*arguments):
    return [str(Path(sys.executable).with_name("repsim")), *arguments]


def started(arguments, **options):
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def wait_for(process, pattern):
    """Read a process's output up to a line that matches."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if found := re.search(pattern, line):
            return found
    raise AssertionError(f"the process ended without {pattern}:\n{''.join(lines)}")


def wait_until(condition, seconds=90):
    """Look again and again, and fail if it never comes true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def trained(root):
    return list((root / "models").glob("[0-9a-f]*"))


@pytest.fixture
def here(monkeypatch, capsys):
    """A command in this process: its exit code and its output."""

    def call(arguments):
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, "".join(capsys.readouterr())

    return call


@pytest.fixture
def status(here):
    """What ``repsim status`` counts in a store."""

    def call(store):
        code, output = here(command("status", "dataset_overlap_vision", "--store", str(store), *SETTINGS))
        assert code == 0, output
        return [tuple(map(int, found)) for found in re.findall(r"(\d+) of (\d+)", output)]

    return call


@pytest.fixture
def run_on(tmp_path):
    """Start ``repsim run`` with further arguments; every process is ended."""
    processes = []

    def start(arguments, **options):
        processes.append(started(arguments, **options))
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        process.wait(30)


def test_a_scheduler_and_a_worker_started_by_hand(run_on, status, tmp_path):
    dask = [sys.executable, "-m", "dask"]
    scheduler = run_on([*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"])
    address = wait_for(scheduler, r"Scheduler at:\s+(tcp://\S+)").group(1)
    run = run_on(
        command("run", "dataset_overlap_vision", "--scheduler", address, "--store", str(tmp_path / "s"), *SETTINGS)
    )
    wait_for(run, "has no workers yet; waiting for the first")
    assert status(tmp_path / "s") == [(0, 2), (0, 3)]  # nothing is done here
    run_on([*dask, "worker", address, "--nthreads", "1", "--no-dashboard"])
    output = run.stdout.read()
    assert run.wait(120) == 0, output
    assert re.search(r"color_shape_digit small_resnet color_shape_digit\s+cka\s+1\.000 0\.\d{3}", output), output
    assert status(tmp_path / "s") == [(2, 2), (3, 3)]


@pytest.fixture
def interrupted(run_on, tmp_path):
    """A command that got Ctrl-C as a terminal sends it, to itself and its workers: its arguments, and its end."""
    arguments = command("run", "dataset_overlap_vision", "--workers", "2", "--store", str(tmp_path), *SETTINGS)
    hear = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # which is ignored where the tests run in background
    run = run_on(arguments, start_new_session=True, preexec_fn=hear)
    wait_until(lambda: run.poll() is not None or trained(tmp_path))
    os.killpg(run.pid, signal.SIGINT)
    output = run.stdout.read()
    assert run.wait(60) == 130, output
    assert "stopped; what is finished is kept, and the same command goes on" in output, output
    assert "Traceback" not in output and "warn" not in output, output
    return arguments, run


def test_ctrl_c_stops_cleanly_and_the_same_command_goes_on(interrupted, here, status, tmp_path):
    arguments, run = interrupted
    wait_until(lambda: not _session(run.pid))
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "models").glob("[0-9a-f]*/weights.safetensors")}
    assert kept and not list(tmp_path.rglob("*.tmp"))
    code, output = here(arguments)
    assert code == 0, output
    assert kept == {path: path.stat().st_mtime_ns for path in kept} and status(tmp_path) == [(2, 2), (3, 3)]


def _session(leader):
    """Processes of a session that are left."""
    lines = subprocess.run(["ps", "-s", str(leader), "-o", "pid=,args="], capture_output=True, text=True).stdout
    return lines.splitlines()


def test_slurm_job_script(capfd):
    options = ["--gpus", "1", "--jobs", "20", "--partition", "long", "--sbatch", "--qos=low", "--dry-run"]
    finished = subprocess.run(command("cluster", "slurm", *options), capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    for line in ("-p long", "--gres=gpu:1", "--cpus-per-task=4", "-t 08:00:00", "--qos=low", "-n 1"):
        assert f"#SBATCH {line}\n" in finished.stdout
    assert "\nexport REPSIM_THREADS=4\n" in finished.stdout
    assert re.search(r"dask_worker tcp://\S+ .*--nthreads 1 ", finished.stdout)


@pytest.mark.parametrize(
    ("memory", "asked", "limit"),
    [
        ("32GB", "30G", 32e9),
        ("32 gb", "30G", 32e9),
        ("32000M", "30G", 32e9),
        ("16g", "15G", 16e9),
        ("16GiB", "16G", 2**34),
        ("1.5T", "1397G", 1.5e12),
    ],
)
def test_slurm_and_dask_are_told_the_same_memory(here, memory, asked, limit):
    """What SLURM is asked for is what Dask keeps to, rounded up to whole GiB."""
    code, output = here(command("cluster", "slurm", "--dry-run", "--memory", memory))
    assert code == 0 and f"#SBATCH --mem={asked}\n" in output
    number, unit = re.search(r"--memory-limit ([\d.]+)(\w+) ", output).groups()
    assert float(number) * {"GiB": 2**30, "TiB": 2**40}[unit] == pytest.approx(limit, rel=5e-3)
    assert int(asked[:-1]) * 2**30 >= limit


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("memory", "32000", "has no unit that says whether MB or GB are meant: write a number and its unit, such as"),
        ("memory", "5B", "has no unit"),
        ("memory", "0", "a worker must know how much it has, also where it has all: write a number"),
        ("memory", "0GB", "a worker must know how much it has"),
        ("memory", "32k", "is less than a megabyte"),
        *(("memory", nonsense, "cannot be read: write a number and its unit, such as 32GB") for nonsense in (
            "lots", "", "-5GB", "1e3", "nan", "GB", "32,5GB", "32GB/node", "٣GB",
        )),
        *(("walltime", nonsense, "cannot be read: write hours:minutes:seconds") for nonsense in (
            "8h", "", "08.00.00", "-1", "1:2:3:4", "2-00:00:00:00", "tomorrow",
        )),
    ],
)  # fmt: skip
def test_what_slurm_would_misread_is_refused(here, option, value, message):
    code, output = here(command("cluster", "slurm", "--dry-run", f"--{option}={value}"))
    assert code == 2 and output.startswith(f"repsim: {option} {value!r}")
    assert message in output and output.count("\n") == 1


@pytest.mark.parametrize("walltime", ["2-00:00:00", "480", "08:00", "2-12", "08:00:00", "UNLIMITED"])
def test_slurm_spells_time_in_several_ways(here, walltime):
    code, output = here(command("cluster", "slurm", "--dry-run", "--walltime", walltime))
    assert code == 0 and f"#SBATCH -t {walltime}\n" in output


SBATCH = """#!/bin/sh
script=$(mktemp "$JOBS.XXXXXX") && cp "$1" "$script"
setsid sh "$script" >/dev/null 2>&1 & echo $! >> "$JOBS"
echo "Submitted batch job $!"
"""


def test_slurm_jobs_do_the_work(run_on, status, tmp_path):
    """With a stand-in for sbatch that runs each job script at once; a job that is lost is replaced."""
    for name, text in (("sbatch", SBATCH), ("scancel", '#!/bin/sh\nfor j in "$@"; do kill -- -$j; done\n')):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    jobs = tmp_path / "jobs"
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "JOBS": str(jobs)}
    slurm = run_on(
        command("cluster", "slurm", "--jobs", "2", "--gpus", "0", "--cores", "1", "--memory", "2GB"),
        env=environment,
        start_new_session=True,
    )
    address = wait_for(slurm, r"--scheduler (tcp://\S+)").group(1)
    run = run_on(
        command("run", "dataset_overlap_vision", "--scheduler", address, "--store", str(tmp_path / "s"), *SETTINGS)
    )
    wait_until(lambda: run.poll() is not None or trained(tmp_path / "s"))
    os.killpg(int(jobs.read_text().split()[0]), signal.SIGKILL)
    output = run.stdout.read()
    assert run.wait(120) == 0, output
    assert status(tmp_path / "s") == [(2, 2), (3, 3)]
    os.killpg(slurm.pid, signal.SIGINT)
    assert slurm.wait(60) == 130
    for job in jobs.read_text().split():
        assert not Path(f"/proc/{job}").exists() or Path(f"/proc/{job}/stat").read_text().split()[2] == "Z"
