"""What to evaluate, from flags or a YAML file, with every key and type checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from camrt.cam import LAYER_CHOICES
from camrt.errors import InvalidInputError
from camrt.evaluation.optional import require

EACH = "each"
_MAX_SEED = 2**63 - 1  # the table of measurements holds it
NO_BASELINES = ("none",)
CLASS_CHOICES = ("predicted", "label")
TARGETS = ("probability", "logit")

LayerChoice: TypeAlias = tuple[str, ...]
"""One keyword (all, top, above, each), or names of layers."""


class ConfigError(InvalidInputError):
    """A key or value of an evaluation's configuration is wrong."""


@dataclass(frozen=True, slots=True)
class ExplainerEntry:
    """One explainer of the list ``explainers``; with ``baseline`` no other field.

    Attributes:
        method, base_method, fusion: as in Explainer.explain.
        layers: keyword or names.
        baseline: a key of BASELINES.
    """

    method: str | None = None
    base_method: str | None = None
    fusion: str | None = None
    layers: LayerChoice | None = None
    baseline: str | None = None


@dataclass(frozen=True, slots=True)
class EvaluationConfig:
    """An evaluation. Field names are the keys of the YAML file; None is the default of each.

    Attributes:
        bundle: path of the bundle; None is the embedded model.
        data: folder of images; None with ``synthetic``.
        masks: folder of object masks.
        synthetic: evaluate the synthetic shapes.
        split, images: of the synthetic shapes.
        methods, base_methods, fusions, layers: the grid of explainers, see make_explainers.
        explainers: exactly these explainers, in place of the grid.
        baselines: keys of BASELINES; ("none",) leaves out those of the synthetic benchmark.
        metrics: keys of METRICS; None takes all for the synthetic benchmark, else arcc and its parts, with masks also
            mass_iou, roc_auc and pointing_game.
        class_choice: "predicted", or "label": which class is explained.
        target: "probability" or "logit": what metrics ask the model for.
        seed: of metrics, baselines, the choice of ``limit`` images and the bootstrap.
        limit: at most so many images, drawn at random.
        channels: most channels of a layer that scorecam and ablationcam try; None is all.
        batch_size: images at a time.
        resamples: of the bootstrap.
        threads, provider, backend, preprocess: as in Explainer.
        name: the run's name in the report.
        out: the run's folder.
    """

    bundle: str | None = None
    data: str | None = None
    masks: str | None = None
    synthetic: bool = False
    split: str = "test"
    images: int = 90
    methods: tuple[str, ...] | None = None
    base_methods: tuple[str, ...] | None = None
    fusions: tuple[str, ...] | None = None
    layers: tuple[LayerChoice, ...] | None = None
    explainers: tuple[ExplainerEntry, ...] | None = None
    baselines: tuple[str, ...] | None = None
    metrics: tuple[str, ...] | None = None
    class_choice: str = "predicted"
    target: str = "probability"
    seed: int = 0
    limit: int | None = None
    channels: int | None = None
    batch_size: int = 16
    resamples: int = 1000
    threads: int = 0
    provider: str = "cpu"
    backend: str = "native"
    preprocess: str | None = None
    name: str | None = None
    out: str = "evaluation"

    @property
    def asks_for_methods(self) -> bool:
        """Whether any axis of the grid was given."""
        return any((self.methods, self.base_methods, self.fusions, self.layers))

    @classmethod
    def from_mapping(cls, fields: Mapping[str, Any]) -> EvaluationConfig:
        """The configuration that ``fields`` (plain text, numbers and lists) describe; None counts as left out.

        Raises:
            ConfigError: an unknown key, a value of another type, or keys that exclude each other.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for key in fields:
            if key not in known:
                raise ConfigError(f"Unknown key {key!r} in the configuration.", f"The keys are {', '.join(known)}.")
        values = {key: _PARSERS[key](key, value) for key, value in fields.items() if value is not None}
        config = cls(**values)
        config._check()
        return config

    def _check(self) -> None:
        if self.synthetic and self.data is not None:
            raise ConfigError("Both a data folder and synthetic are given.", "Give one of them.")
        if not self.synthetic and self.data is None:
            raise ConfigError("There is nothing to evaluate on.", "Give a folder of images, or --synthetic.")
        if self.synthetic and self.masks is not None:
            raise ConfigError("masks belong to a folder of images.", "The synthetic shapes have their own.")
        if self.explainers and self.asks_for_methods:
            raise ConfigError("Both explainers and a grid of methods are given.", "Give one of them.")


def read_config(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
        ConfigError: it cannot be read, or is no YAML mapping.
        MissingPackageError: PyYAML is not installed.
    """
    yaml = require("yaml")
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}.", "Check the path.") from error
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path} is no YAML ({' '.join(str(error).split())}).", "Check the file.") from error
    if not isinstance(fields, dict):
        raise ConfigError(f"{path} holds no YAML mapping.", "Write one key a line, for example: synthetic: true")
    return {str(key): value for key, value in fields.items()}


