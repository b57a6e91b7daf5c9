"""Runs every row with both exporters and writes the table: ``python -m tests.coverage.report --out docs/coverage.md``."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from camrt.bundle import TargetLayer
from tests.coverage.architectures import ARCHITECTURES, Architecture
from tests.coverage.check import Result, check
from tests.coverage.networks import make_network
from tests.models import EXPORTERS, Exporter

NOT_RUN = Result(refusal="not run")
_INTRODUCTION = """# Which architectures work

Every row is a network with random weights, exported to ONNX by one of torch.onnx's exporters (`torchscript`: the older one,
opset 17; `dynamo`: the newer one) and then by `camrt export` with `target_layers="auto"`. Written by

    .venv/bin/python -m tests.coverage.report --out docs/coverage.md

with torch {torch}, torchvision {torchvision} and timm {timm}. Nothing is left out: what is refused has its reason in the last
column.

- **layers**: what `auto` picked, coarse to fine, each with C x h x w and, where it is not NCHW, the layout in the source
  graph. `+1` is a class token in front of the positions.
- **gradients**: the largest difference from torch.autograd in float64 over the largest gradient, over all layers, for two
  images whose pre-activations are farthest from a kink.
- **M=3**, **N=3**: three classes of one image, and three images, in one run against one by one.
- **status**: `ok` if outputs stay within 1e-6, gradients within 1e-5, M and N within 1e-5, and the export added only operators
  that TensorRT's parser takes. Where ONNX Runtime fuses bundle and source model otherwise, outputs are compared with fewer fusions
  too, and the status says at which level of its graph optimization they stay within 1e-6.

| architecture | network | exporter | image | layers | gradients | M=3 | N=3 | status |
|---|---|---|---|---|---|---|---|---|
"""

_NOTES = """
## Notes

- Networks with one resolution and a class token (ViT): `auto` picks the LayerNorm in front of the last attention, what
  pytorch-grad-cam recommends. Only the class token of the last block's output reaches the logits, so the gradient there is
  zero at every position. Other blocks can be named, with patterns too.
- Networks that keep several resolutions side by side (HRNet) have no single value at the finer ones that everything passes
  through; `auto` picks those that there are.
- A network whose last convolution makes the class scores (SqueezeNet) gets that layer as its coarsest: Grad-CAM there is the
  map of class scores itself. Name the layer before it for anything else.
- A stage end that feeds nothing but a LayerNorm at each position (ConvNeXt; the last stage of Swin) has a gradient that is orthogonal
  to its activations there, since the normalisation does not change when its input is scaled. HiResCAM of such a layer is zero
  in any implementation. The other methods are not affected; for HiResCAM name the block before, or the LayerNorm.
- Windows that do not divide the image are padded by the network; the padding is taken off again before a layer's end.
- MaxViT from the `torchscript` exporter: bundle and source model give the same bits at ONNX Runtime's level ORT_ENABLE_EXTENDED.
  At its default level it fuses convolutions with additions where it knows the shapes, and the bundle's are constants while
  the source computes them. Both round: against float64 the source is off by 2.6e-6 and the bundle by 2.3e-6. `camrt check` tells
  the two cases apart in the same way.
- The two images are ones that no value's kink is near: an activation function, or a tie inside a max pooling window, within
  float32's rounding has two right gradients. Networks where every random image has one (VGG, Inception-v3, Xception,
  SqueezeNet, ...) get their biases shifted a little first.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the rows and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the Markdown file")
    parser.add_argument(
        "--rows", type=Path, help="JSON lines with finished rows; they are taken from it and added to it"
    )
    parser.add_argument("--table-only", action="store_true", help="run nothing; a row that is not finished says so")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    done = _read(options.rows)
    for row in sorted(ARCHITECTURES, key=lambda row: row.size):
        missing = [] if options.table_only else [e for e in EXPORTERS if f"{row.id}-{e}" not in done]
        for exporter, result in _run(row, missing):
            done[f"{row.id}-{exporter}"] = result
            if options.rows is not None:
                with options.rows.open("a") as stream:
                    stream.write(json.dumps([f"{row.id}-{exporter}", dataclasses.asdict(result)]) + "\n")
    lines = [
        _line(row, exporter, done.get(f"{row.id}-{exporter}", NOT_RUN))
        for row in ARCHITECTURES
        for exporter in EXPORTERS
    ]
    options.out.write_text(_introduction() + "\n".join(lines) + "\n" + _NOTES)
    failed = [line for line in lines if "| ok" not in line]
    print(*failed, f"{len(lines) - len(failed)} of {len(lines)} rows are ok", sep="\n")
    return 1 if failed else 0


def _run(row: Architecture, exporters: Sequence[Exporter]) -> list[tuple[Exporter, Result]]:
    if not exporters:
        return []
    model = make_network(row)
    results = []
    for exporter in exporters:
        with tempfile.TemporaryDirectory() as folder:
            results.append((exporter, check(model, exporter, Path(folder))))
        print(_line(row, exporter, results[-1][1]), file=sys.stderr, flush=True)
        gc.collect()
    return results


def _read(path: Path | None) -> dict[str, Result]:
    """Rows that an interrupted run has finished."""
    if path is None or not path.exists():
        return {}
    done = {}
    for line in path.read_text().splitlines():
        key, fields = json.loads(line)
        layers = tuple(TargetLayer(**{**layer, "shape": tuple(layer["shape"])}) for layer in fields.pop("layers"))
        forbidden = tuple(fields.pop("forbidden"))
        done[key] = Result(**fields, layers=layers, forbidden=forbidden)
    return done


def _introduction() -> str:
    from importlib.metadata import version

    return _INTRODUCTION.format(**{name: version(name) for name in ("torch", "torchvision", "timm")})


def _line(row: Architecture, exporter: Exporter, result: Result) -> str:
    layers = "<br>".join(_described(layer) for layer in result.layers)
    numbers = [f"{number:.0e}" if number else "0" for number in (result.gradients, result.classes, result.images)]
    network, size = f"{row.library} {row.name}", f"{row.size}"
    cells = [row.family, network, exporter, size, layers, *(numbers if result.refusal is None else [""] * 3)]
    return "| " + " | ".join([*cells, status(result)]) + " |"


def _described(layer: TargetLayer) -> str:
    prefix = f"+{layer.prefix_tokens}" if layer.prefix_tokens else ""
    layout = "" if layer.layout == "NCHW" else f" {layer.layout}{prefix}"
    return f"`{layer.name}` {' x '.join(map(str, layer.shape))}{layout}"


def status(result: Result) -> str:
    """``ok``, with the level at which outputs are the same where it is not the default one; or what is wrong."""
    if result is NOT_RUN:
        return "not run"
    if result.refusal is not None:
        return f"refused: {result.refusal}".replace("|", "/").replace("\n", " ")
    limits = {"outputs": 1e-6, "activations": 1e-4, "gradients": 1e-5, "classes": 1e-5, "images": 1e-5}
    wrong = [
        f"{name} {getattr(result, name):.1e}" for name, limit in limits.items() if not getattr(result, name) <= limit
    ]
    same = f"ok: outputs {result.outputs:.1g} at level {result.level}, {result.fused:.1e} at the default level"
    return ", ".join([*wrong, *result.forbidden]) or ("ok" if result.level == "all" else same)


if __name__ == "__main__":
    raise SystemExit(main())
