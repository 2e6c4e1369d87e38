"""Encoding and decoding by the ABI of a committed artifact: no compiler at run time."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError

from contracts.errors import RpcError
from contracts.keccak import keccak
from contracts.rpc import printable
from contracts.units import Address, parse_address

_ERROR_SELECTOR = keccak(b"Error(string)")[:4]


@dataclass(frozen=True, slots=True)
class Function:
    selector: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EventType:
    name: str
    topic: bytes
    indexed: tuple[tuple[str, str], ...]
    plain: tuple[tuple[str, str], ...]


class Artifact:
    """A compiled contract: its ABI and the code that creates it."""

    def __init__(self, name: str, abi: Sequence[Mapping[str, Any]], bytecode: bytes) -> None:
        self.name = name
        self.bytecode = bytecode
        self._functions = {e["name"]: _function(e) for e in abi if e["type"] == "function"}
        self._events = {event.topic: event for event in map(_event, abi) if event is not None}
        constructors = (entry["inputs"] for entry in abi if entry["type"] == "constructor")
        self._constructor = tuple(map(_canonical, next(constructors, ())))

    def deployment(self, *args: Any) -> bytes:
        return self.bytecode + encode(self._constructor, args)

    def selector(self, function: str) -> bytes:
        """What the data of a call to it begins with."""
        return self._functions[function].selector

    def encode(self, function: str, *args: Any) -> bytes:
        entry = self._functions[function]
        return entry.selector + encode(entry.inputs, args)

    def decode_result(self, function: str, data: bytes) -> tuple[Any, ...]:
        """Raises eth_abi's DecodingError if another contract answered."""
        return tuple(decode(self._functions[function].outputs, data))

    def decode_event(
        self, topics: Sequence[bytes], data: bytes
    ) -> tuple[str, dict[str, Any]] | None:
        """The event's name and fields; None if it is not one of this contract's."""
        event = self._events.get(topics[0]) if topics else None
        if event is None or len(topics) != len(event.indexed) + 1:
            return None
        fields: dict[str, Any] = {}
        for (name, kind), topic in zip(event.indexed, topics[1:], strict=True):
            fields[name] = _tidy(kind, decode([kind], topic)[0])
        values = decode([kind for _, kind in event.plain], data)
        for (name, kind), value in zip(event.plain, values, strict=True):
            fields[name] = _tidy(kind, value)
        return event.name, fields


@cache
def load_artifact(name: str) -> Artifact:
    """The artifact that is committed with this package."""
    text = files("contracts").joinpath("artifacts", f"{name}.json").read_text()
    content = json.loads(text)
    return Artifact(name, content["abi"], bytes.fromhex(content["bytecode"].removeprefix("0x")))


def revert_reason(error: RpcError) -> str:
    """The contract's own words, or the node's if it passed none on."""
    if error.data.startswith(_ERROR_SELECTOR):
        try:
            return printable(decode(["string"], error.data[4:])[0])
        except (DecodingError, UnicodeDecodeError, OverflowError):
            pass  # Any contract on the way can revert with any bytes.
    return str(error)


def _function(entry: Mapping[str, Any]) -> Function:
    inputs = tuple(map(_canonical, entry["inputs"]))
    signature = f"{entry['name']}({','.join(inputs)})"
    return Function(
        keccak(signature.encode())[:4], inputs, tuple(map(_canonical, entry["outputs"]))
    )


def _event(entry: Mapping[str, Any]) -> EventType | None:
    if entry["type"] != "event":
        return None
    fields = [(field["name"], _canonical(field), field["indexed"]) for field in entry["inputs"]]
    signature = f"{entry['name']}({','.join(kind for _, kind, _ in fields)})"
    return EventType(
        entry["name"],
        keccak(signature.encode()),
        tuple((name, kind) for name, kind, indexed in fields if indexed),
        tuple((name, kind) for name, kind, indexed in fields if not indexed),
    )


def _canonical(field: Mapping[str, Any]) -> str:
    """`tuple[]` becomes `(address,uint256)[]`, as selectors are computed from."""
    kind = str(field["type"])
    if not kind.startswith("tuple"):
        return kind
    parts = ",".join(map(_canonical, field["components"]))
    return f"({parts}){kind.removeprefix('tuple')}"


def _tidy(kind: str, value: Any) -> Any:
    return parse_address(value) if kind == "address" else value


def as_address(value: Any) -> Address:
    return parse_address(str(value))
