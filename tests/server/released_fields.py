"""What is in the .proto files, as JSON: the fields, values and calls that clients rely on.

``python -m tests.server.released_fields`` adds what is new to released_fields.json, which the next release promises.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor

from camrt.inference import open_inference_pb2
from camrt.v1 import explainer_pb2

PATH = Path(__file__).with_suffix(".json")
FILES = (explainer_pb2.DESCRIPTOR, open_inference_pb2.DESCRIPTOR)
TYPES = {
    value: name.removeprefix("TYPE_").lower() for name, value in vars(FieldDescriptor).items() if name[:5] == "TYPE_"
}


def messages(file: FileDescriptor) -> list[Descriptor]:
    """Every message of a file, nested ones too."""
    found, waiting = [], list(file.message_types_by_name.values())
    while waiting:
        message = waiting.pop(0)
        found.append(message)
        waiting += message.nested_types
    return found


def field_text(field: FieldDescriptor) -> str:
    """A field as it stands in a .proto file, without its number."""
    kind = field.message_type or field.enum_type
    words = ["repeated"] if field.is_repeated else []
    words += [TYPES[field.type] if kind is None else kind.full_name, field.name]
    if field.containing_oneof is not None:
        words.append(f"in {field.containing_oneof.name}")
    return " ".join(words)


def contents(file: FileDescriptor) -> dict[str, dict[str, str]]:
    """Name of a message, enum or service to number (or call) to what it is."""
    found = {
        message.full_name: {str(field.number): field_text(field) for field in message.fields}
        for message in messages(file)
    }
    enums = [*file.enum_types_by_name.values(), *(enum for message in messages(file) for enum in message.enum_types)]
    for enum in enums:
        found[enum.full_name] = {str(value.number): value.name for value in enum.values}
    for service in file.services_by_name.values():
        found[service.full_name] = {
            method.name: f"{'stream ' * method.client_streaming}{method.input_type.full_name} -> "
            f"{'stream ' * method.server_streaming}{method.output_type.full_name}"
            for method in service.methods
        }
    return found


def current() -> dict[str, dict[str, str]]:
    """What the .proto files say now."""
    return {name: members for file in FILES for name, members in contents(file).items()}


def released() -> dict[str, dict[str, str]]:
    """What clients rely on."""
    return json.loads(PATH.read_text(encoding="utf-8"))


def broken(old: dict[str, dict[str, str]], new: dict[str, dict[str, str]]) -> list[str]:
    """What was promised and is not kept."""
    return [
        f"{name} {number}: {text!r} is now {new.get(name, {}).get(number, 'gone')!r}"
        for name, members in old.items()
        for number, text in members.items()
        if new.get(name, {}).get(number) != text
    ] + [f"{name} is gone" for name in old if name not in new]


def main() -> None:
    """Adds to the file what is new; refuses where a promise is broken."""
    now = current()
    problems = broken(released(), now) if PATH.exists() else []
    if problems:
        sys.exit("\n".join(problems))
    PATH.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
