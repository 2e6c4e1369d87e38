"""A libp2p host that does only what we ask for: Noise over TCP, our Yamux, and nothing by itself.

py-libp2p's own dialling and listening are not used. Its dialler waits 250 ms after every success,
remembers failures for a minute and tries one address per peer; its listener shares its port with
every other task that wants it, and keeps a task and an admission token for every connection that
ever came. What remains is the handshake, the registry of connections and the negotiation of
streams.
"""

import logging
from collections.abc import Callable

from libp2p.abc import IMuxedConn, INetConn, INetStream, ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.crypto.ed25519 import Ed25519PrivateKey
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair
from libp2p.custom_types import TMuxerOptions, TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.network.config import ConnectionConfig
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.muxer_multistream import MuxerMultistream
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr import Multiaddr

from protocol.keys import SigningKey
from protocol.net.buffers import Buffers
from protocol.net.libp2p_admission import HANDSHAKE_WITHIN_S
from protocol.net.libp2p_yamux import Mux
from protocol.net.serve import Boundary

YAMUX = TProtocol("/yamux/1.0.0")
MUXERS: TMuxerOptions = {YAMUX: Mux}

# Connections are admitted by us, before the handshake; the library's own bounds are out of reach.
UNBOUNDED = 1_000_000


class _OurMuxer(MuxerMultistream):
    """py-libp2p negotiates Yamux and then builds its own, whatever class it was given."""

    def __init__(self, buffers: Buffers) -> None:
        super().__init__(MUXERS)
        self._buffers = buffers

    async def new_conn(self, conn: ISecureConn, peer_id: ID) -> IMuxedConn:
        await self.select_transport(conn)
        return Mux(conn, peer_id, self._buffers)


class _OurSwarm(Swarm):
    """Shows the library direct connections only. Its gossip would otherwise run through relays,
    and break when the first of a peer's connections ends."""

    async def notify_connected(self, conn: INetConn) -> None:
        if not _is_relayed(conn):
            await super().notify_connected(conn)

    async def notify_disconnected(self, conn: INetConn) -> None:
        if not _is_relayed(conn):
            await super().notify_disconnected(conn)

    def _filter_valid_connections(self, connections: list[INetConn]) -> list[INetConn]:
        return [
            each for each in super()._filter_valid_connections(connections) if not _is_relayed(each)
        ]


def make_host(
    key: SigningKey, listen_addresses: Callable[[], tuple[str, ...]], buffers: Buffers
) -> tuple[BasicHost, Swarm]:
    """A host with the identity of `key`. Only Noise: the library's default list also offers
    plaintext, and a default host was seen to answer a plaintext dialler."""
    private = Ed25519PrivateKey.new(key.seed())
    keys = KeyPair(private, private.get_public_key())
    peer_id = ID.from_pubkey(keys.public_key)
    assert str(peer_id) == key.peer_id
    noise = Noise(keys, noise_privkey=create_new_key_pair().private_key)
    upgrader = TransportUpgrader({NOISE: noise}, MUXERS)
    upgrader.muxer_multistream = _OurMuxer(buffers)
    peerstore = PeerStore()
    peerstore.add_key_pair(peer_id, keys)
    swarm = _OurSwarm(
        peer_id,
        peerstore,
        upgrader,
        transports=[],  # Nothing to dial with: it dials known peers on its own otherwise.
        connection_config=ConnectionConfig(
            min_connections=0,
            low_watermark=0,
            high_watermark=UNBOUNDED,
            max_connections=UNBOUNDED,
            inbound_upgrade_timeout=HANDSHAKE_WITHIN_S,
            outbound_upgrade_timeout=HANDSHAKE_WITHIN_S,
        ),
    )
    host = BasicHost(
        swarm,
        addrs_factory=lambda _: [Multiaddr(address) for address in listen_addresses()],
        disable_identify_address_discovery=True,
    )
    # An exception that leaves a handler stops the whole host, and the library's own handlers for
    # identify, ping and gossip parse what strangers send.
    library_handler = swarm.common_stream_handler

    async def handle(stream: INetStream) -> None:
        if await Boundary(library_handler, "libp2p").run(stream) is not None:
            await stream.reset()

    swarm.set_stream_handler(handle)
    return host, swarm


def _is_relayed(connection: INetConn) -> bool:
    return connection.get_connection_type() is ConnectionType.RELAYED


def forget_peer(host: BasicHost, peer_id: ID) -> None:
    """Drop what the library keeps of a peer that is gone: keys are free, and this would grow."""
    peerstore = host.get_peerstore()
    if peerstore.has_peer(peer_id):
        peerstore.clear_peerdata(peer_id)


def quiet_libp2p() -> None:
    """py-libp2p logs what peers do to it as errors, with tracebacks; we log the same in our words.

    With the root logger at DEBUG all of it is logged.
    """
    root = logging.getLogger()
    if not root.handlers:
        # The library calls `logging.debug` on the module, which installs a handler on standard
        # error for the whole program if there is none.
        root.addHandler(logging.NullHandler())
    if root.getEffectiveLevel() > logging.DEBUG:
        logging.getLogger("libp2p").setLevel(logging.CRITICAL)
        for name, logger in root.manager.loggerDict.items():
            if name.startswith("libp2p.") and isinstance(logger, logging.Logger):
                logger.setLevel(logging.NOTSET)  # Some of its modules choose a level of their own.
