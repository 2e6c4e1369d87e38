"""Server-sent events that have a name, and the JSON of any event."""

from json import JSONEncoder

# Only CR and LF end a line of an event stream, but many clients split at these as well.
_LINE_BREAKS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}

_to_json = JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def event_json(value: object) -> str:
    """In one line, for whatever splits lines."""
    text = _to_json(value)
    return text if text.isascii() else text.translate(_LINE_BREAKS)


def named_event(name: str, value: object) -> bytes:
    return f"event: {name}\ndata: {event_json(value)}\n\n".encode()
