"""What reflection says, as tools that print JSON use it."""

from __future__ import annotations

import grpc
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.server.loopback import Loopback


def test_fields_have_their_names_in_json() -> None:
    request = reflection_pb2.ServerReflectionRequest(file_containing_symbol="camrt.v1.ExplainerService")
    with Loopback() as server, grpc.insecure_channel(server.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        (reply,) = stub.ServerReflectionInfo(iter([request]), timeout=30)
    file = descriptor_pb2.FileDescriptorProto.FromString(reply.file_descriptor_response.file_descriptor_proto[0])
    names = {
        f"{message.name}.{field.name}": field.json_name for message in file.message_type for field in message.field
    }
    assert names["Explanation.saliency_map"] == "saliencyMap"
    assert names["Prediction.probability"] == "probability"
    entry = next(message for message in file.message_type if message.name == "Explanation").nested_type[0]
    assert [field.json_name for field in entry.field] == ["key", "value"]
