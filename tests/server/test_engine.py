from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from camrt.cam import Perturbation, make_plan
from camrt.errors import ClassIndexError, InvalidInputError
from camrt.server.engine import Cancelled, Engine, ExplainResult, ExplainWork
from camrt.server.errors import DeadlineError, DrainingError, OverloadedError
from camrt.server.heavy import Pace
from camrt.server.models import LoadedModel
from camrt.server.settings import ServerSettings
from camrt.server.telemetry import Telemetry
from camrt.types import FloatArray
from tests.server.stub_models import explainer, gated, image, loaded, plan


def with_engine(test: Callable[[Engine], Awaitable[None]], telemetry: Telemetry | None = None, **settings: Any) -> None:
    async def run() -> None:
        engine = Engine(ServerSettings(**{"threads": 1, "max_delay_ms": 0, **settings}), telemetry)
        try:
            await test(engine)
        finally:
            engine.close()

    asyncio.run(asyncio.wait_for(run(), 60))


def work(model: LoadedModel, tensor: FloatArray, *classes: int, seconds: float | None = None) -> ExplainWork:
    deadline = None if seconds is None else time.monotonic() + seconds
    return ExplainWork(model, tensor, np.array(classes or (-1,), np.int64), plan(), deadline)


async def entered(stub: Any) -> None:
    assert await asyncio.to_thread(stub.entered.wait, 20)


def test_a_batch_of_mixed_classes_says_what_each_says_alone() -> None:
    async def test(engine: Engine) -> None:
        model, stub = gated()
        first = asyncio.create_task(engine.explain(work(model, image(9))))
        await entered(stub)
        tasks = [asyncio.create_task(engine.explain(work(model, image(n), n % 6))) for n in range(4)]
        tasks.append(asyncio.create_task(engine.explain(work(model, image(4), -2))))
        await asyncio.sleep(0.02)
        stub.gate.set()
        results = await asyncio.gather(*tasks)
        await first
        assert stub.runs == [1, 5]
        for n, result in enumerate(results):
            assert result.batch_size == 5
            expected = explainer().explain(image(n)[None], n % 6 if n < 4 else -2)[0]
            (found,) = result.explanations
            assert found.class_index == expected.class_index
            np.testing.assert_allclose(found.saliency_map, expected.saliency_map, atol=1e-5)
            np.testing.assert_allclose(result.logits, explainer().predict(image(n)[None])[0], rtol=1e-4, atol=1e-4)
            assert result.probabilities.dtype == np.float32
            assert abs(result.probabilities.sum() - 1) < 1e-5
            assert found.probability == pytest.approx(result.probabilities[found.class_index], abs=1e-5)
        assert engine.statistics.of("gated", "1").executions == 2

    with_engine(test)


def test_several_classes_of_one_image_share_a_forward_pass() -> None:
    async def test(engine: Engine) -> None:
        model, stub = gated()
        stub.gate.set()
        result = await engine.explain(work(model, image(), 0, -1, 3, 5, 1))
        assert stub.runs == [1, 1, 1]  # two classes a run, one image each
        expected = explainer().explain(image()[None], [0, -1, 3, 5, 1])
        assert [item.class_index for item in result.explanations] == [item.class_index for item in expected]
        for found, wanted in zip(result.explanations, expected, strict=True):
            np.testing.assert_allclose(found.saliency_map, wanted.saliency_map, atol=1e-5)

    with_engine(test, max_batch=2)


async def queued(engine: Engine, count: int) -> None:
    """Until so many requests wait for a worker."""
    until = time.monotonic() + 20
    while len(engine._cheap) < count and time.monotonic() < until:
        await asyncio.sleep(0.002)
    assert len(engine._cheap) == count


