"""The bundle: one ONNX file with a manifest in its metadata.

The manifest is JSON under the metadata key ``camrt.manifest``. Reading it scans the top-level fields of the protobuf
and skips the graph, so it costs microseconds whatever the size of the model, and needs no ONNX library.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import operator
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import (
    Any,
    BinaryIO,
    Literal,
    SupportsIndex,
    TypeAlias,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

from camrt.errors import (
    BundleError,
    ClassIndexError,
    InvalidInputError,
    InvalidModelError,
    LayerNotFoundError,
    MethodUnavailableError,
)

MANIFEST_KEY = "camrt.manifest"
SCHEMA_VERSION = 1
HALF_OUTPUT_SUFFIX = "/float"  # ends the name of the node that casts an output of an fp16 bundle to float32
MAX_RANK = 3839  # a class_index of -r chooses among the highest logits only: TensorRT's TopK ends there

Head: TypeAlias = Literal["logits", "softmax", "log_softmax", "sigmoid"]
Precision: TypeAlias = Literal["fp32", "fp16", "int8"]
Layout: TypeAlias = Literal["NCHW", "NHWC", "NLC", "NCL"]  # L counts positions row by row

_METADATA_PROPS_FIELD = 14  # ModelProto.metadata_props
_LENGTH_DELIMITED = 2
_MAX_MANIFEST_BYTES = 64 << 20


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hex: what tells bundles and source models apart."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_output(output: Path, inputs: Iterable[Path]) -> None:
    """Refuses to write a result over a file that it is made from, whatever links lead there.

    Raises:
        InvalidInputError: ``output`` is one of ``inputs``.
    """
    for path in inputs:
        if _is_same_file(output, path):
            raise InvalidInputError(
                f"The result would replace {path}, which it is made from.", f"Choose another output than {output}."
            )


@dataclass(frozen=True, slots=True)
class TargetLayer:
    """One explained layer.

    Attributes:
        name: the layer's name in the API, e.g. ``layer4``.
        value: the value of the source graph that it stands for.
        shape: (C, h, w) at the nominal input size.
        layout: how the source graph keeps it, L for positions counted row by row; the bundle's outputs are NCHW always.
        activations: graph output with the activations, (N, C, h, w).
        gradients: graph output with the gradient of the explained logit, (M, C, h, w).
        prefix_tokens: tokens without a position (a class token) that the source graph keeps in front of the others;
            they are left out of the outputs. None where there are none.
        linear_head: whether the logits are a linear function of the layer's mean over positions, so that the class
            weights of CAM (arXiv 1512.04150) are the gradient times h w.
        target_gradients: graph output with the gradient of the second-order target value, (M, C, h, w); None where the
            bundle was exported without second_order.
        hessian_vectors: graph output with the Hessian of that value times the activations, (M, C, h, w); or None.
    """

    name: str
    value: str
    shape: tuple[int, int, int]
    layout: Layout
    activations: str
    gradients: str
    prefix_tokens: int | None = None
    linear_head: bool = False
    target_gradients: str | None = None
    hessian_vectors: str | None = None

    def arrays(self, derivatives: int) -> tuple[str, ...]:
        """The graph outputs of a run with 0, 1 or 2 derivatives: activations, gradients, Hessian-vector products.

        Raises:
            MethodUnavailableError: second derivatives that the bundle does not have.
        """
        if derivatives < 2:
            return (self.activations, self.gradients)[: derivatives + 1]
        if self.target_gradients is None or self.hessian_vectors is None:
            raise MethodUnavailableError(
                f"The bundle has no second derivatives of layer {self.name!r}, which shapleycam needs.",
                "Export the model again with second_order=True (camrt export --shapley).",
            )
        return self.activations, self.target_gradients, self.hessian_vectors


@dataclass(frozen=True, slots=True)
class SaliencyOutput:
    """The saliency map that a bundle's graph computes itself, where it was exported so.

    Attributes:
        output: graph output with the map, (M, H, W) float32.
        degenerate: graph output (M, L) bool: True where a target layer's map says nothing and counts as zeros.
        base_method, fusion, order: how it is made.
    """

    output: str
    degenerate: str
    base_method: str
    fusion: str
    order: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle says about itself.

    Attributes:
        camrt_version: the version that wrote it.
        source_name: file name of the source model.
        source_sha256: hex digest of the source model, its external data included.
        input_name: the image input, float32 or float16, (N, 3, H, W) or (N, H, W, 3).
        input_shape: (3, H, W), whatever the layout.
        input_layout: NCHW, or NHWC where the source model takes channels last; a session takes (N, 3, H, W) always.
        logits: graph output with the values before softmax, (N, K).
        probabilities: graph output with the source's own softmax or sigmoid, or None where it ends in logits.
        head: what the source ends in; says how logits become probabilities.
        num_classes: K.
        outputs: the source model's outputs, unchanged in the bundle.
        class_index_input, class_index_output: names of the graph input (M) and output (M).
        target_layers: coarse to fine.
        class_names: K names, or None.
        preprocessing: the fields of camrt.preprocess.Preprocessing, or None.
        saliency: the map that the graph computes itself, or None.
        precision: in what the graph computes: fp32; fp16 or int8 where the source does, or the export rounded it.
    """

    camrt_version: str
    source_name: str
    source_sha256: str
    input_name: str
    input_shape: tuple[int, int, int]
    logits: str
    head: Head
    num_classes: int
    outputs: tuple[str, ...]
    target_layers: tuple[TargetLayer, ...]
    input_layout: Literal["NCHW", "NHWC"] = "NCHW"
    probabilities: str | None = None
    class_index_input: str = "class_index"
    class_index_output: str = "class_index_out"
    class_names: tuple[str, ...] | None = None
    preprocessing: dict[str, Any] | None = None
    saliency: SaliencyOutput | None = None
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        if not self.target_layers or len(set(self.layer_names)) < len(self.target_layers):
            raise BundleError("The manifest has no target layers, or two of one name.", "Export the model again.")
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise BundleError(
                f"{len(self.class_names)} class names for a model of {self.num_classes} classes.",
                "Give one name a class, in the order of the logits.",
            )

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the target layers, coarse to fine."""
        return tuple(layer.name for layer in self.target_layers)

    def layer(self, name: str) -> TargetLayer:
        """The target layer called ``name``; LayerNotFoundError lists the names there are."""
        for layer in self.target_layers:
            if layer.name == name:
                return layer
        raise LayerNotFoundError(
            f"The bundle has no target layer {name!r}; it has {', '.join(self.layer_names)}.",
            "Export the model again with that layer in target_layers.",
        )

    def class_name(self, class_index: int) -> str | None:
        """The name of a class, or None where the bundle has no names."""
        return None if self.class_names is None else self.class_names[class_index]

    def class_index(self, item: int | str) -> int:
        """The index of a class given by name; a number (index or negative rank) stays as it is.

        Raises:
            ClassIndexError: no class has that name.
        """
        if not isinstance(item, str):
            return self._number(item)
        names = self.class_names or ()
        if item not in names:
            listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
            known = f"The classes are: {listed}." if names else "The bundle has no class names: use indices."
            raise ClassIndexError(f"No class is called {item!r}.", known)
        return names.index(item)

    def _number(self, item: object) -> int:
        """A class index or rank as it is."""
        if not isinstance(item, SupportsIndex):
            raise ClassIndexError(f"{item!r} is no class.", "Give an index, a name, or -r for a rank.")
        number = operator.index(item)
        if not -self.num_classes <= number < self.num_classes:
            raise ClassIndexError(
                f"Class index {number} is out of range for {self.num_classes} classes.",
                f"Use 0 to {self.num_classes - 1}, or -1 to -{self.num_classes} for ranks.",
            )
        return number

    def to_json(self) -> str:
        """The manifest as JSON text."""
        return json.dumps({"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Parses and validates; BundleError where the text is damaged or of another schema version."""
        try:
            fields = json.loads(text)
            version = fields.pop("schema_version")
            if version != SCHEMA_VERSION:
                raise BundleError(
                    f"The manifest has schema version {version}; this camrt reads version {SCHEMA_VERSION}.",
                    "Export the model again with this version of camrt.",
                )
            fields["target_layers"] = [_typed(TargetLayer, layer) for layer in fields["target_layers"]]
            if fields.get("saliency") is not None:
                fields["saliency"] = _typed(SaliencyOutput, fields["saliency"])
            return _typed(cls, fields)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise BundleError(f"The manifest is damaged: {error}.", "Export the model again.") from error


