"""The protocol's messages, from a table of their fields: names, types and numbers are those of the
public specification and of Triton's additions to it.

They live in a pool of their own, so that a program may load other stubs of the same package.
"""

import re
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"

_MESSAGES: Final[dict[str, str]] = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "bool live = 1",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "bool ready = 1",
    "ModelReadyRequest": "string name = 1; string version = 2",
    "ModelReadyResponse": "bool ready = 1",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": (
        "string name = 1; string version = 2; repeated string extensions = 3"
    ),
    "ModelMetadataRequest": "string name = 1; string version = 2",
    "ModelMetadataResponse": (
        "string name = 1; repeated string versions = 2; string platform = 3; "
        "repeated TensorMetadata inputs = 4; repeated TensorMetadata outputs = 5"
    ),
    "TensorMetadata": "string name = 1; string datatype = 2; repeated int64 shape = 3",
    "InferParameter": (
        "oneof bool bool_param = 1; oneof int64 int64_param = 2; oneof string string_param = 3; "
        "oneof double double_param = 4; oneof uint64 uint64_param = 5"
    ),
    "InferTensorContents": (
        "repeated bool bool_contents = 1; repeated int32 int_contents = 2; "
        "repeated int64 int64_contents = 3; repeated uint32 uint_contents = 4; "
        "repeated uint64 uint64_contents = 5; repeated float fp32_contents = 6; "
        "repeated double fp64_contents = 7; repeated bytes bytes_contents = 8"
    ),
    "InferInputTensor": (
        "string name = 1; string datatype = 2; repeated int64 shape = 3; "
        "map InferParameter parameters = 4; InferTensorContents contents = 5"
    ),
    "InferRequestedOutputTensor": "string name = 1; map InferParameter parameters = 2",
    "InferOutputTensor": (
        "string name = 1; string datatype = 2; repeated int64 shape = 3; "
        "map InferParameter parameters = 4; InferTensorContents contents = 5"
    ),
    "ModelInferRequest": (
        "string model_name = 1; string model_version = 2; string id = 3; "
        "map InferParameter parameters = 4; repeated InferInputTensor inputs = 5; "
        "repeated InferRequestedOutputTensor outputs = 6; repeated bytes raw_input_contents = 7"
    ),
    "ModelInferResponse": (
        "string model_name = 1; string model_version = 2; string id = 3; "
        "map InferParameter parameters = 4; repeated InferOutputTensor outputs = 5; "
        "repeated bytes raw_output_contents = 6"
    ),
    "ModelStreamInferResponse": "string error_message = 1; ModelInferResponse infer_response = 2",
    "RepositoryIndexRequest": "string repository_name = 1; bool ready = 2",
    "RepositoryIndexResponse": "repeated ModelIndex models = 1",
    "ModelIndex": "string name = 1; string version = 2; string state = 3; string reason = 4",
    "ModelStatisticsRequest": "string name = 1; string version = 2",
    "ModelStatisticsResponse": "repeated ModelStatistics model_stats = 1",
    "ModelStatistics": (
        "string name = 1; string version = 2; uint64 last_inference = 3; "
        "uint64 inference_count = 4; uint64 execution_count = 5; "
        "InferStatistics inference_stats = 6"
    ),
    "InferStatistics": (
        "StatisticDuration success = 1; StatisticDuration fail = 2; StatisticDuration queue = 3; "
        "StatisticDuration compute_input = 4; StatisticDuration compute_infer = 5; "
        "StatisticDuration compute_output = 6"
    ),
    "StatisticDuration": "uint64 count = 1; uint64 ns = 2",
    "ModelConfigRequest": "string name = 1; string version = 2",
    "ModelConfigResponse": "ModelConfig config = 1",
    # Its enum of datatypes travels as a number.
    "ModelConfig": (
        "string name = 1; string platform = 2; repeated ModelInput input = 5; "
        "repeated ModelOutput output = 6; ModelTransactionPolicy model_transaction_policy = 19"
    ),
    "ModelInput": "string name = 1; int32 data_type = 2; repeated int64 dims = 4",
    "ModelOutput": "string name = 1; int32 data_type = 2; repeated int64 dims = 3",
    "ModelTransactionPolicy": "bool decoupled = 1",
}

_FIELD = re.compile(r"(?:(repeated|map|oneof) )?(\w+) (\w+) = (\d+)")
_Field = descriptor_pb2.FieldDescriptorProto
_TYPES = {
    name: getattr(_Field, f"TYPE_{name.upper()}")
    for name in (
        "bool",
        "int32",
        "int64",
        "uint32",
        "uint64",
        "float",
        "double",
        "string",
        "bytes",
    )
}


def _build() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="open_inference.proto", package=PACKAGE, syntax="proto3"
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for text in filter(None, fields.split("; ")):
            _add_field(message, text)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = (pool.FindMessageTypeByName(f"{PACKAGE}.{name}") for name in _MESSAGES)
    return {one.name: message_factory.GetMessageClass(one) for one in found}


def _add_field(message: descriptor_pb2.DescriptorProto, text: str) -> None:
    match = _FIELD.fullmatch(text)
    assert match is not None, text
    kind, type_name, name, number = match.groups()
    label = _Field.LABEL_REPEATED if kind in ("repeated", "map") else _Field.LABEL_OPTIONAL
    field = message.field.add(name=name, number=int(number), label=label)
    if kind == "map":
        entry = message.nested_type.add(name="".join(map(str.title, name.split("_"))) + "Entry")
        entry.options.map_entry = True
        _add_field(entry, "string key = 1")
        _add_field(entry, f"{type_name} value = 2")
        field.type = _Field.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{message.name}.{entry.name}"
    elif type_name in _TYPES:
        field.type = _TYPES[type_name]
    else:
        field.type = _Field.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{type_name}"
    if kind == "oneof":
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
        field.oneof_index = 0


# By name; protobuf's classes have no types that a checker could know.
MESSAGES: Final[dict[str, Any]] = _build()
