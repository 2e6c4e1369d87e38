"""The client's leg: deposits, vouchers, exits."""

from contracts.keccak import keccak
from contracts.state import EscrowChannel
from contracts.units import address_bytes
from tests.contracts.market import NOBODY, TERMS, WEALTH, Market, Person, refused, with_charge

AMOUNT_MAX = 2**104 - 1


def test_a_deposit_is_the_clients_escrow_with_one_operator(
    market: Market, client: Person, operator: Person, other: Person
) -> None:
    events = market.deposit(client, operator, 70)
    assert [e.name for e in events] == ["Deposited"]
    assert events[0].fields == {
        "client": client.address,
        "operator": operator.address,
        "payer": client.address,
        "amount": 70,
        "balance": 70,
    }
    assert market.channel(client, operator) == EscrowChannel(70, 0, 0)
    assert market.channel(client, other) == EscrowChannel(0, 0, 0)
    assert market.balance(market.address) == 1_070


def test_anyone_may_pay_in_for_a_client(
    market: Market, client: Person, operator: Person, other: Person
) -> None:
    market.do(other, market.calls.deposit(client.address, operator.address, 5))
    market.do(other, market.calls.deposit(client.address, operator.address, 6))
    assert market.channel(client, operator).balance == 11


def test_deposits_are_refused_with_a_reason(
    market: Market, client: Person, operator: Person
) -> None:
    with refused("deposit: nothing"):
        market.deposit(client, operator, 0)
    with refused("deposit: no client"):
        market.do(client, market.calls.deposit(NOBODY, operator.address, 1))
    with refused("token: balance"):
        market.deposit(client, operator, 10**9 + 1)
    market.token_do(client, "approve", market.address, 3)
    with refused("token: allowance"):
        market.deposit(client, operator, 4)


def test_a_channel_holds_104_bits_and_no_more(
    market: Market, client: Person, operator: Person
) -> None:
    market.token_do(client, "mint", client.address, AMOUNT_MAX + 1)
    market.deposit(client, operator, AMOUNT_MAX)
    assert market.channel(client, operator).balance == AMOUNT_MAX
    with refused("deposit: too much"):
        market.deposit(client, operator, 1)


def test_a_channel_is_worn_out_after_104_bits_of_payments(market: Market, client: Person) -> None:
    most = 2**104 - 1
    operator, payer = market.person("rich operator", 2 * most), market.person("payer", most + 2)
    market.do(operator, market.calls.stake(2 * most))
    for amount, ceiling in ((most, most - 1), (1, most)):
        market.do(payer, market.calls.deposit(client.address, operator.address, amount))
        market.redeem(client, operator, ceiling)
    market.settle(operator, {operator: most})
    market.do(payer, market.calls.deposit(client.address, operator.address, 1))
    with refused("channel: worn out"):
        market.redeem(client, operator, most + 1)
    assert market.channel(client, operator) == EscrowChannel(balance=2, redeemed=most, exit_at=0)


def test_a_pause_stops_deposits_and_nothing_else(
    market: Market, client: Person, operator: Person
) -> None:
    market.deposit(client, operator, 50)
    market.do(market.owner, market.calls.set_paused(True))
    with refused("deposit: paused"):
        market.deposit(client, operator, 1)
    assert market.redeem(client, operator, 20) == 20
    market.do(client, market.calls.request_exit(operator.address))
    market.pass_time(TERMS.exit_delay_s)
    assert market.answer(client, market.calls.exit(operator.address)) == 30
    market.do(market.owner, market.calls.set_paused(False))
    market.deposit(client, operator, 1)


def permit(market: Market, signer: Person, amount: int, deadline: int) -> bytes:
    kind = b"Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)"
    domain = bytes(market.evm.ask(market.token_artifact, market.token, "DOMAIN_SEPARATOR"))
    nonce = market.evm.ask(market.token_artifact, market.token, "nonces", signer.address)
    parties = [bytes(12) + address_bytes(a) for a in (signer.address, market.address)]
    words = [number.to_bytes(32) for number in (amount, nonce, deadline)]
    fields = keccak(b"".join([keccak(kind), *parties, *words]))
    return signer.key.sign_digest(keccak(b"\x19\x01" + domain + fields))


