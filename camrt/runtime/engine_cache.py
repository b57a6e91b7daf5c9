"""Built engines on disk: found by everything that they depend on, shared between processes, never trusted blindly.

A file is a magic number, a JSON header with the key and the SHA-256 of the engine, and the engine. A file that is
damaged, of another key, or of another owner is built again. The digest finds damage; it does not prove origin: an
engine is code, so keep the folder out of reach of others.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camrt.bundle import Precision, file_sha256
from camrt.errors import InvalidInputError
from camrt.runtime.cuda_driver import DeviceInfo
from camrt.runtime.engine_options import EngineOptions

MAGIC = b"CAMRTENG\x01\n"
_LENGTH_BYTES = 4
_MAX_HEADER = 1 << 20
_OWNER_ONLY = 0o700
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineKey:
    """Everything that a built engine depends on.

    Attributes:
        bundle_sha256: of the bundle's bytes.
        engine_version: of what builds and runs it.
        driver_version: of the NVIDIA driver.
        gpu_name: of the device.
        compute_capability: of the device, (9, 0) say.
        precision: of the bundle.
        tf32: whether products of float32 may round, see EngineOptions.
        profiles: batch buckets.
        outputs: the graph outputs that the engine computes, in their order.
        cut_at: the layer that it starts at, or None for the image.
    """

    bundle_sha256: str
    engine_version: str
    driver_version: str
    gpu_name: str
    compute_capability: tuple[int, int]
    precision: str
    profiles: tuple[int, ...]
    outputs: tuple[str, ...]
    cut_at: str | None = None
    tf32: bool = False

    @classmethod
    def of_bundle(
        cls, path: Path, precision: Precision, engine_version: str, device: DeviceInfo, options: EngineOptions
    ) -> EngineKey:
        """What every engine of a bundle on a device depends on; ``computing`` adds what one of them computes."""
        return cls(
            bundle_sha256=file_sha256(path),
            engine_version=engine_version,
            driver_version=device.driver_version,
            gpu_name=device.name,
            compute_capability=device.compute_capability,
            precision=precision,
            profiles=options.batches,
            outputs=(),
            tf32=options.tf32,
        )

    def computing(self, outputs: tuple[str, ...], cut_at: str | None = None) -> EngineKey:
        """The key of the engine that computes ``outputs``."""
        return dataclasses.replace(self, outputs=outputs, cut_at=cut_at)

    def fields(self) -> dict[str, Any]:
        """The key, of types that JSON has."""
        fields: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return fields

    @property
    def digest(self) -> str:
        """SHA-256 over every field: the name of the engine's file."""
        return hashlib.sha256(json.dumps(self.fields(), sort_keys=True).encode()).hexdigest()


class EngineCache:
    """A folder of built engines.

    Args:
        folder: made where it does not exist, for its owner alone.

    Raises:
        InvalidInputError: it cannot be made or written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(mode=_OWNER_ONLY, parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInputError(f"Cannot use {folder} for engines: {error.strerror}.", _ANOTHER) from error

    def path(self, key: EngineKey) -> Path:
        """Where the engine of ``key`` lies."""
        return self.folder / f"{key.digest}.engine"

    def engine(self, key: EngineKey, build: Callable[[], bytes]) -> bytes:
        """The engine of ``key``, built where the cache does not have it.

        Of several processes that ask at the same time one builds and the others wait.
        """
        with self.locked(key.digest):
            found = self.read(key)
            if found is None:
                found = build()
                self.write(key, found)
            return found

    def read(self, key: EngineKey) -> bytes | None:
        """The engine of ``key`` where a sound file has it, else None."""
        return read_sealed(self.path(key), key.fields())

    def write(self, key: EngineKey, engine: bytes) -> None:
        """Keeps an engine; the caller holds the lock of its key."""
        write_sealed(self.path(key), key.fields(), engine)

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Within it, no other process or thread holds the lock ``name`` of this folder."""
        try:
            handle = os.open(self.folder / f"{name}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise InvalidInputError(f"Cannot write to {self.folder}: {error.strerror}.", _ANOTHER) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


_ANOTHER = "Choose another folder with CAMRT_ENGINE_CACHE."


def write_sealed(path: Path, fields: dict[str, Any], payload: bytes) -> None:
    """Writes a file of magic number, header and payload, whole or not at all.

    Raises:
        InvalidInputError: it cannot be written.
    """
    header = json.dumps({"key": fields, "bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}).encode()
    temporary = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as stream:
            stream.write(MAGIC + len(header).to_bytes(_LENGTH_BYTES, "little") + header)
            stream.write(payload)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise InvalidInputError(f"Cannot write {path}: {error.strerror}.", _ANOTHER) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def read_sealed(path: Path, fields: dict[str, Any]) -> bytes | None:
    """The payload of a file that ``write_sealed`` wrote with these fields; None, with a line in the log, for others."""
    try:
        with path.open("rb") as stream:
            reason = _stranger(os.fstat(stream.fileno()))
            content = b"" if reason else stream.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        reason, content = f"it cannot be read ({error.strerror})", b""
    if not reason:
        payload = _opened(content, fields)
        if not isinstance(payload, str):
            return payload
        reason = payload
    _log.warning("The engine in %s is built again: %s.", path, reason)
    return None


def _stranger(status: os.stat_result) -> str:
    """Why a file's owner or mode rules it out; empty where they do not."""
    if status.st_uid != os.geteuid():
        return "it belongs to another user"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "others may write to it"
    return ""


def _opened(content: bytes, fields: dict[str, Any]) -> bytes | str:
    """The payload of a file's content, or the reason why it does not count."""
    start = len(MAGIC) + _LENGTH_BYTES
    if not content.startswith(MAGIC) or len(content) < start:
        return "it is no engine of camrt, or of another version"
    length = int.from_bytes(content[len(MAGIC) : start], "little")
    if length > _MAX_HEADER or start + length > len(content):
        return "it is cut off"
    try:
        header = json.loads(content[start : start + length])
        key, size, digest = header["key"], header["bytes"], header["sha256"]
    except (ValueError, KeyError, TypeError):
        return "its header is damaged"
    payload = content[start + length :]
    if key != fields:
        return "it was built for something else"
    if size != len(payload):
        return "it is cut off"
    if digest != hashlib.sha256(payload).hexdigest():
        return "its content is damaged"
    return payload
