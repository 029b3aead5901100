"""Messages of TensorFlow Serving's text files that tensorflow-serving-api does not ship.

Names, numbers and types are those of tensorflow_serving/config/ssl_config.proto and
monitoring_config.proto, written as descriptors.
"""

from typing import Any

from google.protobuf import (  # type: ignore[import-untyped]
    descriptor_pb2,
    descriptor_pool,
    message_factory,
)

_PACKAGE = "captionbeam.test.serving"
_Field = descriptor_pb2.FieldDescriptorProto
_STRING, _BOOL, _MESSAGE = _Field.TYPE_STRING, _Field.TYPE_BOOL, _Field.TYPE_MESSAGE
# Fields by number from 1.
_MESSAGES = {
    "SSLConfig": {
        "server_key": _STRING,
        "server_cert": _STRING,
        "custom_ca": _STRING,
        "client_verify": _BOOL,
    },
    "PrometheusConfig": {"enable": _BOOL, "path": _STRING},
    "MonitoringConfig": {"prometheus_config": _MESSAGE},
}


def message(name: str) -> Any:
    """An empty message: "SSLConfig" or "MonitoringConfig"."""
    file = descriptor_pb2.FileDescriptorProto(
        name="serving_config.proto", package=_PACKAGE, syntax="proto3"
    )
    for kind, fields in _MESSAGES.items():
        declared = file.message_type.add(name=kind)
        for number, (field, type_) in enumerate(fields.items(), start=1):
            added = declared.field.add(
                name=field, number=number, type=type_, label=_Field.LABEL_OPTIONAL
            )
            if type_ == _MESSAGE:
                added.type_name = f".{_PACKAGE}.PrometheusConfig"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))()
