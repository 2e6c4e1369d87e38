"""Batches from their file to their answers, in virtual time, by the script of a market."""

import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest
import trio
from trio.testing import MockClock

from coordinator.batches.service import BatchBounds, BatchService
from coordinator.batches.usage import FileBounds
from coordinator.buyer.errors import JobFailed
from coordinator.buyer.spec import JobSpec
from coordinator.gateway.caller import Caller
from coordinator.gateway.errors import ApiError
from coordinator.gateway.market_side.filing import BatchInfo, BatchRequest, ListPart
from protocol.errors import Code
from protocol.net.clock import VirtualClock
from protocol.payload import EmbeddingInput
from protocol.programs.runners import InlineRunner, Runner
from tests.coordinator.batches.service_maker import (
    Office,
    chat_lines,
    embedding_lines,
    jsonl,
    office,
    put_batch,
    put_file,
    read_file,
    request_line,
)
from tests.coordinator.gateway.fake_market import FakeJob, FakeMarket

T = TypeVar("T")
EMBEDDINGS = "/v1/embeddings"


class ScriptedMarket(FakeMarket):
    """Fails jobs as `failures` says, and knows whose answers were signed for."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[JobFailed] = []
        self.paid: list[JobSpec] = []
        self.is_dead = False

    @asynccontextmanager
    async def open_job(self, caller: Caller, spec: JobSpec) -> AsyncIterator[FakeJob]:
        if self.failures:
            raise self.failures.pop(0)
        async with super().open_job(caller, spec) as job:
            try:
                yield job
            finally:
                if job.result is not None and not self.is_dead:
                    self.paid.append(spec)


@asynccontextmanager
async def running(
    rooms: Office,
    market: FakeMarket,
    runner: Runner | None = None,
    bounds: BatchBounds | None = None,
) -> AsyncIterator[BatchService]:
    service = rooms.service(market, runner or InlineRunner(), VirtualClock(), bounds=bounds)
    async with trio.open_nursery() as nursery:
        await nursery.start(service.run)
        yield service
        nursery.cancel_scope.cancel()


async def wait_status(
    service: BatchService, caller: Caller, batch_id: str, *statuses: str
) -> BatchInfo:
    with trio.fail_after(48 * 3_600):
        while True:
            info = await service.find_batch(caller, batch_id)
            assert info is not None
            if info.status in statuses:
                return info
            await trio.sleep(0.1)


async def test_good_lines_are_answered_and_a_bad_one_fails_alone(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    lines = chat_lines(3)
    del lines[1]["body"]["messages"]
    with office(tmp_path / "files") as rooms:
        async with running(rooms, market := ScriptedMarket()) as service:
            market.script.cached_tokens = 4
            batch = await put_batch(service, rooms.caller, lines)
            assert batch.status == "validating"
            ended = await wait_status(service, rooms.caller, batch.id, "completed")
            assert (ended.total, ended.completed, ended.failed) == (3, 2, 1)
            output = await read_file(service, rooms.caller, ended.output_file_id)
            (failed,) = await read_file(service, rooms.caller, ended.error_file_id)
    assert {line["custom_id"] for line in output} == {"c0", "c2"}
    body = output[0]["response"]["body"]
    assert body["choices"][0]["message"]["content"] == "Hello wörld 🙂"
    assert body["object"] == "chat.completion"
    assert failed["custom_id"] == "c1"
    assert failed["response"]["status_code"] == 400
    assert failed["response"]["body"]["error"]["param"] == "messages"
    assert (ended.input_tokens, ended.cached_tokens) == (2 * 7, 2 * 4)
    assert ended.output_tokens == 2 * 5
    assert ended.cost_nano == sum(line["response"]["body"]["usage"]["cost_nano"] for line in output)
    assert all(spec.is_batch for spec in market.specs)
    assert len({spec.job_id for spec in market.specs}) == 2


async def test_lines_that_are_alike_become_one_job_whose_cost_is_shared_exactly(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    with office(tmp_path / "files") as rooms:
        async with running(rooms, market := ScriptedMarket()) as service:
            batch = await put_batch(
                service, rooms.caller, embedding_lines(300, texts=2), EMBEDDINGS
            )
            ended = await wait_status(service, rooms.caller, batch.id, "completed")
            output = await read_file(service, rooms.caller, ended.output_file_id)
    texts = [len(spec.job_input.texts) for spec in market.specs]  # type: ignore[union-attr]
    assert texts == [256, 256, 88]
    assert [line["custom_id"] for line in output] == [f"e{number}" for number in range(300)]
    usage = [line["response"]["body"]["usage"] for line in output]
    assert sum(use["prompt_tokens"] for use in usage) == ended.input_tokens == 3 * 7
    assert sum(use["cost_nano"] for use in usage) == ended.cost_nano
    assert all(len(line["response"]["body"]["data"]) == 2 for line in output)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"no json\n", "invalid_json_line"),
        (
            {"custom_id": "c0", "method": "POST", "url": "/v1/embeddings", "body": {}},
            "mismatched_url",
        ),
        ({"method": "POST", "url": "/v1/chat/completions", "body": {}}, "invalid_request"),
        ({"custom_id": "x", "method": "GET", "url": "/v1/chat/completions"}, "invalid_method"),
        ({"custom_id": "x", "method": "POST", "url": "/v1/chat/completions"}, "invalid_body"),
        (chat_lines(1)[0], "duplicate_custom_id"),
    ],
)
async def test_a_file_that_is_no_list_of_requests_fails_and_says_where(
    tmp_path: Path, autojump_clock: MockClock, line: object, code: str
) -> None:
    with office(tmp_path / "files") as rooms:
        async with running(rooms, market := ScriptedMarket()) as service:
            batch = await put_batch(service, rooms.caller, [*chat_lines(1), line])
            failed = await wait_status(service, rooms.caller, batch.id, "failed")
    (error,) = failed.errors
    assert (error.code, error.line) == (code, 2)
    assert "failed" in failed.stamps_ms
    assert not market.specs


async def test_a_cancelled_batch_hands_out_the_answers_that_there_are(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    with office(tmp_path / "files") as rooms:
        market = ScriptedMarket()
        market.script.gate_before = 2
        async with running(rooms, market) as service:
            done = await put_batch(service, rooms.caller, [*chat_lines(2)])
            await wait_status(service, rooms.caller, done.id, "in_progress")
            cancelled = await service.cancel_batch(rooms.caller, done.id)
            assert cancelled is not None
            assert cancelled.status == "cancelling"
            ended = await wait_status(service, rooms.caller, done.id, "cancelled")
            errors = await read_file(service, rooms.caller, ended.error_file_id)
            again = await service.cancel_batch(rooms.caller, done.id)
            assert again == ended
    assert market.cancelled == 2
    assert {line["error"]["code"] for line in errors} == {"batch_cancelled"}
    assert {"cancelling", "cancelled", "in_progress"} <= ended.stamps_ms.keys()


async def test_a_batch_whose_window_is_over_expires_with_what_it_has(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    with office(tmp_path / "files") as rooms:
        market = ScriptedMarket()
        bounds = BatchBounds(window_s=60)
        async with running(rooms, market, bounds=bounds) as service:
            lines = [*chat_lines(1)]
            lines.append(
                request_line("never", "/v1/chat/completions", lines[0]["body"] | {"model": "later"})
            )
            market.expected.add("later")
            batch = await put_batch(service, rooms.caller, lines)
            started_at = trio.current_time()
            ended = await wait_status(service, rooms.caller, batch.id, "expired")
            assert trio.current_time() - started_at == pytest.approx(60, abs=0.5)
            (answer,) = await read_file(service, rooms.caller, ended.output_file_id)
            (missing,) = await read_file(service, rooms.caller, ended.error_file_id)
    assert answer["custom_id"] == "c0"
    assert (missing["custom_id"], missing["error"]["code"]) == ("never", "batch_expired")


async def test_a_batch_waits_for_a_market_that_is_full_and_for_money(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    with office(tmp_path / "files") as rooms:
        market = ScriptedMarket()
        market.failures = [
            *(JobFailed("full", code=Code.NO_NODE_FITS) for _ in range(8)),
            JobFailed("no money", code=Code.OUT_OF_FUNDS),
        ]
        async with running(rooms, market) as service:
            batch = await put_batch(service, rooms.caller, chat_lines(1))
            await wait_status(service, rooms.caller, batch.id, "in_progress")
            await trio.sleep(100)
            info = await service.find_batch(rooms.caller, batch.id)
            assert info is not None
            assert info.errors[0].code == "out_of_funds"
            ended = await wait_status(service, rooms.caller, batch.id, "completed")
    assert (ended.completed, ended.errors) == (1, ())


async def test_a_batch_waits_while_its_account_has_no_room_for_answers(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    bounds = BatchBounds(FileBounds(account_bytes_max=2_000))
    with office(tmp_path / "files") as rooms:
        async with running(rooms, market := ScriptedMarket(), bounds=bounds) as service:
            lines = chat_lines(1)
            filler = await put_file(service, rooms.caller, bytes(2_000 - len(jsonl(lines))))
            batch = await put_batch(service, rooms.caller, lines)
            await trio.sleep(10)
            info = await service.find_batch(rooms.caller, batch.id)
            assert info is not None
            assert info.errors[0].code == "storage_full"
            assert not market.specs
            assert await service.delete_file(rooms.caller, filler.id)
            ended = await wait_status(service, rooms.caller, batch.id, "completed")
            assert ended.completed == 1
            assert market.specs


async def test_the_text_that_a_node_cannot_take_fails_without_its_neighbours(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    class Picky(ScriptedMarket):
        @asynccontextmanager
        async def open_job(self, caller: Caller, spec: JobSpec) -> AsyncIterator[FakeJob]:
            assert isinstance(spec.job_input, EmbeddingInput)
            if "text 5.0" in spec.job_input.texts:
                raise JobFailed("a text is too long", code=Code.PROMPT_TOO_LONG)
            async with super().open_job(caller, spec) as job:
                yield job

    with office(tmp_path / "files") as rooms:
        async with running(rooms, Picky()) as service:
            batch = await put_batch(service, rooms.caller, embedding_lines(20), EMBEDDINGS)
            ended = await wait_status(service, rooms.caller, batch.id, "completed")
            (failed,) = await read_file(service, rooms.caller, ended.error_file_id)
    assert (ended.completed, ended.failed) == (19, 1)
    assert failed["custom_id"] == "e5"


async def test_one_account_does_not_starve_another(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    with office(tmp_path / "files") as rooms:
        market = ScriptedMarket()
        market.script.interval_s = 1.0
        bounds = BatchBounds(jobs_max=4)
        async with running(rooms, market, bounds=bounds) as service:
            big = await put_batch(service, rooms.caller, chat_lines(60))
            await wait_status(service, rooms.caller, big.id, "in_progress")
            small = await put_batch(service, rooms.other, chat_lines(4))
            ended = await wait_status(service, rooms.other, small.id, "completed")
            other = await service.find_batch(rooms.caller, big.id)
    assert ended.completed == 4
    assert other is not None
    assert other.completed <= 12


@pytest.mark.parametrize("answered", [0, 2])
async def test_a_batch_whose_key_is_revoked_ends_with_one_reason_for_the_rest(
    answered: int, tmp_path: Path, autojump_clock: MockClock
) -> None:
    class Revoking(ScriptedMarket):
        @asynccontextmanager
        async def open_job(self, caller: Caller, spec: JobSpec) -> AsyncIterator[FakeJob]:
            if len(self.specs) == answered:
                rooms.callers.revoked.add(rooms.caller.key_id)
                raise JobFailed("revoked", code=Code.UNKNOWN_API_KEY)
            async with super().open_job(caller, spec) as job:
                yield job

    with office(tmp_path / "files") as rooms:
        async with running(rooms, market := Revoking()) as service:
            batch = await put_batch(service, rooms.caller, chat_lines(20))
            ended = await wait_status(service, rooms.caller, batch.id, "failed")
            output = await read_file(service, rooms.caller, ended.output_file_id)
            errors = await read_file(service, rooms.caller, ended.error_file_id)
    (error,) = ended.errors
    assert error.code == "unknown_api_key"
    assert (ended.completed, ended.failed, len(output)) == (answered, 0, answered)
    assert len(market.paid) == answered
    assert len({line["custom_id"] for line in output + errors}) == 20
    assert {(line["error"]["code"], line["error"]["message"]) for line in errors} == {
        (error.code, error.message)
    }


async def test_a_batch_that_expires_while_it_has_no_money_says_so_on_each_line(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    # Each of the few that are tried at once asks twice a minute.
    asks_max = 16 * 21
    market = ScriptedMarket()
    market.failures = [JobFailed("spent", code=Code.BUDGET_EXCEEDED) for _ in range(asks_max)]
    with office(tmp_path / "files") as rooms:
        async with running(rooms, market, bounds=BatchBounds(window_s=600)) as service:
            batch = await put_batch(service, rooms.caller, chat_lines(50))
            ended = await wait_status(service, rooms.caller, batch.id, "expired")
            errors = await read_file(service, rooms.caller, ended.error_file_id)
    assert len(errors) == 50
    assert all("budget of the API key is spent" in line["error"]["message"] for line in errors)
    assert not market.specs


async def test_what_is_anothers_does_not_exist(tmp_path: Path, autojump_clock: MockClock) -> None:
    with office(tmp_path / "files") as rooms:
        async with running(rooms, ScriptedMarket()) as service:
            batch = await put_batch(service, rooms.caller, chat_lines(1))
            file_id = batch.ask.input_file_id
            assert await service.find_batch(rooms.other, batch.id) is None
            assert await service.cancel_batch(rooms.other, batch.id) is None
            assert await service.find_file(rooms.other, file_id) is None
            assert await service.open_file(rooms.other, file_id) is None
            assert not await service.delete_file(rooms.other, file_id)
            assert not await service.list_batches(rooms.other, ListPart(10))
            with pytest.raises(ApiError, match="no file"):
                await service.create_batch(rooms.other, BatchRequest(file_id, EMBEDDINGS, {}, None))


async def test_bytes_at_rest_are_sealed_and_their_owners_alone(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    folder = tmp_path / "files"
    with office(folder) as rooms:
        async with running(rooms, ScriptedMarket()) as service:
            batch = await put_batch(service, rooms.caller, chat_lines(1))
            await wait_status(service, rooms.caller, batch.id, "completed")
            paths = [path for path in folder.rglob("*") if path.is_file()]
            assert len(paths) == 2
            assert not any(b"say 0" in path.read_bytes() for path in paths)
            assert not any(b"choices" in path.read_bytes() for path in paths)
            assert {path.stat().st_mode & 0o777 for path in paths} == {0o600}
            assert folder.stat().st_mode & 0o777 == 0o700


async def test_a_part_of_a_large_file_is_read_and_a_changed_byte_is_noticed(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    data = os.urandom(300_000)
    with office(tmp_path / "files") as rooms:
        async with running(rooms, ScriptedMarket()) as service:
            stored = await put_file(service, rooms.caller, data)
            content = await service.open_file(rooms.caller, stored.id)
            assert content is not None
            assert b"".join(content.pieces()) == data
            assert content.read(70_000, 10) == data[70_000:70_010]
            assert content.read(299_990, 1_000) == data[299_990:]
            content.close()
            path = tmp_path / "files" / stored.id
            sealed = bytearray(path.read_bytes())
            sealed[100_000] ^= 1
            path.write_bytes(sealed)
            spoiled = await service.open_file(rooms.caller, stored.id)
            assert spoiled is not None
            with pytest.raises(Exception, match="damaged"):
                list(spoiled.pieces())
            spoiled.close()


async def test_files_are_bounded_for_an_account_and_dropped_when_their_time_is_over(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    bounds = BatchBounds(FileBounds(file_bytes_max=1_000, account_bytes_max=1_500))
    with office(tmp_path / "files") as rooms:
        async with running(rooms, ScriptedMarket(), bounds=bounds) as service:
            upload = await service.begin_upload(rooms.caller)
            with pytest.raises(ApiError, match="1000 bytes"):
                upload.write(bytes(1_001))
            await service.abandon_upload(upload)
            stored = await put_file(service, rooms.caller, bytes(1_000))
            with pytest.raises(ApiError, match="delete some"):
                await put_file(service, rooms.caller, bytes(600))
            await put_file(service, rooms.other, bytes(600))
            assert await service.delete_file(rooms.caller, stored.id)
            upload = await service.begin_upload(rooms.caller)
            upload.write(bytes(900))
            kept = await service.finish_upload(
                rooms.caller, upload, filename="f", purpose="batch", lifetime_s=3_600
            )
            await trio.sleep(3_600)
            assert await service.find_file(rooms.caller, kept.id) is None
            await trio.sleep(120)
            assert not (tmp_path / "files" / kept.id).exists()


class Killed(BaseException):
    """SIGKILL: what happens after it does not happen."""


class MortalRunner(InlineRunner):
    """Runs so many calls, then the process is gone: before that call, or right after it."""

    def __init__(self, market: ScriptedMarket, calls: int, *, is_after: bool) -> None:
        self.market, self.left, self.is_after = market, calls, is_after

    async def run_read(self, call: Callable[[], T]) -> T:
        if self.market.is_dead:
            raise Killed
        self.left -= 1
        if not self.left:
            if self.is_after:
                call()
            self.market.is_dead = True
            raise Killed
        return await super().run_read(call)


@pytest.mark.parametrize("is_after", [False, True])
async def test_killed_at_any_step_nothing_is_lost_and_nothing_paid_twice(
    tmp_path: Path, autojump_clock: MockClock, is_after: bool
) -> None:
    lines = [*embedding_lines(40, texts=50), b"\n", request_line("bad", EMBEDDINGS, {"input": "x"})]
    with office(tmp_path / "files") as rooms:
        for calls in range(2, 60):
            if not await kill_once(rooms, jsonl(lines), calls, is_after=is_after):
                return
    pytest.fail("the batch needs more steps than were tried")


async def kill_once(rooms: Office, data: bytes, calls: int, *, is_after: bool) -> bool:
    """Kill the process at one step, start it again, and look at what became of the batch. False if
    the batch had ended before."""
    market = ScriptedMarket()
    async with running(rooms, market) as service:
        stored = await put_file(service, rooms.caller, data)
    batch_id = ""
    try:
        runner = MortalRunner(market, calls, is_after=is_after)
        async with running(rooms, market, runner) as service:
            batch_id = (
                await service.create_batch(
                    rooms.caller, BatchRequest(stored.id, EMBEDDINGS, {}, None)
                )
            ).id
            await wait_status(service, rooms.caller, batch_id, "completed")
    except* Killed:
        pass
    was_killed, market.is_dead = market.is_dead, False
    if not batch_id:
        return True
    async with running(rooms, market) as service:
        ended = await wait_status(service, rooms.caller, batch_id, "completed")
        output = await read_file(service, rooms.caller, ended.output_file_id)
        errors = await read_file(service, rooms.caller, ended.error_file_id)
    assert sorted(line["custom_id"] for line in output) == sorted(f"e{n}" for n in range(40))
    assert [line["custom_id"] for line in errors] == ["bad"]
    assert (ended.total, ended.completed, ended.failed) == (41, 40, 1)
    paid = Counter(
        text
        for spec in market.paid
        if isinstance(spec.job_input, EmbeddingInput)
        for text in spec.job_input.texts
    )
    assert max(paid.values()) == 1
    return was_killed
