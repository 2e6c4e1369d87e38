"""What every command of `cli.py` needs: a chain, a sender with its journal, and where to print."""

import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import trio

from contracts.chain import Call, Policy, Sender
from contracts.errors import BadConfigurationError
from contracts.files import load_evm_key
from contracts.journal import FileJournal, Journal, MemoryJournal, Sent, continued_key
from contracts.keccak import keccak
from contracts.node import ChainNode
from contracts.rpc import HttpRpc, Rpc, parse_quantity


@dataclass(frozen=True, slots=True)
class ChainAccess:
    """Where a command goes, and who pays."""

    url: str
    chain_id: int | None
    key_file: Path | None = None
    confirmations: int = 5
    as_json: bool = False


class Report:
    """What a command prints: each fact at once for people, all at the end for programs."""

    def __init__(self, as_json: bool) -> None:
        self._facts: dict[str, object] | None = {} if as_json else None

    def say(self, name: str, value: object) -> None:
        if self._facts is None:
            sys.stdout.write(f"{name} {value}\n")
        else:
            # Numbers too are strings: amounts are longer than what others read without loss.
            self._facts[name] = value if isinstance(value, bool) else str(value)

    def end(self) -> None:
        if self._facts is not None:
            sys.stdout.write(json.dumps(self._facts) + "\n")


@dataclass(frozen=True, slots=True)
class Session:
    rpc: Rpc
    chain_id: int
    journal: Journal
    sender: Sender | None
    report: Report

    def writer(self) -> Sender:
        if self.sender is None:
            raise BadConfigurationError("this needs a key: --key-file")
        return self.sender


def run(work: Callable[[Session], Awaitable[None]], connection: ChainAccess) -> None:
    async def in_session() -> None:
        async with open_session(connection) as session:
            await work(session)
            session.report.end()

    trio.run(in_session)


@asynccontextmanager
async def open_session(connection: ChainAccess) -> AsyncIterator[Session]:
    """A connection to the chain; with a key, also a sender whose journal lies next to the key."""
    report, key_file = Report(connection.as_json), connection.key_file
    async with httpx.AsyncClient() as client:
        rpc = HttpRpc(connection.url, client)
        chain_id = parse_quantity(await rpc.call("eth_chainId"))
        if connection.chain_id not in (None, chain_id):
            raise BadConfigurationError(
                f"--rpc leads to chain {chain_id}, and --chain-id wants {connection.chain_id}"
            )
        if key_file is None:
            yield Session(rpc, chain_id, MemoryJournal(), None, report)
            return
        key, policy = load_evm_key(key_file), Policy(confirmations=connection.confirmations)
        # A local chain begins anew with the same id; what was sent to the last one is not here.
        chain_name = f"{chain_id}-{await _first_block(rpc)}"
        with FileJournal(key_file.with_name(f"{key_file.name}.{chain_name}.journal")) as journal:

            def tell(entry: Sent) -> None:
                wanted = f"{policy.confirmations} blocks deep, at most {policy.timeout_s:.0f} s"
                sys.stderr.write(f"{entry.hashes[-1]}: waiting until it is {wanted}\n")

            sender = Sender(rpc, key, chain_id, journal=journal, policy=policy, on_signed=tell)
            await sender.resume()
            yield Session(rpc, chain_id, journal, sender, report)


def key_of(journal: Journal, name: str, call: Call) -> str:
    """The same call goes on where it was interrupted; one that differs at all is another."""
    return continued_key(journal, f"{name}-{short_hash(f'{call.to}'.encode() + call.data)}")


def short_hash(content: bytes) -> str:
    return keccak(content)[:16].hex()


async def _first_block(rpc: Rpc) -> str:
    """Eight hex digits of its hash; they become part of a file's name, so they are parsed."""
    return (await ChainNode(rpc).block_hash(0))[:4].hex()
