"""The benchmarks beside other packages: what becomes of peers that do not run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import bench_explain
from benchmarks.bench_explain import FLOOR, OURS, means, parse, start_all
from benchmarks.bench_peer_servers import PeerError, load, peer
from benchmarks.peers import PEERS, Case, Peer, Run
from camrt.bench.report import Row
from tests.small_network import write_small_network


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """Only what start_all reads is real."""
    source = write_small_network(tmp_path / "source.onnx")
    images = np.zeros((1, 3, 32, 40), np.float32)
    named = type("Named", (), {"name": "small"})()
    return Case(named, source, source, images, "gradcam++", 1)  # type: ignore[arg-type]


def test_a_peer_that_fails_is_a_row_that_says_why(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_case: Case) -> Run:
        raise ImportError("not installed\nsecond line")

    def silent(_case: Case) -> Run:
        def run() -> np.ndarray:
            raise MemoryError

        return run

    peers = (Peer("a", "A", lambda _: lambda: np.ones(1)), Peer("b", "B", absent), Peer("c", "C", silent), PEERS[0])
    monkeypatch.setattr(bench_explain, "PEERS", peers)
    runs, outputs, failed = start_all(case, ("a", "b", "c"))
    assert runs.keys() == outputs.keys() == {"a"}
    assert [row["why_not"] for row in failed] == ["ImportError: not installed", "MemoryError: "]


def test_means_are_geometric_and_of_one_batch() -> None:
    def row(model: str, batch: int, ratio: float) -> Row:
        return {"model": model, "batch": batch, "key": "pytorch_grad_cam", "ratio": ratio, "to_prediction": 2 * ratio}

    refused: Row = {"model": "c", "batch": 1, "key": "pytorch_grad_cam", "why_not": "no"}
    found = means([row("a", 1, 10.0), row("b", 1, 40.0), refused, row("a", 16, 14.0)])
    assert [(one["batch"], one["models"], one["met"]) for one in found] == [(1, 2, "yes"), (16, 1, "no")]
    assert found[0]["mean_ratio"] == pytest.approx(20.0)
    assert found[0]["to_prediction"] == pytest.approx(40.0)


def test_lines_can_be_chosen() -> None:
    assert set(parse([]).lines) == {one.key for one in PEERS}
    assert {FLOOR, OURS} <= {one.key for one in PEERS}
    assert parse(["--lines", "captum", "--batch", "1", "16"]).lines == ["captum"]
    with pytest.raises(SystemExit):
        parse(["--lines", "nobody"])


def test_a_server_that_does_not_start_says_what_it_said() -> None:
    with pytest.raises(PeerError, match=r"ended before it was ready: .*invalid choice"), peer("nothing", Path("x"), 1):
        raise AssertionError


def test_what_a_caller_meets_ends_the_load() -> None:
    def opener() -> object:
        def call(_file: bytes) -> bytes:
            raise PeerError("answered 500")

        return call

    with pytest.raises(PeerError, match="answered 500"):
        load(opener, [b""], callers=2, seconds=0.1)  # type: ignore[arg-type]
