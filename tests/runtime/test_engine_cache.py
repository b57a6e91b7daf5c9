"""Keys, files and locks of built engines."""

from __future__ import annotations

import dataclasses
import json
import logging
import multiprocessing
import os
from pathlib import Path

import pytest

from camrt.errors import InvalidInputError
from camrt.runtime.engine_cache import MAGIC, EngineCache, EngineKey
from camrt.runtime.engine_options import EngineOptions

KEY = EngineKey("ab" * 32, "11.4.0", "580.1", "H100", (9, 0), "fp16", (1, 8), ("logits", "gradients/a"))
OTHERS = {
    "bundle_sha256": "cd" * 32,
    "engine_version": "11.4.1",
    "driver_version": "580.2",
    "gpu_name": "L4",
    "compute_capability": (8, 9),
    "precision": "fp32",
    "profiles": (1, 16),
    "outputs": ("gradients/a", "logits"),
    "cut_at": "activations/a",
    "tf32": True,
}


def forbidden() -> bytes:
    raise AssertionError("built again")


def test_every_field_of_the_key_counts() -> None:
    assert set(OTHERS) == {field.name for field in dataclasses.fields(EngineKey)}
    digests = {dataclasses.replace(KEY, **{name: value}).digest for name, value in OTHERS.items()} | {KEY.digest}
    assert len(digests) == len(OTHERS) + 1
    assert KEY.digest == dataclasses.replace(KEY).digest


def test_an_engine_is_built_once(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines")
    assert cache.engine(KEY, lambda: b"plan") == b"plan"
    assert EngineCache(tmp_path / "engines").engine(KEY, forbidden) == b"plan"
    other = dataclasses.replace(KEY, driver_version="581.0")
    assert cache.engine(other, lambda: b"other plan") == b"other plan"
    assert cache.engine(KEY, forbidden) == b"plan"
    assert (tmp_path / "engines").stat().st_mode & 0o077 == 0
    assert not list((tmp_path / "engines").glob("*.part"))


def flip(content: bytes, index: int) -> bytes:
    return content[:index] + bytes([content[index] ^ 1]) + content[index + 1 :]


DAMAGES = {
    "empty": lambda content: b"",
    "cut in the header": lambda content: content[: len(MAGIC) + 10],
    "cut in the engine": lambda content: content[:-1],
    "longer": lambda content: content + b"x",
    "a bit of the engine": lambda content: flip(content, len(content) - 1),
    "a bit of the header": lambda content: flip(content, len(MAGIC) + 6),
    "another magic": lambda content: flip(content, 0),
    "no camrt file": lambda content: b"ftrt" + content,
    "a huge header": lambda content: MAGIC + b"\xff\xff\xff\x7f" + content,
    "a header of another kind": lambda content: MAGIC + (2).to_bytes(4, "little") + b"[]" + content,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_built_again(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = EngineCache(tmp_path)
    cache.engine(KEY, lambda: b"plan")
    path = cache.path(KEY)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert cache.read(KEY) is None
    assert "built again" in caplog.text
    assert cache.engine(KEY, lambda: b"fresh") == b"fresh"
    assert cache.engine(KEY, forbidden) == b"fresh"


def test_an_engine_under_a_foreign_name_is_built_again(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    other = dataclasses.replace(KEY, gpu_name="L4")
    cache.engine(KEY, lambda: b"plan")
    cache.path(KEY).rename(cache.path(other))
    assert cache.read(other) is None
    assert cache.engine(other, lambda: b"fresh") == b"fresh"


def test_a_file_that_others_may_write_is_built_again(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    cache.engine(KEY, lambda: b"plan")
    cache.path(KEY).chmod(0o666)
    assert cache.read(KEY) is None


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    with pytest.raises(AssertionError):
        cache.engine(KEY, forbidden)
    assert not cache.path(KEY).exists()
    assert cache.engine(KEY, lambda: b"plan") == b"plan"


def build_slowly(folder: Path, log: Path) -> None:
    def build() -> bytes:
        with log.open("a") as stream:
            stream.write(f"{os.getpid()}\n")
        return b"plan" * 100_000

    assert EngineCache(folder).engine(KEY, build) == b"plan" * 100_000


def test_of_several_processes_one_builds(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    log = tmp_path / "log"
    processes = [context.Process(target=build_slowly, args=(tmp_path / "engines", log)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(log.read_text().split()) == 1


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="CAMRT_ENGINE_CACHE"):
        EngineCache(tmp_path / "file" / "engines")


def test_options_come_from_the_environment(tmp_path: Path) -> None:
    options = EngineOptions.from_environment(
        {"CAMRT_ENGINE_BATCH": "1, 4,16", "CAMRT_ENGINE_CACHE": str(tmp_path), "CAMRT_CUDA_GRAPHS": "1"}
    )
    assert options == EngineOptions((1, 4, 16), tmp_path, cuda_graphs=True)
    assert EngineOptions.from_environment({"CAMRT_TF32": "1", "HOME": "/h"}).tf32
    assert not options.tf32
    assert EngineOptions.from_environment({"XDG_CACHE_HOME": "/x"}) == EngineOptions((1, 8), Path("/x/camrt/engines"))
    assert EngineOptions.from_environment({"HOME": "/h"}).cache == Path("/h/.cache/camrt/engines")
    assert [options.bucket(batch) for batch in (1, 2, 4, 5, 16)] == [0, 1, 1, 2, 2]


@pytest.mark.parametrize("text", ["", "0", "8,1", "1,1", "1,-2", "a", "1,9999"])
def test_buckets_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="1,8"):
        EngineOptions.from_environment({"CAMRT_ENGINE_BATCH": text})
    with pytest.raises(InvalidInputError, match="0 or 1"):
        EngineOptions.from_environment({"CAMRT_CUDA_GRAPHS": "yes"})
    with pytest.raises(InvalidInputError, match=r"CAMRT_TF32 is 'on'\. Set it to 0 or 1"):
        EngineOptions.from_environment({"CAMRT_TF32": "on"})


def test_the_header_says_what_the_engine_is_for(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    cache.engine(KEY, lambda: b"plan")
    content = cache.path(KEY).read_bytes()
    length = int.from_bytes(content[len(MAGIC) : len(MAGIC) + 4], "little")
    header = json.loads(content[len(MAGIC) + 4 :][:length])
    assert header["key"] == KEY.fields()
    assert content.endswith(b"}plan")
