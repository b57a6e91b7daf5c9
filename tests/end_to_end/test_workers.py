"""Several server processes on one port, real ones."""

from __future__ import annotations

import collections
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from camrt.explainer import embedded_bundle_path
from camrt.server import exits
from camrt.v1 import explainer_pb2 as pb
from tests.end_to_end.process import SECONDS, Process, explain_request, stub_of

Code = grpc.StatusCode
FLAGS = ("--workers", "2", "--max-batch", "1", "--log-requests", "--metrics-port", "0")
# A connection of its own each time: the kernel shares out connections, not requests.
OWN = [("grpc.use_local_subchannel_pool", 1)]


def workers_of(server: Process) -> dict[int, int]:
    """Process ids of the workers that serve, by their number; of each the newest."""
    rows = [line for line in server.logs() if line["message"].endswith(" serves.")]
    return {int(line["message"].split()[1]): line["pid"] for line in rows}


def metrics_of(server: Process) -> set[str]:
    with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=SECONDS) as response:
        return set(response.read().decode().splitlines())


def answered_by(server: Process) -> collections.Counter[int]:
    """How many calls of Explain each worker has answered."""
    rows = [line for line in server.logs() if line["message"] == "call" and line["method"] == "Explain"]
    return collections.Counter(line["worker"] for line in rows)


def code_of(future: Any) -> Code:
    """Of a call that was started."""
    return future.code()  # type: ignore[no-any-return]


def explain(server: Process) -> Code:
    with grpc.insecure_channel(server.address, OWN) as channel:
        return code_of(stub_of(channel).Explain.future(explain_request(), timeout=SECONDS))


def until_both_answer(server: Process) -> int:
    """How many calls it took, each on its own connection."""
    before = answered_by(server)
    for calls in range(1, 100):
        assert explain(server) is Code.OK
        if len(answered_by(server) - before) == 2:
            return calls
    raise AssertionError(f"One worker answered all of 99 calls: {answered_by(server)}")


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_two_workers_share_a_port_and_one_replaces_the_other(tmp_path: Path) -> None:
    with Process(tmp_path, *FLAGS) as server:
        first = workers_of(server)
        calls = until_both_answer(server)
        lines = metrics_of(server)
        assert f'camrt_requests_total{{code="OK",method="Explain",model="shapes"}} {calls}.0' in lines
        assert f'camrt_executions_total{{kind="explain",model="shapes"}} {calls}.0' in lines
        assert 'camrt_model_state{model="shapes",state="ready",version="1"} 2.0' in lines
        assert "cygrpc" not in Path(f"/proc/{server.popen.pid}/maps").read_text(), "the parent has no gRPC"
        assert "cygrpc" in Path(f"/proc/{first[0]}/maps").read_text()

        port = server.address.rpartition(":")[2]
        for more in ((), ("--workers", "2")):
            command = [sys.executable, "-m", "camrt", "serve", "--port", port, *more]
            second = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
            assert second.returncode == exits.CANNOT_START
            assert "in use" in second.stderr
            assert second.stdout == ""

        os.kill(first[0], signal.SIGKILL)
        server.wait_for("Worker 0 ended with SIGKILL")
        assert explain(server) is Code.OK, "the other one goes on, before the new one is there"
        until = time.monotonic() + SECONDS
        while workers_of(server) == first:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert workers_of(server)[1] == first[1]
        more_calls = until_both_answer(server)
        lines = metrics_of(server)
        counted = calls + 1 + more_calls
        assert f'camrt_requests_total{{code="OK",method="Explain",model="shapes"}} {counted}.0' in lines, "none is lost"
        assert "camrt_workers_ready 2.0" in lines
        assert "camrt_worker_restarts_total 1.0" in lines
        server.send(signal.SIGTERM)
        assert server.end() == exits.DRAINED
        assert sum(line["message"] == "settings" for line in server.logs()) == 1
        assert not any(map(is_alive, workers_of(server).values()))


def test_sigterm_under_load_answers_all_that_was_taken(tmp_path: Path) -> None:
    codes: collections.Counter[Code] = collections.Counter()
    enough = threading.Event()

    def caller(server: Process) -> None:
        with grpc.insecure_channel(server.address, OWN) as channel:
            while Code.UNAVAILABLE not in codes:
                codes[code_of(stub_of(channel).Explain.future(explain_request(), timeout=SECONDS))] += 1
                if codes[Code.OK] >= 24:
                    enough.set()

    with Process(tmp_path, *FLAGS) as server:
        with ThreadPoolExecutor(12) as pool:
            callers = [pool.submit(caller, server) for _ in range(12)]
            assert enough.wait(SECONDS)
            server.send(signal.SIGTERM)
            for future in callers:
                future.result(SECONDS)
        assert server.end() == exits.DRAINED
        assert set(codes) == {Code.OK, Code.UNAVAILABLE}
        assert not [line for line in server.logs() if line["level"] in ("error", "critical")]
        assert sum(answered_by(server).values()) >= codes[Code.OK]


def test_workers_follow_the_models_and_do_not_outlive_their_parent(tmp_path: Path) -> None:
    def put(version: int) -> None:
        (tmp_path / "models" / "cats" / str(version)).mkdir(parents=True)
        part = shutil.copy(embedded_bundle_path(), tmp_path / "part")
        part.replace(tmp_path / "models" / "cats" / str(version) / "bundle.onnx")

    def ready(server: Process) -> list[int]:
        return sorted(line["worker"] for line in server.logs() if line["message"].endswith("version 2 is ready."))

    put(1)
    flags = ("--model-repository", str(tmp_path / "models"), "--poll-seconds", "0.1")
    (tmp_path / "temporary").mkdir()
    with Process(tmp_path, *FLAGS, *flags, TMPDIR=str(tmp_path / "temporary")) as server:
        processes = workers_of(server).values()
        assert len(processes) == 2
        put(2)
        until = time.monotonic() + SECONDS
        while ready(server) != [0, 1]:
            assert time.monotonic() < until
            time.sleep(0.05)
        server.send(signal.SIGKILL)
        server.end()
        until = time.monotonic() + SECONDS
        while any(map(is_alive, processes)):
            assert time.monotonic() < until
            time.sleep(0.05)
        assert not list((tmp_path / "temporary").glob("camrt-*"))


def test_workers_that_cannot_start_say_why(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    command = [sys.executable, "-m", "camrt", "serve", "bad.onnx", "--port", "0", "--workers", "2"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert result.returncode == exits.CANNOT_START
    assert result.stdout == ""
    assert "bad.onnx is not an ONNX file" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_drain_that_takes_too_long_has_an_exit_code_of_its_own(tmp_path: Path) -> None:
    with Process(tmp_path, "--drain-timeout", "0.05", "--metrics-port", "0", "--log-requests") as server:
        with grpc.insecure_channel(server.address) as channel:
            evaluate = stub_of(channel).Evaluate.future
            calls = [evaluate(pb.EvaluateRequest(image=explain_request().image)) for _ in range(16)]
            until = time.monotonic() + SECONDS
            while not {f"camrt_heavy_requests {n}.0" for n in range(6, 17)} & metrics_of(server):
                assert time.monotonic() < until
                time.sleep(0.01)
            server.send(signal.SIGTERM)
            assert code_of(calls[-1]) is not Code.OK
        assert server.end() == exits.CUT_OFF
        told = next(line for line in server.logs() if "were cut off" in line["message"])
        assert told["level"] == "error"
        assert told["cut_off"] > 0
        rows = [line for line in server.logs() if line["message"] == "call" and line["code"] == "CANCELLED"]
        assert len(rows) == told["cut_off"], "each by its request id"