def test_after_every_turn_of_many_classes_those_that_wait_have_theirs() -> None:
    async def test(engine: Engine) -> None:
        model, stub = gated()
        many = asyncio.create_task(engine.explain(work(model, image(), 0, 1, 2, 3, 4)))
        await entered(stub)
        ordinary = [asyncio.create_task(engine.explain(work(model, image(n), 5))) for n in range(2)]
        await queued(engine, 2)
        others = asyncio.create_task(engine.explain(work(model, image(), 2, 1, 0)))
        await queued(engine, 3)
        stub.gate.set()
        result = await many
        await asyncio.gather(*ordinary, others)
        assert stub.classes == [[0, 1], [5, 5], [2, 1], [2, 3], [0], [4]]
        assert [item.class_index for item in result.explanations] == [0, 1, 2, 3, 4]
        assert result.queue_seconds > 0

    with_engine(test, max_batch=2)


def test_turns_are_short_while_short_requests_wait() -> None:
    async def test(engine: Engine) -> None:
        model, stub = gated()

        async def request(*classes: int) -> ExplainResult:
            with engine.admit(1, model=model):
                return await engine.explain(work(model, image(), *classes))

        classes = [n % 6 for n in range(21)]
        many = asyncio.create_task(request(*classes))
        await entered(stub)
        ordinary = asyncio.create_task(request(5))
        await queued(engine, 1)
        stub.gate.set()
        result, _ = await asyncio.gather(many, ordinary)
        assert [len(run) for run in stub.classes] == [8, 1, 2, 8, 3]
        assert [item.class_index for item in result.explanations] == classes

    with_engine(test)


def test_the_images_of_a_request_with_several_classes_have_one_turn_together() -> None:
    async def test(engine: Engine) -> None:
        model, stub = gated()
        with engine.admit(1, 2):
            images = [asyncio.create_task(engine.explain(work(model, image(n), 0, 1, 2, n + 3))) for n in range(2)]
        await entered(stub)
        ordinary = asyncio.create_task(engine.explain(work(model, image(), 5)))
        await queued(engine, 1)
        stub.gate.set()
        await asyncio.gather(*images, ordinary)
        assert stub.classes == [[0, 1], [5], [0, 1], [2, 3], [2, 4]]

    with_engine(test, max_batch=2)


def test_the_last_class_of_many_joins_a_batch() -> None:
    async def test(engine: Engine) -> None:
        model, stub = gated()
        many = asyncio.create_task(engine.explain(work(model, image(), 0, 1, 2)))
        await entered(stub)
        ordinary = asyncio.create_task(engine.explain(work(model, image(1), 5)))
        await queued(engine, 1)
        stub.before = lambda _: time.sleep(0.05)
        stub.gate.set()
        await asyncio.gather(many, ordinary)
        assert stub.classes == [[0, 1], [5], [2]]
        assert stub.runs == [1, 1, 1]

    with_engine(test, max_batch=2)


def test_many_classes_whose_caller_goes_away_leave_the_queue() -> None:
    async def test(engine: Engine) -> None:
        model, stub = gated()
        with engine.admit(1, model=model):
            many = asyncio.create_task(engine.explain(work(model, image(), 0, 1, 2, 3)))
            await entered(stub)
            assert engine._admission.items == 4
            many.cancel()
            await asyncio.gather(many, return_exceptions=True)
        stub.gate.set()
        assert (await engine.explain(work(model, image(), 5))).batch_size == 1
        assert stub.classes == [[0, 1], [5]]
        assert (engine.in_flight, engine._admission.items, engine._admission.arriving) == (0, 0, 0)

    with_engine(test, max_batch=2)


def test_classes_count_as_so_many_explanations() -> None:
    async def test(engine: Engine) -> None:
        model, stub = gated()

        async def request(*classes: int) -> ExplainResult:
            with engine.admit(1, model=model):
                return await engine.explain(work(model, image(), *classes))

        first = asyncio.create_task(request(0, 1, 2, 3))
        await entered(stub)
        with pytest.raises(OverloadedError, match="5 explanations"):
            await request(0, 1)
        second = asyncio.create_task(request(5))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="5 explanations"):
            await request(5)
        stub.gate.set()
        await asyncio.gather(first, second)
        await request(0, 1, 2, 3, 4, 5)  # alone, even many are taken
        assert engine._admission.items == 0

    with_engine(test, queue_items=5)


