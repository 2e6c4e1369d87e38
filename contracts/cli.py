"""`python -m contracts`: the contract for people. Data goes to stdout, one `name value` a line.

Commands only read options and print. Secrets are read from files, never from the command line.
"""

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import httpx
import trio
import typer

from contracts.chain import Policy, Sender
from contracts.deploy import (
    PUBLIC_TERMS,
    TRIAL_TERMS,
    check_token,
    deploy_settlement,
    deploy_test_token,
)
from contracts.erc20 import Token
from contracts.errors import BadConfigurationError
from contracts.files import create_evm_key, load_evm_key, load_leaf
from contracts.journal import FileJournal, Journal, MemoryJournal, continued_key
from contracts.rpc import HttpRpc, Rpc, parse_quantity
from contracts.settlement import SettlementCalls, SettlementReader, decode_events
from contracts.units import Address, format_tokens, parse_address, parse_tokens
from protocol.errors import CapaError

app = typer.Typer(
    help="Deploy the settlement contract, and use it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

RpcUrl = Annotated[
    str, typer.Option("--rpc", envvar="CAPACLOUD_RPC", help="URL of a chain's node.")
]
KeyFile = Annotated[
    Path,
    typer.Option("--key-file", envvar="CAPACLOUD_EVM_KEY_FILE", help="Key that signs and pays."),
]
Contract = Annotated[
    str, typer.Option(envvar="CAPACLOUD_SETTLEMENT", help="Address of the settlement contract.")
]
OperatorOption = Annotated[str, typer.Option(help="Address of the market's operator.")]
Confirmations = Annotated[int, typer.Option(min=1, help="Blocks until a transaction counts.")]


@dataclass(frozen=True, slots=True)
class Session:
    rpc: Rpc
    chain_id: int
    journal: Journal
    sender: Sender | None

    def writer(self) -> Sender:
        if self.sender is None:
            raise BadConfigurationError("this needs a key: --key-file")
        return self.sender


@app.command("new-key")
def new_key(path: Annotated[Path, typer.Argument(help="Where to write it.")]) -> None:
    """Create a key for transactions, and print its address."""
    say("address", create_evm_key(path).address)


@app.command()
def deploy(
    rpc: RpcUrl,
    key_file: KeyFile,
    token: Annotated[str | None, typer.Option(help="Token to settle in.")] = None,
    test_token: Annotated[bool, typer.Option(help="Deploy a token that anyone can mint.")] = False,
    any_token: Annotated[bool, typer.Option(help="Take a token that is not listed.")] = False,
    trial: Annotated[
        bool, typer.Option(help="Minutes instead of days, for test networks.")
    ] = False,
    confirmations: Confirmations = 5,
) -> None:
    """Put a settlement contract on a chain. The key's account can pause deposits, nothing else."""
    if (token is None) == (not test_token):
        raise BadConfigurationError("give --token ADDRESS, or --test-token, and not both")

    async def work(session: Session) -> None:
        sender = session.writer()
        terms = TRIAL_TERMS if trial else PUBLIC_TERMS
        key = continued_key(session.journal, f"deploy-{token}-{trial}")
        if token is None:
            settled_in = await deploy_test_token(sender, key=f"{key}-token")
        else:
            settled_in = read_address(token)
            if not any_token:
                check_token(session.chain_id, settled_in)
        address = await deploy_settlement(sender, settled_in, terms, key=key)
        say("chain", session.chain_id)
        say("token", settled_in)
        say("settlement", address)

    run(work, rpc, key_file, confirmations)


@app.command()
def deposit(
    rpc: RpcUrl,
    key_file: KeyFile,
    contract: Contract,
    operator: OperatorOption,
    amount: Annotated[str, typer.Option(help="Tokens, such as 12.5.")],
    client: Annotated[str | None, typer.Option(help="Whose escrow; the key's by default.")] = None,
    mint: Annotated[bool, typer.Option(help="Mint them first: test tokens only.")] = False,
    confirmations: Confirmations = 5,
) -> None:
    """Put tokens into escrow with an operator."""

    async def work(session: Session) -> None:
        sender, settlement = session.writer(), read_address(contract)
        calls, reader = SettlementCalls(settlement), SettlementReader(session.rpc, settlement)
        token = Token(session.rpc, await reader.token())
        units = read_tokens(amount, await token.decimals())
        owner, who = read_address(client) if client else sender.address, read_address(operator)
        key = continued_key(session.journal, f"deposit-{settlement}-{owner}-{who}-{units}")
        if mint:
            await sender.send(f"{key}-mint", token.mint(sender.address, units))
        if await token.allowance(sender.address, settlement) < units:
            await sender.send(f"{key}-approve", token.approve(settlement, units))
        receipt = await sender.send(key, calls.deposit(owner, who, units))
        say("transaction", receipt.transaction)
        channel = await reader.channel(owner, who)
        say("balance", format_tokens(channel.balance, await token.decimals()))

    run(work, rpc, key_file, confirmations)


@app.command()
def status(
    rpc: RpcUrl,
    contract: Contract,
    operator: Annotated[str | None, typer.Option(help="Show this operator.")] = None,
    client: Annotated[str | None, typer.Option(help="Show this client's escrow with it.")] = None,
    payee: Annotated[str | None, typer.Option(help="Show what it paid to this payee.")] = None,
) -> None:
    """What the contract holds for whom. Amounts are token units, times are Unix seconds."""

    async def work(session: Session) -> None:
        reader = SettlementReader(session.rpc, read_address(contract))
        say("token", await reader.token())
        say("deposits_paused", await reader.is_paused())
        for name, value in asdict(await reader.terms()).items():
            say(name, value)
        if operator is None:
            return
        who = read_address(operator)
        for prefix, state in (
            ("operator", await reader.operator(who)),
            ("active_root", await reader.active_root(who)),
            ("pending_root", await reader.pending_root(who)),
        ):
            for name, value in asdict(state).items():
                say(f"{prefix}.{name}", value.hex() if isinstance(value, bytes) else value)
        if client is not None:
            for name, value in asdict(await reader.channel(read_address(client), who)).items():
                say(f"channel.{name}", value)
        if payee is not None:
            say("paid", await reader.paid(who, read_address(payee)))

    run(work, rpc)


@app.command()
def claim(
    rpc: RpcUrl,
    key_file: KeyFile,
    contract: Contract,
    operator: OperatorOption,
    leaf: Annotated[Path, typer.Option(help="JSON file with the payee's leaf and proof.")],
    confirmations: Confirmations = 5,
) -> None:
    """Have a payee paid what the active root holds for it. Anyone may pay for the transaction."""

    async def work(session: Session) -> None:
        sender, settlement, item = session.writer(), read_address(contract), load_leaf(leaf)
        who = read_address(operator)
        purpose = f"claim-{settlement}-{who}-{item.payee}-{item.cumulative}"
        key = continued_key(session.journal, purpose)
        receipt = await sender.send(key, SettlementCalls(settlement).claim(who, item))
        say("transaction", receipt.transaction)
        events = decode_events(receipt.logs, settlement)
        say("paid", sum(event.fields["amount"] for event in events))

    run(work, rpc, key_file, confirmations)


def run(
    work: Callable[[Session], Awaitable[None]],
    url: str,
    key_file: Path | None = None,
    confirmations: int = 5,
) -> None:
    async def in_session() -> None:
        async with open_session(url, key_file, confirmations) as session:
            await work(session)

    trio.run(in_session)


@asynccontextmanager
async def open_session(
    url: str, key_file: Path | None, confirmations: int
) -> AsyncIterator[Session]:
    """A connection to the chain; with a key, also a sender whose journal lies next to the key."""
    async with httpx.AsyncClient() as client:
        rpc = HttpRpc(url, client)
        chain_id = parse_quantity(await rpc.call("eth_chainId"))
        if key_file is None:
            yield Session(rpc, chain_id, MemoryJournal(), None)
            return
        key, policy = load_evm_key(key_file), Policy(confirmations=confirmations)
        # A local chain begins anew with the same id; what was sent to the last one is not here.
        first_block = await rpc.call("eth_getBlockByNumber", "0x0", False)
        chain_name = f"{chain_id}-{first_block['hash'][2:10]}"
        with FileJournal(key_file.with_name(f"{key_file.name}.{chain_name}.journal")) as journal:
            sender = Sender(rpc, key, chain_id, journal=journal, policy=policy)
            await sender.resume()
            yield Session(rpc, chain_id, journal, sender)


def read_address(text: str) -> Address:
    try:
        return parse_address(text)
    except ValueError as error:
        raise BadConfigurationError(str(error)) from error


def read_tokens(text: str, decimals: int) -> int:
    try:
        return parse_tokens(text, decimals)
    except ValueError as error:
        raise BadConfigurationError(str(error)) from error


def say(name: str, value: object) -> None:
    sys.stdout.write(f"{name} {value}\n")


def main() -> None:
    """Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    try:
        app()
    except* CapaError as group:
        for error in leaves(group):
            sys.stderr.write(f"error: {error}\n")
        sys.exit(1)
    except* KeyboardInterrupt:
        sys.exit(130)


def leaves(error: BaseException) -> list[BaseException]:
    """The errors inside nested groups."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [error]
