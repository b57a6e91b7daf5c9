"""The command line: ``camrt layers | export | build | explain | evaluate | serve | bench | check | doctor | version``.

Commands parse, call and print. A CamrtError is one message on stderr and exit code 2; so is wrong usage.
``camrt check`` exits with 1 where a check fails. With ``--json`` stdout is one JSON document, also for a
CamrtError; wrong usage is told on stderr alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from camrt.cli import bench, build, check, doctor, evaluate, explain, export, layers, serve, version
from camrt.cli._console import print_error, print_json
from camrt.errors import CamrtError

__all__ = ["app", "main"]

app = typer.Typer(
    name="camrt",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    layers.layers,
    export.export,
    build.build,
    explain.explain,
    evaluate.evaluate,
    serve.serve,
    check.check,
    doctor.doctor,
    version.version,
):
    app.command()(command)
app.add_typer(bench.bench, name="bench")


@app.callback()
def _root(
    show_version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=version.print_and_exit, is_eager=True),
    ] = False,
) -> None:
    """Explain the decisions of ONNX image classifiers with RefineCAM, without PyTorch."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and exits.

    Args:
        arguments: what follows ``camrt``; None takes it from sys.argv.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        app(args=arguments, prog_name="camrt")
    except (CamrtError, OSError, MemoryError) as error:
        print_error(error)
        if "--json" in arguments:
            print_json({"error": {"type": type(error).__name__, "message": str(error)}})
    sys.exit(2)
