"""Who may do what: TLS, client certificates, bearer tokens, and two roles."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import ssl
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import grpc

from camrt.server.errors import PermissionDeniedError, SettingsError, UnauthenticatedError
from camrt.server.settings import ServerSettings

Role: TypeAlias = Literal["explain", "admin"]
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

ADMIN_METHODS = frozenset(
    f"/inference.GRPCInferenceService/{name}" for name in ("RepositoryModelLoad", "RepositoryModelUnload")
)
OPEN_METHODS = frozenset(
    (
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/inference.GRPCInferenceService/ServerLive",
        "/inference.GRPCInferenceService/ServerReady",
    )
)
_LOOK_SECONDS = 1.0
_TOKEN_LINE = re.compile(r"(explain|admin)\s+([0-9a-f]{64})(?:\s+(\S+))?")
_NAME_KEYS = ("x509_common_name", "x509_subject_alternative_name")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Token:
    """The SHA-256 of one token, and what its holder may do. The name is for people who read the file."""

    role: Role
    digest: bytes
    name: str


def token_digest(token: str) -> str:
    """What the file of tokens holds for a token, hex. One SHA-256 is enough for tokens that are long and random."""
    return hashlib.sha256(token.encode()).hexdigest()


def read_tokens(path: Path) -> tuple[Token, ...]:
    """The tokens of a file: a line each, ``role sha256 [name]``; what follows # is a comment.

    Raises:
        SettingsError: the file cannot be read, holds a line of another form, or no token.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"Cannot read the tokens {path}: {error}.", "Check --tokens.") from error
    tokens = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        match = _TOKEN_LINE.fullmatch(text)
        if text and match is None:
            raise SettingsError(
                f"Line {number} of {path} is no token.", "Write: explain|admin, the SHA-256 of the token, and a name."
            )
        if match is not None:
            role: Role = "admin" if match[1] == "admin" else "explain"
            tokens.append(Token(role, bytes.fromhex(match[2]), match[3] or ""))
    if not tokens:
        raise SettingsError(f"{path} holds no token.", "Write: explain|admin, the SHA-256 of the token, and a name.")
    return tuple(tokens)


class Access:
    """Decides about every call.

    With neither tokens nor client certificates everybody may explain, and whoever reaches a loopback address may load
    and unload too. With tokens, a call without a valid one is refused, unless its client certificate has a role.

    Raises:
        SettingsError: the file of tokens cannot be used.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._file = None if settings.tokens is None else _TokenFile(settings.tokens)

    def check(self, method: str, context: Context) -> None:
        """Returns if the caller may call ``method``.

        Raises:
            UnauthenticatedError: no token or certificate that is known.
            PermissionDeniedError: the caller's role does not allow it.
        """
        if method in OPEN_METHODS:
            return
        needed: Role = "admin" if method in ADMIN_METHODS else "explain"
        roles = self._roles(context)
        if not roles:
            raise UnauthenticatedError("The call has no valid token.", "Send the header authorization: Bearer TOKEN.")
        if needed not in roles:
            raise PermissionDeniedError(f"This needs the role {needed}.", "Ask the server's operator.")

    def _roles(self, context: Context) -> set[Role]:
        settings = self._settings
        if self._file is None and settings.tls_client_ca is None:
            return {"explain", "admin"} if settings.on_loopback else {"explain"}
        roles: set[Role] = set()
        if settings.tls_client_ca is not None:
            roles |= self._roles_of_names(_names(context.auth_context()), only_certificates=self._file is None)
        if self._file is not None and (presented := _bearer(context.invocation_metadata() or ())) is not None:
            roles |= self._file.roles(presented)
        return roles | {"explain"} if "admin" in roles else roles

    def _roles_of_names(self, names: frozenset[str], only_certificates: bool) -> set[Role]:
        settings, roles = self._settings, set[Role]()
        if names & set(settings.admin_names):
            roles.add("admin")
        if names & set(settings.explain_names) or (only_certificates and not settings.explain_names):
            roles.add("explain")
        return roles


class _TokenFile:
    """A file of tokens that is read again when it changes; a version that is broken is logged and not taken."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tokens = read_tokens(path)
        self._stamp = _stamp(path)
        self._looked = time.monotonic()

    def roles(self, presented: bytes) -> set[Role]:
        """Every entry is compared in constant time, whether one has matched or not."""
        self._look()
        digest = hashlib.sha256(presented).digest()
        return {token.role for token in self._tokens if hmac.compare_digest(token.digest, digest)}

    def _look(self) -> None:
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._tokens = read_tokens(self._path)
            logger.info("The tokens were read again.")
        except SettingsError as error:
            logger.error("The tokens stay as they were: %s", error)


class Certificates:
    """The server's certificate, key and authority of clients, read again when one of the files changes.

    gRPC asks before every handshake. Files that do not fit together, as in the middle of a renewal, are not taken.

    Raises:
        SettingsError: the files cannot be used.
    """

    def __init__(self, settings: ServerSettings) -> None:
        assert settings.tls_certificate is not None
        assert settings.tls_key is not None
        self._certificate, self._key, self._authority = (
            settings.tls_certificate,
            settings.tls_key,
            settings.tls_client_ca,
        )
        self._stamps = self._look()
        self._first = self._read()

    def credentials(self) -> grpc.ServerCredentials:
        """What add_secure_port takes."""
        return grpc.dynamic_ssl_server_credentials(
            self._first, self._changed, require_client_authentication=self._authority is not None
        )

    def _changed(self) -> Any:
        """The configuration if the files changed, else None. Called by threads of gRPC."""
        stamps = self._look()
        if stamps == self._stamps:
            return None
        self._stamps = stamps
        try:
            configuration = self._read()
        except SettingsError as error:
            logger.error("The certificate stays as it was: %s", error)
            return None
        logger.info("The certificate was read again.")
        return configuration

    def _read(self) -> grpc.ServerCertificateConfiguration:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._certificate, self._key, password=_no_password)
            if self._authority is not None:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(self._authority)
            pair = self._key.read_bytes(), self._certificate.read_bytes()
            authority = None if self._authority is None else self._authority.read_bytes()
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"Cannot use the certificate {self._certificate} with its key: {error}.", "Check the files of TLS."
            ) from error
        return grpc.ssl_server_certificate_configuration([pair], authority)

    def _look(self) -> tuple[object, ...]:
        return tuple(_stamp(path) for path in (self._certificate, self._key, self._authority) if path is not None)


def _no_password() -> str:
    """Keys with a password are refused instead of asked for at a terminal."""
    raise ValueError("the key has a password")


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Changes when the file does; None where it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _bearer(metadata: Iterable[Sequence[Any]]) -> bytes | None:
    for key, value in metadata:
        if key == "authorization" and isinstance(value, str) and value[:7].lower() == "bearer ":
            return value[7:].strip().encode()
    return None


def _names(auth_context: Any) -> frozenset[str]:
    """Common name and alternative names of the client's certificate."""
    return frozenset(
        value.decode("utf-8", "replace") for key in _NAME_KEYS for value in (auth_context or {}).get(key, ())
    )
