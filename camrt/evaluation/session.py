"""An evaluation with everything opened and checked: model, data, explainers and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from camrt import __version__
from camrt.bundle import file_sha256
from camrt.cam import Perturbation
from camrt.datasets import Dataset, DatasetItem, FolderDataset, ShapesDataset
from camrt.errors import InvalidInputError
from camrt.evaluation.config import ConfigError, EvaluationConfig
from camrt.evaluation.explainers import ExplainerSpec, make_explainers
from camrt.explainer import Explainer, embedded_bundle_path
from camrt.metrics import METRICS, get_metric
from camrt.preprocess import Preprocessing

DEFAULT_METRICS = ("arcc", "coherency", "complexity", "road")
DEFAULT_MASK_METRICS = ("mass_iou", "roc_auc", "pointing_game")


@dataclass(frozen=True, slots=True)
class EvaluationSession:
    """What a run measures, and with what.

    Attributes:
        config: as asked for.
        explainer: the model.
        preprocessing: of images.
        dataset: the data.
        items: those of its items that are evaluated.
        specs: the explainers.
        metrics: names, in the order of METRICS.
        bundle_sha256: digest of the bundle's file.
    """

    config: EvaluationConfig
    explainer: Explainer
    preprocessing: Preprocessing
    dataset: Dataset
    items: Sequence[DatasetItem]
    specs: tuple[ExplainerSpec, ...]
    metrics: tuple[str, ...]
    bundle_sha256: str

    @classmethod
    def open(cls, config: EvaluationConfig) -> EvaluationSession:
        """Opens the bundle and the data, and checks every name.

        Raises:
            CamrtError: a file or name cannot be used.
        """
        path = embedded_bundle_path() if config.bundle is None else Path(config.bundle)
        explainer = Explainer(path, config.provider, config.threads, config.backend, config.preprocess)
        preprocessing = explainer.preprocessing
        if preprocessing is None:
            raise InvalidInputError(
                "The bundle does not say how images become tensors.", "Give --preprocess, e.g. imagenet."
            )
        specs = make_explainers(config, explainer.manifest)
        dataset = _open_dataset(config, explainer, preprocessing)
        return cls(
            config=config,
            explainer=explainer,
            preprocessing=preprocessing,
            dataset=dataset,
            items=_chosen(dataset.items, config),
            specs=specs,
            metrics=_metrics(config, dataset.has_masks),
            bundle_sha256=file_sha256(path),
        )

    @property
    def chunks(self) -> int:
        """Number of chunks of at most batch_size items."""
        return -(-len(self.items) // self.config.batch_size)

    @property
    def perturbation(self) -> Perturbation:
        """What scorecam and ablationcam may spend."""
        return Perturbation(self.config.channels)

    def chunk(self, number: int) -> Sequence[DatasetItem]:
        """The items of a chunk."""
        start = number * self.config.batch_size
        return self.items[start : start + self.config.batch_size]

    def identity(self) -> dict[str, Any]:
        """What the measurements depend on, of types that JSON has; a run is resumed only with the same."""
        config = self.config
        return {
            "camrt": __version__,
            "bundle": self.bundle_sha256,
            "data": {"name": self.dataset.name, "items": len(self.dataset.items), "files": self.dataset.fingerprint},
            "limit": config.limit,
            "channels": config.channels,
            "preprocessing": asdict(self.preprocessing),
            "explainers": [list(spec.key) for spec in self.specs],
            "metrics": list(self.metrics),
            "class": config.class_choice,
            "target": config.target,
            "seed": config.seed,
            "batch_size": config.batch_size,
            "provider": config.provider,
            "backend": config.backend,
        }


def _open_dataset(config: EvaluationConfig, explainer: Explainer, preprocessing: Preprocessing) -> Dataset:
    manifest = explainer.manifest
    if config.synthetic:
        return ShapesDataset(config.split, config.images, preprocessing.size, manifest.class_names)
    masks = None if config.masks is None else Path(config.masks)
    return FolderDataset(Path(config.data or ""), manifest.class_names, manifest.num_classes, masks)


def _chosen(items: Sequence[DatasetItem], config: EvaluationConfig) -> Sequence[DatasetItem]:
    """All items, or ``limit`` of them drawn at random, in their order."""
    if config.limit is None or config.limit >= len(items):
        return items
    drawn = np.random.default_rng(config.seed).choice(len(items), config.limit, replace=False)
    return [items[index] for index in np.sort(drawn)]


def _metrics(config: EvaluationConfig, has_masks: bool) -> tuple[str, ...]:
    if config.metrics is None and config.synthetic:
        return tuple(METRICS)
    wanted = config.metrics or DEFAULT_METRICS + (DEFAULT_MASK_METRICS if has_masks else ())
    blind = [metric.name for metric in map(get_metric, wanted) if metric.needs_object_mask and not has_masks]
    if blind:
        raise ConfigError(f"{', '.join(blind)} compare with object masks.", "Give --masks, or leave them out.")
    return tuple(name for name in METRICS if name in wanted)
