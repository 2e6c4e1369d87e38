"""Late, repeated and conflicting offers of one node."""

from hypothesis import given
from hypothesis import strategies as st

from coordinator.market.offers.versions import OfferVersion, OfferVersions, Succession, judge
from protocol.ids import Digest
from protocol.limits import CLOCK_SKEW_MAX_MS
from tests.coordinator.market_makers import NOW_MS, node, node_offer

STARTED_MS = NOW_MS - 60_000
KNOWN = OfferVersion(STARTED_MS, 5, Digest("a" * 64), NOW_MS + 300_000)
SAME, OTHER = Digest("a" * 64), Digest("b" * 64)


def test_the_first_offer_of_a_node_is_new() -> None:
    assert judge(None, node_offer(1), SAME) is Succession.NEWER


def test_a_higher_sequence_succeeds_and_a_lower_one_does_not() -> None:
    assert judge(KNOWN, node_offer(1, sequence=6), OTHER) is Succession.NEWER
    assert judge(KNOWN, node_offer(1, sequence=4), OTHER) is Succession.OLDER


def test_the_same_offer_is_a_duplicate() -> None:
    assert judge(KNOWN, node_offer(1, sequence=5), SAME) is Succession.SAME


def test_two_contents_under_one_sequence_are_a_conflict() -> None:
    assert judge(KNOWN, node_offer(1, sequence=5), OTHER) is Succession.CONFLICT


def test_a_restarted_node_outranks_its_former_self_whatever_the_sequence() -> None:
    restarted = node_offer(1, incarnation_ms=STARTED_MS + 1, sequence=0)
    assert judge(KNOWN, restarted, OTHER) is Succession.NEWER


def test_a_ghost_never_wins() -> None:
    ghost = node_offer(
        1, incarnation_ms=STARTED_MS - 1, sequence=10**9, issued_at_ms=STARTED_MS - 1
    )
    assert judge(KNOWN, ghost, OTHER) is Succession.OLDER


def test_an_older_incarnation_that_goes_on_signing_is_a_copied_key() -> None:
    late_ms = STARTED_MS + CLOCK_SKEW_MAX_MS + 1
    alive = node_offer(1, incarnation_ms=STARTED_MS - 1, issued_at_ms=late_ms)
    assert judge(KNOWN, alive, OTHER) is Succession.CONFLICT


@given(
    incarnation_ms=st.integers(STARTED_MS - 10**6, STARTED_MS + 10**6),
    sequence=st.integers(0, 10),
    age_ms=st.integers(0, 10**6),
)
def test_only_what_is_later_in_the_same_order_wins(
    incarnation_ms: int, sequence: int, age_ms: int
) -> None:
    offer = node_offer(
        1, incarnation_ms=incarnation_ms, sequence=sequence, issued_at_ms=NOW_MS - age_ms
    )
    is_later = (incarnation_ms, sequence) > (KNOWN.incarnation_ms, KNOWN.sequence)
    assert (judge(KNOWN, offer, OTHER) is Succession.NEWER) == is_later


def test_lineages_are_forgotten_once_nothing_can_contradict_them() -> None:
    versions = OfferVersions()
    versions.put(node(1), KNOWN)
    versions.forget(KNOWN.forget_at_ms - 1)
    assert versions.get(node(1)) == KNOWN
    versions.forget(KNOWN.forget_at_ms)
    assert len(versions) == 0
