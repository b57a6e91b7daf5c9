from __future__ import annotations

import socket

import pytest

from camrt.server.errors import SettingsError
from camrt.server.ports import PortClaim

HOST = "127.0.0.1"


def listener(port: int, reuse_port: bool) -> socket.socket:
    """As gRPC opens one."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(reuse_port))
    try:
        made.bind((HOST, port))
        made.listen()
    except OSError:
        made.close()
        raise
    return made


def test_any_free_port_is_found_and_processes_can_share_it() -> None:
    with PortClaim(HOST, 0) as claim:
        assert claim.port > 0
        with listener(claim.port, True), listener(claim.port, True):
            for _ in range(20):
                with socket.create_connection((HOST, claim.port), timeout=5):
                    pass


def test_the_held_socket_gets_no_connection() -> None:
    with PortClaim(HOST, 0) as claim, pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOST, claim.port), timeout=5)


@pytest.mark.parametrize("reuse_port", [False, True])
def test_a_port_where_somebody_listens_is_refused(reuse_port: bool) -> None:
    with listener(0, reuse_port) as other, pytest.raises(SettingsError, match=r"in use.*--port"):
        PortClaim(HOST, other.getsockname()[1])


def test_two_claims_exclude_each_other_before_anybody_listens() -> None:
    with PortClaim(HOST, 0) as claim:
        with pytest.raises(SettingsError, match="in use"):
            PortClaim(HOST, claim.port)
        port = claim.port
    with PortClaim(HOST, port) as again:
        assert again.port == port


def test_connections_of_an_earlier_server_do_not_keep_a_port() -> None:
    with listener(0, False) as earlier:
        port = earlier.getsockname()[1]
        client = socket.create_connection((HOST, port), timeout=5)
        accepted, _ = earlier.accept()
        accepted.close()  # the side that closes first is remembered by the system for a minute
        client.close()
    with PortClaim(HOST, port):
        listener(port, True).close()


def test_names_of_this_machine_and_of_none() -> None:
    with PortClaim("localhost", 0) as claim, listener(claim.port, True):
        pass
    with PortClaim("0.0.0.0", 0) as claim, listener(claim.port, True):
        pass
    for host in ("192.0.2.1", "no-such-host.invalid"):
        with pytest.raises(SettingsError, match="Cannot listen"):
            PortClaim(host, 0)
