"""``camrt evaluate``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camrt.cli._console import JsonOption, console, print_fields, print_json, print_table
from camrt.cli._progress import LongProgress, long_progress
from camrt.errors import InvalidInputError

if TYPE_CHECKING:
    from camrt.evaluation.pipeline import EvaluationResult
    from camrt.evaluation.report.tables import Table
    from camrt.evaluation.session import EvaluationSession

_INTERRUPTED = 130
_SHOWN_METRICS = 5


def evaluate(
    context: typer.Context,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[BUNDLE] [DATA]",
            help="A bundle (.onnx; left out: the model that comes with camrt), then a folder of images: flat, or with "
            "a folder a class.",
            show_default=False,
        ),
    ] = None,
    synthetic: Annotated[
        bool | None, typer.Option("--synthetic", help="Evaluate on synthetic shapes, whose objects are known.")
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Number of synthetic shapes.", show_default="90")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the synthetic shapes.", show_default="test")] = None,
    masks: Annotated[
        Path | None, typer.Option(help="Folder of object masks: the images' relative paths, as PNG; not zero = object.")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="CAM methods, separated by commas. Repeatable.",
            show_default="refinecam, gradcam, gradcam++, layercam; with --synthetic all that weigh by gradients",
        ),
    ] = None,
    base: Annotated[
        list[str] | None, typer.Option(help="Base methods of refinecam. Repeatable.", show_default="gradcam++")
    ] = None,
    fusion: Annotated[
        list[str] | None, typer.Option(help="Fusions of refinecam. Repeatable.", show_default="product")
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            help="all, top (coarsest and finest) or above (two finest) for refinecam; each (every layer alone) for the "
            "other methods; or names of layers. Repeatable.",
            show_default="all, and the coarsest",
        ),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            help="Metrics, separated by commas. Repeatable.", show_default="arcc and its parts; with --synthetic all"
        ),
    ] = None,
    baselines: Annotated[
        list[str] | None,
        typer.Option(
            help="Explainers that know nothing: random, ones, half, center; or none.",
            show_default="none; with --synthetic all",
        ),
    ] = None,
    class_choice: Annotated[
        str | None,
        typer.Option("--class", help="Class to explain: predicted, or label (the true one).", show_default="predicted"),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="What metrics follow: probability or logit.", show_default="probability")
    ] = None,
    channels: Annotated[
        int | None,
        typer.Option(min=1, help="scorecam, ablationcam: most channels of a layer to try.", show_default="all"),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many images, drawn at random.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of all this; options given here win.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.", show_default="evaluation")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run in the report.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of everything random.", show_default="0")] = None,
    resamples: Annotated[
        int | None, typer.Option(min=1, help="Resamples of the bootstrap.", show_default="1000")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images at a time.", show_default="16")] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh/--resume", help="Start over, or go on with the run in --out.")
    ] = False,
    preprocess: Annotated[
        str | None, typer.Option(help="Preprocessing preset.", show_default="what the bundle says")
    ] = None,
    provider: Annotated[
        str | None, typer.Option(help="Execution provider that runs the bundle.", show_default="cpu")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=0, help="Threads; 0 takes every core.", show_default="0")] = None,
    backend: Annotated[
        str | None, typer.Option(help="Kernel backend: native, cuda, reference or auto.", show_default="native")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how good explanations are: methods x fusions x layers x metrics over images, into a report.

    Measurements are kept as they come: stopped at any moment, the same command goes on where it was.
    """
    bundle, data = _bundle_and_data(paths or [])
    given = {
        "bundle": bundle,
        "data": data,
        "masks": masks,
        "synthetic": synthetic,
        "split": split,
        "images": images,
        "methods": method,
        "base_methods": base,
        "fusions": fusion,
        "layers": layers,
        "baselines": baselines,
        "metrics": metrics,
        "class_choice": class_choice,
        "target": target,
        "channels": channels,
        "limit": limit,
        "out": out,
        "name": name,
        "seed": seed,
        "resamples": resamples,
        "batch_size": batch_size,
        "preprocess": preprocess,
        "provider": provider,
        "threads": threads,
        "backend": backend,
    }
    session, command = _open(config, given), _command(context)
    try:
        with long_progress() as progress:
            result = _evaluate(session, command, progress, fresh)
    except KeyboardInterrupt:
        _print_interruption(session, command)
        raise typer.Exit(_INTERRUPTED) from None
    if as_json:
        print_json(_document(result))
    else:
        _print_result(result)


