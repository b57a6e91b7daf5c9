"""``camrt explain --server`` against a whole server: the same output as without it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import camrt
from camrt.cli import main
from camrt.explainer import sample_image_path
from camrt.server.security import token_digest
from tests.server.certificates import Authority
from tests.server.loopback import Loopback


@pytest.fixture(scope="module")
def server() -> Iterator[Loopback]:
    with Loopback() as running:
        yield running


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["explain", *map(str, arguments)])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return caught.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.open(sample_image_path()).convert("RGB").resize((300, 180)).save(path)
    return path


def pictures(document: dict) -> list[np.ndarray]:
    return [
        np.asarray(Image.open(explanation["overlay"]).convert("RGB")).astype(int)
        for entry in document["images"]
        for explanation in entry["explanations"]
    ]


@pytest.mark.parametrize("size", ["original", "input"])
def test_the_same_as_here(run, server: Loopback, photo: Path, size: str) -> None:
    options = ["--output-size", size, "--class", "-2", "--class", "1", "--base", "layercam", "--json"]
    here = json.loads(run(photo, *options, "--out", "here", "--threads", "1")[1])
    code, out, _ = run(photo, *options, "--out", "there", "--server", server.address)
    there = json.loads(out)
    assert code == 0
    assert there["failed"] == []
    for ours, theirs in zip(here["images"], there["images"], strict=True):
        for field in ("class_index", "class_name", "method", "base_method", "fusion", "size", "degenerate"):
            assert [item[field] for item in ours["explanations"]] == [item[field] for item in theirs["explanations"]]
    for ours, theirs in zip(pictures(here), pictures(there), strict=True):
        assert np.abs(ours - theirs).mean() < 0.5


def test_classes_by_name_and_text_output(run, server: Loopback, photo: Path) -> None:
    name = camrt.Bundle.open(camrt.explainer.embedded_bundle_path()).manifest.class_names[2]
    code, out, _ = run(photo, "--server", server.address, "--model", "", "--class", name, "--class", "0")
    assert code == 0
    assert f"{name} (2)" in out
    for stage in ("queue", "inference", "kernels", "encode", "overlay", "total"):
        assert f"{stage} " in out


def test_bad_images_are_named_and_the_others_explained(run, server: Loopback, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"nonsense")
    code, out, err = run(tmp_path / "bad.png", photo, "--server", server.address, "--json")
    document = json.loads(out)
    assert code == 2
    assert [entry["image"] for entry in document["images"]] == [str(photo)]
    assert "bad.png" in document["failed"][0]["image"]
    assert "bad.png" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("--class", "zebra"),
        ("--method", "magic"),
        ("--model", "magic"),
        ("--threads", "2"),
        ("--threads", "0"),
        ("--channels", "4"),
        ("--preprocess", "unit"),
        ("--provider", "cuda"),
        ("--token-file", "missing"),
        ("--tls-ca", "missing"),
        (camrt.explainer.embedded_bundle_path(),),
    ],
)
def test_refusals(run, server: Loopback, photo: Path, arguments: tuple) -> None:
    code, out, err = run(*arguments, photo, "--server", server.address)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")


def test_nobody_answers(run, photo: Path) -> None:
    code, _, err = run(photo, "--server", "127.0.0.1:1", "--timeout", "0.3")
    assert code == 2
    assert "127.0.0.1:1" in err


def test_tls_and_a_token(run, photo: Path, tmp_path: Path) -> None:
    authority = Authority()
    certificate, key = authority.issue("server").write(tmp_path, "server")
    (tmp_path / "authority.pem").write_bytes(authority.pem)
    (tmp_path / "tokens").write_text(f"explain {token_digest('secret')}\n")
    (tmp_path / "token").write_text("secret\n")
    with Loopback(tls_certificate=certificate, tls_key=key, tokens=tmp_path / "tokens") as server:
        options = [photo, "--server", server.address, "--tls-ca", tmp_path / "authority.pem"]
        assert run(*options, "--token-file", tmp_path / "token")[0] == 0
        code, _, err = run(*options)
        assert code == 2
        assert "token" in err.lower()