_Fields = TypeVar("_Fields", "TargetLayer", "SaliencyOutput", "Manifest")


def _typed(kind: type[_Fields], fields: dict[str, Any]) -> _Fields:
    """``kind`` of fields read from JSON, its lists as tuples; TypeError where one is not of its declared type."""
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    hints: dict[str, Any] = get_type_hints(kind)
    for name, hint in hints.items():
        if name in values and not _is_of(values[name], hint):
            raise TypeError(f"{name} is {values[name]!r}")
    return kind(**values)


def _is_of(value: object, hint: Any) -> bool:
    """Whether ``value`` has one of the types that the fields of a manifest are declared with."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in parts
    if origin is UnionType:
        return any(_is_of(value, part) for part in parts)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        hints = parts[:1] * len(value) if parts[1:] == (...,) else parts
        return len(hints) == len(value) and all(map(_is_of, value, hints))
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and value > 0
    return isinstance(value, origin or hint)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A rewritten model on disk and its manifest."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Reads the manifest of the bundle at ``path``.

        Raises:
            InvalidModelError: the file is missing, or not an ONNX file.
            BundleError: it is an ONNX file without a (readable) manifest.
        """
        path = Path(path)
        try:
            with path.open("rb") as stream:
                metadata = dict(_metadata_props(stream, path.stat().st_size))
        except OSError as error:
            raise InvalidModelError(f"Cannot read {path}: {error.strerror}.", "Check the path.") from error
        except (ValueError, EOFError) as error:
            raise InvalidModelError(
                f"{path} is not an ONNX file, or is truncated ({error}).", "Check the file, or export the model again."
            ) from error
        if MANIFEST_KEY not in metadata:
            raise BundleError(
                f"{path} is an ONNX model, but not a camrt bundle: it has no manifest.",
                f"Make one with: camrt export {path} -o bundle.onnx",
            )
        return cls(path, Manifest.from_json(metadata[MANIFEST_KEY]))