def _bundle_and_data(paths: list[Path]) -> tuple[Path | None, Path | None]:
    bundle = paths[0] if paths and paths[0].suffix.lower() == ".onnx" else None
    data = paths[bundle is not None :]
    if len(data) > 1:
        raise InvalidInputError(
            f"{len(data)} folders of images: {', '.join(map(str, data))}.", "Give one, after the bundle (.onnx)."
        )
    return bundle, data[0] if data else None


def _open(file: Path | None, given: dict[str, Any]) -> EvaluationSession:
    from camrt.evaluation.config import EvaluationConfig, read_config
    from camrt.evaluation.session import EvaluationSession

    fields = {} if file is None else read_config(file)
    fields |= {
        key: str(value) if isinstance(value, Path) else value for key, value in given.items() if value is not None
    }
    return EvaluationSession.open(EvaluationConfig.from_mapping(fields))


def _evaluate(session: EvaluationSession, command: str, progress: LongProgress, fresh: bool) -> EvaluationResult:
    from camrt.evaluation.pipeline import evaluate

    return evaluate(session, command, progress, fresh)


def _command(context: typer.Context) -> str:
    """What was typed, but for what only concerns the terminal."""
    words = ["camrt", "evaluate"]
    for parameter in context.command.params:
        name = parameter.name or ""
        value = context.params.get(name)
        if name in ("as_json", "fresh") or value in (None, False, [], ()):
            continue
        values = list(value) if isinstance(value, list | tuple) else [value]
        is_argument = parameter.param_type_name == "argument"
        for one in values:
            words += (
                [str(one)] if is_argument else [parameter.opts[0]] if one is True else [parameter.opts[0], str(one)]
            )
    return shlex.join(words)


def _print_interruption(session: EvaluationSession, command: str) -> None:
    from rich.text import Text

    out = session.config.out
    message = f"what is measured is kept in {out}; go on with the same command: {command}"
    console(stderr=True).print(Text.assemble(("interrupted: ", "bold yellow"), message))


def _print_result(result: EvaluationResult) -> None:
    from camrt.evaluation.report.documents import facts_rows
    from camrt.evaluation.report.tables import agreement_tables, layer_table, ranking_table

    analysis = result.analysis
    print_fields([("run", analysis.facts.name), *facts_rows(analysis)])
    names = [analysis.main_metric, *(name for name in analysis.scores.metrics if name != analysis.main_metric)]
    tables = [ranking_table(analysis, names[:_SHOWN_METRICS])]
    tables += agreement_tables(analysis)
    tables += [layer_table(analysis, metric) for metric in analysis.refinement]
    for table in tables:
        _print_table(table)
    if analysis.problems:
        console().print()
        counts = [(str(count), kind) for kind, count in analysis.problem_counts().items()]
        print_table(("cases", "problem of the data"), counts)
    console().print()
    print_fields([(kind, str(path)) for kind, path in result.files().items()])


def _print_table(table: Table) -> None:
    from rich.text import Text

    out = console()
    out.print()
    out.print(Text(table.title, "bold"))
    if table.note:
        out.print(Text(table.note, "dim"))
    print_table(table.columns, table.rows)


def _document(result: EvaluationResult) -> dict[str, Any]:
    """The result as types that JSON has."""
    from camrt.evaluation.report.document_json import to_json

    return {"files": {kind: str(path) for kind, path in result.files().items()}, **to_json(result.analysis)}