def test_predictions_batch_among_themselves() -> None:
    async def test(engine: Engine) -> None:
        model, stub = gated()
        tasks = [asyncio.create_task(engine.predict(model, image(n), None)) for n in range(3)]
        tasks.append(asyncio.create_task(engine.explain(work(model, image(7)))))  # type: ignore[arg-type]
        stub.gate.set()
        results = await asyncio.gather(*tasks[:3])
        await tasks[3]
        assert sorted(stub.runs) == [1, 1, 2]
        for n, result in enumerate(results):
            np.testing.assert_allclose(result.logits, explainer().predict(image(n)[None])[0], rtol=1e-4, atol=1e-4)

    with_engine(test)


def test_a_lone_request_does_not_wait_for_company() -> None:
    async def test(engine: Engine) -> None:
        with engine.admit(10):
            await engine.offload(lambda: None)
            result = await engine.explain(work(loaded(), image()))
        assert result.batch_size == 1
        assert result.queue_seconds < 0.4

    with_engine(test, max_delay_ms=1000)


def test_requests_that_are_being_decoded_are_waited_for() -> None:
    model = loaded()

    async def request(engine: Engine, n: int) -> ExplainResult:
        with engine.admit(10):
            await asyncio.sleep(0.02 * n)
            return await engine.explain(work(model, image(n)))

    async def test(engine: Engine) -> None:
        await engine.explain(work(model, image()))
        results = await asyncio.gather(*(request(engine, n) for n in range(4)))
        assert [result.batch_size for result in results] == [4] * 4

    with_engine(test, max_delay_ms=1000)


def test_one_bad_image_harms_no_other() -> None:
    async def test(engine: Engine) -> None:
        model, stub = gated()
        bad = image(1)
        bad[0, 0, 0] = np.nan
        first = asyncio.create_task(engine.explain(work(model, image(9))))
        await entered(stub)
        tasks = [asyncio.create_task(engine.explain(work(model, tensor))) for tensor in (image(0), bad, image(2))]
        await asyncio.sleep(0.02)
        stub.gate.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        await first
        assert isinstance(outcomes[1], InvalidInputError)
        for n in (0, 2):
            assert isinstance(outcomes[n], ExplainResult)
        assert engine.statistics.of("gated", "1").failed_items == 1

    with_engine(test)


def test_arguments_are_checked_before_they_reach_a_batch() -> None:
    async def test(engine: Engine) -> None:
        model = loaded()
        for tensor in (image()[:1], image().astype(np.float64), image()[:, :-1]):
            with pytest.raises(InvalidInputError, match="float32"):
                await engine.explain(work(model, tensor))
        for classes in ((6,), (-7,), (0, 99)):
            with pytest.raises(ClassIndexError, match="6 classes"):
                await engine.explain(work(model, image(), *classes))
        with pytest.raises(InvalidInputError):
            await engine.predict(model, image()[None], None)

    with_engine(test)


def test_a_fault_of_the_worker_reaches_the_callers_and_the_engine_goes_on() -> None:
    def fail(inputs: FloatArray) -> None:
        if inputs[0, 0, 0, 0] == 0:
            raise RuntimeError("out of order")

    async def test(engine: Engine) -> None:
        model, stub = gated(fail)
        stub.gate.set()
        with pytest.raises(RuntimeError, match="out of order"):
            await engine.explain(work(model, np.zeros_like(image())))
        assert (await engine.explain(work(model, image()))).batch_size == 1

    with_engine(test)


def test_a_cancelled_request_leaves_the_queue() -> None:
    async def test(engine: Engine) -> None:
        model, stub = gated()
        first = asyncio.create_task(engine.explain(work(model, image())))
        await entered(stub)
        with engine.admit(10):
            waiting = [asyncio.create_task(engine.explain(work(model, image(n)))) for n in range(3)]
            await asyncio.sleep(0.02)
            waiting[1].cancel()
            await asyncio.sleep(0.02)
        stub.gate.set()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        await first
        assert isinstance(outcomes[1], asyncio.CancelledError)
        assert stub.runs == [1, 2]

    with_engine(test)


