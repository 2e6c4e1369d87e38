"""A client of `/v1/stream` that blocks, on a plain socket."""

import json
import socket
from collections import deque
from collections.abc import Sequence
from typing import Any

from wsproto import ConnectionType, WSConnection
from wsproto.events import CloseConnection, Event, Ping, Request, TextMessage
from wsproto.extensions import Extension

# A server that reads takes a packet in milliseconds.
_STALLED_S = 1.0


class StreamClient:
    """A WebSocket. `next` is what comes, `hear` a message, `hear_close` the end's code."""

    def __init__(
        self, connection: socket.socket, path: str, key: str, extensions: Sequence[Extension] = ()
    ) -> None:
        self._connection = connection
        self._protocol = WSConnection(ConnectionType.CLIENT)
        self._events: deque[Event] = deque()
        headers = [(b"authorization", f"Bearer {key}".encode())]
        self._send(
            Request(host="gateway", target=path, extra_headers=headers, extensions=list(extensions))
        )

    def _send(self, event: Event) -> None:
        self._connection.sendall(self._protocol.send(event))

    def say(self, *messages: Any) -> None:
        for message in messages:
            self._send(TextMessage(json.dumps(message)))

    def say_in_pieces(self, message: Any, size: int) -> None:
        """One message in frames of so many characters, with a ping before each."""
        text = json.dumps(message)
        for start in range(0, len(text), size):
            self._send(Ping())
            is_last = start + size >= len(text)
            self._send(TextMessage(text[start : start + size], message_finished=is_last))

    def flood_with_pings(self, count: int) -> None:
        """Without reading a single pong. Raises TimeoutError where the server stops reading."""
        ping = self._protocol.send(Ping(b"x" * 125))
        self._connection.settimeout(_STALLED_S)
        for _ in range(count // 1_000):
            self._connection.sendall(ping * 1_000)

    def next(self) -> Event:
        while not self._events:
            data = self._connection.recv(65_536)
            self._protocol.receive_data(data or None)
            self._events.extend(self._protocol.events())
        return self._events.popleft()

    def hear(self) -> Any:
        text = ""
        while True:
            event = self.next()
            assert isinstance(event, TextMessage), event
            text += event.data
            if event.message_finished:
                return json.loads(text)

    def hear_close(self) -> int:
        event = self.next()
        assert isinstance(event, CloseConnection), event
        return int(event.code)
