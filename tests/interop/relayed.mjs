// A stock party that listens at a relay of ours, and calls a party of ours through it.
import './peer/node20.mjs'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { circuitRelayTransport } from '@libp2p/circuit-relay-v2'
import { identify } from '@libp2p/identify'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { createInterface } from 'node:readline'

const ECHO = '/test/echo/1'
// A relayed connection is a limited one, and a protocol must say that it runs on it.
const LIMITED = { runOnLimitedConnection: true }

let node

const calls = {
  async listen ({ relay }) {
    node = await createLibp2p({
      addresses: { listen: [`${relay}/p2p-circuit`] },
      transports: [tcp(), circuitRelayTransport()],
      connectionEncrypters: [noise()],
      streamMuxers: [yamux()],
      services: { identify: identify() },
      connectionGater: { denyDialMultiaddr: () => false }
    })
    await node.handle(ECHO, ({ stream }) => { stream.sink(stream.source).catch(() => {}) }, LIMITED)
    while (node.getMultiaddrs().length === 0) {
      await new Promise(resolve => setTimeout(resolve, 50))
    }
    return node.getMultiaddrs().map(String)
  },

  async talk ({ address, text }) {
    const connection = await node.dial(multiaddr(address))
    const stream = await connection.newStream(ECHO, LIMITED)
    stream.sink([new TextEncoder().encode(text)]).catch(() => {})
    const heard = []
    for await (const piece of stream.source) heard.push(piece.subarray())
    return { heard: Buffer.concat(heard).toString(), seconds: connection.limits?.seconds ?? 0 }
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const { id, call, with: given } = JSON.parse(line)
  const result = await calls[call](given)
  process.stdout.write(`${JSON.stringify({ id, result })}\n`)
}
process.exit(0)
