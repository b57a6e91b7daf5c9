"""``camrt explain``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from camrt.cli import _explain_options as options
from camrt.cli._console import JsonOption, console, parse_names, print_error, print_fields, print_json
from camrt.cli._overlays import OverlayFiles, Request, Results, explain_all
from camrt.cli._remote import RemoteSource, ServerOptions
from camrt.cli._sources import LocalSource, Source
from camrt.errors import ImageError, InvalidInputError

if TYPE_CHECKING:
    from rich.progress import Progress

_OF_A_SERVER = ("model", "tls", "tls_ca", "tls_cert", "tls_key", "token_file", "timeout")
_LEFT_TO_THE_SERVER = ("preprocess", "provider", "threads", "backend", "channels")
_OF_REFINECAM = ("base", "fusion")


def explain(
    context: typer.Context,
    paths: options.ImagesArgument = None,
    sample: options.SampleOption = False,
    method: options.MethodOption = "refinecam",
    base: options.BaseOption = "gradcam++",
    fusion: options.FusionOption = "product",
    layers: options.LayersOption = None,
    classes: options.ClassOption = None,
    top_k: options.TopKOption = 1,
    channels: options.ChannelsOption = None,
    out: options.OutOption = Path("explanations"),
    colormap: options.ColormapOption = "turbo",
    opacity: options.OpacityOption = 0.6,
    output_size: options.OutputSizeOption = "original",
    preprocess: options.PreprocessOption = None,
    provider: options.ProviderOption = "cpu",
    threads: options.ThreadsOption = 0,
    backend: options.BackendOption = "native",
    server: options.ServerOption = None,
    model: options.ModelOption = None,
    tls: options.TlsOption = False,
    tls_ca: options.TlsCaOption = None,
    tls_cert: options.TlsCertOption = None,
    tls_key: options.TlsKeyOption = None,
    token_file: options.TokenFileOption = None,
    timeout: options.TimeoutOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Explain images, here or on a server: an overlay of each, its class, probability and the time of each stage."""
    if output_size not in ("original", "input"):
        raise InvalidInputError(f"Unknown output size {output_size!r}.", "Choose original or input.")
    if classes and top_k != 1:
        raise InvalidInputError("--class and --top-k together.", "Give one of them; --class can be repeated.")
    bundle, images = _bundle_and_images(paths or [], sample)
    _check_used(context, bundle)
    bar = _progress()
    if server is None:
        from camrt.explainer import Explainer

        source: Source = LocalSource(Explainer(bundle, provider, threads, backend, preprocess), channels, bar)
    else:
        source = RemoteSource(ServerOptions(server, model, tls, tls_ca, tls_cert, tls_key, token_file, timeout))
    request = Request(
        out=out,
        options={"method": method, "base_method": base, "fusion": fusion},
        layers=parse_names(layers) if layers and "," in layers else layers,
        classes=[_class(text) for text in classes or ()] or None,
        top_k=top_k,
        view=source.preprocessing if output_size == "input" else None,
        colormap=colormap,
        opacity=opacity,
    )
    _make_folder(out)
    files = OverlayFiles(out, images if bundle is None else [bundle, *images])
    results = explain_all(source, images, request, files, bar)
    _print(results, as_json)
    raise typer.Exit(2 if results.failed else 0)


def _check_used(context: typer.Context, bundle: Path | None) -> None:
    """Refuses options that would be ignored.

    Raises:
        InvalidInputError: there is one.
    """
    values = context.params
    if values["server"] is None:
        useless = _typed(context, _OF_A_SERVER)
        if useless:
            raise InvalidInputError(f"Without --server there is no use for {useless}.", "Give --server HOST:PORT too.")
    elif bundle is not None or _typed(context, _LEFT_TO_THE_SERVER):
        raise InvalidInputError(
            "With --server the bundle, --preprocess, --provider, --threads, --backend and --channels are the server's.",
            "Leave them out, or --server; --model chooses one of the server's models.",
        )
    if values["method"] != "refinecam" and _typed(context, _OF_REFINECAM):
        raise InvalidInputError(
            f"Method {values['method']!r} explains one layer: there is no use for {_typed(context, _OF_REFINECAM)}.",
            f"Leave it out, or combine layers: --method refinecam --base {values['method']}.",
        )
    if values["channels"] is not None:
        from camrt.cam import CAM_METHODS

        base = values["base"] if values["method"] == "refinecam" else values["method"]
        if base in CAM_METHODS and not CAM_METHODS[base].expensive:
            raise InvalidInputError(f"{base!r} does not try channels one by one.", "Leave --channels out.")


def _typed(context: typer.Context, names: Sequence[str]) -> str:
    """Those of the options that are on the command line, also where they say what is the default."""
    sources = {name: context.get_parameter_source(name) for name in names}
    typed = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    return ", ".join(f"--{name.replace('_', '-')}" for name in typed)


def _bundle_and_images(paths: Sequence[Path], sample: bool) -> tuple[Path | None, list[Path]]:
    bundle = paths[0] if paths and paths[0].suffix.lower() == ".onnx" else None
    for path in paths[bundle is not None :]:
        if ".onnx" in path.name.lower():
            raise InvalidInputError(
                f"{path} is no image.",
                "Give one bundle, first, its name ending in .onnx: camrt explain b.onnx photo.jpg.",
            )
    images = [image for path in paths[bundle is not None :] for image in _images_at(path)]
    if sample:
        from camrt.explainer import sample_image_path

        images.append(Path(sample_image_path()))
    if not images:
        raise InvalidInputError("No image to explain.", "Give image files or folders, or --sample.")
    return bundle, images


def _images_at(path: Path) -> Iterator[Path]:
    from camrt.preprocess import IMAGE_SUFFIXES

    if not path.is_dir():
        yield path
        return
    images = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise ImageError(f"The folder {path} has no image.", f"Images end in {', '.join(IMAGE_SUFFIXES)}.")
    yield from images


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(f"Cannot make the folder {path}: {error.strerror}.", "Give another --out.") from error


def _progress() -> Progress:
    """A bar on stderr, drawn on terminals only."""
    from rich.progress import Progress

    stderr = console(stderr=True)
    # Results may be piped away from stdout while the bar is drawn: Rich must leave the streams alone.
    return Progress(
        console=stderr,
        transient=True,
        disable=not stderr.is_terminal,
        redirect_stdout=False,
        redirect_stderr=False,
    )


def _class(text: str) -> int | str:
    """A text that is a number is an index or a rank, and never a name."""
    try:
        return int(text)
    except ValueError:
        return text


def _print(results: Results, as_json: bool) -> None:
    if as_json:
        failed = [{"image": str(path), "error": str(error)} for path, error in results.failed]
        print_json({"images": results.images, "failed": failed})
    for result in () if as_json else results.images:
        for explanation in result["explanations"]:
            _print_explanation(result["image"], explanation)
    for _, error in results.failed:
        print_error(error)


def _print_explanation(image: str, explanation: dict[str, Any]) -> None:
    index, name = explanation["class_index"], explanation["class_name"]
    timings = {**explanation["timings"], "total": sum(explanation["timings"].values())}
    fields = [
        ("image", image),
        ("overlay", explanation["overlay"]),
        ("class", str(index) if name is None else f"{name} ({index})"),
        ("probability", f"{100 * explanation['probability']:.1f} %"),
        ("time", ", ".join(f"{stage} {1000 * seconds:.1f} ms" for stage, seconds in timings.items())),
    ]
    if explanation["degenerate"]:
        fields.append(("warning", f"constant maps, which say nothing: {', '.join(explanation['degenerate'])}"))
    print_fields(fields)
    console().print()
