"""``camrt layers``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from camrt.cli._console import JsonOption, parse_size, print_json, print_table


def layers(
    model: Annotated[Path, typer.Argument(help="An ONNX classifier.", show_default=False)],
    size: Annotated[
        str | None, typer.Option(help="Input size, 224 or 224x320 (height x width), where the model takes any.")
    ] = None,
    logits: Annotated[str | None, typer.Option(help="The class output, where the model has several outputs.")] = None,
    inside_blocks: Annotated[
        bool, typer.Option("--all", help="Also the values inside blocks: `auto` takes none, but they can be named.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the layers of MODEL that can be explained, in the order of the network, and those that `auto` takes.

    stride: pixels of the image between two positions. sees: pixels that a position depends on (its receptive field).
    """
    from camrt.exporter import list_layers

    candidates = list_layers(model, parse_size(size), logits, inside_blocks=inside_blocks)
    if as_json:
        print_json({"model": str(model), "layers": [dataclasses.asdict(candidate) for candidate in candidates]})
        return
    print_table(
        ("auto", "layer", "shape", "stride", "sees", "layout", "value", "reason"),
        (
            (
                "*" if candidate.auto else "",
                candidate.name,
                "x".join(map(str, candidate.shape)),
                "x".join(f"{stride:g}" for stride in candidate.stride),
                "image" if candidate.receptive_field is None else "x".join(map(str, candidate.receptive_field)),
                candidate.layout,
                candidate.value,
                candidate.reason,
            )
            for candidate in candidates
        ),
    )
