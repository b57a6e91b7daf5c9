"""The tables of a document, from the reports of one folder.

    python -m benchmarks.tables build/bench --write docs/performance.md
    python -m benchmarks.tables benchmarks/results --check docs/performance.md    # exits with 1 where it differs

A table stands between ``<!-- bench: NAME -->`` and ``<!-- /bench -->``; what is between them is replaced. Above it
are the command that made it and the machine. A table whose report is not in the folder says that it was not measured.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camrt.bench.report import Report, Row, load_report
from camrt.errors import CamrtError

BLOCK = re.compile(r"(<!-- bench: (\S+) -->\n).*?(<!-- /bench -->)", re.DOTALL)
NOT_MEASURED = "Not measured."
CONTENDERS = {
    "onnxruntime": "plain prediction",
    "torch": "plain prediction, torch",
    "camrt": "camrt",
    "camrt_openvino": "camrt, OpenVINO",
    "camrt_openvino_bf16": "camrt, OpenVINO, bf16 backward",
    "pytorch_grad_cam": "pytorch-grad-cam as in its README",
    "pytorch_grad_cam_best": "pytorch-grad-cam at its best",
    "torchcam_best": "torch-cam at its best",
    "captum": "captum, one layer",
}
GPU_REPORT = "gpu-h200.json"
GPU_BASE = "the same with CUDA graphs"
SUMMARY_MODELS = ("resnet18", "resnet50", "mobilenet_v3_small")
SERVERS = {"camrt": "`camrt serve`", "litserve": "LitServe, batches of up to 8", "grpc": "bare grpc.aio servicer"}
NETWORKS, MEANS = "Every network", "Geometric means over the networks"
PEERS = ("peers", "peers_16")
SWEPT = ("batch", "classes", "layers")
STAGES_TITLE = "Stages of one explanation, milliseconds"
STAGES = ("decode", "preprocess", "forward", "backward", "kernels", "encode")
ARCC_GOAL, SERVING_GOAL, KERNELS_GOAL = 20.0, 10.0, 1.25


@dataclass(frozen=True, slots=True)
class Run:
    """The reports of one folder."""

    folder: Path

    def report(self, kind: str) -> Report | None:
        """A report of that kind, or None where there is none."""
        path = self.folder / f"{kind}.json"
        return load_report(path) if path.is_file() else None

    def rows(self, kind: str, title: str) -> list[Row]:
        """The rows of a table of a report; none where there is no report."""
        report = self.report(kind)
        return [] if report is None else next((one.rows for one in report.tables if one.title == title), [])

    def arcc(self) -> list[dict[str, Any]]:
        """What benchmarks.bench_evaluation wrote of ARCC; nothing where it did not run."""
        path = self.folder / "bench_evaluation.json"
        return list(json.loads(path.read_text())["arcc"]) if path.is_file() else []

    def gpu(self) -> dict[str, Any]:
        """What benchmarks.gpu_check wrote on the GPU that the document is about; empty where it did not run."""
        path = self.folder / GPU_REPORT
        report: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        return report if report.get("figures", {}).get("benchmark") else {}

    def table(self, kind: str, columns: Sequence[str], lines: Sequence[Sequence[object]]) -> list[str]:
        """Markdown under the command and the machine; nothing where there is no report."""
        report = self.report(kind)
        if report is None or not lines:
            return []
        machine = report.environment
        date = f"{machine['date']}, " if "date" in machine else ""
        notes = f"; notes of the run: {len(report.notes)}" if report.notes else ""
        made = f"`{report.command}`: {date}{machine['processor']}, {machine['cores']} cores{notes}."
        return [made, "", *markdown(columns, lines)]


def markdown(columns: Sequence[str], lines: Iterable[Sequence[object]]) -> list[str]:
    """A table."""
    rows = (" | ".join(str(cell) for cell in line) for line in lines)
    return ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns), *(f"| {row} |" for row in rows)]


def number(value: str | float) -> str:
    """A figure with two decimals."""
    return f"{float(value):.2f}"


def peers(kind: str) -> Callable[[Run], list[str]]:
    """Ratios to camrt, a row a network, and the geometric means."""

    def make(run: Run) -> list[str]:
        rows = run.rows(kind, NETWORKS)
        keys = [key for key in CONTENDERS if any(row["key"] == key for row in rows)]
        models = list(dict.fromkeys(row["model"] for row in rows))
        means = {row["key"]: row for row in run.rows(kind, MEANS)}
        lines = [[model, *(ratio(rows, model, key) for key in keys)] for model in models]
        lines += [["geometric mean", *(_mean(means.get(key), len(models)) for key in keys)]] if rows else []
        return run.table(kind, ("network", *(CONTENDERS[key] for key in keys)), lines)

    return make


def ratio(rows: Sequence[Row], model: object, key: str, figure: str = "ratio") -> str:
    """A figure of one contender on one network; empty where it was not timed."""
    row = next((row for row in rows if (row["model"], row["key"]) == (model, key)), None)
    return "" if row is None else "refused" if "why_not" in row else number(row[figure])


def _mean(row: Row | None, networks: int) -> str:
    if row is None:
        return ""
    return number(row["mean_ratio"]) + ("" if row["models"] == networks else f" (of {row['models']})")


def prediction(run: Run) -> list[str]:
    """What an explanation costs beside a prediction, a row a network."""
    rows = run.rows("peers", NETWORKS)
    keys = ("camrt", "camrt_openvino_bf16", "camrt_predict")
    columns = ("network", "RefineCAM / plain prediction", "with the bf16 backward", "prediction through the bundle")
    models = dict.fromkeys(row["model"] for row in rows)
    lines = [[model, *(ratio(rows, model, key, "to_prediction") for key in keys)] for model in models]
    return run.table("peers", columns, lines)


def summary(run: Run) -> list[str]:
    """The peers on a few networks, a row a contender."""
    rows = run.rows("peers", NETWORKS)
    keys = [key for key in CONTENDERS if any(row["key"] == key for row in rows)]
    lines = [[CONTENDERS[key], *(ratio(rows, model, key) for model in SUMMARY_MODELS)] for key in keys]
    return run.table("peers", ("time, camrt = 1", *SUMMARY_MODELS), lines)


def goals(run: Run) -> list[str]:
    """What was aimed at, and what came out, of the reports that are there."""
    lines = [
        _goal(f"{CONTENDERS[str(row['key'])]}, batch {row['batch']}, {row['models']} networks", row["goal"], value)
        for kind in PEERS
        for row in run.rows(kind, MEANS)
        if "goal" in row and (value := float(row["mean_ratio"]))
    ]
    lines += [_goal(f"ARCC of {name}, pytorch-grad-cam", ARCC_GOAL, value) for name, value in arcc_ratios(run)]
    lines += [_goal(f"serving, {SERVERS[name]}", SERVING_GOAL, value) for name, value in server_ratios(run)]
    for row in run.rows("latency", STAGES_TITLE):
        inference = float(row["forward"]) + float(row["backward"])
        value = 1 + float(row["kernels"]) / inference
        met = "yes" if value <= KERNELS_GOAL else "no"
        lines.append(("inference and kernels / inference alone", f"at most {KERNELS_GOAL:g}", number(value), met))
    return markdown(("what", "goal", "measured", "met"), lines) if lines else []


def _goal(what: str, goal: str | float, value: float) -> tuple[str, str, str, str]:
    return what, f"at least {float(goal):g}", number(value), "yes" if value >= float(goal) else "no"


def arcc_ratios(run: Run) -> list[tuple[str, float]]:
    """Network, and time of pytorch-grad-cam's ARCC as in its README over camrt's."""
    return [(str(row["model"]), float(row["ratio"]["pytorch_grad_cam"])) for row in run.arcc()]


def server_ratios(run: Run) -> list[tuple[str, float]]:
    """Peer server, and images a second of camrt over its own."""
    rows = run.rows("peer_servers", "Servers")
    ours = ("camrt", *(row["server"] for row in rows if "why_not" in row))
    return [(str(row["server"]), float(row["camrt_is_faster_by"])) for row in rows if row["server"] not in ours]


def limits(run: Run) -> list[str]:
    """Shares of the GEMM peak."""
    lines = [
        (row["method"], row["batch"], number(row["gflop_per_image"]), number(row["share_of_gemm_peak"]))
        for row in run.rows("latency", "Share of the machine's limits")
    ]
    return run.table("latency", ("what", "batch", "GFLOP / image", "share of the GEMM peak"), lines)


def stages(run: Run) -> list[str]:
    """Shares of the time of one explanation, from a JPEG file to a PNG file."""
    lines = []
    for row in run.rows("latency", STAGES_TITLE):
        whole = sum(float(row[name]) for name in STAGES)
        shares = (f"{float(row[name]) / whole:.1%}" for name in STAGES)
        lines.append((f"{row['provider']}, {row['threads']} threads", *shares))
    return run.table("latency", ("", *STAGES), lines)


def growth(run: Run) -> list[str]:
    """Cost by batch, classes and layers, beside a prediction of as many images."""
    rows = [row for row in run.rows("latency", "Latency") if row["method"] == "refinecam"]
    if not rows:
        return []
    first, lines = rows[0], []
    for name in SWEPT:
        others = [other for other in (*SWEPT, "provider", "threads") if other != name]
        swept = [row for row in rows if all(row[other] == first[other] for other in others)]
        for row in sorted(swept, key=lambda one: int(one[name])) if len(swept) > 1 else ():
            time = float(row["median_ms"]) / float(first["median_ms"])
            lines.append((name, row[name], number(time), number(row["ratio"])))
    columns = ("what grows", "to", f"time / one image, one class, {first['layers']} layers", "time / prediction")
    return run.table("latency", columns, lines)


def sizes(run: Run) -> list[str]:
    """Cost by image size."""
    rows = run.rows("sizes", "Image sizes")
    cells: dict[int, dict[object, Row]] = {}
    for row in rows:
        cells.setdefault(int(row["pixels"]), {})[row["method"]] = row
    lines = []
    for pixels, by_method in cells.items():
        side = math.isqrt(pixels)
        name = f"{side} x {side}" if side * side == pixels else f"{pixels} pixels"
        costs = (number(by_method[method]["to_smallest"]) for method in ("prediction", "refinecam"))
        lines.append((name, number(pixels / min(cells)), *costs, number(by_method["refinecam"]["ratio"])))
    columns = ("image", "pixels", "prediction", "RefineCAM", "RefineCAM / prediction")
    return run.table("sizes", columns, lines)


def callers(run: Run) -> list[str]:
    """A server under growing numbers of callers, beside the library in process."""
    lines = []
    for row in (rows := run.rows("server", "Server")):
        median, tail = float(row["median_ms"]), float(row["p99_ms"])
        figures = (row["rate_ratio"], median / float(rows[0]["median_ms"]), tail / median)
        lines.append((row["where"], row["callers"], *map(number, figures)))
    columns = ("where", "callers", "images / s, in process = 1", "p50, in process = 1", "p99 / p50")
    return run.table("server", columns, lines)


def servers(run: Run) -> list[str]:
    """camrt serve beside other servers."""
    rows = run.rows("peer_servers", "Servers")
    base = next((float(row["p50_ms"]) for row in rows if row["server"] == "camrt"), 1.0)
    lines = []
    for row in rows:
        figures = [str(row.get("why_not", "")), ""]
        if "why_not" not in row:
            figures = [number(1 / float(row["camrt_is_faster_by"])), number(float(row["p50_ms"]) / base)]
        lines.append((SERVERS[str(row["server"])], *figures))
    return run.table("peer_servers", ("server", "images / s, camrt = 1", "p50, camrt = 1"), lines)


def arcc(run: Run) -> list[str]:
    """ARCC beside pytorch-grad-cam, and beside the passes of the network that it cannot do without."""
    keys = ("pytorch_grad_cam", "pytorch_grad_cam_frozen")
    lines = [(row["model"], number(row["cost"]), *(number(row["ratio"][key]) for key in keys)) for row in run.arcc()]
    columns = ("network", "camrt / its passes", "pytorch-grad-cam as in its README", "pytorch-grad-cam at its best")
    return ["`python -m benchmarks.bench_evaluation`", "", *markdown(columns, lines)] if lines else []


def _on_gpu(run: Run, columns: Sequence[str], lines: Iterable[Sequence[object]]) -> list[str]:
    """Markdown under what the GPU is."""
    environment = run.gpu()["environment"]
    versions = ", ".join(
        f"{name} {version}" for name, version in environment["packages"].items() if version[0].isdigit()
    )
    return [f"`make gpu-check`: {environment['nvidia-smi']}; {versions}.", "", *markdown(columns, lines)]


def gpu_kernels(run: Run) -> list[str]:
    """The CUDA kernels beside a copy on the same GPU."""
    if not run.gpu():
        return []
    lines = []
    for row in run.gpu()["figures"]["benchmark"]["kernels"]:
        if row["kernel"] == "copy":
            continue
        recorded = "" if row["replay_seconds"] is None else f"{1e6 * row['replay_seconds']:.0f}"
        lines.append(
            (row["kernel"], row["batch"], f"{1e6 * row['seconds']:.0f}", recorded, f"{100 * row['share']:.0f} %")
        )
    columns = ("kernel", "batch", "called from Python, us", "recorded, us", "bytes / s, copy = 100 %")
    return _on_gpu(run, columns, lines)


def gpu_refinecam(run: Run) -> list[str]:
    """RefineCAM of a ResNet-50 on a GPU, beside its peers."""
    if not run.gpu():
        return []
    rows = run.gpu()["figures"]["benchmark"]["refinecam"]
    batches = sorted({row["batch"] for row in rows})
    seconds = {(row["contender"], row["batch"]): row["seconds"] for row in rows}
    lines = []
    for contender in dict.fromkeys(row["contender"] for row in rows):
        cells = []
        for batch in batches:
            own, base = seconds.get((contender, batch)), seconds.get((GPU_BASE, batch))
            cells += ["", ""] if own is None or base is None else [f"{1e3 * own:.2f}", number(own / base)]
        lines.append((contender, *cells))
    columns = ["", *(f"batch {batch}, {what}" for batch in batches for what in ("ms", "ratio"))]
    return _on_gpu(run, columns, lines)


TABLES: dict[str, Callable[[Run], list[str]]] = {
    "peers": peers("peers"),
    "peers-16": peers("peers_16"),
    "summary": summary,
    "prediction": prediction,
    "goals": goals,
    "limits": limits,
    "stages": stages,
    "growth": growth,
    "sizes": sizes,
    "callers": callers,
    "servers": servers,
    "arcc": arcc,
    "gpu-kernels": gpu_kernels,
    "gpu-refinecam": gpu_refinecam,
}


def fill(text: str, run: Run) -> str:
    """The document with its tables made from the run.

    Raises:
        SystemExit: a table that is not known.
    """

    def block(match: re.Match[str]) -> str:
        name = match[2]
        if name not in TABLES:
            raise SystemExit(f"no table is called {name!r}; there are: {', '.join(TABLES)}")
        lines = TABLES[name](run) or [NOT_MEASURED]
        return match[1] + "\n".join(lines) + "\n" + match[3]

    return BLOCK.sub(block, text)


def main() -> None:
    """Writes or checks the documents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", type=Path, nargs="+", default=[], metavar="DOCUMENT")
    parser.add_argument("--check", type=Path, nargs="+", default=[], metavar="DOCUMENT")
    options = parser.parse_args()
    run = Run(options.folder)
    try:
        for path in options.write:
            path.write_text(fill(path.read_text(), run))
        differing = [str(path) for path in options.check if fill(path.read_text(), run) != path.read_text()]
    except (CamrtError, OSError) as error:
        raise SystemExit(str(error)) from error
    if differing:
        raise SystemExit(f"figures of another run: {', '.join(differing)}; use --write")


if __name__ == "__main__":
    main()
