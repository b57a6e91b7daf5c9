"""``camrt serve``."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camrt.errors import BackendUnavailableError

if TYPE_CHECKING:
    from camrt.server.settings import ServerSettings


def _option(flag: str, text: str, panel: str, default: str | bool = False) -> Any:
    """A flag of the setting that is named like it."""
    return typer.Option(flag, help=text, rich_help_panel=panel.capitalize(), show_default=default)


def serve(
    bundle: Annotated[
        Path | None,
        typer.Argument(help="A bundle to serve; left out: the model that comes with camrt.", show_default=False),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file of settings, named like the flags with underscores.")
    ] = None,
    model_repository: Annotated[
        Path | None,
        _option(
            "--model-repository",
            "Folder of NAME/VERSION/bundle.onnx, or NAME.onnx. Neither: the model that ships with camrt.",
            "models",
        ),
    ] = None,
    models: Annotated[
        str | None,
        _option(
            "--models", "Names to load at start. Empty: every model of the repository. Separated by commas.", "models"
        ),
    ] = None,
    keep_versions: Annotated[
        int | None,
        _option("--keep-versions", "Versions of a model that are served at a time, the newest.", "models", "1"),
    ] = None,
    poll_seconds: Annotated[
        float | None,
        _option(
            "--poll-seconds", "The repository is looked at for changes this often. 0: at SIGHUP only.", "models", "0"
        ),
    ] = None,
    provider: Annotated[
        str | None,
        _option("--provider", "Execution provider; `camrt doctor` lists those that work here.", "models", "cpu"),
    ] = None,
    backend: Annotated[
        str | None, _option("--backend", "Kernel backend: native, cuda, reference or auto.", "models", "native")
    ] = None,
    threads: Annotated[
        int | None,
        _option(
            "--threads", "Threads of a run. 0: the cores, shared evenly by the workers and their batches.", "models"
        ),
    ] = None,
    host: Annotated[str | None, _option("--host", "Address to listen on.", "network", "127.0.0.1")] = None,
    port: Annotated[int | None, _option("--port", "Port to listen on. 0: any free one.", "network", "50051")] = None,
    message_bytes: Annotated[
        int | None, _option("--message-bytes", "Largest message, either way.", "network", "33554432")
    ] = None,
    concurrent_streams: Annotated[
        int | None, _option("--concurrent-streams", "Calls at a time on one connection.", "network", "256")
    ] = None,
    keepalive_seconds: Annotated[
        float | None, _option("--keepalive-seconds", "A silent connection is probed after this time.", "network", "60")
    ] = None,
    connection_age_seconds: Annotated[
        float | None, _option("--connection-age-seconds", "Connections are renewed after this time.", "network", "1800")
    ] = None,
    reflection: Annotated[
        bool | None,
        _option("--reflection/--no-reflection", "Server reflection. Default: only on a loopback address.", "network"),
    ] = None,
    image_pixels: Annotated[
        int | None,
        _option(
            "--image-pixels",
            "Most pixels of an image, looked at before it is decoded.",
            "limits of one request",
            "50000000",
        ),
    ] = None,
    output_pixels: Annotated[
        int | None,
        _option(
            "--output-pixels", "Most pixels of the maps of a reply, together.", "limits of one request", "50000000"
        ),
    ] = None,
    classes: Annotated[
        int | None, _option("--classes", "Most classes a request explains.", "limits of one request", "32")
    ] = None,
    layers: Annotated[
        int | None, _option("--layers", "Most target layers a request names.", "limits of one request", "16")
    ] = None,
    scorecam_channels: Annotated[
        int | None,
        _option(
            "--scorecam-channels",
            "Most channels of a layer that scorecam and ablationcam try.",
            "limits of one request",
            "256",
        ),
    ] = None,
    metrics_per_request: Annotated[
        int | None, _option("--metrics-per-request", "Most metrics a request asks for.", "limits of one request", "16")
    ] = None,
    stream_in_flight: Annotated[
        int | None,
        _option(
            "--stream-in-flight",
            "Images of one ExplainStream call that are worked on at a time.",
            "limits of one request",
            "4",
        ),
    ] = None,
    workers: Annotated[
        int | None, _option("--workers", "Server processes that share the port.", "batching and queues", "1")
    ] = None,
    concurrent_batches: Annotated[
        int | None,
        _option("--concurrent-batches", "Batches that a worker runs at a time.", "batching and queues", "1"),
    ] = None,
    max_batch: Annotated[
        int | None, _option("--max-batch", "Most images that run together.", "batching and queues", "8")
    ] = None,
    max_delay_ms: Annotated[
        float | None,
        _option(
            "--max-delay-ms",
            "How long an idle worker waits for images that are still being decoded.",
            "batching and queues",
            "2.0",
        ),
    ] = None,
    queue_items: Annotated[
        int | None,
        _option(
            "--queue-items", "Most explanations, one a class of an image, in a worker.", "batching and queues", "256"
        ),
    ] = None,
    queue_bytes: Annotated[
        int | None,
        _option("--queue-bytes", "Most bytes of requests in a worker.", "batching and queues", "268435456"),
    ] = None,
    queue_ms: Annotated[
        float | None,
        _option("--queue-ms", "Requests that would wait longer than this are refused.", "batching and queues", "5000"),
    ] = None,
    heavy_items: Annotated[
        int | None,
        _option("--heavy-items", "Most expensive requests (ARCC, Evaluate) in a worker.", "batching and queues", "16"),
    ] = None,
    heavy_share: Annotated[
        float | None,
        _option("--heavy-share", "Share of the time that expensive requests get.", "batching and queues", "0.25"),
    ] = None,
    heavy_batch: Annotated[
        int | None, _option("--heavy-batch", "Images a run of an expensive request.", "batching and queues", "4")
    ] = None,
    io_threads: Annotated[
        int | None,
        _option(
            "--io-threads",
            "Threads of a worker that decode and encode. 0: its cores, and one more.",
            "batching and queues",
        ),
    ] = None,
    insecure: Annotated[
        bool | None,
        _option("--insecure/--no-insecure", "Allow plain text on an address that is not loopback.", "security"),
    ] = None,
    tls_certificate: Annotated[
        Path | None, _option("--tls-certificate", "Certificate chain, PEM. Read again when it changes.", "security")
    ] = None,
    tls_key: Annotated[Path | None, _option("--tls-key", "Private key of the certificate, PEM.", "security")] = None,
    tls_client_ca: Annotated[
        Path | None, _option("--tls-client-ca", "Clients must show a certificate of this authority, PEM.", "security")
    ] = None,
    tokens: Annotated[
        Path | None,
        _option(
            "--tokens", "File of lines `ROLE SHA256 NAME`; clients send `authorization: Bearer TOKEN`.", "security"
        ),
    ] = None,
    admin_names: Annotated[
        str | None,
        _option(
            "--admin-names", "Names in client certificates that may load and unload. Separated by commas.", "security"
        ),
    ] = None,
    explain_names: Annotated[
        str | None,
        _option(
            "--explain-names",
            "Names that may explain. Empty: every valid certificate. Separated by commas.",
            "security",
        ),
    ] = None,
    drain_delay: Annotated[
        float | None,
        _option("--drain-delay", "Seconds that requests are still taken after SIGTERM.", "life and telemetry"),
    ] = None,
    drain_timeout: Annotated[
        float | None,
        _option("--drain-timeout", "Seconds that accepted requests may take after that.", "life and telemetry", "30.0"),
    ] = None,
    metrics_host: Annotated[
        str | None, _option("--metrics-host", "Address of the Prometheus metrics.", "life and telemetry", "127.0.0.1")
    ] = None,
    metrics_port: Annotated[
        int | None, _option("--metrics-port", "Their port. Not set: none. 0: any free one.", "life and telemetry")
    ] = None,
    otlp_endpoint: Annotated[
        str | None,
        _option(
            "--otlp-endpoint",
            "OTLP collector of traces, http://HOST:PORT. Not set: as OTEL_* says.",
            "life and telemetry",
        ),
    ] = None,
    log_level: Annotated[
        str | None, _option("--log-level", "Least level that is logged.", "life and telemetry", "info")
    ] = None,
    log_requests: Annotated[
        bool | None,
        _option(
            "--log-requests/--no-log-requests",
            "Log a line for every request, not only for those that fail.",
            "life and telemetry",
        ),
    ] = None,
) -> None:
    """Serve explanations over gRPC until SIGTERM.

    Flags go before environment variables (CAMRT_ and the name in capitals), those before the TOML file.
    Exit code 0 after a drain, 1 where a second signal stopped it at once, 2 where the server cannot start, 3 where
    accepted requests took longer than --drain-timeout, 4 where worker processes die again and again.
    """
    flags = dict(locals())
    del flags["config"]
    try:
        from camrt.server.settings import load_settings
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("camrt"):
            raise
        raise BackendUnavailableError(
            f"A server needs {error.name}, which is not installed.", "Run: pip install 'camrt[server]'"
        ) from error
    settings = load_settings(flags, config)
    _run(settings)


def _run(settings: ServerSettings) -> None:
    """Serves, and leaves the process with the exit code; raises where it cannot start."""
    import asyncio
    import logging

    from camrt.server.exits import leave_after
    from camrt.server.logs import set_up_logs

    set_up_logs(settings.log_level)
    logging.getLogger("camrt.server").info("settings", extra={"settings": settings.model_dump(mode="json")})
    if settings.workers > 1:
        from camrt.server.supervisor import supervise

        serving = supervise(settings, partial(_announce, settings))
    else:
        from camrt.server.app import serve as run

        serving = run(settings, lambda server: _announce(settings, server.port, server.metrics_port))
    asyncio.run(leave_after(serving))


def _announce(settings: ServerSettings, port: int, metrics_port: int | None) -> None:
    """One line on stdout for those who started the process."""
    how = "TLS" if settings.uses_tls else "plain text"
    metrics = "" if metrics_port is None else f", metrics on {settings.metrics_host}:{metrics_port}"
    sys.stdout.write(f"camrt serves on {settings.host}:{port} ({how}){metrics}\n")
    sys.stdout.flush()
