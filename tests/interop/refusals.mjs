// What must be refused. Each case returns the code that the refusal named.
import { randomBytes } from 'node:crypto'
import { Buyer } from './peer/buying.mjs'
import { decode, encode, identityOf, open, seal, sealBytes, ulid } from './peer/messages.mjs'
import { WireError, pack, unpack } from './peer/msgpack.mjs'
import { frame } from './peer/frames.mjs'
import { numbers } from './peer/page.mjs'

const NOTHING = new Uint8Array(0)
const DAY_MS = 86_400_000
const units = (input, output) => ({ input_tokens: input, output_tokens: output, images: 0, tensor_elements: 0 })
const flipLast = bytes => Uint8Array.from(bytes, (byte, n) => n === bytes.length - 1 ? byte ^ 1 : byte)
const codeOf = async promise => {
  try {
    await promise
  } catch (error) {
    if (error instanceof WireError) return error.code
    throw error
  }
  return 'nothing'
}

/** What the cases share: a client, a model, and the node that sells it. */
export class Refusals {
  constructor (buyer, { model, node }) { Object.assign(this, { buyer, model, node }) }

  async run (name) { return cases[name](this) }

  input (changes) { return { max_tokens: 4, messages: [{ role: 'user', content: 'Hello there!' }], temperature: 0, ...changes } }
  request (changes = {}, input = this.input()) {
    return this.buyer.request(input, { model: this.model, constraints: { only: [this.node] }, ...changes })
  }

  ask (method, body) { return codeOf(this.buyer.link.askBytes(method, body)) }
  async leaseOf (envelope) { return this.ask('lease', pack({ request: envelope })) }
  async leaseWith (changes) { return this.leaseOf((await this.request(changes)).request.bytes) }

  /** One lease for all openings that a node refuses before it counts the lease as used. */
  async unspent () { return this.granted ??= await this.buyer.lease(await this.request()) }
  async openWith (behaviour, granted) { return (await this.buyer.run(granted ?? await this.unspent(), behaviour)).code }

  /** The client's word on a lease that it never opened, with these fields; one lease for all. */
  async wordOn (changes = {}) {
    this.wordless ??= this.buyer.unopened(await this.buyer.lease(await this.request()))
    return this.buyer.deliver(this.wordless, changes)
  }
  async say (bytes) { return codeOf(this.buyer.link.ask('delivery', { delivery: bytes })) }

  /** A job of its own; what it ends with frees its hold. */
  async runFresh (behaviour, { changes, input, payload } = {}) {
    const granted = await this.buyer.lease(await this.request({ payload, ...changes }, this.input(input)))
    const job = await this.buyer.run(granted, behaviour)
    if (job.acceptance) await this.buyer.settle(job)
    return job.code
  }

  /** What a fresh stream to the coordinator says on channel 0 about these bytes. */
  async speak (...bytes) {
    const link = await this.buyer.freshLink('/capa/lease/1', { hello: null })
    for (const piece of bytes) link.write(piece)
    link.end()
    const why = await link.over
    return why.code ?? 'nothing'
  }
}

const HELLO = frame('HELLO', 0, encode('hello', { versions: [1], role: 'client' }))
const BALANCE = encode('request_body', { method: 'balance', body: pack({}) })

const asks = {
  'an ask that is no map': at => at.ask('balance', pack([])),
  'an ask with a field twice': at => at.ask('nodes', Buffer.concat([Buffer.from([0x82]), ...['model', 'a', 'model', 'b'].map(pack)])),
  'an ask with bytes after it': at => at.ask('balance', Buffer.concat([pack({}), pack(0)])),
  'an ask that ends early': at => at.ask('nodes', pack({ model: 'abc' }).subarray(0, 8)),
  'nil where the default is a text': at => at.ask('nodes', pack({ model: null })),
  'a float for an integer': at => at.ask('quote', pack({ model: at.model, task: 'causal_lm', units_expected: { input_tokens: 1.5 }, units_max: units(5, 5) })),
  'a method that there is not': at => at.ask('gift', pack({})),
  'a quote of a model that is not sold': at => at.ask('quote', pack({ model: 'not-sold', task: 'causal_lm', units_expected: units(1, 1), units_max: units(1, 1) })),
  'too many nodes to exclude': async at => at.ask('lease', pack({ request: (await at.request()).request.bytes, exclude: Array(numbers.LIST_ITEMS_MAX + 1).fill(at.node) }))
}

