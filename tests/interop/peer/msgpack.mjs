// msgpack as the page wants it: shortest forms, floats of 64 bits, no field twice, nothing after the value.

/** A float, also where its value is an integer: an `int` field must not hold one. */
export class Float {
  constructor (value) { this.value = value }
}

/** What the page calls `malformed`, `truncated` and so on; `code` is that word. */
export class WireError extends Error {
  constructor (code, message = '') {
    super(`${code}: ${message}`)
    this.code = code
  }
}

const INTEGERS = [[0xcc, 1], [0xcd, 2], [0xce, 4], [0xcf, 8]]
const NEGATIVES = [[0xd0, 1], [0xd1, 2], [0xd2, 4], [0xd3, 8]]

const bigEndian = (value, size) => {
  const bytes = Buffer.alloc(size)
  let rest = BigInt.asUintN(8 * size, BigInt(value))
  for (let at = size - 1; at >= 0; at--, rest >>= 8n) bytes[at] = Number(rest & 255n)
  return bytes
}

const packInteger = value => {
  if (value >= 0 && value < 128) return Buffer.from([Number(value)])
  if (value < 0 && value >= -32) return Buffer.from([Number(value) + 256])
  const forms = value < 0 ? NEGATIVES : INTEGERS
  const bits = size => BigInt(8 * size - (value < 0 ? 1 : 0))
  const form = forms.find(([, size]) => value < 0 ? -BigInt(value) <= 1n << bits(size) : BigInt(value) < 1n << bits(size))
  if (!form) throw new WireError('malformed', `${value} has more than 64 bits`)
  return Buffer.concat([Buffer.from([form[0]]), bigEndian(value, form[1])])
}

const packFloat = value => {
  const bytes = Buffer.alloc(9, 0xcb)
  bytes.writeDoubleBE(value, 1)
  return bytes
}

/** `short` is a one-byte head for lengths below its `limit`; `long` are the heads for 1, 2, 4 bytes of length. */
const packLength = (length, [short, limit], long) => {
  if (length < limit) return Buffer.from([short + length])
  const [head, size] = long.find(([, size]) => length < 2 ** (8 * size))
  return Buffer.concat([Buffer.from([head]), bigEndian(length, size)])
}

export const pack = value => {
  if (value === null || value === undefined) return Buffer.from([0xc0])
  if (typeof value === 'boolean') return Buffer.from([value ? 0xc3 : 0xc2])
  if (value instanceof Float) return packFloat(value.value)
  if (typeof value === 'bigint' || Number.isInteger(value)) return packInteger(value)
  if (typeof value === 'number') return packFloat(value)
  if (typeof value === 'string') {
    const bytes = Buffer.from(value)
    return Buffer.concat([packLength(bytes.length, [0xa0, 32], [[0xd9, 1], [0xda, 2], [0xdb, 4]]), bytes])
  }
  if (value instanceof Uint8Array) {
    return Buffer.concat([packLength(value.length, [0, 0], [[0xc4, 1], [0xc5, 2], [0xc6, 4]]), value])
  }
  if (Array.isArray(value)) {
    return Buffer.concat([packLength(value.length, [0x90, 16], [[0xdc, 2], [0xdd, 4]]), ...value.map(pack)])
  }
  const fields = Object.entries(value).filter(([, field]) => field !== undefined)
  return Buffer.concat([packLength(fields.length, [0x80, 16], [[0xde, 2], [0xdf, 4]]), ...fields.flat().map(pack)])
}

class Reader {
  constructor (bytes) {
    this.bytes = Buffer.from(bytes)
    this.at = 0
  }

  take (size) {
    if (this.at + size > this.bytes.length) throw new WireError('truncated', `at byte ${this.bytes.length}`)
    this.at += size
    return this.bytes.subarray(this.at - size, this.at)
  }

  integer (size, signed = false) {
    let value = 0n
    for (const byte of this.take(size)) value = value << 8n | BigInt(byte)
    if (signed) value = BigInt.asIntN(8 * size, value)
    return Number.isSafeInteger(Number(value)) ? Number(value) : value
  }

  text (size) {
    try {
      return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(this.take(size))
    } catch (error) {
      throw error instanceof WireError ? error : new WireError('malformed', 'text is no UTF-8')
    }
  }

  map (size) {
    const fields = {}
    for (let n = 0; n < size; n++) {
      const name = this.value()
      if (typeof name !== 'string') throw new WireError('malformed', 'a field without a name')
      if (Object.hasOwn(fields, name)) throw new WireError('malformed', `${name} comes twice`)
      fields[name] = this.value()
    }
    return fields
  }

  array (size) { return Array.from({ length: size }, () => this.value()) }

  value () {
    const head = this.integer(1)
    if (head < 0x80) return head
    if (head < 0x90) return this.map(head & 15)
    if (head < 0xa0) return this.array(head & 15)
    if (head < 0xc0) return this.text(head & 31)
    if (head >= 0xe0) return head - 256
    switch (head) {
      case 0xc0: return null
      case 0xc2: return false
      case 0xc3: return true
      case 0xc4: case 0xc5: case 0xc6: return new Uint8Array(this.take(this.integer(2 ** (head - 0xc4))))
      case 0xca: return new Float(this.take(4).readFloatBE())
      case 0xcb: return new Float(this.take(8).readDoubleBE())
      case 0xcc: case 0xcd: case 0xce: case 0xcf: return this.integer(2 ** (head - 0xcc))
      case 0xd0: case 0xd1: case 0xd2: case 0xd3: return this.integer(2 ** (head - 0xd0), true)
      case 0xd9: case 0xda: case 0xdb: return this.text(this.integer(2 ** (head - 0xd9)))
      case 0xdc: case 0xdd: return this.array(this.integer(2 ** (head - 0xdb)))
      case 0xde: case 0xdf: return this.map(this.integer(2 ** (head - 0xdd)))
    }
    throw new WireError('malformed', `byte ${head} begins no value`)
  }
}

export const unpack = bytes => {
  const reader = new Reader(bytes)
  const value = reader.value()
  if (reader.at < bytes.length) throw new WireError('trailing_bytes', `${bytes.length - reader.at}`)
  return value
}
