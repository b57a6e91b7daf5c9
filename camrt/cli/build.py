"""``camrt build``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from camrt.cli._console import JsonOption, console, parse_names, print_fields, print_json
from camrt.errors import InvalidInputError


def build(
    bundle: Annotated[Path, typer.Argument(help="A bundle made by `camrt export`.", show_default=False)],
    provider: Annotated[str, typer.Option(help="tensorrt or tensorrt-ort.")] = "tensorrt",
    precision: Annotated[
        str | None,
        typer.Option(
            help="fp16 of an fp32 bundle writes BUNDLE.fp16.onnx beside it; otherwise what the bundle has to be.",
            show_default="the bundle's",
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(help="Batch buckets, separated by commas.", show_default="CAMRT_ENGINE_BATCH, or 1,8"),
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Target layers.", show_default="all")] = None,
    cache: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where engines are kept.", show_default="CAMRT_ENGINE_CACHE")
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Pictures to measure --precision fp16 with."),
    ] = None,
    cuda_graphs: Annotated[
        bool | None,
        typer.Option(
            help="Record each bucket once, as a server with CAMRT_CUDA_GRAPHS=1.", show_default="CAMRT_CUDA_GRAPHS"
        ),
    ] = None,
    tf32: Annotated[
        bool | None,
        typer.Option(help="Let float32 round to TF32, as a server with CAMRT_TF32=1.", show_default="CAMRT_TF32"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Build engines of BUNDLE ahead, and compare them with the CPU provider.

    Serve with the same CAMRT_ENGINE_BATCH, CAMRT_TF32 and CAMRT_ENGINE_CACHE: engines are found by what they were built
    for.
    """
    from camrt.runtime.engine_options import EngineOptions, parse_batches
    from camrt.runtime.gpu import build_gpu_engines
    from camrt.runtime.tensorrt import TENSORRT_PROVIDERS

    if provider not in TENSORRT_PROVIDERS:
        raise InvalidInputError(
            f"Provider {provider!r} builds no engines.", f"Choose one of {', '.join(TENSORRT_PROVIDERS)}."
        )
    chosen: dict[str, Any] = {
        "batches": None if batch is None else parse_batches(batch),
        "cuda_graphs": cuda_graphs,
        "tf32": tf32,
        "cache": cache,
    }
    given = {name: value for name, value in chosen.items() if value is not None}
    options = dataclasses.replace(EngineOptions.from_environment(), **given)
    path = _at_precision(bundle, precision, calibration)
    with console(stderr=True).status(f"building {path} for {provider}"):
        session = build_gpu_engines(path, provider, options, parse_names(layers))
    parity = session.parity
    assert parity is not None
    if as_json:
        print_json({"bundle": str(path), "cache": str(options.cache), "parity": dataclasses.asdict(parity)})
        return
    print_fields(
        (
            ("bundle", str(path)),
            ("precision", session.manifest.precision),
            ("batch buckets", ", ".join(map(str, options.batches))),
            ("cache", str(options.cache)),
            *((f"maps of {name}", f"correlate by {value:.5f}") for name, value in parity.correlations.items()),
            ("logit error", f"{parity.logit_error:.2g} of the largest logit"),
            ("top-1 agreement", f"{parity.top1_agreement:.1%}"),
        )
    )


def _at_precision(path: Path, precision: str | None, calibration: Path | None) -> Path:
    """The bundle in the precision asked for: itself, or one that is made of it."""
    from camrt.bundle import Bundle

    present = Bundle.open(path).manifest.precision
    if precision in (None, present):
        return path
    if precision == "fp16" and present == "fp32":
        from camrt.exporter.rounding import half_bundle

        return half_bundle(path, path.with_suffix(".fp16.onnx"), calibration).path
    raise InvalidInputError(
        f"{path} is {present}, and {precision} cannot be made of it.",
        "Export the source model again: camrt export --precision (int8 needs --calibration).",
    )