const leases = {
  'a request with a forged signature': async at => at.leaseOf(flipLast((await at.request()).request.bytes)),
  'a request that was signed as another kind': async at => {
    const { body } = (await at.request()).request
    const { signature } = await sealBytes(at.buyer.identity, 'acceptance', body)
    return at.leaseOf(pack([1, 'job_request', at.buyer.identity.raw, body, signature]))
  },
  'an envelope of another version': async at => {
    const [, ...rest] = unpack((await at.request()).request.bytes)
    return at.leaseOf(pack([2, ...rest]))
  },
  'an envelope above its limit': async at => {
    const { body } = (await at.request()).request
    const padded = pack({ ...unpack(body), padding: randomBytes(numbers.SIGNED_BYTES_MAX) })
    return at.leaseOf((await sealBytes(at.buyer.identity, 'job_request', padded)).bytes)
  },
  'the request of another client': async at => {
    const other = await identityOf(randomBytes(32))
    const { request } = await at.request({ client: other.id })
    return at.leaseOf((await sealBytes(other, 'job_request', request.body)).bytes)
  },
  'a request for another coordinator': at => at.leaseWith({ coordinator: at.node }),
  'a deadline that is too far': at => at.leaseWith({ deadline_at_ms: Date.now() + numbers.JOB_DURATION_MAX_MS + 1000 }),
  'a request from the future': at => at.leaseWith({ issued_at_ms: Date.now() + DAY_MS, deadline_at_ms: Date.now() + DAY_MS + 1000 }),
  'a request that is over': at => at.leaseWith({ issued_at_ms: Date.now() - DAY_MS, deadline_at_ms: Date.now() - DAY_MS + 1000 }),
  'a model that is not sold': at => at.leaseWith({ model: 'not-sold' }),
  'a task that the model does not do': at => at.leaseWith({ task: 'embedding', payload: NOTHING.constructor.of(1) }),
  'a cost that no node takes': at => at.leaseWith({ constraints: { max_cost_nano: 1 } }),
  'a job id in lower case': at => at.leaseWith({ job_id: ulid().toLowerCase() }),
  'a job id that is taken': async at => at.leaseWith({ job_id: (await at.unspent()).request.message.job_id }),
  'a client without an account': async at => {
    const stranger = await Buyer.connect(await identityOf(randomBytes(32)), at.buyer.coordinatorAddress)
    const code = await new Refusals(stranger, at).leaseWith({})
    await stranger.host.stop()
    return code
  }
}

const streams = {
  'a frame of another version': at => at.speak(HELLO, frame('REQUEST', 1, BALANCE, { version: 2 })),
  'another frame before HELLO': at => at.speak(frame('REQUEST', 1, BALANCE)),
  'a second HELLO': at => at.speak(HELLO, HELLO),
  'a HELLO of other versions': at => at.speak(frame('HELLO', 0, pack({ versions: [2, 3], role: 'client' }))),
  'a HELLO that is none': at => at.speak(frame('HELLO', 0, pack([1]))),
  'a request on channel 0': at => at.speak(HELLO, frame('REQUEST', 0, BALANCE)),
  'a body above its limit': at => at.speak(HELLO, frame('REQUEST', 1, NOTHING, { length: numbers.FRAME_BYTES_MAX + 1 })),
  'an end within a frame': at => at.speak(HELLO, frame('REQUEST', 1, BALANCE).subarray(0, 15)),
  'a frame type that is not known': async at => {
    const channel = at.buyer.link.channel()
    channel.send(99, NOTHING)
    const code = await codeOf(channel.receive())
    await at.buyer.link.ask('balance') // The stream lives on.
    return code
  },
  'a channel that is used again': async at => {
    const { link } = at.buyer
    await link.ask('balance')
    const again = link.channel(link.last)
    again.send('REQUEST', BALANCE)
    return codeOf(again.receive())
  }
}

const nodes = {
  'load before an attach': async at => codeOf((await at.buyer.freshLink('/capa/control/1')).askBytes('load', pack({ incarnation_ms: 1, draining: false, models: [] }))),
  'an attach with the offer of another': async at => {
    const { nodes } = await at.buyer.link.ask('nodes', { model: at.model })
    const { offer } = nodes.find(({ node }) => node === at.node)
    const load = { incarnation_ms: 1, draining: false, models: [] }
    return codeOf((await at.buyer.freshLink('/capa/control/1')).askBytes('attach', pack({ offer, load })))
  }
}

