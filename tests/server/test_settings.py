from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
from typer.main import get_command

from camrt.cli import app
from camrt.cli.serve import serve
from camrt.server.errors import SettingsError
from camrt.server.settings import ServerSettings, is_loopback, load_settings


def test_flags_go_before_the_environment_before_the_file_before_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "camrt.toml"
    file.write_text('max_batch = 2\nqueue_items = 3\nclasses = 4\nadmin_names = ["ann"]\n'
                    'tls_certificate = "c"\ntls_key = "k"\ntls_client_ca = "a"\n')  # fmt: skip
    monkeypatch.setenv("CAMRT_QUEUE_ITEMS", "30")
    monkeypatch.setenv("CAMRT_CLASSES", "40")
    monkeypatch.setenv("CAMRT_EXPLAIN_NAMES", "bob, eve")
    settings = load_settings({"classes": 400, "layers": None}, file)
    assert (settings.max_batch, settings.queue_items, settings.classes) == (2, 30, 400)
    assert settings.layers == ServerSettings.model_fields["layers"].default
    assert settings.admin_names == ("ann",)
    assert settings.explain_names == ("bob", "eve")
    monkeypatch.setenv("CAMRT_CONFIG", str(file))
    assert load_settings({}).max_batch == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"port": 70_000}, "port"),
        ({"max_batch": 0}, "max_batch"),
        ({"no_such_setting": 1}, "no_such_setting"),
        ({"bundle": "a", "model_repository": "b"}, "exclude each other"),
        ({"tls_key": "k"}, "go together"),
        ({"tls_client_ca": "a"}, "needs tls_certificate"),
        ({"admin_names": "ann"}, "need tls_client_ca"),
        ({"queue_bytes": 1 << 20}, "less than message_bytes"),
        ({"log_level": "loud"}, "log_level"),
    ],
)
def test_wrong_settings_are_named(flags: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_settings(flags)


def test_an_unknown_setting_names_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "near.toml").write_text("max_batchh = 3")
    with pytest.raises(SettingsError, match=r"max_batchh: there is no such setting, but there is max_batch\b"):
        load_settings({}, tmp_path / "near.toml")
    (tmp_path / "far.toml").write_text("qqq = 3")
    with pytest.raises(SettingsError) as error:
        load_settings({}, tmp_path / "far.toml")
    assert all(name in str(error.value) for name in ServerSettings.model_fields)


def test_files_of_settings_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="Cannot read"):
        load_settings({}, tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_text("port = = 3")
    with pytest.raises(SettingsError, match="Cannot read"):
        load_settings({}, tmp_path / "bad.toml")
    (tmp_path / "odd.toml").write_text("prot = 3")
    with pytest.raises(SettingsError, match="prot"):
        load_settings({}, tmp_path / "odd.toml")


def test_plain_text_leaves_loopback_only_when_it_is_told_to() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.7", "example.org"):
        with pytest.raises(SettingsError, match="--insecure"):
            load_settings({"host": host})
        assert not load_settings({"host": host, "insecure": True}).uses_reflection
        assert load_settings({"host": host, "tls_certificate": "c", "tls_key": "k"}).uses_tls
    for host in ("127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"):
        assert is_loopback(host)
        assert load_settings({"host": host}).uses_reflection
    assert not load_settings({"reflection": False}).uses_reflection


def test_cores_are_shared_by_workers_and_their_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("camrt.server.settings.cores", lambda: 16)
    for workers, batches, run, io in ((1, 1, 16, 17), (2, 1, 8, 9), (2, 4, 2, 9), (1, 4, 4, 17), (32, 2, 1, 2)):
        settings = load_settings({"workers": workers, "concurrent_batches": batches})
        assert (settings.run_threads, settings.decoding_threads) == (run, io)
    settings = load_settings({"workers": 4, "threads": 3, "io_threads": 5})
    assert (settings.run_threads, settings.decoding_threads) == (3, 5)


def test_what_is_printed_names_files_and_holds_no_secret(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("explain " + "ab" * 32)
    text = load_settings({"tokens": tmp_path / "tokens"}).to_json()
    assert str(tmp_path / "tokens") in json.loads(text)["tokens"]
    assert "abab" not in text


def test_messages_do_not_repeat_values_that_may_be_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMRT_PORT", "hunter2")
    with pytest.raises(SettingsError) as error:
        load_settings({})
    assert "hunter2" not in str(error.value)
    assert "port" in str(error.value)


def test_every_setting_is_a_flag_with_the_same_default_and_text() -> None:
    flags = set(inspect.signature(serve).parameters) - {"config"}
    assert flags == set(ServerSettings.model_fields)
    command = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    options = {option.name: option for option in command.params}
    for name, field in ServerSettings.model_fields.items():
        if name == "bundle":
            continue
        assert options[name].help.startswith(field.description), name
        assert options[name].default is None, name
        if field.default not in (None, (), False):
            assert str(options[name].show_default) == str(field.default), name
