# pragma version 0.4.3
"""
@title Short wallet
@notice A contract wallet that agrees to everything, but with four bytes instead of a word.
"""


@external
@view
@raw_return
def isValidSignature(digest: bytes32, signature: Bytes[65]) -> Bytes[4]:
    return x"1626ba7e"
