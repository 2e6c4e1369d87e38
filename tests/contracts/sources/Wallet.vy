# pragma version 0.4.3
"""
@title Wallet
@notice A contract wallet with one key: EIP-1271 answers and any call that the key's holder asks for.
        What follows the key's signature is ignored, as if more owners had signed. It can also be told
        to answer wrongly, or to burn gas.
"""

IS_VALID: constant(bytes4) = 0x1626BA7E

signer: public(address)
mood: public(uint256)


@deploy
def __init__(signer: address):
    self.signer = signer


@external
def set_mood(mood: uint256):
    self.mood = mood


@external
def run(to: address, data: Bytes[2048]):
    raw_call(to, data)


@external
@view
def isValidSignature(digest: bytes32, signature: Bytes[1024]) -> bytes4:
    if self.mood == 1:
        return 0xFFFFFFFF
    if self.mood == 2:
        raise "wallet: no"
    if self.mood == 3:
        waste: uint256 = 0
        for i: uint256 in range(20_000):
            waste += i
    r: uint256 = extract32(signature, 0, output_type=uint256)
    s: uint256 = extract32(signature, 32, output_type=uint256)
    v: uint256 = convert(slice(signature, 64, 1), uint256)
    if ecrecover(digest, v, r, s) == self.signer:
        return IS_VALID
    return 0x00000000
