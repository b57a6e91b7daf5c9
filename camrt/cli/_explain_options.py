"""The arguments and options of ``camrt explain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from camrt.cli._console import given_path

ImagesArgument = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="[BUNDLE] IMAGE",
        help="A bundle (.onnx; left out: the model that comes with camrt), then image files or folders of them.",
        show_default=False,
        parser=given_path,
    ),
]
SampleOption = Annotated[bool, typer.Option("--sample", help="Explain the image that comes with camrt.")]
MethodOption = Annotated[
    str,
    typer.Option(
        help="CAM method: refinecam, which combines layers, or one for a single layer: gradcam, gradcam++, "
        "xgradcam, hirescam, gradcam_elementwise, layercam, cam, eigencam, eigengradcam, finercam, shapleycam; or "
        "scorecam, ablationcam, which run the model once a channel."
    ),
]
BaseOption = Annotated[str, typer.Option(help="Method of the layer maps that refinecam combines: any of the others.")]
FusionOption = Annotated[str, typer.Option(help="How refinecam combines the layer maps.")]
LayersOption = Annotated[
    str | None,
    typer.Option(
        help="Target layers, separated by commas; or all, top (coarsest and finest), above (two finest).",
        show_default="all for refinecam, else the coarsest",
    ),
]
ClassOption = Annotated[
    list[str] | None,
    typer.Option(
        "--class",
        help="Class to explain: index, name, or rank (-1 the prediction, -2 the second). Repeatable.",
        show_default="the prediction",
    ),
]
TopKOption = Annotated[int, typer.Option(min=1, help="Explain the k most probable classes.")]
ChannelsOption = Annotated[
    int | None,
    typer.Option(min=1, help="scorecam, ablationcam: most channels of a layer to try.", show_default="all"),
]
OutOption = Annotated[Path, typer.Option(help="Folder for the overlays.")]
ColormapOption = Annotated[str, typer.Option(help="Colours: turbo, jet, viridis, inferno or gray.")]
OpacityOption = Annotated[float, typer.Option(min=0, max=1, help="Opacity of the colours.")]
OutputSizeOption = Annotated[
    str, typer.Option(help="original: overlay on the original image; input: on what the model sees of it.")
]
PreprocessOption = Annotated[
    str | None,
    typer.Option(help="Preprocessing preset (imagenet, unit, ...).", show_default="what the bundle says"),
]
ProviderOption = Annotated[str, typer.Option(help="Execution provider that runs the bundle.")]
ThreadsOption = Annotated[int, typer.Option(min=0, help="Threads; 0 takes every core.")]
BackendOption = Annotated[str, typer.Option(help="Kernel backend: native, cuda, reference or auto.")]
ServerOption = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Ask this server instead of running a bundle.", show_default=False),
]
ModelOption = Annotated[
    str | None, typer.Option(help="With --server: which of its models.", show_default="the only one")
]
TlsOption = Annotated[bool, typer.Option("--tls", help="With --server: encrypt, and trust the system's authorities.")]
TlsCaOption = Annotated[Path | None, typer.Option(help="With --server: authorities to trust, PEM.")]
TlsCertOption = Annotated[Path | None, typer.Option(help="With --server: certificate to show, PEM.")]
TlsKeyOption = Annotated[Path | None, typer.Option(help="With --server: its key, PEM.")]
TokenFileOption = Annotated[Path | None, typer.Option(help="With --server: file with the bearer token.")]
TimeoutOption = Annotated[float, typer.Option(min=0.001, help="With --server: seconds an image may take.")]
