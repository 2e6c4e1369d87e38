// One job at a node: its checks, its windows, its receipt. Section 5 of the page.
import { Chain, Tally, charge, isLinkOf, payloadDigest, windowsOf } from './accounting.mjs'
import { decode, encode, open, seal } from './messages.mjs'
import { WireError } from './msgpack.mjs'
import { numbers } from './page.mjs'

const must = (truth, code, why) => { if (!truth) throw new WireError(code, why) }
const sleep = ms => new Promise(resolve => setTimeout(resolve, ms))
const TIERS = ['none', 'landlock', 'bwrap']
const covers = (most, units) => Object.entries(units).every(([name, count]) => count <= (most[name] ?? 0))
const samePrice = (one, other) => Object.keys(one).every(name => one[name] === other[name])

export class ServedJob {
  constructor (seller, channel) {
    Object.assign(this, { seller, channel, openedAtMs: Date.now(), input: 0, nodeLink: 0, countersigned: undefined })
    this.wake = Promise.withResolvers()
  }

  get behaviour () { return this.seller.behaviour }
  get units () { return { input_tokens: this.input, output_tokens: this.tally.tokenIds.length, images: 0, tensor_elements: 0 } }

  async serve () {
    try {
      await this.#open()
      await this.#admit()
      this.seller.count(this.lease.message.model_digest, +1)
      await this.#stream().finally(() => this.seller.count(this.lease.message.model_digest, -1))
    } catch (error) {
      if (!(error instanceof WireError)) this.surprise = error.stack
      await this.#fail(error)
    }
    this.channel.close()
  }

  // ---- before it runs

