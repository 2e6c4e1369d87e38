"""One coordinator that a gateway buys at: its client, what it lists, and how far away it is."""

from collections.abc import Callable

import structlog
import trio

from coordinator.buyer.client import MarketClient
from coordinator.buyer.leaser import Leaser
from coordinator.edge.directory import ListedNode, read_summaries
from protocol.errors import RemoteProtocolError
from protocol.ids import PeerId
from protocol.net.errors import NetError
from protocol.net.transport import Transport
from protocol.services import NodesAsk

log = structlog.get_logger(__name__)

# A list of models is read by people and by clients that start; a job looks up one name in it.
REFRESH_S = 5.0
# While it is away we ask more often: its clients wait.
REFRESH_AWAY_S = 1.0
# A page holds about a hundred nodes. What a larger market lists beyond is not shown here; it can
# be bought all the same from the nodes that are.
PAGES_MAX = 64
PING_WITHIN_S = 2.0


class Branch:
    """`run` keeps the list fresh; `client` buys here while `is_away` is false."""

    def __init__(
        self,
        transport: Transport,
        leaser: Leaser,
        client: MarketClient,
        *,
        address: str,
        on_change: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._leaser = leaser
        self._on_change = on_change
        self.address = address
        self.client = client
        self.nodes: tuple[ListedNode, ...] = ()
        # Not known to be there before it has answered once.
        self.is_away = True
        self.has_answered = False
        self.rtt_s = float("inf")

    @property
    def coordinator(self) -> PeerId:
        return self._leaser.coordinator

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; `started` after the first try."""
        await self.refresh()
        task_status.started()
        while True:
            await trio.sleep(REFRESH_AWAY_S if self.is_away else REFRESH_S)
            await self.refresh()

    async def refresh(self) -> None:
        """Ask for the whole list. If that fails, the old one stays."""
        try:
            nodes = await self._list_nodes()
            self.rtt_s = await self._transport.ping(self.coordinator, timeout_s=PING_WITHIN_S)
        except (NetError, RemoteProtocolError) as error:
            if not self.is_away or not self.has_answered:
                log.warning("coordinator_away", coordinator=self.coordinator, error=str(error))
            self.is_away = True
        else:
            if self.is_away:
                log.info("coordinator_answers", coordinator=self.coordinator, nodes=len(nodes))
            self.nodes = tuple(nodes)
            self.is_away = False
            self.has_answered = True
        self._on_change()

    async def _list_nodes(self) -> list[ListedNode]:
        found: list[ListedNode] = []
        after = ""
        for _ in range(PAGES_MAX):
            page = await self._leaser.nodes(NodesAsk(after=after))
            found += read_summaries(page.nodes)
            after = page.next_after
            if not after:
                break
        return found