def test_a_deadline_is_looked_at_on_entry_and_in_the_queue() -> None:
    async def test(engine: Engine) -> None:
        model, stub = gated()
        with pytest.raises(DeadlineError):
            await engine.explain(work(model, image(), seconds=-1))
        first = asyncio.create_task(engine.explain(work(model, image())))
        await entered(stub)
        started = time.monotonic()
        with pytest.raises(DeadlineError):
            await engine.explain(work(model, image(), seconds=0.05))
        assert time.monotonic() - started < 5
        stub.gate.set()
        await first
        assert stub.runs == [1]

    with_engine(test)


def test_classes_after_the_deadline_are_not_computed() -> None:
    async def test(engine: Engine) -> None:
        model, stub = gated(lambda _: time.sleep(0.1))
        stub.gate.set()
        with pytest.raises(DeadlineError):
            await engine.explain(work(model, image(), 0, 1, 2, 3, 4, 5, seconds=0.15))
        await asyncio.sleep(0.3)
        assert len(stub.runs) <= 3

    with_engine(test, max_batch=1)


def test_admission_counts_items_and_bytes() -> None:
    async def test(engine: Engine) -> None:
        with engine.admit(600), engine.admit(300):
            assert engine.in_flight == 2
            with pytest.raises(OverloadedError, match="bytes") as refused, engine.admit(200):
                pass
            assert refused.value.retry_after_ms >= 50
            with engine.admit(50), pytest.raises(OverloadedError, match="3 explanations"), engine.admit(1):
                pass
        assert engine.in_flight == 0
        with engine.admit(5000):  # alone, even a large one is taken
            pass

    with_engine(test, queue_items=3, queue_bytes=1024, message_bytes=1024)


def paced(engine: Engine, model: LoadedModel, seconds: float) -> None:
    """As if the model's last batches had taken so long an explanation."""
    engine._cheap._seconds[model] = seconds


def pace(engine: Engine, model: LoadedModel) -> float:
    return engine._cheap.seconds_each(model)


def test_the_pace_is_that_of_the_last_batches() -> None:
    async def test(engine: Engine) -> None:
        model, stub = gated(lambda _: time.sleep(0.1))
        stub.gate.set()
        await engine.explain(work(model, image()))
        assert 0.1 <= pace(engine, model) < 5

    with_engine(test)


def test_the_pace_counts_explanations_and_not_requests() -> None:
    async def test(engine: Engine) -> None:
        model, stub = gated(lambda _: time.sleep(0.3))
        stub.gate.set()
        await engine.explain(work(model, image(), 0, 1, 2, 3, 4, 5))
        assert 0.05 <= pace(engine, model) < 0.25

    with_engine(test)


def test_every_model_has_a_pace_of_its_own() -> None:
    async def test(engine: Engine) -> None:
        (large, stub), small = gated(lambda _: time.sleep(0.2)), loaded()
        stub.gate.set()
        await engine.explain(work(small, image()))
        known = pace(engine, small)
        await engine.explain(work(large, image()))
        assert pace(engine, small) == known < 0.2 < pace(engine, large)
        paced(engine, small, 0.01)
        paced(engine, large, 10.0)
        soon = time.monotonic() + 5
        with engine.admit(1, model=small):
            with engine.admit(1, deadline=soon, model=small):
                pass
            with pytest.raises(OverloadedError, match="deadline"), engine.admit(1, deadline=soon, model=large):
                pass
        with (
            engine.admit(1, model=large),
            pytest.raises(OverloadedError, match="deadline"),
            engine.admit(1, deadline=soon, model=small),
        ):
            pass

    with_engine(test, queue_ms=1e9)


def test_what_would_wait_too_long_is_refused() -> None:
    async def test(engine: Engine) -> None:
        model = loaded()
        paced(engine, model, 1.0)
        with engine.admit(1, model=model), engine.admit(1, model=model), engine.admit(1, model=model):
            refused = engine.admit(1)
            with pytest.raises(OverloadedError, match="wait"), refused:
                pass

    with_engine(test, queue_ms=2500)


def test_several_images_of_a_request_count_as_so_many() -> None:
    async def test(engine: Engine) -> None:
        with engine.admit(10, 3):
            with pytest.raises(OverloadedError, match="3 explanations"), engine.admit(10, 3):
                pass
            with engine.admit(10, 2):
                assert engine.in_flight == 2
        with engine.admit(10, 64):  # alone, even a large one is taken
            pass

    with_engine(test, queue_items=5)


