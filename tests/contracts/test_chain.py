"""Each transaction happens once, on a chain that delays, forgets, reorganises and loses answers."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import outcome
import pytest
import trio
from eth_abi.abi import encode
from trio.testing import MockClock

from contracts.chain import Call, Policy, Sender
from contracts.errors import (
    BadConfigurationError,
    NonceTakenError,
    NotConfirmedError,
    RevertedError,
    RpcError,
)
from contracts.fake_chain import GWEI, FakeChain
from contracts.journal import FileJournal, Journal, MemoryJournal, Sent, continued_key
from contracts.receipts import TransactionReceipt
from contracts.units import parse_address
from tests.contracts.keys import make_key

POLICY = Policy(confirmations=3, poll_s=1, bump_after_s=10, timeout_s=120)
TO = parse_address("0x" + "11" * 20)
CALL = Call(TO, b"\x01\x02")
KEY = make_key("sender")
ENTRY = Sent("pay-0", 0, TO, "0102", 100_000, GWEI, 3 * GWEI, raw=("02",), hashes=("0xab",))


@pytest.fixture
def chain() -> FakeChain:
    return FakeChain()


def sender(chain: FakeChain, journal: Journal | None = None, policy: Policy = POLICY) -> Sender:
    return Sender(chain, KEY, chain.chain_id, journal=journal or MemoryJournal(), policy=policy)


async def while_mining(
    chain: FakeChain, work: Callable[[], Awaitable[TransactionReceipt]], every_s: float = 2
) -> TransactionReceipt:
    """Do the work while blocks come at their own pace."""
    async with trio.open_nursery() as nursery:

        async def mine() -> None:
            while True:
                await trio.sleep(every_s)
                chain.mine()

        nursery.start_soon(mine)
        # Kept until the miner has stopped, so that an error arrives as itself and not in a group.
        result = await outcome.acapture(work)
        nursery.cancel_scope.cancel()
    receipt: TransactionReceipt = result.unwrap()
    return receipt


async def test_a_transaction_counts_when_it_is_deep_enough(
    chain: FakeChain, autojump_clock: MockClock
) -> None:
    receipt = await while_mining(chain, lambda: sender(chain).send("pay", CALL))
    assert len(chain.blocks) - receipt.block >= POLICY.confirmations
    assert [item.data for item in chain.mined()] == [CALL.data]


async def test_the_same_key_is_the_same_transaction(
    chain: FakeChain, autojump_clock: MockClock
) -> None:
    ours = sender(chain)
    first = await while_mining(chain, lambda: ours.send("pay", CALL))
    again = await while_mining(chain, lambda: ours.send("pay", CALL))
    assert again == first
    assert len(chain.mined()) == 1
    with pytest.raises(BadConfigurationError, match="another transaction"):
        await ours.send("pay", Call(TO, b"other"))


async def test_parallel_sends_take_nonces_in_turn(
    chain: FakeChain, autojump_clock: MockClock
) -> None:
    ours = sender(chain)
    chain.delay_s = 0.1

    async def all_of_them() -> TransactionReceipt:
        receipts: list[TransactionReceipt] = []

        async def one(number: int) -> None:
            receipts.append(await ours.send(f"pay-{number}", Call(TO, bytes([number]))))

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(one, number)
        return receipts[0]

    await while_mining(chain, all_of_them)
    assert sorted(item.nonce for item in chain.mined()) == list(range(8))


@pytest.mark.parametrize("fault", ["lost", "mute", "forget"])
async def test_a_lost_broadcast_is_sent_again_and_not_twice(
    chain: FakeChain, autojump_clock: MockClock, fault: str
) -> None:
    chain.fail("eth_sendRawTransaction", fault, fault)
    await while_mining(chain, lambda: sender(chain).send("pay", CALL))
    assert len(chain.mined()) == 1


async def test_lost_answers_while_waiting_are_waited_out(
    chain: FakeChain, autojump_clock: MockClock
) -> None:
    chain.fail("eth_getTransactionReceipt", *["lost"] * 5)
    chain.fail("eth_blockNumber", "lost")
    await while_mining(chain, lambda: sender(chain).send("pay", CALL))
    assert len(chain.mined()) == 1


@pytest.mark.parametrize("keep", [True, False])
async def test_a_reorganisation_takes_it_back_and_it_happens_again(
    chain: FakeChain, autojump_clock: MockClock, keep: bool
) -> None:
    async def work() -> TransactionReceipt:
        async with trio.open_nursery() as nursery:

            async def disturb() -> None:
                # The first block comes after two seconds; nothing is deep enough before the sixth.
                await trio.sleep(3)
                assert chain.mined()
                chain.reorganise(1, keep=keep)

            nursery.start_soon(disturb)
            return await sender(chain).send("pay", CALL)
        raise AssertionError

    receipt = await while_mining(chain, work)
    assert len(chain.mined()) == 1
    assert chain.blocks[receipt.block].hash == receipt.block_hash


async def test_a_fee_that_is_too_low_is_raised_until_it_is_enough(
    chain: FakeChain, autojump_clock: MockClock
) -> None:
    async def work() -> TransactionReceipt:
        async with trio.open_nursery() as nursery:

            async def rise() -> None:
                await trio.sleep(1)
                chain.base_fee_wei = 3 * GWEI

            nursery.start_soon(rise)
            return await sender(chain).send("pay", CALL)
        raise AssertionError

    await while_mining(chain, work, every_s=5)
    assert len(chain.mined()) == 1
    assert chain.mined()[0].fee_wei >= 3 * GWEI


async def test_no_more_is_paid_than_the_policy_allows(
    chain: FakeChain, autojump_clock: MockClock
) -> None:
    cheap = replace(POLICY, fee_wei_max=4 * GWEI)
    ours = sender(chain, policy=cheap)
    with trio.move_on_after(1):
        await ours.send("pay", CALL)
    chain.base_fee_wei = 10 * GWEI
    with pytest.raises(NotConfirmedError, match="waits"):
        await while_mining(chain, lambda: ours.send("pay", CALL))
    with pytest.raises(NotConfirmedError, match="over the limit"):
        await ours.send("second", CALL)
    assert all(item.fee_wei <= 4 * GWEI for item in chain.pool.values())


async def test_after_a_crash_the_same_bytes_are_sent_again(
    chain: FakeChain, autojump_clock: MockClock, tmp_path: Path
) -> None:
    path = tmp_path / "journal"
    chain.fail("eth_sendRawTransaction", "lost")
    with FileJournal(path) as journal, trio.move_on_after(0.5):
        await sender(chain, journal).send("pay", CALL)
    assert not chain.pool
    with FileJournal(path) as journal:
        revived = sender(chain, journal)
        await revived.resume()
        assert len(chain.pool) == 1
        other = Call(TO, b"later")
        await while_mining(chain, lambda: revived.send("second", other))
        await while_mining(chain, lambda: revived.send("pay", CALL))
    assert [(item.nonce, item.data) for item in chain.mined()] == [(0, CALL.data), (1, b"later")]


def test_a_line_that_a_crash_cut_off_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with FileJournal(path) as journal:
        journal.write(ENTRY)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:40])
    with FileJournal(path) as revived:
        assert path.read_bytes() == whole
        assert revived.next_nonce() == 1
        assert revived.find("pay-0") == ENTRY


def test_a_journal_has_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with FileJournal(path), pytest.raises(BadConfigurationError, match="is in use"):
        FileJournal(path)
    with FileJournal(path):
        pass


@pytest.mark.parametrize("line", [b"{}", b"[]", b"\xff", b'{"raw": 5, "hashes": []}'])
def test_a_damaged_journal_is_not_taken_for_an_empty_one(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "journal"
    with FileJournal(path) as journal:
        journal.write(ENTRY)
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(line + b"\n" + path.read_bytes())
    with pytest.raises(BadConfigurationError, match="is damaged"):
        FileJournal(path)
    with pytest.raises(BadConfigurationError, match="cannot open"):
        FileJournal(path / "below a file")


def test_a_purpose_goes_on_with_what_is_unfinished_and_begins_anew_after_it() -> None:
    journal = MemoryJournal()
    assert continued_key(journal, "pay") == "pay-0"
    journal.write(ENTRY)
    assert continued_key(journal, "pay") == "pay-0"
    journal.write(ENTRY.finished())
    assert continued_key(journal, "pay") == "pay-1"
    assert continued_key(journal, "other") == "other-0"


async def test_two_writers_of_one_key_are_noticed(
    chain: FakeChain, autojump_clock: MockClock
) -> None:
    theirs = sender(chain)
    await while_mining(chain, lambda: theirs.send("theirs", CALL))
    chain.base_fee_wei = 100 * GWEI
    entry = MemoryJournal()
    stolen = sender(FakeChain(), entry)
    with trio.move_on_after(0.5):
        await stolen.send("ours", Call(TO, b"ours"))
    late = sender(chain, entry)
    with pytest.raises(NonceTakenError):
        await while_mining(chain, lambda: late.send("ours", Call(TO, b"ours")))
    assert not entry.open_entries(), "what can never happen is not sent again"


def refusal(reason: str) -> bytes:
    """How a contract says `Error(string)`."""
    return bytes.fromhex("08c379a0") + encode(["string"], [reason])


async def test_a_refusal_says_the_contracts_reason_and_sends_nothing(
    chain: FakeChain, autojump_clock: MockClock
) -> None:
    def refuse(data: bytes) -> bytes:
        raise RpcError("execution reverted", code=3, data=refusal("redeem: over the ceiling"))

    chain.contracts[TO] = refuse
    with pytest.raises(RevertedError) as caught:
        await sender(chain).send("pay", CALL)
    assert caught.value.reason == "redeem: over the ceiling"
    assert not chain.pool


async def test_a_refusal_after_mining_says_the_reason_too(
    chain: FakeChain, autojump_clock: MockClock
) -> None:
    """The estimate went well, but another transaction came first."""
    is_open = True

    def first_come(data: bytes) -> bytes:
        if not is_open:
            raise RpcError("execution reverted", code=3, data=refusal("exit: not requested"))
        return b""

    chain.contracts[TO] = first_come
    journal = MemoryJournal()
    ours = sender(chain, journal)
    with trio.move_on_after(0.5):
        await ours.send("pay", CALL)
    is_open = False
    with pytest.raises(RevertedError) as caught:
        await while_mining(chain, lambda: ours.send("pay", CALL))
    assert caught.value.reason == "exit: not requested"
    assert chain.mined()[0].hash in str(caught.value)
    assert not journal.open_entries()


async def test_what_is_never_mined_is_given_up_and_can_go_on_later(
    chain: FakeChain, autojump_clock: MockClock
) -> None:
    ours = sender(chain)
    with pytest.raises(NotConfirmedError):
        await ours.send("pay", CALL)
    await while_mining(chain, lambda: ours.send("pay", CALL))
    assert len(chain.mined()) == 1


async def test_what_a_crash_left_first_in_line_is_paid_more_for(
    chain: FakeChain, autojump_clock: MockClock
) -> None:
    """Nobody sends it again, and nothing after it can be mined however much that pays."""
    journal = MemoryJournal()
    with trio.move_on_after(0.5):
        await sender(chain, journal).send("left over", CALL)
    chain.base_fee_wei = 5 * GWEI
    revived = sender(chain, journal, replace(POLICY, timeout_s=300))
    await revived.resume()
    later = Call(TO, b"later")
    await while_mining(chain, lambda: revived.send("later", later))
    assert [item.data for item in chain.mined()] == [CALL.data, b"later"]
    left_over, sent = journal.find("left over"), journal.find("later")
    assert left_over is not None
    assert len(left_over.raw) > 1
    assert sent is not None
    assert len(sent.raw) == 1


async def test_only_the_first_of_several_is_paid_more_for(
    chain: FakeChain, autojump_clock: MockClock
) -> None:
    journal = MemoryJournal()
    ours = sender(chain, journal, replace(POLICY, timeout_s=300))

    async def all_of_them() -> TransactionReceipt:
        receipts: list[TransactionReceipt] = []

        async def one(number: int) -> None:
            receipts.append(await ours.send(f"pay-{number}", Call(TO, bytes([number]))))

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(one, number)
            await trio.sleep(1)
            chain.base_fee_wei = 3 * GWEI
            await trio.sleep(2 * POLICY.bump_after_s)
            entries = [journal.find(f"pay-{number}") for number in range(3)]
            by_nonce = sorted((e for e in entries if e), key=lambda entry: entry.nonce)
            assert [len(entry.raw) > 1 for entry in by_nonce] == [True, False, False]
        return receipts[0]

    await while_mining(chain, all_of_them)
    assert len(chain.mined()) == 3


async def test_what_was_mined_is_not_sent_again_after_a_crash(
    chain: FakeChain, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each make of node has its own words for a nonce that is gone: they need not be known."""
    journal = MemoryJournal()
    with trio.move_on_after(0.5):
        await sender(chain, journal).send("pay", CALL)
    chain.mine()

    def refuse(raw: str) -> str:
        raise RpcError("OldNonce, current nonce: 1", code=-32010)

    monkeypatch.setattr(chain, "_eth_sendRawTransaction", refuse)
    revived = sender(chain, journal)
    await revived.resume()
    await while_mining(chain, lambda: revived.send("pay", CALL))
    assert len(chain.mined()) == 1


