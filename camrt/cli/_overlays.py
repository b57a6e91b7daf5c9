"""Image after image into overlays: the work of ``camrt explain``, wherever its explanations come from."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from camrt.errors import CamrtError, ImageError, InvalidInputError

if TYPE_CHECKING:
    from PIL import Image
    from rich.progress import Progress

    from camrt.cli._sources import Source
    from camrt.preprocess import Preprocessing

FileIdentity: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Request:
    """What to do with every image.

    Attributes:
        out: folder for the overlays.
        options: method, base_method and fusion.
        layers: target layers.
        classes: to explain; None is the predicted one.
        top_k: most probable classes to explain.
        view: draws on what the model sees; None on the original image.
        colormap, opacity: of the overlays.
    """

    out: Path
    options: dict[str, Any]
    layers: str | list[str] | None
    classes: Sequence[int | str] | None
    top_k: int
    view: Preprocessing | None
    colormap: str
    opacity: float

    @property
    def output_size(self) -> Literal["original", "input"]:
        """Whose pixels the maps have."""
        return "original" if self.view is None else "input"


@dataclass(slots=True)
class Results:
    """What became of every image."""

    images: list[dict[str, Any]] = field(default_factory=list)
    failed: list[tuple[Path, CamrtError]] = field(default_factory=list)


class OverlayFiles:
    """Names for overlays. Files of earlier runs are overwritten; those of this run, and what it reads, are not.

    Args:
        folder: of the overlays.
        inputs: what this run reads.
    """

    def __init__(self, folder: Path, inputs: Iterable[Path]) -> None:
        self._folder = folder
        self._taken: set[Path] = set()
        self._inputs = {_identity(path): path for path in inputs}

    def free(self, name: str) -> Path:
        """A path that no other overlay of this run has.

        Raises:
            InvalidInputError: it leads to a file that this run reads.
        """
        path, number = self._folder / f"{name}.overlay.png", 1
        while path in self._taken:
            number += 1
            path = self._folder / f"{name}-{number}.overlay.png"
        self._taken.add(path)
        there = _identity(path)
        if there is not None and there in self._inputs:
            raise InvalidInputError(
                f"The overlay {path} would replace {self._inputs[there]}, which is read here.", "Give another --out."
            )
        return path


def explain_all(
    source: Source, images: Sequence[Path], request: Request, files: OverlayFiles, bar: Progress
) -> Results:
    """Explains image after image; a bad image is noted and the others go on."""
    results = Results()
    with bar:
        task = bar.add_task("explaining", total=len(images), visible=len(images) > 1)
        for path in images:
            try:
                results.images.append(_explain_one(source, path, request, files))
            except ImageError as error:
                results.failed.append((path, error))
            bar.advance(task)
    return results


def _explain_one(source: Source, path: Path, request: Request, files: OverlayFiles) -> dict[str, Any]:
    from camrt.preprocess import load_image

    start = time.perf_counter()
    image = load_image(path)
    decode_seconds = time.perf_counter() - start
    found = source.explanations(path, image, request)
    background = image if request.view is None else request.view.view(image)[0]
    summaries = []
    for explanation in found:
        start = time.perf_counter()
        name = f"{path.stem}.{explanation.class_index}" if len(found) > 1 else path.stem
        overlay_path = files.free(name)
        _save(explanation.overlay(background, request.colormap, request.opacity), overlay_path)
        timings = {**explanation.timings, "decode": decode_seconds, "overlay": time.perf_counter() - start}
        summaries.append({**explanation.to_dict(), "timings": timings, "overlay": str(overlay_path)})
    return {"image": str(path), "explanations": summaries}


def _identity(path: Path) -> FileIdentity | None:
    """What every name of a file has in common; None where there is no file."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _save(picture: Image.Image, path: Path) -> None:
    try:
        picture.save(path)
    except OSError as error:
        raise InvalidInputError(f"Cannot write {path}: {error.strerror or error}.", "Give another --out.") from error
