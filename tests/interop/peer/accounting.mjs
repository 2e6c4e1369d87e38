// What both sides compute of a job: charges, digests, windows and chains. Section 5 of the page.
import { createHash, randomBytes } from 'node:crypto'
import { hex, sha256 } from './messages.mjs'
import { numbers } from './page.mjs'

export const charge = (units, price, finish) => {
  const of = (source, name) => BigInt(source[name] ?? 0)
  const [input, output, images, elements] =
    ['input_tokens', 'output_tokens', 'images', 'tensor_elements'].map(name => of(units, name))
  if (input + output + images + elements === 0n || finish === 'refused' || (finish === 'failed' && output === 0n)) return 0
  const millionths = input * of(price, 'input_nano_per_mtok') + output * of(price, 'output_nano_per_mtok') +
    1000n * elements * of(price, 'tensor_nano_per_kelement')
  return Number((millionths + 999_999n) / 1_000_000n + images * of(price, 'image_nano') + of(price, 'request_nano'))
}

export const providerShare = (amount, feeBps) => Number(BigInt(amount) * BigInt(10_000 - feeBps) / 10_000n)

export const payloadDigest = (salt, payload) => hex(sha256(salt, payload))

const u32 = (...numbers) => {
  const bytes = Buffer.alloc(4 * numbers.length)
  numbers.forEach((number, n) => bytes.writeUInt32BE(number, 4 * n))
  return bytes
}

/** `texts` are lists of token ids. */
export const inputDigest = (salt, texts, prefixTokens = 0) => {
  const lists = texts.map(ids => u32(ids.length, ...ids))
  return hex(sha256(salt, sha256('capa/1/input\0', u32(prefixTokens), ...lists)))
}

/** The seed of a text for which the client names none. */
export const drawnSeed = requestDigest =>
  sha256('capa/1/seed\0', Buffer.from(requestDigest, 'hex')).readBigUInt64BE() & 0x7fffffffffffffffn

/** Counts an answer and digests it, chunk by chunk. */
export class Tally {
  constructor (salt) {
    this.salt = salt
    this.tokenIds = []
    this.text = ''
    this.hashes = { token_ids: createHash('sha256'), text: createHash('sha256'), data: createHash('sha256') }
  }

  add ({ token_ids: ids = [], text = '', data = new Uint8Array(0) }) {
    this.hashes.token_ids.update(u32(...ids))
    this.hashes.text.update(text, 'utf8')
    this.hashes.data.update(data)
    this.tokenIds.push(...ids)
    this.text += text
  }

  get digest () {
    const { token_ids: ids, text, data } = this.hashes
    return hex(sha256(this.salt, ...[ids, text, data].map(hash => hash.copy().digest())))
  }
}

/** How a lease divides a job into windows. */
export const windowsOf = lease => {
  const { input_tokens: input, output_tokens: output } = lease.units_max
  const window = Math.max(lease.window_tokens, Math.ceil(output / (numbers.LINKS_MAX - 1)))
  const step = Math.max(window, Math.ceil(input / numbers.INPUT_STEPS_MAX))
  return {
    window,
    outputLinks: 1 + Math.ceil(output / window),
    inputLinks: Math.ceil(input / step),
    outputLink: count => 1 + Math.floor(count / window),
    inputLink: count => Math.ceil(count / step)
  }
}

/** Links 0 … `last`; the last is the secret, and each other is the sha256 of the one after it. */
export class Chain {
  constructor (last, secret = randomBytes(32)) {
    this.links = [secret]
    while (this.links.length <= last) this.links.unshift(sha256(this.links[0]))
  }

  get anchor () { return this.links[0] }
  link (index) { return this.links[index] }
}

export const isLinkOf = (anchor, index, link) => {
  let found = Buffer.from(link)
  for (let n = 0; n < index; n++) found = sha256(found)
  return found.equals(Buffer.from(anchor))
}

export const offerTopic = id => `/capa/offers/1/${[...Buffer.from(id.slice(-4))].reduce((sum, byte) => sum + byte) % 4}`

const canonical = value => {
  if (Array.isArray(value)) return `[${value.map(canonical)}]`
  if (typeof value !== 'object') return JSON.stringify(value)
  return `{${Object.keys(value).sort().map(name => `${JSON.stringify(name)}:${canonical(value[name])}`)}}`
}

export const canonicalManifest = manifest => {
  const files = [...manifest.files].sort((a, b) => Buffer.compare(Buffer.from(a.path), Buffer.from(b.path)))
  return canonical({ ...manifest, files })
}
