"""A real server process under growing numbers of callers, beside the library in this process."""

from __future__ import annotations

import asyncio
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import numpy as np

from camrt.bench.latency import Progress
from camrt.bench.report import Row, Table
from camrt.bench.turns import Contender, take_turns
from camrt.bench.workload import Workload
from camrt.client import AsyncExplainerClient
from camrt.errors import CamrtError, InvalidInputError

STOP_SECONDS = 60


class ServerProcess:
    """``camrt serve`` on a free port of the loopback interface, for the length of a with block.

    Args:
        bundle: what it serves; None: the model that comes with camrt.
        flags: of ``camrt serve``.

    Attributes:
        process: the server.
        target: host:port.

    Raises:
        InvalidInputError: it does not start.
    """

    def __init__(self, bundle: Path | None, *flags: str) -> None:
        command = [sys.executable, "-m", "camrt", "serve", *([str(bundle)] if bundle else []), "--port", "0", *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            raise InvalidInputError("The server did not start.", f"Try `{shlex.join(['camrt', *command[3:]])}`.")
        self.target = line.split()[3]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdout is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process.stdout.close()


def bench_server(
    work: Workload, threads: int, callers: Sequence[int], seconds: float, progress: Progress, target: str | None = None
) -> tuple[list[Table], list[str]]:
    """A table of callers, answers a second and latencies; JPEG in, uint8 map out. Client and server share the machine.

    A load that fails ends the benchmark: the lines before it are kept, and a note says why.

    Args:
        work: bundle and image.
        threads: of the server's runs, and of the library in this process.
        callers: numbers of callers, each with one call after the other.
        seconds: of each number.
        progress: told what is being timed.
        target: address of a server that runs already, which serves the bundle; None starts one.

    Raises:
        InvalidInputError: the server does not start, or cannot make inputs of images as the workload does.
        RemoteError: it does not answer.
    """
    if work.preprocess is not None:
        raise InvalidInputError(
            "A server preprocesses as its bundle says; it knows no --preprocess.",
            f"Leave it out, with a bundle from `camrt export --preprocess {work.preprocess}`.",
        )
    jpeg = work.jpeg()
    progress("in this process")
    with work.explainer("cpu", threads) as explainer:
        if explainer.preprocessing is None:
            raise InvalidInputError(
                "The bundle does not say how images become tensors; a server cannot take images for it.",
                "Export it with `camrt export --preprocess`, e.g. imagenet.",
            )
        lines = [Contender({"callers": 1}, lambda: explainer.explain_images(jpeg, output_size="input"))]
        alone = take_turns(lines, rounds=max(10, int(10 * seconds)))[0]
    rows: list[Row] = [{"where": "in process", "callers": 1, **_figures(alone.seconds, sum(alone.seconds))}]
    notes: list[str] = []
    with ExitStack() as stack:
        address = target or stack.enter_context(ServerProcess(work.bundle, "--threads", str(threads))).target
        asyncio.run(_load(address, jpeg, 4, 1.0))
        for count in sorted(set(callers)):
            progress(f"{count} callers")
            try:
                times, elapsed = asyncio.run(_load(address, jpeg, count, seconds))
            except CamrtError as error:
                if len(rows) == 1:
                    raise
                notes.append(f"Nothing from {count} callers on: {error}")
                break
            rows.append({"where": "server", "callers": count, **_figures(times, elapsed)})
    base = float(rows[0]["images_per_second"])
    for row in rows:
        row["rate_ratio"] = float(row["images_per_second"]) / base
    return [Table("Server", rows, "", ("callers",), "images_per_second")], notes


def _figures(seconds: Sequence[float], elapsed: float) -> dict[str, float]:
    milliseconds = {
        f"{name}_ms": 1e3 * float(np.percentile(seconds, p)) for name, p in (("median", 50), ("p90", 90), ("p99", 99))
    }
    return {**milliseconds, "images_per_second": len(seconds) / elapsed}


async def _load(target: str, jpeg: bytes, callers: int, seconds: float) -> tuple[list[float], float]:
    """Seconds of every call, at least one, and of all together."""
    times: list[float] = []
    begun = time.perf_counter()
    async with AsyncExplainerClient(target) as client:

        async def caller() -> None:
            while not times or time.perf_counter() - begun < seconds:
                started = time.perf_counter()
                await client.explain(jpeg, output_size="input")
                times.append(time.perf_counter() - started)

        await asyncio.gather(*(caller() for _ in range(callers)))
    return times, time.perf_counter() - begun
