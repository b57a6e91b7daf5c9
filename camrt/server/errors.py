"""Typed errors that only a server raises. camrt.server.status says which gRPC code each one is."""

from __future__ import annotations

from camrt.errors import CamrtError


class ServerError(CamrtError):
    """A request that this server does not serve, or not now."""


class ModelNotFoundError(ServerError, LookupError):
    """The server has no model, or no version, of that name."""


class ModelNotReadyError(ServerError):
    """The model is known, but is being loaded or unloaded, or could not be loaded."""


class SeveralWorkersError(ServerError):
    """A call that would change one of several server processes only."""


class WorkerStartError(ServerError):
    """A server process could not start, for the reason that it told."""


class OverloadedError(ServerError):
    """The queue holds as many requests, or as many bytes, as it may.

    Attributes:
        retry_after_ms: when to try again, milliseconds; goes to the client as ``grpc-retry-pushback-ms``.
    """

    def __init__(self, message: str, next_step: str = "", retry_after_ms: int = 1000) -> None:
        super().__init__(message, next_step)
        self.retry_after_ms = retry_after_ms


class DeadlineError(ServerError):
    """The request's deadline passed before its answer was there."""


class DrainingError(ServerError):
    """The server is stopping and takes no new requests."""

    def __init__(
        self, message: str = "The server is stopping.", next_step: str = "Send the request to another one."
    ) -> None:
        super().__init__(message, next_step)


class UnauthenticatedError(ServerError):
    """The caller has not proved who it is."""


class PermissionDeniedError(ServerError):
    """The caller is known, and may not do this."""


class SettingsError(ServerError, ValueError):
    """The server's settings are wrong, or contradict each other."""
