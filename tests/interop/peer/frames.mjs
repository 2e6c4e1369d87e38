// Frames and channels on one stream. Section 3 of the page.
import { decode, encode } from './messages.mjs'
import { WireError } from './msgpack.mjs'
import { frames, numbers } from './page.mjs'

const HEAD_BYTES = 10
const names = Object.fromEntries(Object.entries(frames).map(([name, number]) => [number, name]))
const NOTHING = new Uint8Array(0)

/** `type` is a name of the page, or any number. */
export const frame = (type, channel, body = NOTHING, { version = 1, length = body.length } = {}) => {
  const head = Buffer.alloc(HEAD_BYTES)
  head.writeUInt8(version, 0)
  head.writeUInt8(frames[type] ?? type, 1)
  head.writeUInt32BE(channel, 2)
  head.writeUInt32BE(length, 6)
  return Buffer.concat([head, body])
}

/** Values for one reader, which waits with a deadline; `end` wakes it with null. */
export class Queue {
  #values = []
  #wake = null
  #isEnded = false

  push (value) {
    if (!this.#isEnded) this.#values.push(value)
    this.#wake?.()
  }

  end () {
    this.#isEnded = true
    this.#wake?.()
  }

  async next (withinMs) {
    if (!this.#values.length && !this.#isEnded) {
      let timer
      await new Promise((resolve, reject) => {
        this.#wake = resolve
        if (withinMs) timer = setTimeout(() => reject(new Error(`nothing came within ${withinMs} ms`)), withinMs)
      }).finally(() => { clearTimeout(timer); this.#wake = null })
    }
    return this.#values.length ? this.#values.shift() : null
  }
}

class Channel {
  constructor (link, number) {
    Object.assign(this, { link, number, frames: new Queue() })
  }

  send (type, body) { this.link.write(frame(type, this.number, body)) }

  /** The next frame, or null after CLOSE and at the end of the stream. An ERROR, which CLOSE follows, is raised. */
  async receive (withinMs = 30_000) {
    const found = await this.frames.next(withinMs)
    if (found?.type !== 'ERROR') return found
    if (await this.frames.next(withinMs) !== null) throw new Error('another frame than CLOSE follows ERROR')
    throw errorOf(found.body)
  }

  close () {
    this.send('CLOSE')
    this.link.forget(this.number)
  }
}

const errorOf = body => {
  const { code, message, retry_after_ms: retryAfterMs } = decode('error_body', body)
  return Object.assign(new WireError(code, message), { retryAfterMs })
}

/** One libp2p stream. `serve(channel)` runs for each channel that the other side begins. */
export class Link {
  constructor (stream, { role = 'client', serve = null, hello = encode('hello', { versions: [1], role }) } = {}) {
    this.serve = serve
    this.stream = stream
    this.channels = new Map()
    this.begun = new Set()
    this.last = 0
    this.out = new Queue()
    this.why = null
    this.greeted = Promise.withResolvers()
    this.greeted.promise.catch(() => {})
    if (hello) this.write(frame('HELLO', 0, hello))
    this.writing = stream.sink(this.#outgoing()).catch(() => {})
    this.over = this.#read(stream.source)
  }

  write (bytes) { this.out.push(bytes) }
  forget (number) { this.channels.delete(number) }

  channel (number = ++this.last) {
    const channel = new Channel(this, number)
    this.channels.set(number, channel)
    if (this.why) channel.frames.end()
    return channel
  }

  /** REQUEST, REPLY, CLOSE. */
  async ask (method, value = {}) {
    return decode(replies[method], await this.askBytes(method, encode(asks[method], value)))
  }

  async askBytes (method, body) {
    const channel = this.channel()
    channel.send('REQUEST', encode('request_body', { method, body }))
    const reply = await channel.receive()
    if (!reply) throw this.why ?? new Error(`${method}: the channel was closed`)
    if (reply.type !== 'REPLY') throw new Error(`${method} was answered by ${reply.type}`)
    if (await channel.receive() !== null) throw new Error(`${method}: a frame follows REPLY`)
    this.forget(channel.number)
    return reply.body
  }

  end () { this.out.end() }

  async * #outgoing () {
    for (let bytes = await this.out.next(); bytes; bytes = await this.out.next()) yield bytes
  }

  async #read (source) {
    let pending = Buffer.alloc(0)
    try {
      for await (const piece of source) {
        pending = Buffer.concat([pending, piece.subarray()])
        let size
        while (pending.length >= HEAD_BYTES && pending.length >= (size = HEAD_BYTES + pending.readUInt32BE(6))) {
          this.#take(pending.subarray(0, size))
          pending = pending.subarray(size)
        }
      }
      this.why = new Error('the stream has ended')
    } catch (error) {
      this.why = error
    }
    this.greeted.reject(this.why)
    for (const channel of this.channels.values()) channel.frames.end()
    return this.why
  }

  #take (bytes) {
    const [version, type, number] = [bytes[0], names[bytes[1]], bytes.readUInt32BE(2)]
    const body = new Uint8Array(bytes.subarray(HEAD_BYTES))
    if (version !== 1 || body.length > numbers.FRAME_BYTES_MAX) throw new WireError('malformed', 'a frame')
    if (number === 0) {
      if (type !== 'HELLO') throw errorOf(body)
      return this.greeted.resolve(decode('hello', body))
    }
    let channel = this.channels.get(number)
    if (!channel) {
      if (!this.serve || this.begun.has(number)) return // It was under way when the channel was closed.
      this.begun.add(number)
      channel = this.channel(number)
      this.serve(channel)
    }
    if (type !== 'CLOSE') return channel.frames.push({ type, body })
    channel.frames.end()
    this.forget(number)
  }
}

const asks = { attach: 'attach_ask', load: 'load_report', receipt: 'receipt_ask' }
const replies = { attach: 'attach_reply', load: 'load_ack', receipt: 'settle_reply', lease: 'lease_grant', delivery: 'delivery_ack' }
for (const method of ['lease', 'quote', 'settle', 'delivery', 'nodes', 'balance']) {
  asks[method] ??= `${method}_ask`
  replies[method] ??= `${method}_reply`
}
