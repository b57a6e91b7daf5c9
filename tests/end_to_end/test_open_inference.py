"""Triton's own client against a server process, in a process that has its own messages of the protocol."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from camrt.explainer import embedded_bundle_path, sample_image_path

SECONDS = 60


@pytest.fixture
def process(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running ``camrt serve`` over a folder with the model "shapes", and its address."""
    home = tmp_path / "models" / "shapes" / "1"
    home.mkdir(parents=True)
    shutil.copy(embedded_bundle_path(), home / "bundle.onnx")
    command = [sys.executable, "-m", "camrt", "serve", "--port", "0", "--threads", "1"]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(
            [*command, "--model-repository", str(tmp_path / "models")], stdout=subprocess.PIPE, stderr=log, text=True
        ) as server,
    ):
        try:
            assert server.stdout is not None
            line = server.stdout.readline()  # ends at the latest with the process
            assert line.startswith("camrt serves on "), (tmp_path / "log").read_text()
            yield server, line.split()[3]
        finally:
            if server.poll() is None:
                server.kill()


def sample() -> triton.InferInput:
    data = np.array([sample_image_path().read_bytes()], dtype=object)
    return triton.InferInput("image", [1], "BYTES").set_data_from_numpy(data)


def test_a_whole_session(process: tuple[subprocess.Popen[str], str]) -> None:
    server, address = process
    with triton.InferenceServerClient(address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        (model,) = client.get_model_repository_index().models
        assert (model.name, model.version, model.state) == ("shapes", "1", "READY")
        metadata = client.get_model_metadata("shapes")
        assert [item.name for item in metadata.inputs] == ["image", "class_index"]
        config = client.get_model_config("shapes").config
        result = client.infer("shapes", [sample()], request_id="a", parameters={"output_size": "original"})
        assert result.get_response().id == "a"
        assert result.as_numpy("class_index").tolist() == [[5]]
        assert result.as_numpy("saliency_map").shape == (1, 1, 240, 320)
        full = np.zeros((config.max_batch_size, *config.input[0].dims), np.float32)
        batch = triton.InferInput("image", full.shape, "FP32").set_data_from_numpy(full)
        assert client.infer("shapes", [batch]).as_numpy("logits").shape == (config.max_batch_size, 6)
        (row,) = client.get_inference_statistics("shapes").model_stats
        assert row.inference_count == 1 + config.max_batch_size
        assert row.inference_stats.success.count == 2

        client.unload_model("shapes")
        with pytest.raises(InferenceServerException) as caught:
            client.infer("shapes", [sample()])
        assert caught.value.status() in ("StatusCode.NOT_FOUND", "StatusCode.UNAVAILABLE")
        client.load_model("shapes")
        assert client.infer("shapes", [sample()]).as_numpy("class_index").tolist() == [[5]]
    server.send_signal(signal.SIGTERM)
    assert server.wait(SECONDS) == 0