const openings = {
  'a payload that is not the one of the request': async at => at.openWith({ open: { payload: flipLast((await at.unspent()).payload) } }),
  'a lease with a forged signature': async at => at.openWith({ open: { lease: flipLast((await at.unspent()).lease.bytes) } }),
  'a lease that the client signed itself': async at => {
    const { body } = (await at.unspent()).lease
    return at.openWith({ open: { lease: (await sealBytes(at.buyer.identity, 'lease', body)).bytes } })
  },
  'an opening of another lease': at => at.openWith({ opening: { lease_digest: '0'.repeat(64) } }),
  'an opening for another node': at => at.openWith({ opening: { node: at.buyer.coordinator } }),
  'an opening signed by another': async at => {
    const [other, { lease }] = [await identityOf(randomBytes(32)), await at.unspent()]
    const opening = await seal(other, 'job_opening', {
      lease_digest: lease.digest, client: other.id, node: at.node, input_anchor: randomBytes(32), output_anchor: randomBytes(32), issued_at_ms: Date.now()
    })
    return at.openWith({ open: { opening: opening.bytes } })
  },
  'a request that the lease does not name': async at => at.openWith({ open: { request: (await at.request()).request.bytes } }),
  'a frame in place of JOB_OPEN': async at => {
    const channel = (await at.buyer.jobLink(await at.unspent())).channel()
    channel.send('JOB_CANCEL')
    const answer = await channel.receive()
    return answer.type === 'JOB_ERROR' ? decode('job_error_body', answer.body).code : answer.type
  }
}

const jobs = {
  'a payload that is no input of the task': at => at.runFresh({}, { payload: new Uint8Array(pack({ what: 1 })) }),
  'an input of two kinds': at => at.runFresh({}, { input: { prompt: 'Hello!' } }),
  'an input above the lease': at => at.runFresh({}, { changes: { units_max: units(2, 4) } }),
  'JOB_DATA after the whole payload': at => at.runFresh({ thenSend: [['JOB_DATA', Uint8Array.of(1)]] }),
  'JOB_OPEN for the second time': at => at.runFresh({ thenSend: [['JOB_OPEN', NOTHING]] }),
  'a frame that only nodes send': at => at.runFresh({ thenSend: [['JOB_ERROR', encode('job_error_body', { code: 'busy', message: '' })]] }),
  'a link of another chain': at => at.runFresh({ countersign: ([a, b, c]) => [a, b, c, randomBytes(32)] }, { input: { max_tokens: 40, ignore_eos: true } }),
  'a link for less input': at => at.runFresh({ countersign: ([, , c, d]) => [0, NOTHING, c, d] }, { input: { max_tokens: 40, ignore_eos: true } }),
  'a lease for the second time': async at => {
    const granted = await at.buyer.lease(await at.request({}, at.input({ max_tokens: 1 })))
    await at.buyer.settle(await at.buyer.run(granted))
    return at.openWith({}, granted)
  },
  'an acceptance that contradicts its own counts': async at => {
    const job = await at.buyer.run(await at.buyer.lease(await at.request({}, at.input({ max_tokens: 1 }))))
    const code = await codeOf(at.buyer.settle(job, await at.buyer.accept(job, { agrees: false })))
    await at.buyer.settle(job)
    return code
  },
  'a receipt that the client signed itself': async at => {
    const job = await at.buyer.run(await at.buyer.lease(await at.request({}, at.input({ max_tokens: 1 }))))
    const receipt = await open('receipt', (await sealBytes(at.buyer.identity, 'receipt', job.receipt.body)).bytes)
    const forged = Object.assign(Object.create(job), { receipt })
    const code = await codeOf(at.buyer.settle(forged, await at.buyer.accept(forged)))
    await at.buyer.settle(job)
    return code
  }
}

// The last but one is the first that is taken.
const words = {
  'a delivery with a forged signature': async at => at.say(flipLast((await at.wordOn()).bytes)),
  'a delivery that another signed': async at => {
    const { body } = await at.wordOn()
    return at.say((await sealBytes(await identityOf(randomBytes(32)), 'delivery', body)).bytes)
  },
  'a delivery of another lease': async at => at.say((await at.wordOn({ lease_digest: '0'.repeat(64) })).bytes),
  'a delivery of a lease that there is not': async at => at.say((await at.wordOn({ lease_id: ulid() })).bytes),
  'a delivery of more than was leased': async at => at.say((await at.wordOn({ units: units(1, 5) })).bytes),
  'a delivery that contradicts the first': async at => {
    const first = await at.wordOn()
    for (const _ of ['first', 'again']) if (await at.say(first.bytes) !== 'nothing') return 'the first was refused'
    return at.say((await at.wordOn({ units: units(1, 1) })).bytes)
  },
  'a delivery after the receipt was paid': async at => {
    const job = await at.buyer.run(await at.buyer.lease(await at.request({}, at.input({ max_tokens: 1 }))))
    await at.buyer.settle(job)
    return at.say((await at.buyer.deliver(job)).bytes)
  }
}

export const cases = { ...asks, ...leases, ...streams, ...nodes, ...openings, ...jobs, ...words }
