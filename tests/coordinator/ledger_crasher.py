"""A program that holds and captures until it is killed, and says what was acknowledged.

    python -m tests.coordinator.ledger_crasher DATABASE_FILE

It writes a line to standard output after each answer of the ledger, straight to the pipe: what the
reader has seen was acknowledged, whatever happens to this process next.
"""

import os
import sys

import trio

from coordinator.db.engine import ThreadRunner, open_database
from coordinator.db.writer import LedgerWriter
from coordinator.ledger.postings import capture, hold
from protocol.ids import new_ulid
from protocol.net.clock import SystemClock
from tests.coordinator.ledger_makers import ALICE, BOB, HOUR_MS, NODE, funds_of

SUBMITTERS = 20


async def submit_forever(writer: LedgerWriter, number: int) -> None:
    clock = SystemClock()
    while True:
        lease_id = new_ulid(clock.now_ms(), os.urandom(10))
        funds = funds_of(lease_id, client=ALICE if number % 2 else BOB)
        await writer.submit(hold(funds, timeout_at_ms=clock.now_ms() + HOUR_MS))
        os.write(sys.stdout.fileno(), f"hold {lease_id}\n".encode())
        await writer.submit(capture(funds, 60, NODE, fee_bps=500))
        os.write(sys.stdout.fileno(), f"capture {lease_id}\n".encode())


async def main(path: str) -> None:
    database = open_database(f"sqlite:///{path}", ThreadRunner())
    writer = LedgerWriter(database, SystemClock())
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        for number in range(SUBMITTERS):
            nursery.start_soon(submit_forever, writer, number)


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
