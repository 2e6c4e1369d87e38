// A client: leases at a coordinator, opens jobs at nodes, counts and signs, hands receipts in.
import { randomBytes } from 'node:crypto'
import { Chain, Tally, charge, isLinkOf, payloadDigest, windowsOf } from './accounting.mjs'
import { Host } from './host.mjs'
import { decode, encode, open, seal, ulid } from './messages.mjs'
import { WireError } from './msgpack.mjs'
import { numbers, retryable } from './page.mjs'

export const must = (truth, code, why) => { if (!truth) throw new WireError(code, why) }

const LATE_MS = 300
const PAYLOADS = { causal_lm: 'generation_input', embedding: 'embedding_input', image_classification: 'image_input' }

export class Buyer {
  static async connect (identity, coordinatorAddress) {
    const buyer = new Buyer()
    const host = await Host.start(identity)
    const link = await host.openLink(coordinatorAddress, '/capa/lease/1')
    await link.greeted.promise
    const coordinator = coordinatorAddress.split('/').at(-1)
    return Object.assign(buyer, { identity, host, link, coordinator, coordinatorAddress, jobLinks: new Map() })
  }

  /** A signed request, and what only client and node know of it. `changes` are fields of `job_request`. */
  async request (input, { salt = randomBytes(numbers.SALT_BYTES), payload, ...changes } = {}) {
    const task = changes.task ?? 'causal_lm'
    payload ??= new Uint8Array(encode(PAYLOADS[task], input))
    const nowMs = Date.now()
    const unitsMax = changes.units_max ?? { input_tokens: 128, output_tokens: input.max_tokens }
    const request = await seal(this.identity, 'job_request', {
      job_id: ulid(),
      client: this.identity.id,
      coordinator: this.coordinator,
      task,
      payload_digest: payloadDigest(salt, payload),
      payload_bytes: payload.length,
      units_max: unitsMax,
      units_expected: unitsMax,
      objective: 'balanced',
      constraints: {},
      issued_at_ms: nowMs,
      deadline_at_ms: nowMs + 60_000,
      ...changes
    })
    return { request, salt, payload }
  }

  /** `told` are the other fields of `lease_ask`. */
  async lease (asked, told = {}) {
    const grant = await this.link.ask('lease', { request: asked.request.bytes, ...told })
    const lease = await open('lease', grant.lease)
    const offer = await open('node_offer', grant.offer)
    checkLease(lease, offer, asked.request, this.coordinator)
    return { ...asked, lease, offer }
  }

  /** Another stream to the coordinator, or to any address. */
  async freshLink (protocol = '/capa/lease/1', options = {}, address = this.coordinatorAddress) {
    return this.host.openLink(address, protocol, options)
  }

  async jobLink (granted) {
    const { node, addresses } = granted.offer.message
    let link = this.jobLinks.get(node)
    if (!link || link.why) {
      link = await this.host.openLink(addresses[0], '/capa/job/1')
      this.jobLinks.set(node, link)
      await link.greeted.promise
    }
    return link
  }

  /** Open the job, and follow it to its end. `behaviour` says where this client misbehaves. */
  async run (granted, behaviour = {}) {
    const job = new Job(this, granted, behaviour)
    try {
      await job.open()
      await job.follow()
    } catch (error) {
      job.code ??= error instanceof WireError ? error.code : 'node_lost'
      job.why = error.message
    }
    return job
  }

  /** What the client counted, in the client's own word. */
  async accept (job, changes = {}) {
    const { receipt } = job
    const units = changes.units ?? job.counted
    const digest = changes.output_digest ?? job.tally.digest
    const isSame = Object.entries(receipt.message.units).every(([name, count]) => units[name] === count)
    const agrees = isSame && digest === receipt.message.output_digest
    return seal(this.identity, 'acceptance', {
      receipt_digest: receipt.digest,
      lease_id: receipt.message.lease_id,
      client: this.identity.id,
      units,
      output_digest: digest,
      agrees,
      issued_at_ms: Date.now(),
      ...changes
    })
  }

  /** The job of a lease that this client never opened. */
  unopened (granted) { return new Job(this, granted, {}) }

  /** The client's word on a lease that ended without a receipt, or whose receipt it never got. */
  async deliver (job, changes = {}) {
    const { lease } = job.granted
    const sawNothing = !job.tally.tokenIds.length && !job.behaviour.cancelAfterChunks
    const units = sawNothing ? { input_tokens: 0, output_tokens: 0, images: 0, tensor_elements: 0 } : job.counted
    return seal(this.identity, 'delivery', {
      lease_id: lease.message.lease_id,
      lease_digest: lease.digest,
      client: this.identity.id,
      units,
      output_digest: job.tally.digest,
      code: job.code ?? 'node_lost',
      issued_at_ms: Date.now(),
      ...changes
    })
  }

