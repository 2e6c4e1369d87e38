"""Reading an inference request: JSON, and behind it the raw tensors of the binary extension.

A header says how many bytes of the body are JSON; each input that has a `binary_data_size` takes so
many of the bytes behind it, in the order of the inputs, and nothing may be left over.
"""

from dataclasses import dataclass
from typing import Any

from coordinator.buyer.tensor_json import tensor_of_plain
from coordinator.gateway.errors import ApiError, invalid
from coordinator.gateway.http.strict_json import Fields, check_text, parse_object, read_list
from coordinator.gateway.inference.messages import ID_CHARS_MAX, InferenceRequest
from protocol.limits import NAME_CHARS_MAX, OUTPUT_BYTES_MAX, TENSOR_RANK_MAX, TENSORS_MAX
from protocol.tensors import Datatype, NamedTensor

LENGTH_HEADER = "inference-header-content-length"
_DIGITS_MAX = 9

_DATATYPES = {datatype.value: datatype for datatype in Datatype}


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """`binary` names the outputs that are wanted as raw bytes; `all_binary` is for those that the
    request does not name."""

    request: InferenceRequest
    binary: frozenset[str]
    all_binary: bool


def read_body(
    body: bytes | bytearray, length: str | None, *, model: str, version: str
) -> ReadRequest:
    """Raises ApiError (400, 413)."""
    json_bytes = len(body) if length is None else _read_length(length, len(body))
    fields = Fields(parse_object(body[:json_bytes]))
    return read_request(fields, model=model, version=version, raw=memoryview(body)[json_bytes:])


def read_request(
    fields: Fields, *, model: str, version: str, raw: bytes | memoryview = b""
) -> ReadRequest:
    """`raw` are the bytes behind the JSON. Raises ApiError (400)."""
    behind = _RawData(memoryview(raw))
    inputs = read_list(
        fields.required("inputs"),
        "inputs",
        items_max=TENSORS_MAX,
        read=lambda value, path: _read_tensor(value, path, behind),
    )
    if not inputs:
        raise invalid("inputs is empty", "inputs")
    if behind.left:
        raise invalid(f"{behind.left} bytes follow that no input claims", "inputs")
    parameters = _parameters(fields)
    all_binary = _flag(parameters, "binary_data_output", "parameters") or False
    outputs, binary = _read_outputs(fields, default=all_binary)
    request = InferenceRequest(
        model=model,
        inputs=inputs,
        outputs=outputs,
        parameters=parameters,
        version=version,
        id=_read_id(fields),
    )
    return ReadRequest(request, binary, all_binary)


class _RawData:
    """The bytes behind the JSON, taken from the front."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, size: int, path: str) -> bytes:
        if size > self.left:
            raise invalid(f"{path} claims {size} bytes, and {self.left} are left", path)
        self._at += size
        return bytes(self._data[self._at - size : self._at])


def _read_length(text: str, body_bytes: int) -> int:
    # Longer digits are no length of a body, and Python refuses to read very long ones.
    if not (text.isascii() and text.isdecimal() and len(text) <= _DIGITS_MAX):
        raise invalid(f"{LENGTH_HEADER} is no number of bytes", LENGTH_HEADER)
    if not 0 < int(text) <= body_bytes:
        raise invalid(
            f"{LENGTH_HEADER} is {int(text)}, and the body has {body_bytes} bytes", LENGTH_HEADER
        )
    return int(text)


def _read_tensor(value: Any, path: str, raw: _RawData) -> NamedTensor:
    fields = _object(value, path)
    name = fields.text("name", chars_max=NAME_CHARS_MAX)
    fields.required("datatype")
    datatype = fields.choice("datatype", _DATATYPES)
    assert datatype is not None, "a required choice is there"
    shape = _read_shape(fields, path)
    size = _parameters(fields).get("binary_data_size")
    data = fields.raw("data")
    try:
        if size is None:
            if data is None:
                raise invalid(f"you must give {path}.data", f"{path}.data")
            return tensor_of_plain(name, datatype, shape, data)
        if data is not None:
            raise invalid(f"{path} has data and binary_data_size: give one", path)
        where = f"{path}.parameters.binary_data_size"
        if type(size) is not int or not 0 <= size <= OUTPUT_BYTES_MAX:
            raise invalid(f"{where} is no number of bytes", where)
        return NamedTensor(name, datatype, shape, raw.take(size, where))
    except ValueError as error:
        raise invalid(f"{path} ({name}): {error}", path) from None


def _read_shape(fields: Fields, path: str) -> tuple[int, ...]:
    def read(value: Any, where: str) -> int:
        if type(value) is not int or not 0 < value < 2**31:
            raise invalid(f"{where} is no size of a dimension: 1 or more", where)
        return value

    shape = fields.required("shape")
    return read_list(shape, f"{path}.shape", items_max=TENSOR_RANK_MAX, read=read)


def _read_outputs(fields: Fields, *, default: bool) -> tuple[tuple[str, ...], frozenset[str]]:
    binary: set[str] = set()

    def read(value: Any, path: str) -> str:
        output = _object(value, path)
        name = output.text("name", chars_max=NAME_CHARS_MAX)
        parameters = _parameters(output)
        if parameters.get("classification"):
            raise invalid(f"{path}: classification is not supported: ask for scores", path)
        wanted = _flag(parameters, "binary_data", f"{path}.parameters")
        if default if wanted is None else wanted:
            binary.add(name)
        return name

    listed = fields.raw("outputs")
    if listed is None:
        return (), frozenset()
    names = read_list(listed, "outputs", items_max=TENSORS_MAX, read=read)
    if len(set(names)) != len(names):
        raise invalid("an output is named twice", "outputs")
    return names, frozenset(binary)


def _read_id(fields: Fields) -> str:
    value = fields.raw("id")
    if value is None:
        return ""
    text = check_text(value, "id")
    if len(text) > ID_CHARS_MAX:
        raise invalid(f"id has at most {ID_CHARS_MAX} characters", "id")
    return text


def _parameters(fields: Fields) -> dict[str, Any]:
    value = fields.raw("parameters")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _no_object(fields.path("parameters"))
    return value


def _flag(parameters: dict[str, Any], name: str, path: str) -> bool | None:
    value = parameters.get(name)
    if value is not None and type(value) is not bool:
        raise invalid(f"{path}.{name} must be true or false", f"{path}.{name}")
    return value


def _object(value: Any, path: str) -> Fields:
    if not isinstance(value, dict):
        raise _no_object(path)
    return Fields(value, path)


def _no_object(path: str) -> ApiError:
    return invalid(f"{path} must be an object", path)
