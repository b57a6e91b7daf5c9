"""What is evaluated: every explainer as one hashable value, made from methods x base methods x fusions x layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from camrt.bundle import Manifest
from camrt.cam import (
    DEFAULT_BASE,
    DEFAULT_FUSION,
    DEFAULT_ORDER,
    GRADIENT_METHODS,
    LAYER_CHOICES,
    REFINECAM,
    make_plan,
)
from camrt.errors import InvalidInputError
from camrt.evaluation.baselines import baseline
from camrt.evaluation.config import EACH, NO_BASELINES, EvaluationConfig, ExplainerEntry
from camrt.kernels.backend import FUSIONS

DEFAULT_METHODS = (REFINECAM, "gradcam", "gradcam++", "layercam")
BENCHMARK_BASELINES = ("random", "ones", "half", "center")


@dataclass(frozen=True, slots=True)
class ExplainerSpec:
    """One explainer.

    Attributes:
        method: "refinecam", a key of CAM_METHODS, or a key of BASELINES.
        base_method, fusion: with refinecam; else None.
        layers: names of the layers it explains, coarse to fine; empty for a baseline.
        shown_layers: how the layers were chosen, for people: "all", "top", or the names.
        is_baseline: whether it knows nothing about the model.
    """

    method: str
    base_method: str | None
    fusion: str | None
    layers: tuple[str, ...]
    shown_layers: str
    is_baseline: bool = False

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What tells it apart in the table of measurements: method, base method, fusion, layers."""
        return self.method, self.base_method or "", self.fusion or "", ",".join(self.layers)

    @property
    def label(self) -> str:
        """For people, e.g. "refinecam(gradcam++, product) all" or "gradcam stage4"."""
        if self.is_baseline:
            return self.method
        name = f"{self.method}({self.base_method}, {self.fusion})" if self.method == REFINECAM else self.method
        return f"{name} {self.shown_layers}"


def make_explainers(config: EvaluationConfig, manifest: Manifest) -> tuple[ExplainerSpec, ...]:
    """The explainers that a configuration asks for, each once.

    With entries of its own (``explainers``) exactly those, the layers of a method coarse to fine; else the grid of its
    methods; else, for the synthetic benchmark, ``benchmark_grid``. Baselines come last. refinecam is combined with
    every choice of layers but "each"; a plain method explains one layer: every layer with "each", every layer that is
    named, else the coarsest.

    Raises:
        MethodNotFoundError, LayerNotFoundError, InvalidInputError: a name that is not there.
    """
    specs: list[ExplainerSpec] = []
    baselines = config.baselines
    if config.explainers:
        for entry in config.explainers:
            specs += _entry_specs(manifest, entry)
        specs = _coarse_to_fine(manifest, specs)
    elif config.asks_for_methods or not config.synthetic:
        specs += _grid(
            manifest,
            config.methods or DEFAULT_METHODS,
            config.base_methods or (DEFAULT_BASE,),
            config.fusions or (DEFAULT_FUSION,),
            config.layers or (),
        )
    else:
        specs += benchmark_grid(manifest)
        baselines = BENCHMARK_BASELINES if baselines is None else baselines
    if baselines != NO_BASELINES:
        specs += [baseline_spec(name) for name in baselines or ()]
    if not specs:
        raise InvalidInputError("There is no explainer to evaluate.", "Name methods or baselines.")
    unique: dict[tuple[str, str, str, str], ExplainerSpec] = {}
    for spec in specs:
        unique.setdefault(spec.key, spec)
    return tuple(unique.values())


def _coarse_to_fine(manifest: Manifest, specs: Sequence[ExplainerSpec]) -> list[ExplainerSpec]:
    """Methods in the order in which they were asked for, each by its coarsest layer first."""
    families = list(dict.fromkeys((spec.method, spec.base_method, spec.fusion) for spec in specs))

    def place(spec: ExplainerSpec) -> tuple[int, int]:
        coarsest = min(map(manifest.layer_names.index, spec.layers), default=-1)
        return families.index((spec.method, spec.base_method, spec.fusion)), coarsest

    return sorted(specs, key=place)


def benchmark_grid(manifest: Manifest) -> list[ExplainerSpec]:
    """Every gradient method at every layer, refinecam over each of them, every fusion and every choice of layers."""
    layers = [choice for choice in LAYER_CHOICES if len(manifest.layer_names) > 2 or choice == "all"]
    return [
        *_grid(manifest, GRADIENT_METHODS, (), (), ((EACH,),)),
        *_grid(manifest, (REFINECAM,), GRADIENT_METHODS, (DEFAULT_FUSION,), (("all",),)),
        *_grid(manifest, (REFINECAM,), (DEFAULT_BASE,), FUSIONS, (("all",),)),
        *_grid(manifest, (REFINECAM,), (DEFAULT_BASE,), (DEFAULT_FUSION,), tuple((choice,) for choice in layers)),
    ]


def baseline_spec(name: str) -> ExplainerSpec:
    """The baseline called ``name``.

    Raises:
        MethodNotFoundError: there is none.
    """
    baseline(name)
    return ExplainerSpec(name, None, None, (), "", is_baseline=True)


def _entry_specs(manifest: Manifest, entry: ExplainerEntry) -> list[ExplainerSpec]:
    if entry.baseline is not None:
        return [baseline_spec(entry.baseline)]
    layers = () if entry.layers is None else (entry.layers,)
    base, fusion = entry.base_method or DEFAULT_BASE, entry.fusion or DEFAULT_FUSION
    return _grid(manifest, (entry.method or REFINECAM,), (base,), (fusion,), layers)


def _grid(
    manifest: Manifest,
    methods: Sequence[str],
    bases: Sequence[str],
    fusions: Sequence[str],
    layers: Sequence[tuple[str, ...]],
) -> list[ExplainerSpec]:
    specs = []
    for method in methods:
        if method == REFINECAM:
            choices = [choice for choice in layers if choice != (EACH,)] or [("all",)]
            specs += [
                _spec(manifest, method, base, fusion, choice)
                for base in bases
                for fusion in fusions
                for choice in choices
            ]
        else:
            specs += [
                _spec(manifest, method, DEFAULT_BASE, DEFAULT_FUSION, (name,)) for name in _single(manifest, layers)
            ]
    return specs


def _single(manifest: Manifest, layers: Iterable[tuple[str, ...]]) -> list[str]:
    """The single layers that choices name for a plain method, coarse to fine."""
    wanted: set[str] = set()
    for choice in layers:
        if choice == (EACH,):
            wanted.update(manifest.layer_names)
        elif choice[0] not in LAYER_CHOICES:
            wanted.update(manifest.layer(name).name for name in choice)
    return [name for name in manifest.layer_names if name in wanted] or [manifest.layer_names[0]]


def _spec(manifest: Manifest, method: str, base: str, fusion: str, choice: tuple[str, ...]) -> ExplainerSpec:
    is_keyword = len(choice) == 1 and choice[0] in LAYER_CHOICES
    plan = make_plan(manifest, method, base, fusion, choice[0] if is_keyword else list(choice), DEFAULT_ORDER)
    shown = choice[0] if is_keyword else "+".join(plan.layers)
    if plan.refines:
        return ExplainerSpec(method, plan.base.name, plan.fusion, plan.layers, shown)
    return ExplainerSpec(method, None, None, plan.layers, shown)
