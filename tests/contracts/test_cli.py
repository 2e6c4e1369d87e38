"""The command line on a real chain, and the files that it reads."""

import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import trio
from typer.testing import CliRunner, Result

from contracts.chain import Sender
from contracts.cli import app
from contracts.deploy import PUBLIC_TERMS, scaled_terms
from contracts.erc20 import Token
from contracts.errors import BadConfigurationError, NotConfirmedError, RevertedError
from contracts.files import create_evm_key, format_leaf, load_evm_key, load_leaf
from contracts.journal import FileJournal, MemoryJournal, Sent
from contracts.merkle_sum import Leaf, SumTree
from contracts.receipts import TransactionReceipt
from contracts.rpc import HttpRpc
from contracts.session import key_of
from contracts.settlement import SettlementCalls
from contracts.units import Address
from contracts.vouchers import Domain, EvmKey, SignedVoucher, Voucher
from tests.contracts.anvil import CHAIN_ID, Anvil, run_anvil
from tests.contracts.play import Party


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with run_anvil() as url:
        yield url


def on_chain(url: str, work: Callable[[Anvil], Awaitable[None]]) -> None:
    async def connected() -> None:
        async with httpx.AsyncClient() as client:
            await work(Anvil(HttpRpc(url, client)))

    trio.run(connected)


def funded_key(url: str, path: Path) -> EvmKey:
    """A new key at `path`, with ether for its gas."""
    call("new-key", path)
    key = load_evm_key(path)

    async def fund(chain: Anvil) -> None:
        await chain.sender(key)

    on_chain(url, fund)
    return key


def call(*words: object) -> dict[str, str]:
    return dict(line.split(" ", 1) for line in output(*words).splitlines())


def output(*words: object) -> str:
    result: Result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None:
        raise result.exception
    return result.stdout


@pytest.mark.anvil
@pytest.mark.slow
def test_deploy_deposit_status_and_claim(url: str, tmp_path: Path) -> None:
    path = tmp_path / "evm.key"
    key = funded_key(url, path)
    address, chain = key.address, ["--rpc", url]
    payer = [*chain, "--key-file", path, "--confirmations", 1]
    deployed = call("deploy", *payer, "--test-token", "--trial")
    contract = ["--contract", deployed["settlement"]]
    deposit = [*payer, *contract, "--operator", address, "--mint", "--amount"]
    assert call("deposit", *deposit, "12.5")["balance"] == "12.5"
    assert call("deposit", *deposit, "1")["balance"] == "13.5"
    shown = call("status", *chain, *contract, "--operator", address, "--client", address)
    assert (shown["channel.balance"], shown["operator.stake"]) == ("13500000", "0")
    as_json = output("status", *chain, *contract, "--operator", address, "--json")
    assert json.loads(as_json) == {
        name: value == "True" if value in ("True", "False") else value
        for name, value in shown.items()
        if not name.startswith("channel.")
    }
    call("status", *chain, *contract, "--chain-id", CHAIN_ID)
    for command in (["status", *chain, *contract], ["deploy", *payer, "--test-token"]):
        with pytest.raises(BadConfigurationError, match="leads to chain 31337"):
            call(*command, "--chain-id", 1)

    # The operator's side has no commands yet: the coordinator makes these calls.
    settlement = Address(deployed["settlement"])
    tree = SumTree(key.address, {key.address: 5})

    async def operate(local: Anvil) -> None:
        calls = SettlementCalls(settlement)
        party = Party(key, await local.sender(key))
        voucher = Voucher(key.address, key.address, 5)
        signature = key.sign(Domain(CHAIN_ID, settlement), voucher)
        token = Token(local.rpc, Address(deployed["token"]))
        for name, step in (
            ("mint", token.mint(key.address, 10**9)),
            ("approve", token.approve(settlement)),
            ("stake", calls.stake(10**9)),
            ("redeem", calls.redeem([SignedVoucher(voucher, signature, 5)])),
            ("post", calls.post_root(1, tree.root, tree.total, bytes(32))),
        ):
            await party.sender.send(name, step)
        await local.pass_time(600)
        await party.sender.send("finalize", calls.finalize(key.address))

    on_chain(url, operate)
    leaf = tmp_path / "leaf.json"
    leaf.write_text(format_leaf(tree.leaf(key.address)))
    claim = [*payer, *contract, "--operator", address, "--leaf", leaf]
    assert call("claim", *claim)["paid"] == "5"
    assert (
        call("status", *chain, *contract, "--operator", address, "--payee", address)["paid"] == "5"
    )

    told = CliRunner().invoke(app, [str(word) for word in ("deposit", *deposit, "1", "--json")])
    assert json.loads(told.stdout)["balance"] == "14.499995"
    assert told.stderr.count(": waiting until it is 1 blocks deep") == 2, "mint and deposit"

    leave = ["exit", *payer, *contract, "--operator", address]
    announced = int(call(*leave)["exit_at"])
    with pytest.raises(RevertedError, match="exit: too soon"):
        call(*leave)

    async def wait(local: Anvil) -> None:
        block = await local.call("eth_getBlockByNumber", "latest", False)
        await local.pass_time(announced - int(block["timestamp"], 16))

    on_chain(url, wait)
    assert call(*leave)["returned"] == "14.499995"


