"""The server against the library in this process: ``python -m benchmarks.bench_server``.

One run on one machine: a real ``camrt serve`` process, its clients in this one, JPEG in, uint8 maps of the model's
input size out, RefineCAM. Throughput: 16 callers against ``Explainer.explain_images`` on the same JPEGs at its best
batch size, in turns. Latency: one caller against one call in process, in turns. Load: arrivals at random (Poisson) and
evenly spaced at 70 % of the measured throughput, then at random at 300 %; beside the former, what an ideal single queue
gives at that load. The cheap lane with and without Evaluate calls beside it. Memory over many requests. SIGTERM with
requests in flight. Every loop is bounded.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

import camrt
from benchmarks.server_load import (
    START_SECONDS,
    Outcomes,
    arrivals,
    beside_heavy,
    callers,
    one,
    resident_bytes,
    single_queue,
)
from camrt.bench.serving import ServerProcess
from camrt.client import AsyncExplainerClient
from camrt.datasets import SyntheticShapes
from tests.models import export_onnx, make_inputs, make_model

CALLERS = 16
PICTURES = 32
PICTURE_SIZE = 320
BATCH_SIZES = (1, 4, 8, 16)
WARM_UP_REQUESTS = 2000
GOALS = {
    "throughput": ">= 0.9 of in-process",
    "latency_overhead_ms": "<= 3",
    "p99_over_p50_at_70_percent": "<= 2.5",
    "refusal_ms": "p99 <= 50",
    "memory_growth": "< 0.02",
    "cheap_p50_beside_heavy": "< 2",
}
PACKAGES = ("camrt", "grpcio", "onnxruntime", "numpy", "pillow")


def pictures() -> list[bytes]:
    """JPEG files that differ."""
    files = []
    for item in SyntheticShapes("test", PICTURES, PICTURE_SIZE):
        stream = io.BytesIO()
        Image.fromarray(item.image).save(stream, "JPEG", quality=90)
        files.append(stream.getvalue())
    return files


def make_bundle(name: str, folder: Path) -> Path:
    """A torchvision network with random weights, as a bundle that takes images."""
    model = make_model(name, 0, 224, images=make_inputs(1, 224, 101))
    source = export_onnx(model, folder / f"{name}.onnx", "torchscript")
    bundle = camrt.export(
        source, folder / f"{name}.bundle.onnx", list(model.target_layers), image_size=(224, 224), preprocess="unit"
    )
    return Path(bundle.path)


def in_process_rate(explainer: camrt.Explainer, files: Sequence[bytes], batch_size: int, seconds: float) -> float:
    """Images a second of explain_images, with uint8 maps made as the server makes them."""
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        for explanation in explainer.explain_images(files, output_size="input", batch_size=batch_size):
            np.rint(255 * explanation.saliency_map).astype(np.uint8)
        count += len(files)
    return count / (time.perf_counter() - started)


async def bench_speed(bundle: Path, files: Sequence[bytes], options: argparse.Namespace) -> dict[str, Any]:
    """Throughput and latency, in turns with the library."""
    explainer = camrt.Explainer(bundle, threads=options.threads)
    rates: dict[int, list[float]] = {size: [] for size in BATCH_SIZES}
    served: list[float] = []
    own, remote = [], []
    with ServerProcess(bundle) as server:
        await callers(server.target, files, CALLERS, 2)
        in_process_rate(explainer, files, 8, 1)
        for _ in range(options.turns):
            for size in BATCH_SIZES:
                rates[size].append(in_process_rate(explainer, files, size, options.seconds / len(BATCH_SIZES)))
            served.append((await callers(server.target, files, CALLERS, options.seconds))[1])
        async with AsyncExplainerClient(server.target) as client:
            for number in range(options.calls):
                picture = files[number % len(files)]
                await asyncio.sleep(0.01)
                started = time.perf_counter()
                await client.explain(picture, output_size="input")
                remote.append(time.perf_counter() - started)
                time.sleep(0.01)
                started = time.perf_counter()
                explainer.explain_images(picture, output_size="input")
                own.append(time.perf_counter() - started)
    best = max(rates, key=lambda size: statistics.median(rates[size]))
    library, throughput = statistics.median(rates[best]), statistics.median(served)
    difference = 1e3 * (statistics.median(remote) - statistics.median(own))
    return {
        "in_process_images_a_second": {str(size): statistics.median(values) for size, values in rates.items()},
        "best_batch_size": best,
        "served_images_a_second": throughput,
        "throughput": throughput / library,
        "latency_ms": {"in_process": 1e3 * statistics.median(own), "server": 1e3 * statistics.median(remote)},
        "latency_overhead_ms": difference,
    }


async def bench_load(bundle: Path, files: Sequence[bytes], peak: float, options: argparse.Namespace) -> dict[str, Any]:
    """Below and above what the server can do, and cheap requests beside heavy ones."""
    with ServerProcess(bundle) as server:
        await callers(server.target, files, CALLERS, 2)
        steady = await arrivals(server.target, files, 0.7 * peak, options.seconds * 3, START_SECONDS)
        even = await arrivals(server.target, files, 0.7 * peak, options.seconds * 3, START_SECONDS, at_random=False)
        over = await arrivals(server.target, files, 3 * peak, options.overload_seconds, START_SECONDS)
        after = (await callers(server.target, files, 1, 2))[0]
        heavy = await beside_heavy(server.target, files, options.seconds * 2)
    ideal = single_queue(peak, 0.7)
    total = len(over.seconds) + len(over.refused) + len(over.errors)
    return {
        "at_70_percent_ms": {name: steady.percentile(p) for name, p in (("p50", 50), ("p90", 90), ("p99", 99))},
        "p99_over_p50_at_70_percent": steady.percentile(99) / steady.percentile(50),
        "single_queue_at_70_percent_ms": ideal,
        "single_queue_p99_over_p50": ideal["p99"] / ideal["p50"],
        "at_70_percent_evenly_ms": {name: even.percentile(p) for name, p in (("p50", 50), ("p90", 90), ("p99", 99))},
        "p99_over_p50_at_70_percent_evenly": even.percentile(99) / even.percentile(50),
        "errors_at_70_percent": steady.errors + ["RESOURCE_EXHAUSTED"] * len(steady.refused),
        "overload": {
            "requests": total,
            "answered": len(over.seconds),
            "refused": len(over.refused),
            "other": sorted(set(over.errors)),
            "answered_a_second": len(over.seconds) / options.overload_seconds,
            "answered_ms": {name: over.percentile(p) for name, p in (("p50", 50), ("p99", 99), ("most", 100))},
            "refusal_ms": {
                name: 1e3 * float(np.percentile(over.refused, p)) if over.refused else None
                for name, p in (("p50", 50), ("p99", 99), ("p99.9", 99.9), ("most", 100))
            },
            "refused_later_than_50_ms": sum(seconds > 0.05 for seconds in over.refused),
            "p50_after_ms": after.percentile(50),
        },
        "beside_heavy": {**heavy, "ratio": heavy["beside_p50"] / heavy["alone_p50"]}
        | {"p95_ratio": heavy["beside_p95"] / heavy["alone_p95"]},
    }


async def bench_memory(files: Sequence[bytes], requests: int) -> dict[str, Any]:
    """Resident memory of a server of the embedded model after a tenth of the requests (2000 at least), and after all.

    Before that the allocators still grow: buffers of every batch size and thread, pools of gRPC.
    """

    async def send(target: str, count: int) -> None:
        outcomes = Outcomes()
        async with AsyncExplainerClient(target) as client:

            async def caller(first: int) -> None:
                for number in range(first, count, CALLERS):
                    await one(client, files[number % len(files)], outcomes)

            await asyncio.gather(*(caller(first) for first in range(CALLERS)))
        if len(outcomes.seconds) != count:
            raise SystemExit(f"{count - len(outcomes.seconds)} requests failed: {outcomes.errors[:3]}")

    with ServerProcess(None) as server:
        await send(server.target, max(WARM_UP_REQUESTS, requests // 10))
        before = resident_bytes(server)
        await send(server.target, requests)
        after = resident_bytes(server)
    return {"requests": requests, "before_bytes": before, "after_bytes": after, "memory_growth": after / before - 1}


async def bench_termination(bundle: Path, files: Sequence[bytes]) -> dict[str, Any]:
    """SIGTERM with 32 requests in flight."""
    outcomes = Outcomes()
    with ServerProcess(bundle) as server:
        await callers(server.target, files, CALLERS, 1)
        async with AsyncExplainerClient(server.target, retries=0) as client:
            calls = [asyncio.create_task(one(client, picture, outcomes)) for picture in files[:32]]
            await asyncio.sleep(0.05)
            server.process.send_signal(signal.SIGTERM)
            await asyncio.wait_for(asyncio.gather(*calls), START_SECONDS)
        code = server.process.wait(START_SECONDS)
    return {"answered": len(outcomes.seconds), "other": outcomes.errors, "exit_code": code}


def print_report(console: Console, report: dict[str, Any]) -> None:
    """One table: what, how much, the goal."""
    speed, load, memory, end = report["speed"], report["load"], report["memory"], report["termination"]
    over, heavy = load["overload"], load["beside_heavy"]
    rows = [
        ("in process, images / s", f"{speed['in_process_images_a_second']}, best batch {speed['best_batch_size']}", ""),
        ("served, images / s", f"{speed['served_images_a_second']:.1f}", ""),
        ("served / in process", f"{speed['throughput']:.2f}", GOALS["throughput"]),
        ("latency, in process and server", f"{speed['latency_ms']}", ""),
        ("server over in process, ms", f"{speed['latency_overhead_ms']:.2f}", GOALS["latency_overhead_ms"]),
        ("at 70 %, at random, ms", f"{load['at_70_percent_ms']}", ""),
        ("p99 / p50", f"{load['p99_over_p50_at_70_percent']:.2f}", GOALS["p99_over_p50_at_70_percent"]),
        ("ideal single queue (M/D/1), ms", f"{load['single_queue_at_70_percent_ms']}", "for comparison"),
        ("p99 / p50", f"{load['single_queue_p99_over_p50']:.2f}", "for comparison"),
        ("at 70 %, evenly spaced, ms", f"{load['at_70_percent_evenly_ms']}", ""),
        ("p99 / p50", f"{load['p99_over_p50_at_70_percent_evenly']:.2f}", GOALS["p99_over_p50_at_70_percent"]),
        ("overload", f"{ {k: over[k] for k in ('requests', 'answered', 'refused', 'other')} }", "no other"),
        ("overload, answered ms", f"{over['answered_ms']}", ""),
        ("overload, refused ms", f"{over['refusal_ms']}", GOALS["refusal_ms"]),
        ("overload, refused after more than 50 ms", f"{over['refused_later_than_50_ms']}", ""),
        ("cheap p50 beside heavy / alone", f"{heavy['ratio']:.2f}", GOALS["cheap_p50_beside_heavy"]),
        ("cheap p95 beside heavy / alone", f"{heavy['p95_ratio']:.2f}", ""),
        ("memory growth", f"{memory['memory_growth']:.4f} over {memory['requests']}", GOALS["memory_growth"]),
        ("SIGTERM", f"{end}", "32 answered or UNAVAILABLE, exit code 0"),
    ]
    table = Table("what", "measured", "goal")
    for row in rows:
        table.add_row(*row)
    console.print(table)


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything, one after the other."""
    files = pictures()
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_bundle(options.model, Path(folder))
        speed = await bench_speed(bundle, files, options)
        load = await bench_load(bundle, files, speed["served_images_a_second"], options)
        end = await bench_termination(bundle, files)
    memory = await bench_memory(files, options.memory_requests)
    return {
        "machine": {"processor": platform.machine(), "system": platform.system(), "python": platform.python_version()},
        "versions": {package: version(package) for package in PACKAGES},
        "settings": {name: value for name, value in vars(options).items() if name != "json"},
        "goals": GOALS,
        "speed": speed,
        "load": load,
        "memory": memory,
        "termination": end,
    }


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--threads", type=int, default=2, help="of the library in this process")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="of one measurement")
    parser.add_argument("--overload-seconds", type=float, default=60.0)
    parser.add_argument("--calls", type=int, default=100, help="of the latency measurement")
    parser.add_argument("--memory-requests", type=int, default=10000)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    options = parser.parse_args()
    report = asyncio.run(measure(options))
    console = Console(width=None if sys.stdout.isatty() else 180)
    print_report(console, report)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2, default=str) + "\n")
        console.print(f"written: {options.json}")


if __name__ == "__main__":
    main()
