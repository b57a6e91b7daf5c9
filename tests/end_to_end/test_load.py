"""A server process under load: what is mixed, what is too much, and what is expensive."""

from __future__ import annotations

import asyncio
import collections
import random
import signal
import statistics
import time
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from camrt.v1 import explainer_pb2 as pb
from tests.end_to_end.process import SECONDS, Process, explain_request, stub_of

pytestmark = pytest.mark.slow

Code = grpc.StatusCode
LOAD_SECONDS = 30
OVERLOAD_SECONDS = 60
# Of 99 in 100 refusals, and of the slowest: it may meet a full stop of the machine, or of the 48 callers in this process.
REFUSAL_SECONDS = 0.05
SLOWEST_REFUSAL_SECONDS = 0.25


def metric(server: Process, name: str) -> float:
    with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=SECONDS) as response:
        lines = response.read().decode().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))


async def timed(call: Awaitable[Any]) -> tuple[Code, float]:
    started = time.perf_counter()
    try:
        await call
        code = Code.OK
    except grpc.aio.AioRpcError as error:
        code = error.code()
    except asyncio.CancelledError:
        code = Code.CANCELLED
    return code, time.perf_counter() - started


async def repeat(seconds: float, callers: int, call: Callable[[int], Awaitable[None]]) -> None:
    """``callers`` callers, each of which calls again and again."""
    end = time.monotonic() + seconds

    async def caller(number: int) -> None:
        while time.monotonic() < end:
            await call(number)

    await asyncio.gather(*map(caller, range(callers)))


def test_a_mixed_load_leaves_nothing_behind(tmp_path: Path) -> None:
    codes: collections.Counter[Code] = collections.Counter()
    hurried: collections.Counter[Code] = collections.Counter()

    async def load(server: Process, seconds: float) -> None:
        dice = random.Random(0)
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub = stub_of(channel)
            tensor = pb.Tensor(data_type=pb.DATA_TYPE_FLOAT32, shape=(3, 224, 224), data=bytes(4 * 3 * 224 * 224))

            async def call(number: int) -> None:
                kind = dice.randrange(8)
                if kind == 0:
                    answer = stub.Evaluate(pb.EvaluateRequest(image=explain_request().image, seed=number))
                elif kind == 1:
                    answer = stub.Explain(explain_request(top_k=3, return_layer_maps=True))
                elif kind == 2:
                    answer = stub.Explain(pb.ExplainRequest(image=pb.Image(input=tensor)))
                elif kind == 3:
                    answer = stub.Explain(explain_request(options={"method": "gradcam"}), timeout=0.02)
                elif kind == 4:
                    answer = stub.Explain(pb.ExplainRequest(image=pb.Image(encoded=b"\xff\xd8\xff no image")))
                else:
                    answer = stub.Explain(explain_request())
                if kind == 5:
                    asyncio.get_running_loop().call_later(dice.random() / 20, answer.cancel)
                (hurried if kind == 3 else codes)[(await timed(answer))[0]] += 1

            await repeat(seconds, 12, call)

    with Process(tmp_path, "--metrics-port", "0") as server:
        asyncio.run(load(server, LOAD_SECONDS / 2))
        before = metric(server, "process_resident_memory_bytes")
        asyncio.run(load(server, LOAD_SECONDS / 2))
        assert metric(server, "process_resident_memory_bytes") < 1.1 * before
        for name in ("camrt_requests_in_server", "camrt_request_bytes_in_server", "camrt_heavy_requests"):
            assert metric(server, name) == 0, name
        server.send(signal.SIGTERM)
        assert server.end() == 0
        assert not [line for line in server.logs() if line["level"] == "error"]
    assert set(codes) <= {Code.OK, Code.CANCELLED, Code.INVALID_ARGUMENT}
    # Those with 20 ms left are refused on entry where they cannot be answered in time.
    assert set(hurried) <= {Code.OK, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED}
    assert codes[Code.OK] > 50


def test_what_is_too_much_is_refused_at_once_and_the_rest_is_on_time(tmp_path: Path) -> None:
    """48 callers on a queue of 16: nothing hangs, and nothing that was accepted is lost."""
    seconds: dict[Code, list[float]] = collections.defaultdict(list)

    async def load(server: Process) -> None:
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub = stub_of(channel)

            async def call(number: int) -> None:
                code, taken = await timed(stub.Explain(explain_request(), timeout=SECONDS))
                seconds[code].append(taken)
                if code is Code.RESOURCE_EXHAUSTED:
                    await asyncio.sleep(0.2)

            await repeat(OVERLOAD_SECONDS, 48, call)

    with Process(tmp_path, "--queue-items", "16", "--metrics-port", "0") as server:
        asyncio.run(load(server))
        assert metric(server, "camrt_requests_in_server") == 0
        server.send(signal.SIGTERM)
        assert server.end() == 0
    assert set(seconds) == {Code.OK, Code.RESOURCE_EXHAUSTED}
    refused = sorted(seconds[Code.RESOURCE_EXHAUSTED])
    assert len(refused) > 200
    assert refused[int(0.99 * len(refused))] <= REFUSAL_SECONDS
    assert refused[-1] <= SLOWEST_REFUSAL_SECONDS
    assert max(seconds[Code.OK]) < 5


def test_expensive_requests_leave_cheap_ones_their_time(tmp_path: Path) -> None:
    medians: list[float] = []

    async def load(server: Process, expensive: int) -> None:
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub, taken = stub_of(channel), list[float]()
            request = pb.EvaluateRequest(image=explain_request().image)

            async def heavy() -> None:
                while True:
                    await stub.Evaluate(request)

            async def cheap(number: int) -> None:
                taken.append((await timed(stub.Explain(explain_request())))[1])

            tasks = [asyncio.create_task(heavy()) for _ in range(expensive)]
            await asyncio.sleep(0.5)
            await repeat(5, 1, cheap)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            medians.append(statistics.median(taken))

    with Process(tmp_path, "--threads", "0") as server:
        for expensive in (0, 4, 0):
            asyncio.run(load(server, expensive))
        server.send(signal.SIGTERM)
        assert server.end() == 0
    assert medians[1] < 2 * max(medians[0], medians[2])