@pytest.mark.anvil
@pytest.mark.slow
def test_an_interrupted_deposit_goes_on_and_a_finished_one_is_done_again(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "evm.key"
    key = funded_key(url, path)
    payer = ["--rpc", url, "--key-file", path, "--confirmations", 1]
    contract = ["--contract", call("deploy", *payer, "--test-token", "--trial")["settlement"]]
    deposit = ["deposit", *payer, *contract, "--operator", key.address, "--mint", "--amount", "5"]

    confirm, write = Sender.confirm, FileJournal.write

    async def be_interrupted(sender: Sender, entry: Sent) -> TransactionReceipt:
        """The mint and the approval are confirmed; the deposit is mined, and then we are gone."""
        receipt = await confirm(sender, entry)
        if is_the_deposit(entry):
            raise NotConfirmedError("interrupted")
        return receipt

    def forget_the_end(journal: FileJournal, entry: Sent) -> None:
        """What `be_interrupted` saw was never written down."""
        if not (entry.done and is_the_deposit(entry)):
            write(journal, entry)

    with monkeypatch.context() as patch:
        patch.setattr(Sender, "confirm", be_interrupted)
        patch.setattr(FileJournal, "write", forget_the_end)
        with pytest.raises(NotConfirmedError):
            call(*deposit)
    assert call(*deposit)["balance"] == "5"
    assert call(*deposit)["balance"] == "10"


@pytest.mark.anvil
@pytest.mark.slow
def test_a_deposit_is_approved_again_when_another_one_used_its_allowance(
    url: str, tmp_path: Path
) -> None:
    path = tmp_path / "evm.key"
    key = funded_key(url, path)
    payer = ["--rpc", url, "--key-file", path, "--confirmations", 1]
    contract = ["--contract", call("deploy", *payer, "--test-token", "--trial")["settlement"]]
    deposit = ["deposit", *payer, *contract, "--operator", key.address, "--amount"]
    with pytest.raises(RevertedError, match="balance"):
        call(*deposit, "5")  # Approved, and then there was nothing to deposit.
    assert call(*deposit, "3", "--mint")["balance"] == "3"
    assert call(*deposit, "5", "--mint")["balance"] == "8"


def test_a_call_that_differs_does_not_go_on_with_another() -> None:
    """A leaf of the same earnings under the next root has another proof."""
    calls = SettlementCalls(Address("0x5FbDB2315678afecb367f032d93F642f64180aa3"))
    old, new = (calls.claim(calls.address, Leaf(calls.address, 5, i, ())) for i in (0, 1))
    journal = MemoryJournal()
    key = key_of(journal, "claim", old)
    journal.write(Sent(key, 0, old.to, old.data.hex(), 1, 1, 1, raw=("02",), hashes=("0xab",)))
    assert key_of(journal, "claim", old) == key
    assert key_of(journal, "claim", new) != key


def test_terms_are_worth_the_same_in_any_tokens_decimals() -> None:
    assert scaled_terms(PUBLIC_TERMS, 6) == PUBLIC_TERMS
    terms = scaled_terms(PUBLIC_TERMS, 18)
    assert (terms.stake_min, terms.bond) == (1_000 * 10**18, 50 * 10**18)
    for decimals in (0, 5, 19, 255):
        with pytest.raises(BadConfigurationError, match="decimals"):
            scaled_terms(PUBLIC_TERMS, decimals)


def is_the_deposit(entry: Sent) -> bool:
    """Its key ends with a number; those of the steps before it end with their names."""
    return entry.key.startswith("deposit-") and entry.key.endswith("-0")


def test_a_key_file_is_private_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "evm.key"
    key = create_evm_key(path)
    secret = key.secret().hex()
    assert load_evm_key(path).address == key.address
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(BadConfigurationError, match="never overwritten"):
        create_evm_key(path)
    path.chmod(0o644)
    with pytest.raises(BadConfigurationError, match="chmod 600"):
        load_evm_key(path)
    path.chmod(0o600)
    # The second lost its end, and is the valid key of somebody else.
    for text in ("not hex", secret[:-2], secret + "00", "00" * 32):
        path.write_text(text)
        with pytest.raises(BadConfigurationError, match="64 hex digits"):
            load_evm_key(path)
    path.write_text(f"0x{secret}\n")
    assert load_evm_key(path).address == key.address
    with pytest.raises(BadConfigurationError, match="new-key"):
        load_evm_key(tmp_path / "missing")
    with pytest.raises(BadConfigurationError, match="cannot write"):
        create_evm_key(path / "below a file")


def test_a_leaf_file_survives_the_round_trip(tmp_path: Path) -> None:
    key = create_evm_key(tmp_path / "key")
    other = Address("0x5FbDB2315678afecb367f032d93F642f64180aa3")
    leaf = SumTree(other, {key.address: 2**100, other: 7}).leaf(key.address)
    path = tmp_path / "leaf.json"
    path.write_text(format_leaf(leaf))
    assert load_leaf(path) == leaf
    for text in (
        "",
        "{}",
        "[]",
        format_leaf(leaf).replace(leaf.proof[0].hash.hex(), "00"),
        format_leaf(leaf).replace(f'"{2**100}"', "1.9"),
        format_leaf(leaf).replace(f'"{2**100}"', str(2**100)),
        format_leaf(leaf).replace(str(2**100), "-5"),
        format_leaf(leaf).replace(str(2**100), "1_0"),
        format_leaf(leaf).replace(str(2**100), str(2**128)),
        format_leaf(replace(leaf, index=-1)),
        format_leaf(replace(leaf, index=2)),
        "[" * 16_000,
        "x" * 20_000,
    ):
        path.write_text(text)
        with pytest.raises(BadConfigurationError, match="not a leaf"):
            load_leaf(path)


def test_wrong_words_are_explained(tmp_path: Path) -> None:
    key = tmp_path / "key"
    create_evm_key(key)
    with pytest.raises(BadConfigurationError, match="not both"):
        call("deploy", "--rpc", "http://127.0.0.1:1", "--key-file", key)
    with pytest.raises(BadConfigurationError, match="not the URL"):
        call("status", "--rpc", "ws://x", "--contract", "0x" + "11" * 20)
