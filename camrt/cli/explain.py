"""``camrt explain``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from camrt.cli._console import JsonOption, console, parse_names, print_error, print_fields, print_json
from camrt.cli._remote import RemoteSource, ServerOptions
from camrt.errors import CamrtError, ImageError, InvalidInputError

if TYPE_CHECKING:
    from PIL import Image
    from rich.progress import Progress

    from camrt.explainer import Explainer
    from camrt.explanation import Explanation
    from camrt.preprocess import Preprocessing


class _Source(Protocol):
    """Where explanations come from."""

    @property
    def preprocessing(self) -> Preprocessing | None: ...

    def explanations(
        self,
        path: Path,
        image: Image.Image,
        classes: Sequence[int | str] | None,
        top_k: int,
        output_size: str,
        layers: str | list[str] | None,
        options: dict[str, Any],
    ) -> list[Explanation]: ...


@dataclass(frozen=True, slots=True)
class _LocalSource:
    """An explainer in this process."""

    explainer: Explainer
    channels: int | None
    bar: Progress

    @property
    def preprocessing(self) -> Preprocessing | None:
        return self.explainer.preprocessing

    def explanations(
        self,
        path: Path,  # noqa: ARG002
        image: Image.Image,
        classes: Sequence[int | str] | None,
        top_k: int,
        output_size: str,
        layers: str | list[str] | None,
        options: dict[str, Any],
    ) -> list[Explanation]:
        from camrt.cam import Perturbation

        task = self.bar.add_task("channels", total=None, visible=False)

        def tell(done: int, total: int) -> None:
            """Only scorecam and ablationcam do: the line shows up with their first run."""
            self.bar.update(task, completed=done, total=total, visible=True)

        try:
            return self.explainer.explain_images(
                [image],
                classes,
                top_k=top_k,
                output_size=output_size,
                target_layers=layers,
                perturbation=Perturbation(self.channels, progress=tell),
                **options,
            )
        finally:
            self.bar.remove_task(task)


@dataclass(frozen=True, slots=True)
class _Request:
    """What to do with every image."""

    out: Path
    options: dict[str, Any]
    layers: str | list[str] | None
    classes: Sequence[str]
    top_k: int
    view: Preprocessing | None
    colormap: str
    opacity: float


@dataclass(slots=True)
class _Results:
    """What became of every image."""

    images: list[dict[str, Any]] = field(default_factory=list)
    failed: list[tuple[Path, CamrtError]] = field(default_factory=list)


def explain(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[BUNDLE] IMAGE",
            help="A bundle (.onnx; left out: the model that comes with camrt), then image files or folders of them.",
            show_default=False,
        ),
    ] = None,
    sample: Annotated[bool, typer.Option("--sample", help="Explain the image that comes with camrt.")] = False,
    method: Annotated[
        str,
        typer.Option(
            help="CAM method: refinecam, which combines layers, or one for a single layer: gradcam, gradcam++, "
            "xgradcam, hirescam, gradcam_elementwise, layercam, cam, eigencam, eigengradcam, finercam, shapleycam; or "
            "scorecam, ablationcam, which run the model once a channel."
        ),
    ] = "refinecam",
    base: Annotated[
        str, typer.Option(help="Method of the layer maps that refinecam combines: any of the others.")
    ] = "gradcam++",
    fusion: Annotated[str, typer.Option(help="How refinecam combines the layer maps.")] = "product",
    layers: Annotated[
        str | None,
        typer.Option(
            help="Target layers, separated by commas; or all, top (coarsest and finest), above (two finest).",
            show_default="all for refinecam, else the coarsest",
        ),
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            help="Class to explain: index, name, or rank (-1 the prediction, -2 the second). Repeatable.",
            show_default="the prediction",
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Explain the k most probable classes.")] = 1,
    channels: Annotated[
        int | None,
        typer.Option(min=1, help="scorecam, ablationcam: most channels of a layer to try.", show_default="all"),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the overlays.")] = Path("explanations"),
    colormap: Annotated[str, typer.Option(help="Colours: turbo, jet, viridis, inferno or gray.")] = "turbo",
    opacity: Annotated[float, typer.Option(min=0, max=1, help="Opacity of the colours.")] = 0.6,
    output_size: Annotated[
        str, typer.Option(help="original: overlay on the original image; input: on what the model sees of it.")
    ] = "original",
    preprocess: Annotated[
        str | None,
        typer.Option(help="Preprocessing preset (imagenet, unit, ...).", show_default="what the bundle says"),
    ] = None,
    provider: Annotated[str, typer.Option(help="Execution provider that runs the bundle.")] = "cpu",
    threads: Annotated[int, typer.Option(min=0, help="Threads; 0 takes every core.")] = 0,
    backend: Annotated[str, typer.Option(help="Kernel backend: native, cuda, reference or auto.")] = "native",
    server: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Ask this server instead of running a bundle.", show_default=False),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="With --server: which of its models.", show_default="the only one")
    ] = None,
    tls: Annotated[bool, typer.Option("--tls", help="With --server: encrypt, and trust the system's authorities.")] = (
        False
    ),
    tls_ca: Annotated[Path | None, typer.Option(help="With --server: authorities to trust, PEM.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="With --server: certificate to show, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="With --server: its key, PEM.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="With --server: file with the bearer token.")] = None,
    timeout: Annotated[float, typer.Option(min=0.001, help="With --server: seconds an image may take.")] = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Explain images, here or on a server: an overlay of each, its class, probability and the time of each stage."""
    if output_size not in ("original", "input"):
        raise InvalidInputError(f"Unknown output size {output_size!r}.", "Choose original or input.")
    if classes and top_k != 1:
        raise InvalidInputError("--class and --top-k together.", "Give one of them; --class can be repeated.")
    bundle, images = _bundle_and_images(paths or [], sample)
    bar = _progress()
    if server is None:
        from camrt.explainer import Explainer

        source: _Source = _LocalSource(Explainer(bundle, provider, threads, backend, preprocess), channels, bar)
    else:
        _check_left_to_the_server(bundle, preprocess, provider, threads, backend, channels)
        source = RemoteSource(ServerOptions(server, model, tls, tls_ca, tls_cert, tls_key, token_file, timeout))
    request = _Request(
        out=out,
        options={"method": method, "base_method": base, "fusion": fusion},
        layers=parse_names(layers) if layers and "," in layers else layers,
        classes=classes or [],
        top_k=top_k,
        view=source.preprocessing if output_size == "input" else None,
        colormap=colormap,
        opacity=opacity,
    )
    _make_folder(out)
    results = _explain_all(source, images, request, bar)
    if as_json:
        failed = [{"image": str(path), "error": str(error)} for path, error in results.failed]
        print_json({"images": results.images, "failed": failed})
    for result in () if as_json else results.images:
        for explanation in result["explanations"]:
            _print_explanation(result["image"], explanation)
    for _, error in results.failed:
        print_error(error)
    raise typer.Exit(2 if results.failed else 0)


