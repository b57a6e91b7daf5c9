"""How cost grows with the image: bundles of one network, each exported at another image size, beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from itertools import pairwise

from camrt.bench.environment import pinned
from camrt.bench.latency import Progress
from camrt.bench.report import Row, Table
from camrt.bench.turns import Contender, noise_notes, take_turns
from camrt.bench.workload import Workload
from camrt.cam import REFINECAM
from camrt.errors import InvalidInputError
from camrt.explainer import Explainer


def bench_sizes(
    works: Sequence[Workload], threads: int, rounds: int, progress: Progress
) -> tuple[list[Table], list[str]]:
    """A table of predictions and RefineCAMs of one image by its pixels, and notes.

    ``to_smallest`` is the median over the median of the same method on the fewest pixels.

    Args:
        works: bundles of one network that take images of different sizes.
        threads: cores to use.
        rounds: of every line.
        progress: told what is being timed.

    Raises:
        InvalidInputError: more threads than cores, or two bundles for one image size.
    """
    with ExitStack() as stack:
        stack.enter_context(pinned(threads))
        opened = [(work, Explainer(work.bundle, "cpu", threads, preprocess=work.preprocess)) for work in works]
        opened.sort(key=lambda entry: _pixels(entry[1]))
        for (one, explainer), (other, next_one) in pairwise(opened):
            if _pixels(explainer) == _pixels(next_one):
                raise InvalidInputError(
                    f"{one.bundle.name} and {other.bundle.name} take images of {_pixels(explainer)} pixels.",
                    "Give one bundle of every size; `camrt export --image-size` makes them.",
                )
        lines: list[Contender] = []
        for work, explainer in opened:
            progress(work.bundle.name)
            tensor, base = work.inputs(explainer, 1), len(lines)
            labels: dict[str, str | int] = {"threads": threads, "pixels": _pixels(explainer)}
            lines.append(
                Contender({**labels, "method": "prediction"}, partial(explainer.predict, tensor), relative_to=base)
            )
            lines.append(
                Contender({**labels, "method": REFINECAM}, partial(explainer.explain, tensor), relative_to=base)
            )
        measured = take_turns(lines, rounds)
    smallest = {line.labels["method"]: line.median for line in measured[:2]}
    rows: list[Row] = [
        {**line.to_row(), "to_smallest": line.median / smallest[line.labels["method"]]} for line in measured
    ]
    return [Table("Image sizes", rows, "the prediction of the same image", ("pixels",))], noise_notes(measured)


def _pixels(explainer: Explainer) -> int:
    _, height, width = explainer.manifest.input_shape
    return int(height) * int(width)
