"""A server process, and loads for it: callers that wait for their answers, and arrivals that wait for nobody."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from camrt.bench.serving import ServerProcess
from camrt.client import AsyncExplainerClient, RemoteError
from camrt.errors import CamrtError

START_SECONDS = 60
QUEUE_STEPS = 200_000


@dataclass(slots=True)
class Outcomes:
    """What became of the requests of one load.

    Attributes:
        seconds: of those that were answered.
        refused: seconds until RESOURCE_EXHAUSTED came.
        errors: gRPC codes of all others.
    """

    seconds: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def percentile(self, percent: float) -> float:
        """Milliseconds."""
        return 1e3 * float(np.percentile(self.seconds, percent)) if self.seconds else float("nan")


def resident_bytes(server: ServerProcess) -> int:
    """Memory of the process, of /proc."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


async def one(client: AsyncExplainerClient, picture: bytes, outcomes: Outcomes) -> None:
    """One Explain call, counted."""
    started = time.perf_counter()
    try:
        await client.explain(picture, output_size="input")
    except RemoteError as error:
        elapsed = time.perf_counter() - started
        if error.code == "RESOURCE_EXHAUSTED":
            outcomes.refused.append(elapsed)
        else:
            outcomes.errors.append(error.code)
    except CamrtError as error:
        outcomes.errors.append(type(error).__name__)
    else:
        outcomes.seconds.append(time.perf_counter() - started)


async def callers(target: str, files: Sequence[bytes], count: int, seconds: float) -> tuple[Outcomes, float]:
    """``count`` callers, each one call after the other; outcomes and answers a second."""
    outcomes, until = Outcomes(), time.perf_counter() + seconds
    async with AsyncExplainerClient(target, retries=0) as client:

        async def caller(number: int) -> None:
            while time.perf_counter() < until:
                await one(client, files[number % len(files)], outcomes)
                number += count

        started = time.perf_counter()
        await asyncio.gather(*(caller(number) for number in range(count)))
        return outcomes, len(outcomes.seconds) / (time.perf_counter() - started)


async def arrivals(
    target: str, files: Sequence[bytes], rate: float, seconds: float, timeout: float, at_random: bool = True
) -> Outcomes:
    """Calls that start ``rate`` times a second, at random or evenly spaced, whatever became of those before."""
    outcomes, rng, tasks = Outcomes(), np.random.default_rng(0), []
    async with AsyncExplainerClient(target, retries=0, timeout=timeout) as client:
        begun = time.perf_counter()
        due = 0.0
        number = 0
        while due < seconds:
            await asyncio.sleep(max(0.0, begun + due - time.perf_counter()))
            tasks.append(asyncio.create_task(one(client, files[number % len(files)], outcomes)))
            due += float(rng.exponential(1 / rate)) if at_random else 1 / rate
            number += 1
        await asyncio.wait_for(asyncio.gather(*tasks), timeout + START_SECONDS)
    return outcomes


def single_queue(peak: float, share: float, at_random: bool = True) -> dict[str, float]:
    """Milliseconds in an ideal single queue with a fixed time a request (M/D/1, simulated), as a yardstick.

    Args:
        peak: what the server answered at most, a second; its inverse is the time a request.
        share: the load, as a part of that.
        at_random: Poisson arrivals; else evenly spaced ones, which never wait.
    """
    service = 1 / peak
    gaps = np.random.default_rng(0).exponential(service / share, QUEUE_STEPS) if at_random else [service / share]
    wait, times = 0.0, []
    for gap in gaps:
        wait = max(0.0, wait + service - gap)
        times.append(1e3 * (wait + service))
    return {name: float(np.percentile(times, p)) for name, p in (("p50", 50), ("p90", 90), ("p99", 99))}


async def beside_heavy(target: str, files: Sequence[bytes], seconds: float) -> dict[str, float]:
    """p50 and p95 of one cheap caller alone and beside four callers of Evaluate, in milliseconds, in turns."""
    alone, beside = Outcomes(), Outcomes()
    async with AsyncExplainerClient(target, retries=0, timeout=START_SECONDS) as client:
        evaluations = 0
        for _ in range(2):
            alone.seconds += (await callers(target, files, 1, seconds / 2))[0].seconds
            stop = asyncio.Event()

            async def heavy(client: AsyncExplainerClient = client, stop: asyncio.Event = stop) -> None:
                nonlocal evaluations
                while not stop.is_set():
                    await client.evaluate(files[0], ["arcc"])
                    evaluations += 1

            tasks = [asyncio.create_task(heavy()) for _ in range(4)]
            await asyncio.sleep(1)
            beside.seconds += (await callers(target, files, 1, seconds / 2))[0].seconds
            stop.set()
            await asyncio.wait_for(asyncio.gather(*tasks), START_SECONDS)
    found = {f"{name}_p{p}": o.percentile(p) for name, o in (("alone", alone), ("beside", beside)) for p in (50, 95)}
    return {**found, "evaluations": evaluations}
