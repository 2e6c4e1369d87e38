"""A service for files and batches over books in memory, with a market of the test's."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count as count_from
from pathlib import Path
from random import Random
from typing import Any

from coordinator.batches.blobs import SealedFolder
from coordinator.batches.book_rows import BookFiling, BookLeftovers
from coordinator.batches.service import BatchBounds, BatchService
from coordinator.db.accounts import open_account
from coordinator.db.api_keys import create_api_key
from coordinator.db.engine import Database
from coordinator.gateway.caller import Caller
from coordinator.gateway.market_side.filing import BatchInfo, BatchRequest, FileInfo
from coordinator.gateway.market_side.market import GatewayMarket
from coordinator.ledger.accounts import Account, AccountKind, account_of
from protocol.clock import Clock
from protocol.countersigning import Delivery
from protocol.envelope import Signed
from protocol.keys import SigningKey
from protocol.programs.runners import Runner
from protocol.programs.runtime import Runtime
from tests.coordinator.gateway.fake_market import CLIENT_KEY, NOW_MS, OTHER_CLIENT_KEY
from tests.coordinator.ledger_makers import memory_books

OPERATOR = SigningKey(bytes(31) + b"o")


@dataclass
class Callers:
    """Who the keys stand for; `revoked` ones no more."""

    by_id: dict[str, Caller]
    revoked: set[str] = field(default_factory=set)

    async def caller_of(self, api_key_id: str) -> Caller | None:
        return None if api_key_id in self.revoked else self.by_id[api_key_id]


@dataclass
class Words:
    """Stands for the coordinator's service: keeps what was signed for."""

    delivered: list[Signed[Delivery]] = field(default_factory=list)

    async def declare(self, delivery: Signed[Delivery]) -> None:
        self.delivered.append(delivery)


@dataclass
class Office:
    """What outlives a service: books, folder and keys."""

    database: Database
    folder: Path
    callers: Callers
    words: Words
    caller: Caller
    other: Caller
    # What is made later has a higher id, also within one millisecond.
    numbers: Iterator[int] = field(default_factory=lambda: count_from(1))

    def service(
        self,
        market: GatewayMarket,
        runner: Runner,
        clock: Clock,
        *,
        bounds: BatchBounds | None = None,
    ) -> BatchService:
        return BatchService(
            BookFiling(self.database),
            SealedFolder(self.folder, OPERATOR, self._entropy),
            market,
            BookLeftovers(
                self.database,
                self.words,  # type: ignore[arg-type]  # only its `declare` is asked for
                self.callers,
                clock,
            ),
            self.callers,
            Runtime(clock, self._entropy, Random(1), runner),
            bounds=bounds,
        )

    def _entropy(self, size: int) -> bytes:
        return next(self.numbers).to_bytes(size)


@contextmanager
def office(folder: Path) -> Iterator[Office]:
    with memory_books() as database:
        entropy = Random(7).randbytes
        callers = []
        with database.transaction() as conn:
            for key in (CLIENT_KEY, OTHER_CLIENT_KEY):
                account = account_of(key.peer_id)
                open_account(conn, Account(account, AccountKind.CLIENT, created_at_ms=NOW_MS))
                _, api_key = create_api_key(conn, account, "k", now_ms=NOW_MS, entropy=entropy)
                callers.append(Caller(api_key.id, key))
        by_id = {caller.key_id: caller for caller in callers}
        yield Office(database, folder, Callers(by_id), Words(), callers[0], callers[1])


def embedding_lines(count: int, *, texts: int = 1) -> list[dict[str, Any]]:
    return [
        request_line(
            f"e{number}",
            "/v1/embeddings",
            {"model": "tiny-embedder", "input": [f"text {number}.{text}" for text in range(texts)]},
        )
        for number in range(count)
    ]


def chat_lines(count: int) -> list[dict[str, Any]]:
    return [
        request_line(
            f"c{number}",
            "/v1/chat/completions",
            {"model": "tiny-chat", "messages": [{"role": "user", "content": f"say {number}"}]},
        )
        for number in range(count)
    ]


def request_line(custom_id: str, url: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def jsonl(lines: list[Any]) -> bytes:
    return b"".join(
        line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines
    )


async def put_file(service: BatchService, caller: Caller, data: bytes) -> FileInfo:
    upload = await service.begin_upload(caller)
    upload.write(data)
    return await service.finish_upload(
        caller, upload, filename="in.jsonl", purpose="batch", lifetime_s=None
    )


async def put_batch(
    service: BatchService, caller: Caller, lines: list[Any], endpoint: str = "/v1/chat/completions"
) -> BatchInfo:
    stored = await put_file(service, caller, jsonl(lines))
    return await service.create_batch(caller, BatchRequest(stored.id, endpoint, {}, None))


async def read_file(
    service: BatchService, caller: Caller, file_id: str | None
) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    content = await service.open_file(caller, file_id)
    assert content is not None
    text = b"".join(content.pieces())
    content.close()
    return [json.loads(line) for line in text.splitlines()]