def parse_layers(key: str, value: object) -> tuple[LayerChoice, ...]:
    """Choices of layers: each a keyword, names separated by commas, or a list of names."""
    choices: list[LayerChoice] = []
    keywords = {*LAYER_CHOICES, EACH}
    for item in value if isinstance(value, list | tuple) else [value]:
        names = _names(key, item)
        if set(names) <= keywords:
            choices += [(name,) for name in names]
        elif keywords & set(names):
            raise ConfigError(
                f"{key} mixes {', '.join(sorted(keywords & set(names)))} with names of layers: {', '.join(names)}.",
                "Give them as separate choices.",
            )
        else:
            choices.append(names)
    if not choices:
        raise ConfigError(f"{key} is empty.", f"Choose {', '.join(sorted(keywords))}, or name layers.")
    return tuple(choices)


def _entries(key: str, value: object) -> tuple[ExplainerEntry, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        raise ConfigError(f"{key} is {value!r}.", "Write a list of mappings, for example: - method: gradcam")
    return tuple(_entry(f"{key}[{number}]", item) for number, item in enumerate(value))


def _entry(key: str, fields: dict[Any, Any]) -> ExplainerEntry:
    known = [field.name for field in dataclasses.fields(ExplainerEntry)]
    values: dict[str, Any] = {}
    for name, value in fields.items():
        if name not in known:
            raise ConfigError(f"Unknown key {key}.{name}.", f"The keys are {', '.join(known)}.")
        if name == "layers":
            one = [",".join(_names(f"{key}.{name}", value))] if isinstance(value, list) else value
            choices = parse_layers(f"{key}.{name}", one)
            if len(choices) != 1:
                raise ConfigError(f"{key}.layers is {value!r}.", "Give one choice an explainer.")
            values[name] = choices[0]
        else:
            values[name] = _text(f"{key}.{name}", value)
    if not values or ("baseline" in values and len(values) > 1):
        raise ConfigError(f"{key} is {fields!r}.", "Give a baseline, or a method and what belongs to it.")
    return ExplainerEntry(**values)


def _text(key: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{key} is {value!r}.", "Give a text.")
    return value


def _flag(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{key} is {value!r}.", "Give true or false.")
    return value


def _number(least: int, most: int | None = None) -> Callable[[str, object], int]:
    def parse(key: str, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{key} is {value!r}.", f"Give an integer, {least} or more.")
        if most is not None and value > most:
            raise ConfigError(f"{key} is {value!r}.", f"Give an integer, {most} or less.")
        return value

    return parse


def _choice(*choices: str) -> Callable[[str, object], str]:
    def parse(key: str, value: object) -> str:
        if value not in choices:
            raise ConfigError(f"{key} is {value!r}.", f"Choose one of {', '.join(choices)}.")
        return str(value)

    return parse


def _names(key: str, value: object) -> tuple[str, ...]:
    """Names from a text with commas, or from a list of such texts, each once."""
    items = value if isinstance(value, list | tuple) else [value]
    names = [name.strip() for item in items for name in _text(key, item).split(",") if name.strip()]
    if not names:
        raise ConfigError(f"{key} is {value!r}.", "Give one or more names.")
    return tuple(dict.fromkeys(names))


_PARSERS: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(("bundle", "data", "masks", "split", "provider", "backend", "preprocess", "name", "out"), _text),
    **dict.fromkeys(("methods", "base_methods", "fusions", "baselines", "metrics"), _names),
    **dict.fromkeys(("images", "limit", "channels", "batch_size", "resamples"), _number(1)),
    "seed": _number(0, _MAX_SEED),
    "threads": _number(0),
    "synthetic": _flag,
    "layers": parse_layers,
    "explainers": _entries,
    "class_choice": _choice(*CLASS_CHOICES),
    "target": _choice(*TARGETS),
}
