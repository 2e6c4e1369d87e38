"""`python -m contracts`: the contract for people. Data goes to stdout: `name value` lines, or JSON.

Commands only read options and print. Secrets are read from files, never from the command line.
"""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from contracts.errors import BadConfigurationError
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
    from contracts.files import create_evm_key
    from contracts.session import Report

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

    from contracts import commands
    from contracts.session import ChainAccess, run

    work = partial(commands.deploy, token=token, any_token=any_token, trial=trial)
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
    from contracts import commands
    from contracts.session import ChainAccess, run

    work = partial(
        commands.deposit,
        contract=contract,
        operator=operator,
        amount=amount,
        client=client,
        mint=mint,
    )
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
    from contracts import commands
    from contracts.session import ChainAccess, run

    work = partial(commands.leave, contract=contract, operator=operator)
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
    from contracts import commands
    from contracts.session import ChainAccess, run

    work = partial(commands.show, contract=contract, operator=operator, client=client, payee=payee)
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
    from contracts import commands
    from contracts.session import ChainAccess, run

    work = partial(commands.claim, contract=contract, operator=operator, leaf=leaf)
    run(work, ChainAccess(rpc, chain_id, key_file, confirmations, as_json))


def main() -> None:
    """Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    run_command(app, complain)
