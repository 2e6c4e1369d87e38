"""The worker's loop, run in a thread on a socket pair: same code, no sandbox."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from capanode.engines.base import Completed, Failed, Produced, Started
from capanode.worker.allowance import settle_input
from capanode.worker.commands import Cancel, Ping, Shutdown, Start
from capanode.worker.main import _describe, _is_out_of_memory, log
from capanode.worker.reports import Cancelled, Pong
from protocol.codec import encode
from protocol.errors import Code, RemoteProtocolError
from protocol.generation import GenerationInput
from protocol.payload import EmbeddingInput
from tests.capanode.fault_engine import FaultEngine
from tests.capanode.worker_thread import WorkerThread


def start(prompt: str, job_id: str | None = None) -> Start:
    return Start(job_id or prompt, encode(GenerationInput(max_tokens=9, prompt=prompt)))


@pytest.fixture
def engine() -> FaultEngine:
    return FaultEngine(Path("/"), slots=4)


@pytest.fixture
def node(engine: FaultEngine) -> Iterator[WorkerThread]:
    node = WorkerThread(engine)
    yield node
    engine.gate.set()
    node.close()


def test_all_events_of_a_step_travel_in_one_frame(node: WorkerThread) -> None:
    node.start(start("one two"), start("three"))
    reports = node.hear(7)
    assert sum(isinstance(report, Started) for report in reports) == 2
    assert sum(isinstance(report, Completed) for report in reports) == 2
    # Both jobs advance together: start, word, word or end, end.
    assert node.frames <= 5
    node.tell(Shutdown())
    node.join()
    assert node.failure is None


def test_answer_ends_where_the_lease_does() -> None:
    asked = GenerationInput(max_tokens=9, prompt="x")
    salt = salt_of(asked)
    assert settle_input(asked, output_tokens_max=4) == replace(asked, max_tokens=4, cache_salt=salt)
    with_seed = settle_input(asked, output_tokens_max=10, seed=7)
    assert with_seed == replace(asked, seed=7, cache_salt=salt)
    own = replace(asked, seed=3)
    assert settle_input(own, output_tokens_max=10, seed=7) == replace(own, cache_salt=salt)
    texts = EmbeddingInput(("x",))
    assert settle_input(texts, output_tokens_max=0) is texts
    with pytest.raises(RemoteProtocolError) as refusal:
        settle_input(asked, output_tokens_max=0)
    assert refusal.value.code is Code.INVALID_INPUT


def salt_of(asked: GenerationInput, client: str = "", **changes: Any) -> str:
    settled = settle_input(replace(asked, **changes), output_tokens_max=9, client=client)
    assert isinstance(settled, GenerationInput)
    return settled.cache_salt


def test_clients_share_what_is_kept_of_prompts_only_if_both_say_so() -> None:
    asked = GenerationInput(max_tokens=9, prompt="x")
    shared = salt_of(asked, "alice", shares_cache=True)
    salts = [
        salt_of(asked, "alice"),
        salt_of(asked, "bob"),
        salt_of(asked, "alice", cache_salt="one"),
        salt_of(asked, "alice", cache_salt="two"),
        salt_of(asked, "alice", shares_cache=True, cache_salt="one"),
        shared,
        # What a client writes cannot stand for another one.
        salt_of(asked, "", cache_salt="alice"),
        salt_of(asked, "client alice"),
    ]
    assert len(set(salts)) == len(salts)
    assert salt_of(asked, "alice") == salts[0]
    assert salt_of(asked, "bob", shares_cache=True) == shared


def test_ping_is_answered_while_jobs_run(node: WorkerThread) -> None:
    node.start(start("forever"))
    node.hear(3)
    node.tell(Ping(41))
    while not any(report == Pong(41) for report in node.hear(1)):
        pass
    node.tell(Shutdown())
    node.join()


def test_cancel_is_confirmed_after_the_last_event(node: WorkerThread) -> None:
    node.start(start("forever", "job"))
    node.hear(3)
    node.tell(Cancel("job"), start("again", "job"))
    reports: list[Any] = []
    while not any(isinstance(report, Completed) for report in reports):
        reports += node.hear(1)
    at = reports.index(Cancelled("job"))
    assert all(isinstance(report, Produced) for report in reports[:at])
    assert isinstance(reports[at + 1], Started)
    node.tell(Shutdown())
    node.join()


def test_refusal_of_a_job_that_is_cancelled_at_once_comes_before_the_confirmation(
    node: WorkerThread,
) -> None:
    node.start(start("too long", "job"), Cancel("job"))
    failed, confirmed = node.hear(2)
    assert isinstance(failed, Failed)
    assert confirmed == Cancelled("job")
    node.tell(Shutdown())
    node.join()


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (start("too long").payload, Code.PROMPT_TOO_LONG),
        (start("panic").payload, Code.INVALID_INPUT),
        (b"\xc1", Code.INVALID_INPUT),
        (encode(GenerationInput(max_tokens=1, prompt="x")) + b"x", Code.INVALID_INPUT),
    ],
)
def test_bad_input_is_its_own_jobs_failure(
    node: WorkerThread, payload: bytes, code: Code, capsys: pytest.CaptureFixture[str]
) -> None:
    node.start(Start("bad", payload, "01JOB"), start("good"))
    reports = node.hear(4)
    assert [r.code for r in reports if isinstance(r, Failed)] == [code]
    assert [r.job_id for r in reports if isinstance(r, Completed)] == ["good"]
    node.tell(Shutdown())
    node.join()
    (line,) = capsys.readouterr().err.splitlines()
    assert "secret" not in line
    told = json.loads(line)
    assert (told["job_id"], told["code"]) == ("01JOB", code)


def test_an_input_that_takes_long_to_read_holds_up_no_other(
    node: WorkerThread, engine: FaultEngine
) -> None:
    node.start(start("slow one two", "slow"), start("three"))
    assert [report.job_id for report in node.hear(3)] == ["three"] * 3
    engine.gate.set()
    reports = node.hear(4)
    assert isinstance(reports[-1], Completed)
    assert reports[-1].job_id == "slow"


def test_a_job_that_is_cancelled_while_it_is_read_never_begins(
    node: WorkerThread, engine: FaultEngine
) -> None:
    node.start(start("slow one", "job"), start("slow two", "next"))
    node.tell(Cancel("job"), Cancel("next"), start("again", "job"))
    one, other, *reports = node.hear(5)
    assert (one, other) == (Cancelled("job"), Cancelled("next"))
    assert [type(report) for report in reports] == [Started, Produced, Completed]
    engine.gate.set()
    node.tell(Ping(1))
    assert node.hear(1) == [Pong(1)]


@pytest.mark.parametrize(
    ("prompt", "code"), [("panic", Code.INVALID_INPUT), ("too long", Code.PROMPT_TOO_LONG)]
)
def test_what_a_slow_reading_raises_is_its_own_jobs_failure(
    node: WorkerThread, engine: FaultEngine, prompt: str, code: Code
) -> None:
    engine.gate.set()
    node.start(start(f"slow {prompt}", "bad"), start("slow good", "good"))
    reports = node.hear(4)
    assert [(r.job_id, r.code) for r in reports if isinstance(r, Failed)] == [("bad", code)]
    assert isinstance(reports[-1], Completed)


def test_step_that_raises_ends_the_loop(node: WorkerThread) -> None:
    node.start(start("raise"))
    node.join()
    assert isinstance(node.failure, ValueError)


def test_node_that_is_gone_ends_the_loop(node: WorkerThread) -> None:
    node.start(start("forever"))
    node.hear(2)
    node.socket.close()
    node.join()
    assert isinstance(node.failure, EOFError | BrokenPipeError | ConnectionResetError)


def test_errors_are_described_by_type_and_place_only() -> None:
    try:
        raise ValueError("my secret prompt")
    except ValueError as error:
        description = _describe(error)
    assert description["error"] == "ValueError"
    assert "test_worker_main.py" in str(description["places"])
    assert "secret" not in json.dumps(description)


def test_log_is_one_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    log("job_input_failed", job_id="01J", error="Two\nlines")
    assert json.loads(capsys.readouterr().err) == {
        "event": "job_input_failed",
        "job_id": "01J",
        "error": "Two\nlines",
    }


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (type("OutOfMemoryError", (RuntimeError,), {})(), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError(), False),
    ],
)
def test_out_of_memory_is_recognized(error: BaseException, expected: bool) -> None:
    assert _is_out_of_memory(error) is expected
