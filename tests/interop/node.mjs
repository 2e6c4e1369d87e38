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

  async renew (changes) { return seller.renew(changes) },

  async drain () { return seller.drain() }
})