def test_a_permit_replaces_the_approval(market: Market, client: Person, operator: Person) -> None:
    market.token_do(client, "approve", market.address, 0)
    deadline = market.evm.now_s
    signature = permit(market, client, 40, deadline)
    deposit = market.calls.deposit_with_permit(
        client.address, operator.address, 40, deadline=deadline, signature=signature
    )
    market.do(client, deposit)
    assert market.channel(client, operator).balance == 40
    with refused("token: allowance"):
        market.do(client, deposit)


def test_a_permit_that_someone_else_submitted_first_is_no_obstacle(
    market: Market, client: Person, operator: Person, other: Person
) -> None:
    market.token_do(client, "approve", market.address, 0)
    deadline = market.evm.now_s + 10
    sig = permit(market, client, 40, deadline)
    market.token_do(
        other,
        "permit",
        client.address,
        market.address,
        40,
        deadline,
        sig[64],
        sig[:32],
        sig[32:64],
    )
    deposit = market.calls.deposit_with_permit(
        client.address, operator.address, 40, deadline=deadline, signature=sig
    )
    market.do(client, deposit)
    assert market.channel(client, operator).balance == 40


def test_nobody_can_spend_anothers_permit(
    market: Market, client: Person, operator: Person, other: Person
) -> None:
    market.token_do(client, "approve", market.address, 0)
    market.token_do(other, "approve", market.address, 0)
    deadline = market.evm.now_s + 10
    signature = permit(market, client, 40, deadline)
    with refused("token: allowance"):
        market.do(
            other,
            market.calls.deposit_with_permit(
                other.address, other.address, 40, deadline=deadline, signature=signature
            ),
        )


def test_nobody_can_spend_anothers_permit_by_naming_its_owner(
    market: Market, client: Person, operator: Person, other: Person
) -> None:
    """A permit that is copied from the mempool does not move the owner's tokens for another."""
    market.token_do(client, "approve", market.address, 0)
    deadline = market.evm.now_s + 10
    signature = permit(market, client, 40, deadline)
    call = market.calls.deposit_with_permit(
        client.address, operator.address, 40, deadline=deadline, signature=signature
    )
    market.do(other, call)
    assert market.balance(client.address) == WEALTH
    assert market.balance(other.address) == WEALTH - 40
    nonces = market.evm.ask(market.token_artifact, market.token, "nonces", client.address)
    assert nonces == 0, "the permit is still the client's to use"


def test_vouchers_are_cumulative_and_a_second_redeem_pays_nothing(
    market: Market, client: Person, operator: Person
) -> None:
    market.deposit(client, operator, 100)
    assert market.redeem(client, operator, 30) == 30
    assert market.redeem(client, operator, 30) == 0
    assert market.redeem(client, operator, 20) == 0
    assert market.redeem(client, operator, 45) == 15
    assert market.channel(client, operator) == EscrowChannel(55, 45, 0)
    assert market.operator(operator).credit == 45


def test_the_operator_charges_at_most_the_ceiling(
    market: Market, client: Person, operator: Person
) -> None:
    market.deposit(client, operator, 100)
    item = market.voucher(client, operator, 30)
    assert market.answer(operator, market.calls.redeem([with_charge(item, 12)])) == 12
    with refused("redeem: over the ceiling"):
        market.do(operator, market.calls.redeem([with_charge(item, 31)]))
    events = market.do(operator, market.calls.redeem([with_charge(item, 30)]))
    assert events[0].name == "Redeemed"
    assert events[0].fields == {
        "operator": operator.address,
        "client": client.address,
        "amount": 18,
        "redeemed": 30,
        "balance": 70,
    }


def test_an_underfunded_voucher_pays_what_is_there_and_burns_nothing(
    market: Market, client: Person, operator: Person
) -> None:
    market.deposit(client, operator, 10)
    assert market.redeem(client, operator, 25) == 10
    assert market.redeem(client, operator, 25) == 0
    market.deposit(client, operator, 100)
    assert market.redeem(client, operator, 25) == 15


def test_a_batch_pays_each_voucher_once_even_if_it_is_listed_twice(
    market: Market, client: Person, operator: Person, other: Person
) -> None:
    market.deposit(client, operator, 100)
    market.deposit(other, operator, 100)
    first, second = market.voucher(client, operator, 30), market.voucher(other, operator, 40)
    assert market.answer(operator, market.calls.redeem([first, second, first])) == 70


