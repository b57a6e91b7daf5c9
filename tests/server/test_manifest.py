"""The Kubernetes manifest of docs/serving.md, as far as it can be checked without a cluster."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from camrt.cli import app
from camrt.server.settings import ServerSettings, load_settings

# Fields of apps/v1 Deployment that the manifest may have: a name, and what is below it. None is a value, "*" any name.
_META = {"name": None, "labels": {"*": None}, "annotations": {"*": None}}
_PROBE = {
    "tcpSocket": {"port": None},
    "exec": {"command": None},
    "grpc": {"port": None, "service": None},
    **dict.fromkeys(("initialDelaySeconds", "periodSeconds", "timeoutSeconds", "failureThreshold"), None),
}
_VOLUME = {"name": None, "persistentVolumeClaim": {"claimName": None}, "secret": {"secretName": None}}
_CONTAINER = {
    **dict.fromkeys(("name", "image", "command", "args"), None),
    "ports": {"name": None, "containerPort": None, "protocol": None},
    "resources": {"requests": {"cpu": None, "memory": None}, "limits": {"cpu": None, "memory": None}},
    "volumeMounts": {"name": None, "mountPath": None, "readOnly": None},
    **dict.fromkeys(("startupProbe", "readinessProbe", "livenessProbe"), _PROBE),
}
_POD = {"terminationGracePeriodSeconds": None, "containers": _CONTAINER, "volumes": _VOLUME}
_DEPLOYMENT: dict[str, Any] = {
    "apiVersion": None,
    "kind": None,
    "metadata": _META,
    "spec": {"replicas": None, "selector": {"matchLabels": {"*": None}}, "template": {"metadata": _META, "spec": _POD}},
}


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    text = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (document,) = yaml.safe_load_all(block)
    return dict(document)


@pytest.fixture(scope="module")
def pod(manifest: dict[str, Any]) -> dict[str, Any]:
    return dict(manifest["spec"]["template"]["spec"])


@pytest.fixture(scope="module")
def settings(pod: dict[str, Any]) -> ServerSettings:
    """As the command line of the container reads its arguments."""
    name, subcommand, *flags = pod["containers"][0]["args"]
    assert (name, subcommand) == ("camrt", "serve")
    command = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    given = command.make_context("serve", list(flags)).params
    assert given.pop("config") is None
    return load_settings(given)


def check(value: Any, fields: dict[str, Any] | None, path: str = "") -> None:
    for item in value if isinstance(value, list) else [value]:
        if fields is None:
            assert not isinstance(item, dict), path
            continue
        assert isinstance(item, dict), path
        for name, below in item.items():
            assert "*" in fields or name in fields, f"{path}.{name} is no field"
            check(below, fields.get(name, fields.get("*")), f"{path}.{name}")


def test_every_field_is_one_of_a_deployment(manifest: dict[str, Any]) -> None:
    check(manifest, _DEPLOYMENT)
    assert (manifest["apiVersion"], manifest["kind"]) == ("apps/v1", "Deployment")
    with pytest.raises(AssertionError, match="readynessProbe"):
        check({"spec": {"template": {"spec": {"containers": [{"readynessProbe": {}}]}}}}, _DEPLOYMENT)


def test_the_selector_finds_the_pods_and_values_are_texts_where_they_must_be(manifest: dict[str, Any]) -> None:
    template = manifest["spec"]["template"]
    assert manifest["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert all(isinstance(value, str) for value in template["metadata"]["annotations"].values())
    assert all(isinstance(value, str) for value in template["spec"]["containers"][0]["args"])


def test_ports_and_probes_are_those_of_the_flags(manifest: dict[str, Any], pod: dict[str, Any], settings: Any) -> None:
    (container,) = pod["containers"]
    ports = {row["name"]: row["containerPort"] for row in container["ports"]}
    assert ports == {"grpc": settings.port, "metrics": settings.metrics_port}
    annotations = manifest["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(settings.metrics_port)
    assert container["startupProbe"]["tcpSocket"]["port"] == settings.port
    assert container["livenessProbe"]["tcpSocket"]["port"] == settings.port
    probe = container["readinessProbe"]["exec"]["command"]
    assert probe[:2] == ["grpc_health_probe", f"-addr=127.0.0.1:{settings.port}"]
    assert ("-tls" in probe) == settings.uses_tls
    assert settings.host == settings.metrics_host == "0.0.0.0", "probes and Prometheus come from outside"


def test_files_that_the_flags_name_are_mounted(pod: dict[str, Any], settings: ServerSettings) -> None:
    mounts = {row["name"]: Path(row["mountPath"]) for row in pod["containers"][0]["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    for path in (settings.model_repository, settings.tls_certificate, settings.tls_key, settings.tokens):
        assert path is not None
        assert any(path.is_relative_to(mount) for mount in mounts.values()), path
    secret = {"tls_certificate": "tls.crt", "tls_key": "tls.key"}  # keys of a secret of type kubernetes.io/tls
    assert {name: getattr(settings, name).name for name in secret} == secret


def test_a_drain_fits_the_grace_period(pod: dict[str, Any], settings: ServerSettings) -> None:
    assert settings.drain_delay > 0, "endpoints are taken out while the pod is told to stop"
    assert settings.drain_delay + settings.drain_timeout + 5 <= pod["terminationGracePeriodSeconds"]
