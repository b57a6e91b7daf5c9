"""The arguments and options of ``camrt evaluate``. What is None is left to the configuration file or its default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from camrt.cli._console import given_path

DataArgument = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="[BUNDLE] [DATA]",
        help="A bundle (.onnx; left out: the model that comes with camrt), then a folder of images: flat, or with "
        "a folder a class.",
        show_default=False,
        parser=given_path,
    ),
]
SyntheticOption = Annotated[
    bool | None, typer.Option("--synthetic", help="Evaluate on synthetic shapes, whose objects are known.")
]
ImagesOption = Annotated[int | None, typer.Option(min=1, help="Number of synthetic shapes.", show_default="90")]
SplitOption = Annotated[str | None, typer.Option(help="Split of the synthetic shapes.", show_default="test")]
MasksOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder of object masks: the images' relative paths, as PNG; not zero = object.", parser=given_path
    ),
]
MethodOption = Annotated[
    list[str] | None,
    typer.Option(
        help="CAM methods, separated by commas. Repeatable.",
        show_default="refinecam, gradcam, gradcam++, layercam; with --synthetic all that weigh by gradients",
    ),
]
BaseOption = Annotated[
    list[str] | None, typer.Option(help="Base methods of refinecam. Repeatable.", show_default="gradcam++")
]
FusionOption = Annotated[
    list[str] | None, typer.Option(help="Fusions of refinecam. Repeatable.", show_default="product")
]
LayersOption = Annotated[
    list[str] | None,
    typer.Option(
        help="all, top (coarsest and finest) or above (two finest) for refinecam; each (every layer alone) for the "
        "other methods; or names of layers. Repeatable.",
        show_default="all, and the coarsest",
    ),
]
MetricsOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Metrics, separated by commas. Repeatable.", show_default="arcc and its parts; with --synthetic all"
    ),
]
BaselinesOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Explainers that know nothing: random, ones, half, center; or none.",
        show_default="none; with --synthetic all",
    ),
]
ClassOption = Annotated[
    str | None,
    typer.Option("--class", help="Class to explain: predicted, or label (the true one).", show_default="predicted"),
]
TargetOption = Annotated[
    str | None, typer.Option(help="What metrics follow: probability or logit.", show_default="probability")
]
ChannelsOption = Annotated[
    int | None,
    typer.Option(min=1, help="scorecam, ablationcam: most channels of a layer to try.", show_default="all"),
]
LimitOption = Annotated[int | None, typer.Option(min=1, help="At most so many images, drawn at random.")]
ConfigOption = Annotated[Path | None, typer.Option(help="YAML file of all this; options given here win.")]
OutOption = Annotated[Path | None, typer.Option(help="Folder of the run.", show_default="evaluation")]
NameOption = Annotated[str | None, typer.Option(help="Name of the run in the report.")]
SeedOption = Annotated[int | None, typer.Option(min=0, help="Seed of everything random.", show_default="0")]
ResamplesOption = Annotated[int | None, typer.Option(min=1, help="Resamples of the bootstrap.", show_default="1000")]
BatchSizeOption = Annotated[int | None, typer.Option(min=1, help="Images at a time.", show_default="16")]
FreshOption = Annotated[bool, typer.Option("--fresh/--resume", help="Start over, or go on with the run in --out.")]
PreprocessOption = Annotated[
    str | None, typer.Option(help="Preprocessing preset.", show_default="what the bundle says")
]
ProviderOption = Annotated[
    str | None, typer.Option(help="Execution provider that runs the bundle.", show_default="cpu")
]
ThreadsOption = Annotated[int | None, typer.Option(min=0, help="Threads; 0 takes every core.", show_default="0")]
BackendOption = Annotated[
    str | None, typer.Option(help="Kernel backend: native, cuda, reference or auto.", show_default="native")
]
