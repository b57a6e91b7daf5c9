"""What someone would serve without camrt: pytorch-grad-cam behind a bare grpc.aio servicer, and behind LitServe.

``python -m benchmarks.peer_servers grpc|litserve PORT MODEL_FILE THREADS``. JPEG in, the uint8 map of the model's input
size out. The explanation is the fastest form of pytorch-grad-cam's RefineCAM: no parameter gradients, graph cut below
the finest layer. NVIDIA PyTriton 0.7.0 needs numpy 1, so it cannot be installed beside the others.
"""

from __future__ import annotations

import argparse
import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers import start_graph_at
from camrt.preprocess import Preprocessing, load_image
from tests.models import TestModel
from tests.oracles import pytorch_grad_cam

SERVICE, METHOD = "peer.Explainer", "Explain"


class PeerExplainer:
    """pytorch-grad-cam's RefineCAM of JPEG files, a batch at a time; its hooks allow one thread."""

    def __init__(self, model_file: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        model: TestModel = torch.load(model_file, weights_only=False)
        module = model.module.requires_grad_(False)
        start_graph_at(module.get_submodule(model.target_layers[-1]))
        layers = [module.get_submodule(layer) for layer in model.target_layers]
        self._cam = pytorch_grad_cam.RefineCAM(module, layers, base_method=pytorch_grad_cam.GradCAMPlusPlus)
        self._preprocessing = Preprocessing.preset("unit", (model.size, model.size))
        self._lock = threading.Lock()

    def explain(self, files: list[bytes]) -> list[bytes]:
        """Maps (H, W) as uint8 bytes."""
        images = np.stack([self._preprocessing.apply(load_image(file))[0] for file in files])
        with self._lock:
            maps = self._cam(input_tensor=torch.from_numpy(images), targets=None)
        return [np.rint(255 * one).astype(np.uint8).tobytes() for one in maps]


async def serve_grpc(explainer: PeerExplainer, port: int) -> None:
    """One unary method that takes and returns bytes; explanations in a thread, one at a time."""
    import grpc

    pool = ThreadPoolExecutor(1)

    async def explain(request: bytes, _context: Any) -> bytes:
        return (await asyncio.get_running_loop().run_in_executor(pool, explainer.explain, [request]))[0]

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(explain)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


@dataclass
class Arguments:
    """Command line."""

    kind: str
    port: int
    model: Path
    threads: int


def main() -> None:
    """Serves until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("grpc", "litserve"))
    parser.add_argument("port", type=int)
    parser.add_argument("model", type=Path)
    parser.add_argument("threads", type=int)
    arguments = Arguments(**vars(parser.parse_args()))
    if arguments.kind == "grpc":
        asyncio.run(serve_grpc(PeerExplainer(arguments.model, arguments.threads), arguments.port))
    else:
        from benchmarks.peer_litserve import serve

        serve(arguments.port, arguments.model, arguments.threads)


if __name__ == "__main__":
    main()
