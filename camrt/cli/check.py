"""``camrt check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from camrt.cli._console import JsonOption, console, print_fields, print_json, print_table
from camrt.errors import InvalidInputError

_VERDICTS = {True: "passed", False: "FAILED", None: "not checked"}


def check(
    bundle: Annotated[Path, typer.Argument(help="A bundle made by `camrt export`.", show_default=False)],
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL",
            help="The source model, to compare the original outputs with; or the fp32 bundle, to compare the maps.",
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="With a bundle in --against: pictures to compare maps on.")
    ] = None,
    provider: Annotated[str, typer.Option(help="Execution provider that runs the bundle.")] = "cpu",
    samples: Annotated[int, typer.Option(min=2, help="Random images to check with, or pictures at most.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random images.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Check BUNDLE: original outputs unchanged, derivatives true, explanations not constant. Exit code 1 if not."""
    from camrt.evaluation import check_bundle

    if against is not None and _is_bundle(against):
        _compare(bundle, against, images, provider, samples, seed, as_json)
    if images is not None:
        raise InvalidInputError("Pictures are for comparing two bundles.", "Give the fp32 bundle with --against.")
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


def _is_bundle(path: Path) -> bool:
    from camrt.bundle import Bundle
    from camrt.errors import BundleError

    try:
        Bundle.open(path)
    except BundleError:
        return False
    return True


def _compare(
    bundle: Path, reference: Path, images: Path | None, provider: str, samples: int, seed: int, as_json: bool
) -> NoReturn:
    """Prints how much of the reference's maps the bundle keeps. Exit code 1 where too little."""
    from camrt.evaluation import map_fidelity

    with console(stderr=True).status(f"comparing {bundle} with {reference}"):
        report = map_fidelity(bundle, reference, images=images, provider=provider, samples=samples, seed=seed)
    if as_json:
        print_json(report.to_dict())
    else:
        print_fields(
            (
                ("precision", report.precision),
                ("images", f"{report.images} ({report.source})"),
                ("top-1 agreement", f"{report.top1_agreement:.1%}"),
                ("logit error", f"{report.logit_error:.2g} of the largest logit"),
            )
        )
        print_table(
            ("method", "layer", "mean correlation", "lowest"),
            ((row.method, row.layer, f"{row.mean:.5f}", f"{row.lowest:.5f}") for row in report.rows),
        )
        print_fields(
            (("result", f"{_VERDICTS[report.passed]}: fused maps of gradcam++ need a mean of {report.threshold}"),)
        )
    raise typer.Exit(0 if report.passed else 1)
