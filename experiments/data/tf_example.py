"""Reads serialized tf.train.Example messages with the protobuf library alone.

Format: https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/example/example.proto , feature.proto
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = ["parse_example"]

_PACKAGE = "diffusers_fn.tf_example"  # a name of its own: TensorFlow may be imported as well
_FIELD = descriptor_pb2.FieldDescriptorProto
_LISTS = {"BytesList": _FIELD.TYPE_BYTES, "FloatList": _FIELD.TYPE_FLOAT, "Int64List": _FIELD.TYPE_INT64}


def parse_example(serialized: bytes) -> dict[str, list[Any]]:
    """Returns the features of an example: lists of bytes, floats or integers, by name.

    Raises:
      google.protobuf.message.DecodeError: if these are no bytes of an example.

    >>> parse_example(bytes.fromhex("0a100a0e0a056c6162656c12051a030a0107"))
    {'label': [7]}
    """
    example = _example_class()()
    example.ParseFromString(serialized)
    features = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        features[name] = [] if kind is None else list(getattr(feature, kind).value)
    return features


@functools.cache
def _example_class() -> Callable[[], Any]:
    file = descriptor_pb2.FileDescriptorProto(name=f"{_PACKAGE}.proto", package=_PACKAGE, syntax="proto3")
    for name, kind in _LISTS.items():
        file.message_type.add(name=name).field.add(name="value", number=1, label=_FIELD.LABEL_REPEATED, type=kind)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (field, kind) in enumerate(zip(("bytes_list", "float_list", "int64_list"), _LISTS), 1):
        _add_message(feature, field, number, kind, _FIELD.LABEL_OPTIONAL).oneof_index = 0
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=_FIELD.LABEL_OPTIONAL, type=_FIELD.TYPE_STRING)
    _add_message(entry, "value", 2, "Feature", _FIELD.LABEL_OPTIONAL)
    _add_message(features, "feature", 1, "Features.FeatureEntry", _FIELD.LABEL_REPEATED)
    _add_message(file.message_type.add(name="Example"), "features", 1, "Features", _FIELD.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    made: Callable[[], Any] = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.Example"))
    return made


def _add_message(message: Any, name: str, number: int, kind: str, label: Any) -> Any:
    return message.field.add(
        name=name, number=number, label=label, type=_FIELD.TYPE_MESSAGE, type_name=f".{_PACKAGE}.{kind}"
    )