  /** A text from as many nodes as it takes. Where one fails after its first output, the next goes on. */
  async purchase (input, changes, behaviour) {
    const jobs = []
    let [asked, part, prefix] = [await this.request(input, changes), 0, []]
    const told = { exclude: [], receipts: [], deliveries: [] }
    while (jobs.length < numbers.ATTEMPTS_MAX) {
      const job = await this.run(await this.lease(asked, told), behaviour)
      jobs.push(job)
      if (job.acceptance && job.receipt.message.amount_nano) job.settled = await this.settle(job)
      if (!job.code || !(retryable.has(job.code))) break
      told.exclude.push(job.granted.lease.message.node)
      if (!job.receipt) told.deliveries.push((await this.deliver(job)).bytes)
      else if (!job.receipt.message.amount_nano) told.receipts.push(job.receipt.bytes)
      if (!job.tally.tokenIds.length) continue
      prefix = [...prefix, ...job.tally.tokenIds]
      asked = await this.#nextPart(asked, { input, prefix, part: ++part, text: jobs.map(made => made.tally.text).join('') })
    }
    return jobs
  }

  async #nextPart (asked, { input, prefix, part, text }) {
    const { message: request } = asked.request
    const delivered = new Tally(asked.salt)
    delivered.add({ token_ids: prefix, text })
    const left = input.max_tokens - prefix.length
    const units = { input_tokens: request.units_max.input_tokens + prefix.length, output_tokens: left }
    return this.request({ ...input, max_tokens: left, prefix_tokens: prefix }, {
      salt: asked.salt,
      job_id: request.job_id,
      model: request.model,
      constraints: request.constraints,
      units_max: units,
      part,
      delivered_digest: delivered.digest
    })
  }

  async settle (job, acceptance = job.acceptance) {
    return this.link.ask('settle', { receipt: job.receipt.bytes, acceptance: acceptance.bytes })
  }
}

const checkLease = (lease, offer, request, coordinator) => {
  const [granted, asked, offered] = [lease.message, request.message, offer.message]
  must(lease.signer === coordinator && granted.coordinator === coordinator, 'wrong_signer', 'lease')
  must(offer.signer === offered.node && granted.node === offered.node, 'wrong_signer', 'offer')
  must(granted.request_digest === request.digest && granted.offer_digest === offer.digest, 'digest_mismatch', 'lease')
  must(granted.job_id === asked.job_id && granted.client === asked.client, 'digest_mismatch', 'lease')
  const model = offered.models.find(model => model.manifest_digest === granted.model_digest)
  must(model && [model.name, model.manifest_digest].includes(asked.model), 'unknown_model', 'lease')
  must(Object.entries(model.price).every(([name, nano]) => granted.price[name] === nano), 'price_mismatch', 'lease')
  must(Object.entries(granted.units_max).every(([name, most]) => most <= (asked.units_max[name] ?? 0)), 'malformed', 'lease')
  must(granted.ceiling_nano >= charge(granted.units_max, granted.price, 'length'), 'price_mismatch', 'ceiling')
}

class Job {
  constructor (buyer, granted, behaviour) {
    const { units_max: unitsMax } = granted.lease.message
    Object.assign(this, { buyer, granted, behaviour, windows: windowsOf(granted.lease.message) })
    this.tally = new Tally(granted.salt)
    this.inputChain = new Chain(this.windows.inputLinks)
    this.outputChain = new Chain(this.windows.outputLinks)
    this.units_max = unitsMax
    this.signedLink = 0
    this.nodeLink = 0
    this.chunks = 0
  }

  /** Units as this side counted them. */
  get counted () {
    const input = this.admission?.message.input_units ?? {}
    return { input_tokens: 0, images: 0, tensor_elements: 0, ...input, output_tokens: this.tally.tokenIds.length }
  }

  async open () {
    const { request, lease, salt, payload } = this.granted
    this.link = await this.buyer.jobLink(this.granted)
    this.channel = this.link.channel()
    this.opening = await seal(this.buyer.identity, 'job_opening', {
      lease_digest: lease.digest,
      client: this.buyer.identity.id,
      node: lease.message.node,
      input_anchor: this.inputChain.anchor,
      output_anchor: this.outputChain.anchor,
      issued_at_ms: Date.now(),
      ...this.behaviour.opening
    })
    const pieces = []
    for (let at = 0; at < payload.length; at += numbers.DATA_BYTES) pieces.push(payload.subarray(at, at + numbers.DATA_BYTES))
    this.channel.send('JOB_OPEN', encode('open_body', {
      request: request.bytes, lease: lease.bytes, opening: this.opening.bytes, salt, payload: pieces[0], ...this.behaviour.open
    }))
    for (const piece of pieces.slice(1)) this.channel.send('JOB_DATA', piece)
    for (const [type, body] of this.behaviour.thenSend ?? []) this.channel.send(type, body)
  }

