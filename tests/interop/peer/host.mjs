// Stock js-libp2p, as a stranger would set it up: TCP, Noise, Yamux, gossipsub.
import './node20.mjs'
import { noise } from '@chainsafe/libp2p-noise'
import { gossipsub } from '@chainsafe/libp2p-gossipsub'
import { yamux } from '@chainsafe/libp2p-yamux'
import { identify } from '@libp2p/identify'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { Link } from './frames.mjs'

export const LOOPBACK = '/ip4/127.0.0.1/tcp/0'

export class Host {
  static async start (identity, { listen = [] } = {}) {
    const pubsub = gossipsub({ globalSignaturePolicy: 'StrictSign', allowPublishToZeroTopicPeers: true, emitSelf: false })
    const libp2p = await createLibp2p({
      privateKey: identity.key,
      addresses: { listen },
      transports: [tcp()],
      connectionEncrypters: [noise()],
      streamMuxers: [yamux()],
      services: { identify: identify(), pubsub },
      // Everything is on one machine here.
      connectionGater: { denyDialMultiaddr: () => false }
    })
    return Object.assign(new Host(), { libp2p })
  }

  get addresses () { return this.libp2p.getMultiaddrs().map(String) }
  get pubsub () { return this.libp2p.services.pubsub }

  async dial (address) { return this.libp2p.dial(multiaddr(address)) }

  async openLink (address, protocol, options) {
    const connection = await this.dial(address)
    return new Link(await connection.newStream(protocol), options)
  }

  async handle (protocol, onLink) {
    await this.libp2p.handle(protocol, ({ stream, connection }) => onLink(stream, connection.remotePeer.toString()))
  }

  /** As libp2p's ping does: a stream that returns what it is sent. */
  async ping (address, bytes) {
    const connection = await this.dial(address)
    const stream = await connection.newStream('/ipfs/ping/1.0.0')
    stream.sink([bytes]).catch(() => {})
    let back = Buffer.alloc(0)
    for await (const piece of stream.source) {
      back = Buffer.concat([back, piece.subarray()])
      if (back.length >= bytes.length) break
    }
    return new Uint8Array(back)
  }

  async stop () { await this.libp2p.stop() }
}
