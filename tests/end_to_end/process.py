"""``camrt serve`` as a process of its own, as an operator runs it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc

from camrt.explainer import sample_image_path
from camrt.v1 import explainer_pb2 as pb
from camrt.v1 import explainer_pb2_grpc

SECONDS = 60
_LINE = re.compile(r"camrt serves on (\S+) \((TLS|plain text)\)(?:, metrics on (\S+))?\n")


class Process:
    """``with Process(folder, "--max-batch", "4") as server``: serves until the block ends, at the latest.

    Args:
        folder: for its log.
        arguments: flags; the port is a free one of the loopback.
        environment: more variables.
    """

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        command = [sys.executable, "-m", "camrt", "serve", "--port", "0", "--threads", "1", "--max-batch", "4"]
        self._log = folder / "log.jsonl"
        with self._log.open("w") as log:
            self.popen = subprocess.Popen(
                [*command, *arguments], stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, **environment}
            )
        self.address = self.metrics = ""

    def __enter__(self) -> Process:
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()  # ends at the latest with the process
        match = _LINE.fullmatch(line)
        if match is None:
            self.popen.kill()
            raise AssertionError(f"{line!r}, {self._log.read_text()}")
        self.address, self.metrics = match[1], match[3] or ""
        return self

    def __exit__(self, *exception: object) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait(SECONDS)
        assert self.popen.stdout is not None
        self.popen.stdout.close()

    def send(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def end(self) -> int:
        """Its exit code, once it has ended by itself."""
        return self.popen.wait(SECONDS)

    def logs(self) -> list[dict[str, Any]]:
        """Every line of its log; each is JSON, but for those of the C core of gRPC."""
        lines = self._log.read_text().splitlines()
        return [json.loads(line) for line in lines if not re.match(r"[IWE]\d{4} |WARNING: All log", line)]

    def wait_for(self, message: str) -> None:
        """Returns when the log has a line with ``message``."""
        until = time.monotonic() + SECONDS
        while not any(message in line["message"] for line in self.logs()):
            assert time.monotonic() < until, self._log.read_text()
            time.sleep(0.02)


def stub_of(channel: grpc.Channel | grpc.aio.Channel) -> Any:
    return explainer_pb2_grpc.ExplainerServiceStub(channel)  # type: ignore[no-untyped-call]


def explain_request(**fields: Any) -> pb.ExplainRequest:
    return pb.ExplainRequest(image=pb.Image(encoded=sample_image_path().read_bytes()), **fields)
