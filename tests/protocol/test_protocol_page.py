"""The tables of docs/protocol.md say what the code does; its numbers are in another file."""

import dataclasses
import enum
import inspect
import json
import re
import types
import typing
from typing import Any

import pytest
from libp2p.host import ping
from libp2p.identity.identify import identify
from libp2p.identity.identify_push import identify_push

import capanode.jobs
import coordinator.cli.market_session
import coordinator.leasing.control
import coordinator.leasing.lease_server
from coordinator.market.breaker import BreakerState
from coordinator.market.matching.job import Reason
from coordinator.market.steadiness import UNSTEADY
from protocol import (
    blobs,
    countersigning,
    generation,
    job_frames,
    late_payloads,
    manifest,
    messages,
    offers,
    payload,
    pricing,
    reach,
    services,
    standing,
    tensors,
    windows,
)
from protocol.blame import Blame, blame_for
from protocol.chat_formats import CHAT_FORMATS
from protocol.endings import Finish, ReceiptState
from protocol.errors import RETRYABLE_ELSEWHERE, Code, ErrorBody
from protocol.features import Feature
from protocol.framing import VERSION, FrameType
from protocol.ids import Digest, JobId, LeaseId, PeerId
from protocol.job_state import TRANSITIONS, JobEvent, JobState
from protocol.net import circuit_messages, libp2p_gossip, libp2p_host, libp2p_stream
from protocol.net.frames import Hello
from protocol.net.rpc import RequestBody
from protocol.offers import Hardware
from protocol.services import Method, offer_topic
from tests.protocol.page import page_text, rows_under, words_of

MESSAGE_MODULES = (
    messages,
    offers,
    services,
    reach,
    standing,
    payload,
    tensors,
    generation,
    pricing,
    manifest,
    blobs,
)
OTHER_MESSAGES: tuple[type, ...] = (
    Hello,
    RequestBody,
    ErrorBody,
    job_frames.OpenBody,
    job_frames.AcceptedBody,
    job_frames.JobErrorBody,
    windows.Countersigned,
    countersigning.JobOpening,
    countersigning.JobAdmission,
    countersigning.Delivery,
    late_payloads.PayloadBinding,
)
ROLES = {
    coordinator.cli.market_session.ROLE,
    capanode.jobs.ROLE,
    coordinator.leasing.lease_server.ROLE,
}
# In backticks on the page, beside what its own tables and the code define.
OTHER_WORDS = {"absent", "empty", "from", "seqno", "signature", "channel", "elsewhere", "false"}
CHOICES: dict[str, list[str]] = {
    "code": ["section 8"],
    "role": sorted(ROLES),
    "hardware_kind": ["cpu", "cuda"],
    "health": [*BreakerState, UNSTEADY],
    **{
        name: [str(member.value) for member in choice]
        for name, choice in (
            ("task", messages.Task),
            ("isolation_tier", messages.IsolationTier),
            ("data_collection", messages.DataCollection),
            ("objective", messages.Objective),
            ("tool_choice", generation.ToolChoice),
            ("format_kind", generation.FormatKind),
            ("datatype", tensors.Datatype),
            ("feature", Feature),
            ("finish", Finish),
            ("receipt_state", ReceiptState),
            ("reason", Reason),
            ("dialled", reach.Dialled),
            ("notice", services.Notice),
        )
    },
}
CAUSES = {"sender", "client", "node", "coordinator", "who answers", "none"}
PLAIN_TYPES = {
    str: "str",
    bytes: "bin",
    bool: "bool",
    int: "int",
    float: "float",
    PeerId: "peer_id",
    Digest: "digest",
    JobId: "ulid",
    LeaseId: "ulid",
}


# Messages.


def wire_name(cls: type) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


def wire_messages() -> dict[str, type]:
    """Every dataclass that travels, by the name that the page gives it."""
    found = [
        cls
        for module in MESSAGE_MODULES
        for cls in vars(module).values()
        if dataclasses.is_dataclass(cls) and inspect.isclass(cls)
        if cls.__module__ == module.__name__ and cls is not payload.SaltedPayload
    ]
    return {wire_name(cls): cls for cls in (*found, *OTHER_MESSAGES)}


