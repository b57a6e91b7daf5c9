from __future__ import annotations

from pathlib import Path

import pytest

from camrt.server.model_files import ModelFiles
from camrt.server.public_text import without_folders
from camrt.server.settings import ServerSettings


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Cannot read /usr/lib/x/bundle.onnx: denied.", "Cannot read bundle.onnx: denied."),
        ("Load model from '/usr/a/b.onnx' failed", "Load model from 'b.onnx' failed"),
        ("/usr/a/b.onnx and /tmp/c.onnx", "b.onnx and c.onnx"),
        ("No layer '/layer4/layer4.1/Relu_output_0'.", "No layer '/layer4/layer4.1/Relu_output_0'."),
        ("3/4 of N/C/H, file usr/a.onnx, https://usr/lib/x", "3/4 of N/C/H, file usr/a.onnx, https://usr/lib/x"),
        ("", ""),
    ],
)
def test_paths_lose_their_folders_and_layers_keep_their_names(text: str, told: str) -> None:
    assert without_folders(text) == told


def test_bundles_are_named_as_in_the_repository(tmp_path: Path) -> None:
    root = tmp_path / "my models"
    root.mkdir()
    files = ModelFiles(ServerSettings(model_repository=root))
    assert files.public(f"Cannot read {root}/cats/2/bundle.onnx.") == "Cannot read cats/2/bundle.onnx."
    assert files.public(f"Weights of /usr/{tmp_path.name}/weights.bin") == "Weights of weights.bin"
