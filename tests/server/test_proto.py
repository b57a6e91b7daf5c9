"""The .proto files: what is released stays, the rules of style, and Triton's wire format."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import EnumDescriptor

from camrt.inference import open_inference_pb2
from camrt.v1 import explainer_pb2
from tests.server.released_fields import broken, contents, current, messages, released

PROTO = Path(__file__).parents[2] / "proto"
OURS = explainer_pb2.DESCRIPTOR


def test_released_fields_are_kept() -> None:
    assert broken(released(), current()) == []


def test_every_field_is_recorded() -> None:
    assert current() == released(), "run: python -m tests.server.released_fields"


@pytest.mark.parametrize("change", ["renumber", "remove", "retype", "rename", "repeat", "oneof", "message", "value"])
def test_a_broken_promise_is_found(change: str) -> None:
    new = copy.deepcopy(current())
    fields = new["camrt.v1.ExplainRequest"]
    match change:
        case "renumber":
            fields["11"] = fields.pop("7")
        case "remove":
            del fields["10"]
        case "retype":
            fields["10"] = fields["10"].replace("int64", "int32")
        case "rename":
            fields["10"] = fields["10"].replace("seed", "random_seed")
        case "repeat":
            fields["2"] = f"repeated {fields['2']}"
        case "oneof":
            fields["4"] = fields["4"].removesuffix(" in classes")
        case "message":
            del new["camrt.v1.GetModelRequest"], new["camrt.v1.ListModelsRequest"]
        case "value":
            new["camrt.v1.MapEncoding"]["1"] = "MAP_ENCODING_FLOAT64"
    assert broken(released(), new)
    assert current() != new


def test_a_new_field_breaks_nothing() -> None:
    new = copy.deepcopy(current())
    new["camrt.v1.ExplainRequest"]["99"] = "string note"
    new["camrt.v1.Note"] = {"1": "string text"}
    assert broken(released(), new) == []


def enums() -> list[EnumDescriptor]:
    return list(OURS.enum_types_by_name.values())


@pytest.mark.parametrize("enum", enums(), ids=lambda enum: enum.name)
def test_enums_start_unspecified_and_are_prefixed(enum: EnumDescriptor) -> None:
    prefix = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", enum.name).upper()
    assert enum.values_by_number[0].name == f"{prefix}_UNSPECIFIED"
    assert all(value.name.startswith(f"{prefix}_") for value in enum.values)
    assert len(enum.values_by_number) == len(enum.values)


def test_every_call_has_types_of_its_own() -> None:
    for service in OURS.services_by_name.values():
        assert service.name.endswith("Service")
        for method in service.methods:
            assert method.input_type.name == f"{method.name}Request"
            assert method.output_type.name == f"{method.name}Response"


def test_names() -> None:
    assert OURS.package == "camrt.v1"
    assert OURS.name == "camrt/v1/explainer.proto"
    for message in messages(OURS):
        assert re.fullmatch(r"[A-Z][A-Za-z0-9]*", message.name)
        for field in message.fields:
            assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", field.name)


@pytest.mark.parametrize("path", sorted(PROTO.rglob("*.proto")), ids=lambda path: path.stem)
def test_messages_calls_and_enums_are_explained(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    for before, line in pairwise(lines):
        if re.match(r"\s+rpc |(enum) ", line):
            assert before.strip().startswith("//"), line
        assert len(line) <= 120


def test_the_stubs_are_those_of_the_sources(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed")
    for module in (explainer_pb2, open_inference_pb2):
        name = module.DESCRIPTOR.name
        command = ["-m", "grpc_tools.protoc", f"-I{PROTO}", f"--descriptor_set_out={tmp_path / 'set'}", name]
        subprocess.run([sys.executable, *command], check=True)
        (fresh,) = descriptor_pb2.FileDescriptorSet.FromString((tmp_path / "set").read_bytes()).file
        built = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(built)
        fresh.ClearField("source_code_info")
        for item in (fresh, built):
            for message in item.message_type:
                _without_json_names(message)
        assert built == fresh, "build the package again"


def _without_json_names(message) -> None:
    for field in message.field:
        field.ClearField("json_name")
    for nested in message.nested_type:
        _without_json_names(nested)


def test_the_wire_format_is_the_one_of_triton() -> None:
    client = pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")
    theirs: dict[str, dict[str, str]] = {}
    for module in (client.service_pb2, client.model_config_pb2):
        theirs |= contents(module.DESCRIPTOR)
    for name, members in contents(open_inference_pb2.DESCRIPTOR).items():
        public = name.replace("camrt.inference.", "inference.")
        for number, text in members.items():
            assert theirs[public][number] == text.replace("camrt.inference.", "inference."), f"{name} {number}"
