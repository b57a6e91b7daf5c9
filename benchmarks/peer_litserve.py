"""pytorch-grad-cam behind LitServe with its own batching, see peer_servers.py."""

from __future__ import annotations

import base64
from pathlib import Path

import litserve

from benchmarks.peer_servers import PeerExplainer

BATCH, WAIT_SECONDS = 8, 0.005
TIMEOUT_SECONDS = 120


class ExplainApi(litserve.LitAPI):
    """JPEG in, uint8 map out, both in JSON, as LitServe has it.

    LitServe sends it to its worker process, so it is a class of a module.
    """

    def __init__(self, model: Path, threads: int) -> None:
        super().__init__(max_batch_size=BATCH, batch_timeout=WAIT_SECONDS)
        self._arguments = model, threads

    def setup(self, device: str) -> None:
        del device
        self._explainer = PeerExplainer(*self._arguments)

    def decode_request(self, request: dict[str, str]) -> bytes:
        return base64.b64decode(request["image"])

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return inputs

    def predict(self, x: list[bytes]) -> list[bytes]:
        return self._explainer.explain(x)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        return output

    def encode_response(self, output: bytes) -> dict[str, str]:
        return {"map": base64.b64encode(output).decode()}


def serve(port: int, model: Path, threads: int) -> None:
    """Serves until it is stopped."""
    api = ExplainApi(model, threads)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=TIMEOUT_SECONDS)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="error")
