"""Texts of a model: all that name something must be UTF-8, as ONNX wants it.

protobuf does not check that on reading; what is not UTF-8 it hands out as bytes, and other code expects str.
"""

from __future__ import annotations

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import NodeProto, TensorProto

from cnpass.errors import ModelError

_FREE = frozenset({"doc_string", "producer_name", "producer_version"})
"""Texts for people, kept as they are; checked are those of tensors, which go over to new values."""

_SHOWN = 40
"""Bytes of a broken text that an error shows."""

_SOUND = frozenset({str, int, float, bool})

_TENSOR_FIELDS = [
    field
    for field in TensorProto.DESCRIPTOR.fields
    if field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_MESSAGE)
]


def check_texts(message: Message) -> None:
    """Refuse a model, or a part of one, in which a name, a key or a value of metadata is not UTF-8.

    Raises:
        ModelError: there is such a text; names the node or tensor that it belongs to, if any.
    """
    _check(message, None)


def _check(message: Message, owner: NodeProto | TensorProto | None) -> None:
    if isinstance(message, TensorProto):  # to list all its fields would copy its values
        owner, fields = message, [(field, getattr(message, field.name)) for field in _TENSOR_FIELDS]
    else:
        owner, fields = message if isinstance(message, NodeProto) else owner, message.ListFields()
    for field, value in fields:
        if type(value) in _SOUND:
            continue
        if isinstance(value, Message):
            _check(value, owner)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in value:
                _check(inner, owner)
        elif field.type == FieldDescriptor.TYPE_STRING and not _free(message, field.name):
            for text in (value,) if isinstance(value, bytes) else value:
                if isinstance(text, bytes):
                    name = f"{message.DESCRIPTOR.name}.{field.name}"
                    raise ModelError(f"{_label(owner)}{name} is not UTF-8 text: {text[:_SHOWN]!r}")


def _free(message: Message, field: str) -> bool:
    return field in _FREE and not isinstance(message, TensorProto)


def _label(owner: NodeProto | TensorProto | None) -> str:
    if owner is None:
        return ""
    if isinstance(owner, TensorProto):
        return f"tensor {owner.name!r}: "
    return f"node {owner.name or next(iter(owner.output), '')!r}: "
