"""When work is run, recorded and replayed; on an emulated GPU and on one that refuses."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest

from camrt.kernels import KernelBackend
from camrt.kernels.cuda import recordings
from camrt.kernels.cuda.device import _CupyRecording
from camrt.kernels.cuda.recordings import Recordings
from tests.kernels.arrays import layer
from tests.kernels.cuda.emulation import EmulatedDevice


class Refusing:
    def __call__(self, work) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")


def test_a_replay_reads_what_is_there_now(backend: KernelBackend, device: EmulatedDevice):
    arrays = [device.to_device(array) for array in layer(1, 2, 2, 5, 7, 9)]

    def explained() -> np.ndarray:
        return np.array(backend.replayed("key", lambda: backend.layer_map(*arrays, "gradcam++")))

    for seed in range(4):
        for kept, array in zip(arrays, layer(seed, 2, 2, 5, 7, 9), strict=True):
            kept[...] = array
        expected = np.array(backend.layer_map(*arrays, "gradcam++"))
        np.testing.assert_array_equal(explained(), expected)


def test_results_of_other_keys_are_left_alone(backend: KernelBackend, device: EmulatedDevice):
    arrays = {seed: [device.to_device(array) for array in layer(seed, 1, 1, 5, 7, 9)] for seed in (1, 2)}
    expected = {seed: np.array(backend.layer_map(*pair, "gradcam")) for seed, pair in arrays.items()}
    for _ in range(3):
        found = {
            seed: backend.replayed(("gradcam", seed), lambda pair=pair: backend.layer_map(*pair, "gradcam"))
            for seed, pair in arrays.items()
        }
    for seed, result in found.items():
        np.testing.assert_array_equal(result, expected[seed])


def test_where_recording_is_refused_the_work_is_run(caplog: pytest.LogCaptureFixture):
    refusing, calls = Recordings(Refusing()), []
    for key in ("a", "a", "a", "b", "b"):
        assert refusing.run(key, lambda: calls.append(1) or len(calls)) == len(calls)
    assert len(calls) == 5
    assert len(caplog.records) == 2  # once a key
    assert "started one by one: operation not permitted" in caplog.text


def test_a_device_that_refuses_often_is_not_asked_again():
    asked = []

    def refuse(work) -> None:
        asked.append(work)
        raise RuntimeError("no")

    refusing = Recordings(refuse)
    for key in range(2 * recordings.MOST_REFUSALS):
        for _ in range(3):
            assert refusing.run(key, lambda: "run") == "run"
    assert len(asked) == recordings.MOST_REFUSALS


class Recording:
    result = "recorded"

    def launch(self) -> None:
        pass


def test_what_is_asked_for_once_takes_nobodys_place(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recordings, "MOST_RECORDINGS", 2)
    kept = Recordings(lambda _work: Recording())
    for key in range(100):
        assert kept.run(key, lambda: "run") == "run"
    assert [kept.run("a", lambda: "run") for _ in range(3)] == ["run", "recorded", "recorded"]


def test_the_least_recently_used_recording_goes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recordings, "MOST_RECORDINGS", 2)
    recorded = []

    def record(work) -> Recording:
        recorded.append(work())
        return Recording()

    kept = Recordings(record)

    def run(key: str) -> str:
        return kept.run(key, lambda: key)

    assert [run(key) for key in "aabba"] == ["a", "recorded", "b", "recorded", "recorded"]
    assert [run("c"), run("c")] == ["c", "recorded"]  # in place of b
    assert [run("a"), run("b")] == ["recorded", "recorded"]
    assert recorded == ["a", "b", "c", "b"]


def test_keys_are_forgotten(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recordings, "MOST_KEYS", 3)
    kept = Recordings(Refusing())
    for key in (*"aa", *"bcd"):
        kept.run(key, lambda: None)
    assert list(kept._seen) == ["b", "c", "d"]
    assert not kept._refused


class FakeCupy:
    """What a recording asks of CuPy, in its order."""

    def __init__(self, fails: bool = False) -> None:
        self.calls: list[str] = []
        calls = self.calls

        class Graph:
            def launch(self, stream: object) -> None:
                calls.append(f"launch on {stream}")

        class Stream:
            def __init__(self, non_blocking: bool) -> None:
                assert non_blocking

            def __enter__(self) -> None:
                calls.append("stream")

            def __exit__(self, *_: object) -> None:
                calls.append("stream left")

            def begin_capture(self) -> None:
                calls.append("begin")

            def end_capture(self) -> Graph:
                calls.append("end")
                if fails:
                    raise ValueError("capture was invalidated")
                return Graph()

        class Pool:
            malloc = "malloc of the pool"

        @contextlib.contextmanager
        def using_allocator(malloc: str):
            calls.append(malloc)
            yield
            calls.append("allocator left")

        self.cuda = SimpleNamespace(
            Stream=Stream, MemoryPool=Pool, using_allocator=using_allocator, get_current_stream=lambda: "the session's"
        )


def test_a_recording_has_a_stream_and_memory_of_its_own():
    cupy = FakeCupy()
    recording = _CupyRecording(cupy, lambda: cupy.calls.append("work") or "result")
    assert recording.result == "result"
    recording.launch()
    assert cupy.calls == [
        "stream",
        "malloc of the pool",
        "begin",
        "work",
        "end",
        "allocator left",
        "stream left",
        "launch on the session's",
    ]


def test_a_recording_ends_where_its_work_fails():
    cupy = FakeCupy(fails=True)
    with pytest.raises(ValueError, match="invalidated"):
        _CupyRecording(cupy, lambda: 1 // 0)
    assert "end" in cupy.calls
