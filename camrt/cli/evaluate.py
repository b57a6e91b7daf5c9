"""``camrt evaluate``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from camrt.cli import _evaluate_options as options
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
    paths: options.DataArgument = None,
    synthetic: options.SyntheticOption = None,
    images: options.ImagesOption = None,
    split: options.SplitOption = None,
    masks: options.MasksOption = None,
    method: options.MethodOption = None,
    base: options.BaseOption = None,
    fusion: options.FusionOption = None,
    layers: options.LayersOption = None,
    metrics: options.MetricsOption = None,
    baselines: options.BaselinesOption = None,
    class_choice: options.ClassOption = None,
    target: options.TargetOption = None,
    channels: options.ChannelsOption = None,
    limit: options.LimitOption = None,
    config: options.ConfigOption = None,
    out: options.OutOption = None,
    name: options.NameOption = None,
    seed: options.SeedOption = None,
    resamples: options.ResamplesOption = None,
    batch_size: options.BatchSizeOption = None,
    fresh: options.FreshOption = False,
    preprocess: options.PreprocessOption = None,
    provider: options.ProviderOption = None,
    threads: options.ThreadsOption = None,
    backend: options.BackendOption = None,
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
    from camrt.bundle import check_output
    from camrt.evaluation.config import EvaluationConfig, read_config
    from camrt.evaluation.pipeline import output_files
    from camrt.evaluation.session import EvaluationSession
    from camrt.evaluation.store import RUN_NAME

    fields = {} if file is None else read_config(file)
    fields |= {
        key: str(value) if isinstance(value, Path) else value for key, value in given.items() if value is not None
    }
    checked = EvaluationConfig.from_mapping(fields)
    inputs = [Path(path) for path in (file, checked.bundle) if path is not None]
    for output in (*output_files(Path(checked.out)).values(), Path(checked.out) / RUN_NAME):
        check_output(output, inputs)
    return EvaluationSession.open(checked)


def _evaluate(session: EvaluationSession, command: str, progress: LongProgress, fresh: bool) -> EvaluationResult:
    from camrt.evaluation.pipeline import evaluate

    return evaluate(session, command, progress, fresh)


def _command(context: typer.Context) -> str:
    """What was typed, but for what only concerns the terminal."""
    words = ["camrt", "evaluate"]
    for parameter in context.command.params:
        name = parameter.name or ""
        value = context.params.get(name)
        if name in ("as_json", "fresh") or value is None or value is False:
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

    from camrt.json_values import storable

    out = session.config.out
    message = f"what is measured is kept in {out}; go on with the same command: {command}"
    console(stderr=True).print(Text.assemble(("interrupted: ", "bold yellow"), storable(message)))


def _print_result(result: EvaluationResult) -> None:
    from camrt.evaluation.report.documents import facts_rows
    from camrt.evaluation.report.tables import agreement_tables, layer_table, ranking_table
    from camrt.json_values import storable

    analysis = result.analysis
    print_fields([("run", storable(analysis.facts.name)), *facts_rows(analysis)])
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
    print_fields([(kind, storable(str(path))) for kind, path in result.files().items()])


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
    from camrt.json_values import storable

    files = {kind: storable(str(path)) for kind, path in result.files().items()}
    return {"files": files, **to_json(result.analysis)}
