"""A server process from its start to its end: signals, reloads, clients that leave, settings that are wrong."""

from __future__ import annotations

import asyncio
import collections
import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import camrt
from camrt.explainer import embedded_bundle_path
from camrt.server.security import token_digest
from camrt.v1 import explainer_pb2 as pb
from tests.end_to_end.process import SECONDS, Process, explain_request, stub_of
from tests.server.certificates import Authority
from tests.small_network import write_small_network

Code = grpc.StatusCode


async def outcome(call: Any) -> Code:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return Code.OK


def failures(server: Process) -> list[dict[str, Any]]:
    return [line for line in server.logs() if line["level"] in ("error", "critical")]


def test_sigterm_with_32_requests_in_flight(tmp_path: Path) -> None:
    """Every one is answered, or told UNAVAILABLE before it was taken; exit code 0."""

    async def load(server: Process) -> collections.Counter[Code]:
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub = stub_of(channel)
            await stub.Explain(explain_request())
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            states = [(await watch.read()).status]
            calls = [stub.Explain(explain_request(), timeout=SECONDS) for _ in range(32)]
            await calls[0]
            server.send(signal.SIGTERM)
            states.append((await watch.read()).status)
            assert states == [health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING]
            return collections.Counter(await asyncio.gather(*map(outcome, calls)))

    with Process(tmp_path) as server:
        codes = asyncio.run(load(server))
        assert server.end() == 0
        assert set(codes) <= {Code.OK, Code.UNAVAILABLE}
        assert codes[Code.OK] > 1
        assert not failures(server)
        assert server.logs()[-1]["message"] == "stopped"


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    with Process(tmp_path, "--drain-delay", "60") as server:
        server.send(signal.SIGTERM)
        server.wait_for("draining")
        server.send(signal.SIGTERM)
        assert server.popen.wait(10) == 1


def test_reload_under_load_loses_no_request(tmp_path: Path) -> None:
    home = tmp_path / "models" / "cats"

    def put(version: int, data: bytes) -> None:
        (home / str(version)).mkdir(parents=True)
        part = home / str(version) / "part"
        part.write_bytes(data)
        part.replace(home / str(version) / "bundle.onnx")

    bundles = []
    for seed in range(2):
        path = camrt.export(write_small_network(tmp_path / "source.onnx", seed), tmp_path / "b.onnx").path
        bundles.append(path.read_bytes())

    async def load(server: Process) -> tuple[set[str], list[Code]]:
        tensor = pb.Tensor(data_type=pb.DATA_TYPE_FLOAT32, shape=(3, 32, 40), data=bytes(4 * 3 * 32 * 40))
        request = pb.ExplainRequest(image=pb.Image(input=tensor))
        versions: list[str] = []
        codes: list[Code] = []
        done = asyncio.Event()

        async def caller(stub: Any) -> None:
            while not done.is_set():
                try:
                    versions.append((await stub.Explain(request, timeout=SECONDS)).model.version)
                except grpc.aio.AioRpcError as error:
                    codes.append(error.code())

        async with grpc.aio.insecure_channel(server.address) as channel:
            callers = [asyncio.create_task(caller(stub_of(channel))) for _ in range(4)]
            for version, data, message in (
                (2, bundles[1], "version 2 is ready"),
                (3, bundles[0][:4000], "was not loaded again"),
                (4, bundles[0], "version 4 is ready"),
            ):
                await asyncio.sleep(0.2)
                put(version, data)
                server.send(signal.SIGHUP)
                await asyncio.to_thread(server.wait_for, message)
            await asyncio.sleep(0.2)
            done.set()
            await asyncio.gather(*callers)
            listed = await stub_of(channel).ListModels(pb.ListModelsRequest())
            assert {(row.model.version, row.state) for row in listed.models} >= {("4", pb.MODEL_STATE_READY)}
        order = list(dict.fromkeys(versions))
        assert order[0] == "1"
        assert order[-1] == "4"
        return set(versions), codes

    put(1, bundles[0])
    with Process(tmp_path, "--model-repository", str(tmp_path / "models")) as server:
        versions, codes = asyncio.run(load(server))
        assert versions == {"1", "2", "4"}, "the broken version never answered"
        assert codes == []
        server.send(signal.SIGTERM)
        assert server.end() == 0