async def test_a_node_that_lies_about_gas_gets_nothing_signed(
    chain: FakeChain, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain, "_eth_estimateGas", lambda call, block: hex(2**24 + 1))
    journal = MemoryJournal()
    with pytest.raises(RevertedError, match="no transaction may"):
        await sender(chain, journal).send("pay", CALL)
    assert journal.find("pay") is None
    monkeypatch.setattr(chain, "_eth_estimateGas", lambda call, block: hex(2**24))
    await while_mining(chain, lambda: sender(chain, journal).send("pay", CALL))
    entry = journal.find("pay")
    assert entry is not None
    assert entry.gas == 2**24


async def test_a_nonce_that_leaves_a_gap_is_explained(
    chain: FakeChain, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = sender(chain)
    with monkeypatch.context() as patch, trio.move_on_after(0.5):
        patch.setattr(chain, "_eth_getTransactionCount", lambda account, block: hex(1_000))
        await ours.send("pay", CALL)
    with pytest.raises(NotConfirmedError, match="nonce 1000, and nonce 0 comes first"):
        await while_mining(chain, lambda: ours.send("pay", CALL))


@pytest.mark.parametrize("method", ["eth_getTransactionReceipt", "eth_getBlockByNumber"])
@pytest.mark.parametrize("answer", [{}, [], "0x1", 7])
async def test_nonsense_while_waiting_is_waited_out(
    chain: FakeChain,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    answer: object,
) -> None:
    ours = sender(chain)
    with trio.move_on_after(0.5):
        await ours.send("pay", CALL)
    with monkeypatch.context() as patch:
        patch.setattr(chain, f"_{method}", lambda *_: answer)
        with pytest.raises(NotConfirmedError):
            await while_mining(chain, lambda: ours.send("pay", CALL))
    await while_mining(chain, lambda: ours.send("pay", CALL))
    assert len(chain.mined()) == 1


async def test_a_node_that_does_not_answer_is_waited_for_so_long_and_no_longer(
    chain: FakeChain, autojump_clock: MockClock
) -> None:
    chain.delay_s = 1_000
    started_s = trio.current_time()
    with pytest.raises(NotConfirmedError):
        await sender(chain).send("pay", CALL)
    assert trio.current_time() - started_s <= POLICY.timeout_s + chain.delay_s
