"""RefineCAM in camrt against its peers and against a plain prediction: ``python -m benchmarks.bench_explain``.

One run, the same images, threads and layers, pinned to the same cores. First every map is checked against camrt's: no
contender is timed on different work without the table saying so. Then the contenders take turns, one call each a round,
with a pause before every call so that the idle threads of one library have stopped spinning when the next one starts.
A peer that cannot run is a line that says why.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

import camrt
from benchmarks.peers import PEERS, TORCHCAM_BASES, Case, Peer, Run, largest_difference
from camrt.bench.environment import describe_machine, pinned, quiet_notes
from camrt.bench.report import Report, Row, Table
from camrt.bench.turns import Contender, noise_notes, take_turns
from camrt.types import AnyArray
from tests import oracles
from tests.models import export_onnx, make_inputs, make_model

MODELS = ("resnet18", "resnet50", "vgg11_bn", "convnext_tiny", "mobilenet_v3_small", "efficientnet_b0")
GOALS = {"pytorch_grad_cam": 15.0, "pytorch_grad_cam_best": 9.0, "torchcam_best": 2.5}
FLOOR, OURS = "onnxruntime", "camrt"
OUTPUT_TOLERANCE = 1e-5
IMAGE_SEED = 101
SLOW_ROUNDS = 5  # of the lines that run one pass a layer


def make_case(name: str, batch: int, options: argparse.Namespace, folder: Path) -> Case:
    """One network with random weights as torch module, ONNX file and bundle."""
    images = make_inputs(batch, options.size, IMAGE_SEED)
    model = make_model(name, 0, options.size, images=images)
    source = export_onnx(model, folder / f"{name}.onnx", "torchscript")
    size = (options.size, options.size)
    bundle = camrt.export(source, folder / f"{name}.bundle.onnx", list(model.target_layers), image_size=size)
    return Case(model, source, Path(bundle.path), images, options.base, options.threads)


def start_all(case: Case, keys: Sequence[str]) -> tuple[dict[str, Run], dict[str, AnyArray], list[Row]]:
    """The calls of those that run, what each gave when it ran once, and rows with the reasons of the others."""
    runs, outputs, failed = {}, {}, []
    for peer in (peer for peer in PEERS if peer.key in keys):
        try:
            call = peer.start(case)
            started = time.perf_counter()
            outputs[peer.key] = call()
            runs[peer.key] = call
            print(f"  {peer.key}: first call {time.perf_counter() - started:.2f} s", file=sys.stderr)
        except Exception as error:  # noqa: BLE001 - whatever stops a peer is what its row says
            first_line = (str(error).splitlines() or [""])[0]
            failed.append(_row(case, peer, why=f"{type(error).__name__}: {first_line}"))
    return runs, outputs, failed


def check_same_work(case: Case, outputs: dict[str, AnyArray]) -> list[Row]:
    """Largest differences from camrt's maps; SystemExit where one is beyond its tolerance.

    torch-cam leaves out a normalisation and has its own Grad-CAM++, so its pipeline is compared through its LayerCAM,
    in its order of operations; the plain difference is reported too, and so is that of the lower-precision backward.
    """
    rows: list[Row] = []
    failed = {}
    for peer in PEERS:
        if peer.key not in outputs or peer.key in (OURS, FLOOR):
            continue
        reference = outputs[OURS if peer.explains else FLOOR]
        difference = largest_difference(outputs[peer.key], reference)
        limit = oracles.TOLERANCE_CEILING if peer.explains else OUTPUT_TOLERANCE * float(np.abs(reference).max())
        if (peer.same_map or not peer.explains) and difference > limit:
            failed[peer.key] = difference
        correlation = float(np.corrcoef(outputs[peer.key].ravel(), reference.ravel())[0, 1])
        rows.append({**_row(case, peer), "largest_difference": difference, "correlation": correlation})
    if not outputs.keys().isdisjoint(("torchcam", "torchcam_best")):
        difference = _torchcam_difference(case, outputs[FLOOR])
        if difference > oracles.TOLERANCE_CEILING:
            failed["torchcam (layercam, resize_once)"] = difference
    if failed:
        raise SystemExit(f"{case.model.name}: outputs differ, so times would not compare: {failed}")
    return rows


def _torchcam_difference(case: Case, logits: Any) -> float:
    """Largest difference of one image's map from torch-cam's LayerCAM, in its order of operations."""
    explainer = camrt.Explainer(case.bundle, threads=case.threads)
    image = case.images[:1]
    finest = explainer.manifest.target_layers[-1].shape[1:]
    predicted = int(logits[0].argmax())
    theirs = oracles.torchcam_map(case.model.module, case.model.target_layers, image, [predicted], "layercam")[0]
    ours = explainer.explain(image, base_method="layercam", order="resize_once", output_size=finest)[0].saliency_map
    return largest_difference(ours, theirs)


def bench_case(case: Case, options: argparse.Namespace) -> tuple[list[Row], list[Row], list[str]]:
    """Rows of times, rows of differences, and notes."""
    with pinned(case.threads):
        torch.set_num_threads(case.threads)
        runs, outputs, failed = start_all(case, (FLOOR, OURS, *options.lines))
        if not {FLOOR, OURS} <= runs.keys():
            raise SystemExit(f"{case.model.name}: nothing to compare with: {failed}")
        differences = check_same_work(case, outputs)
        peers = [peer for peer in PEERS if peer.key in runs]
        lines = [
            Contender(
                _row(case, peer),
                runs[peer.key],
                len(case.images),
                min(SLOW_ROUNDS, options.rounds) if peer.key.startswith("pytorch_grad_cam") else None,
                relative_to=next(index for index, other in enumerate(peers) if other.key == OURS),
            )
            for peer in peers
        ]
        measured = take_turns(lines, options.rounds, options.warmup, options.pause_ms / 1e3)
    floor = next(line for line, peer in zip(measured, peers, strict=True) if peer.key == FLOOR)
    rows: list[Row] = [{**line.to_row(), "to_prediction": line.median / floor.median} for line in measured]
    notes = [f"{case.model.name}, batch {len(case.images)}: {note}" for note in noise_notes(measured)]
    return [*rows, *failed], differences, notes


def _row(case: Case, peer: Peer, why: str = "") -> Row:
    row: Row = {"model": case.model.name, "batch": len(case.images), "key": peer.key, "what": peer.label}
    return {**row, "why_not": why} if why else row


def means(rows: Sequence[Row]) -> list[Row]:
    """Geometric means over the models, one a contender and batch, with the goals."""
    found: list[Row] = []
    for batch in sorted({int(row["batch"]) for row in rows}):
        for peer in PEERS:
            mine = [row for row in rows if (row["batch"], row["key"]) == (batch, peer.key) and "ratio" in row]
            if not mine:
                continue
            mean = statistics.geometric_mean(float(row["ratio"]) for row in mine)
            floor = statistics.geometric_mean(float(row["to_prediction"]) for row in mine)
            row: Row = {"batch": batch, "key": peer.key, "models": len(mine)}
            row.update(mean_ratio=mean, to_prediction=floor)
            goal = GOALS.get(peer.key)
            found.append(row if goal is None else {**row, "goal": goal, "met": "yes" if mean >= goal else "no"})
    return found


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    keys = [peer.key for peer in PEERS]
    parser.add_argument(
        "--lines", nargs="+", choices=keys, default=keys, help=f"who takes part, beside {FLOOR} and {OURS}"
    )
    parser.add_argument("--base", default="gradcam++", choices=sorted(TORCHCAM_BASES))
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--pause-ms", type=float, default=20.0)
    parser.add_argument("--name", default="peers", help="of the report and its files")
    parser.add_argument("--out", type=Path, help="also write the report, NAME.json and NAME.md, to this folder")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace, command: str) -> Report:
    """The whole benchmark."""
    machine = describe_machine()
    times: list[Row] = []
    differences: list[Row] = []
    notes = quiet_notes(machine)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            for batch in options.batch:
                print(f"{name}, batch {batch}", file=sys.stderr)
                rows, different, told = bench_case(make_case(name, batch, options, Path(folder)), options)
                times += rows
                differences += different
                notes += told
    tables = [
        Table("Geometric means over the networks", means(times), "camrt RefineCAM"),
        Table("Every network", times, "camrt RefineCAM"),
        Table("Differences from camrt's maps, and of logits from ONNX Runtime's", differences),
    ]
    settings = {key: value for key, value in vars(options).items() if key != "out"}
    return Report(options.name, command, machine, settings, tables, notes=notes)


def publish(report: Report, out: Path | None) -> None:
    """Prints a report, and writes it where a folder is named."""
    Console(width=None if sys.stdout.isatty() else 200).print(report.to_markdown(), markup=False, highlight=False)
    for path in [] if out is None else report.write(out):
        print(f"written: {path}")


def main() -> None:
    """Runs the benchmark, prints its tables and writes them where a folder is named."""
    options = parse(sys.argv[1:])
    report = run(options, shlex.join(["python", "-m", "benchmarks.bench_explain", *sys.argv[1:]]))
    publish(report, options.out)


if __name__ == "__main__":
    main()
