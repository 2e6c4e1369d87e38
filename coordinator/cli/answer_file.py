"""Where `coordinator batch run` keeps answers and failures: lines of JSON or a table, which a later
run goes on with. Each failure says whether a later run tries it again.
"""

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from coordinator.batches.lines import refused_line
from coordinator.batches.pieces import LineAnswer, answer_line
from coordinator.cli.batch_files import BatchSource
from coordinator.cli.options import CommandError
from coordinator.gateway.errors import ApiError, Problem, ProblemKind
from protocol.errors import Code

_CHAT = "/v1/chat/completions"
_COLUMNS = ("score", "error", "retry")


class Retry(StrEnum):
    """When a line that has failed is tried again."""

    RESUME = "resume"  # by --resume: the reason passes, as a node that was lost
    ASKED = "asked"  # by --retry-failed: the request itself was refused
    NEVER = "never"  # a part was delivered and paid


@dataclass(frozen=True, slots=True)
class Taken:
    """What an output has: the ids of the items that are answered, and of those that have failed and
    are not tried again."""

    answered: set[str]
    failed: set[str]

    @property
    def done(self) -> set[str]:
        return self.answered | self.failed


class AnswerFile:
    """A `AnswerKeeper`: one line or row for each item, in the order in which answers come."""

    def __init__(self, path: Path, source: BatchSource) -> None:
        self._path = path
        self._is_csv = path.suffix.lower() == ".csv"
        self._is_plain = source.is_folder or source.column is not None
        self._id_name = "file" if source.is_folder else "id" if self._is_plain else "custom_id"
        if self._is_csv and not self._is_plain:
            raise CommandError("answers to requests are lines of JSON: name another --output")

    def take_up(self, *, retry_failed: bool = False) -> Taken:
        """Go on with what is there. Lines that are tried again are dropped from the file, and so is
        one that was cut."""
        again = {Retry.RESUME, Retry.ASKED} if retry_failed else {Retry.RESUME}
        taken = Taken(set(), set())
        if not self._path.exists():
            return taken
        new = self._path.with_name(self._path.name + ".new")
        with self._path.open("rb") as old, new.open("wb") as file:
            if self._is_csv and old.readline():
                file.write(self._head())
            for text in old:
                if not text.endswith(b"\n"):
                    break  # cut
                item, retry = self._read(text)
                if retry not in again:
                    (taken.answered if retry is None else taken.failed).add(item)
                    file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)
        return taken

    def keep(self, answers: Sequence[LineAnswer]) -> None:
        self._append([self._answer(answer) for answer in answers])

    def keep_failure(self, custom_id: str, error: ApiError) -> None:
        message, retry = error.problem.message, retry_of(error.problem)
        if not self._is_plain:
            line = json.loads(refused_line(custom_id, custom_id, error, endpoint=_CHAT))
            line["error"]["retry"] = retry
            text = _line(line)
        elif self._is_csv:
            text = _row([custom_id, "", "", message, retry])
        else:
            text = _line({self._id_name: custom_id, "error": message, "retry": retry})
        self._append([text])

    def _read(self, text: bytes) -> tuple[str, Retry | None]:
        """Which item a line is of, and of a failure when it is tried again."""
        if self._is_csv:
            (row,) = csv.reader([text.decode()])
            cells = dict(zip(_COLUMNS, row[2:], strict=False))
            return row[0], _retry(cells.get("retry")) if cells.get("error") else None
        line = json.loads(text)
        error = line.get("error")
        found = error if isinstance(error, dict) else line
        return str(line[self._id_name]), None if error is None else _retry(found.get("retry"))

    def _head(self) -> bytes:
        name = "label" if self._id_name == "file" else "answer"
        return _row([self._id_name, name, *_COLUMNS])

    def _answer(self, answer: LineAnswer) -> bytes:
        custom_id = answer.line.custom_id
        if not self._is_plain:
            return answer_line(custom_id, answer, custom_id)
        result = _plain(json.loads(answer.body))
        if not self._is_csv:
            return _line({self._id_name: custom_id} | result)
        if "labels" in result:
            best = result["labels"][0]
            return _row([custom_id, best["label"], best["score"], "", ""])
        value = result.get("text") or json.dumps(result.get("embedding"))
        return _row([custom_id, value, "", "", ""])

    def _append(self, texts: Sequence[bytes]) -> None:
        is_new = not self._path.exists() or not self._path.stat().st_size
        with self._path.open("ab") as file:
            if is_new and self._is_csv:
                file.write(self._head())
            file.write(b"".join(texts))
            file.flush()
            os.fsync(file.fileno())


def retry_of(problem: Problem) -> Retry:
    """What is not the request's fault passes: a node is lost, a market full, an account empty, a
    model away."""
    if problem.is_charged:
        return Retry.NEVER
    is_passing = problem.kind is not ProblemKind.REQUEST or problem.code == Code.UNKNOWN_MODEL
    return Retry.RESUME if is_passing else Retry.ASKED


def _retry(word: object) -> Retry:
    """A file of an earlier version has no such word."""
    return next((retry for retry in Retry if retry == word), Retry.ASKED)


def _plain(body: dict[str, Any]) -> dict[str, Any]:
    """What people want of an answer."""
    if "choices" in body:
        return {"text": body["choices"][0]["message"]["content"]}
    data = body["data"]
    if data[0]["object"] == "embedding":
        return {"embedding": data[0]["embedding"]}
    return {"labels": [{"label": item["label"], "score": item["score"]} for item in data]}


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def _row(cells: Sequence[object]) -> bytes:
    # A line break in a cell would cut the row for who reads by lines.
    texts = [str(cell).replace("\n", " ").replace("\r", " ") for cell in cells]
    return (",".join('"' + text.replace('"', '""') + '"' for text in texts) + "\n").encode()
