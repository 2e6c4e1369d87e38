# pragma version 0.4.3
# pragma nonreentrancy on
"""
@title Limits
@license Apache-2.0
@notice The delays and amounts that a deployment fixes once. Nobody can change them afterwards.
"""

# What an operator has redeemed and not yet shared out is at most stake / STAKE_COVER, and every way to
# steal it burns that much: so cheating never pays, even unopposed after a root was missed.
STAKE_COVER: constant(uint256) = 2

# Far longer than anyone should wait, and far from overflowing a sum of time stamps.
DELAY_S_MAX: constant(uint256) = 365 * 86400

struct Terms:
    # How long a posted root can be challenged, and how long its operator has to answer.
    window_s: uint256
    response_s: uint256
    # How long a client waits for its escrow; the operator finishes two roots in the meantime.
    exit_delay_s: uint256
    # After how long without a root an operator is stale, and how long its promises are collected.
    stale_after_s: uint256
    collection_s: uint256
    stake_min: uint256
    bond: uint256

WINDOW_S: immutable(uint256)
RESPONSE_S: immutable(uint256)
EXIT_DELAY_S: immutable(uint256)
STALE_AFTER_S: immutable(uint256)
COLLECTION_S: immutable(uint256)
STAKE_MIN: immutable(uint256)
BOND: immutable(uint256)


@deploy
def __init__(terms: Terms):
    assert terms.window_s > 0 and terms.response_s > 0, "terms: no time to object"
    assert max(
        max(max(terms.window_s, terms.response_s), terms.collection_s),
        max(terms.exit_delay_s, terms.stale_after_s),
    ) <= DELAY_S_MAX, "terms: too long"
    settled_s: uint256 = terms.window_s + terms.response_s
    # The root that is pending when a client asks to leave may share out nothing. So that an operator
    # with no room left can still redeem half its stake in time, there is time for one more.
    assert terms.exit_delay_s > 2 * settled_s, "terms: exit too soon"
    assert terms.stale_after_s > settled_s, "terms: stale too soon"
    assert terms.collection_s > 0, "terms: no collection"
    # A challenger must not risk more than it can win.
    assert terms.bond > 0 and terms.stake_min // 2 >= terms.bond, "terms: bond"
    WINDOW_S = terms.window_s
    RESPONSE_S = terms.response_s
    EXIT_DELAY_S = terms.exit_delay_s
    STALE_AFTER_S = terms.stale_after_s
    COLLECTION_S = terms.collection_s
    STAKE_MIN = terms.stake_min
    BOND = terms.bond


@external
@view
def terms() -> Terms:
    """
    @notice The delays and amounts of this deployment.
    @return All of them, in seconds and token units.
    """
    return Terms(
        window_s=WINDOW_S,
        response_s=RESPONSE_S,
        exit_delay_s=EXIT_DELAY_S,
        stale_after_s=STALE_AFTER_S,
        collection_s=COLLECTION_S,
        stake_min=STAKE_MIN,
        bond=BOND,
    )
