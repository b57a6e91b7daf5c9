"""The best and the worst images of a run, with overlays, as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from camrt.cam import REFINECAM
from camrt.datasets import DatasetItem, to_input
from camrt.errors import ImageError
from camrt.evaluation.analysis import Analysis
from camrt.evaluation.explainers import ExplainerSpec
from camrt.evaluation.report.tables import number
from camrt.evaluation.session import EvaluationSession
from camrt.metrics import METRICS
from camrt.overlay import overlay
from camrt.types import BoolArray

_EACH_SIDE = 4
_LARGEST_SIDE = 280
_QUALITY = 88
_OUTLINE = (255, 255, 255)


@dataclass(frozen=True, slots=True)
class GalleryItem:
    """One image.

    Attributes:
        name: its id.
        rank: 1 is the best.
        caption: class, probability and group.
        pictures: (title, data URI) of the image with the object's outline, then of an overlay an explainer.
        is_best: among the best, or the worst.
    """

    name: str
    rank: int
    caption: str
    pictures: Sequence[tuple[str, str]]
    is_best: bool


def shown_explainers(analysis: Analysis) -> list[ExplainerSpec]:
    """Whose overlays are shown: the explainer that images are sorted by, then its base method alone.

    The first is the best refinecam, or else the best of all that are no baseline.
    """
    ranked = [row.explainer for row in analysis.ranking]
    specs = [spec for spec in ranked if not spec.is_baseline] or ranked
    first = next((spec for spec in ranked if spec.method == REFINECAM), specs[0])
    alone = [spec for spec in analysis.scores.explainers if spec.method == first.base_method]
    return [first, *alone[:1]]


def make_gallery(session: EvaluationSession, analysis: Analysis) -> list[GalleryItem]:
    """The four best and the four worst images by the main metric of the first shown explainer, best first."""
    specs = [spec for spec in shown_explainers(analysis) if not spec.is_baseline]
    if not specs:
        return []
    scores = analysis.scores
    column = scores.metric(analysis.main_metric)[:, scores.explainers.index(specs[0])]
    sign = 1 if METRICS[analysis.main_metric].higher_is_better else -1
    order = [int(row) for row in np.argsort(-sign * column, kind="stable") if not np.isnan(column[row])]
    best = order[: min(_EACH_SIDE, (len(order) + 1) // 2)]
    worst = order[max(len(best), len(order) - _EACH_SIDE) :]
    by_id = {item.item_id: item for item in session.items}
    shown = []
    for rank, row in enumerate(order, 1):
        if row in best or row in worst:
            item = _make_item(session, analysis, specs, row, rank, by_id[scores.items[row]], row in best)
            shown += [] if item is None else [item]
    return shown


def _make_item(
    session: EvaluationSession,
    analysis: Analysis,
    specs: Sequence[ExplainerSpec],
    row: int,
    rank: int,
    item: DatasetItem,
    is_best: bool,
) -> GalleryItem | None:
    """None where the image has become unreadable since it was measured."""
    try:
        sample = item.load()
        tensor, mask = to_input(sample, session.preprocessing)
        view = session.preprocessing.view(sample.image)[0]
    except ImageError:
        return None
    scores = analysis.scores
    class_index = int(scores.class_index[row])
    pictures = [("image" if mask is None else "image and object", _data_uri(_outlined(view, mask)))]
    for spec in specs:
        (explanation,) = session.explainer.explain(
            tensor[None],
            class_index,
            method=spec.method,
            base_method=spec.base_method or spec.method,
            fusion=spec.fusion or "product",
            target_layers=spec.layers,
            perturbation=session.perturbation,
        )
        own = scores.metric(analysis.main_metric)[row, scores.explainers.index(spec)]
        title = f"{spec.label}: {analysis.main_metric} {number(own)}"
        pictures.append((title, _data_uri(overlay(view, explanation.saliency_map))))
    name = session.explainer.manifest.class_name(class_index)
    caption = f"class {class_index if name is None else name}, probability {scores.probability[row]:.3f}"
    caption += {1.0: "", 0.0: ", predicted wrongly"}.get(float(scores.correct[row]), "")
    caption += f", {item.group}" if item.group else ""
    return GalleryItem(item.item_id, rank, caption, pictures, is_best)


def _outlined(view: Image.Image, mask: BoolArray | None) -> Image.Image:
    """The image with a white line around the object."""
    if mask is None:
        return view
    padded = np.pad(mask, 1)
    around = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    pixels = np.array(view)
    pixels[around & ~mask] = _OUTLINE
    return Image.fromarray(pixels)


def _data_uri(picture: Image.Image) -> str:
    picture.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
