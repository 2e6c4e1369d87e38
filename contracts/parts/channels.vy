# pragma version 0.4.3
# pragma nonreentrancy on
"""
@title Channels
@license Apache-2.0
@notice The client's leg: escrow for one operator, vouchers with a cumulative ceiling, and the way out.
@dev A channel is one storage word, because redeeming a thousand of them is what an epoch costs.
"""

from contracts.parts import books
from contracts.parts import guard
from contracts.parts import limits
from contracts.parts import signatures
from contracts.parts import vault

uses: books
uses: guard
uses: limits
uses: vault

event Deposited:
    client: indexed(address)
    operator: indexed(address)
    payer: indexed(address)
    amount: uint256
    balance: uint256

event Redeemed:
    operator: indexed(address)
    client: indexed(address)
    amount: uint256
    redeemed: uint256
    balance: uint256

event ExitRequested:
    client: indexed(address)
    operator: indexed(address)
    exit_at: uint256

event Exited:
    client: indexed(address)
    operator: indexed(address)
    amount: uint256

struct Voucher:
    client: address
    # Signed by the client: the most that it pays to the operator, over all time.
    ceiling: uint256
    # Claimed by the operator: what it charges, over all time.
    charged: uint256
    # Memory is paid for 256 of the longest, so longer ones of wallets come one by one.
    signature: Bytes[signatures.SIGNATURE_BYTES]

struct Channel:
    balance: uint256
    redeemed: uint256
    # When the client may leave; 0 while it stays.
    exit_at: uint256

PERMIT_SELECTOR: constant(bytes4) = method_id(
    "permit(address,address,uint256,uint256,uint8,bytes32,bytes32)", output_type=bytes4
)

BATCH_MAX: constant(uint256) = 256

# 104 bits of money are 2 * 10^13 whole tokens of 18 decimals; 48 bits of seconds outlive the sun.
AMOUNT_MAX: constant(uint256) = 2**104 - 1

# exit_at (48 bits), redeemed (104), balance (104).
packed: HashMap[address, HashMap[address, uint256]]


@external
@view
def channel(client: address, operator: address) -> Channel:
    """
    @notice A client's escrow with an operator.
    @param client Whose money it is.
    @param operator Who may redeem from it.
    @return Its balance, what was redeemed over all time, and when the client may leave.
    """
    return self._unpack(self.packed[client][operator])


@external
def deposit(client: address, operator: address, amount: uint256):
    """
    @notice Add the caller's tokens to the escrow of `client` with `operator`.
    @param client Whose money it becomes.
    @param operator Who may redeem from it.
    @param amount Token units.
    """
    self._deposit(client, operator, amount)


@external
def deposit_with_permit(
    client: address,
    operator: address,
    amount: uint256,
    deadline: uint256,
    v: uint8,
    r: bytes32,
    s: bytes32,
):
    """
    @notice Deposit without an approval before it: the caller signs an EIP-2612 permit instead.
    @dev The permit names no channel, so only its signer may use it here. If someone else submitted
         it first, its allowance stands, and the deposit goes through all the same.
    @param client Whose money it becomes.
    @param operator Who may redeem from it.
    @param amount Token units, also of the permit.
    @param deadline Until when the permit is good.
    @param v Signature part.
    @param r Signature part.
    @param s Signature part.
    """
    # Whether it worked does not matter: without an allowance the transfer below fails.
    used: bool = raw_call(
        vault.TOKEN.address,
        abi_encode(
            msg.sender, self, amount, deadline, v, r, s, method_id=PERMIT_SELECTOR
        ),
        revert_on_failure=False,
    )
    self._deposit(client, operator, amount)


@external
def redeem(vouchers: DynArray[Voucher, BATCH_MAX]) -> uint256:
    """
    @notice Collect from clients of the calling operator. A channel that holds less pays what is
            there, and the rest of its voucher stays good; a voucher that was paid pays nothing.
    @param vouchers Signed ceilings, each with the operator's charge.
    @return The amount that was collected.
    """
    assert len(vouchers) > 0, "redeem: empty"
    room: uint256 = self._room_to_redeem()
    domain: bytes32 = signatures._domain()
    collected: uint256 = 0
    for voucher: Voucher in vouchers:
        assert voucher.charged <= voucher.ceiling, "redeem: over the ceiling"
        digest: bytes32 = signatures._voucher_digest(
            domain, voucher.client, msg.sender, voucher.ceiling
        )
        assert signatures._is_signed_by(
            voucher.client, digest, voucher.signature
        ), "redeem: not signed"
        collected += self._charge(voucher.client, voucher.charged, room - collected)
    books.operators[msg.sender].credit += collected
    return collected


