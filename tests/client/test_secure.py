"""Clients over TLS and with tokens, against a whole server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from camrt.client import AsyncExplainerClient, ExplainerClient, RemoteError, TlsOptions
from camrt.explainer import sample_image_path
from camrt.server.security import token_digest
from tests.server.certificates import Authority
from tests.server.loopback import Loopback

TOKEN = "a token of a test"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("secure")


@pytest.fixture(scope="module")
def server(folder: Path, authority: Authority) -> Iterator[Loopback]:
    certificate, key = authority.issue("server").write(folder, "server")
    (folder / "authority.pem").write_bytes(authority.pem)
    (folder / "tokens").write_text(f"explain {token_digest(TOKEN)}\n")
    with Loopback(tls_certificate=certificate, tls_key=key, tokens=folder / "tokens") as running:
        yield running


def test_tls_and_token(server: Loopback, folder: Path, authority: Authority) -> None:
    for source in (folder / "authority.pem", authority.pem):
        with ExplainerClient(server.address, tls=TlsOptions(source), token=TOKEN, timeout=30) as client:
            assert client.explain(sample_image_path())[0].class_name

    async def ask() -> list:
        tls = TlsOptions(authority.pem)
        async with AsyncExplainerClient(server.address, tls=tls, token=TOKEN, timeout=30) as client:
            return await client.list_models()

    assert asyncio.run(ask())[0].state == "ready"


@pytest.mark.parametrize("token", [None, "another"])
def test_without_the_right_token(server: Loopback, authority: Authority, token: str | None) -> None:
    tls = TlsOptions(authority.pem)
    with (
        ExplainerClient(server.address, tls=tls, token=token, timeout=30) as client,
        pytest.raises(RemoteError) as caught,
    ):
        client.explain(sample_image_path())
    assert (caught.value.code, caught.value.reason) == ("UNAUTHENTICATED", "UNAUTHENTICATED")


def test_a_server_that_nobody_vouches_for(server: Loopback) -> None:
    tls = TlsOptions(Authority("another").pem)
    with (
        ExplainerClient(server.address, tls=tls, token=TOKEN, timeout=1) as client,
        pytest.raises(RemoteError) as caught,
    ):
        client.list_models()
    assert caught.value.code == "UNAVAILABLE"


def test_neither_tokens_nor_keys_are_shown(authority: Authority) -> None:
    pair = authority.issue("client")
    tls = TlsOptions(authority.pem, pair.certificate, pair.key)
    with ExplainerClient("127.0.0.1:1", tls=tls, token=TOKEN) as client:
        told = f"{client!r} {vars(client)!r} {tls!r}"
    assert TOKEN not in told
    assert "PRIVATE KEY" not in told
