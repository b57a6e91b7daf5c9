"""``camrt bench latency | throughput | sizes | kernels | server | peers | compare``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camrt.cli._console import JsonOption, console, print_json, print_table
from camrt.errors import InvalidInputError

if TYPE_CHECKING:
    from camrt.bench.report import Report, Table
    from camrt.bench.workload import Workload

bench = typer.Typer(
    no_args_is_help=True, help="Measure latency, throughput, image sizes, kernels and a server on this machine."
)


def _made(folder: Path | None) -> Path | None:
    """The folder of the report, made before anything is measured for it.

    Raises:
        InvalidInputError: it cannot be made.
    """
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(f"Cannot write to {folder}: {error.strerror}.", "Choose another folder.") from error
    return folder


BundleArgument = Annotated[
    Path | None, typer.Argument(help="A bundle; left out: the model that comes with camrt.", show_default=False)
]
ImageOption = Annotated[Path | None, typer.Option(help="Picture to explain.", show_default="a sample")]
PreprocessOption = Annotated[
    str | None, typer.Option(help="How images become inputs, a preset, for a bundle that does not say.")
]
OutOption = Annotated[
    Path | None, typer.Option(help="Folder for the report: JSON, Markdown, plots.", show_default=False, callback=_made)
]
RoundsOption = Annotated[int, typer.Option(min=1, help="Timed rounds; every line is timed once a round.")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="Cores to use.", show_default="all")]

_SLOWER = 1


@bench.command()
def latency(
    bundle: BundleArgument = None,
    image: ImageOption = None,
    preprocess: PreprocessOption = None,
    provider: Annotated[str, typer.Option(help="Providers, separated by commas.")] = "cpu",
    threads: Annotated[str | None, typer.Option(help="Numbers of threads.", show_default="all cores")] = None,
    method: Annotated[str, typer.Option(help="CAM methods.")] = "refinecam",
    batch: Annotated[str, typer.Option(help="Batch sizes; 1 is always there.")] = "1",
    classes: Annotated[str, typer.Option(help="Classes of one image, beside 1.")] = "",
    layers: Annotated[str, typer.Option(help="Numbers of target layers, coarse to fine, beside all.")] = "",
    rounds: RoundsOption = 30,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time explanations beside plain predictions, stage by stage. Lists are separated by commas."""
    from camrt.bench.latency import Sweep, bench_latency
    from camrt.bench.limits import machine_limits

    machine = _machine()
    cores = _numbers(threads, "threads") or [_all_cores()]
    sweep = Sweep(
        providers=_names(provider),
        threads=cores,
        methods=_names(method),
        batches=_numbers(batch, "batch"),
        classes=_numbers(classes, "classes"),
        layers=_numbers(layers, "layers"),
        rounds=rounds,
    )
    sweep.check()
    work, limits = _workload(bundle, image, preprocess), machine_limits(max(cores))
    tables, notes = bench_latency(work, sweep, limits, _progress)
    _finish("latency", machine, [work], tables, notes, limits, out, as_json)