def test_decoded_images_count_beside_the_bytes_of_their_message() -> None:
    async def test(engine: Engine) -> None:
        model, stub = gated()
        size = image().nbytes
        with engine.admit(1000, 2):
            tasks = [asyncio.create_task(engine.explain(work(model, image(n)))) for n in range(2)]
            while engine._admission.arriving:
                await asyncio.sleep(0.005)
            with engine.admit(1000):
                pass
            with pytest.raises(OverloadedError, match=f"{2 * size + 1000} bytes"), engine.admit(2001):
                pass
            stub.gate.set()
            await asyncio.gather(*tasks)
        with engine.admit(3000), engine.admit(2 * size):
            pass

    size = image().nbytes
    with_engine(test, queue_bytes=2 * size + 3000, message_bytes=2 * size)


def test_what_cannot_be_answered_in_time_is_refused_at_once() -> None:
    async def test(engine: Engine) -> None:
        model = loaded()
        paced(engine, model, 10.0)
        soon, later = time.monotonic() + 15, time.monotonic() + 1000
        with engine.admit(1, 1, soon, model):  # nobody is before it
            with engine.admit(1, 1, later, model), engine.admit(1):
                pass
            with pytest.raises(OverloadedError, match="deadline") as refused, engine.admit(1, 1, soon, model):
                pass
            assert refused.value.retry_after_ms == 5000
            with pytest.raises(OverloadedError, match="deadline"), engine.admit(1, 200, later, model):
                pass
        assert registry.get_sample_value("camrt_rejected_total", {"reason": "too_late"}) == 2

    telemetry = Telemetry()
    registry = telemetry.registry
    with_engine(test, telemetry, queue_items=1000, queue_ms=1e9)


def test_a_slow_run_does_not_shut_out_who_comes_alone() -> None:
    async def test(engine: Engine) -> None:
        model = loaded()
        paced(engine, model, 1000.0)
        for _ in range(3):
            with engine.admit(1, 1, time.monotonic() + 30, model):
                await engine.explain(work(model, image()))
        assert pace(engine, model) < 1000

    with_engine(test)


def test_what_has_run_is_nothing_to_wait_for() -> None:
    async def test(engine: Engine) -> None:
        model = loaded()
        with engine.admit(1, model=model), engine.admit(1, model=model):
            await engine.explain(work(model, image()))
            paced(engine, model, 10.0)
            with engine.admit(1, 1, time.monotonic() + 25, model):
                pass
            with pytest.raises(OverloadedError), engine.admit(1, 1, time.monotonic() + 15, model):
                pass

    with_engine(test, queue_ms=1e9)


def test_expensive_methods_run_in_the_heavy_lane_within_their_budget() -> None:
    async def test(engine: Engine) -> None:
        model = loaded()
        method = make_plan(explainer().manifest, "scorecam", "gradcam++", "product", None, "normalize_twice")
        scorecam = replace(method, perturbation=Perturbation(channels=6))
        threads: set[str] = set()
        lane = engine._heavy.run

        async def noted(nbytes: int, deadline: float | None, call: Callable[[Cancelled], Any]) -> Any:
            def named(cancelled: Cancelled) -> Any:
                threads.add(threading.current_thread().name[:11])
                return call(cancelled)

            return await lane(nbytes, deadline, named)

        engine._heavy.run = noted  # type: ignore[method-assign]
        with engine.admit(10, model=model), engine.admit(10, 2, model=model):
            paced(engine, model, 10.0)
            result = await engine.explain(ExplainWork(model, image(), np.array([-1, 2]), scorecam))
            with engine.admit(1, 1, time.monotonic() + 25, model):  # an expensive request holds no worker
                pass
        assert threads == {"camrt-heavy"}
        expected = explainer().explain(image()[None], [-1, 2], "scorecam", perturbation=Perturbation(channels=6))
        assert [item.class_index for item in result.explanations] == [item.class_index for item in expected]
        for found, wanted in zip(result.explanations, expected, strict=True):
            np.testing.assert_allclose(found.saliency_map, wanted.saliency_map, atol=1e-5)
        assert engine.statistics.of(model.name, model.version).executions == 1

    with_engine(test, queue_ms=1e9)


