"""Where bundles are written, and with which permissions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.message import EncodeError

import camrt
from camrt.errors import CamrtError, InvalidInputError, UnsupportedModelError
from camrt.exporter import writing
from tests.exporter.graphs import small_classifier


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return small_classifier(tmp_path / "model.onnx")


@pytest.fixture
def private() -> Iterator[None]:
    """The umask of somebody who shares nothing."""
    before = os.umask(0o077)
    yield
    os.umask(before)


def permissions(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.usefixtures("private")
def test_a_new_bundle_has_the_permissions_of_the_process(source: Path) -> None:
    assert permissions(camrt.export(source, source.with_name("private.onnx")).path) == 0o600
    os.umask(0o027)
    assert permissions(camrt.export(source, source.with_name("group.onnx")).path) == 0o640


def test_a_replaced_file_keeps_its_permissions(source: Path) -> None:
    destination = source.with_name("bundle.onnx")
    destination.write_text("an earlier export")
    destination.chmod(0o604)
    assert permissions(camrt.export(source, destination).path) == 0o604


@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_is_followed(dangling: bool, source: Path) -> None:
    folder = source.parent / "elsewhere"
    folder.mkdir()
    file, link = folder / "v1.onnx", source.with_name("current.onnx")
    if not dangling:
        file.write_text("an earlier export")
    link.symlink_to(file)
    assert camrt.export(source, link).path == link
    assert link.is_symlink()
    assert camrt.Bundle.open(file).manifest.source_name == "model.onnx"
    assert [path.name for path in folder.iterdir()] == ["v1.onnx"]


@pytest.mark.parametrize("folder", ["", ".", "..", "models"])
def test_a_folder_is_no_destination(folder: str, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source.parent / "models").mkdir()
    monkeypatch.chdir(source.parent)
    with pytest.raises(InvalidInputError, match=r"is a folder.*bundle\.onnx"):
        camrt.export(source, folder)


@pytest.mark.parametrize("name", ["model.onnx/bundle.onnx", "no\0name.onnx"])
def test_a_path_that_cannot_be(name: str, source: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"Cannot write .*Check the path"):
        camrt.export(source, source.parent / name)
    assert [path.name for path in source.parent.iterdir()] == ["model.onnx"]


def test_a_bundle_larger_than_a_file_can_be(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "MAX_FILE_BYTES", 1000)
    with pytest.raises(UnsupportedModelError, match=r"an ONNX file ends at 2 GB.*float16"):
        camrt.export(source, source.with_name("bundle.onnx"))
    assert [path.name for path in source.parent.iterdir()] == ["model.onnx"]


def test_a_graph_that_makes_the_file_too_large(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights just below the limit: protobuf finds out."""

    def too_large(*_: object) -> None:
        raise EncodeError("Failed to serialize proto")

    destination = source.with_name("bundle.onnx")
    destination.write_text("an earlier export")
    monkeypatch.setattr(writing.ir, "save", too_large)
    with pytest.raises(UnsupportedModelError, match="an ONNX file ends at 2 GB"):
        camrt.export(source, destination)
    assert destination.read_text() == "an earlier export"


def test_an_interrupted_export_leaves_nothing(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object, path: Path) -> None:
        path.write_text("half a bun")
        raise OSError(28, "No space left on device")

    destination = source.with_name("bundle.onnx")
    destination.write_text("an earlier export")
    monkeypatch.setattr(writing.ir, "save", full)
    with pytest.raises(CamrtError, match="No space left on device"):
        camrt.export(source, destination)
    assert {path.name: path.read_bytes() for path in source.parent.iterdir()}["bundle.onnx"] == b"an earlier export"
    assert len(list(source.parent.iterdir())) == 2
