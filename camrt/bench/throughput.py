"""Images a second: batches, threads, and several explainers side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from camrt.bench.environment import pinned
from camrt.bench.latency import Progress
from camrt.bench.report import Table
from camrt.bench.turns import Contender, noise_notes, take_turns
from camrt.bench.workload import Workload
from camrt.cam import REFINECAM
from camrt.explainer import Explainer


def bench_throughput(
    work: Workload,
    threads: int,
    batches: Sequence[int],
    instances: Sequence[int],
    rounds: int,
    progress: Progress,
    method: str = REFINECAM,
    provider: str = "cpu",
) -> tuple[list[Table], list[str]]:
    """A table of images a second, and notes. All lines use the same cores.

    Args:
        work: bundle and image.
        threads: cores that every line may use.
        batches: images a call.
        instances: explainers that run at the same time, each with threads / instances threads, and at least one.
        rounds: of every line.
        progress: told what is being timed.
        method: CAM method.
        provider: execution provider.

    Raises:
        InvalidInputError: more threads than cores.
        BackendUnavailableError: the provider cannot be used here.
    """
    progress(f"{provider}, {threads} threads")
    with ExitStack() as stack:
        stack.enter_context(pinned(threads))
        pool = stack.enter_context(ThreadPoolExecutor(max(instances)))
        lines = []
        for count in sorted(set(instances)):
            share = max(1, threads // count)
            explainers = [Explainer(work.bundle, provider, share, preprocess=work.preprocess) for _ in range(count)]
            for batch in sorted(set(batches)):
                labels: dict[str, str | int] = {
                    "provider": provider,
                    "threads": threads,
                    "method": method,
                    "instances": count,
                    "batch": batch,
                }
                run = _side_by_side(work, explainers, batch, method, pool)
                lines.append(Contender(labels, run, batch * count))
        measured = take_turns(lines, rounds)
    rows = [line.to_row() for line in measured]
    return [Table("Throughput", rows, "the first line", ("batch",), "images_per_second")], noise_notes(measured)


def _side_by_side(
    work: Workload, explainers: Sequence[Explainer], batch: int, method: str, pool: ThreadPoolExecutor
) -> Callable[[], object]:
    """A call that lets every explainer work on a batch of its own, at the same time."""
    tensor = work.inputs(explainers[0], batch)

    def one(explainer: Explainer) -> int:
        return len(explainer.explain(tensor, method=method))

    if len(explainers) == 1:
        return lambda: one(explainers[0])
    return lambda: list(pool.map(one, explainers))
