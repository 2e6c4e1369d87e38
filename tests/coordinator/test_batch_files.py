"""What `coordinator batch run` reads and writes, without a market."""

import json
from pathlib import Path

import pytest

from coordinator.batches.lines import PlannedLine
from coordinator.batches.pieces import LineAnswer
from coordinator.cli.answer_file import AnswerFile
from coordinator.cli.batch_files import BatchSource
from coordinator.cli.options import CommandError
from coordinator.gateway.errors import error_of, invalid
from protocol.errors import Code
from protocol.messages import Task
from protocol.pricing import Units
from tests.coordinator.batches.service_maker import chat_lines, jsonl

VECTOR = {"data": [{"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}]}
LABELS = {"data": [{"object": "label", "label": 'a, "b"', "score": 0.75}]}


def planned(source: BatchSource, done: frozenset[str] = frozenset()) -> list[PlannedLine]:
    lines = list(source.lines(set(done)))
    assert all(isinstance(line, PlannedLine) for line in lines)
    return [line for line in lines if isinstance(line, PlannedLine)]


def answered(line: PlannedLine, body: object) -> LineAnswer:
    return LineAnswer(line, json.dumps(body).encode(), Units(3), 5)


def test_requests_are_taken_as_the_http_api_takes_them(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(jsonl(chat_lines(3)))
    source = BatchSource(path, "another", None, Task.CAUSAL_LM)
    lines = planned(source, frozenset({"c1"}))
    assert [line.custom_id for line in lines] == ["c0", "c2"]
    assert {line.call.orders[0].routing.model for line in lines} == {"another"}
    assert source.count() == 3


@pytest.mark.parametrize("line", [b"no json\n", b"[1]\n", b'{"custom_id": "x", "url": "/v1/x"}\n'])
def test_a_line_that_is_no_request_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(jsonl(chat_lines(1)) + line)
    with pytest.raises(CommandError, match="line 2"):
        planned(BatchSource(path, None, None, None))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", 'id,text\nk1,"one, two"\n,three\n'),
        ("t.jsonl", '{"id": "k1", "text": "one, two"}\n{"text": "three"}\n'),
    ],
)
def test_a_column_of_a_table_is_the_input(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    lines = planned(BatchSource(path, "m", "text", Task.EMBEDDING))
    assert [line.custom_id for line in lines] == ["k1", "2"]
    inputs = [line.call.orders[0].job_input for line in lines]
    assert [given.texts for given in inputs] == [("one, two",), ("three",)]  # type: ignore[union-attr]
    with pytest.raises(CommandError, match="no text in 'other'"):
        planned(BatchSource(path, "m", "other", Task.EMBEDDING))


@pytest.mark.parametrize("output", ["out.jsonl", "out.csv"])
def test_a_run_goes_on_behind_the_last_whole_line(tmp_path: Path, output: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text("text\n" + "".join(f"row {n}\n" for n in range(4)))
    source = BatchSource(path, "m", "text", Task.EMBEDDING)
    lines = planned(source)
    answers = AnswerFile(tmp_path / output, source)
    assert answers.take_up().done == set()
    answers.keep([answered(line, VECTOR) for line in lines[:2]])
    answers.keep_failure(lines[2].custom_id, invalid("too\nlong", "input"))
    whole = (tmp_path / output).read_bytes()
    (tmp_path / output).write_bytes(whole + b'{"id": "4", "embed')
    taken = AnswerFile(tmp_path / output, source).take_up()
    assert (taken.answered, taken.failed) == ({"1", "2"}, {"3"})
    assert (tmp_path / output).read_bytes() == whole
    assert [line.custom_id for line in planned(source, frozenset(taken.done))] == ["4"]


FAILURES = {
    "lost": error_of(Code.NODE_LOST, "gone"),
    "empty": error_of(Code.OUT_OF_FUNDS, "no credits"),
    "away": error_of(Code.UNKNOWN_MODEL, "no node offers it"),
    "bad": invalid("too long", "input"),
    "paid": error_of(Code.NODE_LOST, "gone midway", is_billed=True),
}


@pytest.mark.parametrize("output", ["out.jsonl", "out.csv", "requests.jsonl"])
def test_what_failed_for_a_passing_reason_is_run_again_and_what_was_paid_never(
    tmp_path: Path, output: str
) -> None:
    is_table = output != "requests.jsonl"
    path, out = tmp_path / "t.csv", tmp_path / output
    path.write_text("text\nrow\n")
    source = BatchSource(path, "m", "text" if is_table else None, Task.EMBEDDING)
    answers = AnswerFile(out, source)
    line = planned(BatchSource(path, "m", "text", Task.EMBEDDING))[0]
    answers.keep([answered(line, VECTOR)])
    for custom_id, error in FAILURES.items():
        answers.keep_failure(custom_id, error)
    taken = AnswerFile(out, source).take_up()
    assert (taken.answered, taken.failed) == ({"1"}, {"bad", "paid"})
    # Each item has one line, whatever it has been through.
    answers.keep_failure("lost", FAILURES["lost"])
    taken = AnswerFile(out, source).take_up(retry_failed=True)
    assert (taken.answered, taken.failed) == ({"1"}, {"paid"})
    lines = out.read_text().splitlines()
    assert len(lines) == (3 if output.endswith(".csv") else 2)


def test_labels_of_a_folder_become_a_table(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("b.png", "a.jpg", "notes.txt"):
        (folder / name).write_bytes(b"\xff\xd8\xff picture")
    source = BatchSource(folder, "m", None, Task.IMAGE_CLASSIFICATION)
    lines = planned(source)
    assert [line.custom_id for line in lines] == ["a.jpg", "b.png"]
    out = tmp_path / "out.csv"
    AnswerFile(out, source).keep([answered(lines[0], LABELS)])
    assert out.read_text().splitlines() == [
        '"file","label","score","error","retry"',
        '"a.jpg","a, ""b""","0.75","",""',
    ]
