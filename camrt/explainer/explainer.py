"""``Explainer``: images in, explanations and their scores out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

from camrt.bundle import MAX_RANK
from camrt.cam import DEFAULT_BASE, DEFAULT_FUSION, DEFAULT_ORDER, REFINECAM, Perturbation, Plan, make_plan
from camrt.cam.method import MapRequest
from camrt.errors import ClassIndexError, InvalidInputError
from camrt.explainer.arguments import (
    as_list,
    checked_size,
    checked_tensor,
    chosen_preprocessing,
    image_numbers,
    whole_number,
)
from camrt.explainer.assembly import MadeMaps, assembled
from camrt.explainer.batch import BatchResult
from camrt.explainer.checked_session import CheckedSession
from camrt.explainer.clock import Clock
from camrt.explainer.evaluator import Evaluator
from camrt.explainer.on_device import leaves_arrays_on_device, made_on_device, runs_on_device
from camrt.explanation import Explanation
from camrt.kernels import as_numpy, get_backend
from camrt.preprocess import ImageLike, Preprocessing, load_image
from camrt.runtime import open_session
from camrt.runtime.session import Session
from camrt.types import FloatArray, IntArray, SessionOutputs

ClassLike: TypeAlias = "int | str"
OutputSize: TypeAlias = "str | tuple[int, int]"

PREDICTED = -1


def embedded_bundle_path() -> Path:
    """The bundle that ships with camrt: a small CNN that tells six synthetic shapes apart."""
    return Path(str(files("camrt") / "data" / "shapes.onnx"))


def sample_image_path() -> Path:
    """An image for the embedded bundle."""
    return Path(str(files("camrt") / "data" / "sample.png"))


class Explainer(Evaluator):
    """Explains the decisions of one classifier. Safe to call from several threads.

    Args:
        path: the bundle; None opens the embedded one.
        provider: execution provider of the model, see camrt.runtime.open_session.
        threads: threads of the model and of the kernels; 0 = one a core.
        backend: kernel backend, see camrt.kernels.get_backend.
        preprocess: how images become tensors, in place of what the bundle says.

    Attributes:
        preprocessing: how images become tensors, or None where nobody said.

    Raises:
        InvalidModelError, BundleError: the bundle cannot be used.
        BackendUnavailableError: the provider or backend cannot be used here.
        InvalidInputError: ``preprocess`` does not make the tensors that the bundle takes.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        provider: str = "cpu",
        threads: int = 0,
        backend: str = "native",
        preprocess: str | Preprocessing | None = None,
    ) -> None:
        session = open_session(embedded_bundle_path() if path is None else path, provider, threads)
        super().__init__(session, get_backend(backend, threads))
        self.preprocessing = chosen_preprocessing(preprocess, self.manifest)

    def predict(self, inputs: FloatArray) -> FloatArray:
        """Logits (N, K) of preprocessed images (N, C, H, W), float32."""
        return self._session.predict(checked_tensor(inputs))

    def explain(
        self,
        inputs: FloatArray,
        class_indices: ClassLike | Sequence[ClassLike] | IntArray | None = None,
        method: str = REFINECAM,
        base_method: str = DEFAULT_BASE,
        fusion: str = DEFAULT_FUSION,
        target_layers: str | Sequence[str] | None = None,
        output_size: tuple[int, int] | None = None,
        order: str = DEFAULT_ORDER,
        perturbation: Perturbation | None = None,
    ) -> list[Explanation]:
        """Explains preprocessed images.

        Args:
            inputs: (N, C, H, W) float32, as the model takes them.
            class_indices: the classes to explain: one an image, or M classes of one image. A class index, a class name,
                or -r for the class with the r-th highest logit. One value counts for every image; None explains the
                predicted classes.
            method: "refinecam", or a key of CAM_METHODS.
            base_method: with refinecam, the method of its layer maps.
            fusion: with refinecam, how the layers are combined: product, geometric, log_exp, exp_mean, mean, max.
            target_layers: names of the bundle's layers, or "all", "top" (coarsest and finest), "above" (two finest).
                Default: all with refinecam, the coarsest with another method, which explains one layer.
            output_size: (H, W) of the saliency maps; default the size of the inputs.
            order: "normalize_twice", or "resize_once" (resize to the finest layer before fusing).
            perturbation: channels, memory and progress of scorecam and ablationcam, which run the model once a channel.

        Returns:
            One explanation a class: N, or M for one image.

        Raises:
            InvalidInputError: inputs of a wrong shape or dtype, or not finite.
            ClassIndexError, LayerNotFoundError, MethodNotFoundError: a name or number that is not there.
            MethodUnavailableError: the bundle or a layer lacks what the method needs.
        """
        plan = make_plan(self.manifest, method, base_method, fusion, target_layers, order, perturbation)
        inputs = checked_tensor(inputs)
        size = (int(inputs.shape[2]), int(inputs.shape[3])) if output_size is None else checked_size(output_size)
        return self._explain(inputs, self.resolve_classes(class_indices, len(inputs)), plan, size, Clock())

    def explain_images(
        self,
        images: ImageLike | Sequence[ImageLike],
        class_indices: ClassLike | Sequence[ClassLike] | IntArray | None = None,
        method: str = REFINECAM,
        base_method: str = DEFAULT_BASE,
        fusion: str = DEFAULT_FUSION,
        target_layers: str | Sequence[str] | None = None,
        output_size: OutputSize = "original",
        order: str = DEFAULT_ORDER,
        top_k: int = 1,
        batch_size: int = 8,
        perturbation: Perturbation | None = None,
    ) -> list[Explanation]:
        """Explains images: decodes and preprocesses them, and brings the maps back to their pixels.

        Args:
            images: paths, encoded bytes, PIL images or uint8 arrays (H, W, 3); one or several.
            class_indices: as in explain, one an image, or several for a single image.
            method: as in explain.
            base_method: as in explain.
            fusion: as in explain.
            target_layers: as in explain.
            order: as in explain.
            output_size: "original" (each map in the pixels of its image, zero where the model did not look), "input"
                (the model's input size), or (H, W) of the model's view.
            top_k: explains the top_k most probable classes of every image; not together with class_indices.
            batch_size: images a run.
            perturbation: as in explain.

        Returns:
            One explanation an image, or top_k of them, image after image.

        Raises:
            ImageError: an image cannot be read.
            InvalidInputError: the bundle does not say how images are preprocessed, or as in explain.
        """
        if not (isinstance(output_size, str) and output_size in ("original", "input")):
            output_size = checked_size(output_size)
        top_k, batch_size = whole_number(top_k, "top_k"), whole_number(batch_size, "batch_size")
        if batch_size < 1:
            raise InvalidInputError(f"batch_size is {batch_size}.", "Give 1 or more.")
        plan = make_plan(self.manifest, method, base_method, fusion, target_layers, order, perturbation)
        sources = as_list(images)
        if top_k != 1:
            wanted = self._ranks(class_indices, top_k)
            return [
                explanation
                for source in sources
                for explanation in self._explain_views([source], wanted, plan, output_size)
            ]
        classes = self.resolve_classes(class_indices, len(sources))
        if len(sources) == 1:
            return self._explain_views(sources, classes, plan, output_size)
        if len(classes) != len(sources):
            raise ClassIndexError(f"{len(classes)} classes for {len(sources)} images.", "Give one an image.")
        return [
            explanation
            for start in range(0, len(sources), batch_size)
            for explanation in self._explain_views(
                sources[start : start + batch_size], classes[start : start + batch_size], plan, output_size
            )
        ]

    def preprocess_images(self, images: ImageLike | Sequence[ImageLike]) -> FloatArray:
        """The tensor (N, C, H, W) that explain_images would explain, float32: decoded and preprocessed images.

        Raises:
            ImageError: an image cannot be read.
            InvalidInputError: the bundle does not say how images are preprocessed.
        """
        tensors = [self._view(load_image(image))[0] for image in as_list(images)]
        return np.stack(tensors) if tensors else np.empty((0, *self.manifest.input_shape), np.float32)

    def resolve_classes(self, classes: ClassLike | Sequence[ClassLike] | IntArray | None, batch: int) -> IntArray:
        """Class indices (M,) int64 of what callers write: None, one index or name, or several.

        Raises:
            ClassIndexError: an unknown name, something that is not a class, or no class at all for ``batch`` images.
        """
        if classes is None:
            return np.full(batch, PREDICTED, np.int64)
        if isinstance(classes, int | np.integer | str):
            return np.full(batch, self.manifest.class_index(classes), np.int64)
        if not isinstance(classes, Iterable) or (isinstance(classes, np.ndarray) and classes.ndim != 1):
            raise ClassIndexError(f"{classes!r} is no class, and no list of classes.", "Give indices, names or ranks.")
        found = [self.manifest.class_index(item) for item in classes]
        if batch and not found:
            raise ClassIndexError("class_indices is empty.", "Name a class, or leave it out for the predicted one.")
        return np.asarray(found, np.int64)

    def _ranks(self, class_indices: object, top_k: int) -> IntArray:
        if class_indices is not None:
            raise ClassIndexError("top_k and class_indices exclude each other.", "Give one of them.")
        most = min(self.manifest.num_classes, MAX_RANK)
        if not 1 <= top_k <= most:
            raise ClassIndexError(
                f"top_k is {top_k}; the model has {self.manifest.num_classes} classes.", f"Give a number in 1..{most}."
            )
        return -np.arange(1, top_k + 1, dtype=np.int64)

    def prepare(self, plan: Plan) -> None:
        """Opens what explanations of ``plan`` need, if it is not open yet, so that the first one is as fast as any."""
        self._session.prepare(plan.layers, plan.base.derivatives)

    def explain_batch(
        self,
        inputs: FloatArray,
        class_indices: IntArray,
        plan: Plan,
        checkpoint: Callable[[], None] | None = None,
    ) -> BatchResult:
        """Explains preprocessed images, as explain does, and returns the logits too: what a server runs.

        Args:
            inputs: (N, C, H, W) float32.
            class_indices: (N,) int64, or any M of one image; -r is the class with the r-th highest logit.
            plan: from camrt.cam.make_plan.
            checkpoint: called before every run of the model; what it raises ends the work. Expensive methods run the
                model often.

        Raises:
            InvalidInputError, ClassIndexError: as explain.
        """
        inputs, clock = checked_tensor(inputs), Clock()
        size = int(inputs.shape[2]), int(inputs.shape[3])
        session = self._session if checkpoint is None else CheckedSession(self._session, checkpoint)
        explanations, logits = self._run(session, inputs, class_indices, plan, size, clock)
        seconds = clock.shared(1)
        return BatchResult(explanations, logits, seconds["inference"], seconds["kernels"])

    def layer_outputs(self, inputs: FloatArray, class_indices: IntArray, layers: Sequence[str]) -> SessionOutputs:
        """Logits, and activations and gradients of some target layers: what maps are made from.

        Args:
            inputs: (N, C, H, W) float32.
            class_indices: (N,) int64, or any M of one image.
            layers: names of target layers.

        Raises:
            InvalidInputError, ClassIndexError, LayerNotFoundError: as explain.
        """
        return self._session.run(checked_tensor(inputs), class_indices, layers)

    def to_original(self, explanation: Explanation, affine: FloatArray, size: tuple[int, int]) -> Explanation:
        """The explanation with its map in the pixels of the original image, zero where the model did not look.

        Args:
            explanation: its map at the model's input size.
            affine: what Preprocessing.apply returned with the tensor.
            size: (width, height) of the original image.
        """
        warped = self._backend.warp_affine(explanation.saliency_map[None], affine, (size[1], size[0]))
        return replace(explanation, saliency_map=warped[0], in_input_pixels=False)

    def to_size(self, explanation: Explanation, plan: Plan, size: tuple[int, int]) -> Explanation:
        """The explanation with its map fused anew from its layer maps at ``size`` (H, W) of the model's view.

        Raises:
            InvalidInputError: no such size.
        """
        size = checked_size(size)
        layer_maps = [explanation.layer_maps[name][None] for name in plan.layers]
        fused = self._backend.fuse_layers(layer_maps, size, plan.fusion, plan.order)[0]
        same = size == self.manifest.input_shape[1:]
        return replace(explanation, saliency_map=fused[0], in_input_pixels=same)

    def _explain(
        self, inputs: FloatArray, class_indices: IntArray, plan: Plan, size: tuple[int, int], clock: Clock
    ) -> list[Explanation]:
        return self._run(self._session, inputs, class_indices, plan, size, clock)[0]

    def _run(
        self,
        session: Session,
        inputs: FloatArray,
        class_indices: IntArray,
        plan: Plan,
        size: tuple[int, int],
        clock: Clock,
    ) -> tuple[list[Explanation], FloatArray]:
        """The explanations, and the logits (N, K)."""
        with clock.stage("open"):
            session.prepare(plan.layers, plan.base.derivatives)
        made = self._made(session, plan, plan.request(inputs, class_indices), size, clock)
        return assembled(self.manifest, plan, made, clock), made.outputs.logits

    def _made(self, session: Session, plan: Plan, request: MapRequest, size: tuple[int, int], clock: Clock) -> MadeMaps:
        if runs_on_device(self._backend) and leaves_arrays_on_device(session, plan, request):
            return made_on_device(session, self._backend, plan, request, size, clock)
        with clock.stage("inference"):
            outputs = plan.base.collect(session, request)
        with clock.stage("kernels"):
            layer_maps = plan.base.maps(self._backend, outputs)
            fused = self._backend.fuse_layers(layer_maps, size, plan.fusion, plan.order)
            saliency, degenerate, *layer_maps = map(as_numpy, (*fused, *layer_maps))
        return MadeMaps(outputs, layer_maps, saliency, degenerate, size == request.inputs.shape[2:])

    def _explain_views(
        self, images: Sequence[ImageLike], class_indices: IntArray, plan: Plan, output_size: OutputSize
    ) -> list[Explanation]:
        """Explains one batch of images, or several classes of one image."""
        clock = Clock()
        with clock.stage("decode"):
            decoded = [load_image(image) for image in images]
        with clock.stage("preprocess"):
            tensors, affines = zip(*[self._view(image) for image in decoded], strict=True)
            inputs = np.stack(tensors)
        size = output_size if isinstance(output_size, tuple) else (int(inputs.shape[2]), int(inputs.shape[3]))
        explanations = self._explain(inputs, class_indices, plan, size, clock)
        if output_size == "original":
            with clock.stage("warp"):
                explanations = [
                    self.to_original(explanation, affines[n], decoded[n].size)
                    for explanation, n in zip(explanations, image_numbers(len(decoded), len(explanations)), strict=True)
                ]
        timings = clock.shared(len(explanations))
        return [replace(item, timings=timings) for item in explanations]

    def _view(self, image: Image.Image) -> tuple[FloatArray, FloatArray]:
        """The tensor of an image, and the affine that leads back to its pixels."""
        if self.preprocessing is None:
            raise InvalidInputError(
                "The bundle does not say how images become tensors.",
                "Give preprocess= here or at export, e.g. 'imagenet', or pass tensors to explain().",
            )
        return self.preprocessing.apply(image)
