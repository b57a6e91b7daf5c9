"""``camrt serve`` against what someone would build without it: ``python -m benchmarks.bench_peer_servers``.

One network, the same JPEG files, the same number of callers, uint8 maps of the model's input size, servers one after
the other in turns (A B C A B C), client and server on the same cores. Maps are compared. A peer that does not start,
fails or sends another map is a line that says why. See peer_servers.py for the peers.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import grpc
import numpy as np
import torch

from benchmarks.bench_explain import publish
from benchmarks.bench_server import pictures
from benchmarks.make_bundles import make_bundle
from benchmarks.peer_servers import METHOD, SERVICE
from camrt.bench.environment import describe_machine, quiet_notes
from camrt.bench.report import Report, Row, Table
from camrt.bench.serving import ServerProcess
from camrt.client import ExplainerClient
from tests.models import make_inputs, make_model

GOAL = 10.0
PEERS = ("grpc", "litserve")
START_SECONDS = 120
MOST_LEVELS = 2  # of 255, between the maps of camrt and of the peers
Call = Callable[[bytes], bytes]
Opener = Callable[[], Call]


class PeerError(Exception):
    """Why a peer has no figures."""


@contextmanager
def peer(kind: str, model: Path, threads: int) -> Iterator[Opener]:
    """A peer's server process, and how a caller connects to it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "benchmarks.peer_servers", kind, str(port), str(model), str(threads)]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True)
        try:
            _wait_for(port, process, errors)
            yield (lambda: grpc_call(port)) if kind == "grpc" else (lambda: http_call(port))
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a peer's server and the workers in its session."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            errors.seek(0)
            said = errors.read().decode(errors="replace").splitlines()
            raise PeerError(f"ended before it was ready: {said[-1] if said else 'it said nothing'}")
        try:
            with socket.create_connection(("127.0.0.1", port), 1):
                return
        except OSError:
            time.sleep(0.2)
    raise PeerError(f"was not ready after {START_SECONDS} s")


def grpc_call(port: int) -> Call:
    """A channel to the bare servicer."""
    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    method = channel.unary_unary(f"/{SERVICE}/{METHOD}")
    return lambda file: method(file, timeout=START_SECONDS)


def http_call(port: int) -> Call:
    """A connection to LitServe that is kept."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_SECONDS)

    def call(file: bytes) -> bytes:
        body = json.dumps({"image": base64.b64encode(file).decode()})
        connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise PeerError(f"answered {answer.status}: {text[:200]!r}")
        return base64.b64decode(json.loads(text)["map"])

    return call


def camrt_call(target: str) -> Call:
    """camrt's own client."""
    client = ExplainerClient(target)

    def call(file: bytes) -> bytes:
        saliency = client.explain(file, output_size="input")[0].saliency_map
        return np.rint(255 * saliency).astype(np.uint8).tobytes()

    return call


def load(opener: Opener, files: Sequence[bytes], callers: int, seconds: float) -> tuple[list[float], float]:
    """Seconds of every call, and answers a second, of callers in threads."""
    times: list[float] = []
    until = time.perf_counter() + seconds

    def caller(number: int) -> None:
        call = opener()
        while time.perf_counter() < until:
            started = time.perf_counter()
            call(files[number % len(files)])
            times.append(time.perf_counter() - started)
            number += callers

    started = time.perf_counter()
    with ThreadPoolExecutor(callers) as pool:
        for done in [pool.submit(caller, number) for number in range(callers)]:
            done.result()
    return times, len(times) / (time.perf_counter() - started)


def run(options: argparse.Namespace, command: str) -> Report:
    """Starts every server once a turn; rates are medians over the turns."""
    machine, files = describe_machine(), pictures()
    rates: dict[str, list[float]] = {"camrt": []}
    times: dict[str, list[float]] = {"camrt": []}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        model_file = Path(folder) / "model.pt"
        torch.save(make_model(options.model, 0, 224, images=make_inputs(1, 224, 101)), model_file)
        bundle = make_bundle(options.model, 224, Path(folder))
        ours = b""
        for name in (name for _ in range(options.turns) for name in ("camrt", *PEERS)):
            if name in failed:
                continue
            print(name, file=sys.stderr)
            try:
                with _server(name, bundle, model_file, options.threads) as opener:
                    sent = opener()(files[0])
                    ours = sent if name == "camrt" else ours
                    _check(ours, sent)
                    load(opener, files, options.callers, 1)
                    seconds, rate = load(opener, files, options.callers, options.seconds)
            except (PeerError, OSError, http.client.HTTPException, grpc.RpcError) as error:
                failed[name] = f"{type(error).__name__}: {error}"
                continue
            times.setdefault(name, []).extend(seconds)
            rates.setdefault(name, []).append(rate)
    rows = [_row(name, rates, times, options.callers) for name in rates if name not in failed]
    rows += [{"server": name, "callers": options.callers, "why_not": why} for name, why in failed.items()]
    settings = {key: value for key, value in vars(options).items() if key != "out"}
    notes = [*quiet_notes(machine), f"Goal: camrt at least {GOAL:g} times as fast as the peers."]
    return Report("peer_servers", command, machine, settings, [Table("Servers", rows)], notes=notes)


def _row(name: str, rates: dict[str, list[float]], times: dict[str, list[float]], callers: int) -> Row:
    rate = statistics.median(rates[name])
    row: Row = {"server": name, "callers": callers, "images_per_second": rate}
    row["camrt_is_faster_by"] = statistics.median(rates["camrt"]) / rate
    return row | {f"p{p}_ms": 1e3 * float(np.percentile(times[name], p)) for p in (50, 99)}


@contextmanager
def _server(name: str, bundle: Path, model_file: Path, threads: int) -> Iterator[Opener]:
    if name == "camrt":
        with ServerProcess(bundle, "--threads", str(threads)) as server:
            yield lambda: camrt_call(server.target)
    else:
        with peer(name, model_file, threads) as opener:
            yield opener


def _check(ours: bytes, theirs: bytes) -> None:
    """PeerError where two servers do not send the same map."""
    one, other = (np.frombuffer(body, np.uint8).astype(int) for body in (ours, theirs))
    if one.shape != other.shape or np.abs(one - other).max() > MOST_LEVELS:
        raise PeerError("sends another map, so times would not compare")


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--out", type=Path, help="also write the report to this folder")
    options = parser.parse_args()
    report = run(options, shlex.join(["python", "-m", "benchmarks.bench_peer_servers", *sys.argv[1:]]))
    publish(report, options.out)


if __name__ == "__main__":
    main()