@bench.command()
def throughput(
    bundle: BundleArgument = None,
    image: ImageOption = None,
    preprocess: PreprocessOption = None,
    provider: Annotated[str, typer.Option(help="Execution provider.")] = "cpu",
    threads: ThreadsOption = None,
    method: Annotated[str, typer.Option(help="CAM method.")] = "refinecam",
    batch: Annotated[str, typer.Option(help="Batch sizes, separated by commas.")] = "1,2,4,8,16",
    instances: Annotated[str, typer.Option(help="Numbers of explainers that share the cores.")] = "1",
    rounds: RoundsOption = 10,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count explanations a second by batch size and by explainers side by side."""
    from camrt.bench.throughput import bench_throughput

    machine = _machine()
    work = _workload(bundle, image, preprocess)
    sizes, counts = _numbers(batch, "batch"), _numbers(instances, "instances")
    tables, notes = bench_throughput(
        work, threads or _all_cores(), sizes or [1], counts or [1], rounds, _progress, method, provider
    )
    _finish("throughput", machine, [work], tables, notes, {}, out, as_json)


@bench.command()
def sizes(
    bundles: Annotated[
        list[Path], typer.Argument(help="One network, exported at several image sizes.", show_default=False)
    ],
    image: ImageOption = None,
    preprocess: PreprocessOption = None,
    threads: ThreadsOption = None,
    rounds: RoundsOption = 15,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time predictions and explanations by the size of the image, a bundle a size."""
    from camrt.bench.sizes import bench_sizes

    machine = _machine()
    works = [_workload(bundle, image, preprocess) for bundle in bundles]
    tables, notes = bench_sizes(works, threads or _all_cores(), rounds, _progress)
    _finish("sizes", machine, works, tables, notes, {}, out, as_json)


@bench.command()
def kernels(
    bundle: BundleArgument = None,
    image: ImageOption = None,
    preprocess: PreprocessOption = None,
    threads: ThreadsOption = None,
    batch: Annotated[int, typer.Option(min=1, help="Images a call.")] = 1,
    rounds: RoundsOption = 50,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time the native kernels beside the NumPy reference and a memory copy."""
    from camrt.bench.kernels import bench_kernels
    from camrt.bench.limits import machine_limits

    machine = _machine()
    work, cores = _workload(bundle, image, preprocess), threads or _all_cores()
    limits = machine_limits(cores)
    tables, notes = bench_kernels(work, cores, batch, rounds, limits, _progress)
    _finish("kernels", machine, [work], tables, notes, limits, out, as_json)


@bench.command()
def server(
    bundle: BundleArgument = None,
    image: ImageOption = None,
    preprocess: PreprocessOption = None,
    threads: ThreadsOption = None,
    callers: Annotated[str, typer.Option(help="Numbers of callers, separated by commas.")] = "1,2,4,8,16",
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of each load.")] = 5.0,
    target: Annotated[
        str | None, typer.Option("--server", help="host:port of a server that runs already.", show_default="starts one")
    ] = None,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Load a server with growing numbers of callers, beside the library in this process."""
    from camrt.bench.serving import bench_server

    machine = _machine()
    work = _workload(bundle, image, preprocess)
    counts = _numbers(callers, "callers") or [1]
    tables, notes = bench_server(work, threads or _all_cores(), counts, seconds, _progress, target)
    _finish("server", machine, [work], tables, notes, {}, out, as_json)


@bench.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def peers(context: typer.Context) -> None:
    """Time RefineCAM beside other packages, in a checkout with the extra [test]; --help lists its options."""
    from importlib.util import find_spec

    if find_spec("benchmarks") is None or find_spec("benchmarks.bench_explain") is None:
        raise InvalidInputError(
            "The benchmark against other packages is not part of the installed camrt.",
            "Run it in the root of a checkout of the repository, with: pip install -e '.[test]'",
        )
    import runpy

    sys.argv[1:] = context.args
    runpy.run_module("benchmarks.bench_explain", run_name="__main__")


@bench.command()
def compare(
    old: Annotated[Path, typer.Argument(help="The earlier report, a JSON file.", show_default=False)],
    new: Annotated[Path, typer.Argument(help="The later report.", show_default=False)],
    limit: Annotated[float, typer.Option(min=0.0, help="Growth from which a line counts as slower.")] = 0.1,
    as_json: JsonOption = False,
) -> None:
    """Compare two reports line by line; exits with 1 where something got slower."""
    import dataclasses

    from camrt.bench import compare_reports, load_report
    from camrt.bench.report import cell

    changes, notes = compare_reports(load_report(old), load_report(new), limit)
    if as_json:
        print_json({"changes": [dataclasses.asdict(change) for change in changes], "notes": notes})
    else:
        rows = ((c.table, c.labels, c.figure, cell(c.old), cell(c.new), f"{c.change:+.1%}", c.verdict) for c in changes)
        print_table(("table", "line", "figure", "old", "new", "change", ""), rows)
        _print_notes(notes)
    if any(change.verdict == "slower" for change in changes):
        raise typer.Exit(_SLOWER)


def _workload(bundle: Path | None, image: Path | None, preprocess: str | None) -> Workload:
    from camrt.bench.workload import Workload

    return Workload.of(bundle, image, preprocess)


def _machine() -> dict[str, Any]:
    """The machine before anything is measured on it."""
    from camrt.bench.environment import describe_machine

    return describe_machine()


def _finish(
    kind: str,
    machine: dict[str, Any],
    works: Sequence[Workload],
    tables: list[Table],
    notes: list[str],
    limits: dict[str, float],
    out: Path | None,
    as_json: bool,
) -> None:
    """Prints the report, and writes it where a folder is named."""
    from camrt.bench.environment import quiet_notes
    from camrt.bench.report import Report
    from camrt.bundle import file_sha256

    settings: dict[str, Any] = {
        "bundle": ", ".join(work.bundle.name for work in works),
        "sha256": ", ".join(file_sha256(work.bundle) for work in works),
        "image": works[0].image.name,
    }
    command = shlex.join(["camrt", *sys.argv[1:]])
    report = Report(kind, command, machine, settings, tables, limits, [*quiet_notes(machine), *notes])
    files = [] if out is None else report.write(out)
    if as_json:
        print_json(report.to_json())
        return
    _print_report(report)
    for file in files:
        console().print(f"written: {file}")


def _print_report(report: Report) -> None:
    from camrt.bench.report import cell, heading, shown_columns

    for table in report.tables:
        note = f" (ratio: to {table.ratio_to})" if table.ratio_to else ""
        console().print(f"\n{table.title}{note}")
        columns = shown_columns(table.rows)
        rows = ([cell(row.get(name)) for name in columns] for row in table.rows)
        print_table([heading(name) for name in columns], rows)
    for name, number in report.limits.items():
        console().print(f"{name}: {number:.1f}")
    _print_notes(report.notes)


def _print_notes(notes: list[str]) -> None:
    for note in notes:
        console().print(f"note: {note}")


def _progress(text: str) -> None:
    console(stderr=True).print(text)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str | None, option: str) -> list[int]:
    """Whole numbers above zero, separated by commas.

    Raises:
        InvalidInputError: anything else.
    """
    words = _names(text or "")
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise InvalidInputError(f"--{option} is {text!r}.", "Give whole numbers separated by commas, such as 1,4,8.")
    return [int(word) for word in words]


def _all_cores() -> int:
    from camrt.bench.environment import available_cores

    return available_cores()