def is_nullable(annotation: Any) -> bool:
    # A NewType with None makes the older kind of union.
    is_union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
    return is_union and type(None) in typing.get_args(annotation)


def type_word(annotation: Any) -> str:
    if annotation in PLAIN_TYPES:
        return PLAIN_TYPES[annotation]
    if is_nullable(annotation) or typing.get_origin(annotation) is tuple:
        inner = type_word(typing.get_args(annotation)[0])
        return inner if is_nullable(annotation) else f"[{inner}]"
    return wire_name(annotation)


def default_word(field: "dataclasses.Field[Any]", annotation: Any) -> str:
    default = field.default
    if field.metadata.get("added"):
        return "absent"
    if default is dataclasses.MISSING:
        return "absent" if is_nullable(annotation) else "–"
    if default is None or default == b"":
        return "absent" if default is None else "empty"
    if isinstance(default, enum.Enum):
        return str(default.value)
    if dataclasses.is_dataclass(default) and not isinstance(default, type):
        assert default == type(default)(), "the page has a word for a message of defaults only"
        return "{}"
    return json.dumps(default)


def fields_in_code(cls: type) -> list[tuple[str, str, str]]:
    hints = typing.get_type_hints(cls)
    return [
        (field.name, type_word(hints[field.name]), default_word(field, hints[field.name]))
        for field in dataclasses.fields(cls)
    ]


