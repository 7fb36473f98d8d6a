"""Workers for a sweep: of this machine, of a Dask scheduler that is running, or of SLURM."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dask.system import CPU_COUNT
from dask.utils import parse_bytes
from tqdm import tqdm

from repsim_utils import RepsimError

log = logging.getLogger(__name__)
# Dask has the C library hand freed memory back at once, so that a network's activations are mapped anew at every step:
# the ratio of benchmarks/workers.py was 0.78. Keep it, below 32 MiB; and nobody looks at Dask's own profile.
_NANNY = "distributed.nanny.pre-spawn-environ"
_FASTER = {
    f"{_NANNY}.MALLOC_TRIM_THRESHOLD_": 2**25,
    f"{_NANNY}.MALLOC_MMAP_THRESHOLD_": 2**25,
    "distributed.worker.profile.enabled": False,
}


class ClusterError(RepsimError):
    """No workers could be had."""


@contextmanager
def workers(n: int | None = None, scheduler: str | None = None) -> Iterator[Any]:
    """A Dask client for `repsim_utils.sweep.sweep`, closed at the end; None where this process is to do the work.

    Parameters
    ----------
    n : int, optional
        Processes to start on this machine, each with one thread: two of them train small networks faster than one
        process with two threads. By default one a graphics card, or else one a core; 0 for none.
    scheduler : str, optional
        Address of a scheduler that is running, such as ``tcp://127.0.0.1:8786``; `n` is then left aside.

    Raises
    ------
    ValueError
        If `n` is negative.
    ClusterError
        If the scheduler does not answer.
    """
    if n is None:
        n = _cards() or CPU_COUNT
    if n < 0:
        raise ValueError(f"workers must be 0 or more, got {n}")
    if scheduler is None and n == 0:
        yield None
        return
    import dask
    from distributed import Client, LocalCluster

    _quiet()
    if scheduler is None:
        options: Any = {"memory_limit": 0, "dashboard_address": "127.0.0.1:0", "preload": __name__}
        options |= {"n_workers": n, "threads_per_worker": 1}
        with dask.config.set(_FASTER), LocalCluster(**options) as local, Client(local) as client:
            yield client
        return
    try:
        client = Client(scheduler, timeout=10)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"no scheduler answers at {scheduler} ({error or 'no answer'}); start one: dask scheduler"
        ) from None
    with client:
        if not client.scheduler_info(n_workers=-1)["workers"]:
            log.info("%s has no workers yet; waiting for the first (dask worker %s)", scheduler, scheduler)
        yield client


def dask_setup(worker: Any) -> None:
    """Let a worker of `workers` end without a word: Ctrl-C, which a terminal sends to all, is the sweep's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    atexit.register(gc.freeze)  # as in `repsim_utils.cli.main`: it ends sooner
    tqdm.set_lock(threading.RLock())  # its own is shared between processes, and would be left behind
    _take_card(worker.name)
    _quiet()


def _cards() -> int:
    import torch  # which takes long, and which a scheduler has no use for

    return torch.cuda.device_count()


def _take_card(name: Any) -> None:
    """Let the workers of this machine, whose names are numbers, take its graphics cards in turn."""
    if n := _cards():
        cards = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(n)))).split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = cards[int(name) % n]


def _quiet() -> None:
    """Leave a lost worker unmentioned: its cell goes to another."""
    for name in ("", ".worker", ".worker.state_machine", ".nanny", ".scheduler", ".core"):
        logging.getLogger(f"distributed{name}").setLevel(logging.CRITICAL)


def slurm(
    *,
    jobs: int,
    gpus: int,
    cores: int,
    memory: str,
    walltime: str,
    partition: str | None = None,
    account: str | None = None,
    port: int = 0,
    directives: list[str] | None = None,
) -> Any:
    """A scheduler on this machine whose workers are SLURM jobs, one a job.

    Parameters
    ----------
    jobs : int
        Jobs to keep in the queue or running; one that ends is replaced. With 0 none is submitted.
    gpus, cores : int
        Of each job.
    memory : str
        Of each job, a number and its unit: ``16GB``, ``16G``, ``16000M``, ``16GiB``. SLURM gets it rounded up.
    walltime : str
        Of each job, as SLURM writes it: ``08:00:00``, ``2-00:00:00``, ``480`` (minutes).
    partition, account : str, optional
    port : int
        Of the scheduler; 0 takes a free one.
    directives : list of str, optional
        Further lines for ``#SBATCH``.

    Returns
    -------
    dask_jobqueue.SLURMCluster
        Its ``job_script()`` is what is submitted, its ``scheduler_address`` what ``--scheduler`` takes.

    Raises
    ------
    ValueError
        If SLURM or Dask would not understand the memory or the walltime, or each in its own way.
    ClusterError
        If dask-jobqueue is not installed.
    """
    check_amounts(memory, walltime)
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError:
        raise ClusterError("SLURM needs dask-jobqueue: pip install 'repsim_utils[cluster]'") from None
    _quiet()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which the import has replaced
    extra = [f"--gres=gpu:{gpus}"] if gpus else []
    cluster = SLURMCluster(
        cores=1,  # threads of Dask: a worker runs one cell at a time, with as many threads as REPSIM_THREADS says
        job_cpu=cores,
        processes=1,
        memory=memory,
        walltime=walltime,
        queue=partition,
        account=account,
        python=sys.executable,
        job_extra_directives=extra + list(directives or []),
        job_script_prologue=[f"export REPSIM_THREADS={cores}"],
        scheduler_options={"port": port, "dashboard_address": "127.0.0.1:0"},
    )
    if jobs:
        cluster.adapt(minimum_jobs=jobs, maximum_jobs=jobs)
    return cluster


def check_amounts(memory: str, walltime: str) -> None:
    """Refuse memory and time of which SLURM and Dask would make different things, or nothing."""
    wanted = "write a number and its unit, such as 32GB"
    found = re.fullmatch(r"([0-9]+\.?[0-9]*) *(k|m|g|t)?(i?b)?", memory.strip(), re.IGNORECASE)
    if found and not float(found[1]):
        raise ValueError(f"memory {memory!r}: a worker must know how much it has, also where it has all: {wanted}")
    if not found:
        raise ValueError(f"memory {memory!r} cannot be read: {wanted}")
    if not found[2]:
        raise ValueError(f"memory {memory!r} has no unit that says whether MB or GB are meant: {wanted}")
    if parse_bytes(memory) < 2**20:
        raise ValueError(f"memory {memory!r} is less than a megabyte: {wanted}")
    if not re.fullmatch(
        r"[0-9]+(:[0-9]+){0,2}|[0-9]+-[0-9]+(:[0-9]+){0,2}|unlimited|infinite", walltime, re.IGNORECASE
    ):
        raise ValueError(
            f"walltime {walltime!r} cannot be read: write hours:minutes:seconds or days-hours:minutes:seconds, such as "
            "08:00:00 or 2-00:00:00"
        )