def test_clients_that_leave_are_late_or_send_too_much(tmp_path: Path) -> None:
    """And after all of it the server is as it was, and its metrics say what happened."""

    async def load(server: Process) -> None:
        async with grpc.aio.insecure_channel(server.address, [("grpc.max_send_message_length", -1)]) as channel:
            stub = stub_of(channel)
            assert await outcome(stub.Explain(explain_request(), timeout=0.002)) is Code.DEADLINE_EXCEEDED
            big = pb.ExplainRequest(image=pb.Image(encoded=bytes(2 << 20)))
            assert await outcome(stub.Explain(big, timeout=SECONDS)) is Code.RESOURCE_EXHAUSTED
            calls = [stub.Explain(explain_request()) for _ in range(16)]
            await calls[0]
            for call in calls[1:]:
                call.cancel()
            evaluation = stub.Evaluate(pb.EvaluateRequest(image=explain_request().image))
            await asyncio.sleep(0.1)
            evaluation.cancel()
            assert await outcome(stub.GetModel(pb.GetModelRequest(model={"name": 'x"\n{}\x1b[2J'}))) is Code.NOT_FOUND
            replies = [reply async for reply in slow_stream(stub)]
            assert [reply.id for reply in replies] == [str(n) for n in range(12)]
            assert all(reply.WhichOneof("result") == "response" for reply in replies)
            assert await outcome(stub.Explain(explain_request(), timeout=SECONDS)) is Code.OK

    async def slow_stream(stub: Any) -> Any:
        """A reader that takes its time, while more is sent than the server looks ahead."""

        async def requests() -> Any:
            for number in range(12):
                yield pb.ExplainStreamRequest(id=str(number), request=explain_request())

        async for reply in stub.ExplainStream(requests(), timeout=SECONDS):
            await asyncio.sleep(0.02)
            yield reply

    flags = ("--message-bytes", str(1 << 20), "--metrics-port", "0", "--log-requests")
    with Process(tmp_path, *flags) as server:
        asyncio.run(load(server))
        with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=SECONDS) as response:
            metrics = response.read().decode().splitlines()
        for name in ("camrt_requests_in_server", "camrt_request_bytes_in_server", "camrt_queue_length"):
            assert f"{name} 0.0" in metrics
        assert 'camrt_requests_total{code="NOT_FOUND",method="GetModel",model=""} 1.0' in metrics
        server.send(signal.SIGTERM)
        assert server.end() == 0
        logs = server.logs()
        assert not failures(server)
        assert [line["code"] for line in logs if line.get("method") == "GetModel"] == ["NOT_FOUND"]
        assert all(line["request_id"] for line in logs if line["message"] == "call")


def test_tls_tokens_and_settings_from_everywhere(tmp_path: Path) -> None:
    authority = Authority()
    certificate, key = authority.issue("server").write(tmp_path, "server")
    (tmp_path / "tokens").write_text(f"explain {token_digest('open-sesame')} tester\n")
    (tmp_path / "camrt.toml").write_text(f'tokens = "{tmp_path / "tokens"}"\nclasses = 2\nlayers = 3\n')
    flags = ("--config", str(tmp_path / "camrt.toml"), "--tls-certificate", str(certificate), "--tls-key", str(key))

    async def load(server: Process) -> None:
        credentials = grpc.ssl_channel_credentials(authority.pem)
        async with grpc.aio.secure_channel(server.address, credentials) as channel:
            stub, token = stub_of(channel), (("authorization", "Bearer open-sesame"),)
            assert await outcome(stub.Explain(explain_request(), timeout=SECONDS)) is Code.UNAUTHENTICATED
            assert await outcome(stub.Explain(explain_request(), metadata=token, timeout=SECONDS)) is Code.OK
            many = explain_request(top_k=3)
            assert await outcome(stub.Explain(many, metadata=token, timeout=SECONDS)) is not Code.OK
        async with grpc.aio.insecure_channel(server.address) as channel:
            assert await outcome(stub_of(channel).ListModels(pb.ListModelsRequest(), timeout=5)) is Code.UNAVAILABLE

    with Process(tmp_path, *flags, CAMRT_LAYERS="5") as server:
        asyncio.run(load(server))
        server.send(signal.SIGTERM)
        assert server.end() == 0
        settings = server.logs()[0]["settings"]
        assert (settings["classes"], settings["layers"], settings["max_batch"]) == (2, 5, 4)
        text = json.dumps(server.logs())
        assert "open-sesame" not in text
        assert token_digest("open-sesame") not in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--host", "0.0.0.0"), "--insecure"),
        (("absent.onnx",), "absent.onnx"),
        (("--max-batch", "0"), "max_batch"),
    ],
)
def test_a_server_that_cannot_start_says_why(tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    command = [sys.executable, "-m", "camrt", "serve", "--port", "0", *flags]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_thread_that_still_encodes_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """One piece of encoding takes seconds here; its caller has gone when the server is told to stop."""
    output = pb.OutputOptions(space=3, output_height=3051, output_width=16384, encoding=pb.MAP_ENCODING_OVERLAY_PNG)
    with Process(tmp_path, "--drain-timeout", "1") as server, grpc.insecure_channel(server.address) as channel:
        stub = stub_of(channel)
        stub.Explain(explain_request(), timeout=SECONDS)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Explain(explain_request(output=output), timeout=1)
        assert caught.value.code() is Code.DEADLINE_EXCEEDED
        started = time.monotonic()
        server.send(signal.SIGTERM)
        assert server.end() == 0
        assert time.monotonic() - started < 2.5
        assert server.logs()[-1]["message"] == "stopped"


def test_the_process_leaves_nothing_behind(tmp_path: Path) -> None:
    shutil.copy(embedded_bundle_path(), tmp_path / "cats.onnx")
    with Process(tmp_path, str(tmp_path / "cats.onnx")) as server:
        server.send(signal.SIGINT)
        assert server.end() == 0
        assert {path.name for path in tmp_path.iterdir()} == {"cats.onnx", "log.jsonl"}
