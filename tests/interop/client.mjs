// A client that tests direct, call by call.
import './peer/node20.mjs'
import { offerTopic } from './peer/accounting.mjs'
import { Buyer } from './peer/buying.mjs'
import { bytesOf, decode, identityOf, open } from './peer/messages.mjs'
import { pack } from './peer/msgpack.mjs'
import { serveCalls } from './peer/rpc.mjs'
import { Refusals, cases } from './refusals.mjs'

let buyer
let refusals
let last // The jobs of the last purchase.

const tell = job => ({
  job_id: job.granted.request.message.job_id,
  node: job.granted.lease.message.node,
  lease: job.granted.lease.message,
  price: job.granted.lease.message.price,
  code: job.code ?? null,
  why: job.why,
  text: job.tally.text,
  token_ids: job.tally.tokenIds,
  output_digest: job.tally.digest,
  counted: job.counted,
  node_link: job.nodeLink,
  signed_link: job.signedLink,
  receipt: job.receipt?.message ?? null,
  agrees: job.acceptance?.message.agrees ?? null,
  settled: job.settled ?? null
})

/** `padding` is a field that this version does not know, of so many bytes. */
const payloadOf = (input, padding) => new Uint8Array(pack({ ...input, padding: new Uint8Array(padding) }))

/** Lease, run, accept, settle. `request` are fields of the request, `lease` of `lease_ask`. */
const buy = async ({ input, request = {}, lease = {}, behaviour = {}, settle = true, padding = 0 }) => {
  const asked = await buyer.request(input, padding ? { ...request, payload: payloadOf(input, padding) } : request)
  const job = await buyer.run(await buyer.lease(asked, lease), behaviour)
  if (settle && job.acceptance) job.settled = await buyer.settle(job)
  return Object.assign(tell(job), { salt: asked.salt, data: job.data && answerOf(request.task, job.data) })
}

const answerOf = (task, data) => {
  if (task !== 'embedding') return undefined
  const { dimensions, vectors } = decode('embedding_output', data)
  return { dimensions, vectors: vectors.length, bytes: vectors.map(vector => vector.length) }
}

serveCalls({

  async identity ({ seed }) { return (await identityOf(bytesOf(seed))).id },

  async connect ({ seed, coordinator }) {
    buyer = await Buyer.connect(await identityOf(bytesOf(seed)), coordinator)
    return (await buyer.link.greeted.promise)
  },

  /** The next offer of this node that gossip brings, verified. */
  async hear_offer ({ node }) {
    const topic = offerTopic(node)
    const heard = Promise.withResolvers()
    buyer.host.pubsub.subscribe(topic)
    buyer.host.pubsub.addEventListener('message', ({ detail }) => {
      if (detail.topic !== topic) return
      open('node_offer', detail.data).then(offer => {
        if (offer.message.node === node) heard.resolve(offer.message)
      }).catch(heard.reject)
    })
    return heard.promise
  },

  async ask ({ method, value }) { return buyer.link.ask(method, value) },

  /** One text, from as many nodes as it takes. */
  async purchase ({ input, request, behaviour = {} }) {
    last = await buyer.purchase(input, request, behaviour)
    return last.map(tell)
  },

  /** Signs for what came of the last purchase's first job, or for other units. */
  async deliver ({ units }) {
    return buyer.link.ask('delivery', { delivery: (await buyer.deliver(last[0], { units })).bytes })
  },

  /** Accepts and settles the last purchase's first job. */
  async settle () { return buyer.settle(last[0], await buyer.accept(last[0])) },

  /** What comes back of these bytes. */
  async ping ({ bytes }) { return buyer.host.ping(buyer.coordinatorAddress, bytesOf(bytes)) },

  async open_offer ({ offer }) { return (await open('node_offer', bytesOf(offer))).message },

  buy,

  /** Cases of refusals.mjs, tried with this model at this node. */
  refusals (where) {
    refusals = new Refusals(buyer, where)
    return Object.keys(cases)
  },

  async refused ({ what }) { return refusals.run(what) }
})