  async follow () {
    for (let found = await this.channel.receive(); found; found = await this.channel.receive()) {
      const handle = this[found.type]
      must(handle, 'unexpected_frame', found.type)
      await handle.call(this, found.body)
      if (this.isOver) break
    }
    if (!this.isOver) throw this.link.why ?? new WireError('node_lost', 'the channel was closed')
    if (this.behaviour.hangUpAtReceipt) return this.channel.close()
    // The node sends CLOSE when it has the acceptance.
    while (await this.channel.receive());
  }

  async JOB_ACCEPTED (body) {
    const accepted = decode('accepted_body', body)
    this.admission = await open('job_admission', accepted.admission)
    must(this.admission.signer === this.granted.lease.message.node, 'wrong_signer', 'admission')
    must(this.admission.message.lease_digest === this.granted.lease.digest, 'digest_mismatch', 'admission')
    must(this.admission.message.input_units.input_tokens <= this.units_max.input_tokens, 'receipt_mismatch', 'input')
  }

  async JOB_CHUNK (body) {
    const chunk = decode('chunk', body)
    must(chunk.token_ids.length || chunk.text || chunk.data.length, 'malformed', 'a chunk of nothing')
    this.tally.add(chunk)
    this.data = Buffer.concat([this.data ?? Buffer.alloc(0), chunk.data])
    this.chunks++
    must(this.tally.tokenIds.length <= this.units_max.output_tokens, 'receipt_mismatch', 'more than leased')
    const { cancelAfterChunks, cancelAfterTokens } = this.behaviour
    if (this.chunks === cancelAfterChunks) this.channel.send('JOB_CANCEL')
    // Late, so that a node has time to send what it must not.
    if (this.tally.tokenIds.length === cancelAfterTokens) setTimeout(() => this.channel.send('JOB_CANCEL'), LATE_MS)
  }

  async JOB_PROGRESS (body) {
    const index = Buffer.from(body).readUInt32BE()
    must(index > this.nodeLink && index <= this.windows.outputLink(this.tally.tokenIds.length), 'receipt_mismatch', `link ${index}`)
    must(isLinkOf(this.admission.message.anchor, index, body.subarray(4)), 'bad_signature', `link ${index}`)
    this.nodeLink = index
    if (index > (this.behaviour.signUpTo ?? Infinity)) return
    const input = this.windows.inputLink(this.admission.message.input_units.input_tokens)
    this.signedLink = this.windows.outputLink(this.tally.tokenIds.length)
    this.countersign(input, this.inputChain.link(input), this.signedLink, this.outputChain.link(this.signedLink))
  }

  countersign (...links) {
    const [inputIndex, inputLink, index, link] = this.behaviour.countersign?.(links) ?? links
    const body = Buffer.alloc(2 * (4 + 32))
    body.writeUInt32BE(inputIndex)
    body.set(inputLink, 4)
    body.writeUInt32BE(index, 36)
    body.set(link, 40)
    this.channel.send('JOB_COUNTERSIGN', body)
  }

  async JOB_RECEIPT (body) {
    await this.#takeReceipt(body)
    this.isOver = true
    if (this.behaviour.hangUpAtReceipt) return
    this.acceptance = await this.buyer.accept(this, this.behaviour.acceptance)
    this.channel.send('JOB_ACCEPTANCE', this.acceptance.bytes)
  }

  async JOB_ERROR (body) {
    const error = decode('job_error_body', body)
    Object.assign(this, { code: error.code, why: error.message, retryAfterMs: error.retry_after_ms, isOver: true })
    if (!error.receipt.length) return
    await this.#takeReceipt(error.receipt)
    this.acceptance = await this.buyer.accept(this)
    this.channel.send('JOB_ACCEPTANCE', this.acceptance.bytes)
  }

  async #takeReceipt (bytes) {
    this.receipt = await open('receipt', bytes)
    const [receipt, lease] = [this.receipt.message, this.granted.lease]
    must(this.receipt.signer === lease.message.node, 'wrong_signer', 'receipt')
    must(receipt.lease_digest === lease.digest, 'digest_mismatch', 'receipt')
    for (const name of ['lease_id', 'job_id', 'node', 'client', 'coordinator', 'model_digest']) {
      must(receipt[name] === lease.message[name], 'receipt_mismatch', name)
    }
    must(receipt.amount_nano === charge(receipt.units, lease.message.price, receipt.finish), 'receipt_mismatch', 'amount')
  }
}
