"""Damaging models: fields of a protobuf message, external data, and plain bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import TensorProto

NUMBERS = (0, 1, -1, 2, 3, 4, 7, 8, 16, 64, 127, 255, 1 << 20, 1 << 31, (1 << 31) - 1, -(1 << 31), 1 << 62)
FLOATS = (0.0, -1.0, 0.5, 1e-45, 3e38, float("inf"), float("-inf"), float("nan"))
TEXTS = ("", "x", "y", "w", "ai.onnx", "ai.cnpass", "AnalogConv", "MatMul", "Conv", "ü\0/..", "a" * 300)
LOCATIONS = (
    *(
        "../secret.bin",
        "/etc/passwd",
        "link.bin",
        "inner/../../secret.bin",
        "weights.bin",
        "",
        ".",
        "weights.bin\0",
    ),
    *("C:\\secret.bin", "\\\\host\\share", "folder", "./weights.bin", "missing.bin", "out", "//etc//passwd"),
)
"""Places that external data may claim; `link.bin` is a link to the secret outside of the model's folder."""


def damaged(sources: list[bytes], random: np.random.Generator) -> bytes:
    """One of the sources with a few random changes."""
    source = sources[random.integers(len(sources))]
    if random.random() < 0.25:
        return _bytes(source, random)
    model = onnx.ModelProto.FromString(source)
    for _ in range(random.integers(1, 5)):
        if random.random() < 0.15:
            _external(model, random)
        else:
            messages = list(_messages(model))
            _field(messages[random.integers(len(messages))], messages, random)
    return model.SerializeToString()


def _bytes(source: bytes, random: np.random.Generator) -> bytes:
    data = bytearray(source)
    for _ in range(random.integers(1, 8)):
        place = int(random.integers(len(data) + 1))
        length = int(random.integers(1, 32))
        kind = random.integers(5)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << int(random.integers(8))
        elif kind == 1:
            data[place : place + length] = random.bytes(length)
        elif kind == 2:
            del data[place : place + length]
        elif kind == 3:
            data[place:place] = data[place : place + length]
        elif random.random() < 0.3:
            del data[place:]
    return bytes(data)


def _messages(message: Message) -> Iterator[Message]:
    """A message and all those in it."""
    yield message
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for each in [value] if isinstance(value, Message) else value:
                yield from _messages(each)


def _field(message: Message, others: list[Message], random: np.random.Generator) -> None:
    """Change one field of a message: clear, set, repeat, drop, or take it from another of its kind."""
    fields = message.DESCRIPTOR.fields
    field = fields[random.integers(len(fields))]
    present = getattr(message, field.name)
    repeated = not isinstance(present, Message | int | float | str | bytes)
    if random.random() < 0.1:
        message.ClearField(field.name)
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        kind = field.message_type.name
        donors = [other for other in others if other.DESCRIPTOR.name == kind] or [None]
        donor = donors[random.integers(len(donors))]
        copy = type(donor).FromString(donor.SerializePartialToString()) if donor is not None else None
        if not repeated and copy is not None:
            present.CopyFrom(copy)
        elif repeated and (copy is None or (len(present) and random.random() < 0.4)):
            if len(present):
                del present[int(random.integers(len(present)))]
        elif repeated:
            present.append(copy)
    elif repeated:
        if len(present) and random.random() < 0.6:
            place = int(random.integers(len(present)))
            if random.random() < 0.3:
                del present[place]
            else:
                present[place] = _scalar(field, random, present[place])
        else:
            present.append(_scalar(field, random, None))
    else:
        setattr(message, field.name, _scalar(field, random, present))


def _scalar(field: FieldDescriptor, random: np.random.Generator, old: Any) -> Any:
    pick = lambda values: values[random.integers(len(values))]  # noqa: E731 (said in one place)
    if field.type == FieldDescriptor.TYPE_STRING:
        return pick(TEXTS) if not old or random.random() < 0.7 else old[: len(old) // 2]
    if field.type == FieldDescriptor.TYPE_BYTES:
        return (
            random.bytes(random.integers(0, 40)) if not old or random.random() < 0.5 else old[: len(old) // 2]
        )
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return pick(FLOATS)
    if field.type == FieldDescriptor.TYPE_ENUM:
        return pick([value.number for value in field.enum_type.values])
    if field.type in (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_UINT64):
        return abs(pick(NUMBERS)) % (1 << 31)
    return pick(NUMBERS) if random.random() < 0.7 or old is None else int(old) + int(random.integers(-2, 3))


def _external(model: onnx.ModelProto, random: np.random.Generator) -> None:
    """Let a tensor claim that its values lie in a file, mostly not one that it may read."""
    tensors = [each for each in _messages(model) if isinstance(each, TensorProto)]
    if not tensors:
        return
    tensor = tensors[random.integers(len(tensors))]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    tensor.external_data.add(key="location", value=LOCATIONS[random.integers(len(LOCATIONS))])
    for key in ("offset", "length"):
        if random.random() < 0.4:
            tensor.external_data.add(key=key, value=str(NUMBERS[random.integers(len(NUMBERS))]))
