# pragma version 0.4.3
# pragma evm-version cancun
# pragma optimize gas
"""
@title Test token
@license Apache-2.0
@notice An ERC-20 token with six decimals and EIP-2612 permits that anyone may mint: for test networks.
"""

from ethereum.ercs import IERC20

implements: IERC20

event Transfer:
    sender: indexed(address)
    receiver: indexed(address)
    value: uint256

event Approval:
    owner: indexed(address)
    spender: indexed(address)
    value: uint256

DOMAIN_TYPE: constant(bytes32) = keccak256(
    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)
PERMIT_TYPE: constant(bytes32) = keccak256(
    "Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)"
)

name: public(constant(String[16])) = "Capa Test Credit"
symbol: public(constant(String[5])) = "tCAPA"
decimals: public(constant(uint8)) = 6

balanceOf: public(HashMap[address, uint256])
allowance: public(HashMap[address, HashMap[address, uint256]])
totalSupply: public(uint256)
nonces: public(HashMap[address, uint256])


@external
def mint(to: address, amount: uint256):
    """
    @notice Make tokens out of nothing.
    @param to Who gets them.
    @param amount Token units.
    """
    self.totalSupply += amount
    self.balanceOf[to] += amount
    log Transfer(sender=empty(address), receiver=to, value=amount)


@external
def transfer(to: address, amount: uint256) -> bool:
    """
    @notice Send the caller's tokens.
    @param to Who gets them.
    @param amount Token units.
    @return True; it reverts otherwise.
    """
    self._move(msg.sender, to, amount)
    return True


@external
def approve(spender: address, amount: uint256) -> bool:
    """
    @notice Let `spender` move the caller's tokens.
    @param spender Who may.
    @param amount How many.
    @return True.
    """
    self._approve(msg.sender, spender, amount)
    return True


@external
def transferFrom(sender: address, to: address, amount: uint256) -> bool:
    """
    @notice Send tokens that the caller was allowed to move.
    @param sender Whose tokens.
    @param to Who gets them.
    @param amount Token units.
    @return True; it reverts otherwise.
    """
    allowed: uint256 = self.allowance[sender][msg.sender]
    assert allowed >= amount, "token: allowance"
    if allowed != max_value(uint256):
        self.allowance[sender][msg.sender] = allowed - amount
    self._move(sender, to, amount)
    return True


@external
def permit(
    owner: address,
    spender: address,
    amount: uint256,
    deadline: uint256,
    v: uint8,
    r: bytes32,
    s: bytes32,
):
    """
    @notice Approve by signature (EIP-2612).
    @param owner Who signed.
    @param spender Who may move the tokens.
    @param amount How many.
    @param deadline Until when the signature is good.
    @param v Signature part.
    @param r Signature part.
    @param s Signature part.
    """
    assert block.timestamp <= deadline, "token: permit expired"
    nonce: uint256 = self.nonces[owner]
    fields: bytes32 = keccak256(
        abi_encode(PERMIT_TYPE, owner, spender, amount, nonce, deadline)
    )
    digest: bytes32 = keccak256(concat(b"\x19\x01", self._domain(), fields))
    signer: address = ecrecover(
        digest, convert(v, uint256), convert(r, uint256), convert(s, uint256)
    )
    assert owner != empty(address) and signer == owner, "token: permit not signed"
    self.nonces[owner] = nonce + 1
    self._approve(owner, spender, amount)


@external
@view
def DOMAIN_SEPARATOR() -> bytes32:
    """
    @notice What binds a permit to this token and chain.
    @return The EIP-712 domain separator.
    """
    return self._domain()


@internal
@view
def _domain() -> bytes32:
    return keccak256(
        abi_encode(DOMAIN_TYPE, keccak256(name), keccak256("1"), chain.id, self)
    )


@internal
def _approve(owner: address, spender: address, amount: uint256):
    self.allowance[owner][spender] = amount
    log Approval(owner=owner, spender=spender, value=amount)


@internal
def _move(sender: address, to: address, amount: uint256):
    assert to != empty(address), "token: no receiver"
    assert self.balanceOf[sender] >= amount, "token: balance"
    self.balanceOf[sender] -= amount
    self.balanceOf[to] += amount
    log Transfer(sender=sender, receiver=to, value=amount)
