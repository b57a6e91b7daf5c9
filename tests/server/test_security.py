from __future__ import annotations

import hmac
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from camrt.server import security
from camrt.server.errors import PermissionDeniedError, SettingsError, UnauthenticatedError
from camrt.server.security import Access, Certificates, read_tokens, token_digest
from camrt.server.settings import ServerSettings
from tests.server.certificates import Authority

EXPLAIN = "/camrt.v1.ExplainerService/Explain"
LOAD = "/inference.GRPCInferenceService/RepositoryModelLoad"
CHECK = "/grpc.health.v1.Health/Check"


class Caller:
    """The part of a context that says who calls."""

    def __init__(self, token: str | None = None, name: str | None = None, header: str = "Bearer ") -> None:
        self._metadata = (("x-other", "1"),) if token is None else (("authorization", header + token),)
        self._auth = {} if name is None else {"x509_common_name": [name.encode()]}

    def invocation_metadata(self) -> Sequence[tuple[str, str]]:
        return self._metadata

    def auth_context(self) -> dict[str, list[bytes]]:
        return self._auth


def allowed(access: Access, method: str, caller: Any) -> str:
    try:
        access.check(method, caller)
    except UnauthenticatedError:
        return "unauthenticated"
    except PermissionDeniedError:
        return "denied"
    return "yes"


def tokens_file(folder: Path) -> Path:
    path = folder / "tokens"
    path.write_text(
        f"# tokens\n\nexplain {token_digest('user-token')}  reader # of the dashboard\nadmin {token_digest('admin-token')}\n"
    )
    return path


def tls(folder: Path) -> dict[str, Path]:
    authority = Authority()
    certificate, key = authority.issue("server").write(folder, "server")
    (folder / "ca.crt").write_bytes(authority.pem)
    return {"tls_certificate": certificate, "tls_key": key, "tls_client_ca": folder / "ca.crt"}


def test_without_tokens_a_loopback_caller_may_everything_and_another_may_explain() -> None:
    assert allowed(Access(ServerSettings()), LOAD, Caller()) == "yes"
    remote = Access(ServerSettings(host="0.0.0.0", insecure=True))
    assert allowed(remote, EXPLAIN, Caller()) == "yes"
    assert allowed(remote, LOAD, Caller()) == "denied"


@pytest.mark.parametrize(
    ("token", "explain", "load"),
    [
        ("user-token", "yes", "denied"),
        ("admin-token", "yes", "yes"),
        ("wrong", "unauthenticated", "unauthenticated"),
        ("", "unauthenticated", "unauthenticated"),
        (None, "unauthenticated", "unauthenticated"),
        (token_digest("user-token"), "unauthenticated", "unauthenticated"),
    ],
)
def test_tokens_have_roles(tmp_path: Path, token: str | None, explain: str, load: str) -> None:
    access = Access(ServerSettings(tokens=tokens_file(tmp_path)))
    assert allowed(access, EXPLAIN, Caller(token)) == explain
    assert allowed(access, LOAD, Caller(token)) == load
    assert allowed(access, CHECK, Caller(token)) == "yes", "probes have no token"


def test_only_bearer_tokens_count(tmp_path: Path) -> None:
    access = Access(ServerSettings(tokens=tokens_file(tmp_path)))
    assert allowed(access, EXPLAIN, Caller("user-token", header="bearer ")) == "yes"
    assert allowed(access, EXPLAIN, Caller("user-token", header="Basic ")) == "unauthenticated"
    assert allowed(access, EXPLAIN, Caller("user-token", header="")) == "unauthenticated"


def test_every_token_is_compared_in_constant_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    constant_time = hmac.compare_digest

    def compare(first: bytes, second: bytes) -> bool:
        compared.append((first, second))
        return constant_time(first, second)

    access = Access(ServerSettings(tokens=tokens_file(tmp_path)))
    monkeypatch.setattr(security.hmac, "compare_digest", compare)
    assert allowed(access, EXPLAIN, Caller("user-token")) == "yes"
    assert len(compared) == 2, "the first one matched, the second one was compared all the same"
    assert all(len(first) == len(second) == 32 for first, second in compared)


def test_names_of_client_certificates_have_roles(tmp_path: Path) -> None:
    files = tls(tmp_path)
    named = Access(ServerSettings(**files, admin_names=("ann",), explain_names=("bob",)))
    refused = "unauthenticated"
    for name, explain, load in (("ann", "yes", "yes"), ("bob", "yes", "denied"), ("eve", refused, refused)):
        assert allowed(named, EXPLAIN, Caller(name=name)) == explain
        assert allowed(named, LOAD, Caller(name=name)) == load
    anyone = Access(ServerSettings(**files, admin_names=("ann",)))
    assert allowed(anyone, EXPLAIN, Caller(name="eve")) == "yes"
    assert allowed(anyone, LOAD, Caller(name="eve")) == "denied"


def test_with_tokens_a_certificate_without_a_role_is_not_enough(tmp_path: Path) -> None:
    access = Access(ServerSettings(**tls(tmp_path), tokens=tokens_file(tmp_path), admin_names=("ann",)))
    assert allowed(access, EXPLAIN, Caller(name="eve")) == "unauthenticated"
    assert allowed(access, EXPLAIN, Caller("user-token", "eve")) == "yes"
    assert allowed(access, LOAD, Caller("user-token", "ann")) == "yes"


@pytest.mark.parametrize("text", ["", "# nothing\n", "user abc", "root " + "a" * 64, "explain " + "A" * 64, "explain"])
def test_a_file_of_tokens_that_says_nothing_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(SettingsError, match="token"):
        Access(ServerSettings(tokens=path))
    with pytest.raises(SettingsError, match="Cannot read"):
        read_tokens(tmp_path / "absent")


def test_tokens_are_read_again_and_a_broken_file_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(security, "_LOOK_SECONDS", 0)
    path = tokens_file(tmp_path)
    access = Access(ServerSettings(tokens=path))
    path.write_text("broken")
    assert allowed(access, EXPLAIN, Caller("user-token")) == "yes"
    path.write_text(f"explain {token_digest('new-token')}")
    assert allowed(access, EXPLAIN, Caller("new-token")) == "yes"
    assert allowed(access, EXPLAIN, Caller("user-token")) == "unauthenticated"
    path.unlink()
    assert allowed(access, EXPLAIN, Caller("new-token")) == "yes"


def test_certificates_are_read_again_only_when_they_changed_and_fit(tmp_path: Path) -> None:
    files = tls(tmp_path)
    certificates = Certificates(ServerSettings(**files))
    assert certificates._changed() is None
    other = Authority().issue("server")
    files["tls_certificate"].write_bytes(other.certificate)
    assert certificates._changed() is None, "the key is still the old one"
    files["tls_key"].write_bytes(other.key)
    assert certificates._changed() is not None
    assert certificates._changed() is None
    os.utime(files["tls_client_ca"], ns=(1, 1))
    assert certificates._changed() is not None


def test_certificates_that_cannot_be_used_are_refused_at_start(tmp_path: Path) -> None:
    files = tls(tmp_path)
    files["tls_key"].write_bytes(Authority().issue("server").key)
    with pytest.raises(SettingsError, match="certificate"):
        Certificates(ServerSettings(**files))
    with pytest.raises(SettingsError, match="certificate"):
        Certificates(ServerSettings(tls_certificate=tmp_path / "absent", tls_key=files["tls_key"]))