@external
def redeem_from_wallet(
    client: address,
    ceiling: uint256,
    charged: uint256,
    signature: Bytes[signatures.WALLET_SIGNATURE_MAX],
) -> uint256:
    """
    @notice Redeem one voucher whose signature is longer than an ordinary account's, such as that of a
            contract wallet with several owners. It stands alone, so it cannot spoil a batch either.
    @param client The contract wallet.
    @param ceiling What it signed: the most that it pays to the calling operator, over all time.
    @param charged What the operator charges, over all time.
    @param signature Whatever the wallet's own code takes.
    @return The amount that was collected.
    """
    room: uint256 = self._room_to_redeem()
    assert charged <= ceiling, "redeem: over the ceiling"
    digest: bytes32 = signatures._voucher_digest(
        signatures._domain(), client, msg.sender, ceiling
    )
    assert signatures._is_signed_by(client, digest, signature), "redeem: not signed"
    collected: uint256 = self._charge(client, charged, room)
    books.operators[msg.sender].credit += collected
    return collected


@external
def request_exit(operator: address):
    """
    @notice Announce that the caller takes its escrow back. The operator redeems what it is owed
            before the delay is over; deposits are refused until then.
    @param operator The other side of the channel.
    """
    state: Channel = self._unpack(self.packed[msg.sender][operator])
    assert state.exit_at == 0, "exit: requested"
    assert state.balance > 0, "exit: nothing"
    state.exit_at = block.timestamp + limits.EXIT_DELAY_S
    self.packed[msg.sender][operator] = self._pack(state)
    log ExitRequested(client=msg.sender, operator=operator, exit_at=state.exit_at)


@external
def exit(operator: address) -> uint256:
    """
    @notice Take the caller's escrow back. What was redeemed stays on record, so an old voucher is
            not good a second time.
    @param operator The other side of the channel.
    @return The amount that was sent.
    """
    state: Channel = self._unpack(self.packed[msg.sender][operator])
    assert state.exit_at > 0, "exit: not requested"
    assert block.timestamp >= state.exit_at, "exit: too soon"
    self.packed[msg.sender][operator] = self._pack(
        Channel(balance=0, redeemed=state.redeemed, exit_at=0)
    )
    log Exited(client=msg.sender, operator=operator, amount=state.balance)
    if state.balance > 0:
        vault._send(msg.sender, state.balance)
    return state.balance


@internal
def _deposit(client: address, operator: address, amount: uint256):
    assert not guard.paused, "deposit: paused"
    assert amount > 0, "deposit: nothing"
    assert client != empty(address), "deposit: no client"
    state: Channel = self._unpack(self.packed[client][operator])
    # A channel that could be refilled after its delay could also be emptied without one.
    assert state.exit_at == 0, "deposit: exiting"
    assert amount <= AMOUNT_MAX - state.balance, "deposit: too much"
    state.balance += amount
    self.packed[client][operator] = self._pack(state)
    log Deposited(
        client=client,
        operator=operator,
        payer=msg.sender,
        amount=amount,
        balance=state.balance,
    )
    vault._pull(amount)


@internal
@view
def _room_to_redeem() -> uint256:
    operator: books.Operator = books.operators[msg.sender]
    assert operator.stale_at == 0, "redeem: stale"
    room: uint256 = books._room(operator, books.active_root[msg.sender].total)
    assert room > 0, "redeem: post a root first"
    return room


@internal
def _charge(client: address, charged: uint256, room: uint256) -> uint256:
    state: Channel = self._unpack(self.packed[client][msg.sender])
    if charged <= state.redeemed:
        return 0
    amount: uint256 = min(charged - state.redeemed, min(state.balance, room))
    if amount == 0:
        return 0
    state.balance -= amount
    state.redeemed += amount
    self.packed[client][msg.sender] = self._pack(state)
    log Redeemed(
        operator=msg.sender,
        client=client,
        amount=amount,
        redeemed=state.redeemed,
        balance=state.balance,
    )
    return amount


@internal
@pure
def _pack(state: Channel) -> uint256:
    # `redeemed` is a sum of deposits, which all the tokens of a sane supply do not carry past 104 bits.
    assert state.redeemed <= AMOUNT_MAX, "channel: worn out"
    return (state.exit_at << 208) | (state.redeemed << 104) | state.balance


@internal
@pure
def _unpack(word: uint256) -> Channel:
    return Channel(
        balance=word & AMOUNT_MAX, redeemed=(word >> 104) & AMOUNT_MAX, exit_at=word >> 208
    )