def test_an_expensive_method_ends_between_runs_when_its_caller_is_gone() -> None:
    async def test(engine: Engine) -> None:
        plan = make_plan(explainer().manifest, "scorecam", "gradcam++", "product", None, "normalize_twice")
        small = replace(plan, perturbation=Perturbation(memory_bytes=1))  # a run a channel
        with pytest.raises(DeadlineError):
            await engine.explain(ExplainWork(loaded(), image(), np.array([-1]), small, time.monotonic() + 0.02))
        until = time.monotonic() + 20
        while engine._heavy.items and time.monotonic() < until:
            await asyncio.sleep(0.01)
        assert engine._heavy.items == 0

    with_engine(test)


def test_heavy_work_that_would_come_too_late_is_refused_at_once() -> None:
    async def test(engine: Engine) -> None:
        engine._heavy._seconds_a_call = 10.0
        release = threading.Event()
        running = asyncio.create_task(engine.run_heavy(10, time.monotonic() + 5, lambda _: release.wait(20)))
        await asyncio.sleep(0.02)
        with pytest.raises(OverloadedError, match=r"10\.0 s") as refused:
            await engine.run_heavy(10, time.monotonic() + 5, lambda _: None)
        assert refused.value.retry_after_ms == 5000
        waiting = asyncio.create_task(engine.run_heavy(10, time.monotonic() + 15, lambda _: 3))
        await asyncio.sleep(0.02)
        release.set()
        assert (await running, await waiting) == (True, 3)
        assert engine._heavy._seconds_a_call < 10

    with_engine(test)


def test_requests_are_counted_once_whatever_becomes_of_them() -> None:
    async def test(engine: Engine) -> None:
        model = loaded()
        with engine.statistics.request(model) as times:
            times.items = 3
            times.decode_seconds = 0.25
            times.ran(0.5, 2.0)
            times.ran(1.0, 1.0)
        for error in (OverloadedError("Full."), asyncio.CancelledError()):
            with pytest.raises(type(error)), engine.statistics.request(model):
                raise error
        row = engine.statistics.of(model.name, model.version)
        assert (row.successes, row.failures, row.items) == (1, 2, 3)
        assert (row.decode_seconds, row.queue_seconds, row.run_seconds) == (0.25, 1.0, 2.0)
        assert row.success_seconds > 0 < row.failure_seconds

    with_engine(test)


def test_draining_refuses_what_is_new() -> None:
    async def test(engine: Engine) -> None:
        with engine.admit(1):
            engine.drain()
            assert (await engine.explain(work(loaded(), image()))).batch_size == 1
        with pytest.raises(DrainingError), engine.admit(1):
            pass

    with_engine(test)


def test_heavy_work_has_its_own_thread_and_does_not_block_cheap_work() -> None:
    async def test(engine: Engine) -> None:
        release, names = threading.Event(), []

        def heavy(cancelled: Cancelled) -> int:
            names.append(threading.current_thread().name)
            assert release.wait(20)
            cancelled()
            return 7

        task = asyncio.create_task(engine.run_heavy(10, None, heavy))
        assert (await engine.explain(work(loaded(), image()))).batch_size == 1
        release.set()
        assert await task == 7
        assert names[0].startswith("camrt-heavy")

    with_engine(test)


def test_heavy_work_whose_caller_is_gone_ends_at_its_next_chunk() -> None:
    async def test(engine: Engine) -> None:
        chunks, started = [0], threading.Event()

        def heavy(cancelled: Cancelled) -> None:
            for _ in range(1000):
                cancelled()
                chunks[0] += 1
                started.set()
                time.sleep(0.005)

        lost: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: lost.append(context))
        for deadline in (None, 0.1):
            started.clear()
            end = None if deadline is None else time.monotonic() + deadline
            task = asyncio.create_task(engine.run_heavy(10, end, heavy))
            assert await asyncio.to_thread(started.wait, 20)
            if deadline is None:
                task.cancel()
            with pytest.raises((asyncio.CancelledError, DeadlineError)):
                await task
            await asyncio.sleep(0.1)
            seen = chunks[0]
            await asyncio.sleep(0.1)
            assert chunks[0] == seen < 900
        gc.collect()
        assert not lost

    with_engine(test)


