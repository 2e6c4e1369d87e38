"""What `coordinator batch run` reads: requests, tables and folders of pictures. Each item has an
id, by which a run that was interrupted knows what is done.
"""

import base64
import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coordinator.batches.lines import (
    ENDPOINTS,
    LineError,
    PlannedLine,
    RefusedLine,
    read_line,
)
from coordinator.cli.options import CommandError
from protocol.messages import Task

_PICTURES = (".jpg", ".jpeg", ".png", ".webp")
# Rows are held by the reader of a table one at a time.
_CELL_CHARS_MAX = 8 * 1024 * 1024
_CHAT, _EMBED, _CLASSIFY = (
    "/v1/chat/completions",
    "/v1/embeddings",
    "/v1/images/classifications",
)


@dataclass(frozen=True, slots=True)
class BatchSource:
    """Where the lines come from. With a `column` it is a table, whose column is the input."""

    path: Path
    model: str | None
    column: str | None
    task: Task | None

    @property
    def is_folder(self) -> bool:
        return self.path.is_dir()

    def items(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """(id, endpoint, body) of each. Raises CommandError."""
        if self.is_folder:
            yield from self._pictures()
        elif self.column is not None:
            yield from self._rows(self.column)
        else:
            yield from self._requests()

    def lines(self, done: set[str]) -> Iterator[PlannedLine | RefusedLine]:
        """Those that are not done. Raises CommandError."""
        for number, (item, endpoint, body) in enumerate(self.items()):
            if item in done:
                continue
            request = {"custom_id": item, "method": "POST", "url": endpoint, "body": body}
            try:
                yield read_line(number, json.dumps(request).encode(), endpoint, {})
            except LineError as error:
                raise CommandError(f"{self.path}, {item}: {error}") from None

    def count(self) -> int:
        if self.is_folder:
            return len(self._files())
        return sum(1 for _ in self.items())

    def _requests(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        for number, line in self._json_lines():
            custom_id, body = line.get("custom_id"), line.get("body")
            endpoint = str(line.get("url"))
            if endpoint not in ENDPOINTS or not isinstance(body, dict) or not custom_id:
                raise CommandError(
                    f"{self.path}, line {number}: a request has custom_id, url (one of "
                    f"{', '.join(ENDPOINTS)}) and body; for a table, name its --column"
                )
            yield str(custom_id), endpoint, body | ({"model": self.model} if self.model else {})

    def _rows(self, column: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
        endpoint = _CHAT if self.task is Task.CAUSAL_LM else _EMBED
        for number, row in self._table():
            value = row.get(column)
            if not isinstance(value, str):
                raise CommandError(f"{self.path}, row {number}: there is no text in {column!r}")
            given: dict[str, Any] = {"input": value, "encoding_format": "float"}
            if endpoint == _CHAT:
                given = {"messages": [{"role": "user", "content": value}]}
            yield str(row.get("id") or number), endpoint, {"model": self.model} | given

    def _table(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        if self.path.suffix.lower() != ".csv":
            yield from self._json_lines()
            return
        csv.field_size_limit(_CELL_CHARS_MAX)
        with self.path.open(newline="", encoding="utf-8-sig") as file:
            yield from enumerate(csv.DictReader(file), 1)

    def _json_lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        with self.path.open("rb") as file:
            for number, text in enumerate(file, 1):
                if not text.strip():
                    continue
                try:
                    line = json.loads(text)
                except ValueError:
                    line = None
                if not isinstance(line, dict):
                    raise CommandError(f"{self.path}, line {number} is not a JSON object")
                yield number, line

    def _pictures(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        for path in self._files():
            image = base64.b64encode(path.read_bytes()).decode()
            yield path.name, _CLASSIFY, {"model": self.model, "image": image}

    def _files(self) -> list[Path]:
        return sorted(p for p in self.path.iterdir() if p.suffix.lower() in _PICTURES)
