"""``camrt check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from camrt.cli._console import JsonOption, console, print_json, print_table

_VERDICTS = {True: "passed", False: "FAILED", None: "not checked"}


def check(
    bundle: Annotated[Path, typer.Argument(help="A bundle made by `camrt export`.", show_default=False)],
    against: Annotated[
        Path | None, typer.Option(metavar="MODEL", help="The source model, to compare the original outputs with.")
    ] = None,
    provider: Annotated[str, typer.Option(help="Execution provider that runs the bundle.")] = "cpu",
    samples: Annotated[int, typer.Option(min=2, help="Random images to check with.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of the random images.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Check BUNDLE: original outputs unchanged, gradients true, explanations not constant. Exit code 1 if not."""
    from camrt.evaluation import check_bundle

    with console(stderr=True).status(f"checking {bundle}"):
        report = check_bundle(bundle, against=against, provider=provider, samples=samples, seed=seed)
    if as_json:
        print_json(report.to_dict())
    else:
        print_table(
            ("result", "check", "value", "tolerance", "detail"),
            (
                (
                    _VERDICTS[row.passed],
                    row.name,
                    "" if row.value is None else f"{row.value:.2g}",
                    "" if row.tolerance is None else f"{row.tolerance:g}",
                    row.detail,
                )
                for row in report.rows
            ),
        )
    raise typer.Exit(0 if report.passed else 1)