def _is_same_file(path: Path, other: Path) -> bool:
    """Whether both are there and one file; a name with a NUL is no file."""
    try:
        return path.samefile(other)
    except (OSError, ValueError):
        return False


def _metadata_props(stream: BinaryIO, size: int) -> Iterator[tuple[str, str]]:
    """The (key, value) pairs of ModelProto.metadata_props; ValueError or EOFError where the bytes are no protobuf."""
    seen_field = False
    while (position := stream.tell()) < size:
        field, payload = _next_field(stream, size)
        seen_field = True
        if field == _METADATA_PROPS_FIELD and payload is not None:
            start, length = payload
            if length > _MAX_MANIFEST_BYTES:
                raise ValueError(f"a metadata entry of {length} bytes at byte {position}")
            stream.seek(start)
            yield _string_pair(stream.read(length))
    if not seen_field:
        raise EOFError("the file is empty")


def _next_field(stream: BinaryIO, size: int) -> tuple[int, tuple[int, int] | None]:
    """Steps over one field; returns its number and, where it has a length, (start, length) of its payload."""
    tag = _varint(stream)
    field, wire_type = tag >> 3, tag & 7
    start_of_value = stream.tell()
    if field == 0:
        raise ValueError(f"no protobuf field at byte {start_of_value - 1}")
    match wire_type:
        case 0:
            _varint(stream)
            return field, None
        case 1 | 5:
            length = 8 if wire_type == 1 else 4
        case 2:
            length = _varint(stream)
        case _:
            raise ValueError(f"wire type {wire_type} at byte {start_of_value - 1}")
    start = stream.tell()
    if start + length > size:
        raise EOFError(f"a field of {length} bytes at byte {start} runs past the end")
    stream.seek(start + length)
    return field, (start, length) if wire_type == _LENGTH_DELIMITED else None


def _varint(stream: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = stream.read(1)
        if not byte:
            raise EOFError("the file ends inside a number")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("a number of more than ten bytes")


def _string_pair(payload: bytes) -> tuple[str, str]:
    stream = io.BytesIO(payload)
    parts = {1: "", 2: ""}
    while stream.tell() < len(payload):
        field, span = _next_field(stream, len(payload))
        if span is not None and field in parts:
            parts[field] = payload[span[0] : span[0] + span[1]].decode("utf-8")
    return parts[1], parts[2]
