"""How a client reaches its server: address, TLS, token, limits."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import grpc

from camrt.errors import InvalidInputError

Pem: TypeAlias = "bytes | str | os.PathLike[str]"

DEFAULT_TIMEOUT = 60.0
DEFAULT_RETRIES = 4
DEFAULT_MESSAGE_BYTES = 32 << 20


@dataclass(frozen=True, slots=True, repr=False)
class TlsOptions:
    """An encrypted connection. PEM: bytes, or the path of a file.

    Attributes:
        authority: certificates of the authorities to trust; None trusts those of the system.
        certificate: the client's certificate chain, for mutual TLS.
        key: its private key.
        server_name: the name that the server's certificate has, where it is not the host of the address.
    """

    authority: Pem | None = None
    certificate: Pem | None = None
    key: Pem | None = None
    server_name: str | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """For a channel.

        Raises:
            InvalidInputError: a file cannot be read, or a certificate has no key.
        """
        if (self.certificate is None) != (self.key is None):
            raise InvalidInputError("certificate and key go together.", "Give both, or none.")
        return grpc.ssl_channel_credentials(_pem(self.authority), _pem(self.key), _pem(self.certificate))


@dataclass(frozen=True, slots=True, repr=False)
class Connection:
    """Everything that both clients need to reach a server.

    Attributes:
        target: "host:port", or any gRPC target.
        tls: None is plain text.
        token: sent as ``authorization: Bearer TOKEN``.
        timeout: seconds a call may take, its retries included; of a stream, all of it.
        retries: most attempts after the first.
        message_bytes: largest message, either way.

    Raises:
        InvalidInputError: a token over plain text to another machine, or numbers that make no sense.
    """

    target: str
    tls: TlsOptions | None = None
    token: str | None = None
    timeout: float = DEFAULT_TIMEOUT
    retries: int = DEFAULT_RETRIES
    message_bytes: int = DEFAULT_MESSAGE_BYTES

    def __post_init__(self) -> None:
        if not self.target:
            raise InvalidInputError("There is no address.", "Give host:port.")
        if not self.timeout > 0 or self.retries < 0 or self.message_bytes < 1:
            raise InvalidInputError(
                f"timeout is {self.timeout}, retries {self.retries}, message_bytes {self.message_bytes}.",
                "Give a positive timeout and size, and 0 or more retries.",
            )
        if self.token is not None and self.tls is None and not _is_loopback(self.target):
            raise InvalidInputError(
                f"The token would go to {self.target} in plain text.", "Give tls=TlsOptions(), or leave the token out."
            )
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token):
            raise InvalidInputError("The token is empty, or has characters that cannot be sent.", "Check the token.")

    @property
    def options(self) -> list[tuple[str, int | str]]:
        """Of the channel."""
        options: list[tuple[str, int | str]] = [
            ("grpc.max_receive_message_length", self.message_bytes),
            ("grpc.max_send_message_length", self.message_bytes),
            ("grpc.enable_retries", 0),
            ("grpc.keepalive_time_ms", 60_000),
        ]
        if self.tls is not None and self.tls.server_name is not None:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        return options

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Of every call."""
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)


def _pem(source: Pem | None) -> bytes | None:
    if source is None or isinstance(source, bytes):
        return source
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise InvalidInputError(f"Cannot read {source}: {error.strerror or error}.", "Check the path.") from error


def _is_loopback(target: str) -> bool:
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    host = target.rsplit("/", 1)[-1].rsplit(":", 1)[0].strip("[]")
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
