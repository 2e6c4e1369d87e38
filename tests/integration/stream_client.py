"""A client of `/v1/stream` that blocks, on a plain socket."""

import json
import socket
from collections import deque
from typing import Any

from wsproto import ConnectionType, WSConnection
from wsproto.events import CloseConnection, Event, Request, TextMessage


class StreamClient:
    """A WebSocket. `next` is what comes, `hear` a message, `hear_close` the end's code."""

    def __init__(self, connection: socket.socket, path: str, key: str) -> None:
        self._connection = connection
        self._protocol = WSConnection(ConnectionType.CLIENT)
        self._events: deque[Event] = deque()
        headers = [(b"authorization", f"Bearer {key}".encode())]
        self._send(Request(host="gateway", target=path, extra_headers=headers))

    def _send(self, event: Event) -> None:
        self._connection.sendall(self._protocol.send(event))

    def say(self, *messages: Any) -> None:
        for message in messages:
            self._send(TextMessage(json.dumps(message)))

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
