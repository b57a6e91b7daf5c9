"""When work is run, recorded and replayed; on an emulated GPU and on one that refuses."""

from __future__ import annotations

import numpy as np
import pytest

from camrt.kernels import KernelBackend
from camrt.kernels.cuda import recordings
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
    assert len(caplog.records) == 1
    assert "started one by one: operation not permitted" in caplog.text


def test_a_bounded_number_is_recorded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recordings, "MOST_RECORDINGS", 2)
    recorded = []

    class Recording:
        result = "recorded"

        def launch(self) -> None:
            pass

    def record(work) -> Recording:
        recorded.append(work)
        return Recording()

    kept = Recordings(record)
    for _ in range(3):
        results = [kept.run(key, lambda: "run") for key in "abc"]
    assert results == ["recorded", "recorded", "run"]
    assert len(recorded) == 2
