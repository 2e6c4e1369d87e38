"""Files and batches of a gateway beside its users, over a real coordinator in memory."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio
from trio.testing import MockClock

from coordinator.db.filing_rows import BatchStatus, Page, StoredBatch, StoredFile
from coordinator.edge.filing import EdgeFiling
from coordinator.edge.leftovers import EdgeLeftovers
from coordinator.gateway.caller import Caller
from coordinator.gateway.market_side.filing import BatchInfo, ListPart
from coordinator.ledger.accounts import AccountId
from protocol.envelope import seal
from protocol.ids import JobId, derive_ulid, new_ulid
from protocol.pricing import Units
from protocol.programs.runners import InlineRunner
from tests.coordinator.batches.service_maker import chat_lines, put_batch, read_file
from tests.coordinator.edge.test_edge import OpenEdge, open_edge
from tests.coordinator.lease_requests import signed_request
from tests.coordinator.small_market import MODEL, WORDS, Script, open_small_market

ENDED = {"completed", "failed", "expired", "cancelled"}


async def make_caller(edge: OpenEdge, seed: int) -> Caller:
    secret, _ = edge.keys.create("user", now_ms=1, entropy=random.Random(seed).randbytes)
    caller = await edge.edge.market.authenticate(secret)
    assert caller is not None
    return caller


def market_lines(count: int) -> list[dict[str, Any]]:
    lines = chat_lines(count)
    for line in lines:
        line["body"] |= {"model": MODEL, "max_tokens": 8}
    return lines


async def wait_end(edge: OpenEdge, caller: Caller, batch_id: str) -> BatchInfo:
    for _ in range(600):
        info = await edge.edge.batches.find_batch(caller, batch_id)
        assert info is not None
        if info.status in ENDED:
            return info
        await trio.sleep(1)
    raise AssertionError("the batch does not end")


async def test_a_batch_is_kept_and_run_beside_its_users_at_the_batch_price(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with (
        open_small_market(Script.ANSWER) as market,
        open_edge(market, tmp_path, no_keys=False) as edge,
    ):
        ada, bob = await make_caller(edge, 1), await make_caller(edge, 2)
        batches = edge.edge.batches
        batch = await put_batch(batches, ada, market_lines(3))
        ended = await wait_end(edge, ada, batch.id)
        assert (ended.status, ended.completed, ended.failed) == ("completed", 3, 0)
        lines = await read_file(batches, ada, ended.output_file_id)
        texts = {line["response"]["body"]["choices"][0]["message"]["content"] for line in lines}
        assert texts == {"".join(WORDS)}
        # One account pays for both, and each sees its own only.
        assert await batches.find_batch(bob, batch.id) is None
        assert not await batches.list_batches(bob, ListPart(10))
        assert await batches.open_file(bob, ended.output_file_id or "") is None
        await edge.edge.wait_settled()
        key = edge.keys.find(ada.key_id)
        assert key is not None
        assert key.spent_nano == ended.cost_nano > 0
        sealed = b"".join(
            path.read_bytes() for path in (tmp_path / "files").rglob("*") if path.is_file()
        )
        assert b"say 1" not in sealed
        assert WORDS[0].encode() not in sealed


async def test_a_batch_ends_when_the_gateways_key_for_it_is_revoked(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with (
        open_small_market(Script.HANG) as market,
        open_edge(market, tmp_path, no_keys=False) as edge,
    ):
        ada = await make_caller(edge, 1)
        edge.keys.revoke(ada.key_id, now_ms=2)
        batch = await put_batch(edge.edge.batches, ada, market_lines(3))
        ended = await wait_end(edge, ada, batch.id)
        assert (ended.status, ended.errors[0].code) == ("failed", "unknown_api_key")


async def test_a_gateway_that_is_started_again_goes_on_with_its_batches(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_small_market(Script.HANG) as market:
        async with open_edge(market, tmp_path) as edge:
            batch = await put_batch(edge.edge.batches, edge.caller(), market_lines(2))
            await trio.sleep(5)
        market.nodes[0].script = Script.ANSWER
        async with open_edge(market, tmp_path) as edge:
            ended = await wait_end(edge, edge.caller(), batch.id)
            assert (ended.status, ended.completed) == ("completed", 2)


async def test_what_was_under_way_when_it_was_killed_is_not_paid(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_small_market(Script.ANSWER) as market:
        batch = a_batch(new_ulid(market.clock.now_ms(), bytes(10)))
        lost, done = (JobId(derive_ulid(batch.id, f"batch/1/{number}")) for number in range(2))
        market.clock.ahead_ms += 1
        leases = {}
        for job_id in (lost, done, None):
            request = signed_request(market, market.buyer, job_id=job_id)
            request = seal(market.buyer, replace(request.message, is_batch=True))
            leases[job_id] = (await market.leaser.lease(request)).lease.message.lease_id
        leftovers = EdgeLeftovers([market.leaser], market.buyer, market.clock)
        await leftovers.disown([batch], {done})
        opened = market.coordinator.leases.get(leases[lost])
        assert opened is not None
        assert opened.delivered == Units()
        # The answer of one is kept, and the other is no job of the batch.
        for job_id in (done, None):
            other = market.coordinator.leases.get(leases[job_id])
            assert other is not None
            assert other.delivered is None


def a_batch(batch_id: str, **changes: Any) -> StoredBatch:
    batch = StoredBatch(
        batch_id, AccountId("ada"), "key", "/v1/embeddings", "file", None, "{}", 1, 2
    )
    return replace(batch, **changes)


async def test_rows_are_there_for_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "rows.sqlite"
    rows = EdgeFiling(path, InlineRunner())
    files = [StoredFile(f"f{n}", AccountId("ada"), "a", "batch", n, 1, 10 + n) for n in range(4)]
    for stored in files[:3]:
        await rows.add_file(stored)
    await rows.add_batch(a_batch("b1"))
    await rows.add_batch(a_batch("b2"))
    ended = a_batch("b1", status=BatchStatus.COMPLETED, ended_at_ms=3, output_file_id="f3")
    await rows.end_batch(ended, files[3:])
    assert await rows.delete_file("f0")
    assert not await rows.delete_file("f0")
    again = EdgeFiling(path, InlineRunner())
    assert await again.file_ids() == {"f1", "f2", "f3"}
    assert await again.find_batch("b1") == ended
    assert [batch.id for batch in await again.open_batches()] == ["b2"]
    assert await again.bytes_by_account() == {"ada": 6}
    assert await again.expired_files(now_ms=11, limit=9) == files[1:2]
    ada = AccountId("ada")
    newest = await again.list_files(ada, Page(2), purpose=None)
    assert [stored.id for stored in newest] == ["f3", "f2"]
    rest = await again.list_files(ada, Page(2, "f2"), purpose="batch")
    assert [stored.id for stored in rest] == ["f1"]
    behind = await again.list_batches(ada, Page(9, "b1", is_ascending=True))
    assert [batch.id for batch in behind] == ["b2"]
