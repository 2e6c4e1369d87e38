"""What this node knows of how it can be reached: only addresses that were seen to work go into its
offer.

Each coordinator dials the candidates (`protocol.reach`); an address that one of them reached is
offered. An old coordinator cannot, and then the node offers what it believes. State and decisions
only: the control lines ask.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog
import trio

from capanode.reach.advice import advise
from capanode.reach.candidates import candidates
from capanode.reach.status import ReachState, ReachStatus, TriedAddress
from protocol.ids import PeerId
from protocol.limits import OFFER_ADDRESSES_MAX
from protocol.net.addresses import CIRCUIT
from protocol.net.relay_roster import RelayRoster
from protocol.net.transport import Transport
from protocol.reach import DialBackReply, Dialled, DialResult

log = structlog.get_logger(__name__)

# An owner who has just changed the router wants to see it soon; what works, buyers watch.
LOOK_AGAIN_S = 60.0
LOOK_AGAIN_REACHED_S = 600.0

# What the operator wrote down is offered where a coordinator has no word on it.
_NO_WORD = (Dialled.FORBIDDEN, Dialled.UNPROVEN)


@dataclass(slots=True)
class _Word:
    """What one coordinator last said. `can_dial` is False for one that does not know how."""

    can_dial: bool
    results: dict[str, DialResult] = field(default_factory=dict)
    observed_host: str = ""
    failed_buyers: int = 0


class Reachability:
    """`by_hand` if the operator wrote down what to announce. `relays` may take us in where nothing
    can dial us; `virtual` names a container or virtual machine around us; `on_change` is told when
    the offer should list other addresses."""

    def __init__(
        self,
        transport: Transport,
        *,
        by_hand: bool,
        on_change: Callable[[], None],
        relays: Sequence[str] = (),
        virtual: str = "",
    ) -> None:
        self._transport = transport
        self._by_hand = by_hand
        self._on_change = on_change
        self._virtual = virtual
        self._relays = RelayRoster(transport, relays, self._tell)
        self._words: dict[PeerId, _Word] = {}
        self._mapped: tuple[str, ...] = ()
        self._mapping_words = "off"
        self._asked = trio.Event()
        self._turns = trio.lowlevel.ParkingLot()
        self._said: tuple[ReachState, tuple[str, ...]] = (ReachState.UNKNOWN, ())

    # What the control lines ask and tell.

    def candidates(self) -> tuple[str, ...]:
        """Every address that may work."""
        if self._by_hand:
            return self._transport.addresses[:OFFER_ADDRESSES_MAX]
        return candidates(
            self._transport.addresses, mapped=self._mapped, observed_hosts=self._observed_hosts()
        )

    def has_word_of(self, coordinator: PeerId) -> bool:
        return coordinator in self._words

    def open_questions(self, coordinator: PeerId) -> tuple[str, ...]:
        """Candidates that this coordinator has not dialled yet."""
        word = self._words.get(coordinator)
        known = {} if word is None else word.results
        return tuple(
            address
            for address in self.candidates()
            if address not in known or known[address].outcome is Dialled.UNPROVEN
        )

    def note(self, coordinator: PeerId, reply: DialBackReply, *, is_more: bool = False) -> None:
        """A coordinator has dialled; `is_more` if this adds to what it said just before."""
        word = self._words.get(coordinator)
        results = dict(word.results) if word is not None and is_more else {}
        results |= {result.address: result for result in reply.results}
        self._words[coordinator] = _Word(True, results, reply.observed_host, reply.failed_buyers)
        self._tell()

    def note_unable(self, coordinator: PeerId) -> None:
        """A coordinator of an earlier version: it does not know how to dial back."""
        self._words[coordinator] = _Word(can_dial=False)
        self._tell()

    def look_again(self) -> None:
        """Something about our addresses may have changed: coordinators shall dial again."""
        asked, self._asked = self._asked, trio.Event()
        asked.set()

    async def wait_look_again(self) -> None:
        """Until coordinators should dial again."""
        longest_s = LOOK_AGAIN_S if not self._direct() else LOOK_AGAIN_REACHED_S
        with trio.move_on_after(longest_s):
            await self._asked.wait()

    async def wait_not_direct(self) -> None:
        """Until coordinators have dialled us, and reached none of our own addresses."""
        while self.state in (ReachState.UNKNOWN, ReachState.DIRECT):
            await self._turns.park()
        await trio.lowlevel.checkpoint()

    # What changes on this machine.

    def network_changed(self) -> None:
        """This machine has other addresses now. Those that it lost are offered no more, those that
        it kept still are, and new ones when they were reached."""
        self._tell()
        self.look_again()

    def note_mapping(self, places: tuple[str, ...], words: str) -> None:
        """What a router forwards to us (without /p2p/), and what there is to say about it."""
        self._mapping_words = words
        if places != self._mapped:
            self._mapped = places
            self.look_again()

    # What follows.

    def offered(self) -> tuple[str, ...]:
        """The addresses for the offer."""
        found = dict.fromkeys((*self._direct(), *self._relays.addresses))
        return tuple(found)[:OFFER_ADDRESSES_MAX]

    def _direct(self) -> tuple[str, ...]:
        words = self._words.values()
        believed = tuple(a for a in self._transport.announced if CIRCUIT not in a)
        if not words:
            return believed
        seen = tuple(address for address in self.candidates() if self._was_reached(address))
        return seen if all(word.can_dial for word in words) else (*seen, *believed)

    @property
    def state(self) -> ReachState:
        if not any(word.can_dial for word in self._words.values()):
            return ReachState.UNKNOWN
        if self._direct():
            return ReachState.DIRECT
        return ReachState.RELAYED if self._relays.addresses else ReachState.UNREACHABLE

    def status(self) -> ReachStatus:
        state = self.state
        results = [result for word in self._words.values() for result in word.results.values()]
        is_lost = state in (ReachState.UNREACHABLE, ReachState.RELAYED)
        return ReachStatus(
            state=state,
            offered=self.offered(),
            tried=tuple(
                TriedAddress(coordinator, result.address, result.outcome, result.took_ms)
                for coordinator, word in self._words.items()
                for result in word.results.values()
            ),
            observed_hosts=self._observed_hosts(),
            relays=self._relays.addresses,
            relay_failures=self._relays.failures,
            port_mapping=self._mapping_words,
            failed_buyers=max((word.failed_buyers for word in self._words.values()), default=0),
            advice=advise(
                results, self._transport.addresses, by_hand=self._by_hand, virtual=self._virtual
            )
            if is_lost
            else (),
        )

    def _was_reached(self, address: str) -> bool:
        outcomes = {
            word.results[address].outcome
            for word in self._words.values()
            if address in word.results
        }
        if Dialled.REACHED in outcomes:
            return True
        return self._by_hand and bool(outcomes) and outcomes <= set(_NO_WORD)

    def _observed_hosts(self) -> tuple[str, ...]:
        hosts = (word.observed_host for word in self._words.values())
        return tuple(dict.fromkeys(filter(None, hosts)))

    def _tell(self) -> None:
        can_dial = any(word.can_dial for word in self._words.values())
        self._relays.adjust(is_needed=can_dial and not self._direct())
        said = (self.state, self.offered())
        if said == self._said:
            return
        was, self._said = self._said, said
        state, offered = said
        if state is ReachState.UNREACHABLE:
            log.warning("node_cannot_be_dialled", advice=self.status().advice)
        elif state is not was[0]:
            log.info("node_can_be_reached", how=state.value, addresses=offered)
        self._turns.unpark_all()
        self._on_change()
