"""A port that the processes of one server share, and nobody else."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import Self

from camrt.server.errors import SettingsError


class PortClaim:
    """Holds an address for processes that listen on it with SO_REUSEPORT.

    SO_REUSEPORT lets any process of the same user join in, so a second server would silently take a share of the
    requests. Hence three sockets for an address:

    - a name in the abstract namespace of Unix sockets, which only one claim can have, for as long as it lasts;
    - a probe without SO_REUSEPORT, which fails where somebody else listens, and which finds a free port for port 0;
    - a socket with SO_REUSEPORT that is bound and never listens: it keeps the port while no process listens, and gets
      no connections. The probe is closed after this one is bound, so that there is no moment in between.

    Args:
        host: as of ServerSettings.
        port: 0 is any free one.

    Attributes:
        port: the port that is held.

    Raises:
        SettingsError: the address is in use, or is none of this machine, or the system has no SO_REUSEPORT.
    """

    def __init__(self, host: str, port: int) -> None:
        if not hasattr(socket, "SO_REUSEPORT"):
            raise SettingsError("This system has no SO_REUSEPORT.", "Use --workers 1.")
        self._held = ExitStack()
        self.port = port
        told = f"{host}:{port}"
        try:
            for family, address in _addresses(host):
                self.port = self._hold(family, address, self.port)
        except OSError as error:
            self.close()
            raise SettingsError(
                f"Cannot listen on {told}: {error.strerror}.", "Is the port in use? Choose another --port."
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the port back."""
        self._held.close()

    def _hold(self, family: socket.AddressFamily, host: str, port: int) -> int:
        with _bound(family, host, port, reuse_port=False) as probe:
            found = int(probe.getsockname()[1])
            name = self._held.enter_context(socket.socket(socket.AF_UNIX))
            name.bind(f"\0camrt-server-{host}-{found}")
            self._held.enter_context(_bound(family, host, found, reuse_port=True))
        return found


def _bound(family: socket.AddressFamily, host: str, port: int, reuse_port: bool) -> socket.socket:
    """SO_REUSEADDR passes over connections of an earlier server that the system has not forgotten yet."""
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(reuse_port))
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((host, port))
    except OSError:
        made.close()
        raise
    return made


def _addresses(host: str) -> list[tuple[socket.AddressFamily, str]]:
    """The addresses of a host that this machine can bind; all of them where it has none."""
    rows = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    found: list[tuple[socket.AddressFamily, str]] = list(dict.fromkeys((row[0], str(row[4][0])) for row in rows))
    return [row for row in found if _can_bind(*row)] or found


def _can_bind(family: socket.AddressFamily, host: str) -> bool:
    try:
        _bound(family, host, 0, reuse_port=False).close()
    except OSError:
        return False
    return True
