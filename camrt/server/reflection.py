"""Server reflection, so that tools can call the services without their .proto files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from camrt.inference import open_inference_pb2
from camrt.v1 import explainer_pb2

SERVICE_NAMES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
_PRIVATE, _PUBLIC = "camrt.inference", "inference"


def add_reflection(server: grpc.aio.Server, services: Sequence[str]) -> None:
    """Serves reflection of ``services`` under the names of both of its versions, whose messages are the same."""
    pool = descriptor_pool.DescriptorPool()
    for file in (explainer_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR):
        pool.Add(_copy(file))
    pool.Add(_published(open_inference_pb2.DESCRIPTOR))
    servicer = reflection.aio.ReflectionServicer((*services, *SERVICE_NAMES), pool=pool)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    methods = {"ServerReflectionInfo": handler}
    server.add_generic_rpc_handlers(
        tuple(grpc.method_handlers_generic_handler(name, methods) for name in SERVICE_NAMES)
    )


def _copy(file: Any) -> descriptor_pb2.FileDescriptorProto:
    """The file, with the names that fields have in JSON: generated modules leave them out, and tools look for them."""
    copy = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(copy)
    for message in copy.message_type:
        _name_in_json(message, file.message_types_by_name[message.name])
    return copy


def _name_in_json(message: descriptor_pb2.DescriptorProto, descriptor: Any) -> None:
    for field in message.field:
        field.json_name = descriptor.fields_by_name[field.name].json_name
    for nested in message.nested_type:
        _name_in_json(nested, descriptor.nested_types_by_name[nested.name])


def _published(file: Any) -> descriptor_pb2.FileDescriptorProto:
    """The file as clients know it: its messages and service in the public package, see its first lines."""
    copy = _copy(file)
    copy.package = _PUBLIC
    for message in copy.message_type:
        _rename(message)
    for method in (method for service in copy.service for method in service.method):
        method.input_type, method.output_type = _renamed(method.input_type), _renamed(method.output_type)
    return copy


def _rename(message: descriptor_pb2.DescriptorProto) -> None:
    for field in message.field:
        if field.type_name:
            field.type_name = _renamed(field.type_name)
    for nested in message.nested_type:
        _rename(nested)


def _renamed(name: str) -> str:
    return f".{_PUBLIC}.{name.removeprefix(f'.{_PRIVATE}.')}" if name.startswith(f".{_PRIVATE}.") else name
