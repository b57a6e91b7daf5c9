"""``ServerSettings``: flags over the environment (CAMRT_*) over a TOML file over the defaults."""

from __future__ import annotations

import ipaddress
import json
import os
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from camrt.server.errors import SettingsError

ENVIRONMENT_PREFIX = "CAMRT_"
Names: TypeAlias = Annotated[tuple[str, ...], NoDecode]
"""Names; a text holds them separated by commas."""


class ServerSettings(BaseSettings):
    """Everything that an operator can set. The descriptions of the fields are the documentation of the flags.

    In a TOML file the fields are top-level keys; in the environment they are CAMRT_ and the name in capitals. Nothing
    here is a secret: files of keys and token hashes are named, never held.
    """

    model_config = SettingsConfigDict(env_prefix=ENVIRONMENT_PREFIX, extra="forbid", frozen=True, env_ignore_empty=True)

    # models
    bundle: Path | None = Field(None, description="One bundle to serve.")
    model_repository: Path | None = Field(
        None, description="Folder of NAME/VERSION/bundle.onnx, or NAME.onnx. Neither: the model that ships with camrt."
    )
    models: Names = Field((), description="Names to load at start. Empty: every model of the repository.")
    keep_versions: int = Field(1, ge=1, description="Versions of a model that are served at a time, the newest.")
    poll_seconds: float = Field(
        0, ge=0, le=86400, description="The repository is looked at for changes this often. 0: at SIGHUP only."
    )
    provider: str = Field("cpu", description="Execution provider; `camrt doctor` lists those that work here.")
    backend: str = Field("native", description="Kernel backend: native, cuda, reference or auto.")
    threads: int = Field(
        0, ge=0, description="Threads of a run. 0: the cores, shared evenly by the workers and their batches."
    )

    # network
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(50051, ge=0, le=65535, description="Port to listen on. 0: any free one.")
    message_bytes: int = Field(32 << 20, ge=1 << 10, le=1 << 30, description="Largest message, either way.")
    concurrent_streams: int = Field(256, ge=1, description="Calls at a time on one connection.")
    keepalive_seconds: float = Field(60, gt=0, description="A silent connection is probed after this time.")
    connection_age_seconds: float = Field(1800, gt=0, description="Connections are renewed after this time.")
    reflection: bool | None = Field(None, description="Server reflection. Default: only on a loopback address.")

    # limits of one request
    image_pixels: int = Field(50_000_000, ge=4, description="Most pixels of an image, looked at before it is decoded.")
    output_pixels: int = Field(50_000_000, ge=1, description="Most pixels of the maps of a reply, together.")
    classes: int = Field(32, ge=1, description="Most classes a request explains.")
    layers: int = Field(16, ge=1, description="Most target layers a request names.")
    scorecam_channels: int = Field(256, ge=1, description="Most channels of a layer that scorecam and ablationcam try.")
    metrics_per_request: int = Field(16, ge=1, description="Most metrics a request asks for.")
    stream_in_flight: int = Field(4, ge=1, description="Images of one ExplainStream call that are worked on at a time.")

    # batching and queues
    workers: int = Field(1, ge=1, le=256, description="Server processes that share the port.")
    concurrent_batches: int = Field(1, ge=1, le=256, description="Batches that a worker runs at a time.")
    max_batch: int = Field(8, ge=1, le=1024, description="Most images that run together.")
    max_delay_ms: float = Field(
        2.0, ge=0, le=1000, description="How long an idle worker waits for images that are still being decoded."
    )
    queue_items: int = Field(
        256,
        ge=1,
        description="Most explanations, one a class of an image, in a worker.",
    )
    queue_bytes: int = Field(256 << 20, ge=1 << 10, description="Most bytes of requests in a worker.")
    queue_ms: float = Field(5000, gt=0, description="Requests that would wait longer than this are refused.")
    heavy_items: int = Field(16, ge=1, description="Most expensive requests (ARCC, Evaluate) in a worker.")
    heavy_share: float = Field(0.25, gt=0, le=1, description="Share of the time that expensive requests get.")
    heavy_batch: int = Field(4, ge=1, le=1024, description="Images a run of an expensive request.")
    io_threads: int = Field(
        0, ge=0, description="Threads of a worker that decode and encode. 0: its cores, and one more."
    )

    # security
    insecure: bool = Field(False, description="Allow plain text on an address that is not loopback.")
    tls_certificate: Path | None = Field(None, description="Certificate chain, PEM. Read again when it changes.")
    tls_key: Path | None = Field(None, description="Private key of the certificate, PEM.")
    tls_client_ca: Path | None = Field(None, description="Clients must show a certificate of this authority, PEM.")
    tokens: Path | None = Field(
        None, description="File of lines `ROLE SHA256 NAME`; clients send `authorization: Bearer TOKEN`."
    )
    admin_names: Names = Field((), description="Names in client certificates that may load and unload.")
    explain_names: Names = Field((), description="Names that may explain. Empty: every valid certificate.")

    # life and telemetry
    drain_delay: float = Field(0.0, ge=0, description="Seconds that requests are still taken after SIGTERM.")
    drain_timeout: float = Field(30.0, ge=0, description="Seconds that accepted requests may take after that.")
    metrics_host: str = Field("127.0.0.1", description="Address of the Prometheus metrics.")
    metrics_port: int | None = Field(None, ge=0, le=65535, description="Their port. Not set: none. 0: any free one.")
    otlp_endpoint: str | None = Field(
        None, pattern="^https?://.", description="OTLP collector of traces, http://HOST:PORT. Not set: as OTEL_* says."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    log_requests: bool = Field(False, description="Log a line for every request, not only for those that fail.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, environment, TOML; no .env files and no secrets folder."""
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @field_validator("models", "admin_names", "explain_names", mode="before")
    @classmethod
    def _split(cls, names: object) -> object:
        if not isinstance(names, str):
            return names
        return tuple(name.strip() for name in names.split(",") if name.strip())

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.bundle is not None and self.model_repository is not None:
            raise ValueError("bundle and model_repository exclude each other")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca needs tls_certificate and tls_key")
        if (self.admin_names or self.explain_names) and self.tls_client_ca is None:
            raise ValueError("admin_names and explain_names need tls_client_ca")
        if not (self.uses_tls or self.on_loopback or self.insecure):
            raise ValueError(
                f"{self.host} is not a loopback address: give tls_certificate and tls_key, or --insecure for plain text"
            )
        if self.message_bytes > self.queue_bytes:
            raise ValueError("queue_bytes is less than message_bytes: a request that is allowed would never be taken")
        return self

    @property
    def uses_tls(self) -> bool:
        """Whether connections are encrypted."""
        return self.tls_certificate is not None

    @property
    def on_loopback(self) -> bool:
        """Whether the address can be reached from this machine only."""
        return is_loopback(self.host)

    @property
    def uses_reflection(self) -> bool:
        """Whether reflection is served."""
        return self.on_loopback if self.reflection is None else self.reflection

    @property
    def run_threads(self) -> int:
        """Threads of one run."""
        return self.threads or max(1, cores() // (self.workers * self.concurrent_batches))

    @property
    def decoding_threads(self) -> int:
        """Threads that decode and encode."""
        return self.io_threads or max(1, cores() // self.workers) + 1

    def to_json(self) -> str:
        """The settings as JSON: paths of secrets, never their content."""
        return json.dumps(self.model_dump(mode="json"), ensure_ascii=True)


def load_settings(flags: Mapping[str, Any], config: Path | None = None) -> ServerSettings:
    """The settings of this process.

    Args:
        flags: what the command line gave; None counts as not given.
        config: a TOML file; default the one that CAMRT_CONFIG names, if any.

    Raises:
        SettingsError: an unknown name, a value that does not fit, or a file that cannot be read.
    """
    named = os.environ.get(f"{ENVIRONMENT_PREFIX}CONFIG")
    path = config or (Path(named) if named else None)
    if path is not None:
        _check_toml(path)
    given = {name: value for name, value in flags.items() if value is not None}
    kind = type("ServerSettings", (ServerSettings,), {"model_config": SettingsConfigDict(toml_file=path)})
    try:
        settings: ServerSettings = kind(**given)
    except ValidationError as error:
        raise SettingsError(_told(error), "See `camrt serve --help`.") from error
    return settings


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_loopback(host: str) -> bool:
    """Whether a host is this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _check_toml(path: Path) -> None:
    try:
        with path.open("rb") as stream:
            tomllib.load(stream)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SettingsError(f"Cannot read the settings {path}: {reason}.", "Check the file.") from error


def _told(error: ValidationError) -> str:
    """One line a wrong setting; without the values, which may be pasted secrets."""
    told = []
    for item in error.errors(include_url=False, include_input=False, include_context=False):
        name = ".".join(map(str, item["loc"]))
        message = _unknown(name) if item["type"] == "extra_forbidden" else _plain(item["msg"])
        told.append(f"{name}: {message}" if name else message)
    return "Wrong settings: " + "; ".join(told) + "."


def _unknown(name: str) -> str:
    """Names the settings that the wrong name is near to; all of them where it is near to none."""
    known = list(ServerSettings.model_fields)
    return f"there is no such setting, but there is {', '.join(get_close_matches(name, known) or known)}"


def _plain(message: str) -> str:
    return message.removeprefix("Value error, ")
