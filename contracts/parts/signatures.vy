# pragma version 0.4.3
"""
@title Typed signatures
@license Apache-2.0
@notice EIP-712 digests of vouchers and promises, and who signed them. A client may be a contract wallet
        that answers EIP-1271. An operator may not: such a wallet can change its mind, and a promise
        that its signer can take back is no evidence.
@dev The domain is computed on every call, so that a signature made before a chain splits is worth
     nothing on the other side of the split.
"""

DOMAIN_TYPE: constant(bytes32) = keccak256(
    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)
VOUCHER_TYPE: constant(bytes32) = keccak256(
    "Voucher(address client,address operator,uint256 ceiling)"
)
PROMISE_TYPE: constant(bytes32) = keccak256(
    "Promise(address operator,address payee,uint256 epoch,uint256 cumulative)"
)
NAME_HASH: constant(bytes32) = keccak256("CapaCloud Settlement")
VERSION_HASH: constant(bytes32) = keccak256("1")

# Half the order of secp256k1: of the two valid forms of a signature only the low one counts (EIP-2).
S_MAX: constant(uint256) = (
    57896044618658097711785492504343953926418782139537452191302581570759080747168
)
IS_VALID_SIGNATURE: constant(bytes4) = 0x1626BA7E
# Of an ordinary account: r, s, v.
SIGNATURE_BYTES: constant(uint256) = 65
# Of a contract wallet: room for fifteen owners, or for a passkey's evidence.
WALLET_SIGNATURE_MAX: constant(uint256) = 1024
# A wallet that checks a few owners needs well under 100k; one that burns more must not stop a batch.
WALLET_GAS: constant(uint256) = 200_000


@internal
@view
def _domain() -> bytes32:
    return keccak256(abi_encode(DOMAIN_TYPE, NAME_HASH, VERSION_HASH, chain.id, self))


@internal
@pure
def _voucher_digest(
    domain: bytes32, client: address, operator: address, ceiling: uint256
) -> bytes32:
    fields: bytes32 = keccak256(abi_encode(VOUCHER_TYPE, client, operator, ceiling))
    return keccak256(concat(b"\x19\x01", domain, fields))


@internal
@view
def _promise_digest(
    operator: address, payee: address, epoch: uint256, cumulative: uint256
) -> bytes32:
    fields: bytes32 = keccak256(abi_encode(PROMISE_TYPE, operator, payee, epoch, cumulative))
    return keccak256(concat(b"\x19\x01", self._domain(), fields))


@internal
@view
def _is_signed_by(
    signer: address, digest: bytes32, signature: Bytes[WALLET_SIGNATURE_MAX]
) -> bool:
    """
    @dev Whether an account or a wallet signed. Recovery comes first: it costs an ordinary account no
         look at its (absent) code.
    """
    if len(signature) == SIGNATURE_BYTES:
        if self._is_signed_by_key(signer, digest, slice(signature, 0, SIGNATURE_BYTES)):
            return True
    if not signer.is_contract:
        return False
    success: bool = False
    answer: Bytes[32] = b""
    success, answer = raw_call(
        signer,
        abi_encode(digest, signature, method_id=IS_VALID_SIGNATURE),
        max_outsize=32,
        gas=WALLET_GAS,
        is_static_call=True,
        revert_on_failure=False,
    )
    # The standard's answer is its own selector, left-aligned in one word.
    return success and len(answer) == 32 and convert(answer, bytes32) == convert(
        IS_VALID_SIGNATURE, bytes32
    )


@internal
@pure
def _is_signed_by_key(
    signer: address, digest: bytes32, signature: Bytes[SIGNATURE_BYTES]
) -> bool:
    """
    @dev Whether the account's own key signed, in the one form that counts.
    """
    if len(signature) != SIGNATURE_BYTES:
        return False
    s: uint256 = extract32(signature, 32, output_type=uint256)
    if s > S_MAX:
        return False
    recovered: address = ecrecover(
        digest,
        convert(slice(signature, 64, 1), uint256),
        extract32(signature, 0, output_type=uint256),
        s,
    )
    # A failed recovery answers the zero address.
    return recovered == signer and recovered != empty(address)
