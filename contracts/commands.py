"""What the commands of `cli.py` do on a chain. Each reports facts by name."""

from dataclasses import asdict
from pathlib import Path

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
from contracts.files import load_leaf
from contracts.journal import continued_key
from contracts.session import Session, key_of, short_hash
from contracts.settlement import SettlementCalls, SettlementReader, decode_events
from contracts.units import Address, format_tokens, parse_address, parse_tokens


async def deploy(session: Session, *, token: str | None, any_token: bool, trial: bool) -> None:
    """Put a settlement contract on the chain, for `token` or for a new test token."""
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


async def deposit(
    session: Session, *, contract: str, operator: str, amount: str, client: str | None, mint: bool
) -> None:
    """Put tokens into escrow with an operator."""
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


async def leave(session: Session, *, contract: str, operator: str) -> None:
    """Announce to leave an operator; after the delay, take the escrow back."""
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


async def show(
    session: Session, *, contract: str, operator: str | None, client: str | None, payee: str | None
) -> None:
    """What the contract holds for whom."""
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


async def claim(session: Session, *, contract: str, operator: str, leaf: Path) -> None:
    """Have a payee paid what the active root holds for it."""
    sender, settlement, item = session.writer(), read_address(contract), load_leaf(leaf)
    call = SettlementCalls(settlement).claim(read_address(operator), item)
    receipt = await sender.send(key_of(session.journal, "claim", call), call)
    session.report.say("transaction", receipt.transaction)
    events = decode_events(receipt.logs, settlement)
    session.report.say("paid", sum(event.fields["amount"] for event in events))


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
