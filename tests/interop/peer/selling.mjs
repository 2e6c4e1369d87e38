// A node: offers by gossip, attaches to a coordinator, reports load, hands its receipts in.
import { canonicalManifest, offerTopic } from './accounting.mjs'
import { Host, LOOPBACK } from './host.mjs'
import { Link } from './frames.mjs'
import { hex, seal, sha256 } from './messages.mjs'
import { numbers } from './page.mjs'
import { ServedJob } from './serving.mjs'

export const sleep = ms => new Promise(resolve => setTimeout(resolve, ms))
const OFFER_LIFE_MS = 180_000

export const manifestOf = name => {
  const file = { path: 'answer.txt', sha256: hex(sha256('an answer')), bytes: 9 }
  const rest = { architecture: 'fixed', dtype: 'none', quantization: 'none', context_tokens: 4096, licence: 'CC0-1.0', source: '' }
  return { name, task: 'causal_lm', files: [file], ...rest }
}

export class Seller {
  /** `models` are `{name, digest?, price, slots?}`; `behaviour` says where this node misbehaves. */
  static async start (identity, { coordinator, models, isolation = 'none', behaviour = {} }) {
    const seller = Object.assign(new Seller(), {
      identity, isolation, behaviour, coordinatorAddress: coordinator, coordinator: coordinator.split('/').at(-1)
    })
    seller.models = models.map(({ name, digest, price, slots = 4 }) => ({
      name,
      manifest_digest: digest ?? hex(sha256(canonicalManifest(manifestOf(name)))),
      task: 'causal_lm',
      quantization: 'none',
      context_tokens: 4096,
      slots,
      queue_max: 0,
      prefill_tps: 10_000,
      decode_tps: 1000,
      price: { input_nano_per_mtok: 0, output_nano_per_mtok: 0, image_nano: 0, request_nano: 0, ...price }
    }))
    Object.assign(seller, { offers: new Map(), spent: new Set(), opened: [], told: [], handed: [], jobs: [], running: new Map(), changes: 0, sequence: 0 })
    seller.incarnationMs = Date.now()
    seller.host = await Host.start(identity, { listen: [LOOPBACK] })
    await seller.host.handle('/capa/job/1', stream => seller.#meet(stream))
    seller.host.pubsub.subscribe(offerTopic(identity.id))
    await seller.#attach()
    return seller
  }

  #meet (stream) {
    return new Link(stream, { role: 'node', serve: channel => this.#serve(channel) })
  }

  async #serve (channel) {
    const job = new ServedJob(this, channel)
    this.jobs.push(job)
    await job.serve()
    if (job.receipt) await this.#handIn(job)
  }

  // ---- the coordinator

  async #attach () {
    this.control = await this.host.openLink(this.coordinatorAddress, '/capa/control/1', { role: 'node' })
    await this.control.greeted.promise
    this.offer = await this.makeOffer()
    // First: the coordinator passes on what is news to it, and after the attach this is none.
    await this.publish()
    const { report_every_ms: everyMs } = await this.control.ask('attach', { offer: this.offer.bytes, load: this.load() })
    this.reportEveryMs = Math.min(Math.max(everyMs, numbers.REPORT_EVERY_MS_MIN), numbers.REPORT_EVERY_MS_MAX)
    this.reporting = this.#report()
  }

  async makeOffer (changes = {}) {
    const nowMs = Date.now()
    const offer = await seal(this.identity, 'node_offer', {
      node: this.identity.id,
      incarnation_ms: this.incarnationMs,
      sequence: this.sequence++,
      issued_at_ms: nowMs,
      expires_at_ms: nowMs + OFFER_LIFE_MS,
      addresses: this.host.addresses,
      region: 'javascript',
      isolation: this.isolation,
      hardware: { kind: 'cpu', name: 'JavaScript', memory_bytes: 2 ** 30, count: 1 },
      models: this.isDraining ? [] : this.models,
      software: 'interop',
      data_collection: 'deny',
      ...changes
    })
    this.offers.set(offer.digest, offer.message)
    return offer
  }

  /** By gossip; returns how many neighbours took it. The first are there some moments after they connect. */
  async publish (offer = this.offer, topic = offerTopic(this.identity.id)) {
    for (let tries = 0; tries < 50; tries++) {
      const { recipients } = await this.host.pubsub.publish(topic, offer.bytes)
      if (recipients.length) return recipients.length
      await sleep(100)
    }
    return 0
  }

  /** What the coordinator says to an attach with this offer: a code, or `nothing`. */
  async tryAttach (changes) {
    const { bytes } = await this.makeOffer(changes)
    try {
      await this.control.ask('attach', { offer: bytes, load: this.load() })
    } catch (error) {
      return error.code
    }
    return 'nothing'
  }

  /** The last offer, without models: by gossip, and as another attach. */
  async drain () {
    this.isDraining = true
    this.offer = await this.makeOffer()
    const recipients = await this.publish()
    await this.control.ask('attach', { offer: this.offer.bytes, load: this.load() })
    return recipients
  }

  load (opened = []) {
    const models = this.models.map(({ manifest_digest: digest }) =>
      ({ manifest_digest: digest, running: this.running.get(digest) ?? 0, queued: 0, available: true }))
    return { incarnation_ms: this.incarnationMs, draining: Boolean(this.isDraining), models, opened }
  }

  /** A job of this model begins or ends. */
  count (digest, change) {
    this.running.set(digest, (this.running.get(digest) ?? 0) + change)
    this.changes++
  }

  /** Soon after a change, and every so often without one. */
  async #report () {
    let [told, waitedMs] = [this.changes, 0]
    while (!this.control.why) {
      await sleep(numbers.REPORT_INTERVAL_MIN_S)
      waitedMs += numbers.REPORT_INTERVAL_MIN_S
      if (this.changes === told && !this.opened.length && waitedMs < this.reportEveryMs) continue
      const opened = this.opened.slice(0, numbers.OPENED_LEASES_MAX)
      try {
        await this.control.ask('load', this.load(opened))
      } catch {
        return
      }
      this.told.push(...this.opened.splice(0, opened.length))
      ;[told, waitedMs] = [this.changes, 0]
    }
  }

  async #handIn (job) {
    const acceptance = job.acceptance?.bytes ?? new Uint8Array(0)
    const { units, finish, code, amount_nano: charged } = job.receipt.message
    const told = { lease_id: job.lease.message.lease_id, units, finish, code, charged, accepted: job.acceptance?.message.agrees ?? null }
    try {
      Object.assign(told, await this.control.ask('receipt', { receipt: job.receipt.bytes, acceptance }))
    } catch (error) {
      told.refused = error.code
    }
    this.handed.push(told)
  }

  /** Another receipt for the last job, signed as well. */
  async handInOther () {
    const job = this.jobs.at(-1)
    const other = await seal(this.identity, 'receipt', { ...job.receipt.message, total_ms: job.receipt.message.total_ms + 1 })
    return this.control.ask('receipt', { receipt: other.bytes, acceptance: new Uint8Array(0) })
  }

  modelOf (digest) { return this.models.find(model => model.manifest_digest === digest) }
  isOwnOffer (digest) { return this.offers.get(digest) }
}
