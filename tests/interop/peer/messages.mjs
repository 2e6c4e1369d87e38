// Messages by the tables of the page, and the envelopes in which they are signed.
import { createHash, randomBytes } from 'node:crypto'
import { generateKeyPairFromSeed, publicKeyFromRaw } from '@libp2p/crypto/keys'
import { peerIdFromPublicKey } from '@libp2p/peer-id'
import { Float, WireError, pack, unpack } from './msgpack.mjs'
import { choices, messages, numbers } from './page.mjs'

export const hex = bytes => Buffer.from(bytes).toString('hex')
export const bytesOf = text => new Uint8Array(Buffer.from(text, 'hex'))
export const sha256 = (...parts) => parts.reduce((hash, part) => hash.update(part), createHash('sha256')).digest()
const itemOf = type => /^\[(.*)\]$/.exec(type)?.[1]
const NOTHING = new Uint8Array(0)

const fallbackOf = ({ type, fallback }) => {
  if (fallback === 'absent') return undefined
  if (fallback === 'empty') return NOTHING
  if (type in choices) return fallback
  const value = JSON.parse(fallback)
  return type in messages ? complete(type, value) : value
}

/** An object of the fields that have a value: one that is absent is no part of what is counted. */
const present = fields => Object.fromEntries(fields.filter(([, value]) => value !== undefined))

const complete = (message, fields) => present(messages[message].map(field =>
  [field.name, fields[field.name] ?? fallbackOf(field)]))

// ---- writing

const prepare = (type, value) => {
  const item = itemOf(type)
  if (item) return value.map(entry => prepare(item, entry))
  if (type === 'float') return new Float(value)
  if (!(type in messages)) return value
  const fields = {}
  for (const { name, type: of, fallback } of messages[type]) {
    if (value[name] === undefined) {
      if (fallback === '–') throw new Error(`${type} lacks ${name}`)
      continue
    }
    fields[name] = prepare(of, value[name])
  }
  return fields
}

/** Every field that has a value, in the order of the page. */
export const encode = (message, value) => pack(prepare(message, complete(message, value)))

// ---- reading

const refuse = why => { throw new WireError('malformed', why) }
const checks = {
  int: value => typeof value === 'bigint' || Number.isInteger(value),
  bool: value => typeof value === 'boolean',
  str: value => typeof value === 'string',
  bin: value => value instanceof Uint8Array,
  peer_id: value => /^12D3Koo[1-9A-HJ-NP-Za-km-z]{45}$/.test(value),
  ulid: value => /^[0-7][0-9A-HJKMNP-TV-Z]{25}$/.test(value),
  digest: value => /^[0-9a-f]{64}$/.test(value),
  code: value => /^[a-z][a-z0-9_]{0,63}$/.test(value)
}

class UnknownWord extends WireError {}

const readList = (item, values) => {
  if (!Array.isArray(values)) refuse('no array')
  const found = []
  for (const value of values) {
    try {
      found.push(read(item, value))
    } catch (error) {
      if (!(error instanceof UnknownWord && item in messages)) throw error
    }
  }
  return found
}

const read = (type, value) => {
  const item = itemOf(type)
  if (item) return readList(item, value)
  if (type in messages) return readMessage(type, value)
  if (type === 'float') {
    const plain = value instanceof Float ? value.value : value
    return Number.isFinite(Number(plain)) && typeof plain !== 'string' ? Number(plain) : refuse('no float')
  }
  if (type in checks) return checks[type](value) ? value : refuse(`no ${type}: ${value}`)
  if (typeof value !== 'string') refuse(`no ${type}`)
  if (!choices[type].includes(value)) throw new UnknownWord('malformed', `no ${type}: ${value}`)
  return value
}

const readMessage = (message, value) => {
  if (value === null || typeof value !== 'object' || value.constructor !== Object) refuse(`${message} is no map`)
  return present(messages[message].map(field => {
    const given = value[field.name]
    if (given === undefined && field.fallback === '–') refuse(`${message} lacks ${field.name}`)
    if (given === undefined || (given === null && field.fallback === 'absent')) return [field.name, fallbackOf(field)]
    return [field.name, read(field.type, given)]
  }))
}

export const decode = (message, bytes) => readMessage(message, unpack(bytes))

// ---- identity and envelopes

export const identityOf = async seed => {
  const key = await generateKeyPairFromSeed('Ed25519', seed)
  return { key, raw: key.publicKey.raw, id: peerIdFromPublicKey(key.publicKey).toString() }
}

const CROCKFORD = '0123456789ABCDEFGHJKMNPQRSTVWXYZ'
export const ulid = (nowMs = Date.now()) => {
  let rest = BigInt(nowMs) << 80n | BigInt(`0x${randomBytes(10).toString('hex')}`)
  let text = ''
  for (let n = 0; n < 26; n++, rest >>= 5n) text = CROCKFORD[Number(rest & 31n)] + text
  return text
}

const signed = (kind, body) => Buffer.concat([Buffer.from(`capa/1/${kind}\0`), body])
export const digestOf = (kind, body) => hex(sha256(signed(kind, body)))

/** Sign these bytes as a message of this kind, whatever they are. */
export const sealBytes = async (identity, kind, body) => {
  const signature = await identity.key.sign(signed(kind, body))
  return { bytes: pack([1, kind, identity.raw, body, signature]), digest: digestOf(kind, body), body, signature }
}

export const seal = async (identity, kind, message) => {
  const envelope = await sealBytes(identity, kind, encode(kind, message))
  return { ...envelope, message: complete(kind, message) }
}

/** Verified and decoded, or a WireError. */
export const open = async (kind, bytes) => {
  const limit = kind === 'node_offer' ? numbers.OFFER_BYTES_MAX : numbers.SIGNED_BYTES_MAX
  if (bytes.length > limit) throw new WireError('frame_too_large', kind)
  const parts = unpack(bytes)
  if (!Array.isArray(parts) || parts.length !== 5) refuse('an envelope has five parts')
  const [version, named, raw, body, signature] = parts
  if (version !== 1) throw new WireError('unknown_version', `${version}`)
  if (named !== kind) refuse(`a ${named} instead of a ${kind}`)
  if (raw?.length !== 32 || signature?.length !== 64 || !(body instanceof Uint8Array)) refuse('sizes')
  const publicKey = publicKeyFromRaw(raw)
  if (!await publicKey.verify(signed(kind, body), signature)) throw new WireError('bad_signature', kind)
  const signer = peerIdFromPublicKey(publicKey).toString()
  return { message: decode(kind, body), signer, digest: digestOf(kind, body), bytes, body, signature }
}