def test_a_batch_takes_256_vouchers(market: Market, client: Person, operator: Person) -> None:
    market.deposit(client, operator, 300)
    batch = [market.voucher(client, operator, 256)] * 256
    assert market.answer(operator, market.calls.redeem(batch)) == 256
    with refused("no reason given"):
        market.do(operator, market.calls.redeem([*batch, batch[0]]))
    with refused("redeem: empty"):
        market.do(operator, market.calls.redeem([]))


def test_redeeming_stops_where_half_the_stake_no_longer_covers_it(
    market: Market, client: Person, operator: Person, payee: Person
) -> None:
    market.deposit(client, operator, 2_000)
    assert market.redeem(client, operator, 1_200) == 500
    with refused("redeem: post a root first"):
        market.redeem(client, operator, 1_200)
    market.settle(operator, {payee: 500})
    assert market.redeem(client, operator, 1_200) == 500
    market.do(operator, market.calls.stake(100))
    assert market.redeem(client, operator, 1_200) == 50


def test_the_room_is_shared_by_a_batch(
    market: Market, client: Person, operator: Person, other: Person
) -> None:
    market.deposit(client, operator, 400)
    market.deposit(other, operator, 400)
    batch = [market.voucher(client, operator, 400), market.voucher(other, operator, 400)]
    assert market.answer(operator, market.calls.redeem(batch)) == 500
    assert market.channel(other, operator).balance == 300


def test_without_a_stake_nothing_is_redeemed(market: Market, client: Person, other: Person) -> None:
    market.deposit(client, other, 10)
    with refused("redeem: post a root first"):
        market.redeem(client, other, 10)


def test_a_client_leaves_after_the_delay_and_not_before(
    market: Market, client: Person, operator: Person
) -> None:
    market.deposit(client, operator, 100)
    with refused("exit: not requested"):
        market.do(client, market.calls.exit(operator.address))
    events = market.do(client, market.calls.request_exit(operator.address))
    exit_at = market.evm.now_s + TERMS.exit_delay_s
    assert (events[0].name, events[0].fields["exit_at"]) == ("ExitRequested", exit_at)
    assert market.channel(client, operator).exit_at == exit_at
    with refused("exit: requested"):
        market.do(client, market.calls.request_exit(operator.address))
    market.pass_time(TERMS.exit_delay_s - 1)
    with refused("exit: too soon"):
        market.do(client, market.calls.exit(operator.address))
    market.pass_time(1)
    before = market.balance(client.address)
    events = market.do(client, market.calls.exit(operator.address))
    assert (events[0].name, events[0].fields["amount"]) == ("Exited", 100)
    assert market.balance(client.address) == before + 100
    assert market.channel(client, operator) == EscrowChannel(0, 0, 0)


def test_the_operator_redeems_while_a_client_waits_to_leave(
    market: Market, client: Person, operator: Person
) -> None:
    market.deposit(client, operator, 100)
    market.do(client, market.calls.request_exit(operator.address))
    assert market.redeem(client, operator, 100) == 100
    market.pass_time(TERMS.exit_delay_s + 1)
    assert market.answer(client, market.calls.exit(operator.address)) == 0
    market.deposit(client, operator, 10)


def test_a_leaving_channel_is_not_refilled(
    market: Market, client: Person, operator: Person
) -> None:
    market.deposit(client, operator, 1)
    market.do(client, market.calls.request_exit(operator.address))
    with refused("deposit: exiting"):
        market.deposit(client, operator, 1)


def test_an_empty_channel_has_no_exit(market: Market, client: Person, operator: Person) -> None:
    with refused("exit: nothing"):
        market.do(client, market.calls.request_exit(operator.address))


def test_an_old_voucher_is_not_good_again_after_an_exit(
    market: Market, client: Person, operator: Person
) -> None:
    market.deposit(client, operator, 100)
    market.redeem(client, operator, 60)
    market.do(client, market.calls.request_exit(operator.address))
    market.pass_time(TERMS.exit_delay_s)
    market.do(client, market.calls.exit(operator.address))
    market.deposit(client, operator, 100)
    assert market.redeem(client, operator, 60) == 0
    assert market.channel(client, operator) == EscrowChannel(100, 60, 0)
