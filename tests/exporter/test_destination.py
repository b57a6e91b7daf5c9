"""Nothing that is exported is written over what it is made from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import camrt
from camrt.errors import InvalidInputError
from camrt.exporter.rounding import half_bundle
from tests.exporter.graphs import small_classifier


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return small_classifier(tmp_path / "model.onnx")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def symlink(source: Path) -> Path:
    link = source.with_name("link.onnx")
    link.symlink_to(source)
    return link


def hard_link(source: Path) -> Path:
    link = source.with_name("hard.onnx")
    link.hardlink_to(source)
    return link


def linked_folder(source: Path) -> Path:
    folder = source.parent / "folder"
    folder.symlink_to(source.parent)
    return folder / source.name


def roundabout(source: Path) -> Path:
    return source.parent / ".." / source.parent.name / source.name


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("another_name", [lambda path: path, symlink, hard_link, linked_folder, roundabout])
def test_the_source_is_kept(source: Path, another_name: Callable[[Path], Path], precision: str) -> None:
    destination = another_name(source)
    before = contents(source.parent)
    with pytest.raises(InvalidInputError, match=r"would replace .*model\.onnx.*Choose another output"):
        camrt.export(source, destination, precision=precision)
    assert contents(source.parent) == before


def test_a_source_that_is_a_link(source: Path) -> None:
    before = source.read_bytes()
    with pytest.raises(InvalidInputError, match="would replace"):
        camrt.export(symlink(source), source)
    assert source.read_bytes() == before


def with_data_of_the_initializers(proto: onnx.ModelProto, path: Path) -> None:
    onnx.save_model(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=0)


def with_data_of_a_constant(proto: onnx.ModelProto, path: Path) -> None:
    """A Constant node whose tensor lies outside the file."""
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name == "w2")
    node = helper.make_node("Constant", [], ["w2"], "constant", value=weight)
    proto.graph.initializer.remove(weight)
    tensor = node.attribute[0].t
    (path.parent / "weights.bin").write_bytes(numpy_helper.to_array(tensor).tobytes())
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    proto.graph.node.insert(0, node)
    path.write_bytes(proto.SerializeToString())


@pytest.mark.parametrize("save", [with_data_of_the_initializers, with_data_of_a_constant])
def test_the_external_data_is_kept(source: Path, save: Callable[[onnx.ModelProto, Path], None]) -> None:
    save(onnx.load(source), source)
    before = contents(source.parent)
    for destination in (source.with_name("weights.bin"), hard_link(source.with_name("weights.bin"))):
        with pytest.raises(InvalidInputError, match=r"would replace .*weights\.bin"):
            camrt.export(source, destination)
    hard_link_gone = source.with_name("hard.onnx")
    hard_link_gone.unlink()
    assert contents(source.parent) == before
    assert camrt.export(source, source.with_name("bundle.onnx")).manifest.target_layers


def test_another_file_is_replaced_as_before(source: Path) -> None:
    other = source.with_name("bundle.onnx")
    other.write_text("an earlier export")
    copy = source.with_name("copy.onnx")
    copy.write_bytes(source.read_bytes())
    for destination in (other, copy, other):
        assert camrt.export(source, destination).path == destination
        assert camrt.Bundle.open(destination).manifest.source_name == "model.onnx"


def test_a_source_that_cannot_be_read_is_told_as_before(tmp_path: Path) -> None:
    (tmp_path / "bundle.onnx").write_text("an earlier export")
    (tmp_path / "text.onnx").write_text("no model")
    for name in ("text.onnx", "missing.onnx"):
        with pytest.raises(camrt.CamrtError, match=name):
            camrt.export(tmp_path / name, tmp_path / "bundle.onnx")
        assert (tmp_path / "bundle.onnx").read_text() == "an earlier export"


def test_a_bundle_is_not_halved_onto_itself(source: Path) -> None:
    bundle = camrt.export(source, source.with_name("bundle.onnx"))
    before = bundle.path.read_bytes()
    with pytest.raises(InvalidInputError, match="would replace"):
        half_bundle(bundle.path, symlink(bundle.path), np.zeros((1, *bundle.manifest.input_shape), np.float32))
    assert bundle.path.read_bytes() == before