def _bundle_and_images(paths: Sequence[Path], sample: bool) -> tuple[Path | None, list[Path]]:
    bundle = paths[0] if paths and paths[0].suffix.lower() == ".onnx" else None
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


def _explain_all(source: _Source, images: Sequence[Path], request: _Request, bar: Progress) -> _Results:
    """Explains image after image; a bad image is noted and the others go on."""
    results = _Results()
    taken: set[Path] = set()
    with bar:
        task = bar.add_task("explaining", total=len(images), visible=len(images) > 1)
        for path in images:
            try:
                results.images.append(_explain_one(source, path, request, taken))
            except ImageError as error:
                results.failed.append((path, error))
            bar.advance(task)
    return results


def _explain_one(source: _Source, path: Path, request: _Request, taken: set[Path]) -> dict[str, Any]:
    from camrt.preprocess import load_image

    start = time.perf_counter()
    image = load_image(path)
    decode_seconds = time.perf_counter() - start
    size = "original" if request.view is None else "input"
    classes = [_class(text) for text in request.classes] or None
    found = source.explanations(path, image, classes, request.top_k, size, request.layers, request.options)
    background = image if request.view is None else request.view.view(image)[0]
    summaries = []
    for explanation in found:
        start = time.perf_counter()
        name = f"{path.stem}.{explanation.class_index}" if len(found) > 1 else path.stem
        overlay_path = _free_path(request.out, name, taken)
        _save(explanation.overlay(background, request.colormap, request.opacity), overlay_path)
        timings = {**explanation.timings, "decode": decode_seconds, "overlay": time.perf_counter() - start}
        summaries.append({**explanation.to_dict(), "timings": timings, "overlay": str(overlay_path)})
    return {"image": str(path), "explanations": summaries}


def _check_left_to_the_server(
    bundle: Path | None, preprocess: str | None, provider: str, threads: int, backend: str, channels: int | None
) -> None:
    given = bundle is not None or preprocess is not None or channels is not None
    if given or (provider, threads, backend) != ("cpu", 0, "native"):
        raise InvalidInputError(
            "With --server the bundle, --preprocess, --provider, --threads, --backend and --channels are the server's.",
            "Leave them out, or --server; --model chooses one of the server's models.",
        )


def _class(text: str) -> int | str:
    """A text that is a number is an index or a rank, and never a name."""
    try:
        return int(text)
    except ValueError:
        return text


def _free_path(folder: Path, name: str, taken: set[Path]) -> Path:
    """A file name that no other image of this run has; files of earlier runs are overwritten."""
    path, number = folder / f"{name}.overlay.png", 1
    while path in taken:
        number += 1
        path = folder / f"{name}-{number}.overlay.png"
    taken.add(path)
    return path


def _save(picture: Image.Image, path: Path) -> None:
    try:
        picture.save(path)
    except OSError as error:
        raise InvalidInputError(f"Cannot write {path}: {error.strerror or error}.", "Give another --out.") from error


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
