// A node that tests direct, call by call.
import './peer/node20.mjs'
import { bytesOf, identityOf } from './peer/messages.mjs'
import { Seller } from './peer/selling.mjs'
import { serveCalls } from './peer/rpc.mjs'

let seller

serveCalls({

  async start ({ seed, ...options }) {
    seller = await Seller.start(await identityOf(bytesOf(seed)), options)
    return { id: seller.identity.id, addresses: seller.host.addresses, digests: seller.models.map(model => model.manifest_digest) }
  },

  behave (behaviour) { seller.behaviour = behaviour },

  /** Receipts that were handed in, and what the coordinator said. */
  handed () { return seller.handed },

  async hand_in_other () { return seller.handInOther() },

  /** Leases that load reports named, and the coordinator took note of. */
  told () { return seller.told },

  /** What went wrong in jobs, and was no refusal. */
  surprises () { return seller.jobs.map(job => job.surprise).filter(Boolean) },

  /** Attaches with an offer that has these fields, or stamps so far from now. */
  async try_attach ({ changes = {}, issued_in_ms: issuedInMs = 0, life_ms: lifeMs }) {
    if (lifeMs === undefined) return seller.tryAttach(changes)
    const issuedAtMs = Date.now() + issuedInMs
    return seller.tryAttach({ ...changes, issued_at_ms: issuedAtMs, expires_at_ms: issuedAtMs + lifeMs })
  },

  async drain () { return seller.drain() }
})