  async #open () {
    const first = await this.channel.receive()
    must(first?.type === 'JOB_OPEN', 'unexpected_frame', first?.type)
    const body = decode('open_body', first.body)
    this.request = await open('job_request', body.request)
    const lease = await open('lease', body.lease)
    const opening = await open('job_opening', body.opening)
    this.tally = new Tally(body.salt)
    this.payload = Buffer.from(body.payload)
    while (this.payload.length < this.request.message.payload_bytes) {
      const piece = await this.channel.receive()
      must(piece?.type === 'JOB_DATA', 'unexpected_frame', piece?.type)
      this.payload = Buffer.concat([this.payload, piece.body])
    }
    must(this.payload.length === this.request.message.payload_bytes, 'digest_mismatch', 'payload')
    must(payloadDigest(body.salt, this.payload) === this.request.message.payload_digest, 'digest_mismatch', 'payload')
    this.#checkNames(lease, opening)
    this.#checkTerms(lease)
    this.seller.spent.add(lease.message.lease_id)
    this.seller.opened.push(lease.message.lease_id)
    Object.assign(this, { lease, opening, windows: windowsOf(lease.message) })
    this.chain = new Chain(this.windows.outputLinks)
  }

  #checkNames (lease, opening) {
    const [leased, asked, opened] = [lease.message, this.request.message, opening.message]
    must(leased.request_digest === this.request.digest && leased.job_id === asked.job_id, 'digest_mismatch', 'request')
    must(opening.signer === leased.client && opened.client === leased.client, 'wrong_signer', 'opening')
    must(opened.lease_digest === lease.digest, 'digest_mismatch', 'opening')
    must(opened.node === leased.node, 'wrong_audience', 'opening')
    must(lease.signer === this.seller.coordinator, 'untrusted_coordinator', lease.signer)
    must(this.request.signer === asked.client && asked.client === leased.client, 'wrong_signer', 'request')
    must(leased.coordinator === lease.signer && asked.coordinator === lease.signer, 'wrong_signer', 'lease')
    must(asked.model.length !== 64 || asked.model === leased.model_digest, 'digest_mismatch', 'model')
  }

  #checkTerms (lease) {
    const [leased, asked, nowMs] = [lease.message, this.request.message, Date.now()]
    const offer = this.seller.isOwnOffer(leased.offer_digest)
    must(leased.ceiling_nano >= charge(leased.units_max, leased.price, 'length'), 'price_mismatch', 'ceiling')
    must(leased.node === this.seller.identity.id, 'wrong_audience', leased.node)
    must(covers(asked.units_max, leased.units_max), 'malformed', 'units')
    must(nowMs >= leased.issued_at_ms - numbers.CLOCK_SKEW_MAX_MS, 'not_yet_valid', 'lease')
    must(nowMs <= leased.open_before_ms + numbers.CLOCK_SKEW_MAX_MS, 'expired', 'lease')
    must(offer && nowMs <= offer.expires_at_ms + numbers.LEASE_OPEN_WITHIN_MS + numbers.CLOCK_SKEW_MAX_MS, 'price_mismatch', 'offer')
    must(leased.open_before_ms - leased.issued_at_ms <= numbers.LEASE_OPEN_WITHIN_MS, 'malformed', 'open_before_ms')
    must(!this.seller.spent.has(leased.lease_id), 'replayed', leased.lease_id)
  }

  async #admit () {
    const { seller, lease: { message: leased } } = this
    if (this.behaviour.refuse) throw new WireError(this.behaviour.refuse, 'as told')
    must(!seller.isDraining, 'draining', 'it shuts down')
    must(TIERS.indexOf(seller.isolation) >= TIERS.indexOf(this.request.message.constraints.isolation), 'isolation_unavailable', '')
    const model = seller.modelOf(leased.model_digest)
    must(model, 'unknown_model', leased.model_digest)
    must(samePrice(model.price, leased.price), 'price_mismatch', 'price')
    must(this.request.message.task === 'causal_lm', 'invalid_input', 'task')
    must((seller.running.get(leased.model_digest) ?? 0) < model.slots, 'busy', 'no slot')
    try {
      this.generation = decode('generation_input', this.payload)
    } catch (error) {
      throw new WireError('invalid_input', error.message)
    }
    const { messages, prompt, prompt_tokens: promptTokens, prefix_tokens: prefixTokens } = this.generation
    const words = [...messages.map(message => message.content), prompt ?? ''].join(' ').split(/\s+/).filter(Boolean)
    this.input = words.length + promptTokens.length + prefixTokens.length
    must(this.input <= leased.units_max.input_tokens, 'input_too_large', `${this.input}`)
    const admission = await seal(seller.identity, 'job_admission', {
      lease_digest: this.lease.digest,
      node: seller.identity.id,
      input_units: { input_tokens: this.input },
      anchor: this.chain.anchor,
      issued_at_ms: Date.now()
    })
    this.channel.send('JOB_ACCEPTED', encode('accepted_body', { admission: admission.bytes, queue_position: 0 }))
    this.queuedMs = Date.now() - this.openedAtMs
  }

  // ---- while it runs

  async #stream () {
    this.#listen()
    const most = Math.min(this.generation.max_tokens, this.lease.message.units_max.output_tokens)
    const begun = this.generation.prefix_tokens.length
    for (let n = 0; n < most; n++) {
      if (!await this.#mayGoOn()) return this.#finish('cancelled')
      if (n === this.behaviour.exitAfterTokens) process.exit(1)
      if (n === this.behaviour.breakAfterTokens) throw new WireError('worker_crashed', 'as told')
      this.#produce(begun + n)
      await sleep(this.behaviour.tokenMs ?? 1)
    }
    await this.#finish('length')
  }

  /** Token n of this node's only answer is 1000 + n. */
  #produce (n) {
    const chunk = { token_ids: [1000 + n], text: `${n} ` }
    this.firstMs ??= Date.now() - this.openedAtMs
    this.tally.add(chunk)
    this.channel.send('JOB_CHUNK', encode('chunk', chunk))
    const due = this.windows.outputLink(this.tally.tokenIds.length) + (this.behaviour.claimAhead ?? 0)
    if (due === this.nodeLink) return
    this.nodeLink = due
    const head = Buffer.alloc(4)
    head.writeUInt32BE(due)
    this.channel.send('JOB_PROGRESS', Buffer.concat([head, this.chain.link(due)]))
  }

  /** Waits for a signature where two windows lack one. False once the client has cancelled. */
  async #mayGoOn () {
    const signed = () => Math.max((this.countersigned?.index ?? 0) - 1, 0) * this.windows.window
    const ahead = numbers.UNSIGNED_WINDOWS_MAX * this.windows.window
    while (!this.isCancelled && this.tally.tokenIds.length + 1 > signed() + ahead) {
      this.wake = Promise.withResolvers()
      await Promise.race([this.wake.promise, sleep(numbers.SIGN_WITHIN_S).then(() => { throw new WireError('unsigned', 'silence') })])
    }
    if (this.mistake) throw this.mistake
    return !this.isCancelled
  }

  async #listen () {
    const ended = Promise.withResolvers()
    this.accepting = ended.promise
    try {
      for (let found = await this.channel.receive(0); found; found = await this.channel.receive(0)) {
        if (found.type === 'JOB_ACCEPTANCE') return ended.resolve(found.body)
        if (found.type === 'JOB_COUNTERSIGN') this.#take(Buffer.from(found.body))
        else this.isCancelled = true
        this.wake.resolve()
      }
      this.isCancelled = true
    } catch (error) {
      this.isCancelled = true
      if (error instanceof WireError) this.mistake = error
    }
    this.wake.resolve()
    ended.resolve(null)
  }

  #take (body) {
    const links = {
      input_index: body.readUInt32BE(), input_link: new Uint8Array(body.subarray(4, 36)), index: body.readUInt32BE(36), link: new Uint8Array(body.subarray(40))
    }
    const { input_anchor: inputAnchor, output_anchor: outputAnchor } = this.opening.message
    must(links.index > (this.countersigned?.index ?? 0), 'unexpected_frame', 'a link twice')
    must(links.input_index === this.windows.inputLink(this.input), 'unsigned', 'input')
    must(isLinkOf(inputAnchor, links.input_index, links.input_link), 'bad_signature', 'input link')
    must(isLinkOf(outputAnchor, links.index, links.link), 'bad_signature', 'output link')
    this.countersigned = links
  }

  // ---- its end

  async #sealReceipt (finish, code = '') {
    const { lease: { message: leased, digest }, seller } = this
    const totalMs = Date.now() - this.openedAtMs
    const units = finish === 'refused' ? { input_tokens: 0, output_tokens: 0, images: 0, tensor_elements: 0 } : { ...this.units }
    units.output_tokens += this.behaviour.billBeside ?? 0
    const prefix = finish === 'refused' ? 0 : this.generation?.prefix_tokens.length
    const names = ['lease_id', 'job_id', 'node', 'client', 'coordinator', 'model_digest']
    this.receipt = await seal(seller.identity, 'receipt', {
      ...Object.fromEntries(names.map(name => [name, leased[name]])),
      lease_digest: digest,
      units,
      amount_nano: charge(units, leased.price, finish),
      output_digest: this.tally.digest,
      finish,
      code,
      queued_ms: this.queuedMs ?? totalMs,
      first_output_ms: this.firstMs ?? totalMs,
      total_ms: totalMs,
      issued_at_ms: Date.now(),
      opening: this.opening.bytes,
      countersigned: this.countersigned,
      prefix_tokens: prefix
    })
  }

  async #finish (finish) {
    await this.#sealReceipt(finish)
    this.channel.send('JOB_RECEIPT', this.receipt.bytes)
    await this.#awaitAcceptance()
  }

  async #fail (error) {
    const code = error.code ?? 'internal'
    if (this.lease) await this.#sealReceipt(this.queuedMs === undefined ? 'refused' : 'failed', code)
    this.channel.send('JOB_ERROR', encode('job_error_body', {
      code, message: error.message.slice(0, numbers.MESSAGE_CHARS_MAX), receipt: this.receipt?.bytes
    }))
    if (this.lease && !this.accepting) this.#listen()
    if (this.lease) await this.#awaitAcceptance()
  }

  async #awaitAcceptance () {
    const bytes = await Promise.race([this.accepting, sleep(numbers.ACCEPTANCE_WAIT_MS)])
    if (!bytes) return
    const acceptance = await open('acceptance', bytes)
    if (acceptance.signer === this.lease.message.client && acceptance.message.receipt_digest === this.receipt.digest) this.acceptance = acceptance
  }
}