def fields_on_page() -> dict[str, list[tuple[str, str, str]]]:
    """A message is named in its first row; one without fields has a row with a dash."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    name = ""
    for message, field, word, default, _ in rows_under(
        "message", "field", "type", "default", "what it is"
    ):
        if message:
            assert message not in found, f"{message} is described twice"
            name = message
            found[name] = []
        if field != "–":
            found[name].append((field, word, default))
    return found


def test_the_page_describes_every_message_and_no_other() -> None:
    assert set(fields_on_page()) == set(wire_messages())


@pytest.mark.parametrize("name", wire_messages())
def test_a_message_has_the_fields_types_and_defaults_of_the_page(name: str) -> None:
    assert fields_on_page()[name] == fields_in_code(wire_messages()[name])


def test_signed_messages_have_the_names_of_their_kinds() -> None:
    kinds = {cls.KIND for cls in wire_messages().values() if hasattr(cls, "KIND")}
    listed = {kind: name for kind, name, _ in rows_under("kind", "signer", "says")}
    assert set(listed) == kinds <= set(wire_messages())


def test_choices_have_the_words_of_the_page() -> None:
    listed = {choice: words_of(words) for choice, words, _ in rows_under("choice", "words", "note")}
    assert listed == CHOICES
    for kind in listed["hardware_kind"]:
        Hardware(kind, "", 0, 1)


def test_chat_formats_have_the_marks_of_the_page() -> None:
    rows = rows_under("chat format", "around a call", "key", "reasoning between")
    assert [name for name, *_ in rows] == list(CHAT_FORMATS)
    for (_, calls, key, reasoning), chat_format in zip(rows, CHAT_FORMATS.values(), strict=True):
        assert key == chat_format.arguments_key
        assert reasoning == f"{chat_format.reasoning_open} … {chat_format.reasoning_close}"
        for mark in (chat_format.call_open, chat_format.call_close):
            assert mark in calls
        assert ("JSON list" in calls) is chat_format.is_list


def test_every_type_on_the_page_is_explained_there() -> None:
    plain = {word for cell, *_ in rows_under("type", "in msgpack", "is") for word in words_of(cell)}
    known = {*plain, *CHOICES, *fields_on_page()}
    used = {word.strip("[]") for rows in fields_on_page().values() for _, word, _ in rows}
    assert used <= known


def test_every_word_in_backticks_is_one_of_the_wire() -> None:
    fields = [row for rows in fields_on_page().values() for row in rows]
    known = {
        *fields_on_page(),
        *PLAIN_TYPES.values(),
        *CHOICES,
        *(word for words in CHOICES.values() for word in words),
        *(word for name, _, default in fields for word in (name, default)),
        *Code,
        *Method,
        *blobs.BlobMethod,
        *OTHER_WORDS,
    }
    assert set(re.findall(r"`([a-z][a-z_]*)`", page_text())) - known == set()


# Frames, protocols, methods.


def test_frames_have_the_numbers_of_the_page() -> None:
    rows = rows_under("frame", "number", "sent by", "body")
    assert {name: int(number) for name, number, *_ in rows} == {
        frame.name: int(frame) for frame in FrameType if frame is not FrameType.UNKNOWN
    }
    assert len(rows) == len(FrameType) - 1
    assert f"version u8 = {VERSION} |" in page_text()


def test_protocols_and_topics_have_the_ids_of_the_page() -> None:
    assert {protocol_id for protocol_id, _ in rows_under("protocol", "what it is for")} == {
        libp2p_stream.MULTISTREAM,
        vars(libp2p_host)["NOISE"],
        libp2p_host.YAMUX,
        vars(libp2p_gossip)["PROTOCOL_ID_V11"],
        circuit_messages.HOP_PROTOCOL,
        circuit_messages.STOP_PROTOCOL,
        circuit_messages.DCUTR_PROTOCOL,
        identify.ID,
        identify_push.ID_PUSH,
        ping.ID,
        services.JOB_PROTOCOL,
        services.LEASE_PROTOCOL,
        services.CONTROL_PROTOCOL,
        services.BLOB_PROTOCOL,
    }
    assert f"`{offer_topic(7).replace('7', 'S')}`" in page_text()
    assert f"mod {services.OFFER_SHARDS}," in page_text()


def test_methods_take_and_answer_what_the_page_says() -> None:
    source = inspect.getsource(Method)
    in_code = {
        (method, ask, reply, "control" if note else "lease")
        for method, ask, reply, note in re.findall(
            r'= "(\w+)"  # (\w+) → (\w+)( \(control\))?', source
        )
    }
    names = {cls.__name__: name for name, cls in wire_messages().items()}
    rows = rows_under("method", "protocol", "request", "reply", "what it does")
    assert sorted((method, protocol, ask, reply) for method, protocol, ask, reply, _ in rows) == (
        sorted((m, protocol, names[ask], names[reply]) for m, ask, reply, protocol in in_code)
    )
    assert [method for method, *_ in rows] == [str(method) for method in Method]


def test_files_of_models_are_asked_for_as_the_page_says() -> None:
    source = inspect.getsource(blobs.BlobMethod)
    in_code = re.findall(r'= "(\w+)"  # (\w+) → (\w+)', source)
    names = {cls.__name__: name for name, cls in wire_messages().items()}
    rows = rows_under("blob method", "request", "reply", "what it does")
    assert [row[:3] for row in rows] == [(m, names[ask], names[reply]) for m, ask, reply in in_code]
    assert len(in_code) == len(blobs.BlobMethod)


# States.


def test_jobs_change_state_as_in_the_page() -> None:
    events = tuple(event.value for event in JobEvent)
    rows = rows_under("state", *events)
    assert [state for state, *_ in rows] == [state.value for state in JobState]
    on_page = {
        (JobState(state), JobEvent(event)): JobState(after)
        for state, *cells in rows
        for event, after in zip(events, cells, strict=True)
        if after
    }
    assert on_page == TRANSITIONS


# Errors.


def error_rows() -> list[tuple[str, ...]]:
    return rows_under("code", "elsewhere", "caused by", "means")


def test_every_error_code_is_on_the_page_once() -> None:
    assert [code for code, *_ in error_rows()] == [code.value for code in Code]
    assert all(means for *_, means in error_rows())


def test_the_page_marks_the_errors_after_which_another_node_is_tried() -> None:
    assert {elsewhere for _, elsewhere, *_ in error_rows()} == {"yes", ""}
    marked = {Code(code) for code, elsewhere, *_ in error_rows() if elsewhere}
    assert marked == RETRYABLE_ELSEWHERE


def test_the_page_blames_whom_a_coordinator_blames() -> None:
    causes = {Code(code): cause for code, _, cause, _ in error_rows()}
    assert set(causes.values()) <= CAUSES
    for code, cause in causes.items():
        if blame_for(code) is Blame.CLIENT:
            assert cause == "client", code
        if blame_for(code) is Blame.REFUSAL and code in RETRYABLE_ELSEWHERE:
            assert cause in ("node", "coordinator", "who answers"), code
        if code in RETRYABLE_ELSEWHERE:
            assert cause != "client", code
