"""`python -m contracts`: the contract for people. Data goes to stdout: `name value` lines, or JSON.

Commands only read options and print. Secrets are read from files, never from the command line.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from contracts.abi import load_artifact
from contracts.deploy import (
    PUBLIC_TERMS,
    TRIAL_TERMS,
    check_token,
    deploy_settlement,
    deploy_test_token,
    scaled_terms,
)
from contracts.erc20 import Token
from contracts.errors import BadConfigurationError
from contracts.files import create_evm_key, load_leaf
from contracts.journal import continued_key
from contracts.session import ChainAccess, Report, Session, key_of, run, short_hash
from contracts.settlement import SettlementCalls, SettlementReader, decode_events
from contracts.units import Address, format_tokens, parse_address, parse_tokens
from protocol.programs.commands import run_command
from protocol.programs.output import complain

app = typer.Typer(
    help=(
        "Deploy the settlement contract, and use it. It is a prototype for test chains: an "
        "operator that withholds its tree can cheat nodes (docs/settlement.md)."
    ),
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


ChainId = Annotated[
    int | None,
    typer.Option(envvar="CAPACLOUD_CHAIN_ID", help="Refuse to go on if --rpc is another chain."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


@app.command("new-key")
def new_key(
    path: Annotated[Path, typer.Argument(help="Where to write it.")], as_json: Json = False
) -> None:
    """Create a key for transactions, and print its address."""
    report = Report(as_json)
    report.say("address", create_evm_key(path).address)
    report.end()


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
    chain_id: ChainId = None,
    as_json: Json = False,
) -> None:
    """Put a settlement contract on a test chain. The key's account can pause deposits, no more.

    An operator that withholds its tree can cheat nodes: let it hold no money of value.
    """
    if (token is None) == (not test_token):
        raise BadConfigurationError("give --token ADDRESS, or --test-token, and not both")

    async def work(session: Session) -> None:
        sender = session.writer()
        # Another version of this program has other code to deploy, and does not go on with this.
        code = b"".join(load_artifact(name).bytecode for name in ("TestToken", "Settlement"))
        key = continued_key(session.journal, f"deploy-{token}-{trial}-{short_hash(code)}")
        if token is None:
            settled_in = await deploy_test_token(sender, key=f"{key}-token")
        else:
            settled_in = read_address(token)
            if not any_token:
                check_token(session.chain_id, settled_in)
        decimals = await Token(session.rpc, settled_in).decimals()
        terms = scaled_terms(TRIAL_TERMS if trial else PUBLIC_TERMS, decimals)
        address = await deploy_settlement(sender, settled_in, terms, key=key)
        session.report.say("chain", session.chain_id)
        session.report.say("token", settled_in)
        session.report.say("settlement", address)

    run(work, ChainAccess(rpc, chain_id, key_file, confirmations, as_json))


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
    chain_id: ChainId = None,
    as_json: Json = False,
) -> None:
    """Put tokens into escrow with an operator."""

    async def work(session: Session) -> None:
        sender, settlement = session.writer(), read_address(contract)
        calls, reader = SettlementCalls(settlement), SettlementReader(session.rpc, settlement)
        token = Token(session.rpc, await reader.token())
        units = read_tokens(amount, await token.decimals())
        owner, who = read_address(client) if client else sender.address, read_address(operator)
        call = calls.deposit(owner, who, units)
        key = key_of(session.journal, "deposit", call)
        if mint:
            await sender.send(f"{key}-mint", token.mint(sender.address, units))
        if await token.allowance(sender.address, settlement) < units:
            # On its own: another deposit may have used up the allowance that was made for this one.
            approval = token.approve(settlement, units)
            await sender.send(key_of(session.journal, "approve", approval), approval)
        receipt = await sender.send(key, call)
        session.report.say("transaction", receipt.transaction)
        channel = await reader.channel(owner, who)
        session.report.say("balance", format_tokens(channel.balance, await token.decimals()))

    run(work, ChainAccess(rpc, chain_id, key_file, confirmations, as_json))


@app.command("exit")
def exit_command(
    rpc: RpcUrl,
    key_file: KeyFile,
    contract: Contract,
    operator: OperatorOption,
    confirmations: Confirmations = 5,
    chain_id: ChainId = None,
    as_json: Json = False,
) -> None:
    """Leave an operator: the first time announces it, after the delay the same command takes the
    escrow back."""

    async def work(session: Session) -> None:
        sender, settlement = session.writer(), read_address(contract)
        calls, reader = SettlementCalls(settlement), SettlementReader(session.rpc, settlement)
        who, token = read_address(operator), Token(session.rpc, await reader.token())
        channel = await reader.channel(sender.address, who)
        call = calls.exit(who) if channel.exit_at else calls.request_exit(who)
        name = "exit" if channel.exit_at else "request-exit"
        receipt = await sender.send(key_of(session.journal, name, call), call)
        session.report.say("transaction", receipt.transaction)
        if channel.exit_at:
            (event,) = decode_events(receipt.logs, settlement)
            paid = format_tokens(event.fields["amount"], await token.decimals())
            session.report.say("returned", paid)
        else:
            announced = await reader.channel(sender.address, who)
            session.report.say("exit_at", announced.exit_at)

    run(work, ChainAccess(rpc, chain_id, key_file, confirmations, as_json))


@app.command()
def status(
    rpc: RpcUrl,
    contract: Contract,
    operator: Annotated[str | None, typer.Option(help="Show this operator.")] = None,
    client: Annotated[str | None, typer.Option(help="Show this client's escrow with it.")] = None,
    payee: Annotated[str | None, typer.Option(help="Show what it paid to this payee.")] = None,
    chain_id: ChainId = None,
    as_json: Json = False,
) -> None:
    """What the contract holds for whom. Amounts are token units, times are Unix seconds."""

    async def work(session: Session) -> None:
        reader, say = SettlementReader(session.rpc, read_address(contract)), session.report.say
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

    run(work, ChainAccess(rpc, chain_id, as_json=as_json))


@app.command()
def claim(
    rpc: RpcUrl,
    key_file: KeyFile,
    contract: Contract,
    operator: OperatorOption,
    leaf: Annotated[Path, typer.Option(help="JSON file with the payee's leaf and proof.")],
    confirmations: Confirmations = 5,
    chain_id: ChainId = None,
    as_json: Json = False,
) -> None:
    """Have a payee paid what the active root holds for it. Anyone may pay for the transaction."""

    async def work(session: Session) -> None:
        sender, settlement, item = session.writer(), read_address(contract), load_leaf(leaf)
        call = SettlementCalls(settlement).claim(read_address(operator), item)
        receipt = await sender.send(key_of(session.journal, "claim", call), call)
        session.report.say("transaction", receipt.transaction)
        events = decode_events(receipt.logs, settlement)
        session.report.say("paid", sum(event.fields["amount"] for event in events))

    run(work, ChainAccess(rpc, chain_id, key_file, confirmations, as_json))


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


def main() -> None:
    """Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    run_command(app, complain)