def test_heavy_work_is_bounded_too() -> None:
    async def test(engine: Engine) -> None:
        release = threading.Event()
        tasks = [asyncio.create_task(engine.run_heavy(10, None, lambda _: release.wait(20))) for _ in range(2)]
        await asyncio.sleep(0.02)
        with pytest.raises(OverloadedError, match="expensive") as refused:
            await engine.run_heavy(10, None, lambda _: None)
        assert refused.value.retry_after_ms > 0
        release.set()
        assert await asyncio.gather(*tasks) == [True, True]
        assert await engine.run_heavy(10, None, lambda _: 3) == 3

    with_engine(test, heavy_items=2)


def test_heavy_work_gives_way_in_proportion_to_its_share() -> None:
    pace = Pace(share=0.25)
    pace.cheap_busy(True)
    pace.start()
    time.sleep(0.05)
    started = time.monotonic()
    pace.give_way()
    assert 0.14 < time.monotonic() - started < 1.0
    pace.cheap_busy(False)
    time.sleep(0.05)
    started = time.monotonic()
    pace.give_way()
    assert time.monotonic() - started < 0.05
    time.sleep(0.3)
    pace.cheap_busy(True)
    threading.Timer(0.05, pace.cheap_busy, (False,)).start()
    started = time.monotonic()
    pace.give_way()
    assert time.monotonic() - started < 0.6


def test_what_a_plan_needs_is_opened_where_nobody_waits_for_it() -> None:
    async def test(engine: Engine) -> None:
        model, stub = gated()
        stub.gate.set()
        manifest = explainer().manifest
        await engine.explain(work(model, image()))
        assert stub.prepared == []  # opened by the warm-up, and never closed
        for base in ("eigencam", "gradcam++", "gradcam++"):
            some = make_plan(manifest, "refinecam", base, "product", manifest.layer_names[:2], "normalize_twice")
            await engine.explain(replace(work(model, image()), plan=some))
        every = make_plan(manifest, "refinecam", "eigencam", "product", None, "normalize_twice")
        await engine.explain(replace(work(model, image()), plan=every))
        assert [name[:10] for name in stub.prepared] == ["camrt-open"] * 4

    with_engine(test)


def test_who_needs_nothing_opened_does_not_wait_for_what_is() -> None:
    async def test(engine: Engine) -> None:
        model, stub = gated()
        stub.gate.set()
        opening, opened = threading.Event(), threading.Event()

        def prepare(plan: object) -> None:
            opening.set()
            assert opened.wait(20)

        stub.prepare = prepare  # type: ignore[method-assign]
        other = make_plan(explainer().manifest, "gradcam", "gradcam++", "product", None, "normalize_twice")
        slow = asyncio.create_task(engine.explain(replace(work(model, image()), plan=other)))
        assert await asyncio.to_thread(opening.wait, 20)
        assert (await engine.explain(work(model, image()))).batch_size == 1
        assert (await engine.predict(model, image(), None)).batch_size == 1
        assert await engine.offload(lambda: 7) == 7
        late = replace(work(model, image(), seconds=0.05), plan=other)
        with pytest.raises(DeadlineError):
            await engine.explain(late)
        opened.set()
        assert (await slow).batch_size == 1

    with_engine(test)


def test_offloaded_work_leaves_the_event_loop() -> None:
    async def test(engine: Engine) -> None:
        assert (await engine.offload(lambda: threading.current_thread().name, "decode")).startswith("camrt-io")

    with_engine(test)


def test_a_model_is_freed_when_its_last_request_is_done() -> None:
    async def test(engine: Engine) -> None:
        model, stub = gated()
        stub.gate.set()
        await engine.explain(work(model, image()))
        ref = weakref.ref(model)
        del model
        gc.collect()
        assert ref() is None

    with_engine(test)
